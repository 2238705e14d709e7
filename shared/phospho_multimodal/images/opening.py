"""Open an image file with the one reader for its type, and explain why a file is rejected."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
)

from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.color_numbers import numbered_profile
from phospho_multimodal.images.inspect import sniff
from phospho_multimodal.images.jpeg import decoder_input, read_structure
from phospho_multimodal.images.memory import (
    MAX_JPEG_MEGAPIXELS,
    MAX_MEGAPIXELS,
    check_memory,
    check_pixels,
)
from phospho_multimodal.images.png_chunks import read_chunks
from phospho_multimodal.images.quiet import without_pillow_warnings
from phospho_multimodal.images.rejection import raise_image_error, raw_error, unsupported
from phospho_multimodal.images.webp import LeanWebP

__all__ = [
    "ANIMATION",
    "LOW_BYTES",
    "NARROW_RANGE",
    "SUPPORTED",
    "open_image",
]

ANIMATION = "animation"
"""Key in `info`: whether there are further frames, which Pillow does not see."""
LOW_BYTES = "low_bytes"
"""Key in `info`: the same PNG, opened to read the low bytes of 16-bit samples."""
NARROW_RANGE = "narrow_range"
"""Key in `info`: whether the samples reach from 16 to 235, as in video."""


_BMP_HEADER = 26
"""Bytes of the shortest header."""
_BOX_HEADER = 8
_METADATA = 64 * 1024
"""The first bytes of an AVIF file, which hold its properties."""
_NCLX = re.compile(rb"colrnclx(....)", re.DOTALL)
"""The numbers of primaries and transfer function; Pillow does not read them."""


def _open_jpeg(data: bytes) -> Image.Image:
    structure = read_structure(data)
    if structure.is_excessive:
        message = (
            "The JPEG file has far more segments than an image needs, as a decompression bomb"
            " does. Save it again."
        )
        raise ImageError(message)
    if structure.frame and not structure.is_supported:
        variant = (
            f"{len(structure.sampling)} components of {structure.precision} bits, frame type"
            f" {structure.frame - 0xC0}, height {structure.height}"
        )
        raise unsupported(variant, "JPEG")
    if structure.frame and (structure.is_empty or not structure.is_complete):
        message = "The JPEG file is broken or cut off: part of the data for its pixels is missing."
        raise ImageError(message)
    # If there is no frame, Pillow reports what is wrong.
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(decoder_input(data, structure)))
    check_memory(image, data, structure)
    return image


def _open_png(data: bytes) -> Image.Image:
    content = read_chunks(data)
    image = PngImagePlugin.PngImageFile(io.BytesIO(content.data))
    if image.mode == "P" and image.palette is None:
        message = "The PNG file is broken: its palette is missing."
        raise ImageError(message)
    image.info[ANIMATION] = content.is_animation
    if content.numbers is not None:  # the PNG specification puts cICP before iCCP
        image.info.pop("icc_profile", None)
        image.info["gamma"] = None
        profile = numbered_profile(*content.numbers)
        if profile is not None:
            image.info["icc_profile"] = profile
        image.info[NARROW_RANGE] = content.is_narrow
    elif content.profile is not None:
        image.info["icc_profile"] = content.profile
    if "transparency" in image.info and image.tile and image.tile[0].args == "RGB;16B":
        low = PngImagePlugin.PngImageFile(io.BytesIO(content.data))
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        image.info[LOW_BYTES] = low
    return image


def _open_bmp(data: bytes) -> Image.Image:
    try:
        return BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    except Exception as failure:
        whole = len(data) >= int.from_bytes(data[2:6], "little") > _BMP_HEADER
        if str(failure).startswith("Unsupported") or whole:
            raise unsupported(str(failure).removeprefix("Unsupported "), "BMP") from None
        raise


def _open_tiff(data: bytes) -> Image.Image:
    from phospho_multimodal.images.tiff import open_tiff  # noqa: PLC0415 - 3 MB of memory

    return open_tiff(data)


def _open_avif(data: bytes) -> Image.Image:
    from PIL import AvifImagePlugin  # noqa: PLC0415 - loads a large library

    try:
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    except Exception as failure:
        if not _boxes_are_whole(data):
            raise
        raise unsupported(failure, "AVIF") from None
    if "icc_profile" not in image.info:
        numbers = _NCLX.search(data[:_METADATA])
        profile = numbers and numbered_profile(*struct.unpack(">HH", numbers[1]))
        if profile is not None:
            image.info["icc_profile"] = profile
    return image


def _boxes_are_whole(data: bytes) -> bool:
    """Tell whether every box of an AVIF or HEIC file is there to its end."""
    position = 0
    while position + _BOX_HEADER <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:  # the size is a long one, behind the kind
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        position += max(_BOX_HEADER, size or len(data) - position)
    return position == len(data)


def _open_heif(data: bytes) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile  # noqa: PLC0415 - an extra, and a heavy one
    except ImportError:
        message = (
            "This is an HEIC image, and reading it needs an extra:"
            " pip install 'phospho-multimodal[heif]'."
        )
        raise ImageError(message) from None
    try:
        image: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    except Exception as failure:
        if not _boxes_are_whole(data):
            raise
        raise unsupported(failure, "HEIC") from None
    return image


# Each type has one reader. `Image.open` would try all of Pillow's forty, and would apply Pillow's
# global pixel limit, which is lower than ours.
_READERS: dict[str, Callable[[bytes], Image.Image]] = {
    "JPEG": _open_jpeg,
    "PNG": _open_png,
    "WEBP": LeanWebP,
    "GIF": lambda data: GifImagePlugin.GifImageFile(io.BytesIO(data)),
    "BMP": _open_bmp,
    "TIFF": _open_tiff,
    "AVIF": _open_avif,
}

SUPPORTED = tuple(_READERS)
"""The formats that are always read; HEIC and HEIF need the extra `heif`."""


def open_image(data: bytes, *, max_megapixels: int | None = None) -> Image.Image:
    """Open an image by its content and check its header; nothing is decoded yet.

    `max_megapixels` is 100 by default, and 200 for a JPEG, which is decoded at a smaller size.
    """
    found = sniff(data)
    reader = _open_heif if found == "HEIF" else _READERS.get(found or "")
    if reader is None:
        if found is not None and "raw file" in found:
            raise raw_error(found)
        what = "This is not an image" if found is None else f"This is {found}"
        message = f"{what}. Supported are {', '.join(SUPPORTED)}, and HEIC with the extra 'heif'."
        raise ImageError(message)
    try:
        with without_pillow_warnings():
            image = reader(data)
    except Exception as failure:  # noqa: BLE001 - see `raise_image_error`
        raise_image_error(failure, found)
    usual = MAX_JPEG_MEGAPIXELS if found == "JPEG" else MAX_MEGAPIXELS
    most = usual if max_megapixels is None else max_megapixels
    check_pixels(image.width, image.height, max_megapixels=most)
    if found != "JPEG":
        check_memory(image, data, None)
    return image
