"""A photo of 12 megapixels to 1536 pixels, against what people usually write with Pillow.

    python preparation.py ours|usual < photo.jpg

prints by how many bytes the peak of memory grew.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from io import BytesIO
from statistics import median

from PIL import Image, ImageOps

from machine import forget_peak, memory
from phospho_multimodal import prepare_image
from pictures_to_send import photo

__all__ = ["measure_preparation"]

_SIDE = 1536


def usual(data: bytes) -> bytes:
    """Turn upright, shrink, save: the recipe of a hundred answers."""
    picture = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert picture is not None
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def ours(data: bytes) -> bytes:
    return prepare_image(data, max_image_side=_SIDE).data


def measure_preparation(rounds: int) -> dict[str, float]:
    """Measure CPU time and memory.

    Args:
        rounds: How often each has a turn.

    Returns:
        `usual` and `ours` in milliseconds, `usual peak` and `ours peak` in MiB.
    """
    ways = {"usual": usual, "ours": ours}
    times: dict[str, list[float]] = {name: [] for name in ways}
    data = photo()
    for _ in range(rounds):
        for name in random.sample(list(ways), len(ways)):
            begin = time.process_time()
            ways[name](data)
            times[name].append((time.process_time() - begin) * 1e3)
    found = {name: median(all_) for name, all_ in times.items()}
    for name in ways:
        command = [sys.executable, __file__, name]
        grown = subprocess.run(command, input=data, capture_output=True, check=True).stdout
        found[f"{name} peak"] = int(grown) / 2**20
    return found


def main() -> None:
    way = {"usual": usual, "ours": ours}[sys.argv[1]]
    data = sys.stdin.buffer.read()
    small = BytesIO()
    Image.new("RGB", (2000, 64)).save(small, "JPEG")
    way(small.getvalue())  # what is loaded at the first picture
    before = memory("VmRSS")
    forget_peak()
    way(data)
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main()
