"""One input of a batch: its id, its picture, and what tells that it changed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pybase64

from phospho_multimodal.errors import ConfigurationError, ImageError, PhosphoError
from phospho_multimodal.images.inspect import sniff
from phospho_multimodal.images.source import ImageInput, image_source

__all__ = [
    "Item",
    "NoInputsError",
    "Source",
    "count_skipped",
    "describe_skipped",
    "file_item",
    "is_picture",
    "make_item",
    "printable",
]

# HEIC is there without its extra too: a row that says what to install is better than none.
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"),
)

_SHOWN = {"bytes": "bytes", "file": "file", "pil": "image"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64}")
_URL_SAFE = str.maketrans("-_", "+/")
_BASE64_OF_PICTURES = frozenset({"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"})
_LONGEST_PATH = 4096
_REASONS_SHOWN = 6
_MOST_REASONS = 50


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        id: The same in every run, and one of its kind within its source.
        source: What the results say: path or URL as given, `archive.tar::member`, or a word for
            what came as data; never the data.
        image: A path, URL, bytes, or whatever else `image_source` takes; `None` with an error.
        stamp: Changes when the content does, and is known without reading it; `None` for URLs
            and bytes, and for a file that is not there.
        error: Why this can be no picture.
    """

    id: str
    source: str
    image: ImageInput | None = field(repr=False)
    stamp: str | None
    error: PhosphoError | None = None

    @property
    def file_size(self) -> int | None:
        """Bytes of its file, where the stamp tells."""
        size = self.stamp.partition("-")[0] if self.stamp else ""
        return int(size) if size.isdecimal() else None


class Source(Protocol):
    """Where inputs come from: iterated once to count them and once to work, lazily each time.

    That no id comes twice is checked by the journal, not here.
    """

    name: str
    """For messages: `folder photos`."""

    skipped: Counter[str]
    """What the last pass left out, and how often, by the reason: `.txt files`."""

    def __iter__(self) -> Iterator[Item]:
        """Make the items anew, in the same order."""
        ...


class NoInputsError(ConfigurationError):
    """The source holds nothing that could be an image."""


def describe_skipped(skipped: Counter[str]) -> str:
    """List what a source left out: `12 .txt files, 1 hidden file`.

    Args:
        skipped: The reasons, and how often each applies.

    Returns:
        The commonest ones; an empty text if nothing was left out.
    """
    told = [f"{count:,} {reason}" for reason, count in skipped.most_common(_REASONS_SHOWN)]
    others = sum(skipped.values()) - sum(count for _, count in skipped.most_common(_REASONS_SHOWN))
    return ", ".join([*told, f"{others:,} others"] if others else told)


def count_skipped(skipped: Counter[str], name: str) -> None:
    """Count a file that is left out, by its suffix.

    Args:
        skipped: Where it is counted.
        name: Of the file, or its path.
    """
    suffix = PurePosixPath(name).suffix.lower()
    reason = "hidden files" if PurePosixPath(name).name.startswith(".") else f"{suffix} files"
    if not suffix and reason != "hidden files":
        reason = "files without a suffix"
    if reason not in skipped and len(skipped) >= _MOST_REASONS:
        reason = "other files"
    skipped[reason] += 1


def is_picture(name: str) -> bool:
    """Tell by its suffix whether a file can be a picture.

    Args:
        name: Of the file, or its path.

    Returns:
        Whether the suffix is one of a supported type.
    """
    return name.lower().endswith(_SUFFIXES)


def printable(text: str) -> str:
    r"""Make a text that every database and file takes.

    Args:
        text: From the file system or a table: what was no UTF-8 is a lone surrogate in it.

    Returns:
        The same, with each of those as `\udcXX`.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def file_item(name: str, path: Path, shown: str) -> Item:
    """Make the item of a file, which need not be there.

    Args:
        name: The id.
        path: The file.
        shown: The path as it was given.

    Returns:
        The item; what is wrong with the file is told when it is read.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        stamp = None
    else:
        stamp = f"{status.st_size}-{status.st_mtime_ns}"
    return Item(name, printable(shown), path, stamp)


def make_item(name: str, value: object, root: Path | None = None) -> Item:
    """Make an item of what stands in a table or a list.

    A text is a path here, or an http(s) or data: URL: the user's own table is no message of an
    agent, so it may name files.

    Args:
        name: The id.
        value: Text, path, bytes, PIL image, or a mapping with `bytes` or `path`.
        root: What paths are relative to; `None` for the working directory.

    Returns:
        The item, with an error if the value can be no picture.
    """
    source = ""
    if isinstance(value, Mapping):
        if not {"bytes", "path"} & value.keys():
            return _failed(name, "", "There is no image: the mapping has neither bytes nor path.")
        source, value = _unwrap(value)
    if isinstance(value, str):
        return _text_item(name, value, root)
    if value is None or (isinstance(value, (bytes, bytearray)) and not value):
        return _failed(name, source, "There is no picture: the value is empty.")
    if isinstance(value, os.PathLike):
        return _path_item(name, os.fspath(value), root)
    try:
        found = image_source(value)
    except ImageError as error:
        return Item(name, source, None, None, error)
    image: Any = value
    return Item(name, source or _SHOWN.get(found.form, "image"), image, None)


def _unwrap(value: Mapping[Any, Any]) -> tuple[str, object]:
    """Take the picture from `{bytes, path}`, the form of image datasets."""
    data, path = value.get("bytes"), value.get("path")
    if not isinstance(data, (bytes, bytearray, memoryview)) or not data:
        return "", path
    told = isinstance(path, str) and len(path) <= _LONGEST_PATH and not path.startswith("data:")
    return printable(str(path)) if told else "", data


def _text_item(name: str, text: str, root: Path | None) -> Item:
    if not text.strip():
        return _failed(name, "", "There is no picture: the value is empty.")
    if text[:5].lower() == "data:":
        return Item(name, "data: URL", text, None)
    if _URL.match(text):
        return _url_item(name, text)
    if _is_base64(text):
        return Item(name, "base64", text, None)
    if len(text) > _LONGEST_PATH:
        message = f"A text of {len(text):,} characters is neither a path nor a URL of a picture."
        return _failed(name, "text", message)
    return _path_item(name, text, root)


def _url_item(name: str, url: str) -> Item:
    try:
        image_source(url)
    except ImageError as error:
        return Item(name, printable(url), None, None, error)
    return Item(name, url, url, None)


def _path_item(name: str, given: str | bytes, root: Path | None) -> Item:
    text = os.fsdecode(given)
    return file_item(name, Path(text) if root is None else root / text, text)


def _is_base64(text: str) -> bool:
    # As a path it would be repeated in the results and in messages, and never be found. A path
    # has a dot before its suffix, which base64 has not.
    if not _BASE64.match(text) or "." in text:
        return False
    return sniff(pybase64.b64decode(text[:64].translate(_URL_SAFE))) in _BASE64_OF_PICTURES


def _failed(name: str, source: str, message: str) -> Item:
    return Item(name, source, None, None, ImageError(message))
