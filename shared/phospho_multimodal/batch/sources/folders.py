"""Pictures in folders: all of one, or those that a pattern names.

The order is that of the paths as text. A file that is added moves no id.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePath
from typing import TypeAlias

from phospho_multimodal.batch.sources.items import (
    Item,
    count_skipped,
    file_item,
    is_picture,
    printable,
)
from phospho_multimodal.batch.sources.sorting import sorted_names
from phospho_multimodal.errors import ConfigurationError

__all__ = ["EXCLUDED", "Files", "expand_braces", "has_wildcard", "split_pattern"]

_WILDCARD = re.compile(r"[*?[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})(?:\.\.(\d{1,9}))?")
_MOST_PATTERNS = 100_000
_ANY_DEPTH = "**"

EXCLUDED = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),  # Synology and QNAP
    *("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"),
)
"""Folders that a NAS or a system fills with thumbnails and with what was deleted."""

# What is left to match of each pattern, at some depth.
_Rest: TypeAlias = frozenset[tuple[str, ...]]


class Files:
    """The files below a folder that one of some patterns matches.

    Hidden files and folders are matched by patterns that begin with a dot only. A folder that is
    a link is entered where a pattern names its level, and never by `**`.
    """

    def __init__(
        self,
        base: Path,
        patterns: Iterable[tuple[str, ...]],
        name: str,
        *,
        exclude: Sequence[str] = (),
        follow_links: bool = False,
    ) -> None:
        """Look at nothing yet.

        Args:
            base: The folder.
            patterns: Each by its parts below the folder. If the last part does not say which
                suffix is wanted, files with the suffix of a picture are.
            name: For messages.
            exclude: Patterns of names, or of paths below the folder, that are left out, files and
                folders, besides those that a NAS or a system fills with copies (`EXCLUDED`).
            follow_links: Whether `**` enters folders that are links.
        """
        self.name = name
        self._exclude = (*EXCLUDED, *exclude)
        self._follow_links = follow_links
        self.skipped: Counter[str] = Counter()
        self._base = base
        self._patterns = _open_ended(patterns)

    def __iter__(self) -> Iterator[Item]:
        self.skipped.clear()
        for relative in self.paths():
            path = self._base / relative
            yield file_item(printable(relative), path, str(path))

    def paths(self) -> Iterator[str]:
        """Find the files.

        Yields:
            Their paths below the folder, with `/`, sorted as texts.

        Raises:
            ConfigurationError: A folder cannot be read.
        """
        levels = [("", *self._listed("", self._patterns))]
        while levels:
            above, names, folders = levels[-1]
            name = next(names, None)
            if name is None:
                levels.pop()
            elif name in folders:
                levels.append((above + name, *self._listed(above + name, folders[name])))
            else:
                yield above + name

    def _listed(self, relative: str, rest: _Rest) -> tuple[Iterator[str], dict[str, _Rest]]:
        """List what is wanted of a folder, folders with the slash that sorts them rightly."""
        folders: dict[str, _Rest] = {}
        names = sorted_names(self._wanted(relative, rest, folders))
        first = next(names, None)  # by now everything was looked at, and `folders` is whole
        return iter(()) if first is None else chain([first], names), folders

    def _wanted(self, relative: str, rest: _Rest, folders: dict[str, _Rest]) -> Iterator[str]:
        try:
            with os.scandir(self._base / relative) as entries:
                for entry in entries:
                    if self._is_excluded(relative, entry.name):
                        self.skipped["excluded names"] += 1
                    elif _is_folder(entry):
                        below = _below(rest, entry.name, linked=self._is_barred(entry))
                        if below:
                            folders[entry.name + "/"] = below
                            yield entry.name + "/"
                        else:
                            self.skipped[_why_not_entered(entry)] += 1
                    elif _wants(rest, entry.name):
                        yield entry.name
                    elif is_picture(entry.name) and not entry.name.startswith("."):
                        self.skipped["images that the pattern does not name"] += 1
                    else:
                        count_skipped(self.skipped, entry.name)
        except OSError as failure:
            message = f"The folder {self._base / relative} cannot be read: {failure.strerror}."
            raise ConfigurationError(message) from None

    def _is_excluded(self, relative: str, name: str) -> bool:
        return any(
            fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(relative + name, pattern)
            for pattern in self._exclude
        )

    def _is_barred(self, entry: os.DirEntry[str]) -> bool:
        """Tell whether `**` stops at a folder: a link, or one that leads in a circle."""
        if not entry.is_symlink():
            return False
        path = Path(entry.path)
        passed = {folder.resolve() for folder in path.parents}
        target = path.resolve()
        return not self._follow_links or target in passed or target in path.parent.resolve().parents


def has_wildcard(text: str) -> bool:
    """Tell whether a text is a pattern for paths.

    Args:
        text: A path, or its part.

    Returns:
        Whether one of `*`, `?`, `[` is in it.
    """
    return _WILDCARD.search(text) is not None


def split_pattern(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """Split a pattern before the first part that is none, or before its last.

    Args:
        pattern: Of paths.

    Returns:
        The folder that is fixed, and the parts to match below it.
    """
    parts = PurePath(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if has_wildcard(part)), len(parts) - 1)
    return Path(*parts[:fixed]), parts[fixed:]


def expand_braces(pattern: str) -> list[str]:
    """Write out `{000..012}`, as shards are named, and `{train,test}`.

    Args:
        pattern: With any number of them.

    Returns:
        Every text that it stands for, in order; braces that are neither stay.

    Raises:
        ConfigurationError: There are more than 100,000.
    """
    done: dict[str, None] = {}  # as an ordered set
    waiting = [pattern]
    while waiting:
        text = waiting.pop()
        options: list[str] = []
        for braces in _BRACES.finditer(text):
            options = _options(braces[1])
            if options:
                waiting += [
                    text[: braces.start()] + o + text[braces.end() :] for o in options[::-1]
                ]
                break
        if not options:
            done[text] = None
        if len(done) + len(waiting) > _MOST_PATTERNS:
            message = f"The pattern stands for more than {_MOST_PATTERNS:,} files. Write a `*`."
            raise ConfigurationError(message)
    return list(done)


def _options(inside: str) -> list[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        return inside.split(",") if "," in inside else []
    first, last = int(span[1]), int(span[2])
    step = int(span[3] or 1) or 1
    padded = (span[1].startswith("0") and span[1] != "0") or (
        span[2].startswith("0") and span[2] != "0"
    )
    width = max(len(span[1]), len(span[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    # One more than are taken is enough to be refused.
    return [f"{number:0{width}d}" for number in numbers[: _MOST_PATTERNS + 1]]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def _why_not_entered(entry: os.DirEntry[str]) -> str:
    if entry.name.startswith("."):
        return "hidden folders"
    return "linked folders" if entry.is_symlink() else "folders that were not searched"


def _open_ended(patterns: Iterable[tuple[str, ...]]) -> _Rest:
    """Add what is left where a `**` stands for no folder at all."""
    rest = set(patterns)
    for pattern in list(rest):
        while len(pattern) > 1 and pattern[0] == _ANY_DEPTH:
            pattern = pattern[1:]  # noqa: PLW2901 - from one to the next
            rest.add(pattern)
    return frozenset(rest)


def _below(rest: _Rest, name: str, *, linked: bool) -> _Rest:
    matching = [pattern for pattern in rest if _matches(pattern[0], name)]
    stay = [pattern for pattern in matching if pattern[0] == _ANY_DEPTH and not linked]
    go_on = [p[1:] for p in matching if p[0] != _ANY_DEPTH and len(p) > 1]
    return _open_ended([*stay, *go_on])


def _wants(rest: _Rest, name: str) -> bool:
    picture = is_picture(name)
    return any(
        len(pattern) == 1 and (picture or _says_suffix(pattern[0])) and _matches(pattern[0], name)
        for pattern in rest
    )


def _matches(part: str, name: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return part == _ANY_DEPTH or fnmatch.fnmatch(name, part)


def _says_suffix(part: str) -> bool:
    suffix = PurePath(part).suffix
    return not has_wildcard(part) or (bool(suffix) and not has_wildcard(suffix))
