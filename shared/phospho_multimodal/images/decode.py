"""Decode an image to upright, opaque, small sRGB pixels, and encode them again.

This module and its neighbors load Pillow, so other modules import it inside functions.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, JpegImagePlugin

from phospho_multimodal.images.color import Flattening, strips, to_srgb
from phospho_multimodal.images.color_numbers import gamma_profile, numbered_profile
from phospho_multimodal.images.memory import MAX_MEGAPIXELS, check_pixels
from phospho_multimodal.images.opening import (
    ANIMATION,
    LOW_BYTES,
    NARROW_RANGE,
    SUPPORTED,
    open_image,
)
from phospho_multimodal.images.quiet import without_pillow_warnings
from phospho_multimodal.images.rejection import raise_image_error
from phospho_multimodal.images.webp import LeanWebP

__all__ = [
    "MAX_MEGAPIXELS",
    "SUPPORTED",
    "check_pixels",
    "encode",
    "is_lossless",
    "open_image",
    "to_rgb",
]

JPEG_QUALITY = 90
LARGEST_PNG = 1_000_000
"""The size limit of a PNG, in bytes. A larger one becomes a JPEG."""

_ORIENTATION = 0x0112
_EXIF_DATA = ("exif", "Raw profile type exif")
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP_ROWS = 256
_MUCH_TO_FLATTEN = 16_000_000


def to_rgb(
    image: Image.Image,
    *,
    max_side: int | None = None,
    changes: list[str] | None = None,
    borrowed: bool = False,
) -> Image.Image:
    """Make an image upright, sRGB, opaque and small enough.

    A `borrowed` image is the caller's own: it stays unchanged, and its present frame is taken.
    """
    noted = [] if changes is None else changes
    try:
        return _convert(image, max_side, noted, borrowed=borrowed)
    except Exception as failure:  # noqa: BLE001 - see `raise_image_error`
        if image.format == "TIFF":
            from phospho_multimodal.images.tiff import reject_unknown_compression  # noqa: PLC0415

            reject_unknown_compression(getattr(image, "tag_v2", {}))
        raise_image_error(failure, image.format)


def encode(image: Image.Image, *, lossless: bool) -> tuple[bytes, str]:
    """Encode pixels: a lossless source below 1 MB as PNG, everything else as JPEG."""
    if lossless:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        if buffer.tell() < LARGEST_PNG:
            return buffer.getvalue(), "PNG"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), "JPEG"


def is_lossless(image: Image.Image, data: bytes | None) -> bool:
    """Tell whether a source was stored without loss, so that PNG is the right format."""
    if image.format == "WEBP":
        return data is not None and b"VP8L" in data[:64]
    if image.format == "TIFF":
        return image.info.get("compression") not in {"jpeg", "tiff_jpeg", "webp"}
    return image.format in {None, "PNG", "GIF", "BMP"}


def _convert(
    image: Image.Image, max_side: int | None, changes: list[str], *, borrowed: bool
) -> Image.Image:
    size = _smaller(image.size, max_side)
    if not borrowed and isinstance(image, JpegImagePlugin.JpegImageFile) and size != image.size:
        # Decode at a smaller size, which takes a quarter of the time and of the memory.
        image.draft(None, size)
    tiles: Any = getattr(image, "tile", None)
    raw_mode = tiles[0].args if tiles else None
    frame = None if borrowed else _frame(image)
    decoded, orientation = _decoded(image)
    profile = _profile(image)
    flattening = Flattening.of(decoded, raw_mode, profile)
    flattening.frame = frame
    pixels = _reduced(decoded, size, flattening)
    changes += flattening.changes()
    if pixels.size != size:
        pixels = pixels.resize(size, Image.Resampling.LANCZOS)
    if image.size != size:
        changes.append(f"shrunk to {size[0]} × {size[1]}")
    if image.info.get(NARROW_RANGE):
        pixels = pixels.point(lambda value: (value - 16) * 255 / 219 + 0.5)
    pixels = to_srgb(pixels, None if flattening.profile else profile, changes)
    if orientation in _UPRIGHT:
        # Pillow has already applied the orientation of a TIFF.
        pixels = pixels if image.format == "TIFF" else pixels.transpose(_UPRIGHT[orientation])
        changes.append("turned upright")
    if pixels is image:
        pixels = image.copy()  # the original is the caller's, or keeps a file open
    pixels.info = {}
    if not borrowed and _is_animation(image):
        is_pages = image.format == "TIFF"
        changes.append("first of several pages" if is_pages else "first frame of an animation")
    return pixels


def _decoded(image: Image.Image) -> tuple[Image.Image, int]:
    """Decode an image, and return its pixels and its EXIF orientation."""
    if isinstance(image, LeanWebP):
        return image.decoded(), _orientation(image)
    if image.format == "TIFF":
        from phospho_multimodal.images.tiff import load_tiff  # noqa: PLC0415 - 3 MB of memory

        return image, load_tiff(image)
    image.load()
    low: Any = image.info.get(LOW_BYTES)
    if low is not None:
        image.putalpha(_opaque_where_key_differs(image, low))
    return image, _orientation(image)


def _opaque_where_key_differs(high: Image.Image, low: Image.Image) -> Image.Image:
    """Make an alpha channel from the transparent color of a PNG with 16-bit samples.

    Pillow gives only one byte of a sample, so there is an image for each of the two bytes.
    """
    low.load()
    mask = Image.new("L", high.size, 0)
    for half, shift in ((high, 8), (low, 0)):
        for channel, key in enumerate(high.info["transparency"]):
            byte = key >> shift & 255
            table = [255 * (value != byte) for value in range(256)]
            differs = half.getchannel(channel).point(table)
            mask.paste(255, mask=differs)
    del high.info["transparency"]
    return mask


def _frame(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box of the first frame of a GIF if it is smaller than the canvas."""
    tile = getattr(image, "tile", None)
    if image.format != "GIF" or not tile or tile[0].extents == (0, 0, *image.size):
        return None
    left, top, right, bottom = tile[0].extents
    return left, top, right, bottom


