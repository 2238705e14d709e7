"""What an image file says of itself: its type, its size, and whether it is clean.

Pure looking at bytes, without Pillow and without decoding, so that a picture which needs no
preparation costs next to nothing.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

__all__ = ["CleanImage", "clean_image", "is_empty_jpeg", "is_endless_jpeg", "sniff"]

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    *((4, b"ftyp" + brand, "HEIF") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    # Not images, or none that can be sent: named so that an error can say what came.
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"PK\x03\x04", "a ZIP archive or Office document"),
    (4, b"ftyp", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"WAVE", "a sound file"),
    (8, b"AVI ", "a video"),
    (0, b"ID3", "a sound file"),
    (0, b"OggS", "a sound or video file"),
    (0, b"\x00\x00\x01\x00", "a Windows icon"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\x00\x00\x00\x0cjP", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
)

# A comment ends at its first end mark: where it could end at any, many of them take for ever.
_SVG = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*|<!DOCTYPE[^>]*>\s*)*<svg\b", re.DOTALL
)

# In entropy-coded data a marker is 0xFF and neither a stuffed zero nor a restart.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: 8-bit Huffman
_JPEG_TABLES = frozenset({0xC4, 0xDB, 0xDD})
_JPEG_NEEDED = frozenset({0xC4, 0xDB})  # the tables of Huffman codes and of quantization
_JFIF_WITHOUT_THUMBNAIL = 16

# A progressive JPEG can pass over the whole picture again for each 23 bytes of its file. Encoders
# make about ten scans, and a dozen segments besides.
_MOST_SCANS = 100
_MOST_SEGMENTS = 10_000
_SEGMENT_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # of those that a length follows
_ADOBE_SEGMENT = 14

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour hints that change no pixel here; every other chunk is metadata, alpha or animation.
_PNG_CLEAN_CHUNKS = frozenset({b"IHDR", b"IDAT", b"IEND", b"sRGB", b"gAMA"})
_PNG_GREY_OR_RGB = frozenset({0, 2})
# The seven passes of an interlaced picture: first column and row, and every how manyth.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_UNPACKED_AT_ONCE = 256 * 1024


@dataclass(frozen=True, slots=True)
class CleanImage:
    """An upright JPEG or PNG without metadata, alpha, or anything after its end."""

    format: str
    width: int
    height: int

    def fits(self, max_side: int) -> bool:
        """Whether it has to be shrunk for no side."""
        return max(self.width, self.height) <= max_side


def sniff(data: bytes) -> str | None:
    """Tell a file's type from its first bytes.

    Args:
        data: The file, or its first 4 kB.

    Returns:
        The format as Pillow names it, words for something that is no such image, or `None`.
    """
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            return "AVIF" if name == "HEIF" and b"avif" in data[16:64] else name
    if _SVG.match(data[:4096]):
        return "an SVG drawing"
    try:
        data[:512].decode("ascii")
    except UnicodeDecodeError:
        return None
    return "text"


def is_endless_jpeg(data: bytes) -> bool:
    """Tell whether a JPEG is made of so many parts that decoding it hardly ends.

    Args:
        data: The file.

    Returns:
        Whether it has more than 100 scans or 10,000 segments; `False` for anything but a JPEG.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    scans = segments = 0
    marker = _SEGMENT_MARKER.search(data, 2)
    # Up to the end of the image: a video may follow it, and means nothing to a decoder.
    while marker is not None and marker[1] != b"\xd9":
        segments += 1
        scans += marker[1] == b"\xda"
        if scans > _MOST_SCANS or segments > _MOST_SEGMENTS:
            return True
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        marker = _SEGMENT_MARKER.search(data, marker.end() + length)
    return False


def is_empty_jpeg(data: bytes, width: int, height: int) -> bool:
    """Tell whether a JPEG has less data than any picture of its size: decoders make it up in grey.

    Args:
        data: The file.
        width: In pixels.
        height: In pixels.

    Returns:
        Whether its scans have less than a bit for each block of 8 × 8 pixels.
    """
    scanned = 0
    marker = _SEGMENT_MARKER.search(data, 2)
    while marker is not None and marker[1] != b"\xd9":
        end = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        following = _SEGMENT_MARKER.search(data, end)
        if marker[1] == b"\xda":
            scanned += (len(data) if following is None else following.start()) - end
        marker = following
    return not _is_filled(width, height, scanned)


