"""The records of a journal: inputs, and the steps from a claimed image to its answer."""

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
    """The state of an answer."""

    PENDING = 0
    SENDING = 1
    DESCRIBED = 2
    FAILED = 3
    IN_DOUBT = 4


def states_to_ask_again(*, failed: bool, in_doubt: bool) -> list[State]:
    """Return the states of the rows that are sent again."""
    wanted = {State.FAILED: failed, State.IN_DOUBT: in_doubt}
    return [state for state in wanted if wanted[state]]


@dataclass(frozen=True, slots=True)
class InputRecord:
    """An input as it is noted before anything is paid.

    Attributes:
        id: Its name in its source and in the results.
        source: Where it comes from.
        stamp: Changes when the image does; `None` if nothing shows a change.
        size: The size of its file in bytes, if it is known without reading the file.
        digest: The SHA-256 of its file, if the file was read.
    """

    id: str
    source: str
    stamp: str | None = None
    size: int | None = None
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class ImageClaimed:
    """An image is prepared, and is sent unless it has an answer.

    Attributes:
        picture: The key of the image.
        position: The position of its input; `None` without an input.
        width: The width in pixels, if known.
        height: The height in pixels, if known.
    """

    picture: bytes
    position: int | None = None
    width: int | None = None
    height: int | None = None

    def write(self, database: sqlite3.Connection) -> int:
        """Write it, and return the state of its answer."""
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
    """A request is sent next."""

    picture: bytes

    def write(self, database: sqlite3.Connection) -> int:
        """Write it. No input has its row by it."""
        database.execute(
            "UPDATE answers SET state = ? WHERE picture = ?", (State.SENDING, self.picture)
        )
        return 0


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt has ended, and another attempt follows."""

    picture: bytes
    images_in_doubt: int

    def write(self, database: sqlite3.Connection) -> int:
        """Write it. No input has its row by it."""
        database.execute(
            "UPDATE answers SET state = ?, attempts = attempts + 1,"
            " images_in_doubt = images_in_doubt + ? WHERE picture = ?",
            (State.PENDING, self.images_in_doubt, self.picture),
        )
        return 0


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """No further request is sent for an image in this run.

    Attributes:
        picture: The key of the image.
        state: `DESCRIBED`, `FAILED` or `IN_DOUBT`; with `PENDING`, the next run sends it.
        description: The answer.
        error: Why there is no answer.
        attempts: Attempts without an `AttemptFailed`: 1, or 0 if nothing was sent.
        images_in_doubt: Images of these attempts that are in doubt.
        seconds: From the first attempt to the end.
        ended: Seconds since the epoch.
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
        """Write it, and return how many inputs have their row by it."""
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
    """The true end of an attempt that was counted as in doubt."""

    step: AttemptFailed | ImageFinished

    @property
    def picture(self) -> bytes:
        """The key of the image."""
        return self.step.picture

    def write(self, database: sqlite3.Connection) -> int:
        """Write it in place of the doubt, and return how many rows changed."""
        database.execute(
            "UPDATE answers SET state = ?, error_class = NULL, error = NULL, ended = NULL,"
            " attempts = attempts - 1, images_in_doubt = images_in_doubt - 1 WHERE picture = ?",
            (State.PENDING, self.picture),
        )
        return self.step.write(database)


Step: TypeAlias = "ImageClaimed | AttemptStarted | AttemptFailed | ImageFinished | LateWord"


@dataclass(frozen=True, slots=True)
class JobCounts:
    """The counts of a journal.

    `inputs` are divided into `described`, `failed`, `in_doubt` and `pending`. `pictures` are the
    distinct images among the inputs that were prepared. `attempts` are requests.
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
