"""Where descriptions are kept, so that no picture is paid for twice: in memory, or in a file."""

import contextlib
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from phospho_multimodal import ConfigurationError
from phospho_multimodal.finalizing import is_finalizing
from phospho_multimodal.processes import after_fork, is_alive, name_of_process
from phospho_multimodal.sqlite_file import open_database, transaction

__all__ = ["Description", "DescriptionStore"]

# A row without a text is a claim.
_TABLES = [
    """CREATE TABLE IF NOT EXISTS descriptions
    (key TEXT PRIMARY KEY, owner TEXT, text TEXT, model TEXT, image_sha256 TEXT)""",
]


@dataclass(frozen=True, slots=True)
class Description:
    """What was answered about a picture.

    Attributes:
        text: The answer.
        model: Who gave it.
        image_sha256: Digest of the picture that was sent; `None` for a URL that was passed on.
    """

    text: str
    model: str
    image_sha256: str | None


class DescriptionStore:
    """Descriptions by key, in one SQLite file that the processes of one machine share.

    Who is about to pay for a description claims its key first; another one who wants it waits.
    A claim of a process that is gone is nobody's. SQLite makes each step whole or not at all,
    whenever a process is killed.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open a store.

        Args:
            path: The file; `None` keeps everything in the memory of this process.

        Raises:
            ConfigurationError: The file cannot be used.
        """
        self.path = path
        self._begin()
        after_fork(self._begin)
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        with self._transaction():  # a path that cannot be used is told of here and not when paying
            pass

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._left: deque[str] = deque()  # claims that finalizers gave up, which may not wait

    def find(self, key: str) -> Description | None:
        """Look for a description.

        Args:
            key: What it was kept under.

        Returns:
            The description, if there is one.
        """
        with self._transaction() as database:
            row = database.execute(
                "SELECT text, model, image_sha256 FROM descriptions"
                " WHERE key = ? AND text IS NOT NULL",
                (key,),
            ).fetchone()
        return None if row is None else Description(*row)

    def claim(self, key: str) -> bool:
        """Claim a key, to pay for its description.

        Args:
            key: What it will be kept under.

        Returns:
            Whether it is the caller's to pay, then to `keep` and to `release`. If not, it is there
            already, or somebody else is at it.
        """
        with self._transaction() as database:
            row = database.execute(
                "SELECT text IS NOT NULL, owner FROM descriptions WHERE key = ?", (key,)
            ).fetchone()
            if row is not None and (row[0] or is_alive(row[1])):
                return False
            database.execute(
                "INSERT OR REPLACE INTO descriptions (key, owner) VALUES (?, ?)",
                (key, name_of_process()),
            )
            return True

    def keep(self, key: str, description: Description) -> None:
        """Keep a description, for good.

        Args:
            key: What to keep it under.
            description: What was paid for.
        """
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO descriptions (key, text, model, image_sha256)"
                " VALUES (?, ?, ?, ?)",
                (key, description.text, description.model, description.image_sha256),
            )

    def release(self, key: str) -> None:
        """Give up a claim; what has been kept stays.

        Args:
            key: What was claimed.
        """
        if is_finalizing():
            self._left.append(key)
            return
        with self._transaction() as database:
            _give_up(database, key)

    def __copy__(self) -> Self:
        """A copy would be a second memory, and pay a second time: it is the same one."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the path, under which another process finds the same file."""
        return type(self), (self.path,)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                database = self._open()
                with transaction(database):
                    while self._left:
                        _give_up(database, self._left.popleft())
                    yield database
            except sqlite3.Error as failure:
                message = f"The store of descriptions {self.path} cannot be used: {failure}."
                raise ConfigurationError(message) from None

    def _open(self) -> sqlite3.Connection:
        # A connection must not cross a fork: SQLite's locks belong to the process.
        if self._connection is None or self._process != os.getpid():
            self._process = os.getpid()
            self._connection = open_database(self.path, _TABLES)
            weakref.finalize(self, _close, self._connection, self._process)
        return self._connection


def _give_up(database: sqlite3.Connection, key: str) -> None:
    database.execute("DELETE FROM descriptions WHERE key = ? AND text IS NULL", (key,))


def _close(database: sqlite3.Connection, process: int) -> None:
    if os.getpid() == process:
        database.close()
