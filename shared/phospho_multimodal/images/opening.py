"""Open an image file with the one reader for its type, and explain why a file is rejected."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NoReturn

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
)

from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.color_numbers import numbered_profile
from phospho_multimodal.images.inspect import sniff
from phospho_multimodal.images.iso_boxes import boxes_are_whole, color_numbers
from phospho_multimodal.images.jpeg import decoder_input, read_structure
from phospho_multimodal.images.memory import (
    MAX_JPEG_MEGAPIXELS,
    MAX_MEGAPIXELS,
    check_memory,
    check_pixels,
)
from phospho_multimodal.images.png_chunks import read_chunks
from phospho_multimodal.images.quiet import without_pillow_warnings
from phospho_multimodal.images.tiff_directories import (
    describe_tags,
    first_tags,
    has_unknown_compression,
    image_directory,
    raw_error,
)
from phospho_multimodal.images.webp import LeanWebP

__all__ = [
    "ANIMATION",
    "LOW_BYTES",
    "NARROW_RANGE",
    "SUPPORTED",
    "fail",
    "open_image",
    "unsupported",
]

ANIMATION = "animation"
"""In `info`: there are further frames, which Pillow was not told about."""
LOW_BYTES = "low_bytes"
"""In `info`: the same PNG, opened so that it gives the low bytes of 16-bit samples."""
NARROW_RANGE = "narrow_range"
"""In `info`: the samples reach from 16 to 235."""


_BMP_HEADER = 26
"""Bytes of the shortest header."""


def _open_jpeg(data: bytes) -> Image.Image:
    structure = read_structure(data)
    if structure.is_excessive:
        message = (
            "The JPEG file is made of far more parts than a picture needs, as a decompression"
            " bomb is. Save it anew."
        )
        raise ImageError(message)
    if structure.frame and not structure.is_supported:
        variant = (
            f"{len(structure.sampling)} components of {structure.precision} bits, frame type"
            f" {structure.frame - 0xC0}"
        )
        raise unsupported(variant, "JPEG")
    if structure.frame and (structure.is_empty or not structure.is_complete):
        message = "The JPEG file is broken or cut off: part of the data for its pixels is missing."
        raise ImageError(message)
    # Without its structure Pillow is asked all the same, and says what is wrong.
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(decoder_input(data, structure)))
    check_memory(image, data, structure)
    return image


def _open_png(data: bytes) -> Image.Image:
    content = read_chunks(data)
    image = PngImagePlugin.PngImageFile(io.BytesIO(content.data))
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


def _open_tiff(data: bytes) -> Image.Image:
    data = image_directory(data)
    try:
        return TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except Exception as failure:
        tags = first_tags(data)
        valid = "unknown pixel mode" in str(failure) or has_unknown_compression(tags or {})
        if tags is None or not valid:
            raise
        raise unsupported(describe_tags(tags), "TIFF") from None


def _open_bmp(data: bytes) -> Image.Image:
    try:
        return BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    except Exception as failure:
        whole = len(data) >= int.from_bytes(data[2:6], "little") > _BMP_HEADER
        if str(failure).startswith("Unsupported") or whole:
            raise unsupported(str(failure).removeprefix("Unsupported "), "BMP") from None
        raise


def _open_avif(data: bytes) -> Image.Image:
    try:
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    except Exception as failure:
        if not boxes_are_whole(data):
            raise
        raise unsupported(failure, "AVIF") from None
    if "icc_profile" not in image.info:
        numbers = color_numbers(data)
        profile = None if numbers is None else numbered_profile(*numbers)
        if profile is not None:
            image.info["icc_profile"] = profile
    return image


def _open_heif(data: bytes) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile  # noqa: PLC0415 - an extra, and a heavy one
    except ImportError:
        message = (
            "This is an HEIC image, and reading those needs an extra:"
            " pip install 'phospho-multimodal[heif]'."
        )
        raise ImageError(message) from None
    try:
        image: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    except Exception as failure:
        if not boxes_are_whole(data):
            raise
        raise unsupported(failure, "HEIC") from None
    return image


# Each type has its reader, and no other is asked: a file that lies about its type is not tried
# with all of Pillow's forty, and Pillow's own global pixel limit, lower than ours, is not met.
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
"""What is always read; HEIC and HEIF with the extra `heif`."""


def open_image(data: bytes, *, max_megapixels: int | None = None) -> Image.Image:
    """Open an image by its content and check its header; nothing is decoded yet.

    Args:
        data: The file.
        max_megapixels: Millions of pixels that may be decoded. By default 100, and 200 of a JPEG,
            which is decoded at a fraction of its size.

    Returns:
        The image; `format` is what Pillow calls its type.

    Raises:
        ImageError: It is of no supported type, broken, or too large.
    """
    found = sniff(data)
    reader = _open_heif if found == "HEIF" else _READERS.get(found or "")
    if reader is None:
        if found is not None and "raw file" in found:
            raise raw_error(found)
        what = "This is no image" if found is None else f"This is {found}"
        message = f"{what}. Supported are {', '.join(SUPPORTED)}, and HEIC with the extra 'heif'."
        raise ImageError(message)
    try:
        with without_pillow_warnings():
            image = reader(data)
    except Exception as failure:  # noqa: BLE001 - see `fail`
        fail(failure, found)
    usual = MAX_JPEG_MEGAPIXELS if found == "JPEG" else MAX_MEGAPIXELS
    most = usual if max_megapixels is None else max_megapixels
    check_pixels(image.width, image.height, max_megapixels=most)
    if found != "JPEG":
        check_memory(image, data, None)
    return image


def fail(failure: Exception, kind: str | None, tags: Any = None) -> NoReturn:
    """Raise what a reader's failure means: Pillow's readers raise a dozen kinds of errors.

    Args:
        failure: What was raised.
        kind: The type of the file.
        tags: The tags of a TIFF.

    Raises:
        ImageError: Always.
    """
    if isinstance(failure, ImageError):
        raise failure from None
    if tags is not None and has_unknown_compression(tags):
        raise unsupported(describe_tags(tags), "TIFF") from None
    if isinstance(failure, Image.DecompressionBombError):
        message = "The image's header says far too many pixels to decode. Shrink it first."
        raise ImageError(message) from None
    if isinstance(failure, MemoryError):
        message = "The image would take too much memory to decode. Shrink it first."
        raise ImageError(message) from None
    message = (
        f"The {kind or 'image'} file is broken or cut off and cannot be decoded"
        f" ({type(failure).__name__})."
    )
    raise ImageError(message) from None


def unsupported(variant: object, kind: str) -> ImageError:
    """Make the error of a valid file that Pillow cannot read.

    Args:
        variant: What is unusual about the file.
        kind: The type of the file.

    Returns:
        The error, which says how to convert the file.
    """
    message = (
        f"This variant of {kind} is not supported ({str(variant)[:90]}). Convert the image to PNG"
        f" or JPEG first: magick in.{kind.lower()} out.png."
    )
    return ImageError(message)
