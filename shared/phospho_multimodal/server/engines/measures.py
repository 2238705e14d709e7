"""Measures of an image: size, orientation, colours, brightness, sharpness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["brightness", "dominant_colours", "measure", "orientation", "sharpness"]

PALETTE = {
    "black": (0, 0, 0),
    "dark grey": (70, 70, 70),
    "grey": (130, 130, 130),
    "light grey": (200, 200, 200),
    "white": (255, 255, 255),
    "red": (220, 20, 20),
    "dark red": (120, 10, 15),
    "orange": (250, 140, 20),
    "brown": (120, 72, 30),
    "beige": (230, 210, 170),
    "yellow": (250, 230, 30),
    "olive": (125, 125, 20),
    "green": (40, 170, 50),
    "bright green": (30, 250, 30),
    "dark green": (10, 80, 25),
    "turquoise": (50, 210, 200),
    "sky blue": (130, 200, 250),
    "blue": (20, 60, 240),
    "dark blue": (10, 20, 100),
    "purple": (125, 30, 170),
    "magenta": (240, 20, 220),
    "pink": (250, 170, 190),
}
"""Colour names that people use, and a point in sRGB for each."""

_SAMPLE_SIDE = 256  # a larger sample has nearly the same shares of colours
_DETAIL_SIDE = 1024  # one scale for all images, because sharpness depends on it
_MAX_COLOURS = 3
_SMALLEST_SHARE = 0.05

_BRIGHTNESS_WORDS = ((15, "very dark"), (35, "dark"), (65, "medium"), (85, "bright"))
_SHARPNESS_WORDS = ((1, "no detail"), (30, "blurred"), (150, "soft"))


def measure(image: Image.Image) -> str:
    """Describe an RGB image by its measures, with one line for each."""
    colours = ", ".join(
        f"{name} ({_percent(share)})" for name, share in dominant_colours(image).items()
    )
    light = brightness(image)
    detail = sharpness(image)
    return "\n".join(
        (
            f"Size: {image.width} × {image.height} pixels, {orientation(image)}.",
            f"Dominant colours: {colours}.",
            f"Brightness: {_word(light, _BRIGHTNESS_WORDS, 'very bright')} ({light:.0f} of 100).",
            f"Sharpness: {_word(detail, _SHARPNESS_WORDS, 'sharp')} (Laplacian {detail:.0f}).",
        )
    )


def orientation(image: Image.Image) -> str:
    """Name the orientation: landscape, portrait or square."""
    if image.width == image.height:
        return "square"
    return "landscape" if image.width > image.height else "portrait"


def dominant_colours(image: Image.Image) -> dict[str, float]:
    """Name the colours that cover most of an RGB image.

    Returns:
        Name → share of the pixels, the largest first: at most three, each a twentieth or more
        (the first one always).
    """
    # NEAREST, because an average of black print and white paper would be grey.
    pixels = np.asarray(_reduced(image, _SAMPLE_SIDE, Image.Resampling.NEAREST)).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    names = list(PALETTE)
    points = _oklab(np.array(list(PALETTE.values())))
    # One column of distances at a time, because all of them take 12 MB for a photograph.
    nearest = np.zeros(len(colours), dtype=np.intp)
    smallest = np.full(len(colours), np.inf)
    values = _oklab(colours)
    for index, point in enumerate(points):
        distance = ((values - point) ** 2).sum(axis=1)
        closer = distance < smallest
        nearest[closer] = index
        smallest[closer] = distance[closer]
    shares = np.bincount(nearest, weights=counts, minlength=len(names)) / counts.sum()
    order = np.argsort(-shares, kind="stable")[:_MAX_COLOURS]
    kept = [i for rank, i in enumerate(order) if rank == 0 or shares[i] >= _SMALLEST_SHARE]
    return {names[i]: float(shares[i]) for i in kept}


def brightness(image: Image.Image) -> float:
    """Measure the mean luminance from 0 (black) to 100 (white)."""
    sample = _reduced(image, _SAMPLE_SIDE, Image.Resampling.BOX).convert("L")
    return float(np.asarray(sample, dtype=np.float64).mean() / 255 * 100)


def sharpness(image: Image.Image) -> float:
    """Measure the variance of the Laplacian: 0 without detail, hundreds in a sharp image."""
    sample = _reduced(image, _DETAIL_SIDE, Image.Resampling.BOX).convert("L")
    grey = np.pad(np.asarray(sample, dtype=np.float64), 1, mode="edge")
    middle = grey[1:-1, 1:-1]
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((neighbours - 4 * middle).var())


def _reduced(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, resampling)


def _oklab(colours: NDArray[Any]) -> NDArray[np.float64]:
    """Convert sRGB of 0 to 255 to Oklab, where distances are close to visible differences.

    The matrices are Björn Ottosson's, https://bottosson.github.io/posts/oklab/.
    """
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)  # noqa: PLR2004 - sRGB's own
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    lab: NDArray[np.float64] = np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
    return lab


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _word(value: float, words: tuple[tuple[float, str], ...], above: str) -> str:
    return next((word for limit, word in words if value < limit), above)
