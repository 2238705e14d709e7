"""Where a ledger is kept: in memory, or in a file that processes share.

Both do the same three things under a lock of their own: set images aside if a condition holds,
settle each once, and count.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.spending.finalizing import is_finalizing
from phospho_multimodal.spending.left_behind import end_what_was_left_behind
from phospho_multimodal.spending.processes import after_fork, is_alive, name_of_process

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Backlog", "Counts", "Ledger", "LedgerFile", "LedgerInMemory", "Outcome"]

_TABLES = [
    """CREATE TABLE IF NOT EXISTS totals
    (one INTEGER PRIMARY KEY CHECK (one = 1), billed INTEGER, in_doubt INTEGER)""",
    "INSERT OR IGNORE INTO totals VALUES (1, 0, 0)",
    """CREATE TABLE IF NOT EXISTS reservations
    (ticket INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL)""",
]


class Outcome(Enum):
    """The three ends of a reservation."""

    BILLED = "billed"
    IN_DOUBT = "in_doubt"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Counts:
    """Images by what became of them."""

    billed: int = 0
    in_doubt: int = 0
    reserved: int = 0

    @property
    def taken(self) -> int:
        """What counts against a cap."""
        return self.billed + self.in_doubt + self.reserved

    def settled(self, outcome: Outcome) -> Counts:
        """The counts after one reservation has found its end."""
        return Counts(
            self.billed + (outcome is Outcome.BILLED),
            self.in_doubt + (outcome is Outcome.IN_DOUBT),
            self.reserved - 1,
        )


class Ledger(Protocol):
    """What a `Spending` needs of the place where its ledger is kept."""

    def reserve(self, images: int, check: Callable[[Counts], None]) -> list[int]:
        """Set images aside and return a ticket for each; `check` raises if there are too many."""
        ...

    def settle(self, ticket: int, outcome: Outcome) -> tuple[Counts, Counts] | None:
        """End a reservation: the counts before and after, or `None` if it had ended already."""
        ...

    def resolve(self, billed: int | None) -> None:
        """Decide about what is in doubt: so many were billed (`None`: all), the rest was not."""
        ...

    def counts(self) -> Counts:
        """Count."""
        ...


class LedgerInMemory:
    """A ledger of one process."""

    def __init__(self, counts: Counts = Counts()) -> None:
        self._counts = counts
        self._next = 0
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        # What is set aside for calls of the parent ends there: in a forked child nobody ends it.
        self._open: set[int] = set()
        self._counts = replace(self._counts, reserved=0)

    def reserve(self, images: int, check: Callable[[Counts], None]) -> list[int]:
        """Set images aside; see `Ledger`."""
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
        """Decide about what is in doubt; see `Ledger`."""
        with self._lock:
            self._counts = _resolved(self._counts, billed)

    def counts(self) -> Counts:
        """Count; see `Ledger`."""
        return self._counts


class LedgerFile:
    """A ledger in one SQLite file, for any number of processes of one machine.

    A reservation is a row with the process that made it; what a process that is gone had reserved
    counts as in doubt. SQLite makes each step whole or not at all, whenever a process is killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin()
        after_fork(self._begin)
        with self._transaction():  # a path that cannot be used is told of here and not when paying
            pass

    def _begin(self) -> None:
        # A connection must not cross a fork: SQLite's locks belong to the process. The parent's is
        # kept, since closing it here would drop them.
        self._of_parent = getattr(self, "_connection", None)
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def reserve(self, images: int, check: Callable[[Counts], None]) -> list[int]:
        """Set images aside; see `Ledger`."""
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
        """Decide about what is in doubt; see `Ledger`."""
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

        if self._connection is None:
            self._connection = open_database(self.path, _TABLES)
        return self._connection


class Backlog:
    """What is still to be written by those who cannot wait for a file that others hold.

    A thread writes it, at once if it can: the interpreter does not end before. Who wants to see the
    ledger clears it first, and so finds all of it written.
    """

    def __init__(self, *, in_a_file: bool) -> None:
        self._in_a_file = in_a_file
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        # The parent's thread, which writes the parent's, is not in a forked child.
        self._left: deque[Callable[[], object]] = deque()
        self._clearing = threading.RLock()  # what is called in it may look at the ledger too
        self._writer: ThreadPoolExecutor | None = None

    def add(self, work: Callable[[], object]) -> None:
        """Have something done without waiting for it; to do it twice must not matter."""
        ends_in_a_step = is_finalizing()  # maybe: whoever looks at the ledger next does it
        if not (self._in_a_file or ends_in_a_step):
            work()
            return
        self._left.append(work)
        if ends_in_a_step:
            return
        try:
            if self._writer is None:
                self._writer = ThreadPoolExecutor(1, thread_name_prefix="phospho-ledger")
            self._writer.submit(self.clear)
        except RuntimeError:  # there are no threads any more: the interpreter ends
            self.clear()

    def clear(self) -> None:
        """Do what is left, and wait for what is being done."""
        end_what_was_left_behind()
        with self._clearing:
            while self._left:
                work = self._left[0]
                work()
                with contextlib.suppress(ValueError):
                    self._left.remove(work)  # not before: a Ctrl-C may have stopped it


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
