"""How many words OCR reads of images with small text, sent whole and as tiles.

    python tests/image_corpus/read_hard_cases.py

Takes some minutes. The engine is that of the local server (`rapidocr`). Exit code 1 means that
tiles fall below the aim in one of the five cases.
"""

from __future__ import annotations

import io
import random
import re
import sys
from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidocr import RapidOCR

from phospho_multimodal import prepare_image
from phospho_multimodal.images.prepare import SendableImage
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import ConversationPlan
from phospho_multimodal.messages.image_parts import Passed, make_montage, parts_of
from phospho_multimodal.settings import Settings

AIM = 0.93
FONT = mpl.get_data_path() + "/fonts/ttf/DejaVuSans.ttf"
WORDS = re.findall(
    r"\w+",
    "invoice total amount customer delivery address number street garden window letter paper"
    " coffee morning picture table engine summer winter market station ticket travel museum"
    " library kitchen doctor teacher student science history music theatre mountain river",
)


class Text:
    """Words drawn in lines, remembered for the comparison."""

    def __init__(self, seed: int) -> None:
        self.words: list[str] = []
        self._chance = random.Random(seed)  # noqa: S311 - which words, not which secrets

    def line(self, count: int) -> str:
        words = [
            self._chance.choice(WORDS) + str(self._chance.randrange(10, 100)) for _ in range(count)
        ]
        self.words += words
        return " ".join(words)


def page(size: tuple[int, int], font_size: int, *, columns: int, step: int, seed: int):
    """A page of text in columns, and its words."""
    text = Text(seed)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.truetype(FONT, font_size)
    width = (size[0] - 40) // columns
    words = max(1, int((width - 40) / (font_size * 6)))
    for column in range(columns):
        for top in range(30, size[1] - 2 * step, step):
            pen.text((30 + column * width, top), text.line(words), fill="black", font=font)
    return image, text.words


def receipt_photo(seed: int):
    """A photo of a receipt on a table, slightly turned, and its words."""
    text = Text(seed)
    paper = Image.new("RGB", (1500, 2600), (250, 249, 245))
    pen = ImageDraw.Draw(paper)
    font = ImageFont.truetype(FONT, 50)
    for line in range(24):
        pen.text((90, 120 + 100 * line), text.line(3), fill=(40, 40, 44), font=font)
    table = Image.new("RGB", (3000, 4000), (120, 96, 74))
    turned = paper.rotate(seed % 3 - 1, expand=True, fillcolor=(120, 96, 74), resample=3)
    table.paste(turned.resize((turned.width * 13 // 10, turned.height * 13 // 10)), (450, 250))
    return table, text.words


def encoded(image: Image.Image, kind: str) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind, quality=92)
    return file.getvalue()


def read(engine: RapidOCR, image: SendableImage) -> str:
    """Read what stands on an image as it is sent."""
    picture = Image.open(io.BytesIO(image.data)).convert("RGB")  # type: ignore[union-attr]
    found = engine(np.asarray(picture)[:, :, ::-1])
    return " ".join(found.txts or ())


def share_read(words: list[str], texts: Iterator[str]) -> float:
    """The share of words that stand in the texts."""
    known = set(re.findall(r"[a-z]+\d+", " ".join(texts).lower()))
    return sum(word in known for word in words) / len(words)


def one_image(image: Image.Image, words: list[str], engine: RapidOCR) -> tuple[float, float, int]:
    """Read one image whole and as tiles."""
    file = encoded(image, "PNG")
    whole = share_read(words, iter([read(engine, prepare_image(file))]))
    settings = Settings.resolve(base_url="http://127.0.0.1", detail="tiles")
    plan = ConversationPlan("", (image_source(file),), "single", 0)
    parts = parts_of(plan, [Passed(image_source(file))], settings)
    return whole, share_read(words, (read(engine, part.image) for part in parts)), len(parts)


def receipts(engine: RapidOCR) -> tuple[float, float, int]:
    """Read sixteen photos on one montage, and on several."""
    photos = [receipt_photo(seed) for seed in range(16)]
    words = [word for _, found in photos for word in found]
    passed = [Passed(image_source(encoded(photo, "JPEG"))) for photo, _ in photos]
    settings = Settings.resolve(base_url="http://127.0.0.1", detail="tiles")
    sheet, _, _ = make_montage(passed, settings)
    whole = share_read(words, iter([read(engine, sheet)]))
    plan = ConversationPlan("", tuple(image.source for image in passed), "montage", 0)
    parts = parts_of(plan, passed, settings)
    return whole, share_read(words, (read(engine, part.image) for part in parts)), len(parts)


CASES: dict[str, Callable[[RapidOCR], tuple[float, float, int]]] = {
    "4K screenshot, 12-pixel text": lambda engine: one_image(
        *page((3840, 2160), 12, columns=8, step=40, seed=1), engine
    ),
    "4K screenshot, 10-pixel text": lambda engine: one_image(
        *page((3840, 2160), 10, columns=8, step=40, seed=2), engine
    ),
    "page of 1280 × 8000": lambda engine: one_image(
        *page((1280, 8000), 16, columns=2, step=48, seed=3), engine
    ),
    "newspaper of 3400 × 4800": lambda engine: one_image(
        *page((3400, 4800), 14, columns=7, step=60, seed=4), engine
    ),
    "16 photos of receipts": receipts,
}


def main() -> int:
    """Read all cases, or those whose name has a word from the command line."""
    engine = RapidOCR()
    worst = 1.0
    print(f"{'case':32} {'whole':>6} {'tiles':>6} {'images billed':>14}")
    for name, case in CASES.items():
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        whole, tiled, count = case(engine)
        worst = min(worst, tiled)
        print(f"{name:32} {whole:6.0%} {tiled:6.0%} {count:14}", flush=True)
    return 0 if worst >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
