"""Open a journal, and resume its job after a kill.

The new owner marks requests that were in progress as in doubt. Everything else continues from the
tables: `inputs.py` says what is pending, `pipeline/preparation.py` skips the rest, and `run.py`
counts what earlier runs have spent.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.job_lock import JobLock
from phospho_multimodal.batch.journal.schema import ADD_REQUESTS, TABLES
from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.errors import ConfigurationError, ReplyLostError
from phospho_multimodal.spending.sqlite import open_database, transaction

__all__ = ["JOURNAL_NAME", "PART_ROWS", "JournalFile", "part_of", "rows_of_part"]

JOURNAL_NAME = "_journal.sqlite"

PART_ROWS = 1000
"""Rows that are read and written together, and the rows of the first file of the results."""

_DOUBLINGS = 6  # the first files have 1,000, 2,000, … 32,000 rows: a short job is readable soon
_LARGEST_PART = 50 * PART_ROWS

_OWNER_TOKEN = "owner_token"  # noqa: S105 - it tells two owners apart, and opens nothing
_CACHE_KIB = 512  # the system's own cache serves the rest

_KILLED = "The job was killed while this request was in progress. It may have been billed."


class JournalFile:
    """One SQLite file, written by one process at a time. Any thread may use it.

    While it is open, its owner can lend it to another process of the same machine.
    """

    def __init__(
        self, folder: Path, job: Job, *, lent_by: str | None = None, take_over: bool = False
    ) -> None:
        """Open the journal in `folder`, and create it if it is missing.

        Args:
            folder: The folder of the job.
            job: The prompt and its parameters.
            lent_by: The `owner` of the journal that is open elsewhere and lends it. Then no
                further run is counted, and writing fails as soon as another process owns the job.
            take_over: Whether to ignore the record of a process on another machine.

        Raises:
            ConfigurationError: The folder cannot be written, another process owns this job, or
                the file is the journal of another job.
        """
        self.path = folder / JOURNAL_NAME
        self._lock = threading.Lock()
        self._taken: set[bytes] = set()  # images whose request belongs to this process
        self._job_lock: JobLock | None = None
        with self._reporting_failures():
            folder.mkdir(parents=True, exist_ok=True)
            if lent_by is None:  # before the database is opened: its log is of one machine
                self._job_lock = JobLock(folder, take_over=take_over)
                lent_by = self._job_lock.token
            self.owner = lent_by
            try:
                self._open(job)
            except BaseException:
                if self._job_lock is not None:
                    self._job_lock.release()
                raise
        self.run = int(self.fact("runs") or 0)

    def close(self) -> None:
        """Release the journal for another process."""
        with self._lock, contextlib.suppress(sqlite3.Error, OSError):
            try:
                if self._job_lock is not None and self._is_owned():
                    self._database.execute("DELETE FROM facts WHERE name = ?", (_OWNER_TOKEN,))
            finally:
                self._database.close()
                if self._job_lock is not None:
                    self._job_lock.release()

    def fact(self, name: str) -> str | None:
        """Return the value that was noted under a name."""
        with self._reading() as database:
            return self._fact(database, name)

    def note(self, name: str, value: str) -> None:
        """Note a value under a name."""
        with self._writing() as database:
            self._note(database, {name: value})

    def _open(self, job: Job) -> None:
        self._database = open_database(self.path, TABLES)
        try:
            # A kill tears neither mode. FULL survives a machine that loses its power: what was
            # sent is on the disk before it is sent.
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._database.create_function("part_of", 1, part_of, deterministic=True)
            with transaction(self._database):
                columns = self._database.execute("PRAGMA table_info(inputs)").fetchall()
                if "requests" not in {column[1] for column in columns}:
                    self._database.execute(ADD_REQUESTS)
                self._become_owner(job)
                self._doubt_what_was_sending()
        except BaseException:
            self._database.close()
            raise

    def _become_owner(self, job: Job) -> None:
        facts = dict(self._database.execute("SELECT name, value FROM facts").fetchall())
        description = json.dumps(job.to_dict(), sort_keys=True)
        if facts.get("job", description) != description:
            message = f"{self.path} is the journal of another job. Nothing was sent. Move it away."
            raise ConfigurationError(message)
        if self._job_lock is None:
            self._check_owner()
            return
        runs = str(int(facts.get("runs", "0")) + 1)
        values = {"job": description, _OWNER_TOKEN: self.owner, "runs": runs}
        self._note(self._database, values)

    def _doubt_what_was_sending(self) -> None:
        self._database.execute(
            "UPDATE answers SET state = ?, error_class = ?, error = ?, attempts = attempts + 1,"
            " images_in_doubt = images_in_doubt + 1, ended = ? WHERE state = ?",
            (State.IN_DOUBT, ReplyLostError.__name__, _KILLED, time.time(), State.SENDING),
        )

    def _check_owner(self) -> None:
        """Check that no other process took the job over. Each write does this first."""
        if not self._is_owned():
            message = (
                f"Another process is at the job in {self.path.parent} now. Nothing more is sent"
                " for this run."
            )
            raise ConfigurationError(message)

    def _is_owned(self) -> bool:
        return self._fact(self._database, _OWNER_TOKEN) == self.owner

    @staticmethod
    def _fact(database: sqlite3.Connection, name: str) -> str | None:
        row = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    @staticmethod
    def _note(database: sqlite3.Connection, values: Mapping[str, str]) -> None:
        database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(values.items()))

    @staticmethod
    def _reopen_parts(database: sqlite3.Connection, of: str, values: Sequence[Any] = ()) -> None:
        """Have the files of the results written again that hold some inputs."""
        database.execute(
            "DELETE FROM parts WHERE number IN"
            f" (SELECT DISTINCT part_of(position) FROM inputs WHERE {of})",
            values,
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._reporting_failures():
            yield self._database

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._reporting_failures(), transaction(self._database):
            self._check_owner()
            yield self._database

    @contextlib.contextmanager
    def _reporting_failures(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as failure:
            message = f"The journal {self.path} cannot be used: {failure}."
            raise ConfigurationError(message) from None


def part_of(position: int) -> int:
    """Return the number of the file of the results that holds a row."""
    thousands = (position - 1) // PART_ROWS
    small = (1 << _DOUBLINGS) - 1
    if thousands < small:
        return (thousands + 1).bit_length() - 1
    return _DOUBLINGS + (position - 1 - small * PART_ROWS) // _LARGEST_PART


def rows_of_part(number: int) -> tuple[int, int]:
    """Return the first and the last position of a file of the results."""
    if number < _DOUBLINGS:
        return ((1 << number) - 1) * PART_ROWS + 1, ((2 << number) - 1) * PART_ROWS
    first = ((1 << _DOUBLINGS) - 1) * PART_ROWS + (number - _DOUBLINGS) * _LARGEST_PART
    return first + 1, first + _LARGEST_PART
