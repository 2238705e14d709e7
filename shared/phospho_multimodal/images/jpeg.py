"""The structure of a JPEG file: its frame, its scans, and whether all of its pixels are there."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

__all__ = ["JpegStructure", "decoder_input", "decodes", "read_structure"]

# A marker that a length follows, or that ends the image. Stuffed zeros and restarts are neither.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_DECODABLE = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
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
        scans: Number of scans.
        scanned: Bytes of compressed data in all scans.
        segments: Number of segments.
        end: Where the end marker stands, or would have to stand.
    """

    frame: int = 0
    precision: int = 0
    width: int = 0
    height: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    missing: dict[int, list[int]] = field(default_factory=dict)
    scans: int = 0
    scanned: int = 0
    segments: int = 0
    end: int = 0

    @property
    def is_progressive(self) -> bool:
        """Whether the image is refined by one scan after the other."""
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
        return usual and len(self.sampling) in {1, 3, 4}

    @property
    def is_complete(self) -> bool:
        """Whether the scans deliver every bit of every component."""
        return bool(self.missing) and not any(map(any, self.missing.values()))

    @property
    def coefficient_bytes(self) -> int:
        """Memory that the decoder needs to collect the coefficients of several scans."""
        if self.scans <= 1 and not self.is_progressive:
            return 0
        columns = max((h for h, _ in self.sampling.values()), default=1) or 1
        rows = max((v for _, v in self.sampling.values()), default=1) or 1
        samples = sum(h * v for h, v in self.sampling.values())
        return 2 * self.width * self.height * samples // (columns * rows)

    def read_frame(self, marker: int, segment: bytes) -> None:
        """Read a frame header."""
        self.frame = marker
        self.precision = segment[0]
        self.height = int.from_bytes(segment[1:3], "big")
        self.width = int.from_bytes(segment[3:5], "big")
        for index in range(6, 6 + 3 * segment[5], 3):
            identifier, factors = segment[index], segment[index + 1]
            self.sampling[identifier] = (factors >> 4, factors & 15)
            # Every bit counts as missing; a sequential scan delivers all of them.
            self.missing[identifier] = [1] * _BAND_COUNT

    def read_scan(self, segment: bytes) -> None:
        """Read a scan header: which bits of which components the scan delivers."""
        count = segment[0]
        first, last, low = segment[1 + 2 * count], segment[2 + 2 * count], segment[3 + 2 * count]
        if not self.is_progressive:
            first, last, low = 0, _BAND_COUNT - 1, 0
        for index in range(count):
            missing = self.missing.get(segment[1 + 2 * index])
            if missing is not None:
                for band in range(first, min(last + 1, _BAND_COUNT)):
                    missing[band] = low & 15
        self.scans += 1


def read_structure(data: bytes) -> JpegStructure:
    """Read the segments of a JPEG up to the end of its image; a video may follow it.

    Args:
        data: The file.

    Returns:
        Its structure, as far as the file goes; reading stops where it becomes excessive.
    """
    structure = JpegStructure(end=len(data))
    marker = _MARKER.search(data, 2)
    while marker is not None and marker[1] not in {b"\xd8", b"\xd9"}:
        start = marker.end()
        end = start + int.from_bytes(data[start : start + 2], "big")
        following = _MARKER.search(data, end)
        structure.segments += 1
        try:
            number = marker[1][0]
            if number in _FRAMES and not structure.frame:
                structure.read_frame(number, data[start + 2 : end])
            elif number == 0xDA:  # noqa: PLR2004 - start of scan
                structure.read_scan(data[start + 2 : end])
                structure.scanned += (following.start() if following else len(data)) - end
        except IndexError:  # the segment is shorter than its content
            break
        if structure.is_excessive:
            break
        marker = following
    if marker is not None:
        structure.end = marker.start()
    return structure


def decoder_input(data: bytes, structure: JpegStructure) -> bytes:
    """Make of a file what a decoder takes if, and only if, all pixels are there.

    Args:
        data: The file.
        structure: Its structure.

    Returns:
        The image without anything after it. A missing end marker makes no difference.
    """
    several = structure.is_progressive or structure.scans > 1
    return data[: structure.end] + (_END if several else _INVALID_CODES)


def decodes(data: bytes) -> bool:
    """Decode a JPEG once, at an eighth of its size, which takes 6 ms for a megabyte.

    Args:
        data: The file.

    Returns:
        Whether all of its pixels are there.
    """
    from PIL.JpegImagePlugin import JpegImageFile  # noqa: PLC0415 - heavy, so only now

    structure = read_structure(data)
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
