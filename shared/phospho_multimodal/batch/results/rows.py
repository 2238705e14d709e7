"""The results: one row for each input, in files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import orjson

from phospho_multimodal.batch.job import Job, image_digest
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.resume import PART_ROWS, part_of, rows_of_part
from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.batch.results.columns import COLUMNS
from phospho_multimodal.batch.results.details import RowDetails
from phospho_multimodal.batch.results.digests import digest_file
from phospho_multimodal.batch.results.upload import Upload
from phospho_multimodal.errors import ConfigurationError

__all__ = ["COLUMNS", "MANIFEST_NAME", "REPORT_NAME", "Results", "ResultsFormat", "check_format"]

MANIFEST_NAME = "_manifest.json"
REPORT_NAME = "_report.html"

ResultsFormat = Literal["parquet", "jsonl"]
"""What the results are written as."""

# The columns that are equal in two runs with equal results: not time, speed or attempts.
_DIGESTED = ("id", "source", "status", "description", "error_class", "sha256", "width", "height")


class Results:
    """The files of one job."""

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        job: Job,
        kind: ResultsFormat,
        usd_per_image: Decimal,
        *,
        details: RowDetails | None = None,
        upload: Upload | None = None,
    ) -> None:
        """Write rows of a journal into a folder; `details` adds columns to them."""
        self._details = details
        self._upload = upload
        self._columns = {**COLUMNS, **dict.fromkeys(details.columns if details else (), "string")}
        self._folder = folder
        self._journal = journal
        self._job = job
        self._kind = kind
        self._price = usd_per_image

    def check(self) -> list[str]:
        """Check that results can be written, and that every written part is whole.

        A part that is missing, torn, changed, of another format or at another price is written
        again.
        """
        self._check_outputs()
        columns = " ".join(f"{name}:{kind}" for name, kind in self._columns.items())
        self._journal.check_parts(str(self._price), columns)
        bad = []
        for number, name, _, size, sha256 in self._journal.parts():
            path = self._folder / name
            if name != self._name(number):
                path.unlink(missing_ok=True)
            elif _is_whole(path, size, sha256):
                continue
            self._journal.drop_part(number)
            bad.append(name)
        other = {"parquet": "jsonl", "jsonl": "parquet"}[self._kind]
        # Parts that were not whole when a run ended are not noted.
        for left in [*self._folder.glob("_part-*.new"), *self._folder.glob(f"part-*.{other}")]:
            left.unlink(missing_ok=True)
        return bad

    def forget_parts(self) -> None:
        """Have all parts written again, because their rows say something else now."""
        for number, *_ in self._journal.parts():
            self._journal.drop_part(number)

    def write_finished(self) -> None:
        """Write every part whose inputs all have their row, up to the first that has not.

        In their order, because the first input that shows an image has its cost, and it is known
        only when all inputs before it have been prepared.
        """
        there = {number for number, *_ in self._journal.parts()}
        for number in range(self._parts()):
            if number in there:
                continue
            if not self._journal.is_finished(*rows_of_part(number)):
                break
            name, rows, size, sha256 = self._write(number)
            self._journal.add_part(number, name, rows, size, sha256)
        if self._upload is not None:
            self._upload.try_to_copy()

    def write_rest(self) -> list[dict[str, Any]]:
        """Write the finished rows of the other parts, which are written again when whole."""
        there = {number: part for number, *part in self._journal.parts()}
        names = {self._name(number) for number in range(self._parts())}
        for left in self._folder.glob(f"part-*.{self._kind}"):
            if left.name not in names:  # its last rows were struck out
                left.unlink()
        listed = []
        for number in range(self._parts()):
            part: Sequence[Any] | None = there.get(number)
            if part is None:
                part = self._write(number)
                if not part[1]:
                    (self._folder / self._name(number)).unlink()
                    continue
            listed.append(dict(zip(("name", "rows", "bytes", "sha256"), part, strict=True)))
        return listed

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read every row that is done, in the order of the inputs, a part at a time."""
        for number in range(self._parts()):
            for rows in self._read(number):
                yield from rows

    def digest(self) -> str:
        """Digest what the rows say, in hexadecimal: two runs that came to the same have the same.

        Times, attempts and costs are left out: they differ from run to run.
        """
        digest = hashlib.sha256()
        for row in self.rows():
            digest.update(orjson.dumps([row[column] for column in _DIGESTED]) + b"\n")
        return digest.hexdigest()

    def _check_outputs(self) -> None:
        """Open every output once before anything is paid for."""
        for number in range(self._parts() + 1):
            _check_replaceable(self._folder / self._name(number))
        for name in (MANIFEST_NAME, f"{MANIFEST_NAME}.new", REPORT_NAME):
            _check_replaceable(self._folder / name)
        probe = self._folder / f"_{self._name(0)}.new"
        with _writing(probe):
            self._fill(probe, iter(()))
            _flushed(probe)
            probe.unlink()

    def _parts(self) -> int:
        last = self._journal.last_position()
        return part_of(last) + 1 if last else 0

    def _read(self, number: int) -> Iterator[list[dict[str, Any]]]:
        """Read the finished rows of a part, so many at a time that memory stays small."""
        first, last = rows_of_part(number)
        last = min(last, self._journal.last_position())
        for begin in range(first, last + 1, PART_ROWS):
            raw = self._journal.rows(begin, min(last, begin + PART_ROWS - 1))
            if raw:
                yield self._with_details([self._row(one) for one in raw])

    def _with_details(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._details is None:
            return rows
        nothing = dict.fromkeys(self._details.columns)
        details = self._details.read([row["id"] for row in rows])
        return [{**row, **details.get(row["id"], nothing)} for row in rows]

    def _row(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        pays = raw["first_id"] == raw["id"]
        picture = raw["picture"]
        is_sent = picture is not None and raw["first_id"] is not None
        ended = raw["ended"]
        return {
            "id": raw["id"],
            "source": raw["source"],
            "description": raw["description"],
            "status": State(raw["state"]).name.lower(),
            "error_class": raw["error_class"],
            "error": raw["error"],
            "attempts": (raw["attempts"] or 0) if pays else 0,
            "cost_usd": float(raw["images_billed"] * self._price) if pays else 0.0,
            "images_in_doubt": raw["images_in_doubt"] if pays else 0,
            "duplicate_of": None if pays else raw["first_id"],
            "sha256": image_digest(picture) if is_sent else None,
            "width": raw["width"],
            "height": raw["height"],
            "seconds": raw["seconds"],
            "prompt_id": self._job.prompt_id,
            "model": self._job.asking.model,
            "time": None if ended is None else datetime.fromtimestamp(ended, timezone.utc),
            "removed": bool(raw["removed"]),
        }

    def _name(self, number: int) -> str:
        return f"part-{number:05d}.{self._kind}"

    def _write(self, number: int) -> tuple[str, int, int, str]:
        name = self._name(number)
        path = self._folder / name
        new = self._folder / f"_{name}.new"
        with _writing(path):
            count = self._fill(new, self._read(number))
            size, sha256 = _flushed(new)
            new.replace(path)
        return name, count, size, sha256

    def _fill(self, path: Path, chunks: Iterator[list[dict[str, Any]]]) -> int:
        if self._kind == "parquet":
            return _write_parquet(path, chunks, self._columns)
        return _write_jsonl(path, chunks)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Report an output that cannot be written in the words of the system."""
    try:
        yield
    except (OSError, ValueError) as failure:  # ValueError: pyarrow's own errors
        reason = getattr(failure, "strerror", None) or failure
        message = f"The results {path} cannot be written: {reason}."
        raise ConfigurationError(message) from None


def check_format(kind: str) -> None:
    """Look whether results can be written in a format, before anything is paid."""
    if kind not in {"parquet", "jsonl"}:
        message = f"Results are written as 'parquet' or as 'jsonl', not as {kind!r}."
        raise ConfigurationError(message)
    if kind == "parquet":
        _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to load
    except ModuleNotFoundError as missing:
        message = (
            "Parquet needs pyarrow, which is not installed: pip install"
            ' "phospho-multimodal[batch]". Or take jsonl.'
        )
        raise ImportError(message) from missing
    return pa


def _check_replaceable(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        message = f"The results need the name {path}, which is a folder. Nothing was sent. Move it."
        raise ConfigurationError(message)


def _schema(columns: Mapping[str, str]) -> Any:
    pyarrow = _pyarrow()
    time = pyarrow.timestamp("us", tz="UTC")
    return pyarrow.schema(
        [
            (name, time if kind == "timestamp" else getattr(pyarrow, kind)())
            for name, kind in columns.items()
        ]
    )


def _write_parquet(
    path: Path, chunks: Iterator[list[dict[str, Any]]], columns: Mapping[str, str]
) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = _schema(columns)
    kept = columns.keys() - COLUMNS.keys()
    count = 0
    # pyarrow takes a path with a colon in it for a URL, so it gets an open file.
    with path.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
        for chunk in chunks:
            rows = [{**row, **{name: _to_text(row[name]) for name in kept}} for row in chunk]
            writer.write_table(_pyarrow().Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _to_text(value: object) -> str | None:
    """Write a kept value as a text: all parts need one type, whatever their rows hold."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _write_jsonl(path: Path, chunks: Iterator[list[dict[str, Any]]]) -> int:
    count = 0
    with path.open("wb") as file:
        for rows in chunks:
            file.writelines(orjson.dumps(row) + b"\n" for row in rows)
            count += len(rows)
    return count


def _flushed(path: Path) -> tuple[int, str]:
    """Have a file on the disk before it takes its name, and tell its size and digest."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return digest_file(file)


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == size and digest_file(file) == (size, sha256)
    except OSError:
        return False
