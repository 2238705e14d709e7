"""Images that come as numpy arrays, as parsers of PDF files pass them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from phospho_multimodal.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["NPY_MAGIC", "image_from_array", "image_from_npy"]

_CHANNELS = (1, 2, 3, 4)

NPY_MAGIC = b"\x93NUMPY"
"""The first bytes of a file that `numpy.save` wrote."""


def image_from_npy(data: bytes) -> Image:
    """Make an image from a file that `numpy.save` wrote."""
    try:
        import numpy as np  # noqa: PLC0415 - not needed for anything else here
    except ModuleNotFoundError:
        message = "This image is a numpy array, and reading it needs numpy: pip install numpy."
        raise ImageError(message) from None
    try:
        # A pickled array could run code.
        return _to_image(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, TypeError, OSError, EOFError, MemoryError) as failure:
        raise _unreadable(failure) from None


def image_from_array(array: Any) -> Image:
    """Make an image from an array: grey, grey and alpha, RGB or RGBA in bytes, or booleans.

    A grey array may have its one channel first.
    """
    if array.ndim == 3 and array.shape[0] == 1 and array.shape[2] not in _CHANNELS:  # noqa: PLR2004
        array = array[0]
    try:
        return _to_image(array)
    except (ValueError, TypeError, MemoryError) as failure:
        raise _unreadable(failure) from None


def _to_image(array: Any) -> Image:
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415 - heavy, so only now

    if array.ndim == 3 and array.shape[2] == 1:  # noqa: PLR2004 - rows, columns, channels
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _unreadable(failure: Exception) -> ImageError:
    message = f"The numpy array cannot be read as an image ({type(failure).__name__})."
    return ImageError(message)
