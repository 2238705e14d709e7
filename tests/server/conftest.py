from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from PIL import Image

from live_server import serve
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import Picture, Question
from phospho_multimodal.server.engines.echo import EchoEngine


@dataclass
class SamplePicture:
    """A small file, and the requests that send it."""

    data: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()

    def request(self, text: str = "What is this?", **parameters: Any) -> dict[str, Any]:
        item = {"text": text, "image_url": self.base64, **parameters}
        return {"model": "phospho-multimodal", "inputs": [item]}


class GatedEngine:
    """Answers with the question, but not before its gate is opened."""

    name = "gated"

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.seen: list[str] = []

    def describe(self, picture: Picture, question: Question) -> str:
        self.seen.append(question.text)
        self.entered.release()
        assert self.gate.wait(30)
        return question.text


@pytest.fixture(scope="session")
def picture() -> SamplePicture:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(buffer, "PNG")
    return SamplePicture(buffer.getvalue())


@pytest.fixture
def gated() -> Iterator[GatedEngine]:
    engine = GatedEngine()
    yield engine
    engine.gate.set()


@pytest.fixture
def echo_client() -> Iterator[httpx.Client]:
    with serve(create_app(EchoEngine())) as base_url, httpx.Client(base_url=base_url) as client:
        yield client
