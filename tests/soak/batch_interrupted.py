"""Batches that are interrupted: by SIGTERM, by an endpoint that is away, by a quota.

    python tests/soak/batch_interrupted.py sigterm --pictures 5000 --stops 20
    python tests/soak/batch_interrupted.py away --pictures 5000 --away-seconds 30
    python tests/soak/batch_interrupted.py quota --pictures 3000 --quota 20

Each is a `phospho-multimodal batch` in a process of its own, against an endpoint that counts what
it bills. In the end every image is described, there is one row for each input, and no image was
billed twice. A third of the images are duplicates.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from batch_soak import BROKEN, Job, counts, draw_pictures, look

__all__ = ["SOAKS", "soak"]


def draw_good_pictures(folder: Path, count: int) -> None:
    """Draw images without broken files."""
    draw_pictures(folder, count)
    for path in folder.iterdir():
        if path.read_bytes() == BROKEN:
            path.unlink()


@contextlib.contextmanager
def lab(**options: object) -> Iterator[str]:
    """Start the endpoint in a process of its own."""
    script = Path(__file__).with_name("interrupted_lab.py")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    server = subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, str(script), *flags],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.communicate("", timeout=60)


def judge(job: Job) -> list[str]:
    """Compare the results with the inputs, and with what the endpoint has billed."""
    problems = []
    rows, manifest, billed = job.rows(), job.manifest(), counts(job.base_url)
    names = sorted(path.name for path in job.source.iterdir())
    if [row["id"] for row in rows] != names:
        problems.append(f"{len(rows)} rows for {len(names)} inputs, or in another order")
    if any(row["status"] != "described" for row in rows):
        problems.append(f"not every row is described: {manifest['statuses']}")
    if max(billed.values()) > 1:
        problems.append(f"{sum(times > 1 for times in billed.values())} images were billed twice")
    if sum(billed.values()) != manifest["images_billed"]:
        problems.append(
            f"the endpoint billed {sum(billed.values())}, the batch {manifest['images_billed']}"
        )
    return problems


def stopped_by_sigterm(folder: Path, options: argparse.Namespace) -> list[str]:
    """Stop the job by SIGTERM at random moments. Nothing may become in doubt."""
    chance = random.Random(options.seed)  # noqa: S311 - moments
    problems, stopped = [], 0
    with lab() as base_url:
        job = Job(folder / "pictures", folder / "out", base_url, options.concurrency)
        for _ in range(options.stops):
            before = sum(counts(base_url).values())
            process = job.start()
            while sum(counts(base_url).values()) == before and process.poll() is None:
                time.sleep(0.05)
            time.sleep(chance.uniform(0.0, options.longest_run))
            process.send_signal(signal.SIGTERM)
            code = process.wait()
            stopped += code == 130
            # A signal that comes when a job has ended, while Python exits, ends the process itself.
            if code not in {0, 130, -signal.SIGTERM}:
                problems.append(f"a run ended with {code}")
        job.run()
        problems += judge(job)
        if job.manifest()["images_in_doubt"]:
            problems.append(f"{job.manifest()['images_in_doubt']} images are in doubt")
        print(f"{stopped} of {options.stops} runs were stopped; {_facts(job)}")
    return problems


def while_away(folder: Path, options: argparse.Namespace) -> list[str]:
    """Have the endpoint go away for a while in the middle. One run has to get through."""
    middle = max(1, options.pictures // 4)
    with lab(away_after=middle, away_seconds=options.away_seconds) as base_url:
        job = Job(folder / "pictures", folder / "out", base_url, options.concurrency)
        began = time.monotonic()
        job.run()
        seconds = time.monotonic() - began
        in_doubt = job.manifest()["statuses"]["in_doubt"]
        if in_doubt:  # sent while the endpoint closed its connections, and not billed
            job.run("--retry-in-doubt")
        print(f"{seconds:.1f} s, of which away {options.away_seconds:.0f} s; {_facts(job)}")
        problems = judge(job)
    if in_doubt > int(options.concurrency):
        problems.append(f"{in_doubt} rows were in doubt")
    if seconds < options.away_seconds:
        problems.append("the job did not wait for the endpoint")
    return problems


def under_a_quota(folder: Path, options: argparse.Namespace) -> list[str]:
    """Describe more images a second than the endpoint allows. One run has to get through."""
    with lab(quota=options.quota) as base_url:
        job = Job(folder / "pictures", folder / "out", base_url, options.concurrency)
        began = time.monotonic()
        job.run()
        seconds = time.monotonic() - began
        billed = sum(counts(base_url).values())
        print(
            f"{seconds:.1f} s, {billed / seconds:.1f} answers a second,"
            f" {look(base_url, 'refused')} requests refused; {_facts(job)}"
        )
        return judge(job)


SOAKS: dict[str, Callable[[Path, argparse.Namespace], list[str]]] = {
    "sigterm": stopped_by_sigterm,
    "away": while_away,
    "quota": under_a_quota,
}


def soak(which: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Run one of them in an empty folder, and return what is wrong."""
    draw_good_pictures(folder / "pictures", options.pictures)
    return SOAKS[which](folder, options)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("which", choices=SOAKS)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--longest-run", type=float, default=2.0)
    parser.add_argument("--away-seconds", type=float, default=30.0)
    parser.add_argument("--quota", type=int, default=20)
    parser.add_argument("--concurrency", default="32")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _facts(job: Job) -> str:
    manifest = job.manifest()
    return (
        f"{manifest['statuses']}, billed {manifest['images_billed']}, in doubt"
        f" {manifest['images_in_doubt']}, {manifest['attempts']} attempts,"
        f" {manifest['runs']} runs, {manifest['seconds']} s of work"
    )


def main() -> int:
    """Run from the command line."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        problems = soak(options.which, Path(folder), options)
    print("\n".join(problems) or "All of it adds up.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
