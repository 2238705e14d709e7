"""Where the inputs of a batch come from: folders, patterns, tables, archives, lists, a pipe."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from glob import escape
from numbers import Number
from pathlib import Path
from typing import Any, TextIO

from phospho_multimodal.batch.sources.archives import ARCHIVE_SUFFIXES, Archives
from phospho_multimodal.batch.sources.folders import (
    Files,
    expand_braces,
    has_wildcard,
    split_pattern,
)
from phospho_multimodal.batch.sources.items import Item, Source, is_picture, make_item, printable
from phospho_multimodal.batch.sources.records import Records, column_names, is_record
from phospho_multimodal.batch.sources.tables import TABLE_SUFFIXES, Table
from phospho_multimodal.errors import ConfigurationError

__all__ = ["Item", "Limited", "Source", "open_source"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", re.IGNORECASE)


def open_source(
    source: str | os.PathLike[str] | Iterable[Any],
    *,
    column: str | None = None,
    id_column: str | None = None,
    root: Path | None = None,
    recursive: bool = True,
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    stdin: TextIO | None = None,
) -> Source:
    """Tell what was handed over, and open it.

    Args:
        source: A folder; a picture; a table (`.csv`, `.tsv`, `.jsonl`, `.ndjson`, also with
            `.gz`, or `.parquet`); a tar archive; a text that is a pattern of any of these, with
            `*`, `?`, `[…]`, `**`, `{000..012}` or `{a,b}`; `-` for standard input, with a path or
            URL a line; or a list of images or of (id, image) pairs, where a text is a path or URL.
        column: The table's column of pictures; the field of a data frame, a dataset or a list of
            mappings, which need it.
        id_column: The table's column of ids; without it they are numbers from 0.
        root: What the paths of a table, of standard input or of a list are relative to.
        recursive: Whether to look into the folders of a folder.
        exclude: Patterns of file and folder names that a folder or a pattern leaves out.
        follow_links: Whether to look into folders that are links.
        stdin: Instead of `sys.stdin`.

    Returns:
        The inputs. It is not checked that no id comes twice.

    Raises:
        ConfigurationError: There is no such thing, nobody knows its kind, it has no such column,
            or it could be iterated only once.
        ImportError: Parquet without pyarrow.
    """
    options = {"column": column, "id_column": id_column, "root": root}
    walk: dict[str, Any] = {"exclude": exclude, "follow_links": follow_links}
    if isinstance(exclude, str):
        message = "exclude must be a list of patterns, got a text. Nothing was sent."
        raise ConfigurationError(message)
    if not isinstance(source, (str, os.PathLike)):
        return _collection(source, options)
    text = os.fspath(source)
    if text == "-":
        _refuse(options, "column", "id_column")
        return _Lines(sys.stdin if stdin is None else stdin, root)
    path = Path(text)
    if _URL.match(text):
        message = "A URL is no source of pictures here. Hand over a list of URLs, or a table."
        raise ConfigurationError(message)
    if path.is_dir():
        _refuse(options, *options)
        return Files(path, [("**",) if recursive else ("*",)], f"folder {path}", **walk)
    if path.exists():
        return _file_source(path, options)
    patterns = expand_braces(text)
    is_pattern = isinstance(source, str) and (patterns != [text] or has_wildcard(text))
    if not is_pattern:
        message = f"There is no {path}."
        raise ConfigurationError(message)
    return _pattern_source(text, patterns, options, walk)


def _collection(source: Any, options: Mapping[str, Any]) -> Source:
    """Open what is in memory; what could only fail in every row is rejected."""
    what = type(source).__name__
    if column_names(source) is not None:
        return Records(source, **options)
    if isinstance(source, array) or (_is_array(source) and not _holds_objects(source)):
        raise _array_error(what)
    listed = _Listed(source, options["root"])
    first = listed.first
    if not isinstance(source, Mapping) and (
        is_record(first) or (isinstance(first, Mapping) and options["column"] is not None)
    ):
        return Records(source, **options)
    if _is_array(first):
        what = f"{what} of {type(first).__name__}"
        raise _array_error(what)
    if column_names(first) is not None or is_record(first):
        message = (
            f"The {what} holds a {type(first).__name__}, which is no image. Nothing was sent. Rows"
            " with fields are a list of mappings or a data frame, with column=."
        )
        raise ConfigurationError(message)
    _refuse(options, "column", "id_column")
    return listed


def _is_array(value: object) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, str)


def _array_error(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"A {what} is no list of images. Nothing was sent. Pass a list of PIL images:"
        " PIL.Image.fromarray(array)."
    )


def _holds_objects(values: Any) -> bool:
    """Tell whether an array or a series holds one path or object after another, not numbers."""
    if len(values.shape) != 1:
        return False
    first = next(iter(values), None)
    return isinstance(first, str) or not (isinstance(first, Number) or hasattr(first, "shape"))


def _refuse(options: Mapping[str, Any], *names: str) -> None:
    """Refuse what would be passed over in silence."""
    for name in names:
        if options[name] is not None:
            message = f"`{name}` means nothing for this source: it is for tables."
            raise ConfigurationError(message)


def _file_source(path: Path, options: Mapping[str, Any]) -> Source:
    name = path.name.lower()
    if name.endswith(TABLE_SUFFIXES):
        return Table(path, **options)
    _refuse(options, *options)
    if name.endswith(ARCHIVE_SUFFIXES):
        return Archives([(None, path)], f"archive {path}")
    if is_picture(name):
        return Files(path.parent, [(escape(path.name),)], f"picture {path}")
    message = (
        f"{path} is no folder, picture, table ({', '.join(TABLE_SUFFIXES)}) or archive"
        f" ({', '.join(ARCHIVE_SUFFIXES)}), by its name."
    )
    raise ConfigurationError(message)


def _pattern_source(
    pattern: str,
    patterns: Sequence[str],
    options: Mapping[str, Any],
    walk: Mapping[str, Any],
) -> Source:
    split = [split_pattern(text) for text in patterns]
    base = _common([fixed for fixed, _ in split])
    if not base.is_dir():
        message = f"There is no folder {base}, which {pattern} begins with."
        raise ConfigurationError(message)
    kinds = {_kind(text) for text in patterns}
    if kinds == {""}:
        _refuse(options, *options)
        below = [(*fixed.relative_to(base).parts, *parts) for fixed, parts in split]
        return Files(base, below, f"pattern {pattern}", **walk)
    if len(kinds) > 1:
        message = f"{pattern} names things of several kinds. Take them one after the other."
        raise ConfigurationError(message)
    shards = [(name, base / name) for name in _shards(base, split)]
    if kinds == {"archive"}:
        _refuse(options, *options)
        cut = [(_without(ARCHIVE_SUFFIXES, name), path) for name, path in shards]
        return Archives(cut, f"{len(cut)} archives {pattern}")
    return _Tables(
        [
            Table(path, prefix=_without(TABLE_SUFFIXES, name) + "/", **options)
            for name, path in shards
        ],
        f"{len(shards)} tables {pattern}",
    )


def _kind(pattern: str) -> str:
    if pattern.lower().endswith(ARCHIVE_SUFFIXES):
        return "archive"
    return "table" if pattern.lower().endswith(TABLE_SUFFIXES) else ""


def _common(folders: Sequence[Path]) -> Path:
    if len({folder.is_absolute() for folder in folders}) > 1:
        message = "The pattern names absolute and relative paths. Take them one after the other."
        raise ConfigurationError(message)
    texts = [str(folder) for folder in folders]
    return Path(os.path.commonpath(["" if text == "." else text for text in texts]))


def _shards(base: Path, split: Sequence[tuple[Path, tuple[str, ...]]]) -> Iterator[str]:
    """Find the files in the patterns' order; what is named without a wildcard must be there."""
    for fixed, parts in split:
        below = fixed.relative_to(base)
        if any(has_wildcard(part) for part in parts):
            yield from Files(base, [(*map(escape, below.parts), *parts)], "").paths()
        elif (base / below).joinpath(*parts).is_file():
            yield below.joinpath(*parts).as_posix()
        else:
            message = f"There is no {(base / below).joinpath(*parts)}."
            raise ConfigurationError(message)


