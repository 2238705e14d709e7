"""Estimate the memory that decoding an image needs, and reject images that need too much."""

from __future__ import annotations

from typing import Any

from PIL import Image

from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.jpeg import JpegStructure

__all__ = ["MAX_JPEG_MEGAPIXELS", "MAX_MEGAPIXELS", "check_memory", "check_pixels"]

MAX_MEGAPIXELS = 100
"""The size limit of a decoded image, in millions of pixels."""
MAX_JPEG_MEGAPIXELS = 200
"""The limit for a JPEG, which is decoded at a smaller size. Phones make 108 and 200."""

_MEBIBYTE = 1024 * 1024
MOST_MEMORY = 557 * _MEBIBYTE
"""The memory limit of one image. With the interpreter and Pillow, this is below 600 MB."""
_SUSPICIOUS_MEMORY = 144_000_000
"""The memory limit for a file with hardly any data, which is that of 36 megapixels of RGBA."""
_SUSPICIOUS_VIDEO_MEMORY = 290_000_000
PIXELS_PER_BYTE = 300
"""A file with more pixels a byte has hardly any data. Diagrams have twice as much data, scans ten
times, and photos a hundred times."""

_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
# Planes, two copies as RGB or RGBA, and Pillow's image.
_BYTES_OF_VIDEO = {"L": 6, "RGB": 11, "RGBA": 13}
_SHARE_OF_DEEP_HEIC = 1.6
"""What libheif needs for more than 8 bits, as a multiple of what it needs for 8."""
_METADATA = 64 * 1024
"""The first bytes of an AVIF file, which hold its properties."""
_BYTES_OF_WEBP = 12.0
"""libwebp keeps two copies of the image, and returns a third."""
_WEBP_FILE_COPIES = 3


def check_pixels(width: int, height: int, *, max_megapixels: int = MAX_MEGAPIXELS) -> None:
    """Reject an image with too many pixels."""
    if width * height > max_megapixels * 1_000_000:
        message = (
            f"The image's header says {width} × {height} pixels; at most {max_megapixels} million"
            " are decoded. Shrink it first."
        )
        raise ImageError(message)


def check_memory(image: Image.Image, data: bytes, jpeg: JpegStructure | None) -> None:
    """Reject an image that needs too much memory, or far more than its file can justify."""
    pixels = image.width * image.height
    needed = jpeg.coefficient_bytes if jpeg is not None else round(pixels * _per_pixel(image, data))
    copies = _WEBP_FILE_COPIES if image.format == "WEBP" else 1
    if needed + copies * len(data) > MOST_MEMORY:
        message = (
            f"The image of {image.width} × {image.height} pixels would take {needed // 10**6:,} MB"
            f" of memory to decode; at most {MOST_MEMORY // 10**6:,} MB are allowed. Shrink it"
            " first, or save it as a JPEG that is not progressive."
        )
        raise ImageError(message)
    if jpeg is not None:
        return
    video = image.format in {"AVIF", "HEIF", "WEBP"}
    suspicious = _SUSPICIOUS_VIDEO_MEMORY if video else _SUSPICIOUS_MEMORY
    if pixels > len(data) * PIXELS_PER_BYTE and needed > suspicious:
        message = (
            f"The image's {len(data):,} bytes would unfold to {image.width} × {image.height}"
            " pixels, as a decompression bomb does. Shrink it first."
        )
        raise ImageError(message)


def _per_pixel(image: Image.Image, data: bytes) -> float:
    """Return the bytes that decoding needs for each pixel."""
    held = _BYTES_OF_MODE.get(image.mode, 4)
    if image.format == "AVIF":
        return _BYTES_OF_VIDEO.get(image.mode, 13) + (3 if _is_deep(data) else 0)
    if image.format == "HEIF":
        deep = int(image.info.get("bit_depth", 8)) > 8  # noqa: PLR2004
        return _BYTES_OF_VIDEO.get(image.mode, 13) * (_SHARE_OF_DEEP_HEIC if deep else 1)
    if image.format == "WEBP":
        return _BYTES_OF_WEBP
    if image.format == "TIFF":
        return held + _strip_bytes(image)
    if image.format == "PNG" and image.mode == "RGB" and "transparency" in image.info:
        return held + 8  # the low bytes of 16-bit samples, and a mask
    return held


def _is_deep(data: bytes) -> bool:
    """Whether an AVIF has more than 8 bits a sample, by its decoder's configuration."""
    start = data.find(b"av1C", 0, _METADATA)
    return start >= 0 and bool(int.from_bytes(data[start + 6 : start + 7], "big") & 0x40)


def _strip_bytes(image: Image.Image) -> float:
    """Return the bytes for each pixel that libtiff decompresses at once, often the whole image."""
    tags: Any = getattr(image, "tag_v2", {})
    if int(tags.get(259, 1)) == 1:
        return 0.0
    bits = tags.get(258, (1,))
    rows = tags.get(323, tags.get(278, image.height))  # of a tile, or of a strip
    columns = tags.get(322, image.width)
    try:
        share = min(1.0, int(rows) * int(columns) / (image.width * image.height))
        return share * sum(bits if isinstance(bits, tuple) else (bits,)) / 8
    except (TypeError, ValueError, ZeroDivisionError):
        return 8.0
