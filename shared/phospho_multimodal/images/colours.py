"""Colours: whatever mode, depth, transparency and profile a picture has, as 8-bit sRGB on white."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageCms, ImageMath

from phospho_multimodal.errors import ImageError

__all__ = ["Flattening", "to_srgb"]

_PROFILE_MODES = {"RGB ": ("RGB",), "CMYK": ("CMYK",), "GRAY": ("L",)}
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_WIDE_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
_UNBOUNDED_MODES = frozenset({"I", "F"})
_FLAT_MODES = frozenset({"L", "RGB", "CMYK"})
_SIXTEEN_BIT = 65535.0
_OPAQUE = 255


@dataclass(slots=True)
class Flattening:
    """Makes 8 opaque bits of a picture, all of it or strip by strip.

    Attributes:
        mode: Of the picture.
        info: Of the picture: palettes keep their transparency there.
        darkest: What becomes black, in the picture's own numbers.
        span: How far above it white is.
        transparent: Whether anything transparent was met.
        depth: In words, what becomes of more than 8 bits.
    """

    mode: str
    info: dict[Any, Any]
    darkest: float = 0.0
    span: float = _SIXTEEN_BIT
    transparent: bool = False
    depth: str = "16 bits to 8"

    @classmethod
    def of(cls, image: Image.Image) -> Flattening:
        """Look at a picture as a whole, before it is done in parts."""
        flattening = cls(image.mode, image.info)
        if image.mode in _UNBOUNDED_MODES:
            flattening._find_white(*(_number(value) for value in image.getextrema()))
        return flattening

    def _find_white(self, low: float, high: float) -> None:
        """Floats and 32-bit integers have no fixed white: it is the first usual one that fits."""
        if not (math.isfinite(low) and math.isfinite(high)):
            message = "The image holds values that are not numbers, or endless. Save it anew."
            raise ImageError(message)
        whites = (1.0, 255.0, _SIXTEEN_BIT) if self.mode == "F" else (255.0, _SIXTEEN_BIT)
        fitting = [white for white in whites if low >= 0.0 and high <= white]
        self.span = fitting[0] if fitting else high - low
        self.darkest = 0.0 if fitting else low
        self.depth = f"values from {self.darkest:g} to {self.darkest + self.span:g} to 8 bits"

    @property
    def is_flat(self) -> bool:
        """Whether there is nothing to do."""
        return self.mode in _FLAT_MODES and "transparency" not in self.info

    def flat(self, part: Image.Image) -> Image.Image:
        """Flatten a part of the picture, or all of it.

        Args:
            part: Of the picture's own mode.

        Returns:
            The part in mode L, RGB or CMYK.
        """
        if self.mode in _WIDE_MODES:
            scale = 255.0 / self.span if self.span else 0.0
            offset = 0.5 - self.darkest * scale
            wide = part if self.mode == "F" else part.convert("F")
            flat = wide.point(lambda value: value * scale + offset).convert("L")
            return self._without_key(part, flat)
        if self.mode in _ALPHA_MODES or "transparency" in self.info:
            return self._on_white(part)
        if self.mode == "1":
            return part.convert("L")
        if self.mode in _FLAT_MODES:
            return part
        return part.convert("RGB")  # P, YCbCr, LAB, HSV, RGBX

    def _without_key(self, part: Image.Image, flat: Image.Image) -> Image.Image:
        """Put white where a 16-bit picture has the one value that it calls transparent."""
        key = self.info.get("transparency")
        if not isinstance(key, int):
            return flat
        same = ImageMath.lambda_eval(lambda of: (of["part"] == key) * 255, part=part.convert("I"))
        mask = same.convert("L")
        self.transparent |= mask.getbbox() is not None
        flat.paste(255, mask=mask)
        return flat

    def _on_white(self, part: Image.Image) -> Image.Image:
        picture = part.convert("RGBA")
        self.transparent |= _number(picture.getchannel("A").getextrema()[0]) < _OPAQUE
        sheet = Image.new("RGBA", part.size, "white")
        sheet.alpha_composite(picture)
        return sheet.convert("RGB")

    def changes(self) -> list[str]:
        """Tell in words what was done."""
        done = [self.depth] if self.mode in _WIDE_MODES else []
        return [*done, "transparency on white"] if self.transparent else done


def to_srgb(image: Image.Image, profile: bytes | None, changes: list[str]) -> Image.Image:
    """Convert the colours of a profile to sRGB, and CMYK to RGB.

    Args:
        image: In mode L, RGB or CMYK.
        profile: An ICC profile, if the picture had one.
        changes: Takes a word for each thing that was done.

    Returns:
        The picture in mode L or RGB.
    """
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode in _PROFILE_MODES.get(source.profile.xcolor_space, ()):
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
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


def _number(value: Any) -> float:
    return float(value)
