"""A SQLite file that many processes can use at the same time."""

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

    Nobody closes a ledger: it lives as long as its models. Python 3.13 and later warn of a
    connection that was not closed.
    """

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # the file could not be opened
            self.close()


def open_database(path: Path | None, tables: Sequence[str]) -> sqlite3.Connection:
    """Open or create a database, or raise `sqlite3.Error`.

    Args:
        path: The file. `None` means a database in the memory of this process.
        tables: Statements that create the tables if they do not exist.

    Returns:
        A connection that any thread may use, one at a time. It starts no transactions by itself.
    """
    database = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        factory=_Database,
    )
    try:
        # With a write-ahead log, a commit does not wait for the disk, and survives a kill.
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
    """Commit the statements of a `with` block together, or roll them back."""
    try:
        # Take the write lock first: SQLite does not wait when a reader asks for it later.
        # Inside the block, because a Ctrl-C during the wait is raised when the lock is taken.
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _use_write_ahead_log(database: sqlite3.Connection) -> None:
    # SQLite's timeout does not apply to this statement. If several processes open a new file at
    # the same time, all except one immediately get the error that it is locked.
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
