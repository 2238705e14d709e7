"""Tables that are text: CSV, TSV and lines of JSON, packed with gzip or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from phospho_multimodal.errors import ConfigurationError, ImageError
from phospho_multimodal.images.source import MAX_IMAGE_BYTES

__all__ = ["CsvRows", "JsonRows"]

_LONGEST = MAX_IMAGE_BYTES * 3 // 2  # a picture as a data: URL, with room to spare
_LONGEST_HEADER = 100_000  # characters
_ROWS_TO_LEARN_FROM = 100
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class CsvRows:
    """A table with separators, and the names of its columns in the first line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tabs = ".tsv" in path.name.lower()[-7:]

    def columns(self) -> list[str]:
        """Read the names of the columns."""
        with self._text() as text:
            columns = _names(next(self._reader(text), []))
        if any("\0" in name for name in columns):
            message = f"The table {self._path} is no UTF-8 text. Save it as UTF-8."
            raise ConfigurationError(message)
        return columns

    def rows(self, column: str, id_column: str | None) -> Iterator[tuple[object, object]]:
        """Read the cells of two columns; an `ImageError` stands for a broken row's picture."""
        with self._text() as text:
            reader = self._reader(text)
            columns = _names(next(reader, []))
            if column not in columns:
                return
            at = columns.index(column)
            id_at = columns.index(id_column) if id_column in columns else len(columns)
            while True:
                try:
                    row = next(reader, None)
                except csv.Error as broken:
                    yield None, _broken(self._path, reader.line_num, f"is no CSV ({broken})")
                    continue
                if row is None:
                    return
                if not row:  # an empty line
                    continue
                given = row[id_at] if id_at < len(columns) and id_at < len(row) else None
                if at < len(row):
                    yield given, row[at]
                else:
                    yield given, _broken(self._path, reader.line_num, "is too short")

    def _text(self) -> IO[str]:
        # What is no UTF-8 may still be the name of a file.
        return io.TextIOWrapper(_open(self._path), "utf-8-sig", "surrogateescape", newline="")

    def _reader(self, text: IO[str]) -> Any:
        # The module's limit is one for the process, and too low for a data: URL: raised, never
        # lowered, so that nobody else's table breaks.
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
        return csv.reader(text, delimiter=self._separator())

    def _separator(self) -> str:
        """Choose by the first line: Excel writes semicolons where a comma is a decimal point."""
        if self._tabs:
            return "\t"
        with self._text() as text:
            header = text.readline(_LONGEST_HEADER)
        others = [separator for separator in ";\t|" if separator in header]
        return others[0] if others and "," not in header else ","


class JsonRows:
    """A table of a JSON object a line; not every line needs every column."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def columns(self) -> list[str]:
        """Collect the keys of the first 100 objects."""
        columns: dict[str, None] = {}  # as an ordered set
        learnt = 0
        with _open(self._path) as file:
            for _, line in _lines(file):
                row = _parsed(line)
                if isinstance(row, dict):
                    columns.update(dict.fromkeys(row))
                    learnt += 1
                if learnt == _ROWS_TO_LEARN_FROM:
                    break
        return list(columns)

    def rows(self, column: str, id_column: str | None) -> Iterator[tuple[object, object]]:
        """Read the values of two keys; an `ImageError` stands for a broken line's picture."""
        with _open(self._path) as file:
            for number, line in _lines(file):
                row = _parsed(line)
                if isinstance(row, dict):
                    yield row.get(id_column), row.get(column)
                elif line is None:
                    what = f"has more than {_LONGEST:,} bytes"
                    yield None, _broken(self._path, number, what)
                else:
                    yield None, _broken(self._path, number, "is no JSON object")


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _names(header: list[str]) -> list[str]:
    return [name.strip() for name in header]


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Number the lines, and leave out the empty ones; one that is too long is `None`."""
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_LONGEST)
            yield number, None
        elif line.removeprefix(_BYTE_ORDER_MARK).strip():
            yield number, line.removeprefix(_BYTE_ORDER_MARK)


def _parsed(line: bytes | None) -> object:
    try:
        # The standard library's: pandas and others write NaN, which is no JSON.
        row: object = json.loads(line or b"")
    except (ValueError, RecursionError):
        return None
    return row


def _broken(path: Path, line: int, what: str) -> ImageError:
    return ImageError(f"Line {line} of {path.name} {what}.")
