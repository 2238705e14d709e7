"""The journal of a job: every input, every answer, in one file that survives any kill.

Two tables hold the truth. An *input* is a row of the results: it names the picture that it turned
out to be, or the error that it is. An *answer* belongs to a picture, however many inputs show it,
so that each distinct one is paid once. Before a request is sent its answer is marked as *sending*;
what is found so marked when the file is opened was under way when the job was killed, and is in
doubt.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.job_lock import JobLock
from phospho_multimodal.batch.journal.steps import (
    ImageClaimed,
    ImageFinished,
    InputRecord,
    JobCounts,
    LateWord,
    State,
    Step,
)
from phospho_multimodal.batch.sources.items import printable
from phospho_multimodal.errors import ConfigurationError, PhosphoError, ReplyLostError
from phospho_multimodal.spending.processes import is_alive, name_of_process
from phospho_multimodal.spending.sqlite import open_database, transaction

__all__ = ["JOURNAL_NAME", "PART_ROWS", "Journal"]

JOURNAL_NAME = "_journal.sqlite"

PART_ROWS = 1000
"""Inputs whose rows are one file of the results: what is held in memory to write it."""

_TABLES = [
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS inputs
    (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, source TEXT NOT NULL, stamp TEXT,
    size INTEGER, file_digest BLOB, run INTEGER NOT NULL, picture BLOB,
    error_class TEXT, error TEXT, ended REAL)""",
    "CREATE INDEX IF NOT EXISTS inputs_by_picture ON inputs (picture)",
    "CREATE INDEX IF NOT EXISTS inputs_by_size ON inputs (size)",
    "CREATE INDEX IF NOT EXISTS inputs_by_digest ON inputs (file_digest)",
    """CREATE TABLE IF NOT EXISTS answers
    (picture BLOB PRIMARY KEY, state INTEGER NOT NULL, description TEXT, error_class TEXT,
    error TEXT, attempts INTEGER NOT NULL DEFAULT 0, images_billed INTEGER NOT NULL DEFAULT 0,
    images_in_doubt INTEGER NOT NULL DEFAULT 0, width INTEGER, height INTEGER, seconds REAL,
    ended REAL)""",
    "CREATE INDEX IF NOT EXISTS answers_by_state ON answers (state)",
    """CREATE TABLE IF NOT EXISTS parts
    (number INTEGER PRIMARY KEY, name TEXT NOT NULL, rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL, sha256 TEXT NOT NULL)""",
    # Paid pictures whose id another source's input took; see `keep_replaced`.
    """CREATE TABLE IF NOT EXISTS replaced
    (picture BLOB PRIMARY KEY, id TEXT NOT NULL, source TEXT NOT NULL)""",
]

_LATE_WORDS = "late_words"
_OWNER_TOKEN = "owner_token"  # noqa: S105 - it tells two owners apart, and opens nothing
_PRICE = "usd_per_image"
_COLUMNS = "columns"
_COUNTED_RUN = "counted_run"  # the last one that has seen its whole source

_LONGEST_SCHEME = 16  # of a URL; what is longer is a path
_CACHE_KIB = 512  # the system's own cache serves the rest

KILLED = "The job was killed while this was under way: whether it was billed is not known."


def _is_done(again: Sequence[State] = ()) -> str:
    """Say in SQL that an input has its row, and none that is to be asked for again."""
    states = ", ".join(str(int(s)) for s in State if s >= State.DESCRIBED and s not in again)
    answered = (
        "EXISTS (SELECT 1 FROM answers WHERE answers.picture = inputs.picture"
        f" AND answers.state IN ({states}))"
    )
    return answered if State.FAILED in again else f"inputs.error_class IS NOT NULL OR {answered}"


_IS_DONE = _is_done()

# A file that is not digested yet and has the size of another one.
_MAY_BE_A_COPY = (
    "file_digest IS NULL AND EXISTS (SELECT 1 FROM inputs AS other"
    " WHERE other.size = inputs.size AND other.position <> inputs.position)"
)

# An input that the last run which saw its whole source did not find there.
_IS_REMOVED = (
    "inputs.run < COALESCE((SELECT CAST(value AS INTEGER) FROM facts"
    f" WHERE name = '{_COUNTED_RUN}'), 0)"
)

