"""Which pictures are the same picture."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from phospho_multimodal import ImageError
from phospho_multimodal.images.pixel_hash import fingerprint
from phospho_multimodal.images.prepare import prepare_source
from phospho_multimodal.images.source import image_source
from pictures import draw, encoded


def of(image: Any, **options: Any) -> str:
    return fingerprint(prepare_source(image_source(image), **options))


def commented() -> bytes:
    notes = PngInfo()
    notes.add_text("Comment", "the same pixels")
    buffer = BytesIO()
    draw().save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "other",
    [
        encoded(kind="PNG", compress_level=1),
        commented(),
        draw(),
        encoded(kind="BMP"),
        encoded(draw().convert("RGBA"), kind="PNG"),
    ],
    ids=["other compression", "a comment", "a PIL image", "BMP", "opaque alpha"],
)
def test_the_same_pixels_are_the_same_picture(other: Any) -> None:
    assert of(other) == of(encoded(kind="PNG"))


def test_the_same_pixels_are_the_same_picture_without_preparation() -> None:
    assert of(commented(), prepare=False) == of(encoded(kind="PNG"))


@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 2))
def test_one_pixel_makes_another_picture(x: int, y: int, channel: int) -> None:
    changed = Image.new("RGB", (16, 16), "white")
    colour = [255, 255, 255]
    colour[channel] = 254
    changed.putpixel((x, y), tuple(colour))
    assert of(changed) != of(Image.new("RGB", (16, 16), "white"))


def test_another_shape_makes_another_picture() -> None:
    assert of(Image.new("RGB", (8, 2))) != of(Image.new("RGB", (2, 8)))


def test_a_url_is_told_by_its_string_and_is_not_in_its_fingerprint() -> None:
    url = "https://example.com/a.png?secret=1"
    assert of(url) == of(url)
    assert of(url) != of(f"{url}0")
    assert "secret" not in of(url)


def test_a_picture_that_cannot_be_decoded_is_none() -> None:
    png = encoded(kind="PNG")
    start = png.index(b"IDAT") + 4
    broken = png[:start] + b"\0" * 8 + png[start + 8 :]
    with pytest.raises(ImageError, match="broken"):
        of(broken)
