"""The structure of a JPEG file: its frame, its scans, and whether all of its pixels are there."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

__all__ = ["JpegStructure", "decoder_input", "decodes", "read_structure"]

# A marker that a length follows, or that ends the image. Stuffed zeros and restarts are neither.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
_START, _END_OF_IMAGE, _SCAN, _APP0, _ADOBE = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
_HUFFMAN_CODES, _QUANTIZATION, _RESTART_INTERVAL = 0xC4, 0xDB, 0xDD
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_DECODABLE = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_JFIF_WITHOUT_THUMBNAIL, _ADOBE_LENGTH = 14, 12
_BAND_COUNT = 64
_EIGHT_BITS = 8

# A progressive JPEG can pass over the whole image again for each 23 bytes of its file. Encoders
# make about ten scans, and a dozen segments besides.
_MOST_SCANS = 100
_MOST_SEGMENTS = 10_000

# libjpeg fills missing data with grey and only warns. Invalid codes in the place of the end marker
# let it finish the last block of a complete scan, but not a scan with missing blocks, which Pillow
# then reports as truncated.
_INVALID_CODES = b"\xff\x00" * 8
_END = b"\xff\xd9"


@dataclass(slots=True)
class JpegStructure:
    """What the segments of a JPEG say.

    Attributes:
        frame: The number of the frame marker, 0 if there is none.
        precision: Bits a sample.
        width: In pixels.
        height: In pixels.
        sampling: Horizontal and vertical sampling of each component, by its identifier.
        missing: For each component, the bits that no scan has delivered yet, by frequency.
        kinds: The markers of the segments so far.
        scans: Number of scans.
        scanned: Bytes of compressed data in all scans.
        segments: Number of segments.
        is_plain: Whether decoding needs all of them, so that none is metadata.
        end: Where the end marker stands, or would have to stand.
    """

    frame: int = 0
    precision: int = 0
    width: int = 0
    height: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    missing: dict[int, list[int]] = field(default_factory=dict)
    kinds: set[int] = field(default_factory=set)
    scans: int = 0
    scanned: int = 0
    segments: int = 0
    is_plain: bool = True
    end: int = 0

    @property
    def is_progressive(self) -> bool:
        """Whether each scan refines the whole image."""
        return self.frame in _PROGRESSIVE

    @property
    def is_excessive(self) -> bool:
        """Whether there are far more parts than an image needs."""
        return self.scans > _MOST_SCANS or self.segments > _MOST_SEGMENTS

    @property
    def is_empty(self) -> bool:
        """Whether the scans have less than a bit for each block of 8 × 8 pixels."""
        return self.scanned * 8 < -(-self.width // 8) * -(-self.height // 8)

    @property
    def is_supported(self) -> bool:
        """Whether Pillow has a decoder for this kind of frame."""
        usual = self.frame in _DECODABLE and self.precision == _EIGHT_BITS
        return usual and len(self.sampling) in {1, 3, 4} and self.height > 0

    @property
    def is_complete(self) -> bool:
        """Whether the scans deliver every bit of every component."""
        return bool(self.missing) and not any(map(any, self.missing.values()))

    @property
    def has_tables(self) -> bool:
        """Whether there are Huffman codes and quantization, as every decoder needs them."""
        return self.kinds >= {_HUFFMAN_CODES, _QUANTIZATION} and self.frame in _HUFFMAN_FRAMES

    @property
    def coefficient_bytes(self) -> int:
        """Memory that the decoder needs to collect the coefficients of several scans."""
        if self.scans <= 1 and not self.is_progressive:
            return 0
        columns = max((h for h, _ in self.sampling.values()), default=1) or 1
        rows = max((v for _, v in self.sampling.values()), default=1) or 1
        samples = sum(h * v for h, v in self.sampling.values())
        return 2 * self.width * self.height * samples // (columns * rows)

    def read_segment(self, kind: int, content: bytes) -> None:
        """Read one segment."""
        self.segments += 1
        self.kinds.add(kind)
        if kind in _FRAMES and not self.frame:
            self._read_frame(kind, content)
        elif kind == _SCAN:
            self._read_scan(content)

    def _read_frame(self, kind: int, content: bytes) -> None:
        self.frame = kind
        self.precision = content[0]
        self.height = int.from_bytes(content[1:3], "big")
        self.width = int.from_bytes(content[3:5], "big")
        for index in range(6, 6 + 3 * content[5], 3):
            identifier, factors = content[index], content[index + 1]
            self.sampling[identifier] = (factors >> 4, factors & 15)
            # Every bit counts as missing; a sequential scan delivers all of them.
            self.missing[identifier] = [1] * _BAND_COUNT

    def _read_scan(self, content: bytes) -> None:
        """Note which bits of which components a scan delivers."""
        count = content[0]
        first, last, low = content[1 + 2 * count : 4 + 2 * count]
        if not self.is_progressive:
            first, last, low = 0, _BAND_COUNT - 1, 0
        for identifier in content[1 : 1 + 2 * count : 2]:
            bits = self.missing.get(identifier, [])
            bits[first : last + 1] = [low & 15] * len(bits[first : last + 1])
        self.scans += 1


def read_structure(data: bytes, *, only_plain: bool = False) -> JpegStructure:
    """Read the segments of a JPEG up to the end of its image; a video may follow the image.

    Reading stops where the structure becomes excessive, and with `only_plain` at metadata.
    """
    structure = JpegStructure(end=len(data))
    marker = _MARKER.search(data, 2)
    while marker is not None and marker[1][0] not in {_START, _END_OF_IMAGE}:
        kind, start = marker[1][0], marker.end()
        end = start + int.from_bytes(data[start : start + 2], "big")
        content = data[start + 2 : end]
        structure.is_plain &= _is_plain(kind, content)
        if only_plain and not structure.is_plain:
            break
        following = _MARKER.search(data, end)
        try:
            structure.read_segment(kind, content)
        except (IndexError, ValueError):  # the segment is shorter than its content
            break
        if structure.is_excessive:
            break
        between = (following.start() if following else len(data)) - end
        if kind == _SCAN:
            structure.scanned += between
        else:
            structure.is_plain &= not between
        marker = following
    if marker is not None:
        structure.end = marker.start()
    return structure


def _is_plain(kind: int, content: bytes) -> bool:
    """Tell whether decoding needs a segment."""
    if kind == _APP0:
        return content.startswith(b"JFIF\0") and len(content) == _JFIF_WITHOUT_THUMBNAIL
    if kind == _ADOBE:
        return content.startswith(b"Adobe") and len(content) == _ADOBE_LENGTH
    tables = {_HUFFMAN_CODES, _QUANTIZATION, _RESTART_INTERVAL}
    return kind in _HUFFMAN_FRAMES | tables or kind == _SCAN


def decoder_input(data: bytes, structure: JpegStructure) -> bytes:
    """Make a file that a decoder accepts if, and only if, all pixels are there.

    Nothing follows its image. A missing end marker makes no difference.
    """
    several = structure.is_progressive or structure.scans > 1
    return data[: structure.end] + (_END if several else _INVALID_CODES)


def decodes(data: bytes, structure: JpegStructure) -> bool:
    """Decode a JPEG at an eighth of its size (6 ms a megabyte) to see if all pixels are there."""
    from PIL.JpegImagePlugin import JpegImageFile  # noqa: PLC0415 - heavy, so only now

    if not structure.is_complete or not structure.is_supported or structure.is_excessive:
        return False
    try:
        image = JpegImageFile(io.BytesIO(decoder_input(data, structure)))
        image.draft(None, (1, 1))
        image.load()
    # Pillow's readers raise a dozen kinds of errors on broken files.
    except Exception:  # noqa: BLE001
        return False
    return True
