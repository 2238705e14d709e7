"""One input of a batch: its id, its image, and what tells that the image changed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pybase64

from phospho_multimodal.batch.sources.remote import (
    AnyPath,
    RemoteFile,
    StorageOptions,
    is_store_url,
    is_url,
    open_url,
)
from phospho_multimodal.errors import ConfigurationError, ImageError, PhosphoError
from phospho_multimodal.images.inspect import sniff
from phospho_multimodal.images.source import ImageInput, image_source

__all__ = [
    "Item",
    "NoInputsError",
    "Source",
    "WrappedSource",
    "count_skipped",
    "describe_skipped",
    "file_item",
    "is_image",
    "make_item",
    "printable",
]

# HEIC is in the list without its extra too: a row that says what to install is better than none.
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"),
)

_SHOWN = {"bytes": "bytes", "file": "file", "pil": "image"}
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64}")
_URL_SAFE = str.maketrans("-_", "+/")
_BASE64_FORMATS = frozenset({"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"})
_MAX_PATH = 4096
_REASONS_SHOWN = 6
_MAX_REASONS = 50


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        id: Unique within the source, and the same in every run.
        source: What the results say: the path or URL as given, `archive.tar::member`, or a word
            for data; never the data.
        image: A path, URL, bytes, or whatever else `image_source` takes; `None` with an error.
        stamp: Changes when the content does, and is known without reading it; `None` for URLs,
            bytes and files that are missing.
        error: Why this cannot be an image.
        fields: The fields of the row that prompts and results use.
        prompt: The prompt for this input; `None` for the job's.
    """

    id: str
    source: str
    image: ImageInput | None = field(repr=False)
    stamp: str | None
    error: PhosphoError | None = None
    fields: Mapping[str, object] = field(default_factory=dict, repr=False)
    prompt: str | None = field(default=None, repr=False)

    @property
    def file_size(self) -> int | None:
        """The size of the file in bytes, where the stamp says it."""
        size = self.stamp.partition("-")[0] if self.stamp else ""
        return int(size) if size.isdecimal() else None


class Source(Protocol):
    """Where inputs come from: iterated once to count them and once to work, lazily each time.

    The journal checks that each id is unique.
    """

    name: str
    """For messages: `folder photos`."""

    @property
    def skipped(self) -> Counter[str]:
        """What the last pass left out, and how often, by the reason: `.txt files`."""
        ...

    def __iter__(self) -> Iterator[Item]:
        """Yield the items, in the same order each time."""
        ...


class WrappedSource:
    """Inputs that are made from the inputs of another source."""

    def __init__(self, source: Source, name: str | None = None) -> None:
        """Wrap a source; nothing is read yet."""
        self.name = name or source.name
        self._source = source

    @property
    def skipped(self) -> Counter[str]:
        """What the last pass left out."""
        return self._source.skipped


class NoInputsError(ConfigurationError):
    """The source holds nothing that could be an image."""


def describe_skipped(skipped: Counter[str]) -> str:
    """List what a source left out: `12 .txt files, 1 hidden file`."""
    shown = skipped.most_common(_REASONS_SHOWN)
    listed = [f"{count:,} {reason}" for reason, count in shown]
    others = sum(skipped.values()) - sum(count for _, count in shown)
    return ", ".join([*listed, f"{others:,} others"] if others else listed)


def count_skipped(skipped: Counter[str], name: str) -> None:
    """Count a file that is left out, by its suffix."""
    suffix = PurePosixPath(name).suffix.lower()
    reason = "hidden files" if PurePosixPath(name).name.startswith(".") else f"{suffix} files"
    if not suffix and reason != "hidden files":
        reason = "files without a suffix"
    if reason not in skipped and len(skipped) >= _MAX_REASONS:
        reason = "other files"
    skipped[reason] += 1


def is_image(name: str) -> bool:
    """Return whether a file's name has the suffix of a supported type."""
    return name.lower().endswith(_SUFFIXES)


def printable(text: str) -> str:
    r"""Make a text that every database and file takes: a lone surrogate becomes `\udcXX`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def file_item(name: str, path: Path, shown: str) -> Item:
    """Make the item of a file. If the file is missing, the error comes when it is read."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        stamp = None
    else:
        stamp = f"{status.st_size}-{status.st_mtime_ns}"
    return Item(name, printable(shown), path, stamp)


def make_item(
    name: str,
    value: object,
    root: AnyPath | None = None,
    storage_options: StorageOptions | None = None,
) -> Item:
    """Make an item of a value in a table or a list.

    A text is a path here, or a URL: the user's own table is not a message of an agent, so it may
    name files.
    """
    source = ""
    if isinstance(value, Mapping):
        if not {"bytes", "path"} & value.keys():
            return _failed(
                name, "", "The mapping has neither bytes nor path, so it holds no image."
            )
        source, value = _unwrap(value)
    if isinstance(value, str):
        return _text_item(name, value, root, storage_options)
    if value is None or (isinstance(value, (bytes, bytearray)) and not value):
        return _failed(name, source, "The value is empty, so it holds no image.")
    if isinstance(value, os.PathLike):
        return _path_item(name, os.fspath(value), root)
    try:
        found = image_source(value)
    except ImageError as error:
        return Item(name, source, None, None, error)
    image: Any = value
    if isinstance(value, RemoteFile):
        source = str(value)
    return Item(name, source or _SHOWN.get(found.form, "image"), image, None)


def _unwrap(value: Mapping[Any, Any]) -> tuple[str, object]:
    """Return the source and the image of `{bytes, path}`, the form of image datasets."""
    data, path = value.get("bytes"), value.get("path")
    if not isinstance(data, (bytes, bytearray, memoryview)) or not data:
        return "", path
    is_shown = isinstance(path, str) and len(path) <= _MAX_PATH and not path.startswith("data:")
    return printable(str(path)) if is_shown else "", data


def _text_item(
    name: str, text: str, root: AnyPath | None, storage_options: StorageOptions | None
) -> Item:
    if not text.strip():
        return _failed(name, "", "The value is empty, so it holds no image.")
    if text[:5].lower() == "data:":
        return Item(name, "data: URL", text, None)
    if is_url(text[:_MAX_PATH]):
        return _url_item(name, text, storage_options)
    if _is_base64(text):
        return Item(name, "base64", text, None)
    if len(text) > _MAX_PATH:
        message = f"A text of {len(text):,} characters is neither a path nor a URL of an image."
        return _failed(name, "text", message)
    return _path_item(name, text, root)


def _url_item(name: str, url: str, storage_options: StorageOptions | None) -> Item:
    try:
        if is_store_url(url):
            return make_item(name, open_url(url, storage_options))
        image_source(url)
    except ImageError as error:
        return Item(name, printable(url), None, None, error)
    except (ConfigurationError, ImportError) as failure:
        return _failed(name, printable(url), str(failure))
    return Item(name, url, url, None)


def _path_item(name: str, given: str | bytes, root: AnyPath | None) -> Item:
    text = os.fsdecode(given)
    if isinstance(root, RemoteFile):
        return make_item(name, root / text)
    return file_item(name, Path(text) if root is None else root / text, text)


def _is_base64(text: str) -> bool:
    # As a path it would be repeated in the results and in messages, and never be found. A path
    # has a dot before its suffix, which base64 has not.
    if not _BASE64.match(text) or "." in text:
        return False
    return sniff(pybase64.b64decode(text[:64].translate(_URL_SAFE))) in _BASE64_FORMATS


def _failed(name: str, source: str, message: str) -> Item:
    return Item(name, source, None, None, ImageError(message))
