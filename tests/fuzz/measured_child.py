"""Run `prepare_image` on files in a process that may not grow by more than 300 MB."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["LIMIT_BYTES", "LIMIT_SECONDS", "Measured", "measure"]

LIMIT_BYTES = 300 * 1024 * 1024
LIMIT_SECONDS = 1.0
"""Of processor time: what a neighbour of the machine takes is not the picture's."""


@dataclass(frozen=True)
class Measured:
    """What became of one file.

    Attributes:
        end: `image`, `ImageError`, or anything else, which is a fault.
        seconds: Of processor time.
        growth: How far the process's resident memory rose above its start, in bytes, so far.
    """

    end: str
    seconds: float
    growth: int


def measure(files: Iterable[bytes]) -> list[Measured]:
    """Prepare files one after the other in a fresh process with a memory limit.

    Args:
        files: The files.

    Returns:
        What became of each; a process that died has fewer results than files.
    """
    here = pathlib.Path(__file__)
    sent = b"".join(pickle.dumps(file) for file in files)
    child = subprocess.run(  # noqa: S603 - this very file
        [sys.executable, str(here)], input=sent, capture_output=True, check=False
    )
    results: list[Measured] = []
    for line in child.stdout.decode().splitlines():
        end, seconds, growth = line.split("\t")
        results.append(Measured(end, float(seconds), int(growth)))
    if child.returncode:
        results.append(Measured(f"died with {child.returncode}: {child.stderr[-300:]!r}", 0.0, 0))
    return results


def _address_space() -> int:
    pages = pathlib.Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def _resident() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    (peak,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) * 1024


def _serve() -> None:
    from phospho_multimodal import ImageError, prepare_image  # noqa: PLC0415 - counted below
    from phospho_multimodal.images import decode  # noqa: PLC0415, F401 - before the limit

    warm = b"\x89PNG\r\n\x1a\n"
    with contextlib.suppress(ImageError):
        prepare_image(warm)
    # Far above what is measured: an allocation that fails ends in an ImageError, which would hide
    # what a file takes. It is there for the machine's sake alone.
    limit = _address_space() + 8 * LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            file = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        except EOFError:
            return
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before, start = _resident(), time.process_time()
        try:
            prepare_image(file)
            end = "image"
        except Exception as error:  # noqa: BLE001 - told to the parent
            end = type(error).__name__
        seconds = time.process_time() - start
        print(f"{end}\t{seconds:.3f}\t{_resident() - before}", flush=True)


if __name__ == "__main__":
    _serve()
