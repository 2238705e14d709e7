"""What a batch costs: its rate beside that of the bare async client, in one run.

    .venv/bin/python tests/batch/load_batch.py [ROUNDS [PICTURES]]

The local server with the echo engine, which takes 50 ms for an answer, in a process of its own.
`AsyncPhosphoClient` with 64 workers and `describe_many(concurrency=64)` take turns with the same
pictures; the batch's time is that of its work, from the first question to the last row, as its
manifest tells, and, beside it, all of it with counting and digesting. Exits with 1 if the batch
keeps less than 0.8 of the bare client's rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from phospho_multimodal import AsyncPhosphoClient
from phospho_multimodal.batch import describe_many

AT_ONCE = 64
TARGET = 0.8

SERVER = """
import asyncio, uvicorn
from phospho_multimodal.server import create_app
from phospho_multimodal.server.run import TimeoutProtocol
from phospho_multimodal.server.engines.echo import EchoEngine
from phospho_multimodal.server.run import bind

class Slow(EchoEngine):
    async def describe(self, picture, question):
        await asyncio.sleep(0.05)
        return super().describe(picture, question)

app = create_app(Slow(), workers=256, max_queue=256)
listener = bind("127.0.0.1", 0, api_key=None)
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(app, http=TimeoutProtocol, access_log=False, log_level="error", ws="none")
uvicorn.Server(config).run(sockets=[listener])
"""


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Serve in a process of its own."""
    process = subprocess.Popen(  # noqa: S603 - our own text
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait(20)


def draw(folder: Path, count: int) -> list[Path]:
    """Draw pictures of a few kilobytes, all of them different."""
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        noise = random.Random(number).randbytes(16 * 16 * 3)  # noqa: S311 - pixels
        Image.frombytes("RGB", (16, 16), noise).resize((160, 160)).save(path, quality=90)
    return paths


def bare(base_url: str, paths: list[Path]) -> float:
    """Ask with the client alone; pictures a second."""

    async def run() -> float:
        waiting = iter(paths)
        async with AsyncPhosphoClient(base_url=base_url, max_concurrency=AT_ONCE) as client:

            async def worker() -> None:
                for path in waiting:
                    await client.describe(path)

            begin = time.monotonic()
            await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
            return len(paths) / (time.monotonic() - begin)

    return asyncio.run(run())


def batch(base_url: str, folder: Path, out: Path, count: int) -> tuple[float, float]:
    """Describe them all; pictures a second, of the work and of all of it."""
    begin = time.monotonic()
    summary = describe_many(folder, out, base_url=base_url, concurrency=AT_ONCE)
    assert summary.described == count
    return count / summary.manifest["seconds"], count / (time.monotonic() - begin)


def main() -> int:
    """Measure, print, judge."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 3000
    shares, whole = [], []
    with tempfile.TemporaryDirectory() as scratch, server() as base_url:
        folder = Path(scratch) / "pictures"
        folder.mkdir()
        paths = draw(folder, count)
        bare(base_url, paths[:200])
        for number in range(rounds):
            alone = bare(base_url, paths)
            work, everything = batch(base_url, folder, Path(scratch) / f"out{number}", count)
            print(f"bare {alone:.0f}, batch {work:.0f}, with counting and all {everything:.0f} a s")
            shares.append(work / alone)
            whole.append(everything / alone)
    share = statistics.median(shares)
    print(f"{share:.2f} of the bare client; {statistics.median(whole):.2f} with counting and all")
    return 0 if share >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
