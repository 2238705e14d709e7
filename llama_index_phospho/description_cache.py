"""Where descriptions are kept, so that no picture is paid for twice: in memory, or in a file."""

import contextlib
import os
import sqlite3
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from phospho_multimodal import ConfigurationError
from phospho_multimodal.spending.processes import after_fork, is_alive, name_of_process
from phospho_multimodal.spending.sqlite import open_database, transaction

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
        # What could not be written when it came: claims that were given up, by finalizers, which
        # may not wait, or on a full disk; and what was paid for.
        self._left: deque[str] = deque()
        self._unwritten: dict[str, Description] = {}

    def find(self, key: str) -> Description | None:
        """Look for a description.

        Args:
            key: What it was kept under.

        Returns:
            The description, if there is one.
        """
        held = self._unwritten.get(key)
        if held is not None:
            return held
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

        Raises:
            ConfigurationError: The file cannot be written. The description is held in the memory of
                this process, found there, and written once that can be done.
        """
        self._unwritten[key] = description
        with self._transaction():
            pass  # it writes what is unwritten

    def release(self, key: str) -> None:
        """Give up a claim; what has been kept stays.

        Args:
            key: What was claimed.
        """
        self._left.append(key)
        # A closed generator may run inside the garbage collector, where a lock can be a deadlock.
        if not isinstance(sys.exc_info()[1], GeneratorExit):
            # A file that cannot be written is told of by who has something to keep or to ask.
            with contextlib.suppress(ConfigurationError), self._transaction():
                pass  # it gives up what is left

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
            left = [self._left.popleft() for _ in range(len(self._left))]
            unwritten = dict(self._unwritten)
            try:
                database = self._open()
                with transaction(database):
                    for key, description in unwritten.items():
                        _write(database, key, description)
                    for key in left:
                        _give_up(database, key)
                    yield database
            except BaseException as failure:
                self._left.extend(left)
                if isinstance(failure, sqlite3.Error):
                    raise self._unusable(failure) from None
                raise
            for key in unwritten:
                del self._unwritten[key]

    def _unusable(self, failure: sqlite3.Error) -> ConfigurationError:
        message = f"The store of descriptions {self.path} cannot be used: {failure}."
        if self._unwritten:
            message += (
                f" {len(self._unwritten)} that were paid for are held in memory: mend it and run"
                " again in this process, and they are written."
            )
        return ConfigurationError(message)

    def _open(self) -> sqlite3.Connection:
        # A connection must not cross a fork: SQLite's locks belong to the process.
        if self._connection is None or self._process != os.getpid():
            self._process = os.getpid()
            self._connection = open_database(self.path, _TABLES)
            weakref.finalize(self, _close, self._connection, self._process)
        return self._connection


def _write(database: sqlite3.Connection, key: str, description: Description) -> None:
    database.execute(
        "INSERT OR REPLACE INTO descriptions (key, text, model, image_sha256) VALUES (?, ?, ?, ?)",
        (key, description.text, description.model, description.image_sha256),
    )


def _give_up(database: sqlite3.Connection, key: str) -> None:
    database.execute("DELETE FROM descriptions WHERE key = ? AND text IS NULL", (key,))


def _close(database: sqlite3.Connection, process: int) -> None:
    if os.getpid() == process:
        database.close()
