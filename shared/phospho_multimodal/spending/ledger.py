"""The spending ledger, in memory or in a file that processes share.

Both kinds reserve images if a condition holds, settle each reservation once, and count.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.spending.processes import is_alive, name_of_process

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Counts", "Ledger", "LedgerFile", "LedgerInMemory", "Outcome"]

_TABLES = [
    """CREATE TABLE IF NOT EXISTS totals
    (one INTEGER PRIMARY KEY CHECK (one = 1), billed INTEGER, in_doubt INTEGER)""",
    "INSERT OR IGNORE INTO totals VALUES (1, 0, 0)",
    """CREATE TABLE IF NOT EXISTS reservations
    (ticket INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL)""",
]


class Outcome(Enum):
    """How a reservation ends."""

    BILLED = "billed"
    IN_DOUBT = "in_doubt"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of images."""

    billed: int = 0
    in_doubt: int = 0
    reserved: int = 0

    @property
    def taken(self) -> int:
        """The images that count against a spending limit."""
        return self.billed + self.in_doubt + self.reserved

    def settled(self, outcome: Outcome) -> Counts:
        """The counts after one reservation has ended."""
        return Counts(
            self.billed + (outcome is Outcome.BILLED),
            self.in_doubt + (outcome is Outcome.IN_DOUBT),
            self.reserved - 1,
        )


class Ledger(Protocol):
    """The methods that `Spending` needs."""

    def reserve(self, images: int, check: Callable[[Counts], None]) -> list[int]:
        """Reserve images and return a ticket for each. `check` raises if there are too many."""
        ...

    def settle(self, ticket: int, outcome: Outcome) -> tuple[Counts, Counts] | None:
        """End a reservation. Return the counts before and after, or `None` if it had ended."""
        ...

    def resolve(self, billed: int | None) -> None:
        """Settle the images in doubt: so many were billed (`None` means all), the rest was not."""
        ...

    def counts(self) -> Counts:
        """Count."""
        ...


class LedgerInMemory:
    """A ledger of one process."""

    def __init__(self, counts: Counts = Counts()) -> None:
        self._counts = counts
        self._next = 0
        self._open: set[int] = set()
        self._lock = threading.Lock()

    def reserve(self, images: int, check: Callable[[Counts], None]) -> list[int]:
        """Reserve images; see `Ledger`."""
        with self._lock:
            check(self._counts)
            tickets = list(range(self._next, self._next + images))
            self._next += images
            self._open.update(tickets)
            now = self._counts
            self._counts = Counts(now.billed, now.in_doubt, now.reserved + images)
            return tickets

    def settle(self, ticket: int, outcome: Outcome) -> tuple[Counts, Counts] | None:
        """End a reservation; see `Ledger`."""
        with self._lock:
            if ticket not in self._open:
                return None
            self._open.remove(ticket)
            before = self._counts
            self._counts = before.settled(outcome)
            return before, self._counts

    def resolve(self, billed: int | None) -> None:
        """Settle the images in doubt; see `Ledger`."""
        with self._lock:
            self._counts = _resolved(self._counts, billed)

    def counts(self) -> Counts:
        """Count; see `Ledger`."""
        return self._counts


class LedgerFile:
    """A ledger in one SQLite file, for any number of processes of one machine.

    A reservation is a row with the name of its process. The reservations of a process that has
    ended count as in doubt. Each step is one transaction, so a kill cannot leave half of one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._of_parent: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()
        with self._transaction():  # report a path that cannot be used before anything is billed
            pass

    def reserve(self, images: int, check: Callable[[Counts], None]) -> list[int]:
        """Reserve images; see `Ledger`."""
        with self._transaction() as database:
            check(_read(database))
            owner = name_of_process()
            insert = "INSERT INTO reservations (owner) VALUES (?) RETURNING ticket"
            return [int(database.execute(insert, (owner,)).fetchone()[0]) for _ in range(images)]

    def settle(self, ticket: int, outcome: Outcome) -> tuple[Counts, Counts] | None:
        """End a reservation; see `Ledger`."""
        with self._transaction() as database:
            before = _read(database)
            ended = database.execute("DELETE FROM reservations WHERE ticket = ?", (ticket,))
            if ended.rowcount == 0:
                return None
            after = before.settled(outcome)
            _write(database, after.billed, self._doubted(database, outcome))
            return before, after

    def resolve(self, billed: int | None) -> None:
        """Settle the images in doubt; see `Ledger`."""
        with self._transaction() as database:
            after = _resolved(_read(database), billed)
            for owner in _dead_owners(database):
                database.execute("DELETE FROM reservations WHERE owner = ?", (owner,))
            _write(database, after.billed, after.in_doubt)

    def counts(self) -> Counts:
        """Count; see `Ledger`."""
        with self._transaction() as database:
            return _read(database)

    @staticmethod
    def _doubted(database: sqlite3.Connection, outcome: Outcome) -> int:
        (in_doubt,) = database.execute("SELECT in_doubt FROM totals").fetchone()
        return int(in_doubt) + (outcome is Outcome.IN_DOUBT)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # A ledger in memory needs none of it.
        import sqlite3  # noqa: PLC0415

        from phospho_multimodal.spending.sqlite import transaction  # noqa: PLC0415

        with self._lock:
            try:
                database = self._open()
                with transaction(database):
                    yield database
            except sqlite3.Error as failure:
                message = f"The ledger {self.path} cannot be used: {failure}."
                raise ConfigurationError(message) from None

    def _open(self) -> sqlite3.Connection:
        from phospho_multimodal.spending.sqlite import open_database  # noqa: PLC0415 - loads sqlite3

        if self._process != os.getpid():
            # SQLite's locks belong to a process. So a forked child opens its own connection, and
            # keeps the parent's, because to close it would drop the parent's locks.
            self._of_parent, self._connection = self._connection, None
            self._process = os.getpid()
        if self._connection is None:
            self._connection = open_database(self.path, _TABLES)
        return self._connection


def _read(database: sqlite3.Connection) -> Counts:
    billed, in_doubt = database.execute("SELECT billed, in_doubt FROM totals").fetchone()
    rows = database.execute("SELECT owner, COUNT(*) FROM reservations GROUP BY owner").fetchall()
    dead = sum(count for owner, count in rows if not is_alive(owner))
    alive = sum(count for _, count in rows) - dead
    return Counts(int(billed), int(in_doubt) + dead, alive)


def _write(database: sqlite3.Connection, billed: int, in_doubt: int) -> None:
    database.execute("UPDATE totals SET billed = ?, in_doubt = ?", (billed, in_doubt))


def _dead_owners(database: sqlite3.Connection) -> list[str]:
    owners = database.execute("SELECT DISTINCT owner FROM reservations").fetchall()
    return [owner for (owner,) in owners if not is_alive(owner)]


def _resolved(counts: Counts, billed: int | None) -> Counts:
    decided = counts.in_doubt if billed is None else billed
    if not 0 <= decided <= counts.in_doubt:
        message = f"settle(billed={billed}): there are {counts.in_doubt} images in doubt."
        raise ConfigurationError(message)
    return Counts(counts.billed + decided, 0, counts.reserved)
