"""The store of descriptions, so that no image is billed twice: in memory, or in a file."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from phospho_multimodal import ConfigurationError
from phospho_multimodal.spending.sqlite import open_database, transaction

__all__ = ["Description", "DescriptionStore"]

_TABLES = [
    """CREATE TABLE IF NOT EXISTS descriptions
    (key TEXT PRIMARY KEY, owner TEXT, text TEXT, model TEXT, image_sha256 TEXT)""",
]


@dataclass(frozen=True, slots=True)
class Description:
    """An answer about an image; the endpoint downloads a URL itself, so that has no digest."""

    text: str
    model: str
    image_sha256: str | None


class DescriptionStore:
    """Descriptions by key, in memory or in an SQLite file that processes share.

    Within a process, a caller that is about to pay for a description claims its key, and others
    wait. Two processes that need the same description at the same time both pay for it.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open the file; without a path, keep the descriptions in memory."""
        self.path = path
        self._lock = threading.Lock()
        self._claimed: set[str] = set()
        # Without a file, all descriptions; else those that could not be written yet.
        self._in_memory: dict[str, Description] = {}
        self._database: sqlite3.Connection | None = None
        if path is not None:
            with self._readable_errors():
                self._database = open_database(path, _TABLES)

    def find(self, key: str) -> Description | None:
        """Return the description, if there is one."""
        with self._lock:
            return self._find(key)

    def claim(self, key: str) -> bool:
        """Claim a key to pay for its description, then to `keep` it and to `release` the key.

        Return False if there is a description, or if another caller has claimed the key.
        """
        with self._lock:
            if key in self._claimed or self._find(key) is not None:
                return False
            self._claimed.add(key)
            return True

    def keep(self, key: str, description: Description) -> None:
        """Store a description.

        If the file cannot be written, raise ConfigurationError. The description then stays in
        memory, where `find` finds it, and is written as soon as that is possible.
        """
        with self._lock:
            self._in_memory[key] = description
            self._write()

    def release(self, key: str) -> None:
        """Give up a claim."""
        with self._lock:
            self._claimed.discard(key)

    def __copy__(self) -> Self:
        return self  # another store would pay again

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def _find(self, key: str) -> Description | None:
        self._write()
        if self._database is None:
            return self._in_memory.get(key)
        with self._readable_errors():
            row = self._database.execute(
                "SELECT text, model, image_sha256 FROM descriptions"
                " WHERE key = ? AND text IS NOT NULL",
                (key,),
            ).fetchone()
        return None if row is None else Description(*row)

    def _write(self) -> None:
        if self._database is None or not self._in_memory:
            return
        with self._readable_errors(), transaction(self._database):
            self._database.executemany(
                "INSERT OR REPLACE INTO descriptions (key, text, model, image_sha256)"
                " VALUES (?, ?, ?, ?)",
                [(key, d.text, d.model, d.image_sha256) for key, d in self._in_memory.items()],
            )
        self._in_memory.clear()

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as failure:
            message = f"The store of descriptions {self.path} cannot be used: {failure}."
            if self._in_memory:
                message += (
                    f" {len(self._in_memory)} descriptions that were billed are held in memory."
                    " Correct the cause and run again in this process to write them."
                )
            raise ConfigurationError(message) from None
