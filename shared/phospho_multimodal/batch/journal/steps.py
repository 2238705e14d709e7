"""What a journal is told: inputs, and the steps of their questions."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from phospho_multimodal.batch.sources.items import printable
from phospho_multimodal.errors import PhosphoError

__all__ = [
    "AttemptFailed",
    "AttemptStarted",
    "ImageClaimed",
    "ImageFinished",
    "InputRecord",
    "JobCounts",
    "LateWord",
    "State",
    "Step",
    "states_to_ask_again",
]


class State(IntEnum):
    """Where an answer stands."""

    PENDING = 0
    SENDING = 1
    DESCRIBED = 2
    FAILED = 3
    IN_DOUBT = 4


def states_to_ask_again(*, failed: bool, in_doubt: bool) -> list[State]:
    """Tell which rows are to be asked for again.

    Args:
        failed: Whether those that failed are.
        in_doubt: Whether those in doubt are.

    Returns:
        Their states.
    """
    wanted = {State.FAILED: failed, State.IN_DOUBT: in_doubt}
    return [state for state in wanted if wanted[state]]


@dataclass(frozen=True, slots=True)
class InputRecord:
    """An input as it is noted before anything is paid.

    Attributes:
        id: What it is called, in its source and in the results.
        source: Where it comes from.
        stamp: Changes when the picture does; `None` if that cannot be told.
        size: Of its file, in bytes, where that is known without reading it.
        digest: Of its file, where it was at hand.
    """

    id: str
    source: str
    stamp: str | None = None
    size: int | None = None
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class ImageClaimed:
    """Somebody has made a picture ready, and wants to know where its answer stands.

    Attributes:
        picture: What it is known by.
        position: Of the input that it is; `None` if it is none of this job's.
        width: In pixels, where that is known.
        height: In pixels, where that is known.
    """

    picture: bytes
    position: int | None = None
    width: int | None = None
    height: int | None = None

    def write(self, database: sqlite3.Connection) -> int:
        """Note it.

        Returns:
            The state of its answer.
        """
        if self.position is not None:
            database.execute(
                "UPDATE inputs SET picture = ? WHERE position = ?", (self.picture, self.position)
            )
        database.execute(
            "INSERT OR IGNORE INTO answers (picture, state, width, height) VALUES (?, ?, ?, ?)",
            (self.picture, State.PENDING, self.width, self.height),
        )
        (state,) = database.execute(
            "SELECT state FROM answers WHERE picture = ?", (self.picture,)
        ).fetchone()
        return int(state)


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """A request about a picture is going to be sent."""

    picture: bytes

    def write(self, database: sqlite3.Connection) -> int:
        """Note it; no input is done by that."""
        database.execute(
            "UPDATE answers SET state = ? WHERE picture = ?", (State.SENDING, self.picture)
        )
        return 0


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt has ended and another one will follow."""

    picture: bytes
    images_in_doubt: int

    def write(self, database: sqlite3.Connection) -> int:
        """Note it; no input is done by that."""
        database.execute(
            "UPDATE answers SET state = ?, attempts = attempts + 1,"
            " images_in_doubt = images_in_doubt + ? WHERE picture = ?",
            (State.PENDING, self.images_in_doubt, self.picture),
        )
        return 0


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """A question has come to its end.

    Attributes:
        picture: What it was about.
        state: `DESCRIBED`, `FAILED` or `IN_DOUBT`; `PENDING` to have the next run ask it.
        description: The answer.
        error: Why there is none.
        attempts: Those that no `AttemptFailed` told of: 1, or 0 if nothing was sent.
        images_in_doubt: Of those.
        seconds: From the first attempt to the end.
        ended: When, in seconds since the epoch.
    """

    picture: bytes
    state: State
    description: str | None = None
    error: PhosphoError | None = None
    attempts: int = 1
    images_in_doubt: int = 0
    seconds: float | None = None
    ended: float | None = None

    def write(self, database: sqlite3.Connection) -> int:
        """Note it.

        Returns:
            How many inputs have their row by that.
        """
        error_class = None if self.error is None else type(self.error).__name__
        database.execute(
            "UPDATE answers SET state = ?, description = ?, error_class = ?, error = ?,"
            " attempts = attempts + ?, images_billed = images_billed + ?,"
            " images_in_doubt = images_in_doubt + ?, seconds = ?, ended = ? WHERE picture = ?",
            (
                self.state,
                None if self.description is None else printable(self.description),
                error_class,
                None if self.error is None else printable(str(self.error)),
                self.attempts,
                self.state == State.DESCRIBED,
                self.images_in_doubt,
                self.seconds,
                self.ended,
                self.picture,
            ),
        )
        if self.state == State.PENDING:
            return 0
        (inputs,) = database.execute(
            "SELECT COUNT(*) FROM inputs WHERE picture = ?", (self.picture,)
        ).fetchone()
        return int(inputs)


@dataclass(frozen=True, slots=True)
class LateWord:
    """What became of an attempt that was counted as in doubt, since nobody could tell."""

    step: AttemptFailed | ImageFinished

    @property
    def picture(self) -> bytes:
        """What it was about."""
        return self.step.picture

    def write(self, database: sqlite3.Connection) -> int:
        """Note it in place of the doubt.

        Returns:
            How many inputs have another row by that.
        """
        database.execute(
            "UPDATE answers SET state = ?, error_class = NULL, error = NULL, ended = NULL,"
            " attempts = attempts - 1, images_in_doubt = images_in_doubt - 1 WHERE picture = ?",
            (State.PENDING, self.picture),
        )
        return self.step.write(database)


Step: TypeAlias = "ImageClaimed | AttemptStarted | AttemptFailed | ImageFinished | LateWord"


@dataclass(frozen=True, slots=True)
class JobCounts:
    """What a journal holds, counted.

    Attributes:
        inputs: All of them.
        described: Inputs with a description.
        failed: Inputs with an error.
        in_doubt: Inputs whose question may have been billed, without an answer.
        pictures: Distinct pictures behind the inputs that have been looked at.
        images_billed: What was paid.
        images_in_doubt: What may have been paid, without an answer.
        attempts: Requests that were sent, or tried to be.
    """

    inputs: int
    described: int
    failed: int
    in_doubt: int
    pictures: int
    images_billed: int
    images_in_doubt: int
    attempts: int

    @property
    def pending(self) -> int:
        """Inputs without a row."""
        return self.inputs - self.described - self.failed - self.in_doubt
