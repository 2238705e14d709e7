"""Tables in Parquet, with paths, URLs, or the pictures themselves. Needs the extra `batch`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phospho_multimodal.errors import ImageError

__all__ = ["ParquetRows"]

# So many rows are in memory at a time: few where the pictures may be in them.
_TEXTS = 64
_PICTURES = 8
_BUFFER = 1024 * 1024


class ParquetRows:
    """A Parquet file, read page by page: a part of one cannot be unpacked.

    pyarrow makes pages of up to 1,024 rows, whatever is in them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def columns(self) -> list[str]:
        """Read the names of the columns."""
        with _open(self._path) as file:
            return list(file.schema_arrow.names)

    def rows(self, column: str, id_column: str | None) -> Iterator[tuple[object, object]]:
        """Read the values of two columns; an `ImageError` stands for what cannot be read."""
        with _open(self._path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                return
            kind = str(schema.field(column).type)
            size = _PICTURES if "binary" in kind or "struct" in kind else _TEXTS
            asked = [name for name in (column, id_column) if name in schema.names]
            for batch in _batches(file, size, asked):
                ids = batch.column(id_column) if id_column in asked else None
                pictures = batch.column(column)
                for at in range(batch.num_rows):
                    yield None if ids is None else _value(ids[at]), _value(pictures[at])


def _open(path: Path) -> Any:
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
        # Otherwise all pages of a group of rows are read at once, which can be all pictures.
        return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except pa.ArrowException as failure:
        raise OSError(_first_line(failure)) from None


def _batches(file: Any, size: int, columns: list[str | None]) -> Iterator[Any]:
    batches = file.iter_batches(batch_size=size, columns=columns, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except Exception as failure:  # noqa: BLE001 - of the many classes that Arrow has
            raise OSError(_first_line(failure)) from None
        if batch is None:
            return
        yield batch


def _value(scalar: Any) -> object:
    try:
        value: object = scalar.as_py()
    except (ValueError, NotImplementedError) as failure:  # text that is no UTF-8, for one
        return ImageError(f"The cell cannot be read ({type(failure).__name__}).")
    return value


def _first_line(failure: Exception) -> str:
    return str(failure).split("\n", 1)[0]
