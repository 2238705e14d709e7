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
    "State",
    "Step",
    "TilesJoined",
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
    """An input as it is noted before anything is paid."""

    id: str  # its name in its source and in the results
    source: str  # where it comes from
    stamp: str | None = None  # changes when the image does; `None` if nothing shows a change
    # the size of its file in bytes, if it is known without reading the file
    size: int | None = None
    digest: bytes | None = None  # the SHA-256 of its file, if the file was read
    requests: int = 1  # the requests that it needs: one, or one for each of its tiles


@dataclass(frozen=True, slots=True)
class ImageClaimed:
    """An image is prepared, and is sent unless it has an answer."""

    picture: bytes  # the key of the image
    position: int | None = None  # the position of its input; `None` without an input
    width: int | None = None  # the width in pixels, if known
    height: int | None = None  # the height in pixels, if known

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
    """No further request is sent for an image in this run."""

    picture: bytes  # the key of the image
    state: State  # `DESCRIBED`, `FAILED` or `IN_DOUBT`; with `PENDING`, the next run sends it
    description: str | None = None  # the answer
    error: PhosphoError | None = None  # why there is no answer
    attempts: int = 1  # attempts without an `AttemptFailed`: 1, or 0 if nothing was sent
    images_in_doubt: int = 0  # images of these attempts that are in doubt
    seconds: float | None = None  # from the first attempt to the end
    ended: float | None = None  # seconds since the epoch

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
        return _inputs_of(database, self.picture)


@dataclass(frozen=True, slots=True)
class TilesJoined:
    """The requests of all tiles of an image have ended, unless one of them is pending."""

    picture: bytes  # the key of the image
    # the key of each tile, and the heading of its answer, in reading order
    tiles: tuple[tuple[bytes, str], ...]
    ended: float  # seconds since the epoch

    def write(self, database: sqlite3.Connection) -> int:
        """Join the answers, and return how many inputs have their row by it."""
        found = [
            database.execute(
                "SELECT state, description, error_class, error, attempts, images_billed,"
                " images_in_doubt, seconds FROM answers WHERE picture = ?",
                (key,),
            ).fetchone()
            for key, _ in self.tiles
        ]
        states = [tile[0] for tile in found]
        if min(states) < State.DESCRIBED:
            return 0
        state, description, error_class, error = max(states), None, None, None
        if state == State.DESCRIBED:
            parts = zip(self.tiles, found, strict=True)
            description = "\n\n".join(f"{heading}:\n{tile[1]}" for (_, heading), tile in parts)
        else:
            worst = states.index(state)
            error_class, error = found[worst][2], f"{self.tiles[worst][1]}: {found[worst][3]}"
        # The counts move from the tiles to the image, so that each is in one row only.
        sums = [sum(tile[column] for tile in found) for column in (4, 5, 6)]
        seconds = max((tile[7] for tile in found if tile[7] is not None), default=None)
        database.execute(
            "UPDATE answers SET state = ?, description = ?, error_class = ?, error = ?,"
            " attempts = attempts + ?, images_billed = images_billed + ?,"
            " images_in_doubt = images_in_doubt + ?, seconds = ?, ended = ? WHERE picture = ?",
            (state, description, error_class, error, *sums, seconds, self.ended, self.picture),
        )
        database.executemany(
            "UPDATE answers SET attempts = 0, images_billed = 0, images_in_doubt = 0, ended = NULL"
            " WHERE picture = ?",
            [(key,) for key, _ in self.tiles],
        )
        return _inputs_of(database, self.picture)


def _inputs_of(database: sqlite3.Connection, picture: bytes) -> int:
    select = "SELECT COUNT(*) FROM inputs WHERE picture = ?"
    (inputs,) = database.execute(select, (picture,)).fetchone()
    return int(inputs)


Step: TypeAlias = "ImageClaimed | AttemptStarted | AttemptFailed | ImageFinished | TilesJoined"


@dataclass(frozen=True, slots=True)
class JobCounts:
    """The counts of a journal.

    `inputs` are divided into `described`, `failed`, `in_doubt` and `pending`. `pictures` are the
    distinct images among the inputs that were prepared. `attempts` are requests, and `answers` are
    the images and tiles whose requests have ended.
    """

    inputs: int
    described: int
    failed: int
    in_doubt: int
    pictures: int
    images_billed: int
    images_in_doubt: int
    attempts: int
    answers: int = 0

    @property
    def pending(self) -> int:
        """Inputs without a row."""
        return self.inputs - self.described - self.failed - self.in_doubt
