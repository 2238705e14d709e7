"""The directories of a TIFF file: which one holds the image, and what Pillow cannot read of it."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from phospho_multimodal.errors import ImageError

__all__ = [
    "describe_tags",
    "first_tags",
    "has_unknown_compression",
    "has_unreliable_samples",
    "image_directory",
    "raw_error",
]

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, MAKE = 256, 257, 258, 259, 262, 271
SUBFILE_TYPE, OLD_SUBFILE_TYPE, SUB_DIRECTORIES, DNG_VERSION = 254, 255, 330, 50706
PLANAR, SAMPLE_FORMAT, SAMPLES = 284, 339, 277

_COLOR_FILTER, _LINEAR_RAW = 32803, 34892
"""What PhotometricInterpretation says of pixels that a camera's sensor delivered."""
_OLD_REDUCED = 2
_MOST_DIRECTORIES = 32
_LIKE_THE_LARGEST = 0.8
"""Share of the largest image's pixels: a camera's own JPEG is a few rows smaller than its raw."""

_MAKERS = {
    "NIKON": "a Nikon raw file (NEF)",
    "SONY": "a Sony raw file (ARW)",
    "CANON": "a Canon raw file (CR2)",
    "PENTAX": "a Pentax raw file (PEF)",
    "RICOH": "a Pentax raw file (PEF)",
    "SAMSUNG": "a Samsung raw file (SRW)",
    "HASSELBLAD": "a Hasselblad raw file (3FR)",
    "PHASE ONE": "a Phase One raw file (IIQ)",
    "EPSON": "an Epson raw file (ERF)",
    "KODAK": "a Kodak raw file (DCR)",
}
_COMPRESSIONS = {
    1: "none", 2: "CCITT", 3: "fax G3", 4: "fax G4", 5: "LZW", 6: "old JPEG", 7: "JPEG",
    8: "deflate", 32773: "PackBits", 32946: "deflate", 34712: "JPEG 2000", 34887: "LERC",
    34925: "LZMA", 50000: "zstd", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
_SAMPLE_FORMATS = {2: " signed", 3: " float", 5: " complex", 6: " complex"}
_KNOWN_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000})


@dataclass(frozen=True, slots=True)
class _Directory:
    offset: int
    tags: Any
    """Pillow's dictionary of tags."""

    @property
    def pixels(self) -> float:
        """How large the image is; endless if the directory cannot tell."""
        try:
            return int(self.tags[WIDTH]) * int(self.tags[HEIGHT])
        except (KeyError, TypeError, ValueError):
            return math.inf

    @property
    def is_reduced(self) -> bool:
        """Whether the image is a smaller version of another one."""
        return (
            bool(_number(self.tags, SUBFILE_TYPE) & 1)
            or _number(self.tags, OLD_SUBFILE_TYPE) == _OLD_REDUCED
        )

    @property
    def is_raw(self) -> bool:
        """Whether the pixels are those of a camera's sensor."""
        return _number(self.tags, PHOTOMETRIC) in {_COLOR_FILTER, _LINEAR_RAW}


def image_directory(data: bytes) -> bytes:
    """Make the directory that holds the whole image the first one of a TIFF.

    Args:
        data: The file.

    Returns:
        The file as Pillow reads it. Mostly, that is the file itself.

    Raises:
        ImageError: It is a camera raw file without a finished image of full size.
    """
    if data.startswith(b"MM\0+"):
        data = _classic(data)
    file = io.BytesIO(data)
    header = data[:16] if data[2:3] == b"+" else data[:8]
    first = _read(file, header, _first_offset(header))
    if first is None:  # Pillow will say what is wrong with it
        return data
    if data[8:10] == b"CR":
        raise raw_error(_MAKERS["CANON"])
    others = list(_sub_directories(file, header, first))
    is_raw = any(one.is_raw for one in (first, *others)) or DNG_VERSION in first.tags
    if not (first.is_reduced or is_raw):
        return data
    others += _following(file, header, first)
    largest = max(one.pixels for one in (first, *others))
    for one in (first, *others):
        if not one.is_raw and one.pixels >= largest * _LIKE_THE_LARGEST and one.pixels < math.inf:
            return data if one is first else _beginning_at(data, one.offset)
    raise raw_error(_raw_name(first.tags))


def first_tags(data: bytes) -> Any:
    """Read the tags of a TIFF's first directory.

    Args:
        data: The file.

    Returns:
        The tags; `None` if they cannot be read, or say no size.
    """
    header = data[:16] if data[2:3] == b"+" else data[:8]
    directory = _read(io.BytesIO(data), header, _first_offset(header))
    if directory is None or directory.pixels in {0, math.inf}:
        return None
    return directory.tags


def describe_tags(tags: Any) -> str:
    """Tell in words how the pixels of a TIFF are stored.

    Args:
        tags: The tags of the image.

    Returns:
        Depth, colours and compression.
    """
    bits = _numbers(tags, BITS)
    compression = _number(tags, COMPRESSION) or 1
    sample_format = _SAMPLE_FORMATS.get(_numbers(tags, SAMPLE_FORMAT)[0], "")
    return (
        f"{len(bits)} × {bits[0]} bits{sample_format}, photometric interpretation"
        f" {_number(tags, PHOTOMETRIC)}, compression"
        f" {_COMPRESSIONS.get(compression, str(compression))}"
    )


