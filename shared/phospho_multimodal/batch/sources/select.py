"""Where the inputs of a batch come from: folders, patterns, tables, archives, lists, a pipe."""

from __future__ import annotations

import itertools
import os
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from glob import escape
from numbers import Number
from pathlib import Path, PurePath
from typing import Any, TextIO

from phospho_multimodal.batch.sources.archives import ARCHIVE_SUFFIXES, Archives
from phospho_multimodal.batch.sources.folders import Files, expand_braces, has_wildcard
from phospho_multimodal.batch.sources.items import Item, Source, is_image, printable
from phospho_multimodal.batch.sources.lists import Lines, Listed
from phospho_multimodal.batch.sources.remote import AnyPath, RemoteFile, is_url, open_url
from phospho_multimodal.batch.sources.rows import TABLE_SUFFIXES
from phospho_multimodal.batch.sources.tables import (
    ReadOptions,
    Table,
    column_names,
    is_record,
    open_collection,
    open_table,
)
from phospho_multimodal.errors import ConfigurationError

__all__ = ["Item", "Source", "open_source"]

# What a folder without images may hold instead: shards of a dataset.
_SHARDS = ("**/*.parquet", "**/data-*.arrow", "**/*.tar")
_IMAGEFOLDER = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def open_source(
    source: str | os.PathLike[str] | Iterable[Any],
    *,
    recursive: bool = True,
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    stdin: TextIO | None = None,
    **read_options: Any,
) -> Source:
    """Recognize the kind of a source, and open it.

    Args:
        source: A folder, an image, a table (`.csv`, `.tsv`, `.jsonl`, `.ndjson`, also with `.gz`,
            or `.parquet`), a tar archive, or the URL of any of these. A text may be a pattern, with
            `*`, `?`, `[…]`, `**`, `{000..012}` or `{a,b}`. `-` is standard input, with a path or
            URL a line. A list has images or (id, image) pairs, and its texts are paths or URLs.
        recursive: Whether to look into the folders of a folder.
        exclude: Patterns of file and folder names that a folder or a pattern leaves out.
        follow_links: Whether to look into folders that are links.
        stdin: Instead of `sys.stdin`.
        **read_options: Which columns of tables are read, and how; see `ReadOptions`.

    Returns:
        The inputs. Whether an id comes twice is not checked here.

    Raises:
        ConfigurationError: There is no such source, its kind is unknown, it has no such column,
            or it could be iterated only once.
        ImportError: Parquet without pyarrow, or a store without its package.
    """
    options = ReadOptions(**read_options)
    walk: dict[str, Any] = {"exclude": exclude, "follow_links": follow_links}
    if isinstance(exclude, str):
        message = "exclude must be a list of patterns, got a text. Nothing was sent."
        raise ConfigurationError(message)
    if not isinstance(source, (str, os.PathLike)):
        return _collection(source, options)
    text = os.fspath(source)
    if text == "-":
        _reject(options, "column", "id_column", "fields")
        return Lines(sys.stdin if stdin is None else stdin, options)
    if text[:5].lower() == "data:":
        message = "A data: URL is not a source of images. Nothing was sent. Pass a list of them."
        raise ConfigurationError(message)
    patterns = expand_braces(text) if isinstance(source, str) else [text]
    is_pattern = patterns != [text] or (isinstance(source, str) and _is_pattern(text))
    path = open_url(text, options.storage_options) if is_url(text) else Path(text)
    if is_pattern and (isinstance(path, RemoteFile) or not path.exists()):
        return _pattern_source(text, patterns, options, walk)
    if isinstance(path, RemoteFile):
        is_folder = not (is_image(path.name) or _kind(path.name))
    elif path.exists():
        is_folder = path.is_dir()
    else:
        message = f"There is no {path}. Nothing was sent."
        raise ConfigurationError(message)
    if is_folder:
        return _folder_source(path, options, recursive=recursive, walk=walk)
    return _file_source(path, options)


def _collection(source: Any, options: ReadOptions) -> Source:
    """Open a collection in memory; reject one whose every row would fail."""
    what = type(source).__name__
    if column_names(source) is not None:
        return open_collection(source, options)
    if isinstance(source, array) or (_is_array(source) and not _holds_objects(source)):
        raise _array_error(what)
    listed = Listed(source, options)
    first = listed.first
    if not isinstance(source, Mapping) and (
        is_record(first) or (isinstance(first, Mapping) and options.column is not None)
    ):
        return open_collection(source, options)
    if _is_array(first):
        what = f"{what} of {type(first).__name__}"
        raise _array_error(what)
    if column_names(first) is not None or is_record(first):
        message = (
            f"The {what} holds a {type(first).__name__}, which is not an image. Nothing was sent."
            " Rows with fields are a list of mappings or a data frame, with column=."
        )
        raise ConfigurationError(message)
    _reject(options, "column", "id_column", "fields")
    return listed


def _is_array(value: object) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, str)


def _array_error(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"A {what} is not a list of images. Nothing was sent. Pass a list of PIL images:"
        " PIL.Image.fromarray(array)."
    )


def _holds_objects(values: Any) -> bool:
    """Return whether an array or a series holds one path or object after another, not numbers."""
    if len(values.shape) != 1:
        return False
    first = next(iter(values), None)
    return isinstance(first, str) or not (isinstance(first, Number) or hasattr(first, "shape"))


