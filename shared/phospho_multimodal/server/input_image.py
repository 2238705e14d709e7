"""From a request's `image_url` to an image that an engine can use."""

import binascii
import contextlib
from collections.abc import Iterator

import pybase64
from fastapi import HTTPException
from PIL import Image

from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.decode import open_image, to_rgb
from phospho_multimodal.images.inspect import find_passthrough
from phospho_multimodal.images.safe_fetch import fetch_image
from phospho_multimodal.server.engines import InputImage
from phospho_multimodal.server.errors import invalid_value

__all__ = ["read_image"]

_SCHEMES = ("http://", "https://")
_SCHEME_LENGTH = 8


def read_image(image_url: str, *, max_megapixels: int, allow_urls: bool = False) -> InputImage:
    """Read an image, in a thread because it blocks; a wrong one is a 422 that says what to change.

    Args:
        image_url: The field of the request.
        max_megapixels: The largest image that is decoded, by its header.
        allow_urls: Whether to fetch public URLs.
    """
    data = _fetch(image_url) if allow_urls and _is_url(image_url) else _decode(image_url)
    with _invalid_image("image_unreadable"):
        image = open_image(data, max_megapixels=max_megapixels)
    width, height = image.size

    def decode() -> Image.Image:
        with _invalid_image("image_unreadable"):
            # Opened again, because two threads must not share a file.
            return _pixels(open_image(data, max_megapixels=max_megapixels))

    # The structure of a JPEG shows whether it is complete. Other types are decoded here, so that
    # a broken file is rejected whichever engine answers.
    complete = image.format == "JPEG" and find_passthrough(data, max(width, height)) is not None
    return InputImage(data, image.format or "", width, height, decode if complete else decode())


def _pixels(image: Image.Image) -> Image.Image:
    pixels = to_rgb(image)
    # It may be grey. Converting RGB to RGB would copy 300 MB.
    return pixels if pixels.mode == "RGB" else pixels.convert("RGB")


def _is_url(image_url: str) -> bool:
    return image_url[:_SCHEME_LENGTH].lower().startswith(_SCHEMES)


def _fetch(image_url: str) -> bytes:
    with _invalid_image("url_not_fetched"):
        return fetch_image(image_url)


def _decode(image_url: str) -> bytes:
    if not image_url:
        message = "image_url is empty. Send the image file as base64."
        raise _invalid(message, "image_missing")
    if _is_url(image_url):
        message = (
            "This server opens no URLs unless it is started with --allow-urls. Send the image file"
            " itself, as base64."
        )
        raise _invalid(message, "url_not_allowed")
    if image_url[:_SCHEME_LENGTH].lower().startswith("data:"):
        message = "Send the bare base64 of the image file, without the 'data:…;base64,' before it."
        raise _invalid(message, "data_url")
    try:
        return pybase64.b64decode(image_url, validate=True)
    except (binascii.Error, ValueError):
        message = (
            "This is not base64. Send the image file in the standard alphabet (A-Z a-z 0-9 + /),"
            " padded with '=', without line breaks."
        )
        raise _invalid(message, "base64_invalid") from None


@contextlib.contextmanager
def _invalid_image(kind: str) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise _invalid(str(error), kind) from None


def _invalid(message: str, kind: str) -> HTTPException:
    return invalid_value(message, kind=kind, loc=("inputs", 0, "image_url"))
