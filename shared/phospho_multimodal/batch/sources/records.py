"""Collections whose entries have fields: data frames, datasets, Arrow tables, lists of mappings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.sources.items import Item, make_item, printable
from phospho_multimodal.errors import ConfigurationError

__all__ = ["Records", "column_names", "is_record"]

_SHOWN = 30  # columns in a message


def column_names(collection: Any) -> list[str] | None:
    """Name the columns of a collection that has some.

    Args:
        collection: Of pandas, polars, PyArrow, Hugging Face datasets, or anything else.

    Returns:
        The names; `None` for any other collection.
    """
    if isinstance(collection, Mapping):
        return None
    names = getattr(collection, "column_names", None)  # of a dataset or an Arrow table
    if names is None and hasattr(collection, "dtypes"):
        names = getattr(collection, "columns", None)  # of a data frame
    if names is None or callable(names):
        return None
    return [str(name) for name in names]


def is_record(entry: object) -> bool:
    """Tell whether an entry of a list is a row with fields, and not `{bytes, path}`, an image."""
    return isinstance(entry, Mapping) and not ({"bytes", "path"} & entry.keys())


class Records:
    """One field of each row as the image, and one as the id."""

    def __init__(
        self, rows: Any, *, column: str | None, id_column: str | None, root: Path | None
    ) -> None:
        """Check that the fields are there; no row is read but the first of a list.

        Args:
            rows: The collection.
            column: The field of the image.
            id_column: The field of the id; without it, ids are numbers from 0.
            root: What relative paths are relative to.

        Raises:
            ConfigurationError: There is no such field, or `column` is missing.
        """
        what = type(rows).__name__
        if hasattr(rows, "collect"):  # Spark, and a polars frame that is not computed yet
            message = f"A {what} holds no rows yet. Nothing was sent. Collect them first."
            raise ConfigurationError(message)
        names = column_names(rows)
        if names is None:
            names = [str(name) for row in islice(rows, 1) for name in row]
        shown = ", ".join(repr(name) for name in names[:_SHOWN]) or "none"
        if column is None:
            message = (
                f"A {what} has fields, and column= does not say which one holds the images."
                f" Nothing was sent. Its fields: {shown}."
            )
            raise ConfigurationError(message)
        for name in (column, id_column):
            if name is not None and name not in names:
                message = f"The {what} has no field {name!r}. Nothing was sent. It has: {shown}."
                raise ConfigurationError(message)
        self.name = f"{what} of images"
        self.skipped: Counter[str] = Counter()
        self._rows = _undecoded(rows, column)
        self._column = column
        self._id_column = id_column
        self._root = root

    def __iter__(self) -> Iterator[Item]:
        wanted = [self._column] if self._id_column is None else [self._column, self._id_column]
        for number, (image, *given) in enumerate(_values(self._rows, wanted)):
            name = "" if not given or given[0] is None else printable(str(given[0])).strip()
            yield make_item(name or f"{number:09d}", _cell(image), self._root)


def _values(rows: Any, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    """Read some fields, a row at a time."""
    if hasattr(rows, "to_batches"):  # PyArrow
        for batch in rows.select(list(columns)).to_batches(max_chunksize=64):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    elif column_names(rows) is not None and not hasattr(rows, "features"):  # a data frame
        yield from zip(*(rows[name] for name in columns), strict=True)
    else:
        chosen: Iterable[Any] = rows
        if hasattr(rows, "select_columns"):  # a dataset: decode no other column
            chosen = rows.select_columns(list(columns))
        for row in chosen:
            fields = row if isinstance(row, Mapping) else {}
            yield [fields.get(name) for name in columns]


def _undecoded(rows: Any, column: str) -> Any:
    """Have a dataset give files as they are: decoded, they would be compressed once more."""
    feature: Any = (getattr(rows, "features", None) or {}).get(column)
    if not getattr(feature, "decode", False):
        return rows
    return rows.cast_column(column, type(feature)(decode=False))


def _cell(value: Any) -> Any:
    """A data frame's missing value is a NaN; spaces around a text are there for the eye."""
    if isinstance(value, float) and value != value:  # noqa: PLR0124 - a NaN
        return None
    return value.strip() if isinstance(value, str) else value
