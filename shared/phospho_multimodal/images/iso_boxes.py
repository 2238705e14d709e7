"""The boxes of an AVIF or HEIC file: whether all are there, and the colours they name by number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Box", "boxes_are_whole", "color_numbers"]

_HEADER = 8
_LONG_HEADER = 16
_MOST_BOXES = 4096


class Box(NamedTuple):
    """A box: its kind, and where its content begins and ends in the file."""

    kind: bytes
    start: int
    end: int


def boxes_are_whole(data: bytes) -> bool:
    """Tell whether every box of a file is there to its end.

    Args:
        data: The file.

    Returns:
        Whether the file is cut off nowhere.
    """
    end = 0
    for box in _boxes(data, 0, len(data)):
        end = box.end
    return end == len(data)


def color_numbers(data: bytes) -> tuple[int, int] | None:
    """Find the colour primaries and the transfer function of an image, as numbers of ITU-T H.273.

    Args:
        data: The file.

    Returns:
        The two numbers of the primary item's `nclx` property; `None` if there is none.
    """
    try:
        return _color_numbers(data)
    except (IndexError, KeyError, StopIteration):  # the boxes contradict each other
        return None


def _color_numbers(data: bytes) -> tuple[int, int] | None:
    meta = next(box for box in _boxes(data, 0, len(data)) if box.kind == b"meta")
    children = {box.kind: box for box in _boxes(data, meta.start + 4, meta.end)}
    pitm, iprp = children[b"pitm"], children[b"iprp"]
    long_numbers = data[pitm.start] > 0
    primary = _number(data, pitm.start + 4, 4 if long_numbers else 2)
    properties: list[Box] = []
    wanted: set[int] = set()
    for box in _boxes(data, iprp.start, iprp.end):
        if box.kind == b"ipco":
            properties = list(_boxes(data, box.start, box.end))
        elif box.kind == b"ipma":
            wanted |= _associated(data, box, primary)
    for index, box in enumerate(properties, start=1):
        if index in wanted and box.kind == b"colr" and data[box.start : box.start + 4] == b"nclx":
            return _number(data, box.start + 4, 2), _number(data, box.start + 6, 2)
    return None


def _associated(data: bytes, ipma: Box, item: int) -> set[int]:
    """The numbers of an item's properties."""
    id_size = 4 if data[ipma.start] else 2
    index_size = 2 if data[ipma.start + 3] & 1 else 1
    entries = _number(data, ipma.start + 4, 4)
    at = ipma.start + 8
    for _ in range(min(entries, _MOST_BOXES)):
        found = _number(data, at, id_size)
        count = data[at + id_size]
        at += id_size + 1
        if found == item:
            essential = 1 << (8 * index_size - 1)
            places = range(at, at + count * index_size, index_size)
            return {_number(data, place, index_size) & ~essential for place in places}
        at += count * index_size
    return set()


def _boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    for _ in range(_MOST_BOXES):
        if start + _HEADER > end:
            return
        size, header = _number(data, start, 4), _HEADER
        if size == 1:
            size, header = _number(data, start + _HEADER, 8), _LONG_HEADER
        elif size == 0:  # up to the end
            size = end - start
        if size < header or start + size > end:
            return
        yield Box(data[start + 4 : start + 8], start + header, start + size)
        start += size


def _number(data: bytes, start: int, size: int) -> int:
    return int.from_bytes(data[start : start + size], "big")
