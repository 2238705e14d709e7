"""TIFF files: the directory that holds the whole image, and the variants that Pillow misreads."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from phospho_multimodal.images.quiet import without_pillow_warnings
from phospho_multimodal.images.rejection import raw_error, unsupported

__all__ = ["load_tiff", "open_tiff", "reject_unknown_compression"]

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _MAKE = 256, 257, 258, 259, 262, 271
_SUBFILE_TYPE, _OLD_SUBFILE_TYPE, _SUB_DIRECTORIES, _DNG_VERSION = 254, 255, 330, 50706
_PLANAR, _SAMPLE_FORMAT, _ORIENTATION = 284, 339, 274
_OLD_REDUCED = 2
_RAW_PHOTOMETRICS = frozenset({32803, 34892})
"""Color filter array and linear raw: the pixels of a camera's sensor."""

_MOST_DIRECTORIES = 32
_MOST_TAGS = 1000
_SHARE_OF_LARGEST = 0.8
"""A camera's own JPEG is a few rows smaller than its raw image."""
_MOST_PIXELS_WITHOUT_WARNING = 80_000_000
"""Pillow warns while it decodes a larger TIFF."""

_MAKERS = {
    "NIKON": "a Nikon raw file (NEF)",
    "SONY": "a Sony raw file (ARW)",
    "CANON": "a Canon raw file (CR2)",
    "OLYMPUS": "an Olympus raw file (ORF)",
    "OM DIGITAL": "an Olympus raw file (ORF)",
    "PANASONIC": "a Panasonic raw file (RW2)",
    "PENTAX": "a Pentax raw file (PEF)",
    "RICOH": "a Pentax raw file (PEF)",
    "SAMSUNG": "a Samsung raw file (SRW)",
    "HASSELBLAD": "a Hasselblad raw file (3FR)",
    "PHASE ONE": "a Phase One raw file (IIQ)",
    "LEAF": "a Leaf raw file (MOS)",
    "MAMIYA": "a Mamiya raw file (MEF)",
    "SEIKO EPSON": "an Epson raw file (ERF)",
    "EASTMAN KODAK": "a Kodak raw file (DCR)",
    "KODAK": "a Kodak raw file (DCR)",
}
_COMPRESSIONS = {
    1: "none", 2: "CCITT", 3: "fax G3", 4: "fax G4", 5: "LZW", 6: "old JPEG", 7: "JPEG",
    8: "deflate", 32771: "raw", 32773: "PackBits", 32946: "deflate", 34712: "JPEG 2000",
    34887: "LERC", 34925: "LZMA", 50000: "zstd", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
_UNREADABLE_COMPRESSIONS = frozenset({34712, 34887, 50001, 50002})
_SAMPLE_FORMATS = {2: " signed", 3: " float", 5: " complex", 6: " complex"}

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}  # fmt: skip
_EIGHT_BYTE_INTEGERS = frozenset({16, 17, 18})


def open_tiff(data: bytes) -> TiffImageFile:
    """Open the whole image of a TIFF; a camera raw file has none, so it is rejected by name."""
    if 43 in data[2:4]:  # noqa: PLR2004 - the version number of BigTIFF
        data = _to_classic(data)
    directories = dict(_directories(data))
    first: Any = next(iter(directories.values()), {})
    if first:
        data = _whole_image_first(data, directories, first)
    try:
        return TiffImageFile(io.BytesIO(data))
    except Exception as failure:
        if 0 < _pixels(first) < math.inf:
            reject_unknown_compression(first)
            if "unknown pixel mode" in str(failure):
                raise unsupported(_describe(first), "TIFF") from None
        raise


