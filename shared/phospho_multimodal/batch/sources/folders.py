"""The images in a folder, local or in a store: all, or the ones that match a pattern."""

from __future__ import annotations

import fnmatch
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from phospho_multimodal.batch.sources.items import (
    Item,
    count_skipped,
    file_item,
    is_image,
    printable,
)
from phospho_multimodal.batch.sources.remote import (
    AnyPath,
    RemoteFile,
    failure_reason,
    import_fsspec,
)
from phospho_multimodal.errors import ConfigurationError

__all__ = ["EXCLUDED", "Files", "expand_braces", "has_wildcard"]

EXCLUDED = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),  # Synology and QNAP
    *("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"),
)
"""Folders that a NAS or a system fills with thumbnails and with deleted files."""

_WILDCARD = re.compile(r"[*?[]")
_BRACES = re.compile(r"\{(?:(\d{1,9})\.\.(\d{1,9})(?:\.\.(\d{1,9}))?|([^{}]*,[^{}]*))\}")
_MAX_PATTERNS = 100_000
_ANY_DEPTH = "**"
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime")


_File: TypeAlias = tuple[str, str | None, int | None]  # path, stamp and size


class _Entry(NamedTuple):
    """A file or folder as its folder lists it."""

    name: str
    is_folder: bool
    is_link: bool = False
    stamp: str | None = None
    size: int | None = None


class Files:
    """The files below a folder that match one of some patterns, sorted by their paths.

    A new file changes no id: ids are paths below the folder. A pattern matches a hidden name only
    if the pattern says the dot. Patterns with `**` do not enter folders that are links.
    """

    def __init__(
        self,
        base: AnyPath,
        patterns: Iterable[str],
        name: str,
        *,
        exclude: Sequence[str] = (),
        follow_links: bool = False,
    ) -> None:
        """Compile the patterns; nothing is listed yet."""
        glob_translate = import_fsspec().utils.glob_translate
        self.name = name
        self.skipped: Counter[str] = Counter()
        self.base = base
        self._exclude = (*EXCLUDED, *exclude)
        self._patterns = [tuple(p.split("/")) for p in patterns]
        self._patterns = [(*p, "*") if p[-1] == _ANY_DEPTH else p for p in self._patterns]
        self._follow_links = follow_links
        self._is_bounded = not any(_ANY_DEPTH in p for p in self._patterns)
        self._hidden = [part for p in self._patterns for part in p if part.startswith(".")]
        try:
            self._matchers = [
                (re.compile(glob_translate("/".join(p))), _says_suffix(p[-1]))
                for p in self._patterns
            ]
        except ValueError as failure:
            message = f"The {name} cannot be used: {failure}. Nothing was sent."
            raise ConfigurationError(message) from None

    def __iter__(self) -> Iterator[Item]:
        self.skipped.clear()
        for relative, stamp, size in _sorted(self._walk()):
            path = self.base / relative
            shown = printable(relative)
            if isinstance(path, RemoteFile):
                image: Any = replace(path, size=size)
                yield Item(shown, str(path), image, stamp)
            else:
                yield file_item(shown, path, str(path))

    def paths(self) -> Iterator[str]:
        """Return the sorted paths of the files below the folder, with `/`."""
        return (relative for relative, *_ in _sorted(self._walk()))

    def is_empty(self) -> bool:
        """Return whether no file matches; the listing ends at the first match."""
        return next(self._walk(), None) is None

    def _walk(self) -> Iterator[_File]:
        """List every folder that may hold a match, in any order."""
        folders = [""]
        while folders:
            above = folders.pop()
            try:
                for entry in _list(self.base / above):
                    relative = above + entry.name
                    if self._is_excluded(relative, entry.name):
                        self.skipped["excluded names"] += 1
                    elif not entry.is_folder:
                        if self._is_wanted(relative, entry.name):
                            yield relative, entry.stamp, entry.size
                    elif self._is_entered(relative, entry):
                        folders.append(relative + "/")
            except OSError as failure:
                message = (
                    f"The folder {self.base / above} cannot be read: {failure_reason(failure)}."
                )
                raise ConfigurationError(message) from None

    def _is_excluded(self, relative: str, name: str) -> bool:
        return any(
            fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(relative, pattern)
            for pattern in self._exclude
        )

    def _is_hidden(self, name: str) -> bool:
        return name.startswith(".") and not any(fnmatch.fnmatch(name, p) for p in self._hidden)

    def _is_wanted(self, relative: str, name: str) -> bool:
        may_be_image = is_image(name) and not self._is_hidden(name)
        for matcher, says_suffix in self._matchers:
            wanted = may_be_image or (says_suffix and not self._is_hidden(name))
            if wanted and matcher.match(relative):
                return True
        if may_be_image:
            self.skipped["images that the pattern does not name"] += 1
        else:
            count_skipped(self.skipped, name)
        return False

    def _is_entered(self, relative: str, entry: _Entry) -> bool:
        reason = "folders that were not searched"
        if self._is_hidden(entry.name):
            reason = "hidden folders"
        elif entry.is_link and not self._is_followed(relative):
            reason = "linked folders"
        elif any(_may_lead_to(relative.split("/"), pattern) for pattern in self._patterns):
            return True
        self.skipped[reason] += 1
        return False

    def _is_followed(self, relative: str) -> bool:
        """Return whether a link is entered; a link to a folder above it would never end."""
        link = self.base / relative
        if self._is_bounded or isinstance(link, RemoteFile):
            return True
        target = link.resolve()
        passed = {folder.resolve() for folder in link.parents}
        return self._follow_links and not (
            target in passed or target in link.parent.resolve().parents
        )


