"""The inputs of a job: added in every run, found again by id, and recognized as removed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from phospho_multimodal.batch.journal.resume import JournalFile
from phospho_multimodal.batch.journal.schema import (
    COUNTED_RUN,
    IS_DONE,
    IS_REMOVED,
    MAY_BE_A_COPY,
)
from phospho_multimodal.batch.journal.steps import InputRecord, State
from phospho_multimodal.errors import ConfigurationError

__all__ = ["Inputs"]

_LONGEST_SCHEME = 16  # of a URL; what is longer is a path


class Inputs(JournalFile):
    """Notes inputs before anything is paid."""

    def add(self, entries: Sequence[InputRecord]) -> None:
        """Note inputs in their order. Known inputs keep their position.

        An input with another stamp or from another place may be another image under an old id. It
        is prepared again, and sent only if its image is not known.
        """
        with self._writing() as database:
            for entry in entries:
                known = database.execute(
                    f"SELECT source, stamp, run, picture, {IS_REMOVED} FROM inputs WHERE id = ?",
                    (entry.id,),
                ).fetchone()
                if known is None:
                    self._append(database, entry)
                else:
                    self._find_again(database, entry, known)

    def end_counting(self) -> None:
        """Note that this run has seen its whole source.

        Inputs that it did not see are removed. Those without an answer are deleted, and the rows
        of the others say that they are removed.
        """
        with self._writing() as database:
            database.execute(f"DELETE FROM inputs WHERE run <> ? AND NOT ({IS_DONE})", (self.run,))
            self._reopen_parts(database, f"run <> ? AND NOT {IS_REMOVED}", (self.run,))
            self._note(database, {COUNTED_RUN: str(self.run)})

    def keep_replaced(self) -> None:
        """Add a removed row for each paid image that no input shows any more.

        An input of another source took its id. Whether another input shows the image under
        another id is known only when all inputs were prepared.
        """
        with self._writing() as database:
            waiting = "EXISTS (SELECT 1 FROM inputs WHERE picture IS NULL AND error_class IS NULL)"
            if self._count(database, f"SELECT {waiting}"):
                return
            shown_again = (
                "run = 0 AND EXISTS (SELECT 1 FROM inputs AS other"
                " WHERE other.picture = inputs.picture AND other.run > 0)"
            )
            self._reopen_parts(
                database, f"picture IN (SELECT picture FROM inputs WHERE {shown_again})"
            )
            database.execute(f"DELETE FROM inputs WHERE {shown_again}")
            database.execute(
                "INSERT OR IGNORE INTO inputs (id, source, run, picture)"
                " SELECT id || ' (removed ' || lower(substr(hex(picture), -8)) || ')', source, 0,"
                " picture FROM replaced WHERE NOT EXISTS"
                " (SELECT 1 FROM inputs WHERE inputs.picture = replaced.picture)"
            )
            self._reopen_parts(database, "run = 0 AND picture IN (SELECT picture FROM replaced)")
            database.execute("DELETE FROM replaced")

    def count_removed(self) -> int:
        """Count inputs whose rows are kept though the source does not hold them any more."""
        with self._reading() as database:
            return self._count(database, f"SELECT COUNT(*) FROM inputs WHERE {IS_REMOVED}")

    def pending(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the ids and positions of those inputs that have no row yet."""
        return dict(self._select_by_id("id, position", ids, f"NOT ({IS_DONE})"))

    def undigested(self, ids: Sequence[str]) -> set[str]:
        """Return the ids of files without a digest that have the size of another file."""
        return {name for (name,) in self._select_by_id("id", ids, MAY_BE_A_COPY)}

    def has_undigested(self) -> bool:
        """Return whether there is any such file."""
        with self._reading() as database:
            return bool(
                self._count(database, f"SELECT EXISTS (SELECT 1 FROM inputs WHERE {MAY_BE_A_COPY})")
            )

    def add_digests(self, digests: Iterable[tuple[bytes, str]]) -> None:
        """Note digests of files, each with the id of its input."""
        with self._writing() as database:
            database.executemany("UPDATE inputs SET file_digest = ? WHERE id = ?", list(digests))

    def last_position(self) -> int:
        """Return the position of the last input; 0 if there is none."""
        with self._reading() as database:
            return self._count(database, "SELECT COALESCE(MAX(position), 0) FROM inputs")

    def _append(self, database: sqlite3.Connection, entry: InputRecord) -> None:
        added = database.execute(
            "INSERT INTO inputs (id, source, stamp, size, file_digest, run, requests)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(entry.id, entry.source, entry.stamp, entry.size, entry.digest),
                *(self.run, entry.requests),
            ),
        )
        # The last file of the results may have ended with the inputs of that time.
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
            changed = False  # the file is gone, but its paid answer stays
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

    def _replace(self, database: sqlite3.Connection, entry: InputRecord) -> None:
        """Have an input prepared again that may be another image now."""
        # The cost of the old image may move to another row that shows it.
        self._reopen_parts(
            database,
            "id = ? OR picture = (SELECT picture FROM inputs AS old WHERE old.id = ?)",
            (entry.id, entry.id),
        )
        database.execute(
            "UPDATE inputs SET stamp = ?, size = ?, file_digest = ?, requests = ?, picture = NULL,"
            " error_class = NULL, error = NULL WHERE id = ?",
            (entry.stamp, entry.size, entry.digest, entry.requests, entry.id),
        )

    def _is_paid(self, picture: bytes | None) -> bool:
        select = "SELECT 1 FROM answers WHERE picture = ? AND state IN (?, ?)"
        states = (State.DESCRIBED, State.IN_DOUBT)
        return self._database.execute(select, (picture, *states)).fetchone() is not None

    def _select_by_id(self, columns: str, ids: Sequence[str], condition: str) -> list[Any]:
        marks = ", ".join("?" * len(ids))
        with self._reading() as database:
            return database.execute(
                f"SELECT {columns} FROM inputs WHERE id IN ({marks}) AND {condition}", list(ids)
            ).fetchall()

    @staticmethod
    def _count(database: sqlite3.Connection, select: str) -> int:
        (count,) = database.execute(select).fetchone()
        return int(count)


def _is_same_place(entry: InputRecord, source: str) -> bool:
    """Return whether an equal stamp proves that an input from another place is the same image.

    A digest proves it. Size and time do so only below a folder that was moved: many files have one
    size and one time, and the rows of a table may have moved.
    """
    return entry.digest is not None or (
        source.endswith(entry.id) and entry.source.endswith(entry.id)
    )


def _shown(source: str) -> str:
    """Quote a source in a message; of a URL only its host, since the rest may be signed."""
    scheme, found, rest = source.partition("://")
    if not found or len(scheme) > _LONGEST_SCHEME:
        return source
    host = rest.replace("?", "/").partition("/")[0].rpartition("@")[2]
    return f"a URL at {scheme}://{host}"
