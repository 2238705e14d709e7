"""Captions next to the images: a `.txt` for each, or one `metadata.jsonl` for a folder."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import orjson

from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.sources.folders import Files
from phospho_multimodal.batch.sources.items import Source
from phospho_multimodal.batch.sources.remote import AnyPath, RemoteFile, failure_reason
from phospho_multimodal.errors import ConfigurationError

__all__ = ["Captions", "Sidecar"]

logger = logging.getLogger("phospho_multimodal")

Sidecar = Literal["txt", "metadata"]
"""Which caption files are written next to the images."""

_METADATA = "metadata.jsonl"
_PROBE = ".phospho-multimodal"
_WRITTEN = "metadata_sha256"  # of the file that this job wrote


class Captions:
    """Writes captions where the trainers of image models look for them."""

    def __init__(
        self, source: Source, kind: Sidecar, journal: Journal, *, overwrite: bool = False
    ) -> None:
        """Look at nothing yet."""
        self._source = source
        self._kind = kind
        self._journal = journal
        self._overwrite = overwrite

    def check(self) -> None:
        """Write a file next to the images once before anything is paid."""
        if self._kind == "metadata":
            path = self._metadata_path()
            ours = self._journal.fact(_WRITTEN)
            is_foreign = path.exists() and _digest(path.read_bytes()) != ours
            if is_foreign and not self._overwrite:
                message = f"{path} exists. Nothing was sent. Pass overwrite, or move it."
                raise ConfigurationError(message)
            probe = path.parent / _PROBE
        else:
            paths = (_path_beside(item.image) for item in self._source)
            first = next((path for path in paths if path is not None), None)
            if first is None:
                message = (
                    "sidecar='txt' writes a file next to each image, and the images of this source"
                    " are not files. Nothing was sent."
                )
                raise ConfigurationError(message)
            probe = first.parent / _PROBE
        try:
            probe.write_bytes(b"\n")
            probe.unlink(missing_ok=True)
        except OSError as failure:
            message = (
                f"Captions cannot be written to {probe.parent}: {failure_reason(failure)}."
                " Nothing was sent."
            )
            raise ConfigurationError(message) from None

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the captions of all images that have a description."""
        described = (r for r in rows if r["status"] == "described" and not r["removed"])
        try:
            if self._kind == "metadata":
                self._write_metadata(described)
            else:
                self._write_texts(described)
        except OSError as failure:
            message = (
                f"The captions cannot be written: {failure_reason(failure)}. The results have all"
                " descriptions. The same call writes the captions, and pays nothing again."
            )
            raise ConfigurationError(message) from None

    def _write_metadata(self, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [orjson.dumps({"file_name": r["id"], "text": r["description"]}) for r in rows]
        content = b"".join(line + b"\n" for line in lines)
        self._journal.note(_WRITTEN, _digest(content))  # before: a kill must not leave it foreign
        self._metadata_path().write_bytes(content)

    def _metadata_path(self) -> AnyPath:
        if not isinstance(self._source, Files):
            message = (
                f"sidecar='metadata' is for a folder of images, not for {self._source.name}."
                " Nothing was sent."
            )
            raise ConfigurationError(message)
        return self._source.base / _METADATA

    def _write_texts(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Look each image's description up in a temporary file: there may be millions."""
        left = shared = 0
        with closing(sqlite3.connect("", isolation_level=None)) as database:
            database.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, text) WITHOUT ROWID")
            database.execute("CREATE TABLE written (path TEXT PRIMARY KEY) WITHOUT ROWID")
            database.execute("BEGIN")
            pairs = ((row["id"], row["description"]) for row in rows)
            database.executemany("INSERT INTO texts VALUES (?, ?)", pairs)
            for item in self._source:
                path = _path_beside(item.image)
                found = database.execute("SELECT text FROM texts WHERE id = ?", (item.id,))
                text = found.fetchone()
                if text is None or path is None:
                    continue
                name = repr(path)  # which any name of a file has in UTF-8
                added = database.execute("INSERT OR IGNORE INTO written VALUES (?)", (name,))
                if not added.rowcount:
                    shared += 1
                elif self._overwrite or not path.exists():
                    path.write_bytes(f"{text[0]}\n".encode())
                else:
                    left += 1
        if left or shared:
            logger.warning(
                "%d caption files existed and were kept; %d images share the name of the caption"
                " file of another image",
                left,
                shared,
            )


def _path_beside(image: object) -> AnyPath | None:
    return image.with_suffix(".txt") if isinstance(image, (Path, RemoteFile)) else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
