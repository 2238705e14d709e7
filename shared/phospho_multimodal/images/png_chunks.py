"""The chunks of a PNG file that its pixels need; every other one could stop Pillow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["PngContent", "read_chunks"]

_SIGNATURE_LENGTH = 8
_FRAME = 12
"""Bytes of a chunk besides its content: length, kind and checksum."""
_SHORTEST = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"eXIf": 1}
"""The ancillary chunks that change pixels, with their least lengths."""
_SHORTEST_TRANSPARENCY = {0: 2, 2: 6, 3: 1}
"""The least length of tRNS, by color type: grey, RGB and palette."""
_END = b"\0\0\0\0IEND\xaeB`\x82"
# ImageMagick and others write EXIF data, and so the orientation, into a text chunk.
_EXIF_TEXT = b"Raw profile type exif\0"
_LONGEST_EXIF_TEXT = 256 * 1024
_LARGEST_PROFILE = 4 * 1024 * 1024


@dataclass(slots=True)
class PngContent:
    """A PNG without the chunks that its pixels do not need, and what those chunks said.

    Attributes:
        data: The file.
        profile: The embedded ICC profile.
        numbers: The colour primaries and the transfer function of a cICP chunk.
        is_narrow: Whether samples reach from 16 to 235, as in video.
        is_animation: Whether there are further frames.
    """

    data: bytes = b""
    profile: bytes | None = None
    numbers: tuple[int, int] | None = None
    is_narrow: bool = False
    is_animation: bool = False


def read_chunks(data: bytes) -> PngContent:
    """Keep the chunks that pixels need. As libpng does, skip damaged ancillary chunks."""
    found = PngContent()
    kept = [memoryview(data)[:_SIGNATURE_LENGTH]]
    end = _SIGNATURE_LENGTH
    for kind, chunk in _chunks(data):
        end += len(chunk)
        is_critical = not kind[0] & 0x20
        if is_critical or _is_needed(kind, chunk, data, found):
            kept.append(chunk)
    # A file that ends within its pixels stays so, since Pillow then reports it.
    kept.append(memoryview(data[end:] if data[end + 4 : end + 8] == b"IDAT" else _END))
    found.data = b"".join(kept)
    return found


def _is_needed(kind: bytes, chunk: memoryview, data: bytes, found: PngContent) -> bool:
    """Tell whether Pillow has to see an ancillary chunk, and note what Pillow does not read."""
    content = bytes(chunk[8:-4][:_LONGEST_EXIF_TEXT]) if kind != b"iCCP" else bytes(chunk[8:-4])
    found.is_animation |= kind == b"fdAT"
    shortest = _SHORTEST_TRANSPARENCY.get(data[25]) if kind == b"tRNS" else _SHORTEST.get(kind)
    is_exif_text = content.startswith(_EXIF_TEXT) and len(chunk) < _LONGEST_EXIF_TEXT
    is_read = kind == b"iCCP" or is_exif_text or (shortest and len(content) >= shortest)
    if not is_read or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    if kind == b"iCCP":
        found.profile = found.profile or _unpack(content.partition(b"\0")[2][1:])
        return False
    if kind == b"cICP":
        found.numbers, found.is_narrow = (content[0], content[1]), content[3] == 0
    return True


def _unpack(packed: bytes) -> bytes | None:
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(packed, _LARGEST_PROFILE)
    except zlib.error:
        return None
    return profile if stream.eof else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Give the kind and the bytes of each chunk that is there to its end, as far as IEND."""
    start = _SIGNATURE_LENGTH
    while start + _FRAME <= len(data):
        end = start + _FRAME + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if end > len(data) or kind == b"IEND":
            return
        yield kind, memoryview(data)[start:end]
        start = end
