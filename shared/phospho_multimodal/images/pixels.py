"""Pixels: opening by content, upright, in sRGB, on white, and back into a file. Needs Pillow.

Everything that decodes is here, and nothing else imports Pillow; it is loaded when the first
picture needs it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.headers import sniff

__all__ = [
    "MAX_MEGAPIXELS",
    "SUPPORTED",
    "encode",
    "open_image",
    "to_rgb",
]

MAX_MEGAPIXELS = 100
"""The largest picture that is decoded, in millions of pixels."""

# Each type has its reader, and no other is asked: a file that lies about its type is not tried
# with all of Pillow's forty, and Pillow's own global pixel limit, lower than ours, is not met.
_READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

SUPPORTED = tuple(_READERS)
"""What is always read; HEIC and HEIF with the extra `heif`."""

JPEG_QUALITY = 90
LARGEST_PNG = 1_000_000
"""Bytes up to which a lossless source stays lossless."""

_ORIENTATION = 0x0112
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PROFILE_MODES = {"RGB ": ("RGB",), "CMYK": ("CMYK",), "GRAY": ("L",)}
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_WIDE_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
_SIXTEEN_BIT = 65535


def open_image(data: bytes, *, max_megapixels: int = MAX_MEGAPIXELS) -> Image.Image:
    """Open an image by its content and check its header; nothing is decoded yet.

    Args:
        data: The file.
        max_megapixels: Millions of pixels that may be decoded.

    Returns:
        The image; `format` is what Pillow calls its type.

    Raises:
        ImageError: It is of no supported type, broken, or too large.
    """
    found = sniff(data)
    image = _guarded(lambda: _open(data, found), found)
    check_pixels(image.width, image.height, max_megapixels=max_megapixels)
    return image


def check_pixels(width: int, height: int, *, max_megapixels: int = MAX_MEGAPIXELS) -> None:
    """Refuse a picture that would take too much memory to decode.

    Args:
        width: In pixels.
        height: In pixels.
        max_megapixels: Millions of pixels that may be decoded.

    Raises:
        ImageError: There are more.
    """
    if width * height > max_megapixels * 1_000_000:
        message = (
            f"The image's header says {width} × {height} pixels; at most {max_megapixels} million"
            " are decoded. Shrink it first."
        )
        raise ImageError(message)


def to_rgb(
    image: Image.Image, *, max_side: int | None = None, changes: list[str] | None = None
) -> Image.Image:
    """Make a picture upright, sRGB, opaque and small enough.

    Args:
        image: An opened image; of an animation the first frame is taken.
        max_side: Longest side to shrink to, in pixels; `None` keeps the size.
        changes: Takes a word for each thing that was done.

    Returns:
        A picture of mode RGB or L, without any metadata.

    Raises:
        ImageError: It cannot be decoded.
    """
    noted = [] if changes is None else changes
    return _guarded(lambda: _convert(image, max_side, noted), image.format)


def encode(image: Image.Image, *, lossless: bool) -> tuple[bytes, str]:
    """Write a picture as it is sent.

    Args:
        image: Of mode RGB or L.
        lossless: Whether the source was; then PNG is tried first.

    Returns:
        The file and its format: PNG below 1 MB for a lossless source, else JPEG at quality 90.
    """
    if lossless:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        if buffer.tell() < LARGEST_PNG:
            return buffer.getvalue(), "PNG"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), "JPEG"


def is_lossless(image: Image.Image, data: bytes | None) -> bool:
    """Tell whether a source had no compression artefacts that a PNG would only make larger."""
    if image.format == "WEBP":
        return data is not None and b"VP8L" in data[:64]
    if image.format == "TIFF":
        return image.info.get("compression") not in {"jpeg", "tiff_jpeg", "webp"}
    return image.format in {None, "PNG", "GIF", "BMP"}


def _guarded(work: Callable[[], Image.Image], found: str | None) -> Image.Image:
    """Run something of Pillow's; whatever a broken file makes it raise is an ImageError."""
    try:
        return work()
    except ImageError:
        raise
    except MemoryError:
        message = "The image would take too much memory to decode. Shrink it first."
        raise ImageError(message) from None
    # Pillow's readers raise a dozen kinds of errors on broken files, and more each year.
    except Exception as failure:  # noqa: BLE001
        message = (
            f"The {found or 'image'} file is broken or cut off and cannot be decoded"
            f" ({type(failure).__name__})."
        )
        raise ImageError(message) from None


