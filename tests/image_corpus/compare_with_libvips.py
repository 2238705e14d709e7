"""Compare every image of some folders and archives with what libvips makes of it.

    python -m pip install --group image-corpus
    python tests/image_corpus/compare_with_libvips.py FOLDER ARCHIVE.tar.gz WHEEL.whl

A child process prepares the files, so that a crash is counted and does not end the comparison. The
table has one line for each result. `unjudged` means that libvips cannot read the file, or not its
colors. Exit code 1 means that there were wrong pixels, a crash, or a file that took too long (more
than two CPU seconds, and more than 0.1 for each megapixel).
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
"""The longest side at which results are compared, in pixels."""
MOST_DIFFERENCE = 6.0
"""The mean difference of shades, from 0 to 255, up to which two decoders agree."""
SPECK = 16
MOST_SECONDS = 2.0
SECONDS_A_MEGAPIXEL = 0.1
"""libde265 takes most of this for a HEIC file."""


@dataclass(frozen=True)
class Outcome:
    """The result of one file: `right`, `wrong`, `rejected`, `crashed`, `slow` or `unjudged`."""

    name: str
    end: str
    detail: str = ""


def files(roots: list[pathlib.Path]) -> Iterator[tuple[str, bytes]]:
    """Yield the images of folders, and of tar and zip archives."""
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
    """Decode an image with libvips, and change it as `prepare_image` does.

    Raises:
        ValueError: libvips reads other colors than the file declares, or the file has no fixed
            colors.
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
        shades = {"black": 0, "grey": white * 128 // 255}
        named = [shade for name, shade in shades.items() if f"transparency on {name}" in changes]
        background = named[0] if named else white
        image = image.flatten(background=[background] * (image.bands - 1))
    if image.format == "ushort" and image.interpretation in {"grey16", "rgb16"}:
        image = image / 257
    image = image.cast("uchar")
    if (image.width, image.height) != size:
        image = image.thumbnail_image(size[0], height=size[1], size="force")
    array = image.numpy()
    array = array if array.ndim == 3 else array[:, :, None]
    return np.broadcast_to(array[:, :, :3], (size[1], size[0], 3)).astype(float)


def by_us(data: bytes) -> tuple[Any, tuple[str, ...], int]:
    """Prepare an image, and return its pixels, the changes, and the pixels of the source."""
    from PIL import Image  # noqa: PLC0415 - a script's own dependency

    from phospho_multimodal import prepare_image  # noqa: PLC0415
    from phospho_multimodal.images.decode import open_image  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_image(data).size
        prepared = prepare_image(data)
    image = Image.open(io.BytesIO(prepared.data)).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image, prepared.changes, source[0] * source[1]


def compare(name: str, data: bytes) -> Outcome:
    """Compare one file; every exception is an outcome."""
    import numpy as np  # noqa: PLC0415 - a script's own dependency

    from phospho_multimodal import ImageError  # noqa: PLC0415

    began = time.process_time()
    try:
        ours, changes, pixels = by_us(data)
    except ImageError as error:
        return Outcome(name, "rejected", str(error))
    except Exception as error:  # noqa: BLE001 - counted in the table
        return Outcome(name, "crashed", f"{type(error).__name__}: {error}")
    seconds = time.process_time() - began
    if seconds > max(MOST_SECONDS, SECONDS_A_MEGAPIXEL * pixels / 1e6):
        return Outcome(name, "slow", f"{seconds:.1f} s")
    try:
        theirs = by_libvips(data, ours.size, changes)
    except Exception as error:  # noqa: BLE001
        return Outcome(name, "unjudged", str(error).strip().splitlines()[0][:100])
    difference = float(abs(np.asarray(ours, dtype=float) - theirs).mean())
    # JPEG changes very small images more.
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
    """Compare the files that arrive on standard input."""
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
        # The child's module is named `__main__` too, so that the parent can unpickle its results.
        sys.modules["__main__"].Outcome = Outcome  # type: ignore[attr-defined]
        serve()
    else:
        sys.exit(main())
