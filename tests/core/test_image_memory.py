"""Every image that is accepted needs at most 600 MB; what needs more is rejected by its header."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw

from phospho_multimodal import ImageError, prepare_image
from pictures import encoded

MOST_MEGABYTES = 600

# VmHWM, since `ru_maxrss` begins with that of the process which started this one.
PEAK = """
import re, sys
from phospho_multimodal import prepare_image
prepared = prepare_image(sys.stdin.buffer.read())
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(max(prepared.width, prepared.height), int(peak) // 1024)
"""


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Soft noise: cheap to make, and not so regular that its file would be a bomb."""
    small = Image.effect_noise((width // 20, height // 20), 90).convert(mode)
    return small.resize((width, height), Image.Resampling.BILINEAR)


LARGEST: dict[str, Callable[[], bytes]] = {
    "WebP of 48 megapixels": lambda: encoded(noise(8000, 6000), "WEBP", method=0),
    "WebP of 43 transparent megapixels": lambda: encoded(
        noise(7200, 6000, "RGBA"), "WEBP", method=0
    ),
    "PNG of 99 megapixels": lambda: encoded(noise(11_000, 9_000, "L"), "PNG", compress_level=1),
    "JPEG of 200 megapixels": lambda: encoded(noise(16_320, 12_240), "JPEG", quality=60),
    "progressive JPEG of 108 megapixels": lambda: encoded(
        noise(12_000, 9_000), "JPEG", quality=60, progressive=True
    ),
    "TIFF of 60 megapixels in one strip": lambda: encoded(
        noise(10_000, 6_000), "TIFF", compression="jpeg", tiffinfo={278: 6_000}
    ),
    # Half as large as is accepted, since encoding takes long.
    "AVIF of 20 megapixels": lambda: encoded(
        noise(5000, 4000), "AVIF", speed=10, quality=30, subsampling="4:4:4"
    ),
}


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_image_of_each_format_needs_at_most_600_megabytes(name: str):
    run = [sys.executable, "-c", PEAK]
    child = subprocess.run(run, input=LARGEST[name](), capture_output=True, check=False)  # noqa: S603

    assert child.returncode == 0, child.stderr.decode()[-500:]
    side, peak = map(int, child.stdout.split())
    assert side == 1536
    assert peak < (MOST_MEGABYTES if "AVIF" not in name else MOST_MEGABYTES / 2)


def resized_header(file: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    """Write another size into a JPEG's frame header."""
    sizes = [height.to_bytes(2, "big") + width.to_bytes(2, "big") for width, height in (old, new)]
    return file.replace(sizes[0], sizes[1], 1)


SMALL_WEBP = encoded(noise(1600, 1200), "WEBP", method=0)
LARGE_WEBP = SMALL_WEBP[:26] + (9900).to_bytes(2, "little") * 2 + SMALL_WEBP[30:]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        pytest.param(
            lambda: LARGE_WEBP,
            r"9900 × 9900 pixels would take 1,\d{3} MB of memory",
            id="WebP of 98 megapixels",
        ),
        pytest.param(
            lambda: resized_header(
                encoded(noise(1600, 1200), progressive=True), (1600, 1200), (16_320, 12_240)
            ),
            "part of the data|MB of memory",
            id="progressive JPEG of 200 megapixels",
        ),
        pytest.param(
            lambda: resized_header(encoded(noise(1600, 1200)), (1600, 1200), (20_000, 10_100)),
            "at most 200 million|part of the data",
            id="JPEG of 202 megapixels",
        ),
    ],
)
def test_what_needs_more_memory_is_rejected(file, reason: str):
    with pytest.raises(ImageError, match=reason):
        prepare_image(file())


def plan(width: int, height: int, mode: str, rooms: int) -> Image.Image:
    """Lines and rooms, as on an architect's plan."""
    sheet = Image.new(mode, (width, height), "white" if mode == "RGB" else 1)
    pen = ImageDraw.Draw(sheet)
    for number in range(rooms):
        left, top = number * 719 % (width - 1300), number * 977 % (height - 1100)
        box = (left, top, left + 400 + number * 5, top + 300 + number * 4)
        pen.rectangle(box, outline=0, width=8)
        pen.line((left, top, box[2], box[3]), fill=0, width=3)
    return sheet


@pytest.mark.parametrize(
    ("kind", "mode", "size", "options"),
    [
        ("TIFF", "1", (7016, 9933), {"compression": "group4"}),
        ("PNG", "1", (7016, 9933), {}),
        ("WEBP", "RGB", (6000, 4000), {"lossless": True, "method": 0}),
        ("WEBP", "RGB", (5000, 4000), {"method": 0}),
        ("GIF", "1", (7016, 9933), {}),
    ],
)
def test_a_large_drawing_of_few_bytes_is_not_a_bomb(kind, mode, size, options):
    file = encoded(plan(*size, mode, 40 if kind == "WEBP" else 150), kind, **options)
    assert size[0] * size[1] > 100 * len(file)

    assert max(prepare_image(file).width, prepare_image(file).height) == 1536