def _profile(image: Image.Image) -> bytes | None:
    """Return the color profile of an image, or make it from the numbers in the file."""
    info = image.info
    profile: bytes | None = info.get("icc_profile")
    if profile or "srgb" in info:
        return profile
    numbers = info.get("nclx_profile")
    if numbers:
        return numbered_profile(
            int(numbers["color_primaries"]), int(numbers["transfer_characteristics"])
        )
    return gamma_profile(info.get("gamma"), info.get("chromaticity"))


def _is_animation(image: Image.Image) -> bool:
    if image.format == "HEIF":
        return False  # a collection, of which the primary image was taken
    if ANIMATION in image.info:
        return bool(image.info[ANIMATION])
    try:
        with without_pillow_warnings():
            return bool(getattr(image, "is_animated", False))
    # The second frame can be broken in any way, although the first one is valid.
    except Exception:  # noqa: BLE001
        return True


def _reduced(image: Image.Image, size: tuple[int, int], flattening: Flattening) -> Image.Image:
    """Flatten an image, and shrink a very large one by a whole factor.

    This is done in strips, so that no copy of an image of 200 MB is made. The result has about
    twice the wanted size, so that the final resize keeps its quality.
    """
    large = image.width * image.height > _MUCH_TO_FLATTEN and not flattening.is_flat
    spare = 1 if large else 2
    factor = max(1, min(image.width // (spare * size[0]), image.height // (spare * size[1])))
    if factor == 1 and (flattening.is_flat or image.height <= _STRIP_ROWS):
        return flattening.flat(image)
    reduced_image: Image.Image | None = None
    for top, strip in strips(image, rows=factor):
        part = flattening.flat(strip, top).reduce(factor)
        if reduced_image is None:
            reduced = (-(-image.width // factor), -(-image.height // factor))
            reduced_image = Image.new(part.mode, reduced)
        reduced_image.paste(part, (0, top // factor))
    assert reduced_image is not None  # noqa: S101 - an image has at least one row
    return reduced_image


def _smaller(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    return (
        max(1, round(size[0] * max_side / longest)),
        max(1, round(size[1] * max_side / longest)),
    )


def _orientation(image: Image.Image) -> int:
    """Read the orientation from EXIF data only, while Pillow would also read XMP data."""
    probe = Image.new("1", (1, 1))
    probe.info = {name: image.info[name] for name in _EXIF_DATA if name in image.info}
    if not probe.info:
        return 1
    try:
        with without_pillow_warnings():
            return int(probe.getexif().get(_ORIENTATION, 1))
    # EXIF data can be broken in any way, although the image is valid.
    except Exception:  # noqa: BLE001
        return 1
