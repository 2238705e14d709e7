"""What rows say besides the answer: their prompts and the columns kept from the source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from phospho_multimodal.batch.results.columns import COLUMNS
from phospho_multimodal.batch.sources.items import Item, Source, WrappedSource
from phospho_multimodal.spending.sqlite import open_database, transaction

__all__ = ["DETAILS_NAME", "RowDetails"]

DETAILS_NAME = "_details.sqlite"
PROMPT = "prompt"

_TABLE = """CREATE TABLE IF NOT EXISTS details
(id TEXT PRIMARY KEY, prompt TEXT, fields TEXT) WITHOUT ROWID"""
_TOGETHER = 256
_Row: TypeAlias = tuple[str | None, str, str]  # prompt, fields and id


class RowDetails:
    """A file in the job's folder, which is filled while the inputs are counted.

    The rows of inputs that the source does not hold any more keep theirs.
    """

    def __init__(self, folder: Path, keep: Sequence[str], *, prompts: bool) -> None:
        """Open the file."""
        taken = {*COLUMNS, PROMPT}
        self._names = {name: f"input_{name}" if name in taken else name for name in keep}
        self._prompts = prompts
        self.columns = [*([PROMPT] if prompts else []), *self._names.values()]
        self._database = open_database(folder / DETAILS_NAME, [_TABLE])

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def record(self, source: Source, changed: Callable[[], None]) -> _Recorded:
        """Wrap a source, so that its first pass fills the file."""
        return _Recorded(source, self._row, lambda rows: self._add(rows, changed))

    def read(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the details of some rows, by id."""
        found = self._database.execute(
            "SELECT id, prompt, fields FROM details WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(ids),),
        ).fetchall()
        return {name: self._details(prompt, json.loads(text)) for name, prompt, text in found}

    def _details(self, prompt: str | None, fields: Mapping[str, Any]) -> dict[str, Any]:
        kept = {column: fields.get(name) for name, column in self._names.items()}
        return {PROMPT: prompt, **kept} if self._prompts else kept

    def _row(self, item: Item) -> tuple[str | None, str, str]:
        kept = {name: _plain(item.fields.get(name)) for name in self._names}
        text = json.dumps(kept, ensure_ascii=False, default=str)
        return item.prompt, text.encode("utf-8", "replace").decode("utf-8"), item.id

    def _add(self, rows: Sequence[_Row], changed: Callable[[], None]) -> None:
        with transaction(self._database):
            updated = self._database.executemany(
                "UPDATE details SET prompt = ?1, fields = ?2 WHERE id = ?3"
                " AND (prompt IS NOT ?1 OR fields IS NOT ?2)",
                rows,
            )
            if updated.rowcount > 0:
                changed()
            self._database.executemany(
                "INSERT OR IGNORE INTO details (prompt, fields, id) VALUES (?, ?, ?)", rows
            )


class _Recorded(WrappedSource):
    """A source whose first whole pass is recorded."""

    def __init__(
        self,
        source: Source,
        row: Callable[[Item], _Row],
        add: Callable[[Sequence[_Row]], None],
    ) -> None:
        super().__init__(source)
        self._row = row
        self._add = add
        self._is_recorded = False

    def __iter__(self) -> Iterator[Item]:
        rows: list[_Row] = []
        for item in self._source:
            if not self._is_recorded:
                rows.append(self._row(item))
            if len(rows) == _TOGETHER:
                self._add(rows)
                rows = []
            yield item
        self._add(rows)
        self._is_recorded = True


def _plain(value: object) -> object:
    """Return a value that JSON can hold; a NaN and a cell that cannot be read are `None`."""
    is_missing = isinstance(value, Exception) or value != value  # noqa: PLR0124 - a NaN
    return None if is_missing else value
