"""Tables, data frames, datasets and lists of mappings: one column holds the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from phospho_multimodal.batch.sources.items import Item, make_item, printable
from phospho_multimodal.batch.sources.remote import AnyPath, StorageOptions, failure_reason
from phospho_multimodal.batch.sources.rows import UNREADABLE, Row, Rows, open_rows
from phospho_multimodal.errors import ConfigurationError, ImageError

__all__ = ["ReadOptions", "Table", "column_names", "is_record", "open_collection", "open_table"]

_USUAL = ("image", "image_path", "path", "file_name", "file", "url", "image_url")
_MAX_COLUMNS_SHOWN = 30
_MAX_NAME_SHOWN = 60


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read.

    Attributes:
        column: The column of the images.
        id_column: The column of the ids; without it, ids are numbers from 0.
        root: What relative paths are relative to.
        fields: Other columns that prompts and results use.
        encoding: The encoding of tables of text; guessed without it.
        storage_options: For the URLs of stores.
    """

    column: str | None = None
    id_column: str | None = None
    root: AnyPath | None = None
    fields: Sequence[str] = ()
    encoding: str | None = None
    storage_options: StorageOptions | None = None


class Table:
    """Rows with columns: each row is an item, with an error where the row is broken."""

    def __init__(self, rows: Rows, name: str, options: ReadOptions, prefix: str = "") -> None:
        """Find the columns."""
        self.name = name
        self.skipped: Counter[str] = Counter()
        self._rows = rows
        self._prefix = prefix
        self._options = options
        columns = self._columns()
        self._column = _choose(columns, options.column, name)
        self._id_column = options.id_column and _find(columns, options.id_column, name)
        self._fields = {field: _find(columns, field, name) for field in options.fields}

    def __iter__(self) -> Iterator[Item]:
        self._columns()  # a file that is gone since the last pass is not an empty one
        names = [self._column, *filter(None, [self._id_column]), *self._fields.values()]
        rows = self._rows.rows(names)
        number = 0
        while True:
            name = f"{self._prefix}{number:09d}"
            try:
                row = next(rows, None)
            except UNREADABLE as failure:
                message = (
                    f"The {self.name} cannot be read further than {number} rows:"
                    f" {failure_reason(failure)}. The rows that follow are missing."
                )
                yield Item(name, "", None, None, ImageError(message))
                return
            if row is None:
                return
            yield self._item(name, dict(zip(names, row, strict=False)))
            number += 1

    def _columns(self) -> list[str]:
        try:
            return self._rows.columns()
        except UNREADABLE as failure:
            message = f"The {self.name} cannot be read: {failure_reason(failure)}."
            raise ConfigurationError(message) from None

    def _item(self, name: str, cells: Mapping[str, object]) -> Item:
        image = cells[self._column]
        name = _id_from(cells.get(self._id_column or "")) or name
        if isinstance(image, ImageError):
            return Item(name, "", None, None, image)
        if isinstance(image, str):
            image = image.strip()  # people put spaces around a cell
        elif isinstance(image, float) and image != image:  # noqa: PLR0124 - a data frame's NaN
            image = None
        options = self._options
        item = make_item(name, image, options.root, options.storage_options)
        if not self._fields:
            return item
        return replace(item, fields={f: cells.get(column) for f, column in self._fields.items()})


def open_table(path: AnyPath, options: ReadOptions, prefix: str = "") -> Table:
    """Open a table; its relative paths are relative to its folder unless `root` says otherwise."""
    if options.root is None:
        options = replace(options, root=path.parent)
    try:
        rows = open_rows(path, options.encoding)
    except UNREADABLE as failure:
        message = f"The table {path} cannot be read: {failure_reason(failure)}."
        raise ConfigurationError(message) from None
    return Table(rows, f"table {path}", options, prefix)


