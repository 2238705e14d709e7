"""Pictures of a given weight: noise, since nothing compresses it; and one that is like a photo."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from random import Random

from PIL import Image, ImageFilter

__all__ = ["clean_jpeg", "photo"]


@lru_cache(maxsize=4)
def clean_jpeg(size: int) -> bytes:
    """Draw an upright JPEG without metadata, of about so many bytes: 708 pixels for a megabyte."""
    side = int((size / 1.88) ** 0.5)
    picture = Image.frombytes("RGB", (side, side), Random(0).randbytes(3 * side * side))
    best = b""
    for quality in range(100, 10, -5):
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality, subsampling=0)
        if not best or abs(file.tell() - size) < abs(len(best) - size):
            best = file.getvalue()
    return best


@lru_cache(maxsize=1)
def photo() -> bytes:
    """Draw an upright JPEG of 4000 × 3000 pixels that weighs what a photo does: 3 to 4 MB."""
    size = (4000, 3000)
    bands = []
    for blur in (2.0, 3.0, 4.0):
        soft = Image.effect_noise((1000, 750), 90).filter(ImageFilter.GaussianBlur(blur))
        grain = Image.effect_noise(size, 34)
        bands.append(Image.blend(soft.resize(size, Image.Resampling.BICUBIC), grain, 0.35))
    file = BytesIO()
    Image.merge("RGB", bands).save(file, "JPEG", quality=88)
    return file.getvalue()
