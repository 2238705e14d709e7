"""The chunks of a PNG file: those that its pixels need, and nothing that can stop a decoder."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from phospho_multimodal.errors import ImageError

__all__ = ["READ_CHUNKS", "PngContent", "read_chunks"]

_SIGNATURE_LENGTH = 8
_FRAME = 12
"""Bytes of a chunk besides its content: length, kind and checksum."""

# Transparency, colours, orientation and animation. Every other ancillary chunk changes no pixel.
READ_CHUNKS = frozenset(
    {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
)
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# ImageMagick and others write EXIF data, and so the orientation, into a text chunk.
_EXIF_TEXT = b"Raw profile type exif\0"
_LONGEST_EXIF_TEXT = 256 * 1024
_MOST_UNPACKED = 64 * 1024 * 1024
"""Bytes that all texts and the colour profile may have when they are unpacked."""
_UNPACKED_AT_ONCE = 256 * 1024
_CICP_LENGTH = 4


@dataclass(frozen=True, slots=True)
class PngContent:
    """What is left of a PNG, and what was taken out of it.

    Attributes:
        data: The file with only the chunks that its pixels need.
        profile: The embedded ICC profile.
        numbers: The colour primaries and the transfer function of a cICP chunk.
        is_narrow: Whether samples reach from 16 to 235, as in video.
    """

    data: bytes
    profile: bytes | None = None
    numbers: tuple[int, int] | None = None
    is_narrow: bool = False


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    end: int


def read_chunks(data: bytes) -> PngContent:
    """Take everything out of a PNG that its pixels do not need.

    Args:
        data: The file.

    Returns:
        The rest. An ancillary chunk with a wrong checksum is left out, as libpng does.

    Raises:
        ImageError: Texts and profile unpack to more than 64 MB.
    """
    reader = _Reader(data)
    view = memoryview(data)
    kept: list[memoryview] = []
    start = 0  # of what is kept and not yet in the list
    for chunk in _chunks(data):
        ancillary = chunk.kind[0] & 0x20
        if ancillary and not reader.keeps(chunk):
            kept.append(view[start : chunk.start])
            start = chunk.end
    rest = b"".join([*kept, view[start:]]) if kept else data
    return PngContent(rest, reader.profile, reader.numbers, reader.is_narrow)


class _Reader:
    """Decides about ancillary chunks, and keeps what only this module can read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._unpacked = 0
        self.profile: bytes | None = None
        self.numbers: tuple[int, int] | None = None
        self.is_narrow = False

    def keeps(self, chunk: _Chunk) -> bool:
        content = memoryview(self._data)[chunk.start + 8 : chunk.end - 4]
        if chunk.kind in _TEXTS:
            return self._keeps_text(chunk, bytes(content))
        if chunk.kind == b"iCCP":
            self._read_profile(chunk, bytes(content))
            return False
        if chunk.kind not in READ_CHUNKS or not self._is_sound(chunk):
            return False
        if chunk.kind == b"cICP" and len(content) == _CICP_LENGTH:
            self.numbers = (content[0], content[1])
            self.is_narrow = content[3] == 0
        return True

    def _keeps_text(self, chunk: _Chunk, content: bytes) -> bool:
        keyword, _, rest = content.partition(b"\0")
        if chunk.kind == b"zTXt":
            self._unpack(rest[1:], keep=False)
        elif chunk.kind == b"iTXt" and rest[:1] == b"\1":
            self._unpack(rest[2:].split(b"\0", 2)[-1], keep=False)
        exif = keyword + b"\0" == _EXIF_TEXT and len(content) <= _LONGEST_EXIF_TEXT
        return exif and self._is_sound(chunk)

    def _read_profile(self, chunk: _Chunk, content: bytes) -> None:
        packed = content.partition(b"\0")[2][1:]
        profile = self._unpack(packed, keep=self._is_sound(chunk))
        self.profile = self.profile or profile

    def _unpack(self, packed: bytes, *, keep: bool) -> bytes | None:
        """Unpack a stream as far as the limit; without `keep`, only to count."""
        stream = zlib.decompressobj()
        parts: list[bytes] = []
        try:
            while packed:
                part = stream.decompress(packed, _UNPACKED_AT_ONCE)
                packed = stream.unconsumed_tail
                self._unpacked += len(part)
                if self._unpacked > _MOST_UNPACKED:
                    message = (
                        "The PNG file's texts or colour profile unpack to more than 64 MB, as a"
                        " decompression bomb does. Save it again without them."
                    )
                    raise ImageError(message)
                if keep:
                    parts.append(part)
        except zlib.error:
            return None
        return b"".join(parts) if keep and stream.eof else None

    def _is_sound(self, chunk: _Chunk) -> bool:
        """Whether the checksum is right."""
        found = zlib.crc32(memoryview(self._data)[chunk.start + 4 : chunk.end - 4])
        return found == int.from_bytes(self._data[chunk.end - 4 : chunk.end], "big")


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Give the chunks that are there to their end, as far as IEND."""
    start = _SIGNATURE_LENGTH
    while start + _FRAME <= len(data):
        end = start + _FRAME + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if end > len(data) or kind == b"IEND":
            return
        yield _Chunk(kind, start, end)
        start = end
