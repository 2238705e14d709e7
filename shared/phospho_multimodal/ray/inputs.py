"""Inputs of a batch on their way to a worker: written down so that another process finds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from phospho_multimodal.batch.sources.items import Item
from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.prepare import LinkedImage, prepare_source
from phospho_multimodal.images.source import image_source
from phospho_multimodal.settings import Settings

__all__ = ["Block", "image_of", "item_of"]

_BLOCK_ROWS = 64
_BLOCK_BYTES = 16 * 1024 * 1024

_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("path", pa.binary()),  # a path need not be text
        ("text", pa.large_string()),
        ("data", pa.large_binary()),
    ]
)


class Block:
    """Inputs that go out together, written down so that another process finds them."""

    def __init__(self) -> None:
        """Begin without any."""
        self.rows: list[dict[str, Any]] = []
        self.size = 0

    @property
    def is_full(self) -> bool:
        """Whether these are enough."""
        return len(self.rows) >= _BLOCK_ROWS or self.size >= _BLOCK_BYTES

    def add(self, position: int, image: Path | str | bytes) -> None:
        """Write one down."""
        row: dict[str, Any] = {"position": position, "path": None, "text": None, "data": None}
        if isinstance(image, str):
            row["text"] = image
        elif isinstance(image, bytes):
            row["data"] = image
        else:
            row["path"] = os.fsencode(image)
        self.rows.append(row)
        self.size += 0 if isinstance(image, Path) else len(image)

    def table(self) -> pa.Table:
        """Make of them what Ray takes."""
        return pa.Table.from_pylist(self.rows, schema=_SCHEMA)


def image_of(item: Item, settings: Settings) -> Path | str | bytes:
    """Tell what a worker needs of an input: what it can open itself, or the bytes.

    Args:
        item: The input.
        settings: Of the client.

    Returns:
        An absolute path, a text that is no path, or a file's bytes.

    Raises:
        PhosphoError: It is no picture.
    """
    if item.error is not None:
        raise item.error
    if isinstance(item.image, os.PathLike):
        return Path(os.path.abspath(item.image))  # noqa: PTH100 - links stay as they are
    if isinstance(item.image, str):
        return item.image
    source = image_source(item.image)
    content = source.read()
    if isinstance(content, bytes):
        return content
    # A picture in memory: made ready here, it is sent from there as it is.
    prepared = prepare_source(
        image_source(content), max_image_side=settings.max_image_side, prepare=settings.prepare
    )
    if isinstance(prepared, LinkedImage):
        message = "A picture in memory is no URL."
        raise ImageError(message)
    return prepared.data


def item_of(row: dict[str, Any]) -> Item:
    """Read what was written down."""
    path, text, data = row["path"], row["text"], row["data"]
    if path is not None:
        return Item("", "", Path(os.fsdecode(path)), None)
    return Item("", "", data if text is None else text, None)
