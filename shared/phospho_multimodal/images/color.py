"""Convert any mode, depth, transparency and color profile to opaque 8-bit sRGB."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageChops, ImageCms, ImageFilter, ImageMath

from phospho_multimodal.errors import ImageError

__all__ = ["Flattening", "strips", "to_srgb"]

_PROFILE_MODES = {"RGB ": ("RGB", "RGBA", "L"), "CMYK": ("CMYK",), "GRAY": ("L",)}
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}
"""Modes with premultiplied alpha, and the modes to which Pillow converts them."""
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_UNBOUNDED_MODES = frozenset({"I", "F"})
_WIDE_MODES = _SIXTEEN_BIT_MODES | _UNBOUNDED_MODES
_FLAT_MODES = frozenset({"L", "RGB", "CMYK"})
_TWELVE_BIT, _SIXTEEN_BIT = 4095.0, 65535.0
_OPAQUE = 255
_UNSIGNED = 4294967296.0
_STEP_OF_GREY = {"L;2": 85, "L;4": 17}
"""The step between greys of 2 and 4 bits after Pillow has converted them to 8."""
_STRIP_PIXELS = 1_000_000

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_SAMPLE_SIDE = 768
_VISIBLE = 32
"""The least alpha of a visible pixel."""
_CONTRAST = 24
"""Shades between content and background, below which the content is lost."""
_MOST_LOST = 0.7
_BACKGROUNDS = {255: "white", 0: "black", 128: "grey"}


@dataclass(slots=True)
class Flattening:
    """Converts an image to 8 opaque bits, as a whole or in strips.

    Attributes:
        mode: The mode of the image.
        info: The metadata of the image, where palettes keep their transparency.
        key: The grey value that means transparent.
        darkest: The sample value that becomes black.
        span: The difference of white and black.
        is_inverted: Whether the largest number is black.
        is_signed: Whether a file says that its numbers have a sign, so that it has no usual white.
        is_unsigned: Whether negative numbers are large ones that overflowed.
        frame: The part of the canvas that a GIF's frame covers, if not all of it.
        background: The grey that stands behind transparency.
        transparent: Whether anything transparent was met.
        depth: In words, what becomes of more than 8 bits.
        profile: The colour space of an image with alpha, to be left before blending.
        converted: What was done about the colour space of each part.
    """

    mode: str
    info: dict[Any, Any]
    key: int | None = None
    darkest: float = 0.0
    span: float = _SIXTEEN_BIT
    is_inverted: bool = False
    is_unsigned: bool = False
    is_signed: bool = False
    frame: tuple[int, int, int, int] | None = None
    background: int = _OPAQUE
    transparent: bool = False
    depth: str = "16 bits to 8"
    profile: bytes | None = None
    converted: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, image: Image.Image, raw_mode: object = None, profile: bytes | None = None
    ) -> Flattening:
        """Inspect a whole image before its parts are converted; the file stores `raw_mode`."""
        flattening = cls(image.mode, image.info)
        key = image.info.get("transparency")
        if isinstance(key, int) and image.mode in _SIXTEEN_BIT_MODES | {"1", "L"}:
            flattening.key = key * _STEP_OF_GREY.get(str(raw_mode), 1)
        flattening._read_tags(getattr(image, "tag_v2", {}))
        if image.mode in _UNBOUNDED_MODES:
            flattening._find_white(image)
        if flattening._has_alpha:
            flattening.background = _background(image)
            flattening.profile = profile  # blended in another space, shadows would be too light
        return flattening

    def _read_tags(self, tags: Any) -> None:
        """Read the tags of a TIFF that Pillow ignores for more than 8 bits."""
        if self.mode not in _WIDE_MODES:
            return
        self.is_inverted = tags.get(_PHOTOMETRIC) == 0
        if tags.get(_BITS) == (12,):
            self.span, self.depth = _TWELVE_BIT, "12 bits to 8"
        if self.mode == "I":
            self.is_signed = tags.get(_SAMPLE_FORMAT) == (2,)
            self.is_unsigned = tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)

    def _find_white(self, image: Image.Image) -> None:
        """Choose the white of floats and 32-bit integers: the first usual one that fits."""
        low, high = math.inf, -math.inf
        for _, strip in strips(image):
            numbers = self._numbers(strip)
            # Pillow's extrema skip NaN. Only NaN does not equal itself.
            equal = ImageMath.lambda_eval(lambda of: of["n"] == of["n"], n=numbers)
            lowest, highest = (_number(value) for value in numbers.getextrema())
            if _number(equal.getextrema()[0]) == 0 or not math.isfinite(highest - lowest):
                message = (
                    "The image contains values that are not numbers, or infinite. Nothing was sent."
                    " Replace them and save the image again."
                )
                raise ImageError(message)
            low, high = min(low, lowest), max(high, highest)
        whites: tuple[float, ...] = (
            (1.0, 255.0, _SIXTEEN_BIT) if self.mode == "F" else (255.0, _SIXTEEN_BIT)
        )
        if self.is_signed:
            whites = (255.0,)
        if self.is_unsigned:
            whites = (*whites, _UNSIGNED)
        fitting = [white for white in whites if low >= 0.0 and high <= white]
        self.span = fitting[0] if fitting else high - low
        self.darkest = 0.0 if fitting else low
        self.depth = f"values from {self.darkest:g} to {self.darkest + self.span:g} to 8 bits"

    def _numbers(self, part: Image.Image) -> Image.Image:
        """Return the samples of a part as floats, without overflow."""
        numbers = part if part.mode == "F" else part.convert("F")
        if not self.is_unsigned:
            return numbers
        unsigned: Image.Image = ImageMath.lambda_eval(
            lambda of: of["n"] + (of["n"] < 0) * _UNSIGNED, n=numbers
        )
        return unsigned

    @property
    def _has_alpha(self) -> bool:
        return self.mode in _ALPHA_MODES or (
            self.key is None and self.info.get("transparency") is not None
        )

    @property
    def is_flat(self) -> bool:
        """Whether the image needs no conversion."""
        opaque = self.info.get("transparency") is None and self.frame is None
        return self.mode in _FLAT_MODES and opaque

    def flat(self, part: Image.Image, top: int = 0) -> Image.Image:
        """Convert a part of the image that begins at row `top`."""
        flat = self._opaque(part)
        return flat if self.frame is None else self._only_frame(flat, top)

    def _opaque(self, part: Image.Image) -> Image.Image:
        if self.mode in _WIDE_MODES:
            return self._without_key(part, self._eight_bits(part))
        if self._has_alpha:
            return self._on_background(part)
        if self.mode in {"1", "L"}:
            return self._without_key(part, part.convert("L"))
        if self.mode in _FLAT_MODES:
            return part
        if self.mode == "LAB":
            lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(part, lab, srgb, outputMode="RGB")
            assert converted is not None  # noqa: S101 - it is only changed in place if so asked
            return converted
        return part.convert("RGB")  # P, YCbCr, HSV, RGBX

    def _eight_bits(self, part: Image.Image) -> Image.Image:
        scale = 255.0 / self.span if self.span else 0.0
        offset = 0.5 - self.darkest * scale
        if self.is_inverted:
            scale, offset = -scale, 256.0 - offset
        return self._numbers(part).point(lambda value: value * scale + offset).convert("L")

    def _without_key(self, part: Image.Image, flat: Image.Image) -> Image.Image:
        """Put the background where the sample value means transparent."""
        if self.key is None:
            return flat
        if self.mode in _WIDE_MODES:
            key = self.key
            same = ImageMath.lambda_eval(
                lambda of: (of["part"] == key) * 255, part=part.convert("I")
            )
            mask = same.convert("L")
        else:
            mask = flat.point([255 * (shade == self.key) for shade in range(256)])
        if mask.getbbox() is None:
            return flat
        self.transparent = True
        flat = flat.copy()
        flat.paste(self.background, mask=mask)
        return flat

    def _on_background(self, part: Image.Image) -> Image.Image:
        straight = to_srgb(_with_alpha(part), self.profile, self.converted)
        self.transparent |= _number(straight.getchannel("A").getextrema()[0]) < _OPAQUE
        canvas = Image.new("RGBA", part.size, (self.background,) * 3)
        canvas.alpha_composite(straight)
        return canvas.convert("RGB")

    def _only_frame(self, part: Image.Image, top: int) -> Image.Image:
        """Put the background around a frame that is smaller than its canvas."""
        assert self.frame is not None  # noqa: S101 - asked before
        left, upper, right, lower = self.frame
        box = (left, max(0, upper - top), right, min(part.height, lower - top))
        self.transparent = True
        canvas = Image.new(part.mode, part.size, _BACKGROUNDS[self.background])
        if box[1] < box[3]:
            canvas.paste(part.crop(box), box)
        return canvas

    def changes(self) -> list[str]:
        """Describe in words what was done."""
        done = [self.depth] if self.mode in _WIDE_MODES else []
        if self.transparent:
            done.append(f"transparency on {_BACKGROUNDS[self.background]}")
        return [*done, *dict.fromkeys(self.converted)]


def strips(image: Image.Image, *, rows: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Cut an image into strips of a few million pixels."""
    height = rows * max(1, _STRIP_PIXELS // (image.width * rows))
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(image.height, top + height)))


