"""Recognize images that arrive as arrays of pixels, although the journal knows only files."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.job import picture_key
from phospho_multimodal.batch.journal.journal import PART_ROWS, Journal
from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.batch.pipeline.preparation import make_sendable
from phospho_multimodal.batch.sources.items import Item
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.settings import Settings

__all__ = ["AnsweredPixels", "hash_pixels"]

logger = logging.getLogger("phospho_multimodal")


def hash_pixels(image: Any) -> str:
    """Hash the pixels of a PIL image as `ray.data.read_images` decodes them: nothing is rotated."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.convert("RGBA").tobytes())
    return digest.hexdigest()


class AnsweredPixels:
    """The pixel hashes of the files that a batch in the same folder has described.

    They are computed once for a run, when the first array arrives.
    """

    def __init__(self, journal: Journal, settings: Settings, root: Path | None) -> None:
        self._journal = journal
        self._settings = settings
        self._root = root
        self._files: asyncio.Future[dict[str, tuple[bytes, Path]]] | None = None

    async def find(self, pixels: str) -> bytes | None:
        """Return the key of the image with these pixels, if it was described or is in doubt."""
        if self._root is None:
            return None
        if self._files is None:
            self._files = asyncio.ensure_future(asyncio.to_thread(self._hash_files, self._root))
        picture, path = (await asyncio.shield(self._files)).get(pixels, (None, None))
        if picture is None or not await asyncio.to_thread(self._is_unchanged, picture, path):
            return None
        return picture

    def _hash_files(self, root: Path) -> dict[str, tuple[bytes, Path]]:
        files = list(self._described_files(root))
        logger.warning("hashing the pixels of %d files that were described before", len(files))
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            hashes = threads.map(_hash_file, (path for _, path in files))
            return {pixels: file for pixels, file in zip(hashes, files, strict=True) if pixels}

    def _described_files(self, root: Path) -> Iterator[tuple[bytes, Path]]:
        for first in range(1, self._journal.last_position() + 1, PART_ROWS):
            for row in self._journal.rows(first, first + PART_ROWS - 1):
                path = root / row["source"]
                if row["state"] in {State.DESCRIBED, State.IN_DOUBT} and path.is_file():
                    yield row["picture"], path

    def _is_unchanged(self, picture: bytes, path: Path | None) -> bool:
        image = make_sendable(Item("", "", path, None), self._settings, lambda: False)
        return not isinstance(image, PhosphoError) and picture_key(image) == picture


def _hash_file(path: Path) -> str | None:
    from PIL import Image  # noqa: PLC0415 - heavy

    try:
        with Image.open(path) as image:
            return hash_pixels(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
