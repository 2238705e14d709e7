"""Pixels: opening by content, upright, in sRGB, on white, and back into a file. Needs Pillow.

Everything that decodes is here, and nothing else imports Pillow; it is loaded when the first
picture needs it.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.colours import Flattening, to_srgb
from phospho_multimodal.images.headers import is_empty_jpeg, is_endless_jpeg, sniff

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

LARGE_PIXELS = 36_000_000
"""A screen of 8K has 33 million."""
_LARGE_PIXELS_OF = {"AVIF": 20_000_000, "HEIF": 20_000_000, "WEBP": 16_000_000}
"""AVIF and HEIC are frames of video, which take nine bytes a pixel to decode; WebP takes 16."""
PIXELS_PER_BYTE = 100
"""What is larger than that and has less than a byte for 100 pixels is a bomb: drawings and scans
have ten times that, photos a hundred times."""

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
_STRIP_ROWS = 256
_MUCH_TO_FLATTEN = 16_000_000


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
    _check_unfolding(image, data)
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


def _check_unfolding(image: Image.Image, data: bytes) -> None:
    """Refuse a small file that makes very much work, or too small a one."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # It is decoded at a fraction of its size, but in passes.
        if is_endless_jpeg(data):
            message = (
                "The JPEG file is made of far more parts than a picture needs, as a decompression"
                " bomb is. Save it anew."
            )
            raise ImageError(message)
        if is_empty_jpeg(data, image.width, image.height):
            message = "The JPEG file is broken or cut off: it has next to no data for its pixels."
            raise ImageError(message)
        return
    large = _LARGE_PIXELS_OF.get(image.format or "", LARGE_PIXELS)
    if image.width * image.height > max(large, len(data) * PIXELS_PER_BYTE):
        message = (
            f"The image's {len(data):,} bytes would unfold to {image.width} × {image.height}"
            " pixels, as a decompression bomb does. Shrink it first."
        )
        raise ImageError(message)


def to_rgb(
    image: Image.Image,
    *,
    max_side: int | None = None,
    changes: list[str] | None = None,
    borrowed: bool = False,
) -> Image.Image:
    """Make a picture upright, sRGB, opaque and small enough.

    Args:
        image: An opened image; of an animation the first frame is taken.
        max_side: Longest side to shrink to, in pixels; `None` keeps the size.
        changes: Takes a word for each thing that was done.
        borrowed: Whether the image is the caller's own, and has to stay as it is; its present
            frame is taken.

    Returns:
        A picture of mode RGB or L, without any metadata.

    Raises:
        ImageError: It cannot be decoded.
    """
    noted = [] if changes is None else changes
    return _guarded(lambda: _convert(image, max_side, noted, borrowed=borrowed), image.format)


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


def _convert(
    image: Image.Image, max_side: int | None, changes: list[str], *, borrowed: bool
) -> Image.Image:
    size = _smaller(image.size, max_side)
    if not borrowed:
        _choose_what_to_decode(image, size, changes)
    # Pillow turns a TIFF by itself while loading; of a PNG the end may tell its orientation.
    turned = image.format == "TIFF" and _orientation(image) in _UPRIGHT
    image.load()
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    flattening = Flattening.of(image)
    picture = _reduced(image, size, flattening)
    changes += flattening.changes()
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if image.size != size:
        changes.append(f"shrunk to {size[0]} × {size[1]}")
    picture = to_srgb(picture, profile, changes)
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
        turned = True
    if turned:
        changes.append("turned upright")
    if picture is image:
        picture = image.copy()  # it is the caller's, or a file that would be held open
    picture.info = {}
    return picture


def _choose_what_to_decode(image: Image.Image, size: tuple[int, int], changes: list[str]) -> None:
    if getattr(image, "is_animated", False):
        changes.append("first frame of an animation")
        image.seek(0)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and size != image.size:
        # Decode at the smallest sufficient eighth: a quarter of the time and of the memory.
        image.draft(None, size)


def _reduced(image: Image.Image, size: tuple[int, int], flattening: Flattening) -> Image.Image:
    """Flatten a picture, and shrink one that is far too large by a whole number.

    That is done strip by strip, so that of a picture of 200 MB no copies of its size are made on
    the way. Twice the size that is wanted is left for the finer method, or all that memory allows.
    """
    large = image.width * image.height > _MUCH_TO_FLATTEN and not flattening.is_flat
    spare = 1 if large else 2
    factor = max(1, min(image.width // (spare * size[0]), image.height // (spare * size[1])))
    if factor == 1 and (flattening.is_flat or image.height <= _STRIP_ROWS):
        return flattening.flat(image)
    rows = factor * _STRIP_ROWS
    sheet: Image.Image | None = None
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        part = flattening.flat(strip).reduce(factor)
        if sheet is None:
            reduced = (-(-image.width // factor), -(-image.height // factor))
            sheet = Image.new(part.mode, reduced)
        sheet.paste(part, (0, top // factor))
    assert sheet is not None  # noqa: S101 - a picture has at least one row
    return sheet


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