# The first input that shows a picture is the one that its money stands beside.
_ROWS = f"""
SELECT inputs.id, inputs.source, description,
    CASE WHEN inputs.error_class IS NOT NULL THEN {State.FAILED:d} ELSE state END AS state,
    COALESCE(inputs.error_class, answers.error_class) AS error_class,
    COALESCE(inputs.error, answers.error) AS error,
    attempts, images_billed, images_in_doubt, first.id AS first_id,
    inputs.picture, width, height, seconds, COALESCE(answers.ended, inputs.ended) AS ended,
    {_IS_REMOVED} AS removed
FROM inputs
LEFT JOIN answers ON inputs.error_class IS NULL AND answers.picture = inputs.picture
LEFT JOIN inputs AS first ON first.position
    = (SELECT MIN(position) FROM inputs AS same WHERE same.picture = answers.picture)
WHERE inputs.position BETWEEN ? AND ?
    AND (inputs.error_class IS NOT NULL OR state >= {State.DESCRIBED:d})
ORDER BY inputs.position
"""


class Journal:
    """The journal of one job, kept by one process at a time; any thread may use it.

    It can lend it to another one of the same machine, for as long as it holds it itself.
    """

    def __init__(
        self, folder: Path, job: Job, *, lent_by: str | None = None, take_over: bool = False
    ) -> None:
        """Open the journal of a job, or begin it.

        Args:
            folder: Where the job keeps everything; made if it is not there.
            job: What is asked.
            lent_by: The `owner` of a journal that is open elsewhere and lends it: no further run
                is counted, and nothing can be written once somebody else is at the job.
            take_over: Whether to open it though a process on another machine left its record.

        Raises:
            ConfigurationError: The folder cannot be written, another process is at this job, or
                the file is the journal of another one.
        """
        self.path = folder / JOURNAL_NAME
        self.owner = lent_by or name_of_process()
        self._lock = threading.Lock()
        self._taken: set[bytes] = set()  # pictures that somebody in this process is asking about
        self._job_lock: JobLock | None = None
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            if lent_by is None:  # before the database is touched: its log is of one machine
                self._job_lock = JobLock(folder, take_over=take_over)
                self._token = self._job_lock.token
            try:
                self._open(job)
            except BaseException:
                if self._job_lock is not None:
                    self._job_lock.release()
                raise
        self.run = int(self.fact("runs") or 0)

    def _open(self, job: Job) -> None:
        self._database = open_database(self.path, _TABLES)
        try:
            # A kill cannot tear it either way; this is for the machine that dies: what is noted
            # as sent is on the disk before it is sent.
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            with transaction(self._database):
                self._take_over(job)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Let another process have it."""
        with self._lock, contextlib.suppress(sqlite3.Error, OSError):
            try:
                if self._job_lock is not None:
                    self._disown(self._token)
            finally:
                self._database.close()
                if self._job_lock is not None:
                    self._job_lock.release()

    # --- facts ---------------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        """Look up what was noted under a name."""
        with self._reading() as database:
            return self._fact(database, name)

    def note(self, name: str, value: str) -> None:
        """Note something under a name."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # --- inputs --------------------------------------------------------------------------------

    def add(self, entries: Sequence[InputRecord]) -> None:
        """Note inputs, in their order; those that are there already keep their place.

        An input whose stamp is another one than before, or that comes from another place, may be
        another picture under an old name: it is made ready again, and asked about only if its
        picture is not known.

        Args:
            entries: Some of the inputs of this run.

        Raises:
            ConfigurationError: Two inputs of this run have the same id.
        """
        with self._writing() as database:
            for entry in entries:
                known = database.execute(
                    f"SELECT source, stamp, run, picture, {_IS_REMOVED} FROM inputs WHERE id = ?",
                    (entry.id,),
                ).fetchone()
                if known is None:
                    self._append(database, entry)
                else:
                    self._find_again(database, entry, known)

    def _append(self, database: sqlite3.Connection, entry: InputRecord) -> None:
        added = database.execute(
            "INSERT INTO inputs (id, source, stamp, size, file_digest, run)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (entry.id, entry.source, entry.stamp, entry.size, entry.digest, self.run),
        )
        # The last part may have ended with the inputs that there were.
        self._reopen_parts(database, "position = ?", (added.lastrowid,))

    def _find_again(
        self, database: sqlite3.Connection, entry: InputRecord, known: Sequence[Any]
    ) -> None:
        source, stamp, run, picture, removed = known
        if run == self.run:
            message = (
                f"Two inputs have the id {entry.id!r}: {_shown(source)} and"
                f" {_shown(entry.source)}. Nothing was sent. Each row of the results needs an id of"
                " its own: name another id_column=."
            )
            raise ConfigurationError(message)
        moved = source != entry.source
        changed = stamp != entry.stamp
        if moved:
            changed = changed or stamp is None or not _is_same_place(entry, source)
        elif entry.stamp is None and self._is_paid(picture):
            changed = False  # the file is gone, and with it no answer that was paid for
        database.execute(
            "UPDATE inputs SET source = ?, run = ? WHERE id = ?", (entry.source, self.run, entry.id)
        )
        if moved or removed:
            self._reopen_parts(database, "id = ?", (entry.id,))
        if moved and changed and self._is_paid(picture):
            database.execute(
                "INSERT OR REPLACE INTO replaced VALUES (?, ?, ?)", (picture, entry.id, source)
            )
        if changed:
            self._replace(database, entry)

    def end_counting(self) -> None:
        """Note that this run has seen its whole source.

        Inputs that it did not see are removed: those without an answer are struck out, and the
        rows of the others say so.
        """
        with self._writing() as database:
            database.execute(f"DELETE FROM inputs WHERE run <> ? AND NOT ({_IS_DONE})", (self.run,))
            self._reopen_parts(database, f"run <> ? AND NOT {_IS_REMOVED}", (self.run,))
            database.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", (_COUNTED_RUN, str(self.run))
            )

    def keep_replaced(self) -> None:
        """Give each paid picture that no input shows any more a row of its own, as removed.

        Another source's input took its id. Only when all inputs were looked at it is known that
        none of them shows the picture under another id.
        """
        with self._writing() as database:
            (waiting,) = database.execute(
                "SELECT EXISTS (SELECT 1 FROM inputs WHERE picture IS NULL AND error_class IS NULL)"
            ).fetchone()
            if waiting:
                return
            shown_again = (
                "run = 0 AND EXISTS (SELECT 1 FROM inputs AS other"
                " WHERE other.picture = inputs.picture AND other.run > 0)"
            )
            self._reopen_parts(
                database, f"picture IN (SELECT picture FROM inputs WHERE {shown_again})", ()
            )
            database.execute(f"DELETE FROM inputs WHERE {shown_again}")
            database.execute(
                "INSERT OR IGNORE INTO inputs (id, source, run, picture)"
                " SELECT id || ' (removed ' || lower(substr(hex(picture), -8)) || ')', source, 0,"
                " picture FROM replaced WHERE NOT EXISTS"
                " (SELECT 1 FROM inputs WHERE inputs.picture = replaced.picture)"
            )
            self._reopen_parts(
                database, "run = 0 AND picture IN (SELECT picture FROM replaced)", ()
            )
            database.execute("DELETE FROM replaced")

    def count_removed(self) -> int:
        """Count inputs whose rows are kept though the source does not hold them any more."""
        with self._reading() as database:
            (count,) = database.execute(
                f"SELECT COUNT(*) FROM inputs WHERE {_IS_REMOVED}"
            ).fetchone()
        return int(count)

    def ask_again(self, *states: State) -> int:
        """Take questions that ended up for asked never.

        Args:
            *states: `FAILED`, `IN_DOUBT` or both. What was in doubt stays counted as that.

        Returns:
            How many inputs that are.
        """
        with self._writing() as database:
            picked = ", ".join(str(int(state)) for state in states)
            # Nobody can ask about what is not there any more.
            asked = (
                f"state IN ({picked}) AND (NOT EXISTS (SELECT 1 FROM inputs WHERE"
                " inputs.picture = answers.picture) OR EXISTS (SELECT 1 FROM inputs WHERE"
                f" inputs.picture = answers.picture AND NOT {_IS_REMOVED}))"
            )
            again = f"picture IN (SELECT picture FROM answers WHERE {asked})"
            if State.FAILED in states:
                again = f"((error_class IS NOT NULL AND NOT {_IS_REMOVED}) OR {again})"
            self._reopen_parts(database, again, ())
            (count,) = database.execute(f"SELECT COUNT(*) FROM inputs WHERE {again}").fetchone()
            if State.FAILED in states:
                database.execute(
                    f"UPDATE inputs SET error_class = NULL, error = NULL WHERE NOT {_IS_REMOVED}"
                )
            database.execute(
                f"UPDATE answers SET state = ?, error_class = NULL, error = NULL WHERE {asked}",
                (State.PENDING,),
            )
            return int(count)

    def pending(self, ids: Sequence[str]) -> dict[str, int]:
        """Tell which of some inputs have no row yet.

        Args:
            ids: What they are called.

        Returns:
            Their ids and positions.
        """
        marks = ", ".join("?" * len(ids))
        with self._reading() as database:
            return dict(
                database.execute(
                    f"SELECT id, position FROM inputs WHERE id IN ({marks}) AND NOT ({_IS_DONE})",
                    list(ids),
                )
            )

    def take(self, pictures: Iterable[tuple[int, bytes, int | None, int | None]]) -> list[State]:
        """Note which pictures inputs turned out to be, and take those nobody has asked about.

        Args:
            pictures: Position, key, and width and height in pixels where they are known.

        Returns:
            For each, `PENDING` if it is the caller's to ask now, `SENDING` if somebody in this
            process does, or where its answer stands.
        """
        states = []
        with self._writing() as database:
            for position, picture, width, height in pictures:
                state = self._claimed(database, ImageClaimed(picture, position, width, height))
                if state == State.PENDING and picture in self._taken:
                    state = State.SENDING
                elif state == State.PENDING:
                    self._taken.add(picture)
                states.append(State(state))
        return states

    def fail(self, failures: Iterable[tuple[int, PhosphoError]], *, ended: float) -> None:
        """Note inputs that are no pictures.

        Args:
            failures: Position, and what is wrong.
            ended: Seconds since the epoch.
        """
        with self._writing() as database:
            database.executemany(
                "UPDATE inputs SET picture = NULL, error_class = ?, error = ?, ended = ?"
                " WHERE position = ?",
                [
                    (type(error).__name__, printable(str(error)), ended, at)
                    for at, error in failures
                ],
            )

    # --- answers -------------------------------------------------------------------------------

    def commit(self, steps: Sequence[Step]) -> list[int]:
        """Note several steps of questions at once; the disk is waited for once.

        Args:
            steps: Of any pictures, in their order.

        Returns:
            For each, how many inputs have their row by it.
        """
        with self._writing() as database:
            done = [
                self._claimed(database, step)
                if isinstance(step, ImageClaimed)
                else step.write(database)
                for step in steps
            ]
            for step in steps:
                if isinstance(step, LateWord):
                    self._reopen_parts(database, "picture = ?", (step.picture,))
                    database.execute(
                        "INSERT INTO facts VALUES (?, '1') ON CONFLICT (name) DO UPDATE"
                        " SET value = CAST(value AS INTEGER) + 1",
                        (_LATE_WORDS,),
                    )
            self._taken.difference_update(
                step.picture for step in steps if isinstance(step, ImageFinished)
            )
            return done

    def give_back(self, pictures: Iterable[bytes]) -> None:
        """Give up pictures that were taken and never asked about."""
        with self._lock:
            self._taken.difference_update(pictures)

    def answer(self, picture: bytes) -> dict[str, Any]:
        """Read all that is known about a picture; nothing if nobody asked about it."""
        with self._reading() as database:
            cursor = database.execute("SELECT * FROM answers WHERE picture = ?", (picture,))
            names = [column[0] for column in cursor.description]
            return next((dict(zip(names, row, strict=True)) for row in cursor), {})

    # --- rows and parts ------------------------------------------------------------------------

    def last_position(self) -> int:
        """The position of the last input; 0 if there is none."""
        with self._reading() as database:
            (last,) = database.execute("SELECT MAX(position) FROM inputs").fetchone()
        return int(last or 0)

    def is_finished(self, first: int, last: int) -> bool:
        """Tell whether every input of a range of positions has its row."""
        with self._reading() as database:
            row = database.execute(
                f"SELECT 1 FROM inputs WHERE position BETWEEN ? AND ? AND NOT ({_IS_DONE}) LIMIT 1",
                (first, last),
            ).fetchone()
        return row is None

    def rows(self, first: int, last: int) -> list[dict[str, Any]]:
        """Read the rows of a range of positions that are done, in their order."""
        with self._reading() as database:
            cursor = database.execute(_ROWS, (first, last))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def parts(self) -> list[tuple[int, str, int, int, str]]:
        """List the parts that were written: number, name, rows, bytes and sha256."""
        with self._reading() as database:
            return database.execute("SELECT * FROM parts ORDER BY number").fetchall()

    def add_part(
        self, number: int, name: str, rows: int, size: int, sha256: str, *, as_of: str | None
    ) -> None:
        """Note a part that is there, whole.

        Args:
            number: Which one.
            name: Of its file.
            rows: In it.
            size: Of it, in bytes.
            sha256: Of it.
            as_of: What `late_words` was before its rows were read: if rows have changed since then,
                it is not noted, and so written anew.
        """
        with self._writing() as database:
            if self._fact(database, _LATE_WORDS) != as_of:
                return
            database.execute(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)",
                (number, name, rows, size, sha256),
            )

    @property
    def late_words(self) -> str | None:
        """How many rows have changed after they were done, which a part may hold already."""
        return self.fact(_LATE_WORDS)

    def check_parts(self, usd_per_image: str, columns: str) -> None:
        """Have all parts written again if they hold another price or other columns.

        Args:
            usd_per_image: Dollars, as they are written.
            columns: The names of the columns.
        """
        with self._writing() as database:
            for name, value in ((_PRICE, usd_per_image), (_COLUMNS, columns)):
                if self._fact(database, name) != value:
                    database.execute("DELETE FROM parts")
                    database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def drop_part(self, number: int) -> None:
        """Have a part written anew."""
        with self._writing() as database:
            database.execute("DELETE FROM parts WHERE number = ?", (number,))

    # --- counting ------------------------------------------------------------------------------

    def tally(self) -> JobCounts:
        """Count everything."""
        with self._reading() as database:
            inputs, broken = database.execute(
                "SELECT COUNT(*), COUNT(error_class) FROM inputs"
            ).fetchone()
            by_state = dict(
                database.execute(
                    "SELECT state, COUNT(*) FROM inputs JOIN answers USING (picture)"
                    " WHERE inputs.error_class IS NULL GROUP BY state"
                ).fetchall()
            )
            pictures, billed, in_doubt, attempts = database.execute(
                "SELECT COUNT(*), TOTAL(images_billed), TOTAL(images_in_doubt), TOTAL(attempts)"
                " FROM answers"
            ).fetchone()
        return JobCounts(
            inputs=inputs,
            described=by_state.get(State.DESCRIBED, 0),
            failed=broken + by_state.get(State.FAILED, 0),
            in_doubt=by_state.get(State.IN_DOUBT, 0),
            pictures=pictures,
            images_billed=int(billed),
            images_in_doubt=int(in_doubt),
            attempts=int(attempts),
        )

    def error_classes(self) -> dict[str, int]:
        """Count failed inputs by the class of their error."""
        with self._reading() as database:
            return dict(
                database.execute(
                    "SELECT COALESCE(inputs.error_class, answers.error_class) AS class, COUNT(*)"
                    " FROM inputs LEFT JOIN answers USING (picture) WHERE inputs.error_class IS NOT"
                    f" NULL OR state = {State.FAILED:d}"
                    " GROUP BY class ORDER BY COUNT(*) DESC, class"
                ).fetchall()
            )

    def in_doubt(self, limit: int) -> list[str]:
        """List inputs that may have been billed, without an answer.

        Args:
            limit: How many at most.

        Returns:
            Their ids.
        """
        with self._reading() as database:
            found = database.execute(
                "SELECT id FROM inputs JOIN answers USING (picture) WHERE inputs.error_class"
                f" IS NULL AND state = {State.IN_DOUBT:d} ORDER BY position LIMIT ?",
                (limit,),
            ).fetchall()
        return [name for (name,) in found]

    def duplicates(self) -> int:
        """Count inputs that were described by the answer to another one."""
        with self._reading() as database:
            (count,) = database.execute(
                "SELECT COUNT(*) - COUNT(DISTINCT picture) FROM inputs JOIN answers USING (picture)"
                f" WHERE inputs.error_class IS NULL AND answers.state = {State.DESCRIBED:d}"
            ).fetchone()
        return int(count)

    def undigested(self, ids: Sequence[str]) -> set[str]:
        """Tell which of some inputs may be the same file as another one: they have its size.

        Args:
            ids: What they are called.

        Returns:
            The ids of those whose digest is not known.
        """
        marks = ", ".join("?" * len(ids))
        with self._reading() as database:
            found = database.execute(
                f"SELECT id FROM inputs WHERE id IN ({marks}) AND {_MAY_BE_A_COPY}",
                list(ids),
            ).fetchall()
        return {name for (name,) in found}

    def has_undigested(self) -> bool:
        """Tell whether there is any such input at all."""
        with self._reading() as database:
            (found,) = database.execute(
                f"SELECT EXISTS (SELECT 1 FROM inputs WHERE {_MAY_BE_A_COPY})"
            ).fetchone()
        return bool(found)

    def add_digests(self, digests: Iterable[tuple[bytes, str]]) -> None:
        """Note digests of files, each with the id of its input."""
        with self._writing() as database:
            database.executemany("UPDATE inputs SET file_digest = ? WHERE id = ?", list(digests))

    def distinct_to_ask(self, again: Sequence[State] = ()) -> int:
        """Count distinct files among the inputs that have no row yet, and no picture with one.

        Args:
            again: Rows that are taken for none: those of `FAILED`, `IN_DOUBT` or both.
        """
        # The digests that are done are listed once: to look for each input's own among its
        # duplicates takes a day where half a million show the same.
        states = ", ".join(str(int(s)) for s in State if s >= State.DESCRIBED and s not in again)
        with self._reading() as database:
            (count,) = database.execute(
                "SELECT COUNT(DISTINCT"
                " COALESCE(file_digest, 'size ' || size, 'input ' || position))"
                f" FROM inputs WHERE NOT ({_is_done(again)}) AND (file_digest IS NULL OR"
                " file_digest NOT IN (SELECT done.file_digest FROM inputs AS done"
                " JOIN answers USING (picture) WHERE done.file_digest IS NOT NULL"
                f" AND answers.state IN ({states})))"
            ).fetchone()
        return int(count)

    def course(self) -> Iterator[tuple[float, int, int, int]]:
        """Tell when answers ended: seconds since the epoch, images billed and in doubt, rows."""
        last = b""
        while True:
            with self._reading() as database:
                found = database.execute(
                    "SELECT picture, ended, images_billed, images_in_doubt, (SELECT COUNT(*)"
                    " FROM inputs WHERE inputs.picture = answers.picture) FROM answers"
                    " WHERE picture > ? AND ended IS NOT NULL ORDER BY picture LIMIT 1000",
                    (last,),
                ).fetchall()
            for picture, ended, billed, in_doubt, rows in found:
                yield ended, billed, in_doubt, rows
                last = picture
            if not found:
                return

    # --- within --------------------------------------------------------------------------------

    def _take_over(self, job: Job) -> None:
        """Become the one process at this job, and note what the last one left behind."""
        facts = dict(self._database.execute("SELECT name, value FROM facts").fetchall())
        told = json.dumps(job.to_dict(), sort_keys=True)
        if facts.get("job", told) != told:
            message = f"{self.path} is the journal of another job. Nothing was sent. Move it away."
            raise ConfigurationError(message)
        if self._job_lock is None:
            self._token = facts.get(_OWNER_TOKEN, "")
            self._check_owner(self._database)
        else:
            self._own(facts, told)
        self._database.execute(
            "UPDATE answers SET state = ?, error_class = ?, error = ?, attempts = attempts + 1,"
            " images_in_doubt = images_in_doubt + 1, ended = ? WHERE state = ?",
            (State.IN_DOUBT, ReplyLostError.__name__, KILLED, time.time(), State.SENDING),
        )

    def _own(self, facts: Mapping[str, str], told: str) -> None:
        owner = facts.get("owner")
        # A version that took no lock left only its process id.
        unlocked = owner is not None and _OWNER_TOKEN not in facts
        if unlocked and owner != name_of_process() and is_alive(str(owner)):
            message = (
                f"Another process ({str(owner).partition(':')[0]}) is at this job, in"
                f" {self.path.parent}. Nothing was sent. Wait for it, or stop it."
            )
            raise ConfigurationError(message)
        runs = str(int(facts.get("runs", "0")) + 1)
        values = {"job": told, "owner": self.owner, _OWNER_TOKEN: self._token, "runs": runs}
        self._database.executemany(
            "INSERT OR REPLACE INTO facts VALUES (?, ?)", list(values.items())
        )

    def _disown(self, token: str) -> None:
        """Forget the owner, unless somebody else has become it."""
        if self._fact(self._database, _OWNER_TOKEN) == token:
            self._database.execute("DELETE FROM facts WHERE name IN ('owner', ?)", (_OWNER_TOKEN,))

    def _claimed(self, database: sqlite3.Connection, claim: ImageClaimed) -> int:
        state = claim.write(database)
        if claim.position is not None:
            # A file that came back, or a new one under an old name, may stand before those that
            # show the same: the money stands beside it now.
            (first,) = database.execute(
                "SELECT MIN(position) FROM inputs WHERE picture = ?", (claim.picture,)
            ).fetchone()
            if first == claim.position:
                self._reopen_parts(database, "picture = ?", (claim.picture,))
        return state

    def _is_paid(self, picture: bytes | None) -> bool:
        """Tell whether a picture was answered, or may have been."""
        select = "SELECT 1 FROM answers WHERE picture = ? AND state IN (?, ?)"
        states = (State.DESCRIBED, State.IN_DOUBT)
        return self._database.execute(select, (picture, *states)).fetchone() is not None

    def _check_owner(self, database: sqlite3.Connection) -> None:
        """Check that nobody took the job over; a write that follows is fenced by that."""
        facts = [self._fact(database, name) for name in ("owner", _OWNER_TOKEN)]
        if facts != [self.owner, self._token]:
            message = (
                f"Another process is at the job in {self.path.parent} now. Nothing more is sent"
                " for this run."
            )
            raise ConfigurationError(message)

    def _replace(self, database: sqlite3.Connection, entry: InputRecord) -> None:
        """Have an input that is another picture now looked at again."""
        # With it go the rows that share its picture: the money may stand beside another one now.
        self._reopen_parts(
            database,
            "id = ? OR picture = (SELECT picture FROM inputs AS old WHERE old.id = ?)",
            (entry.id, entry.id),
        )
        database.execute(
            "UPDATE inputs SET stamp = ?, size = ?, file_digest = ?, picture = NULL,"
            " error_class = NULL, error = NULL WHERE id = ?",
            (entry.stamp, entry.size, entry.digest, entry.id),
        )

    @staticmethod
    def _fact(database: sqlite3.Connection, name: str) -> str | None:
        row = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    @staticmethod
    def _reopen_parts(database: sqlite3.Connection, of: str, values: Sequence[Any]) -> None:
        database.execute(
            "DELETE FROM parts WHERE number IN"
            f" (SELECT DISTINCT (position - 1) / {PART_ROWS} FROM inputs WHERE {of})",
            values,
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            yield self._database

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told(), transaction(self._database):
            self._check_owner(self._database)
            yield self._database

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say what cannot be written, in the words of the system."""
        try:
            yield
        except (sqlite3.Error, OSError) as failure:
            message = f"The journal {self.path} cannot be used: {failure}."
            raise ConfigurationError(message) from None


def _is_same_place(entry: InputRecord, source: str) -> bool:
    """Tell whether an equal stamp proves that an input from another place is the same picture.

    A digest does. Size and time do only below a folder that was moved: files of one size and one
    time are common, and the rows of a table may have moved.
    """
    return entry.digest is not None or (
        source.endswith(entry.id) and entry.source.endswith(entry.id)
    )


def _shown(source: str) -> str:
    """Tell a source in a message; of a URL only where it leads, since the rest may be signed."""
    scheme, found, rest = source.partition("://")
    if not found or len(scheme) > _LONGEST_SCHEME:
        return source
    host = rest.replace("?", "/").partition("/")[0].rpartition("@")[2]
    return f"a URL at {scheme}://{host}"
