"""The chunks of a PNG file: those that its pixels need, and nothing that can stop a decoder."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from phospho_multimodal.errors import ImageError

__all__ = ["PngContent", "read_chunks"]

_SIGNATURE_LENGTH = 8
_FRAME = 12
"""Bytes of a chunk besides its content: length, kind and checksum."""

# What changes pixels, with its least length. Without the chunks of an animation, only its first
# image is left.
_READ_CHUNKS = {b"tRNS": 1, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"eXIf": 1}
_LEAST_KEY = {0: 2, 2: 6, 3: 1}
"""Least length of tRNS, by colour type: grey, RGB and palette."""
_END = b"\0\0\0\0IEND\xaeB`\x82"
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# ImageMagick and others write EXIF data, and so the orientation, into a text chunk.
_EXIF_TEXT = b"Raw profile type exif\0"
_LONGEST_EXIF_TEXT = 256 * 1024
_MOST_UNPACKED = 64 * 1024 * 1024
"""Bytes that all texts and the colour profile may have when they are unpacked."""
_UNPACKED_AT_ONCE = 256 * 1024


@dataclass(frozen=True, slots=True)
class PngContent:
    """What is left of a PNG, and what was taken out of it.

    Attributes:
        data: The file with only the chunks that its pixels need.
        profile: The embedded ICC profile.
        numbers: The colour primaries and the transfer function of a cICP chunk.
        is_narrow: Whether samples reach from 16 to 235, as in video.
        is_animation: Whether there are further frames.
    """

    data: bytes
    profile: bytes | None = None
    numbers: tuple[int, int] | None = None
    is_narrow: bool = False
    is_animation: bool = False


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
    end = _SIGNATURE_LENGTH
    for chunk in _chunks(data):
        end = chunk.end
        ancillary = chunk.kind[0] & 0x20
        if ancillary and not reader.keeps(chunk):
            kept.append(view[start : chunk.start])
            start = end
    unfinished = data[end + 4 : end + 8]
    if unfinished == b"IDAT":  # cut off in the middle of the pixels, which Pillow will say
        kept.append(view[start:])
    else:
        kept += [view[start:end], memoryview(_END)]
    rest = b"".join(kept)
    return PngContent(rest, reader.profile, reader.numbers, reader.is_narrow, reader.is_animation)


class _Reader:
    """Decides about ancillary chunks, and keeps what only this module can read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._unpacked = 0
        self.profile: bytes | None = None
        self.numbers: tuple[int, int] | None = None
        self.is_narrow = False
        self.is_animation = False

    def keeps(self, chunk: _Chunk) -> bool:
        content = memoryview(self._data)[chunk.start + 8 : chunk.end - 4]
        if chunk.kind in _TEXTS:
            return self._keeps_text(chunk, bytes(content))
        if chunk.kind == b"iCCP":
            self._read_profile(chunk, bytes(content))
            return False
        self.is_animation |= chunk.kind == b"fdAT"
        least = _READ_CHUNKS.get(chunk.kind)
        if chunk.kind == b"tRNS":
            least = _LEAST_KEY.get(self._data[25])
        if least is None or len(content) < least or not self._is_sound(chunk):
            return False
        if chunk.kind == b"cICP":
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
