"""From the contract's `image_url` to a picture that an engine can look at."""

import binascii
import contextlib
from collections.abc import Iterator

import pybase64
from PIL import Image

from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.decode import open_image, to_rgb
from phospho_multimodal.images.inspect import find_passthrough
from phospho_multimodal.images.safe_fetch import fetch_image
from phospho_multimodal.server import errors as failures
from phospho_multimodal.server.engines import Picture

__all__ = ["read_image"]

_SCHEMES = ("http://", "https://")
_LONGEST_SCHEME = 8


def read_image(image_url: str, *, max_megapixels: int, allow_urls: bool = False) -> Picture:
    """Decode an image. It blocks: fetching and decoding are work for a thread.

    Args:
        image_url: The field as it was received.
        max_megapixels: How large an image may be, by its header, to be decoded at all.
        allow_urls: Whether to fetch it, if it is a public URL.

    Returns:
        The picture.

    Raises:
        Refusal: A 422 that says what to change.
    """
    data = _fetch(image_url) if allow_urls and _is_url(image_url) else _decode(image_url)
    with _refused():
        image = open_image(data, max_megapixels=max_megapixels)
    width, height = image.size

    def decode() -> Image.Image:
        with _refused():
            # Opened anew: two threads that decode one picture must not share a reader.
            return _pixels(open_image(data, max_megapixels=max_megapixels))

    # What is whole by its structure needs no decoding to be taken in; the rest is tried here, so
    # that a broken file is refused whatever the engine. A PNG is told whole by unpacking it, and
    # then it may as well be decoded.
    whole = image.format == "JPEG" and find_passthrough(data, max(width, height)) is not None
    pixels = decode if whole else decode()
    return Picture(data, image.format or "", width, height, pixels)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ImageError as unreadable:
        raise failures.refused_image(str(unreadable), kind="image_unreadable") from None


def _pixels(image: Image.Image) -> Image.Image:
    pixels = to_rgb(image)
    # It may be grey; converting RGB to RGB would copy 300 MB.
    return pixels if pixels.mode == "RGB" else pixels.convert("RGB")


def _is_url(image_url: str) -> bool:
    return image_url[:_LONGEST_SCHEME].lower().startswith(_SCHEMES)


def _fetch(image_url: str) -> bytes:
    try:
        return fetch_image(image_url)
    except ImageError as refused:
        raise failures.refused_image(str(refused), kind="url_not_fetched") from None


def _decode(image_url: str) -> bytes:
    if not image_url:
        message = "image_url is empty. Send the image file as base64."
        raise failures.refused_image(message, kind="image_missing")
    if _is_url(image_url):
        message = (
            "This server opens no URLs unless it is started with --allow-urls. Send the image file"
            " itself, as base64."
        )
        raise failures.refused_image(message, kind="url_not_allowed")
    if image_url[:_LONGEST_SCHEME].lower().startswith("data:"):
        message = "Send the bare base64 of the image file, without the 'data:…;base64,' before it."
        raise failures.refused_image(message, kind="data_url")
    try:
        return pybase64.b64decode(image_url, validate=True)
    except (binascii.Error, ValueError):
        message = (
            "This is not base64. Send the image file in the standard alphabet (A-Z a-z 0-9 + /),"
            " padded with '=', without line breaks."
        )
        raise failures.refused_image(message, kind="base64_invalid") from None
