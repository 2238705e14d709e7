"""Sorting more names than memory should hold: a folder can have a million files."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

__all__ = ["sorted_names"]

_TOGETHER = 4096  # names sorted in memory
_BLOCK = 4096  # bytes read at once of each sorted run


def sorted_names(names: Iterable[str]) -> Iterator[str]:
    """Sort names of files; many go through a temporary file in sorted runs that are merged.

    (What is on the shelf for this sorts lines, and a name may hold a line feed.)

    Args:
        names: None of them holds a NUL, which no file system allows.

    Yields:
        The same, in the order of their characters.
    """
    spill: IO[bytes] | None = None
    runs: list[tuple[int, int]] = []
    held: list[str] = []
    for name in names:
        held.append(name)
        if len(held) == _TOGETHER:
            if spill is None:
                spill = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
            begin = spill.tell()
            spill.writelines(_encoded(one) for one in sorted(held))
            runs.append((begin, spill.tell()))
            held.clear()
    held.sort()
    if spill is None:
        yield from held
        return
    with spill:
        spill.flush()
        yield from heapq.merge(held, *(_run(spill, begin, end) for begin, end in runs))


def _run(spill: IO[bytes], begin: int, end: int) -> Iterator[str]:
    rest = b""
    while begin < end:
        spill.seek(begin)
        block = spill.read(min(_BLOCK, end - begin))
        begin += len(block)
        *whole, rest = (rest + block).split(b"\0")
        for name in whole:
            yield name.decode("utf-8", "surrogateescape")


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape") + b"\0"
