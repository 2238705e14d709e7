"""The rows of files with columns: CSV, TSV, lines of JSON, Parquet and Arrow."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol, cast

from phospho_multimodal.batch.sources.remote import AnyPath, failure_reason
from phospho_multimodal.errors import ConfigurationError, ImageError
from phospho_multimodal.images.source import MAX_IMAGE_BYTES

__all__ = ["TABLE_SUFFIXES", "UNREADABLE", "Row", "Rows", "open_rows"]

Row = Sequence[object]
"""The cells of some columns; an `ImageError` in the first one says why the row is broken."""

UNREADABLE = (OSError, EOFError, UnicodeError, csv.Error, zlib.error)
"""What a file raises that ends too early or is not such a table."""

_MAX_LINE = MAX_IMAGE_BYTES * 3 // 2  # an image as a data: URL, with room to spare
_MAX_HEADER = 100_000  # characters
_HEAD, _PIECE = 1024 * 1024, 64 * 1024  # bytes from which the encoding is guessed
_ROWS_TO_LEARN_FROM = 100
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')
# So many rows are in memory at a time: few where the rows may hold images.
_TEXT_ROWS = 64
_IMAGE_ROWS = 8
_BUFFER = 1024 * 1024


class Rows(Protocol):
    """A collection of rows that can be read several times."""

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        ...

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        """Read the cells of some columns, a row at a time; a missing cell is `None`."""
        ...


class _Csv:
    """Text with separators, and the names of its columns in the first line."""

    def __init__(self, path: AnyPath, encoding: str | None) -> None:
        self._path = path
        self._has_tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
        self._encoding = encoding or _guess_encoding(path)

    def columns(self) -> list[str]:
        with self._text() as text:
            columns = self._begin(text)[1]
        if any("\0" in name for name in columns):
            message = f"The table {self._path} is not text. Nothing was sent. Save it as UTF-8."
            raise ConfigurationError(message)
        return columns

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        with self._text() as text:
            reader, columns = self._begin(text)
            if names[0] not in columns:
                return
            places = [columns.index(n) if n in columns else len(columns) for n in names]
            while True:
                try:
                    row = next(reader, None)
                except csv.Error as broken:
                    yield [_broken(self._path, reader.line_num, f"is not CSV ({broken})")]
                    continue
                if row is None:
                    return
                if not row:  # an empty line
                    continue
                row = row[: len(columns)]
                cells: list[object] = [row[at] if at < len(row) else None for at in places]
                if cells[0] is None:
                    cells[0] = _broken(self._path, reader.line_num, "is too short")
                yield cells

    def _text(self) -> IO[str]:
        # Bytes that are not text may still be the name of a file.
        return io.TextIOWrapper(_open(self._path), self._encoding, "surrogateescape", newline="")

    def _begin(self, text: IO[str]) -> tuple[Any, list[str]]:
        """Read the header; Excel writes semicolons where a comma is the decimal separator."""
        # The module's limit is one for the process and too low for a data: URL. It is raised and
        # never lowered, so that other code's tables still work.
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE))
        header = text.readline(_MAX_HEADER).removeprefix("\ufeff")
        excel = _EXCEL_SEPARATOR.fullmatch(header)
        if excel is not None:
            header = text.readline(_MAX_HEADER)
        others = [separator for separator in ";\t|" if separator in header]
        separator = others[0] if others and "," not in header else ","
        if excel is not None or self._has_tabs:
            separator = "\t" if excel is None else excel[1]
        reader = csv.reader(chain([header], text), delimiter=separator)
        return reader, [name.strip() for name in next(reader, [])]


class _JsonLines:
    """A JSON object a line; not every line needs every column."""

    def __init__(self, path: AnyPath, encoding: str | None) -> None:
        self._path = path
        self._encoding = encoding or _guess_encoding(path, otherwise="utf-8")

    def columns(self) -> list[str]:
        columns: dict[str, None] = {}  # as an ordered set
        learnt = 0
        for _, line in self._lines():
            row = _parsed(line)
            if isinstance(row, dict):
                columns.update(dict.fromkeys(row))
                learnt += 1
            if learnt == _ROWS_TO_LEARN_FROM:
                break
        return list(columns)

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        for number, line in self._lines():
            row = _parsed(line)
            if isinstance(row, dict):
                yield [row.get(name) for name in names]
            elif line is None:
                yield [_broken(self._path, number, f"has more than {_MAX_LINE:,} bytes")]
            else:
                yield [_broken(self._path, number, "is not a JSON object")]

    def _lines(self) -> Iterator[tuple[int, str | None]]:
        """Number the lines and leave out the empty ones; one that is too long is `None`."""
        number = 0
        with io.TextIOWrapper(_open(self._path), self._encoding, "surrogateescape") as file:
            while line := file.readline(_MAX_LINE):
                number += 1
                if len(line) == _MAX_LINE and not line.endswith("\n"):
                    while line and not line.endswith("\n"):
                        line = file.readline(_MAX_LINE)
                    yield number, None
                elif line.strip("\ufeff \t\r\n"):
                    yield number, line.strip("\ufeff")


class _Arrow:
    """A Parquet file, or an Arrow file of a saved dataset. Needs the extra `batch`.

    Parquet is read page by page. `pyarrow.dataset` would decode a whole group of rows, which can
    be a thousand images.
    """

    def __init__(self, path: AnyPath, encoding: str | None) -> None:  # noqa: ARG002 - as the others
        self._path = path
        self._is_parquet = path.name.lower().endswith(".parquet")

    def columns(self) -> list[str]:
        with self._path.open("rb") as file:
            return list(self._open(file)[0].names)

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        with self._path.open("rb") as file:
            schema, read = self._open(file)
            if names[0] not in schema.names:
                return
            kind = str(schema.field(names[0]).type)
            size = _IMAGE_ROWS if "binary" in kind or "struct" in kind else _TEXT_ROWS
            there = [n for n in dict.fromkeys(names) if n in schema.names]
            for batch in _batches(read(there, size)):
                columns = [batch.column(n) if n in there else None for n in names]
                for at in range(batch.num_rows):
                    yield [None if c is None else _value(c[at]) for c in columns]

    def _open(self, file: IO[bytes]) -> tuple[Any, Any]:
        """Return the schema, and a function that reads columns in batches of some rows."""
        try:
            # An extra, and a heavy one.
            import pyarrow as pa  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415
            import pyarrow.parquet as pq  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415
        except ModuleNotFoundError as missing:
            message = (
                f"Reading Parquet needs {missing.name!r}, which is not installed:"
                ' pip install "phospho-multimodal[batch]"'
            )
            raise ImportError(message) from missing
        try:
            if not self._is_parquet:
                stream = pa.ipc.open_stream(file)
                return stream.schema, lambda names, size: (
                    part
                    for batch in stream
                    for part in pa.Table.from_batches([batch.select(names)]).to_batches(size)
                )
            # With pre_buffer, all pages of a group of rows are in memory, which can be all images.
            table = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        except pa.ArrowException as failure:
            raise OSError(failure_reason(failure)) from None
        return table.schema_arrow, lambda names, size: table.iter_batches(
            batch_size=size, columns=names, use_threads=False
        )


_FORMS: dict[str, type[_Csv | _JsonLines | _Arrow]] = {
    **dict.fromkeys((".csv", ".csv.gz", ".tsv", ".tsv.gz"), _Csv),
    **dict.fromkeys((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), _JsonLines),
    **dict.fromkeys((".parquet", ".arrow"), _Arrow),
}

TABLE_SUFFIXES = tuple(_FORMS)
"""How the name of a table ends."""


def open_rows(path: AnyPath, encoding: str | None) -> Rows:
    """Open a table in the form that its name says; `encoding` is guessed if it is `None`."""
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        message = f"Python has no encoding {encoding!r}. Nothing was sent."
        raise ConfigurationError(message) from None
    form = next(form for suffix, form in _FORMS.items() if path.name.lower().endswith(suffix))
    return form(path, encoding)


def _guess_encoding(path: AnyPath, otherwise: str = "cp1252") -> str:
    """Guess by the mark at the beginning, by zero bytes, and by whether it is valid UTF-8."""
    head = bytearray()
    # A file that ends too early shows that when its rows are read.
    with contextlib.suppress(EOFError, zlib.error), _open(path) as file:
        while len(head) < _HEAD and (piece := file.read(_PIECE)):
            head += piece
    for mark, encoding in _BOMS.items():
        if head.startswith(mark):
            return encoding
    for encoding, zeros in (("utf-16-le", head[1:200:2]), ("utf-16-be", head[:200:2])):
        if zeros.count(0) * 2 > len(zeros):  # most of a header is ASCII in any language
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < _HEAD)
    except UnicodeDecodeError:
        return otherwise
    return "utf-8"


def _open(path: AnyPath) -> IO[bytes]:
    if not path.name.lower().endswith(".gz"):
        return path.open("rb")
    return cast("IO[bytes]", gzip.open(path if isinstance(path, Path) else path.open(), "rb"))


def _parsed(line: str | None) -> object:
    try:
        # The standard library's: pandas and others write NaN, which is not JSON.
        row: object = json.loads(line or "")
    except (ValueError, RecursionError):
        return None
    return row


def _broken(path: AnyPath, line: int, what: str) -> ImageError:
    return ImageError(f"Line {line} of {path.name} {what}.")


def _batches(batches: Any) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches, None)
        except Exception as failure:  # noqa: BLE001 - of the many classes that Arrow has
            raise OSError(failure_reason(failure)) from None
        if batch is None:
            return
        yield batch


def _value(scalar: Any) -> object:
    try:
        value: object = scalar.as_py()
    except (ValueError, NotImplementedError) as failure:  # for example text that is not UTF-8
        return ImageError(f"The cell cannot be read ({type(failure).__name__}).")
    return value
