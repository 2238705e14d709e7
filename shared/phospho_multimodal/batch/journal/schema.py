"""The tables of a journal and the SQL conditions on them.

An *input* is a row of the results. It names the image that it is, or its error. An *answer* belongs
to an image, however many inputs show that image, so each distinct image is paid once. Before a
request is sent, its answer is marked as *sending*. An answer with this mark in a journal that is
opened was in progress when the job was killed, and is in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence

from phospho_multimodal.batch.journal.steps import State

__all__ = [
    "ADD_REQUESTS",
    "COUNTED_RUN",
    "IS_DONE",
    "IS_REMOVED",
    "IS_TILE",
    "MAY_BE_A_COPY",
    "ROWS",
    "TABLES",
    "TILE",
    "is_done",
]

TABLES = [
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS inputs
    (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, source TEXT NOT NULL, stamp TEXT,
    size INTEGER, file_digest BLOB, run INTEGER NOT NULL, picture BLOB,
    error_class TEXT, error TEXT, ended REAL, requests INTEGER NOT NULL DEFAULT 1)""",
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
    # Paid images whose id was taken by an input of another source; see `keep_replaced`.
    """CREATE TABLE IF NOT EXISTS replaced
    (picture BLOB PRIMARY KEY, id TEXT NOT NULL, source TEXT NOT NULL)""",
]

ADD_REQUESTS = "ALTER TABLE inputs ADD COLUMN requests INTEGER NOT NULL DEFAULT 1"
"""For a journal of an earlier version."""

TILE = b"tile:"
"""The start of the key of a tile. A tile has an answer, and no input of its own."""

IS_TILE = f"substr(picture, 1, {len(TILE)}) = x'{TILE.hex()}'"

COUNTED_RUN = "counted_run"
"""The fact that holds the last run which has seen its whole source."""


def is_done(again: Sequence[State] = ()) -> str:
    """Return the SQL condition of inputs that have their row, without those to send again."""
    states = ", ".join(str(int(s)) for s in State if s >= State.DESCRIBED and s not in again)
    answered = (
        "EXISTS (SELECT 1 FROM answers WHERE answers.picture = inputs.picture"
        f" AND answers.state IN ({states}))"
    )
    return answered if State.FAILED in again else f"inputs.error_class IS NOT NULL OR {answered}"


IS_DONE = is_done()

MAY_BE_A_COPY = (
    "file_digest IS NULL AND EXISTS (SELECT 1 FROM inputs AS other"
    " WHERE other.size = inputs.size AND other.position <> inputs.position)"
)
"""A file without a digest that has the size of another file."""

IS_REMOVED = (
    "inputs.run < COALESCE((SELECT CAST(value AS INTEGER) FROM facts"
    f" WHERE name = '{COUNTED_RUN}'), 0)"
)
"""An input that the last run which saw its whole source did not find there."""

# The cost of an image is in the row of the first input that shows it.
ROWS = f"""
SELECT inputs.id, inputs.source, description,
    CASE WHEN inputs.error_class IS NOT NULL THEN {State.FAILED:d} ELSE state END AS state,
    COALESCE(inputs.error_class, answers.error_class) AS error_class,
    COALESCE(inputs.error, answers.error) AS error,
    attempts, images_billed, images_in_doubt, first.id AS first_id,
    inputs.picture, width, height, seconds, COALESCE(answers.ended, inputs.ended) AS ended,
    {IS_REMOVED} AS removed
FROM inputs
LEFT JOIN answers ON inputs.error_class IS NULL AND answers.picture = inputs.picture
LEFT JOIN inputs AS first ON first.position
    = (SELECT MIN(position) FROM inputs AS same WHERE same.picture = answers.picture)
WHERE inputs.position BETWEEN ? AND ?
    AND (inputs.error_class IS NOT NULL OR state >= {State.DESCRIBED:d})
ORDER BY inputs.position
"""