def _without(suffixes: Sequence[str], name: str) -> str:
    longest = max((s for s in suffixes if name.lower().endswith(s)), key=len, default="")
    return printable(name[: len(name) - len(longest)])


class _Tables:
    """Tables one after the other."""

    def __init__(self, tables: Sequence[Table], name: str) -> None:
        self.name = name
        self.skipped: Counter[str] = Counter()
        self._tables = tables

    def __iter__(self) -> Iterator[Item]:
        return itertools.chain.from_iterable(self._tables)


class Limited:
    """The first inputs of a source, to try a prompt on."""

    def __init__(self, source: Source, limit: int) -> None:
        """Look at nothing yet.

        Args:
            source: The inputs.
            limit: How many of them at most.

        Raises:
            ConfigurationError: The limit is not 1 or greater.
        """
        if limit < 1:
            message = f"limit must be 1 or greater, got {limit!r}. Nothing was sent."
            raise ConfigurationError(message)
        self.name = f"the first {limit:,} of {source.name}"
        self.skipped = source.skipped
        self._source = source
        self._limit = limit

    def __iter__(self) -> Iterator[Item]:
        return itertools.islice(self._source, self._limit)


class _Listed:
    """Images, or (id, image) pairs, of a collection that the caller keeps."""

    def __init__(self, images: Iterable[Any], root: Path | None) -> None:
        what = type(images).__name__
        if isinstance(images, (bytes, bytearray, memoryview)) or not hasattr(images, "__iter__"):
            message = f"A {what} is no source of pictures. Hand over a path, or a list of images."
            raise ConfigurationError(message)
        if isinstance(images, AbstractSet):
            message = "A set has another order in each process, so its numbers are no ids: sort it."
            raise ConfigurationError(message)
        if iter(images) is images:
            message = f"A {what} can be iterated only once, and twice is needed: hand over a list."
            raise ConfigurationError(message)
        self.name = f"{what} of images"
        self.skipped: Counter[str] = Counter()
        self._images = images
        self._root = root
        self.first = _first_of(images)

    def __iter__(self) -> Iterator[Item]:
        images = self._images.items() if isinstance(self._images, Mapping) else self._images
        for number, entry in enumerate(images):
            name, image = f"{number:09d}", entry
            if isinstance(entry, tuple) and len(entry) == 2:  # noqa: PLR2004 - a pair
                name, image = printable(str(entry[0])), entry[1]
            yield make_item(name, image, self._root)


def _first_of(images: Iterable[Any]) -> Any:
    """Look at the first image, without a pass through those that have a place."""
    if isinstance(images, Sequence):
        return images[0] if images else None
    return next(iter(images.values() if isinstance(images, Mapping) else images), None)


class _Lines:
    """A path or URL a line. What came is kept in a file without a name: it comes only once."""

    def __init__(self, stdin: TextIO, root: Path | None) -> None:
        self.name = "standard input"
        self.skipped: Counter[str] = Counter()
        self._root = root
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        weakref.finalize(self, self._file.close)
        binary = getattr(stdin, "buffer", None)
        if binary is not None:  # names that are no UTF-8 as they are
            shutil.copyfileobj(binary, self._file)
        else:
            self._file.writelines(line.encode("utf-8", "surrogateescape") for line in stdin)

    def __iter__(self) -> Iterator[Item]:
        number = position = 0
        while True:
            self._file.seek(position)
            line = self._file.readline()
            if not line:
                return
            position += len(line)
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if text.strip():
                yield make_item(f"{number:09d}", text, self._root)
                number += 1
