"""Recognize the type of a file, and find images that can be sent byte for byte.

This needs Pillow only for a JPEG without metadata. Such a file is decoded once, since its segments
do not show whether all pixels are there.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from phospho_multimodal.images.jpeg import decodes, read_structure

__all__ = ["PassthroughImage", "find_passthrough", "sniff"]

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"\x28\0\0\0", "a Windows bitmap without its file header (DIB)"),
    (0, b"II*\x00\x10\x00\x00\x00CR\x02\x00", "a Canon raw file (CR2)"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    *((4, b"ftyp" + brand, "HEIF") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    # These are not supported. Their names are for the error.
    (4, b"ftypcrx", "a Canon raw file (CR3)"),
    (0, b"IIRO", "an Olympus raw file (ORF)"),
    (0, b"IIRS", "an Olympus raw file (ORF)"),
    (0, b"MMOR", "an Olympus raw file (ORF)"),
    (0, b"IIU\x00", "a Panasonic raw file (RW2)"),
    (0, b"FUJIFILMCCD-RAW", "a Fujifilm raw file (RAF)"),
    (6, b"HEAPCCDR", "a Canon raw file (CRW)"),
    (0, b"FOVb", "a Sigma raw file (X3F)"),
    (0, b"\x00MRM", "a Minolta raw file (MRW)"),
    (128, b"DICM", "a DICOM file"),
    (0, b"qoif", "a QOI image"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"#?RGBE", "a Radiance HDR image"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"gimp xcf", "a GIMP file (XCF)"),
    (0, b"icns", "a macOS icon"),
    (0, b"AT&TFORM", "a DjVu document"),
    (0, b"II\xbc\x01", "a JPEG XR image"),
    (0, b"BPG\xfb", "a BPG image"),
    (0, b"farbfeld", "a farbfeld image"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document"),
    *(
        (0, b"P" + kind + space, "a PNM image")
        for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"7")
        for space in (b"\n", b" ", b"\r")
    ),
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
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
)

# A comment ends at its first "-->". Otherwise matching would take exponential time.
_SVG = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*|<!DOCTYPE[^>]*>\s*)*<svg\b", re.DOTALL
)

_TEXT = re.compile(rb"[\t\n\f\r\x1b\x20-\x7e]*")
"""A file full of zeros is not text."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# All other chunks are metadata, alpha, animation, or change colors.
_PNG_PLAIN_CHUNKS = frozenset({b"IHDR", b"IDAT", b"IEND", b"sRGB", b"gAMA"})
_PNG_GREY_OR_RGB = frozenset({0, 2})
_USUAL_GAMMA = (43_000, 48_000)
"""The range of a gAMA chunk that means sRGB."""
_HIGHEST_FILTER = 4
# The seven passes of an interlaced image: first column and row, and the steps to the next ones.
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
class PassthroughImage:
    """An upright JPEG or PNG without metadata, alpha, or anything after its end."""

    format: str
    width: int
    height: int

    def fits(self, max_side: int) -> bool:
        """Whether neither side exceeds the limit."""
        return max(self.width, self.height) <= max_side


def sniff(data: bytes) -> str | None:
    """Name the type of a file by its first bytes: as Pillow does, in words, or `None`."""
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            brands = data[8:64] if magic == b"ftyp" or name == "HEIF" else b""
            if b"avif" in brands:
                return "AVIF"
            return "HEIF" if b"mif1" in brands or b"heic" in brands else name
    if _SVG.match(data[:4096]):
        return "an SVG drawing"
    return "text" if _TEXT.fullmatch(data[:512]) else None


def find_passthrough(data: bytes, max_side: int) -> PassthroughImage | None:
    """Return format and size of a file that can be sent byte for byte, otherwise `None`."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _plain_jpeg(data, max_side)
        if data.startswith(_PNG_SIGNATURE):
            return _plain_png(data, max_side)
    except IndexError:  # cut off in the middle of a segment
        return None
    return None


def _plain_jpeg(data: bytes, max_side: int) -> PassthroughImage | None:
    """Check that a JPEG has no metadata and nothing after its end, and that it can be decoded."""
    structure = read_structure(data, only_plain=True)
    found = PassthroughImage("JPEG", structure.width, structure.height)
    if not (structure.is_plain and structure.has_tables and found.fits(max_side)):
        return None
    is_grey_or_rgb = len(structure.sampling) in {1, 3}
    ends = structure.end == len(data) - 2 and data.endswith(b"\xff\xd9")
    return found if is_grey_or_rgb and ends and decodes(data, structure) else None


def _plain_png(data: bytes, max_side: int) -> PassthroughImage | None:
    """Check all chunks of a PNG and their checksums, and decompress the rows to count them."""
    position = len(_PNG_SIGNATURE)
    found: PassthroughImage | None = None
    rows = _PngRows()
    names_srgb = other_gamma = False
    while True:
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if kind not in _PNG_PLAIN_CHUNKS or end > len(data):
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
        names_srgb |= kind == b"sRGB"
        if kind == b"gAMA":
            other_gamma = not _USUAL_GAMMA[0] < int.from_bytes(content, "big") < _USUAL_GAMMA[1]
        if kind == b"IEND":
            whole = end == len(data) and rows.complete
            return found if whole and (names_srgb or not other_gamma) else None
        position = end


class _PngRows:
    """Decompresses the rows of a PNG and checks their number, without keeping them."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj()
        self._passes: list[tuple[int, int]] = []
        self._done = 0

    @property
    def complete(self) -> bool:
        """Whether all rows were there, with the right checksum."""
        return not self._passes and self._stream.eof

    def expect(self, header: bytes) -> None:
        """Calculate the length and the number of all rows, each with a byte for its filter."""
        width, height = int.from_bytes(header[0:4], "big"), int.from_bytes(header[4:8], "big")
        samples = 3 if header[9] == 2 else 1  # noqa: PLR2004 - the colour type of RGB
        passes = _ADAM7 if header[12] else ((0, 0, 1, 1),)
        for left, top, every_x, every_y in passes:
            columns, lines = -(-(width - left) // every_x), -(-(height - top) // every_y)
            if columns > 0 and lines > 0:
                self._passes.append((1 + columns * samples, lines))

    def unpack(self, packed: memoryview) -> bool:
        """Decompress more rows; return `False` if they are broken or too many."""
        try:
            waiting: bytes | memoryview = packed
            while waiting:
                if not self._take(self._stream.decompress(waiting, _UNPACKED_AT_ONCE)):
                    return False
                waiting = self._stream.unconsumed_tail
        except zlib.error:
            return False
        return not self._stream.unused_data

    def _take(self, rows: bytes) -> bool:
        """Count rows, and check that each begins with a valid filter."""
        while rows:
            if not self._passes:
                return False
            length, lines = self._passes[0]
            part, rows = rows[: length * lines - self._done], rows[length * lines - self._done :]
            if max(part[-self._done % length :: length], default=0) > _HIGHEST_FILTER:
                return False
            self._done += len(part)
            if self._done == length * lines:
                self._passes.pop(0)
                self._done = 0
        return True


def _png_header(header: bytes) -> PassthroughImage | None:
    width = int.from_bytes(header[0:4], "big")
    height = int.from_bytes(header[4:8], "big")
    eight_bits, colour = header[8] == 8, header[9]  # noqa: PLR2004 - bits a sample
    if not (eight_bits and colour in _PNG_GREY_OR_RGB and width and height):
        return None
    return PassthroughImage("PNG", width, height)
