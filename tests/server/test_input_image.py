"""A complete JPEG is decoded when an engine needs its pixels."""

from __future__ import annotations

import base64

import httpx
import pytest
from PIL import Image

from live_server import serve
from phospho_multimodal.contract import PREDICT_PATH
from phospho_multimodal.server import create_app
from phospho_multimodal.server import input_image as images
from phospho_multimodal.server.engines import InputImage, Question
from phospho_multimodal.server.engines.echo import EchoEngine
from pictures import encoded

PHOTO = encoded(Image.linear_gradient("L").convert("RGB"), "JPEG")


class PixelEngine:
    name = "pixels"

    def describe(self, picture: InputImage, question: Question) -> str:
        return f"{picture.pixels.mode} {picture.pixels.size}"


def request(file: bytes) -> dict[str, object]:
    item = {"text": "?", "image_url": base64.b64encode(file).decode()}
    return {"model": "phospho-multimodal", "inputs": [item]}


@pytest.fixture
def decoded(monkeypatch):
    """Count the decoded images."""
    sizes = []
    to_rgb = images.to_rgb

    def counted(image):
        sizes.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr(images, "to_rgb", counted)
    return sizes


@pytest.mark.parametrize(
    ("file", "times"),
    [
        pytest.param(PHOTO, 0, id="a whole JPEG"),
        pytest.param(PHOTO + b"more", 1, id="a JPEG with something behind it"),
        pytest.param(encoded(Image.new("RGB", (8, 8)), "PNG"), 1, id="a PNG"),
    ],
)
def test_only_what_is_not_whole_by_its_structure_is_decoded_at_the_gateway(decoded, file, times):
    with serve(create_app(EchoEngine())) as base_url:
        response = httpx.post(base_url + PREDICT_PATH, json=request(file))
    assert response.status_code == 200
    assert len(decoded) == times


def test_an_engine_gets_the_pixels_and_they_are_decoded_once(decoded):
    with serve(create_app(PixelEngine())) as base_url:
        response = httpx.post(base_url + PREDICT_PATH, json=request(PHOTO))
    assert response.json()["predictions"][0]["description"] == "RGB (256, 256)"
    assert len(decoded) == 1


def test_an_image_that_turns_out_broken_when_an_engine_wants_it_is_still_a_422(monkeypatch):
    def broken(_):
        message = "The JPEG file is broken."
        raise images.ImageError(message)

    monkeypatch.setattr(images, "to_rgb", broken)
    with serve(create_app(PixelEngine())) as base_url:
        response = httpx.post(base_url + PREDICT_PATH, json=request(PHOTO))
    assert response.status_code == 422
    assert response.json()["detail"][0]["type"] == "image_unreadable"