def _reject(options: ReadOptions, *names: str) -> None:
    """Reject options that would have no effect."""
    for name in names or ("column", "id_column", "root", "fields"):
        value = getattr(options, name)
        if name == "fields" and value:
            message = (
                f"The prompt or `keep` names the field {value[0]!r}, and this source has no fields."
                f" Nothing was sent. In a prompt, {{{{{value[0]}}}}} stands for the braces."
            )
            raise ConfigurationError(message)
        if value not in (None, ()):
            message = f"`{name}` has no effect on this source, only on tables. Nothing was sent."
            raise ConfigurationError(message)


def _folder_source(
    folder: AnyPath, options: ReadOptions, *, recursive: bool, walk: Mapping[str, Any]
) -> Source:
    """Open a folder of images, or of shards if it holds no image."""
    name = f"folder {folder}"
    files = Files(folder, ["**" if recursive else "*"], name, **walk)
    if files.is_empty():
        for pattern in _SHARDS if recursive else ():
            if not Files(folder, [pattern], name, **walk).is_empty():
                return _shard_source([(folder, pattern)], f"{pattern} in {name}", options, walk)
    if options.fields:  # a folder of the imagefolder layout
        for table in _IMAGEFOLDER:
            if not Files(folder, [table], name).is_empty():
                named = replace(options, id_column=options.id_column or "file_name")
                return open_table(folder / table, named)
    _reject(options)
    return files


def _file_source(path: AnyPath, options: ReadOptions) -> Source:
    name = path.name.lower()
    if name.endswith(TABLE_SUFFIXES):
        return open_table(path, options)
    if name.endswith(ARCHIVE_SUFFIXES):
        _reject(options, "column", "id_column", "root")
        return Archives([(None, path)], f"archive {path}", options.fields)
    _reject(options)
    if is_image(name):
        if isinstance(path, RemoteFile):
            return Listed([(path.name, path)], options)
        return Files(path.parent, [escape(path.name)], f"image {path}")
    message = (
        f"{path} is not a folder, an image, a table ({', '.join(TABLE_SUFFIXES)}) or an archive"
        f" ({', '.join(ARCHIVE_SUFFIXES)}), by its name. Nothing was sent."
    )
    raise ConfigurationError(message)


def _is_pattern(text: str) -> bool:
    # In a web address, a question mark begins the query.
    return has_wildcard(text.partition("?")[0] if text.lower().startswith("http") else text)


def _pattern_source(
    pattern: str, patterns: Sequence[str], options: ReadOptions, walk: Mapping[str, Any]
) -> Source:
    base, below = _common_folder(patterns, options)
    if not isinstance(base, RemoteFile) and not base.is_dir():
        message = f"There is no folder {base}, which {pattern} begins with. Nothing was sent."
        raise ConfigurationError(message)
    kinds = {_kind(text) for text in patterns}
    if kinds == {""}:
        _reject(options)
        return Files(base, below, f"pattern {pattern}", **walk)
    if len(kinds) > 1:
        message = f"{pattern} names files of several kinds. Nothing was sent. Use one at a time."
        raise ConfigurationError(message)
    return _shard_source([(base, one) for one in below], pattern, options, walk)


def _common_folder(patterns: Sequence[str], options: ReadOptions) -> tuple[AnyPath, list[str]]:
    """Split patterns into the folder that they share, and the patterns below that folder."""
    scheme, found, _ = patterns[0].partition("://")
    start = scheme + found if is_url(patterns[0]) else ""
    texts = [text.removeprefix(start) for text in patterns]
    parts = [PurePath(text).parts for text in texts]
    if len({PurePath(text).is_absolute() for text in texts}) > 1:
        message = "The pattern names absolute and relative paths. Nothing was sent."
        raise ConfigurationError(message)
    fixed = [
        next((i for i, part in enumerate(path) if has_wildcard(part)), len(path) - 1)
        for path in parts
    ]
    shared = 0
    while all(shared < end for end in fixed) and len({path[shared] for path in parts}) == 1:
        shared += 1
    below = ["/".join(path[shared:]) for path in parts]
    if start:
        folder = start + "/".join(parts[0][:shared])
        return open_url(folder, options.storage_options), below
    return Path(*parts[0][:shared]), below


def _kind(pattern: str) -> str:
    if pattern.lower().endswith(ARCHIVE_SUFFIXES):
        return "archive"
    return "table" if pattern.lower().endswith(TABLE_SUFFIXES) else ""


def _shard_source(
    patterns: Sequence[tuple[AnyPath, str]],
    name: str,
    options: ReadOptions,
    walk: Mapping[str, Any],
) -> Source:
    shards = [
        (shard, base / shard) for base, pattern in patterns for shard in _find(base, pattern, walk)
    ]
    if _kind(patterns[0][1]) == "archive":
        _reject(options, "column", "id_column", "root")
        cut = [(_without(ARCHIVE_SUFFIXES, shard), path) for shard, path in shards]
        return Archives(cut, f"{len(cut)} archives {name}", options.fields)
    tables = [
        open_table(path, options, prefix=_without(TABLE_SUFFIXES, shard) + "/")
        for shard, path in shards
    ]
    return _Tables(tables, f"{len(shards)} tables {name}")


def _find(base: AnyPath, pattern: str, walk: Mapping[str, Any]) -> Iterator[str]:
    """Find the files of a pattern; a name without a wildcard must exist."""
    if any(has_wildcard(part) for part in pattern.split("/")):
        yield from Files(base, [pattern], f"pattern {pattern}", **walk).paths()
    elif isinstance(base, RemoteFile) or (base / pattern).is_file():
        yield pattern
    else:
        message = f"There is no {base / pattern}. Nothing was sent."
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
