"""The source of an image: the form in which it was passed, and how to read its bytes.

A string is a URL, a `data:` URL or base64, and never a path. Otherwise a message could name a local
file and steal it.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import pybase64

from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.inspect import sniff

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "MAX_IMAGE_BYTES",
    "ImageInput",
    "ImageSource",
    "SourceForm",
    "check_file",
    "image_source",
]

MAX_IMAGE_BYTES = 50 * 1024 * 1024
"""The size limit of an image file, in bytes."""

SourceForm = Literal["bytes", "file", "path", "pil", "url", "data_url", "base64"]
"""The form in which an image was passed. The metadata of each answer contains it."""

ImageInput: TypeAlias = "Path | bytes | bytearray | memoryview | BinaryIO | Image | str"
"""Everything that can be passed as an image."""

_WHITESPACE = re.compile(r"\s+")
_IGNORED_BEFORE_URLS = "".join(map(chr, range(0x21)))
"""Control characters and spaces: browsers ignore these before a URL."""
_BASE64_HEADER = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image as it was passed. Nothing is opened before `read`."""

    form: SourceForm
    value: Any = field(repr=False)

    @property
    def url(self) -> str | None:
        """The http(s) URL, exactly as given, or `None`."""
        return self.value if self.form == "url" else None

    @property
    def url_origin(self) -> str | None:
        """Scheme and host of the URL, the only parts that metadata and errors may name."""
        if self.form != "url":
            return None
        parts = urlsplit(self.value)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}"

    def read(self) -> bytes | Image:
        """Read the bytes of the file, at most 50 MB, or return the PIL image itself."""
        if self.form == "bytes":
            return _checked_size(self.value)
        if self.form == "pil":
            image: Image = self.value
            return image
        if self.form == "path":
            return _read_path(self.value)
        if self.form == "file":
            return _read_file(self.value)
        if self.form == "data_url":
            return _read_data_url(self.value)
        if self.form == "base64":
            return _decode_base64(self.value)
        message = "This http(s) URL is not opened here. Download the image and pass the file."
        raise ImageError(message)


def image_source(image: object) -> ImageSource:
    """Recognize the form of an image without opening it."""
    if isinstance(image, ImageSource):
        return image
    if isinstance(image, str):
        return _string_source(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return ImageSource("bytes", bytes(image))
    if isinstance(image, os.PathLike):
        return ImageSource("path", Path(image))
    # If Pillow is not loaded, this cannot be a PIL image.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return ImageSource("pil", image)
    if callable(getattr(image, "read", None)):
        return ImageSource("file", image)
    message = (
        f"A {type(image).__name__} is not an image. Pass a pathlib.Path, bytes, a binary file,"
        " a PIL image, or a string that is an http(s) URL, a data: URL or base64."
    )
    raise ImageError(message)


def check_file(path: Path) -> None:
    """Check that a path is a regular file of at most 50 MB, without opening it."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device could block
        message = f"{path} is not a file."
        raise ImageError(message)
    if status.st_size > MAX_IMAGE_BYTES:
        raise _too_large(status.st_size)


def _string_source(text: str) -> ImageSource:
    # Base64 can have 66 MB, so look at the first characters only.
    if text[:1] <= " ":
        text = text.lstrip(_IGNORED_BEFORE_URLS)
    scheme = text[:8].lower()
    if scheme.startswith(("http://", "https://")):
        _check_url(text)
        return ImageSource("url", text)
    if scheme.startswith("data:"):
        return ImageSource("data_url", text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text[:32]):
        message = (
            f"An image cannot be a {text.split(':', 1)[0]}: URL. Pass an http(s) or data: URL, or"
            " a pathlib.Path for a local file."
        )
        raise ImageError(message)
    return ImageSource("base64", text)


def _check_url(url: str) -> None:
    try:
        host = urlsplit(url).hostname
        _ = urlsplit(url).port
    except ValueError:
        host = None
    if not host or not url.isprintable() or " " in url:
        message = "The image URL is not valid: it has no host, an invalid port, or white space."
        raise ImageError(message)


def _too_large(size: int) -> ImageError:
    message = (
        f"The image has {size:,} bytes, and the limit is {MAX_IMAGE_BYTES:,}. Shrink it first."
    )
    return ImageError(message)


def _checked_size(data: bytes) -> bytes:
    if not data:
        message = "The image is empty: 0 bytes."
        raise ImageError(message)
    if len(data) > MAX_IMAGE_BYTES:
        raise _too_large(len(data))
    return data


def _read_path(path: Path) -> bytes:
    try:
        check_file(path)
        return _checked_size(path.read_bytes())
    except (OSError, ValueError) as failure:
        reason = failure.strerror if isinstance(failure, OSError) else str(failure)
        message = f"The image file {path} cannot be read: {reason}."
        raise ImageError(message) from None


def _read_file(file: Any) -> bytes:
    from phospho_multimodal.images.exclusive_access import exclusive_access  # noqa: PLC0415

    try:
        with exclusive_access(file):
            # Read from the beginning, since the same object may be passed twice.
            seekable = getattr(file, "seekable", None)
            if seekable is not None and seekable():
                file.seek(0)
            data = file.read(MAX_IMAGE_BYTES + 1)
    except Exception as failure:  # noqa: BLE001 - a file object can be of any class
        message = f"The image file object cannot be read ({type(failure).__name__}: {failure})."
        raise ImageError(message) from None
    if isinstance(data, (bytearray, memoryview)):
        data = bytes(data)
    if not isinstance(data, bytes):  # the file was opened as text
        message = "The image file object returns text, not bytes. Open it with mode 'rb'."
        raise ImageError(message)
    return _checked_size(data)


def _read_data_url(url: str) -> bytes:
    """Read a `data:` URL as browsers do: base64 may be percent-encoded, and have white space."""
    header, comma, payload = url.partition(",")
    if not comma:
        message = "The data: URL has no comma, so it has no data."
        raise ImageError(message)
    payload = payload.partition("#")[0]  # a fragment is not part of the data
    if not payload or not _BASE64_HEADER.search(header):
        return _checked_size(unquote_to_bytes(payload))
    return _decode_base64(unquote(payload) if "%" in payload else payload)


def _decode_base64(text: str) -> bytes:
    """Decode base64; white space, the URL-safe alphabet and missing padding are allowed."""
    if len(text) > MAX_IMAGE_BYTES * 3 // 2:
        raise _too_large(len(text) * 3 // 4)
    try:
        data = pybase64.b64decode(text, validate=True)
    except ValueError:
        bare = _WHITESPACE.sub("", text).rstrip("=").translate(_URL_SAFE)
        try:
            data = pybase64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        except ValueError:
            data = b""
    # Paths and words can also be valid base64, but not of an image.
    if sniff(data) is None or not data:
        message = (
            f"The image is a string of {len(text)} characters that is not an http(s) URL, a data:"
            " URL or the base64 of an image. A string is never a path. Pass a pathlib.Path for a"
            " local file."
        )
        raise ImageError(message)
    return _checked_size(data)