def load_tiff(image: Any) -> int:
    """Decode a TIFF, and return its EXIF orientation, which Pillow applies while it decodes."""
    tags = image.tag_v2
    if _has_misread_samples(tags):
        raise unsupported(_describe(tags), "TIFF")
    orientation, from_xmp = 1, None
    if getattr(image, "tile", None):  # the image is not decoded yet
        with without_pillow_warnings():
            orientation = tags.get(_ORIENTATION, 1)
            exif = image.getexif()
            if _ORIENTATION not in tags:
                from_xmp = exif.pop(_ORIENTATION, None)
    if image.width * image.height > _MOST_PIXELS_WITHOUT_WARNING:
        with without_pillow_warnings():
            image.load()
    else:
        image.load()
    if from_xmp is not None:
        image.getexif()[_ORIENTATION] = from_xmp
    return int(orientation)


def reject_unknown_compression(tags: Any) -> None:
    """Raise an error if Pillow's usual builds cannot decompress the pixels of a TIFF."""
    compression = _number(tags, _COMPRESSION) or 1
    if compression in _UNREADABLE_COMPRESSIONS or compression not in _COMPRESSIONS:
        raise unsupported(_describe(tags), "TIFF")


def _whole_image_first(data: bytes, directories: dict[int, Any], first: Any) -> bytes:
    """Make the directory of the whole image the first one, if the first is only a thumbnail."""
    is_reduced = _number(first, _SUBFILE_TYPE) & 1 or (
        _number(first, _OLD_SUBFILE_TYPE) == _OLD_REDUCED
    )
    if not (is_reduced or _DNG_VERSION in first or any(map(_is_raw, directories.values()))):
        return data
    least = max(map(_pixels, directories.values())) * _SHARE_OF_LARGEST
    for offset, tags in directories.items():
        if not _is_raw(tags) and least <= _pixels(tags) < math.inf:
            return data[:4] + struct.pack(_order(data) + "L", offset) + data[8:]
    raise raw_error(_raw_name(first))


def _raw_name(tags: Any) -> str:
    if _DNG_VERSION in tags:
        return "a camera raw file (DNG)"
    maker = str(tags.get(_MAKE, "")).upper()
    names = (name for start, name in _MAKERS.items() if maker.startswith(start))
    return next(names, "a camera raw file")


def _directories(data: bytes) -> Iterator[tuple[int, Any]]:
    """Give offset and tags of the first directory, of its sub-directories, and of the next ones."""
    start = struct.unpack(_order(data) + "L", data[4:8].ljust(4, b"\0"))[0]
    tags, following = _read(data, start)
    if not tags:
        return
    yield start, tags
    for offset in _numbers(tags, _SUB_DIRECTORIES, ())[:_MOST_DIRECTORIES]:
        yield offset, _read(data, offset)[0]
    for _ in range(_MOST_DIRECTORIES):
        if following:
            offset = following
            tags, following = _read(data, offset)
            if tags:
                yield offset, tags


def _read(data: bytes, offset: int) -> tuple[Any, int]:
    """Read a directory with Pillow: its tags, none if it is broken, and the offset of the next."""
    try:
        directory: Any = ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(offset)
        directory.load(file)
        return dict(directory.items()), int(directory.next or 0)
    # A broken directory makes Pillow raise a dozen kinds of errors.
    except Exception:  # noqa: BLE001
        return {}, 0


def _is_raw(tags: Any) -> bool:
    return _number(tags, _PHOTOMETRIC) in _RAW_PHOTOMETRICS


def _pixels(tags: Any) -> float:
    """The number of pixels of an image; infinite if the directory does not say it."""
    try:
        return int(tags[_WIDTH]) * int(tags[_HEIGHT])
    except (KeyError, TypeError, ValueError):
        return math.inf


def _describe(tags: Any) -> str:
    """Describe in words how a TIFF stores its pixels."""
    bits = _numbers(tags, _BITS)
    compression = _number(tags, _COMPRESSION) or 1
    return (
        f"{len(bits)} × {bits[0]} bits{_SAMPLE_FORMATS.get(_numbers(tags, _SAMPLE_FORMAT)[0], '')},"
        f" photometric interpretation {_number(tags, _PHOTOMETRIC)}, compression"
        f" {_COMPRESSIONS.get(compression, str(compression))}"
    )


