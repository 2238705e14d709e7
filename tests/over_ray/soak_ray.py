"""Twenty thousand pictures over three nodes, one of them killed: every row once, every cent told?

    python tests/over_ray/soak_ray.py --pictures 20000

Against a server that fails once in ten answers and counts what it bills; a third of the pictures
are duplicates, and one in fifty is broken.

1. A job on this machine alone, without faults: what the end has to be.
2. The same over Ray, and a node is killed in the middle: one row each, no picture billed twice but
   those in doubt. Asked again about what failed or is in doubt, the end is that of 1.
3. The same with a cap, and a node killed: billed and in doubt are the cap, to the image.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "soak"), str(Path(__file__).parent)]

from batch_soak import Job, counts, draw_pictures, judge, lab  # noqa: E402
from clusters import add_node, cluster, driver  # noqa: E402

from phospho_multimodal import SpendingLimitError  # noqa: E402
from phospho_multimodal.batch import Summary, describe_many  # noqa: E402


def over_ray(made: Any, job: Job, **options: Any) -> Summary:
    """Do a job on the cluster."""
    told = {"results": "jsonl", "concurrency": 16, **options}
    return describe_many(job.source, job.out, base_url=job.base_url, ray=made.address, **told)


def kill_a_node(made: Any, base_url: str, after: int) -> threading.Thread:
    """Remove a node, ungently, when the server has billed so many."""

    def kill() -> None:
        while sum(counts(base_url).values()) < after:
            time.sleep(0.1)
        made.remove_node(next(iter(made.worker_nodes)), allow_graceful=False)
        print(f"a node was killed when {sum(counts(base_url).values())} were billed")

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def with_a_kill(made: Any, source: Path, out: Path, digest: str) -> list[str]:
    """Lose a node, ask again about what is left, and compare the end."""
    with lab(faults=0.1, seconds=0.005) as base_url:
        job = Job(source, out, base_url)
        killer = kill_a_node(made, base_url, len(list(source.iterdir())) // 4)
        began = time.monotonic()
        summary = over_ray(made, job)
        seconds = time.monotonic() - began
        killer.join()
        add_node(made)
        print(f"{summary.inputs} inputs in {seconds:.1f} s with the kill")
        _say(summary, base_url)
        problems = judge(job, exact=False)
        while summary.in_doubt or summary.failed > summary.manifest["error_classes"]["ImageError"]:
            summary = over_ray(made, job, retry_failed=True, retry_in_doubt=True)
        _say(summary, base_url)
        problems += judge(job, exact=False)
    if summary.manifest["results"]["digest"] != digest:
        problems.append("the end is another one than on one machine without faults")
    return problems


def with_a_cap(made: Any, source: Path, out: Path, cap: int) -> list[str]:
    """Lose a node on the way to a cap."""
    with lab(faults=0.1, seconds=0.005) as base_url:
        job = Job(source, out, base_url)
        killer = kill_a_node(made, base_url, cap // 2)
        try:
            over_ray(made, job, max_images=cap)
        except SpendingLimitError:
            problems = []
        else:
            problems = ["the cap was not told of"]
        killer.join()
        add_node(made)
        summary = Summary.read(job.folder)
        _say(summary, base_url)
        taken, billed = (
            summary.images_billed + summary.images_in_doubt,
            sum(counts(base_url).values()),
        )
    if taken != cap or billed > cap:
        problems.append(f"the cap is {cap}, {taken} were taken and {billed} billed by the server")
    return problems


def _say(summary: Summary, base_url: str) -> None:
    print(
        f"{summary.manifest['statuses']}; billed {summary.images_billed}, in doubt"
        f" {summary.images_in_doubt}; the server counted {sum(counts(base_url).values())}"
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    count = parser.parse_args().pictures
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw_pictures(folder / "photos", count)
        with lab(faults=0.0, seconds=0.0) as base_url:
            alone = describe_many(
                folder / "photos", folder / "alone", base_url=base_url, results="jsonl"
            )
        digest = alone.manifest["results"]["digest"]
        with cluster() as made, driver(made):
            problems = with_a_kill(made, folder / "photos", folder / "killed", digest)
            problems += with_a_cap(made, folder / "photos", folder / "capped", count // 4)
    print("\n".join(problems) or "All of it adds up.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