def _list(folder: AnyPath) -> Iterator[_Entry]:
    """List a folder; a local one as a stream, since it may have more files than memory holds."""
    if not isinstance(folder, RemoteFile):
        with os.scandir(folder) as entries:
            for entry in entries:
                yield _Entry(entry.name, _is_folder(entry), entry.is_symlink())
        return
    prefix = folder.path.rstrip("/") + "/"
    for info in folder.list():
        path = str(info["name"]).rstrip("/")
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and name and "/" not in name:
            is_folder = info["type"] == "directory"
            yield _Entry(name, is_folder, stamp=_version(info), size=info.get("size"))


def _version(info: dict[str, object]) -> str | None:
    """Return what changes when an object of a store does; no digest of its content is known."""
    known = [str(info[key]) for key in _VERSION_KEYS if info.get(key)]
    return f"v:{info.get('size')}-{known[0]}" if known else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def _may_lead_to(folder: Sequence[str], pattern: Sequence[str]) -> bool:
    for name, part in zip(folder, pattern, strict=False):
        if part == _ANY_DEPTH:
            return True
        if not fnmatch.fnmatch(name, part):
            return False
    return len(folder) < len(pattern)


def _says_suffix(part: str) -> bool:
    suffix = PurePosixPath(part).suffix
    return not has_wildcard(part) or (bool(suffix) and not has_wildcard(suffix))


def _sorted(files: Iterator[_File]) -> Iterator[_File]:
    """Sort files by their paths in a temporary database, which may be larger than memory."""
    coding = ("utf-8", "surrogatepass")  # a name that is not UTF-8 has lone surrogates
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as database:
        database.execute("CREATE TABLE files (path BLOB PRIMARY KEY, stamp, size) WITHOUT ROWID")
        database.execute("BEGIN")
        rows = ((path.encode(*coding), stamp, size) for path, stamp, size in files)
        database.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, ?)", rows)
        for path, stamp, size in database.execute("SELECT * FROM files ORDER BY path"):
            yield path.decode(*coding), stamp, size


def has_wildcard(text: str) -> bool:
    """Return whether a text has one of `*`, `?`, `[`."""
    return _WILDCARD.search(text) is not None


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..012}`, as shards are named, and `{train,test}`."""
    expanded = list(islice(_expand(pattern), _MAX_PATTERNS + 1))
    if len(expanded) > _MAX_PATTERNS:
        message = f"The pattern stands for more than {_MAX_PATTERNS:,} files. Use a `*`."
        raise ConfigurationError(message)
    return list(dict.fromkeys(expanded))


def _expand(pattern: str) -> Iterator[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    for option in _options(braces):
        yield from _expand(pattern[: braces.start()] + option + pattern[braces.end() :])


def _options(braces: re.Match[str]) -> Iterable[str]:
    if braces[4] is not None:
        return braces[4].split(",")
    ends = (braces[1], braces[2])
    first, last = map(int, ends)
    step = int(braces[3] or 1) or 1
    is_padded = any(end.startswith("0") and end != "0" for end in ends)
    width = max(map(len, ends)) if is_padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)