def _with_alpha(image: Image.Image) -> Image.Image:
    straight = _STRAIGHT.get(image.mode)
    if straight is not None:
        image = image.convert(straight)
    return image.convert("RGBA")


def _background(image: Image.Image) -> int:
    """Choose the grey on which the visible content of an image can be seen: white, if it can.

    Content is lost if most of it has the shade of the background, and so have its edges. A white
    panel with a dark frame is seen on white.
    """
    sample = _sample(image)
    alpha = sample.getchannel("A")
    seen = alpha.point([255 * (value >= _VISIBLE) for value in range(256)])
    edges = ImageChops.subtract(seen, seen.filter(ImageFilter.MinFilter(3)))
    grey = sample.convert("L")
    shades = [grey.histogram(mask) for mask in (seen, edges)]

    def lost(background: int) -> float:
        close = slice(max(0, background - _CONTRAST), background + _CONTRAST + 1)
        return min(sum(counts[close]) / max(1, sum(counts)) for counts in shades)

    best = min(_BACKGROUNDS, key=lost)
    return best if lost(_OPAQUE) > _MOST_LOST and lost(best) < lost(_OPAQUE) / 2 else _OPAQUE


def _sample(image: Image.Image) -> Image.Image:
    """Shrink the visible part of an image, and a transparent margin if there is one."""
    box = (image.getbbox() if image.mode in _ALPHA_MODES else None) or (0, 0, *image.size)
    margin = 1 + max(image.size) // _SAMPLE_SIDE
    left, top = max(0, box[0] - margin), max(0, box[1] - margin)
    right, bottom = min(image.width, box[2] + margin), min(image.height, box[3] + margin)
    size = (min(right - left, _SAMPLE_SIDE), min(bottom - top, _SAMPLE_SIDE))
    shrunk = image.resize(size, Image.Resampling.NEAREST, box=(left, top, right, bottom))
    return _with_alpha(shrunk)


def to_srgb(image: Image.Image, profile: bytes | None, changes: list[str]) -> Image.Image:
    """Convert the colors of a profile to sRGB, and CMYK to RGB."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space
            if image.mode in _PROFILE_MODES.get(space, ()):
                target = ImageCms.createProfile("sRGB")
                mode = "RGBA" if image.mode == "RGBA" else "RGB"
                whole = image.convert(mode) if space == "RGB " else image
                converted = ImageCms.profileToProfile(whole, source, target, outputMode=mode)
                if converted is not None:
                    changes.append("colours to sRGB")
                    return converted.convert("L") if image.mode == "L" else converted
        # With a broken profile, keep the colors as they are instead of rejecting the image.
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            changes.append("unreadable colour profile ignored")
    if image.mode == "CMYK":
        changes.append("CMYK to RGB")
        return image.convert("RGB")
    return image


def _number(value: Any) -> float:
    return float(value)
