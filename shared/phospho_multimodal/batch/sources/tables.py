"""Tables with a column of pictures, read a row at a time."""

from __future__ import annotations

import csv
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from phospho_multimodal.batch.sources.items import Item, make_item, printable
from phospho_multimodal.batch.sources.parquet import ParquetRows
from phospho_multimodal.batch.sources.text_tables import CsvRows, JsonRows
from phospho_multimodal.errors import ConfigurationError, ImageError

__all__ = ["TABLE_SUFFIXES", "Table"]


class _Rows(Protocol):
    """A form of table: its columns, and the cells of two of them, a row at a time."""

    def __init__(self, path: Path) -> None: ...

    def columns(self) -> list[str]: ...

    def rows(self, column: str, id_column: str | None) -> Iterator[tuple[object, object]]: ...


_FORMS: dict[str, type[_Rows]] = {
    ".csv": CsvRows,
    ".csv.gz": CsvRows,
    ".tsv": CsvRows,
    ".tsv.gz": CsvRows,
    ".jsonl": JsonRows,
    ".jsonl.gz": JsonRows,
    ".ndjson": JsonRows,
    ".ndjson.gz": JsonRows,
    ".parquet": ParquetRows,
}

TABLE_SUFFIXES = tuple(_FORMS)
"""What a table's name ends with."""

_USUAL = ("image", "image_path", "path", "file_name", "file", "url", "image_url")
_MOST_COLUMNS_TOLD = 30
_LONGEST_COLUMN_TOLD = 60
_UNREADABLE = (OSError, EOFError, UnicodeError, csv.Error, zlib.error)


class Table:
    """A table: each row is an item, with an error where it is broken."""

    def __init__(
        self,
        path: Path,
        *,
        column: str | None = None,
        id_column: str | None = None,
        root: Path | None = None,
        prefix: str = "",
    ) -> None:
        """Find the columns.

        Args:
            path: The file.
            column: Of the pictures; may be left out if there is one of a usual name.
            id_column: Of the ids; else, and where it is empty, the row's number from 0.
            root: What paths are relative to; else the table's folder.
            prefix: Stands before those numbers.

        Raises:
            ConfigurationError: The file cannot be read, or has no such column.
            ImportError: Parquet without pyarrow.
        """
        self.name = f"table {path}"
        self.skipped: Counter[str] = Counter()
        self._path = path
        self._root = path.parent if root is None else root
        self._prefix = prefix
        self._id_column = id_column
        self._form = next(
            form(path) for suffix, form in _FORMS.items() if path.name.lower().endswith(suffix)
        )
        self._check_there()
        try:
            columns = self._form.columns()
        except _UNREADABLE as failure:
            message = f"The table {path} cannot be read: {_reason(failure)}."
            raise ConfigurationError(message) from None
        self._column = _choose(column, id_column, columns, path)

    def __iter__(self) -> Iterator[Item]:
        self._check_there()
        rows = self._form.rows(self._column, self._id_column)
        number = 0
        while True:
            name = f"{self._prefix}{number:09d}"
            try:
                row = next(rows, None)
            except _UNREADABLE as failure:
                message = (
                    f"{self._path} cannot be read further than {number} rows:"
                    f" {_reason(failure)}. Those that follow are missing."
                )
                yield Item(name, "", None, None, ImageError(message))
                return
            if row is None:
                return
            yield self._item(name, *row)
            number += 1

    def _item(self, name: str, given: object, cell: object) -> Item:
        name = _id_from(given) or name
        if isinstance(cell, ImageError):
            return Item(name, "", None, None, cell)
        # Spaces around a cell are there for the eye.
        return make_item(name, cell.strip() if isinstance(cell, str) else cell, self._root)

    def _check_there(self) -> None:
        try:
            self._path.open("rb").close()
        except OSError as failure:
            message = f"The table {self._path} cannot be read: {failure.strerror}."
            raise ConfigurationError(message) from None


def _choose(column: str | None, id_column: str | None, columns: Sequence[str], path: Path) -> str:
    if not columns:  # an empty table
        return column or ""
    for asked in (column, id_column):
        if asked is not None and asked not in columns:
            message = f"{path} has no column {asked!r}. It has {_told(columns)}."
            raise ConfigurationError(message)
    if column is not None:
        return column
    usual = [name for name in _USUAL if name in columns]
    if len(usual) != 1:
        several = "several columns" if usual else "no column"
        message = (
            f"{path} has {several} with a usual name for pictures: say which one with `column`."
            f" It has {_told(columns)}."
        )
        raise ConfigurationError(message)
    return usual[0]


def _told(columns: Sequence[str]) -> str:
    told = [repr(name[:_LONGEST_COLUMN_TOLD]) for name in columns[:_MOST_COLUMNS_TOLD]]
    left = len(columns) - len(told)
    return ", ".join(told) + (f" and {left} more" if left else "")


def _id_from(value: object) -> str:
    if value is None or isinstance(value, ImageError):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return printable(str(value)).strip()


def _reason(failure: BaseException) -> str:
    strerror = failure.strerror if isinstance(failure, OSError) else None
    return strerror or str(failure) or type(failure).__name__
