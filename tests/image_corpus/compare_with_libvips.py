"""Compare every image of some folders and archives with what libvips makes of it.

    python -m pip install --group image-corpus
    python tests/image_corpus/compare_with_libvips.py FOLDER ARCHIVE.tar.gz WHEEL.whl

Each file is prepared in a process of its own, so that a crash or a leak is counted and not
suffered. The table has one line for each way in which a file can end. Exit code 1 means that
something has to be looked at: wrong pixels, a crash, or more than two CPU seconds.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import pickle
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp"),
        *(".dib", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".hif", ".nef", ".dng"),
        *(".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".qoi", ".exr", ".dcm"),
    }
)
SIDE = 512
"""The longest side at which results are compared: enough for colours, orientation and parts."""
MOST_DIFFERENCE = 6.0
"""Mean difference of shades, 0 to 255, up to which two decoders agree."""
SPECK = 16
MOST_SECONDS = 2.0


@dataclass(frozen=True)
class Outcome:
    """What became of one file: `right`, `wrong`, `rejected`, `crashed`, `slow` or `alone`."""

    name: str
    end: str
    detail: str = ""


def files(roots: list[pathlib.Path]) -> Iterator[tuple[str, bytes]]:
    """Give the images of folders, tar and zip archives."""
    for root in roots:
        if root.is_dir():
            for path in sorted(root.rglob("*")):
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    yield str(path.relative_to(root)), path.read_bytes()
        elif zipfile.is_zipfile(root):
            with zipfile.ZipFile(root) as archive:
                for entry in archive.namelist():
                    if pathlib.PurePath(entry).suffix.lower() in SUFFIXES:
                        yield entry, archive.read(entry)
        else:
            with tarfile.open(root) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    if content and pathlib.PurePath(member.name).suffix.lower() in SUFFIXES:
                        yield member.name, content.read()


def by_libvips(data: bytes, size: tuple[int, int], changes: tuple[str, ...]) -> Any:
    """Decode, turn, convert to sRGB, put on a background and shrink, with libvips.

    Raises:
        ValueError: libvips cannot judge this file: it has other colours than the file says, or
            none that are fixed.
    """
    import numpy as np  # noqa: PLC0415 - a script's own dependencies
    import pyvips  # noqa: PLC0415

    image = pyvips.Image.new_from_buffer(data, "", fail_on="error")
    turned = image.get_typeof("orientation")
    image = image.autorot()
    profiled = image.get_typeof("icc-profile-data")
    if "colours to sRGB" in changes and not profiled:
        message = "libvips does not read this colour space (gAMA, cICP or a grey profile)"
        raise ValueError(message)
    if "turned upright" in changes and not turned:
        message = "libvips does not read this EXIF data (a text chunk)"
        raise ValueError(message)
    if image.format not in {"uchar", "ushort"} or (image.interpretation == "cmyk" and not profiled):
        message = f"no fixed colours: {image.format}, {image.interpretation}"
        raise ValueError(message)
    if profiled:
        image = image.icc_transform("srgb", embedded=True)
    elif image.interpretation not in {"srgb", "b-w"}:
        image = image.colourspace("srgb")
    if image.hasalpha():
        white = 65535 if image.format == "ushort" else 255
        background = 0 if "transparency on black" in changes else white
        image = image.flatten(background=[background] * (image.bands - 1))
    if image.format == "ushort" and image.interpretation in {"grey16", "rgb16"}:
        image = image / 257
    image = image.cast("uchar")
    if (image.width, image.height) != size:
        image = image.thumbnail_image(size[0], height=size[1], size="force")
    array = image.numpy()
    array = array if array.ndim == 3 else array[:, :, None]
    return np.broadcast_to(array[:, :, :3], (size[1], size[0], 3)).astype(float)


def by_us(data: bytes) -> tuple[Any, tuple[str, ...]]:
    """Prepare an image as it is sent, and decode that; give its pixels and what was changed."""
    from PIL import Image  # noqa: PLC0415 - a script's own dependency

    from phospho_multimodal import prepare_image  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepare_image(data)
    image = Image.open(io.BytesIO(prepared.data)).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image, prepared.changes


def compare(name: str, data: bytes) -> Outcome:
    """Compare one file; every exception is an outcome."""
    import numpy as np  # noqa: PLC0415 - a script's own dependency

    from phospho_multimodal import ImageError  # noqa: PLC0415

    began = time.process_time()
    try:
        ours, changes = by_us(data)
    except ImageError as error:
        return Outcome(name, "rejected", str(error))
    except Exception as error:  # noqa: BLE001 - told in the table
        return Outcome(name, "crashed", f"{type(error).__name__}: {error}")
    seconds = time.process_time() - began
    if seconds > MOST_SECONDS:
        return Outcome(name, "slow", f"{seconds:.1f} s")
    try:
        theirs = by_libvips(data, ours.size, changes)
    except Exception as error:  # noqa: BLE001
        return Outcome(name, "alone", str(error).strip().splitlines()[0][:100])
    difference = float(abs(np.asarray(ours, dtype=float) - theirs).mean())
    # Of a handful of pixels JPEG leaves less.
    most = MOST_DIFFERENCE if max(ours.size) > SPECK else 2 * MOST_DIFFERENCE
    end = "right" if difference < most else "wrong"
    return Outcome(name, end, f"mean difference {difference:.1f} ({', '.join(changes)})")


def outcomes(found: list[tuple[str, bytes]]) -> Iterator[Outcome]:
    """Compare files in a child process, and start another one after a crash."""
    waiting = list(found)
    while waiting:
        sent = b"".join(pickle.dumps(pair) for pair in waiting)
        child = subprocess.run(  # noqa: S603 - this very file
            [sys.executable, __file__, "--child"], input=sent, capture_output=True, check=False
        )
        answers = io.BytesIO(child.stdout)
        done = 0
        while answers.tell() < len(child.stdout):
            yield pickle.load(answers)  # noqa: S301 - from our own child
            done += 1
        if done < len(waiting) and child.returncode:
            yield Outcome(waiting[done][0], "crashed", f"exit code {child.returncode}")
            done += 1
        waiting = waiting[done:]


def serve() -> None:
    """Compare what comes on standard input."""
    out = sys.stdout.buffer
    while True:
        try:
            name, data = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        except EOFError:
            return
        out.write(pickle.dumps(compare(name, data)))
        out.flush()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("roots", nargs="+", type=pathlib.Path, help="folders or archives")
    found = list(files(parser.parse_args().roots))
    counts: Counter[str] = Counter()
    for outcome in outcomes(found):
        counts[outcome.end] += 1
        if outcome.end != "right":
            print(f"{outcome.end:9} {outcome.name}: {outcome.detail}")
    print(f"\n{len(found):,} files")
    for end, count in counts.most_common():
        print(f"{end:9} {count:6,}")
    return 1 if counts["wrong"] or counts["crashed"] or counts["slow"] else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        # The child's own module has another name, and answers must be readable by the parent.
        sys.modules["__main__"].Outcome = Outcome  # type: ignore[attr-defined]
        serve()
    else:
        sys.exit(main())
