"""From what was handed over to what is sent: checked, upright, small, and free of metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
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


@dataclass(frozen=True)
class PreparedImage:
    """A picture as it is sent.

    Attributes:
        data: The file, in bytes.
        format: Its type as Pillow names it: JPEG or PNG, or the source's with `prepare=False`.
        width: In pixels.
        height: In pixels.
        form: How it was handed over.
        changes: What was done to it, in words; empty if it is sent byte for byte as it came.
        origin: Scheme and host of the URL it was fetched from.
        sha256: Digest of `data`, in hexadecimal; reckoned here, unless it is known already.
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
        """The bare base64 that the contract wants."""
        return pybase64.b64encode_as_string(self.data)

    def to_base64(self) -> bytes:
        """The same, as bytes."""
        return pybase64.b64encode(self.data)

    def to_metadata(self) -> dict[str, Any]:
        """What an answer tells about this picture."""
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
    """An http(s) URL that is handed on unopened."""

    url: str = field(repr=False)
    origin: str

    def to_wire(self) -> str:
        """The URL, exactly as given."""
        return self.url

    def to_metadata(self) -> dict[str, Any]:
        """What an answer tells about this picture: the origin alone, a URL can hold a secret."""
        return {"source": "url", "origin": self.origin}


SendableImage: TypeAlias = PreparedImage | LinkedImage


def prepare_image(image: ImageInput, *, max_image_side: int = DEFAULT_IMAGE_SIDE) -> PreparedImage:
    """Make of an image what the clients send.

    The type is read from the bytes. The first frame of an animation and the primary image of a
    collection are taken. EXIF orientation is applied, and colours become sRGB. Transparency is put
    on white, or on black or grey if the content could not be seen on white. All metadata is
    removed, and the longest side is shrunk. A JPEG or PNG within the limits that has nothing to
    lose, and all of its pixels, stays as it is, byte for byte. The same input gives the same bytes
    (with one version of Pillow).

    Args:
        image: A `pathlib.Path`, bytes, a binary file object, a PIL image, a `data:` URL or base64.
        max_image_side: Longest side, in pixels.

    Returns:
        The picture and what was done to it.

    Raises:
        ImageError: It cannot be read, is of an unsupported type or variant, has over 50 MB, over
            100 megapixels (200 of a JPEG) or needs over 600 MB of memory, or it is an http(s) URL,
            which is not opened here.
        ConfigurationError: `max_image_side` is below 1.
    """
    if max_image_side < 1:
        message = f"max_image_side is {max_image_side}; it is 1 or more."
        raise ConfigurationError(message)
    prepared = prepare_source(image_source(image), max_image_side=max_image_side)
    if isinstance(prepared, LinkedImage):
        message = "An http(s) URL is not opened here. Download it and hand over the file."
        raise ImageError(message)
    return prepared


def prepare_source(
    source: ImageSource,
    *,
    max_image_side: int = DEFAULT_IMAGE_SIDE,
    prepare: bool = True,
    fetched: bytes | None = None,
) -> SendableImage:
    """Make of a source what is sent; a URL is passed on, unless it was fetched."""
    if source.url is None:
        return prepare_content(source.read(), source.form, max_image_side, prepare=prepare)
    origin = source.url_origin or ""
    if fetched is None:
        return LinkedImage(source.url, origin)
    prepared = prepare_content(fetched, source.form, max_image_side, prepare=prepare)
    return replace(prepared, origin=origin)


def passthrough_source(source: ImageSource, *, max_image_side: int) -> PreparedImage | None:
    """Take a source as it is, if that is what would be sent anyway."""
    return _clean(source.read(), source.form, max_image_side)


def image_to_string(image: object, *, max_image_side: int, prepare: bool) -> str:
    """Make of an image a string that a model can keep, be written down with, and compare."""
    source = image_source(image)
    return prepare_source(source, max_image_side=max_image_side, prepare=prepare).to_wire()


def prepare_content(
    content: bytes | Image, form: SourceForm, max_image_side: int, *, prepare: bool = True
) -> PreparedImage:
    """Make of a file or a PIL image what is sent."""
    clean = _clean(content, form, max_image_side)
    if clean is not None:
        return clean
    if not prepare and isinstance(content, bytes):
        from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow, so only now

        image = decode.open_image(content)
        return PreparedImage(content, image.format or "", image.width, image.height, form)
    sizes: list[tuple[int, int]] = []

    def longest(size: tuple[int, int]) -> int:
        sizes.append(size)
        return max_image_side

    picture, lossless, changes = decode_image(content, longest)
    changes += shrinking_warnings(sizes[0], picture.size)
    return encode_image(picture, form, changes, lossless=lossless)


def decode_image(
    content: bytes | Image, longest: Callable[[tuple[int, int]], int]
) -> tuple[Image, bool, list[str]]:
    """Decode a file or a PIL image, and shrink it."""
    from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow, so only now

    changes: list[str] = []
    if isinstance(content, bytes):
        image = decode.open_image(content)
        lossless = decode.is_lossless(image, content)
        side = longest(image.size)
        picture = decode.to_rgb(image, max_side=side, changes=changes, borrowed=False)
        return picture, lossless, changes
    from phospho_multimodal.images.exclusive_access import exclusive_access  # noqa: PLC0415 - for these alone

    with exclusive_access(content):
        decode.check_pixels(content.width, content.height)
        lossless = decode.is_lossless(content, None)
        side = longest(content.size)
        picture = decode.to_rgb(content, max_side=side, changes=changes, borrowed=True)
    return picture, lossless, changes


def encode_image(
    picture: Image, form: SourceForm, changes: Sequence[str], *, lossless: bool
) -> PreparedImage:
    """Write pixels as they are sent."""
    from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow, so only now

    data, kind = decode.encode(picture, lossless=lossless)
    told = (*(changes or ["metadata removed"]), f"written as {kind}")
    return PreparedImage(data, kind, picture.width, picture.height, form, told)


def _clean(content: bytes | Image, form: SourceForm, max_image_side: int) -> PreparedImage | None:
    """Take a file that has nothing to lose, byte for byte as it came."""
    if not isinstance(content, bytes):
        return None
    changes: tuple[str, ...] = ()
    if content.startswith(_JPEG_START) and not content.endswith(_JPEG_END):
        content, changes = content + _JPEG_END, ("end marker added",)
    file = _File(content)
    clean = inspect_cached(file, max_image_side)
    if clean is None:
        return None
    size = (clean.width, clean.height)
    return PreparedImage(content, clean.format, *size, form, changes, sha256=file.sha256)


class _File:
    """A file known by its digest; it gives its content once, and then holds it no longer."""

    def __init__(self, content: bytes) -> None:
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._content = content

    def take(self) -> bytes:
        content, self._content = self._content, b""
        return content

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _File) and self.sha256 == other.sha256


@lru_cache(maxsize=512)
def inspect_cached(file: _File, max_image_side: int) -> PassthroughImage | None:
    """Look through a file once: agents send the same picture with every turn.

    A JPEG of 1 MB takes 6 ms, since it is decoded once, and a PNG of 1 MB takes 3 ms, since it is
    unpacked. Only digest, format and size are kept.
    """
    return find_passthrough(file.take(), max_image_side)