def column_names(collection: Any) -> list[str] | None:
    """Name the columns of a collection of pandas, polars, PyArrow or Hugging Face datasets."""
    if isinstance(collection, Mapping):
        return None
    names = getattr(collection, "column_names", None)  # of a dataset or an Arrow table
    if names is None and hasattr(collection, "dtypes"):
        names = getattr(collection, "columns", None)  # of a data frame
    if names is None or callable(names):
        return None
    return [str(name) for name in names]


def is_record(entry: object) -> bool:
    """Return whether an entry of a list is a row with fields, and not `{bytes, path}`, an image."""
    return isinstance(entry, Mapping) and not ({"bytes", "path"} & entry.keys())


def open_collection(rows: Any, options: ReadOptions) -> Table:
    """Open a collection whose entries have fields; `column` must be given."""
    what = type(rows).__name__
    if hasattr(rows, "collect"):  # Spark, and a polars frame that is not computed yet
        message = f"A {what} holds no rows yet. Nothing was sent. Collect them first."
        raise ConfigurationError(message)
    collection = _Collection(rows)
    if options.column is None:
        message = (
            f"A {what} has fields, and column= does not say which one holds the images."
            f" Nothing was sent. Its fields: {_listed(collection.columns())}."
        )
        raise ConfigurationError(message)
    return Table(collection, f"{what} of images", options)


class _Collection:
    """Rows in memory, or of a library that reads them."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def columns(self) -> list[str]:
        names = column_names(self._rows)
        if names is None:
            names = [str(name) for row in islice(self._rows, 1) for name in row]
        return names

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        rows = chosen = _undecoded(self._rows, names[0])
        if hasattr(rows, "to_batches"):  # PyArrow
            chosen = rows.select(list(dict.fromkeys(names)))
            for batch in chosen.to_batches(max_chunksize=64):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        elif column_names(rows) is not None and not hasattr(rows, "features"):  # a data frame
            yield from zip(*(rows[name] for name in names), strict=True)
        else:
            if hasattr(rows, "select_columns"):  # a dataset: decode no other column
                chosen = rows.select_columns(list(dict.fromkeys(names)))
            for row in chosen:
                fields = row if isinstance(row, Mapping) else {}
                yield [fields.get(name) for name in names]


def _undecoded(rows: Any, column: str) -> Any:
    """Have a dataset give files as they are: decoded, they would be compressed once more."""
    feature: Any = (getattr(rows, "features", None) or {}).get(column)
    if not getattr(feature, "decode", False):
        return rows
    return rows.cast_column(column, type(feature)(decode=False))


def _choose(columns: Sequence[str], column: str | None, name: str) -> str:
    if column is not None:
        return _find(columns, column, name)
    usual = [column for column in columns if column.lower() in _USUAL]
    if columns and len(usual) != 1:
        several = "several columns" if usual else "no column"
        message = (
            f"The {name} has {several} with a usual name for images. Nothing was sent. Say which"
            f" one with `column`. It has {_listed(columns)}."
        )
        raise ConfigurationError(message)
    return usual[0] if usual else ""  # an empty table has no columns


def _find(columns: Sequence[str], wanted: str, name: str) -> str:
    """Find a column by its name; capitals count only if two names differ in nothing else."""
    found = [column for column in columns if column.lower() == wanted.lower()]
    if wanted in columns or not columns:
        return wanted
    if len(found) != 1:
        message = (
            f"The {name} has no column {wanted!r}. Nothing was sent. It has {_listed(columns)}."
        )
        raise ConfigurationError(message)
    return found[0]


def _listed(columns: Sequence[str]) -> str:
    shown = [repr(name[:_MAX_NAME_SHOWN]) for name in columns[:_MAX_COLUMNS_SHOWN]]
    left = len(columns) - len(shown)
    return (", ".join(shown) + (f" and {left} more" if left else "")) or "none"


def _id_from(value: object) -> str:
    if value is None or isinstance(value, ImageError):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return printable(str(value)).strip()