def clean_image(data: bytes, max_side: int) -> CleanImage | None:
    """Tell whether a file can be sent byte for byte.

    Args:
        data: The file.
        max_side: Its longest side may have so many pixels.

    Returns:
        Its format and size in pixels, or `None` if it has to be looked at with Pillow.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            clean = _clean_jpeg(data)
            return clean if clean is None or clean.fits(max_side) else None
        if data.startswith(_PNG_SIGNATURE):
            return _clean_png(data, max_side)
    except IndexError:  # cut off in the middle of a segment
        return None
    return None


def _clean_jpeg(data: bytes) -> CleanImage | None:
    """Look through a JPEG's segments; without its tables, or all but empty, it is no picture."""
    position = 2
    found: CleanImage | None = None
    tables: set[int] = set()
    scanned = 0
    while True:
        if data[position] != 0xFF:  # noqa: PLR2004 - every JPEG marker begins with it
            return None
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if marker in _JPEG_FRAMES and found is None:
            found = _jpeg_frame(segment)
        elif marker == 0xDA:  # noqa: PLR2004 - start of scan
            scan = position + 2 + length
            position = _next_marker(data, scan)
            scanned += position - scan
            if data[position + 1] == 0xD9:  # noqa: PLR2004 - end of image
                whole = position + 2 == len(data) and tables >= _JPEG_NEEDED
                filled = found is not None and _is_filled(found.width, found.height, scanned)
                return found if whole and filled else None
            continue
        elif marker in _JPEG_TABLES:
            tables.add(marker)
        elif not _harmless_segment(marker, segment, length):
            return None
        position += 2 + length


def _is_filled(width: int, height: int, scanned: int) -> bool:
    """Tell whether the data of all scans can be enough: a block of 8 × 8 takes a bit at least."""
    return scanned * 8 >= -(-width // 8) * -(-height // 8)


def _next_marker(data: bytes, start: int) -> int:
    match = _JPEG_MARKER.search(data, start)
    if match is None:
        raise IndexError
    return match.start()


def _jpeg_frame(segment: bytes) -> CleanImage | None:
    height = int.from_bytes(segment[1:3], "big")
    width = int.from_bytes(segment[3:5], "big")
    eight_bits, components = segment[0] == 8, segment[5]  # noqa: PLR2004 - bits a sample
    if not (eight_bits and components in {1, 3} and width and height):
        return None
    return CleanImage("JPEG", width, height)


def _harmless_segment(marker: int, segment: bytes, length: int) -> bool:
    """Tell apart what decoding needs (JFIF, Adobe's colour transform) from metadata."""
    if marker == 0xE0:  # noqa: PLR2004 - APP0
        return segment.startswith(b"JFIF\x00") and length == _JFIF_WITHOUT_THUMBNAIL
    return marker == 0xEE and segment.startswith(b"Adobe") and length == _ADOBE_SEGMENT  # noqa: PLR2004


def _clean_png(data: bytes, max_side: int) -> CleanImage | None:
    """Look through a PNG's chunks, each with its checksum, and unpack the rows to count them."""
    position = len(_PNG_SIGNATURE)
    found: CleanImage | None = None
    rows = _PngRows()
    while True:
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if kind not in _PNG_CLEAN_CHUNKS or end > len(data):
            return None
        content = memoryview(data)[position + 8 : end - 4]
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        if kind == b"IHDR":
            found = _png_header(bytes(content))
            rows.expect(bytes(content))
        if found is None or not found.fits(max_side):
            return None
        if kind == b"IDAT" and not rows.unpack(content):
            return None
        if kind == b"IEND":
            return found if end == len(data) and rows.complete else None
        position = end


class _PngRows:
    """Unpacks the rows of a PNG without keeping them: neither fewer nor more than there must be."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj()
        self._left = 0

    @property
    def complete(self) -> bool:
        """Whether all rows were there, and their own checksum right."""
        return self._left == 0 and self._stream.eof

    def expect(self, header: bytes) -> None:
        """Reckon the bytes of all rows, each with one for its filter."""
        width, height = int.from_bytes(header[0:4], "big"), int.from_bytes(header[4:8], "big")
        samples = 3 if header[9] == 2 else 1  # noqa: PLR2004 - the colour type of RGB
        passes = _ADAM7 if header[12] else ((0, 0, 1, 1),)
        for left, top, every_x, every_y in passes:
            columns, lines = -(-(width - left) // every_x), -(-(height - top) // every_y)
            if columns > 0:
                self._left += max(0, lines) * (1 + columns * samples)

    def unpack(self, packed: memoryview) -> bool:
        """Unpack some more; `False` if it is broken, or too much."""
        try:
            waiting: bytes | memoryview = packed
            while waiting:
                self._left -= len(self._stream.decompress(waiting, _UNPACKED_AT_ONCE))
                waiting = self._stream.unconsumed_tail
                if self._left < 0:
                    return False
        except zlib.error:
            return False
        return not self._stream.unused_data


def _png_header(header: bytes) -> CleanImage | None:
    width = int.from_bytes(header[0:4], "big")
    height = int.from_bytes(header[4:8], "big")
    eight_bits, colour = header[8] == 8, header[9]  # noqa: PLR2004 - bits a sample
    if not (eight_bits and colour in _PNG_GREY_OR_RGB and width and height):
        return None
    return CleanImage("PNG", width, height)
