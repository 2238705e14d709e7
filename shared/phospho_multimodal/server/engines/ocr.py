"""The engine without a vision model: it reads the text in an image, and measures the image.

RapidOCR's models are part of its wheel, so nothing is downloaded.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

try:
    import numpy as np
    from rapidocr import RapidOCR
    from rapidocr.utils.output import RapidOCROutput

    from phospho_multimodal.server.engines.measures import measure
except ModuleNotFoundError as missing:
    _message = (
        f"The engine 'ocr' needs {missing.name!r}, which is not installed:"
        ' pip install "phospho-multimodal[ocr]"'
    )
    raise ImportError(_message) from missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from phospho_multimodal.server.engines import InputImage, Question

__all__ = ["OcrEngine"]

DEFAULT_WORDS = 200
"""The longest answer in words, if the request does not set `max_new_tokens`."""

LIMITS = (
    "This answer comes from text recognition and measurement: no objects are recognised, and the"
    " question is not interpreted."
)

_LONGEST_SIDE = 2000  # RapidOCR would shrink to this, with more copies
_MAX_RATIO = 4  # RapidOCR enlarges the short side to 736: 27 s of work for 40 × 2000 pixels
_SAME_LINE = 0.5  # of the lower box's height


class OcrEngine:
    """Answers with the text in reading order, then with measured facts, then with its limits."""

    name = "ocr"

    def __init__(self) -> None:
        # Its logger would report every image without text on stderr.
        self._reader = RapidOCR(params={"Global.log_level": "error"})
        # A call writes its options into the reader, and one call uses every core.
        self._turn = threading.Lock()

    def describe(self, image: InputImage, question: Question) -> str:
        """Read and measure an image; `max_new_tokens` limits the words of the answer."""
        lines = self._read(image.pixels)
        text = "Text, in reading order:\n" + "\n".join(lines) if lines else "No text was found."
        answer = f"{text}\n\n{measure(image.pixels)}\n\n{LIMITS}"
        return _first_words(answer, question.parameters.max_new_tokens or DEFAULT_WORDS)

    def _read(self, image: Image.Image) -> list[str]:
        pixels = np.asarray(_resized(image))
        blue_green_red = np.ascontiguousarray(pixels[:, :, ::-1])
        with self._turn:
            found = self._reader(blue_green_red)
        # Another type, or `None` in it, means that there was no text.
        if not isinstance(found, RapidOCROutput) or found.boxes is None or found.txts is None:
            return []
        return in_reading_order(
            Box.around(corners.tolist(), text)
            for corners, text in zip(found.boxes, found.txts, strict=True)
        )


@dataclass(frozen=True)
class Box:
    """A piece of text and the upright rectangle around it."""

    text: str
    left: float
    top: float
    bottom: float

    @classmethod
    def around(cls, corners: Sequence[tuple[float, float]], text: str) -> Box:
        """Make the box around the corners of a quadrilateral."""
        columns = [x for x, _ in corners]
        rows = [y for _, y in corners]
        return cls(text, left=min(columns), top=min(rows), bottom=max(rows))

    def is_beside(self, other: Box) -> bool:
        """Check whether two boxes overlap vertically by half of the lower one's height."""
        overlap = min(self.bottom, other.bottom) - max(self.top, other.top)
        lower = min(self.bottom - self.top, other.bottom - other.top)
        return overlap > _SAME_LINE * lower


def in_reading_order(boxes: Iterable[Box]) -> list[str]:
    """Join pieces of text into lines, from top to bottom and from left to right."""
    lines: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: (box.top + box.bottom, box.left)):
        if lines and lines[-1][-1].is_beside(box):
            lines[-1].append(box)
        else:
            lines.append([box])
    return [" ".join(box.text for box in sorted(line, key=lambda b: b.left)) for line in lines]


def _resized(image: Image.Image) -> Image.Image:
    """Shrink a large image and extend a narrow one, because RapidOCR is slow with both."""
    longest = max(image.size)
    if longest > _LONGEST_SIDE:
        scale = _LONGEST_SIDE / longest
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    narrowest = max(image.size) // _MAX_RATIO
    if min(image.size) >= narrowest:
        return image
    # The corner has probably the colour of the background, so no edge looks like text.
    canvas = Image.new(
        "RGB", (max(image.width, narrowest), max(image.height, narrowest)), image.getpixel((0, 0))
    )
    canvas.paste(image, (0, 0))
    return canvas


def _first_words(text: str, count: int) -> str:
    """Cut a text after some words, and keep its lines."""
    for number, word in enumerate(re.finditer(r"\S+", text), start=1):
        if number == count:
            return text[: word.end()]
    return text