def _has_misread_samples(tags: Any) -> bool:
    """Tell whether samples are 16-bit planes, which Pillow reads as bytes, or signed bytes."""
    bits, formats = _numbers(tags, _BITS), _numbers(tags, _SAMPLE_FORMAT)
    planes = _number(tags, _PLANAR) == 2 and len(bits) > 1 and max(bits) > 8  # noqa: PLR2004
    return planes or (max(bits) <= 8 and 2 in formats)  # noqa: PLR2004 - signed integers


def _number(tags: Any, tag: int) -> int:
    return int(next(iter(_numbers(tags, tag, ())), 0))


def _numbers(tags: Any, tag: int, default: tuple[int, ...] = (1,)) -> tuple[int, ...]:
    value = tags.get(tag)
    values = value if isinstance(value, tuple) else (value,)
    numbers = tuple(number for number in values if isinstance(number, int))
    return numbers or default


def _order(data: bytes) -> str:
    return "<" if data[:1] == b"I" else ">"


def _to_classic(data: bytes) -> bytes:
    """Rewrite the directories of a BigTIFF as those of a TIFF; the pixels stay where they are.

    Pillow cannot read a big-endian BigTIFF, nor the BigTIFF types of sub-directories.
    """
    order = _order(data)
    file = bytearray(data)
    done: set[int] = set()

    def copy(start: int) -> int:
        """Append a directory and those that it names, and return its new offset."""
        if not start or start in done or len(done) >= _MOST_DIRECTORIES:
            return 0
        done.add(start)
        count = min(_MOST_TAGS, struct.unpack_from(order + "Q", data, start)[0])
        end = start + 8 + 20 * count
        following = copy(struct.unpack_from(order + "Q", data, end)[0])
        entries: list[tuple[int, int, int, bytes]] = []
        copied = 0
        for entry in range(start + 8, end, 20):
            tag, kind, number = struct.unpack_from(order + "HHQ", data, entry)
            width = _TYPE_SIZES.get(kind, 1)
            inline = number * width <= 8  # noqa: PLR2004 - what an entry of a BigTIFF has room for
            at = entry + 12 if inline else struct.unpack_from(order + "Q", data, entry + 12)[0]
            raw = data[at : at + number * width]
            if kind in _EIGHT_BYTE_INTEGERS or tag == _SUB_DIRECTORIES:
                values = struct.unpack(f"{order}{number}{'Q' if width > 4 else 'L'}", raw)  # noqa: PLR2004
                values = tuple(map(copy, values)) if tag == _SUB_DIRECTORIES else values
                kind, raw = 4, struct.pack(f"{order}{number}L", *values)
            entries.append((tag, kind, number, raw))
            copied += len(raw)
            if copied > len(data):  # the values overlap, so that they could fill the memory
                raise OverflowError
        begin = len(file) + len(file) % 2
        directory = bytearray(struct.pack(order + "H", count))
        behind = bytearray()
        for tag, kind, number, raw in entries:
            place = raw.ljust(4, b"\0")
            if len(raw) > 4:  # noqa: PLR2004 - what an entry of a TIFF has room for
                place = struct.pack(order + "L", begin + 2 + 12 * count + 4 + len(behind))
                behind += raw + bytes(len(raw) % 2)
            directory += struct.pack(order + "HHL", tag, kind, number) + place
        file.extend(bytes(len(file) % 2) + directory + struct.pack(order + "L", following) + behind)
        return begin

    try:
        first = copy(struct.unpack_from(order + "Q", data, 8)[0])
    except (struct.error, OverflowError, MemoryError):
        return data
    return data[:2] + struct.pack(order + "HLQ", 42, first, 0) + file[16:]
