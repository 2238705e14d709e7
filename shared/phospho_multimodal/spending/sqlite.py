"""A SQLite file that processes share: opened the one way that stands many of them at once."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["open_database", "transaction"]

_PATIENCE = 30.0
"""Seconds to wait for other processes; each of their transactions takes milliseconds."""


class _Database(sqlite3.Connection):
    """A connection that is closed with the last object that uses it.

    A ledger has no end of its own: it lives as long as its models. From Python 3.13 on, sqlite3
    warns of connections that are left to the garbage collector.
    """

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # the file could not be opened
            self.close()


def open_database(path: Path | None, tables: Sequence[str]) -> sqlite3.Connection:
    """Open a database, and make what is missing in it.

    Args:
        path: The file, made if it is not there; `None` for one in the memory of this process.
        tables: Statements that make what must be there, and do nothing where it is.

    Returns:
        A connection that any thread may use, one at a time, without transactions of its own.

    Raises:
        sqlite3.Error: The file cannot be opened, is not a database, or is held for too long.
    """
    database = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        factory=_Database,
    )
    try:
        # With a write-ahead log a step costs no waiting for the disk, and no kill can tear it.
        _use_write_ahead_log(database)
        database.execute("PRAGMA synchronous = NORMAL")
        with transaction(database):
            for statement in tables:
                database.execute(statement)
    except BaseException:
        database.close()
        raise
    return database


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Make what is done in a `with` block whole, or not done at all.

    Args:
        database: From `open_database`.

    Yields:
        Nothing.

    Raises:
        sqlite3.Error: Others held the file for too long, or it cannot be written.
    """
    try:
        # Taking the write lock first: SQLite does not wait for a lock that a reader asks for late.
        # Inside, since a Ctrl-C while it waits is raised when it has the lock.
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _use_write_ahead_log(database: sqlite3.Connection) -> None:
    # SQLite's own timeout does not hold for this change: of several processes that open a new file
    # at the same moment, all but one are told at once that it is locked.
    end = time.monotonic() + _PATIENCE
    while not _switched_to_write_ahead_log(database, last_try=time.monotonic() > end):
        time.sleep(0.01)


def _switched_to_write_ahead_log(database: sqlite3.Connection, *, last_try: bool) -> bool:
    try:
        database.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as failure:
        if last_try or "locked" not in str(failure):
            raise
        return False
    return True
