"""Twenty thousand pictures, faults, and twenty kills: does every row arrive once, and every cent?

    python tests/soak/batch_soak.py --pictures 20000 --kills 20

Three jobs, each a `phospho-multimodal batch` in a process of its own, against a server that fails
once in ten answers and counts what it bills:

1. a tenth of the pictures, for its peak of memory;
2. all of them, without a kill: one row each, billed and in doubt are what the server counted, no
   picture is billed twice but those in doubt, and the peak is that of the tenth;
3. all of them, killed at random moments and started again each time: the end is the same.

A third of the pictures are duplicates, and one in fifty is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["Job", "counts", "draw_pictures", "judge", "lab", "look", "soak"]

_COMMAND = "from phospho_multimodal.cli.main import main; main()"

BROKEN_EVERY = 50
BROKEN = b"\x89PNG\r\n\x1a\n and then nothing that a PNG has"


def draw_pictures(folder: Path, count: int) -> None:
    """Draw pictures: a third of them twice, one in fifty broken."""
    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number:06d}.png"
        if number % BROKEN_EVERY == BROKEN_EVERY - 1:
            path.write_bytes(BROKEN)
            continue
        original = number - 1 if number % 3 == 2 else number
        noise = random.Random(original).randbytes(12 * 12 * 3)  # noqa: S311 - pixels
        picture = Image.frombytes("RGB", (12, 12), noise)
        picture.save(path)


@contextlib.contextmanager
def lab(*, faults: float, seconds: float, seed: int = 2026, **options: int) -> Iterator[str]:
    """Start the server in a process of its own."""
    script = Path(__file__).with_name("batch_lab.py")
    told = [f"--faults={faults}", f"--seconds={seconds}", f"--seed={seed}"]
    told += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    server = subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, str(script), *told],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.communicate("", timeout=30)


def counts(base_url: str) -> dict[str, int]:
    """What the server billed, by the digest of the picture."""
    billed: dict[str, int] = look(base_url, "counts")
    return billed


def look(base_url: str, what: str) -> Any:
    """What the server tells about itself."""
    with urllib.request.urlopen(f"{base_url}/{what}") as answer:  # noqa: S310 - our own server
        return json.load(answer)


@dataclass
class Job:
    """A batch on the command line."""

    source: Path
    out: Path
    base_url: str
    concurrency: str = "64"

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        """Start it."""
        command = [sys.executable, "-c", _COMMAND, "batch", str(self.source)]
        options = ["--out", str(self.out), "--base-url", self.base_url, "--yes"]
        options += ["--concurrency", self.concurrency, "--format", "jsonl", *flags]
        return subprocess.Popen(command + options, stdout=subprocess.DEVNULL)  # noqa: S603

    def run(self, *flags: str) -> int:
        """Run it to its end, and tell the peak of its memory in KiB."""
        process = self.start(*flags)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        # 3: the broken images failed.
        assert process.returncode in {0, 3}, f"the job ended with {process.returncode}"
        return usage.ru_maxrss

    @property
    def folder(self) -> Path:
        """Where its results are."""
        (folder,) = self.out.iterdir()
        return folder

    def manifest(self) -> dict[str, Any]:
        """What it says in the end."""
        told: dict[str, Any] = json.loads((self.folder / "_manifest.json").read_text())
        return told

    def rows(self) -> list[dict[str, Any]]:
        """Its results."""
        parts = sorted(self.folder.glob("part-*.jsonl"))
        return [json.loads(line) for part in parts for line in part.read_text().splitlines()]

    def run_until_answered(self) -> int:
        """Ask again about what failed or is in doubt, until only the broken ones are left."""
        for again in range(1, 20):
            self.run("--retry-failed", "--retry-in-doubt")
            manifest = self.manifest()
            left = manifest["statuses"]["failed"] - manifest["error_classes"].get("ImageError", 0)
            if not left and not manifest["statuses"]["in_doubt"]:
                return again
        message = "it never ends"
        raise AssertionError(message)


def judge(job: Job, *, exact: bool) -> list[str]:
    """Hold a job's results against its inputs and against the server's own count.

    Args:
        job: One that has ended.
        exact: Whether what is in doubt was sent, all of it; a kill leaves that open.
    """
    problems = []
    rows, manifest, billed = job.rows(), job.manifest(), counts(job.base_url)
    names = sorted(path.name for path in job.source.iterdir())
    if [row["id"] for row in rows] != names:
        problems.append(f"{len(rows)} rows for {len(names)} inputs, or in another order")
    statuses = Counter(row["status"] for row in rows)
    told = {status: count for status, count in manifest["statuses"].items() if count}
    if statuses != told:
        problems.append(f"the manifest says {told}, the rows {dict(statuses)}")
    doubts: Counter[str] = Counter()
    paid: Counter[str] = Counter()
    for row in rows:
        if row["sha256"] is not None:
            doubts[row["sha256"]] += row["images_in_doubt"]
            paid[row["sha256"]] += round(row["cost_usd"] * 100)
            if row["description"] not in {
                None,
                f"A picture whose digest begins with {row['sha256'][:16]}.",
            }:
                problems.append(f"{row['id']} has the answer to another picture")
    twice = [sha for sha, times in billed.items() if times > paid[sha] + doubts[sha]]
    if twice:
        problems.append(f"{len(twice)} pictures were billed more often than is told")
    if any(times > 1 for times in paid.values()):
        problems.append("a picture was paid twice")
    counted, noted = sum(billed.values()), manifest["images_billed"] + manifest["images_in_doubt"]
    if counted > noted or (exact and counted != noted):
        problems.append(f"the server billed {counted}, and {noted} are billed or in doubt")
    cents = round(100 * sum(row["cost_usd"] for row in rows))
    if cents != manifest["images_billed"]:
        problems.append(f"the rows cost {cents} cents, {manifest['images_billed']} images billed")
    return problems


def soak(
    pictures: int, kills: int, folder: Path, *, seed: int = 0, memory: bool = True
) -> list[str]:
    """Run all of it.

    Args:
        pictures: How many.
        kills: How often.
        folder: For everything; empty.
        seed: Of the moments.
        memory: Whether to judge the peak; of a few hundred pictures it is that of the imports.

    Returns:
        What is wrong; empty if all is well.
    """
    draw_pictures(folder / "few", pictures // 10)
    draw_pictures(folder / "many", pictures)
    problems = []
    with lab(faults=0.1, seconds=0.005) as base_url:
        few = Job(folder / "few", folder / "out-few", base_url)
        small = few.run()
        problems += judge(few, exact=True)
    with lab(faults=0.1, seconds=0.005) as base_url:
        whole = Job(folder / "many", folder / "out-many", base_url)
        began = time.monotonic()
        large = whole.run()
        seconds = time.monotonic() - began
        problems += judge(whole, exact=True)
        _say("without a kill", whole, base_url)
        again = whole.run_until_answered()
        digest = whole.manifest()["results"]["digest"]
        problems += judge(whole, exact=True)
    print(f"{pictures} inputs in {seconds:.1f} s; {again} more runs for what was left")
    print(f"memory: {small / 1024:.1f} MiB for {pictures // 10}, {large / 1024:.1f} MiB for all")
    if memory and large > 1.1 * small:
        problems.append(f"the peak grew from {small} to {large} KiB")
    with lab(faults=0.1, seconds=0.005, seed=seed) as base_url:
        killed = Job(folder / "many", folder / "out-killed", base_url)
        chance = random.Random(seed)  # noqa: S311 - moments
        for _ in range(kills):
            process = killed.start()
            time.sleep(chance.uniform(0.3, max(0.5, 1.6 * seconds / max(1, kills))))
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed.run()
        problems += judge(killed, exact=False)
        _say(f"after {kills} kills", killed, base_url)
        killed.run_until_answered()
        problems += judge(killed, exact=False)
        _say("in the end", killed, base_url)
        if killed.manifest()["results"]["digest"] != digest:
            problems.append("the end is another one than without the kills")
    return problems


def _say(when: str, job: Job, base_url: str) -> None:
    manifest = job.manifest()
    print(
        f"{when}: {manifest['statuses']}; billed {manifest['images_billed']}, in doubt"
        f" {manifest['images_in_doubt']}; the server counted {sum(counts(base_url).values())};"
        f" {manifest['runs']} runs"
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = soak(options.pictures, options.kills, Path(folder), seed=options.seed)
    print("\n".join(problems) or "All of it adds up.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
