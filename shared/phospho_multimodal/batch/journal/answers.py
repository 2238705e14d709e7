"""The answers of a job: each belongs to an image and is written step by step."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from phospho_multimodal.batch.journal.resume import JournalFile
from phospho_multimodal.batch.journal.schema import IS_REMOVED
from phospho_multimodal.batch.journal.steps import (
    ImageClaimed,
    ImageFinished,
    State,
    Step,
    TilesJoined,
)
from phospho_multimodal.batch.sources.items import printable
from phospho_multimodal.errors import PhosphoError

__all__ = ["Answers"]


class Answers(JournalFile):
    """Notes what happens to each image."""

    def take(
        self, pictures: Iterable[tuple[int | None, bytes, int | None, int | None]]
    ) -> list[State]:
        """Note which images the inputs are, and take the images that were not sent yet.

        Args:
            pictures: Position (`None` for a tile), key, and width and height in pixels, if known.

        Returns:
            For each, `PENDING` if the caller sends it now, `SENDING` if another caller in this
            process does, or the state of its answer.
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

    def give_back(self, pictures: Iterable[bytes]) -> None:
        """Release images that were taken and never sent."""
        with self._lock:
            self._taken.difference_update(pictures)

    def fail(self, failures: Iterable[tuple[int, PhosphoError]], *, ended: float) -> None:
        """Note inputs, by position, that are not images."""
        with self._writing() as database:
            database.executemany(
                "UPDATE inputs SET picture = NULL, error_class = ?, error = ?, ended = ?"
                " WHERE position = ?",
                [
                    (type(error).__name__, printable(str(error)), ended, at)
                    for at, error in failures
                ],
            )

    def commit(self, steps: Sequence[Step]) -> list[int]:
        """Note several steps in one transaction: the disk is waited for once.

        Returns:
            For each step, how many inputs have their row by it.
        """
        with self._writing() as database:
            done = [
                self._claimed(database, step)
                if isinstance(step, ImageClaimed)
                else step.write(database)
                for step in steps
            ]
            self._taken.difference_update(
                step.picture for step in steps if isinstance(step, (ImageFinished, TilesJoined))
            )
            return done

    def answer(self, picture: bytes) -> dict[str, Any]:
        """Return all columns of an answer; nothing if nobody claimed its image."""
        with self._reading() as database:
            cursor = database.execute("SELECT * FROM answers WHERE picture = ?", (picture,))
            names = [column[0] for column in cursor.description]
            return next((dict(zip(names, row, strict=True)) for row in cursor), {})

    def ask_again(self, *states: State) -> int:
        """Make answers of these states pending again, and return how many inputs that concerns.

        Images in doubt stay counted as in doubt.
        """
        with self._writing() as database:
            picked = ", ".join(str(int(state)) for state in states)
            # An image that is not there any more cannot be sent.
            asked = (
                f"state IN ({picked}) AND (NOT EXISTS (SELECT 1 FROM inputs WHERE"
                " inputs.picture = answers.picture) OR EXISTS (SELECT 1 FROM inputs WHERE"
                f" inputs.picture = answers.picture AND NOT {IS_REMOVED}))"
            )
            again = f"picture IN (SELECT picture FROM answers WHERE {asked})"
            if State.FAILED in states:
                again = f"((error_class IS NOT NULL AND NOT {IS_REMOVED}) OR {again})"
            self._reopen_parts(database, again)
            (count,) = database.execute(f"SELECT COUNT(*) FROM inputs WHERE {again}").fetchone()
            if State.FAILED in states:
                database.execute(
                    f"UPDATE inputs SET error_class = NULL, error = NULL WHERE NOT {IS_REMOVED}"
                )
            database.execute(
                f"UPDATE answers SET state = ?, error_class = NULL, error = NULL WHERE {asked}",
                (State.PENDING,),
            )
            return int(count)

    def _claimed(self, database: sqlite3.Connection, claim: ImageClaimed) -> int:
        state = claim.write(database)
        if claim.position is not None:
            # A file that came back, or a new file under an old id, may precede the other inputs
            # that show its image. Then the cost moves to its row.
            (first,) = database.execute(
                "SELECT MIN(position) FROM inputs WHERE picture = ?", (claim.picture,)
            ).fetchone()
            if first == claim.position:
                self._reopen_parts(database, "picture = ?", (claim.picture,))
        return state