def has_unknown_compression(tags: Any) -> bool:
    """Tell whether Pillow's usual builds cannot unpack the pixels of a TIFF.

    Args:
        tags: The tags of the image.

    Returns:
        Whether the compression is none of those that they know.
    """
    return (_number(tags, COMPRESSION) or 1) not in _KNOWN_COMPRESSIONS


def has_unreliable_samples(tags: Any) -> bool:
    """Tell whether Pillow reads the samples of a TIFF, but not as they are meant.

    Args:
        tags: The tags of the image.

    Returns:
        Whether they are 16-bit planes, which Pillow reads as bytes, or signed bytes.
    """
    bits, formats = _numbers(tags, BITS), _numbers(tags, SAMPLE_FORMAT)
    planes = _number(tags, PLANAR) == 2 and len(bits) > 1 and max(bits) > 8  # noqa: PLR2004
    return planes or (max(bits) <= 8 and 2 in formats)  # noqa: PLR2004 - signed integers


def raw_error(name: str) -> ImageError:
    """Make the error of a camera raw file.

    Args:
        name: What it is, with its article.

    Returns:
        The error, which says what to do.
    """
    message = (
        f"This is {name}: at most its thumbnail could be read. Export it as JPEG or TIFF with a raw"
        " converter, or pass the JPEG that the camera saved with it."
    )
    return ImageError(message)


def _raw_name(tags: Any) -> str:
    if DNG_VERSION in tags:
        return "a camera raw file (DNG)"
    maker = str(tags.get(MAKE, "")).upper()
    known = (name for start, name in _MAKERS.items() if maker.startswith(start))
    return next(known, "a camera raw file")


def _number(tags: Any, tag: int) -> int:
    value = tags.get(tag, 0)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else 0


def _numbers(tags: Any, tag: int) -> tuple[int, ...]:
    value = tags.get(tag, (1,))
    return value if isinstance(value, tuple) and value else (value or 1,)


def _first_offset(header: bytes) -> int:
    order = "<" if header[:1] == b"I" else ">"
    if len(header) == 16:  # noqa: PLR2004 - a BigTIFF
        return int(struct.unpack(order + "Q", header[8:16])[0])
    return int(struct.unpack(order + "L", header[4:8].ljust(4, b"\0"))[0])


def _read(file: io.BytesIO, header: bytes, offset: int) -> _Directory | None:
    try:
        tags: Any = ImageFileDirectory_v2(header)
        file.seek(offset)
        tags.load(file)
        tags = dict(tags.items()) | {"next": tags.next}
    # A broken directory makes Pillow raise a dozen kinds of errors.
    except Exception:  # noqa: BLE001
        return None
    return _Directory(offset, tags)


def _sub_directories(file: io.BytesIO, header: bytes, first: _Directory) -> Iterator[_Directory]:
    offsets = first.tags.get(SUB_DIRECTORIES, ())
    offsets = offsets if isinstance(offsets, tuple) else (offsets,)
    for offset in offsets[:_MOST_DIRECTORIES]:
        yield _read(file, header, int(offset)) or _Directory(int(offset), {})


def _following(file: io.BytesIO, header: bytes, first: _Directory) -> Iterator[_Directory]:
    seen = {first.offset}
    following: _Directory | None = first
    while following is not None and len(seen) <= _MOST_DIRECTORIES:
        offset = following.tags.get("next", 0)
        if not offset or offset in seen:
            return
        seen.add(offset)
        following = _read(file, header, offset)
        if following is not None:
            yield following


def _beginning_at(data: bytes, offset: int) -> bytes:
    order = "<" if data[:1] == b"I" else ">"
    if data[2:3] == b"+":
        return data[:8] + struct.pack(order + "Q", offset) + data[16:]
    return data[:4] + struct.pack(order + "L", offset) + data[8:]


def _classic(data: bytes) -> bytes:
    """Write the first directory of a big-endian BigTIFF, which Pillow cannot read, as a TIFF's.

    The pixels stay where they are, and the new directory stands behind them.
    """
    try:
        (start,) = struct.unpack_from(">Q", data, 8)
        (count,) = struct.unpack_from(">Q", data, start)
        begin = len(data) + len(data) % 2
        entries, values = b"", b""
        after = begin + 2 + 12 * count + 4
        for index in range(count):
            entry = start + 8 + 20 * index
            tag, kind, number = struct.unpack_from(">HHQ", data, entry)
            size = number * _TYPE_SIZES.get(kind, 1)
            at = entry + 12 if size <= 8 else struct.unpack_from(">Q", data, entry + 12)[0]  # noqa: PLR2004
            raw = data[at : at + size]
            if kind in _LONG_TYPES:
                numbers = struct.unpack(f">{number}Q", raw)
                kind, raw = 4, struct.pack(f">{number}L", *numbers)
            if len(raw) > 4:  # noqa: PLR2004 - more than an entry has room for
                place = after + len(values)
                values += raw + bytes(len(raw) % 2)
                raw = struct.pack(">L", place)
            entries += struct.pack(">HHL", tag, kind, number) + raw.ljust(4, b"\0")
        directory = struct.pack(">H", count) + entries + bytes(4) + values
        return b"MM\0*" + struct.pack(">L", begin) + data[8:].ljust(begin - 8, b"\0") + directory
    except (struct.error, OverflowError, MemoryError):
        return data


_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}  # fmt: skip
_LONG_TYPES = frozenset({16, 17, 18})
