"""The errors for image files that cannot be sent: each names the true reason and what to do."""

from __future__ import annotations

from typing import NoReturn

from phospho_multimodal.errors import ImageError

__all__ = ["raise_image_error", "raw_error", "unsupported"]


def raw_error(name: str) -> ImageError:
    """Make the error for a camera raw file."""
    message = (
        f"This is {name}: at most its thumbnail could be read. Export it as JPEG or TIFF with a raw"
        " converter, or pass the JPEG that the camera saved with it."
    )
    return ImageError(message)


def unsupported(variant: object, kind: str) -> ImageError:
    """Make the error for a valid file that Pillow cannot read."""
    message = (
        f"This variant of {kind} is not supported ({str(variant)[:90]}). Convert the image to PNG"
        f" or JPEG first: magick in.{kind.lower()} out.png."
    )
    return ImageError(message)


def raise_image_error(failure: Exception, kind: str | None) -> NoReturn:
    """Raise an `ImageError` for any failure of a reader: Pillow's raise a dozen kinds of errors."""
    if isinstance(failure, ImageError):
        raise failure from None
    if kind == "BMP" and isinstance(failure, ValueError):  # a palette of unusual size
        raise unsupported(failure, kind) from None
    if type(failure).__name__ == "DecompressionBombError":  # do not load Pillow for its class
        message = "The image's header declares too many pixels to decode. Shrink the image first."
    elif isinstance(failure, MemoryError):
        message = "Decoding the image would take too much memory. Shrink the image first."
    else:
        message = (
            f"The {kind or 'image'} file is broken or cut off and cannot be decoded"
            f" ({type(failure).__name__})."
        )
    raise ImageError(message) from None
