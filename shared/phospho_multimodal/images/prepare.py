"""Prepare an image for sending: checked, upright, small, and without metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pybase64

from phospho_multimodal.contract import DEFAULT_IMAGE_SIDE
from phospho_multimodal.errors import ConfigurationError, ImageError
from phospho_multimodal.images.inspect import PassthroughImage, find_passthrough
from phospho_multimodal.images.legibility import shrinking_warnings
from phospho_multimodal.images.source import ImageInput, ImageSource, SourceForm, image_source

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "LinkedImage",
    "PreparedImage",
    "SendableImage",
    "decode_image",
    "encode_image",
    "image_to_string",
    "passthrough_source",
    "prepare_content",
    "prepare_image",
    "prepare_source",
]

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_MOST_INSPECTED = 512


@dataclass(frozen=True)
class PreparedImage:
    """An image as it is sent.

    Attributes:
        data: The bytes of the file.
        format: The type as Pillow names it: JPEG or PNG, or any other with `prepare=False`.
        width: The width in pixels.
        height: The height in pixels.
        form: The form in which the image was passed.
        changes: The changes in words. They are empty if the file is sent byte for byte.
        origin: Scheme and host of the URL from which the image was fetched.
        sha256: The hash of `data` in hexadecimal. It is computed if it is empty.
    """

    data: bytes = field(repr=False)
    format: str
    width: int
    height: int
    form: SourceForm
    changes: tuple[str, ...] = ()
    origin: str | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.data).hexdigest())

    def to_wire(self) -> str:
        """Encode the file as base64, as the API expects it."""
        return pybase64.b64encode_as_string(self.data)

    def to_base64(self) -> bytes:
        """Encode the file as base64 in bytes."""
        return pybase64.b64encode(self.data)

    def to_metadata(self) -> dict[str, Any]:
        """Describe the image in the metadata of an answer."""
        origin = {} if self.origin is None else {"origin": self.origin}
        return {
            "sha256": self.sha256,
            "width": self.width,
            "height": self.height,
            "format": self.format,
            "bytes": len(self.data),
            "source": self.form,
            "changes": list(self.changes),
            **origin,
        }


@dataclass(frozen=True)
class LinkedImage:
    """An http(s) URL that is passed on without opening it."""

    url: str = field(repr=False)
    origin: str

    def to_wire(self) -> str:
        """Return the URL, exactly as given."""
        return self.url

    def to_metadata(self) -> dict[str, Any]:
        """Describe the image in metadata by its origin only, since a URL can hold a secret."""
        return {"source": "url", "origin": self.origin}


SendableImage: TypeAlias = PreparedImage | LinkedImage


def prepare_image(image: ImageInput, *, max_image_side: int = DEFAULT_IMAGE_SIDE) -> PreparedImage:
    """Prepare an image exactly as the clients send it. Nothing is sent.

    The bytes decide the type. Of an animation, the first frame is used, and of a collection the
    primary image. The EXIF orientation is applied, and colors are converted to sRGB. Transparent
    areas become white, or black or grey if the content could not be seen on white. All metadata is
    removed, and the longest side is shrunk.

    A complete JPEG or PNG within the limits that has no metadata is kept byte for byte. The same
    input gives the same bytes (with one version of Pillow).

    Args:
        image: A `pathlib.Path`, bytes, a binary file object, a PIL image, a `data:` URL or base64.
        max_image_side: The longest side, in pixels. A larger image is shrunk.

    Returns:
        The prepared image with the changes in words.

    Raises:
        ImageError: The image cannot be read or its type is not supported. It has more than 50 MB
            or 100 megapixels (200 for a JPEG), or decoding needs more than 600 MB of memory. Or it
            is an http(s) URL, which is not opened here.
        ConfigurationError: `max_image_side` is below 1.
    """
    if max_image_side < 1:
        message = f"max_image_side must be 1 or greater, got {max_image_side}."
        raise ConfigurationError(message)
    prepared = prepare_source(image_source(image), max_image_side=max_image_side)
    if isinstance(prepared, LinkedImage):
        message = "prepare_image does not open http(s) URLs. Download the image and pass the file."
        raise ImageError(message)
    return prepared


def prepare_source(
    source: ImageSource,
    *,
    max_image_side: int = DEFAULT_IMAGE_SIDE,
    prepare: bool = True,
    fetched: bytes | None = None,
) -> SendableImage:
    """Prepare the image of a source; a URL is passed on unless its file was fetched."""
    if source.url is None:
        return prepare_content(source.read(), source.form, max_image_side, prepare=prepare)
    origin = source.url_origin or ""
    if fetched is None:
        return LinkedImage(source.url, origin)
    prepared = prepare_content(fetched, source.form, max_image_side, prepare=prepare)
    return replace(prepared, origin=origin)


def passthrough_source(source: ImageSource, *, max_image_side: int) -> PreparedImage | None:
    """Return the image if it can be sent byte for byte, otherwise `None`."""
    return _passthrough(source.read(), source.form, max_image_side)


def image_to_string(image: object, *, max_image_side: int, prepare: bool) -> str:
    """Make a string from an image, its URL or base64, which a model can store and compare."""
    source = image_source(image)
    return prepare_source(source, max_image_side=max_image_side, prepare=prepare).to_wire()


def prepare_content(
    content: bytes | Image, form: SourceForm, max_image_side: int, *, prepare: bool = True
) -> PreparedImage:
    """Prepare a file or a PIL image; with `prepare=False`, only check its type and limits."""
    unchanged = _passthrough(content, form, max_image_side)
    if unchanged is not None:
        return unchanged
    if not prepare and isinstance(content, bytes):
        from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow

        image = decode.open_image(content)
        return PreparedImage(content, image.format or "", image.width, image.height, form)
    sizes: list[tuple[int, int]] = []

    def longest(size: tuple[int, int]) -> int:
        sizes.append(size)
        return max_image_side

    pixels, lossless, changes = decode_image(content, longest)
    changes += shrinking_warnings(sizes[0], pixels.size)
    return encode_image(pixels, form, changes, lossless=lossless)


def decode_image(
    content: bytes | Image, longest: Callable[[tuple[int, int]], int]
) -> tuple[Image, bool, list[str]]:
    """Decode and shrink a file or a PIL image.

    `longest` returns the longest side for a given size. The result holds the pixels, whether the
    source is lossless, and the changes.
    """
    from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow

    changes: list[str] = []
    if isinstance(content, bytes):
        image = decode.open_image(content)
        lossless = decode.is_lossless(image, content)
        side = longest(image.size)
        pixels = decode.to_rgb(image, max_side=side, changes=changes, borrowed=False)
        return pixels, lossless, changes
    from phospho_multimodal.images.exclusive_access import exclusive_access  # noqa: PLC0415

    with exclusive_access(content):
        decode.check_pixels(content.width, content.height)
        lossless = decode.is_lossless(content, None)
        side = longest(content.size)
        pixels = decode.to_rgb(content, max_side=side, changes=changes, borrowed=True)
    return pixels, lossless, changes


def encode_image(
    pixels: Image, form: SourceForm, changes: Sequence[str], *, lossless: bool
) -> PreparedImage:
    """Encode pixels as they are sent."""
    from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow

    data, kind = decode.encode(pixels, lossless=lossless)
    all_changes = (*(changes or ["metadata removed"]), f"written as {kind}")
    return PreparedImage(data, kind, pixels.width, pixels.height, form, all_changes)


def _passthrough(
    content: bytes | Image, form: SourceForm, max_image_side: int
) -> PreparedImage | None:
    """Take a file unchanged if nothing in it has to be removed, except for a lost end marker."""
    if not isinstance(content, bytes):
        return None
    changes: tuple[str, ...] = ()
    if content.startswith(_JPEG_START) and not content.endswith(_JPEG_END):
        content, changes = content + _JPEG_END, ("end marker added",)
    sha256 = hashlib.sha256(content).hexdigest()
    found = inspect_cached(content, sha256, max_image_side)
    if found is None:
        return None
    return PreparedImage(
        content, found.format, found.width, found.height, form, changes, sha256=sha256
    )


_inspected: dict[tuple[str, int], PassthroughImage | None] = {}


def inspect_cached(content: bytes, sha256: str, max_image_side: int) -> PassthroughImage | None:
    """Inspect a file once, since agents send the same image with every turn.

    A JPEG of 1 MB takes 6 ms, since it is decoded once, and a PNG of 1 MB takes 3 ms, since it is
    decompressed. The file itself is not kept.
    """
    key = (sha256, max_image_side)
    with suppress(KeyError):
        return _inspected[key]
    found = find_passthrough(content, max_image_side)
    if len(_inspected) >= _MOST_INSPECTED:
        _inspected.clear()
    _inspected[key] = found
    return found