def _open(data: bytes, found: str | None) -> Image.Image:
    if found == "HEIF":
        return _open_heif(data)
    reader = _READERS.get(found or "")
    if reader is None:
        what = "This is no image" if found is None else f"This is {found}"
        message = f"{what}. Supported are {', '.join(SUPPORTED)}, and HEIC with the extra 'heif'."
        raise ImageError(message)
    return reader(io.BytesIO(data))


def _open_heif(data: bytes) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile  # noqa: PLC0415 - an extra, and a heavy one
    except ImportError:
        message = (
            "This is an HEIC image, and reading those needs an extra:"
            " pip install 'phospho-multimodal[heif]'."
        )
        raise ImageError(message) from None
    image: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    return image


def _convert(image: Image.Image, max_side: int | None, changes: list[str]) -> Image.Image:
    size = _smaller(image.size, max_side)
    if getattr(image, "is_animated", False):
        changes.append("first frame of an animation")
        image.seek(0)
    if image.format == "JPEG" and size != image.size:
        # Decode at the smallest sufficient eighth: a quarter of the time and of the memory.
        image.draft(None, size)
    # Pillow turns a TIFF by itself while loading; of a PNG the end may tell its orientation.
    turned = image.format == "TIFF" and _orientation(image) in _UPRIGHT
    image.load()
    orientation = _orientation(image)
    image = _flatten(_eight_bit(image, changes), changes)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
        changes.append(f"shrunk to {size[0]} × {size[1]}")
    image = _to_srgb(image, changes)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        turned = True
    if turned:
        changes.append("turned upright")
    clean = image.copy()
    clean.info = {}
    return clean


def _smaller(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    return (
        max(1, round(size[0] * max_side / longest)),
        max(1, round(size[1] * max_side / longest)),
    )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # EXIF is a TIFF of its own and can be broken in as many ways, while the picture is fine.
    except Exception:  # noqa: BLE001
        return 1


def _eight_bit(image: Image.Image, changes: list[str]) -> Image.Image:
    if image.mode not in _WIDE_MODES:
        return image
    changes.append("16 bits to 8")
    info = image.info
    wide = image.convert("F")
    low, high = wide.getextrema()
    # Floats and 32-bit integers have no fixed white: only those have to be stretched.
    stretched = image.mode in {"I", "F"} and not (
        _number(low) >= 0 and _number(high) <= _SIXTEEN_BIT
    )
    start, span = (_number(low), _number(high) - _number(low)) if stretched else (0.0, _SIXTEEN_BIT)
    scale = 255.0 / span if span else 0.0
    grey = wide.point(lambda value: value * scale + (0.5 - start * scale)).convert("L")
    grey.info = info
    return grey


def _number(value: Any) -> float:
    return float(value)


def _flatten(image: Image.Image, changes: list[str]) -> Image.Image:
    """Put what is transparent on white, and resolve palettes; keep the profile at hand."""
    info = image.info
    if image.mode in _ALPHA_MODES or "transparency" in info:
        opaque = image.convert("RGBA")
        sheet = Image.new("RGBA", image.size, "white")
        sheet.alpha_composite(opaque)
        result = sheet.convert("RGB")
        if opaque.getchannel("A").getextrema() != (255, 255):
            changes.append("transparency on white")
    elif image.mode == "1":
        result = image.convert("L")
    elif image.mode in {"L", "RGB", "CMYK"}:
        return image
    else:  # P, YCbCr, LAB, HSV, RGBX
        result = image.convert("RGB")
    result.info = info
    return result


def _to_srgb(image: Image.Image, changes: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space
            if image.mode in _PROFILE_MODES.get(space, ()):
                converted = ImageCms.profileToProfile(
                    image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                if converted is not None:
                    changes.append("colours to sRGB")
                    return converted
        # A broken profile is no reason to lose the picture: its colours are taken as they are.
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            changes.append("unreadable colour profile ignored")
    if image.mode == "CMYK":
        changes.append("CMYK to RGB")
        return image.convert("RGB")
    return image
