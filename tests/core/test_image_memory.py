"""Every image that is accepted needs at most 600 MB; what needs more is rejected by its header."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageDraw

from image_files import chunk
from phospho_multimodal import ImageError, prepare_image
from pictures import encoded

MOST_MEGABYTES = 600
PROCESS = 45
"""Megabytes of the interpreter and Pillow."""
PNG = b"\x89PNG\r\n\x1a\n"

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


def large_png(width: int, height: int, colors: int, *extra: bytes) -> bytes:
    """A PNG of 16 bits whose rows are all alike, with enough other bytes not to be a bomb."""
    samples = {2: 3, 6: 4}[colors]
    row = b"\0" + bytes(place * 7 % 256 for place in range(width * samples * 2))
    pack = zlib.compressobj(1)
    pixels = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 16, colors, 0, 0, 0)
    chunks = chunk(b"IHDR", header), *extra, chunk(b"tEXt", b"a\0" + padding(width * height))
    return PNG + b"".join((*chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")))


def large_tiff(shape: tuple[int, ...], kind: str, value: float) -> bytes:
    """A TIFF of one compressed strip, with enough other bytes not to be a bomb."""
    file = io.BytesIO()
    colors = "rgb" if len(shape) == 3 else "minisblack"
    options = {"photometric": colors, "compression": "zlib", "rowsperstrip": shape[0]}
    tifffile.imwrite(file, np.full(shape, value, kind), **options)
    return file.getvalue() + padding(shape[0] * shape[1])


def padding(pixels: int) -> bytes:
    return b"x" * (pixels // 250)


def heic(width: int, height: int, *, deep: bool) -> bytes:
    """A HEIC of 8 or 10 bits; 4:4:4 takes the most memory."""
    samples = np.asarray(noise(width, height))
    if deep:
        samples = samples.astype(np.uint16) * 257
    image = pillow_heif.from_bytes("RGB;16" if deep else "RGB", (width, height), samples.tobytes())
    file = io.BytesIO()
    image.save(file, quality=30, chroma=444, enc_params={"preset": "ultrafast"})
    return file.getvalue()


LARGEST: dict[str, Callable[[], bytes]] = {
    "WebP of 48 megapixels": lambda: encoded(noise(8000, 6000), "WEBP", method=0, quality=50),
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
    "PNG of 99 megapixels and 16 bits": lambda: large_png(11_000, 9_000, 2),
    "PNG of 99 transparent megapixels and 16 bits": lambda: large_png(11_000, 9_000, 6),
    "PNG of 48 megapixels and 16 bits with a transparent color": lambda: large_png(
        8_000, 6_000, 2, chunk(b"tRNS", bytes(6))
    ),
    "TIFF of 60 megapixels of floats": lambda: large_tiff((6_000, 10_000), "f4", 0.5),
    "TIFF of 55 megapixels and 16 bits": lambda: large_tiff((5_500, 10_000, 3), "u2", 500),
    "GIF of 99 megapixels and two frames": lambda: (
        encoded(
            Image.new("L", (11_000, 9_000), 9),
            "GIF",
            save_all=True,
            append_images=[Image.new("L", (11_000, 9_000), 99)],
        )
        + padding(99_000_000)
    ),
    "WebP of 40 megapixels and two frames": lambda: encoded(
        noise(8000, 5000), "WEBP", method=0, save_all=True, append_images=[noise(8000, 5000)]
    ),
    "AVIF of 20 megapixels": lambda: encoded(
        noise(5000, 4000), "AVIF", speed=10, quality=30, subsampling="4:4:4"
    ),
    "HEIC of 20 megapixels": lambda: heic(5000, 4000, deep=False),
    "HEIC of 12 megapixels and 10 bits": lambda: heic(4000, 3000, deep=True),
}
MOST_ACCEPTED = {"AVIF of 20": 53, "HEIC of 20": 53, "HEIC of 12": 33}
"""Megapixels that are accepted, where encoding so many would take minutes."""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_image_of_each_format_needs_at_most_600_megabytes(name: str):
    run = [sys.executable, "-c", PEAK]
    child = subprocess.run(run, input=LARGEST[name](), capture_output=True, check=False)  # noqa: S603

    assert child.returncode == 0, child.stderr.decode()[-500:]
    side, peak = map(int, child.stdout.split())
    assert side == 1536
    tested = [(int(case.split()[-1]), most) for case, most in MOST_ACCEPTED.items() if case in name]
    share = tested[0][0] / tested[0][1] if tested else 1
    assert peak < PROCESS + (MOST_MEGABYTES - PROCESS) * share


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
