"""Broken pictures by chance, for as long as you like: is there one that does more than fail?

    python tests/fuzz/fuzz_images.py --minutes 10

Files of every format are cut, spliced, flipped and given extreme numbers. Each has to end in a
picture or in an ImageError, within a second of processor time and 300 MB, in a process of its own
that a crash would end. Findings are kept beside this file, in `found/`.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import random
import struct
import sys
import time
from collections import Counter

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

from measured_child import LIMIT_BYTES, LIMIT_SECONDS, measure  # noqa: E402
from PIL import Image  # noqa: E402

from pictures import draw, encoded  # noqa: E402

BATCH = 200
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def seeds() -> list[bytes]:
    """Whole files of every format, in as many modes as it has."""
    files: list[bytes] = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"):
        picture = Image.new("I;16", (61, 43), 900) if mode == "I;16" else draw(61, 43).convert(mode)
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
            options = {"exif": exif} if kind in {"JPEG", "PNG", "WEBP"} else {}
            try:
                files.append(encoded(picture, kind, **options))
            except (OSError, KeyError, ValueError):
                continue  # that format has not got that mode
    for kind in ("GIF", "WEBP", "PNG"):
        frames = [draw(40, 30, colour) for colour in ("red", "blue")]
        files.append(encoded(draw(40, 30), kind, save_all=True, append_images=frames))
    files.append(encoded(draw(), "JPEG", progressive=True))
    packings = ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")
    files += [encoded(draw(), "TIFF", compression=packing) for packing in packings]
    try:
        import pillow_heif  # noqa: PLC0415 - an extra
    except ImportError:
        return files
    buffer = io.BytesIO()
    pillow_heif.from_pillow(draw(64, 48)).save(buffer, format="HEIF")
    return [*files, buffer.getvalue()]


def mutated(chance: random.Random, files: list[bytes]) -> bytes:
    """Break a file in one to six places."""
    file = bytearray(chance.choice(files))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(max(1, len(file)))
        kind = chance.randrange(7)
        if kind == 0:
            file[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            file = file[:at]
        elif kind == 2:
            form = chance.choice(["<H", ">H", "<I", ">I"])
            number = chance.choice(EXTREMES) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
            packed = struct.pack(form, number)
            file[at : at + len(packed)] = packed
        elif kind == 3:
            other = chance.choice(files)
            start = chance.randrange(len(other))
            file[at:at] = other[start : start + chance.randrange(400)]
        elif kind == 4:
            del file[at : at + chance.randrange(64)]
        elif kind == 5:
            file[at:at] = file[at : at + chance.randrange(64)] * chance.randrange(1, 30)
        else:
            file[at : at + 8] = chance.randbytes(8)
    return bytes(file)


def fuzz(
    seconds: float, seed: int, *, keep: pathlib.Path | None = None
) -> tuple[Counter[str], int]:
    """Try broken files until the time is over.

    Args:
        seconds: How long.
        seed: Of the chance.
        keep: A folder for files that did more than fail.

    Returns:
        How many ended how, and how many of them are findings.
    """
    chance = random.Random(seed)  # noqa: S311 - which bytes, not which secrets
    files = seeds()
    ends: Counter[str] = Counter()
    findings = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        batch = [mutated(chance, files) for _ in range(BATCH)]
        for file, result in zip(batch, measure(batch), strict=False):
            ends[result.end] += 1
            slow, large = result.seconds > LIMIT_SECONDS, result.growth > LIMIT_BYTES
            if result.end in {"image", "ImageError"} and not slow and not large:
                continue
            findings += 1
            print(f"{result.end}: {result.seconds:.2f} s, {result.growth:,} bytes")
            if keep is not None:
                keep.mkdir(exist_ok=True)
                (keep / f"{seed}-{findings}.bin").write_bytes(file)
    return ends, findings


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    found = pathlib.Path(__file__).with_name("found")
    ends, findings = fuzz(options.minutes * 60, options.seed, keep=found)
    print(f"{sum(ends.values()):,} files: {dict(ends.most_common())}; findings: {findings}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
