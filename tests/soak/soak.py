"""Thousands of requests against a server with one fault in five: does everything add up?

    python tests/soak/soak.py --requests 10000 --concurrency 64

Each request has to end in the right answer or in a typed error; billed and in doubt together have
to be what the server itself counted; memory has to stay flat, and nothing may be left open. The
server runs in a process of its own, so that the memory measured is the client's alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from phospho_multimodal import AsyncPhosphoClient, PhosphoClient, PhosphoError, Spending
from pictures import draw, encoded

PICTURE = encoded(draw(400, 300))
OPTIONS: dict[str, Any] = {"timeout": 5.0, "max_retries": 2}


@dataclass
class Tally:
    """What became of the requests of one run."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, question: str, result: Any) -> None:
        """Count one end, and look whether the answer is that question's."""
        if isinstance(result, PhosphoError):
            self.ends[type(result).__name__] += 1
        elif isinstance(result, BaseException):
            self.ends[f"untyped: {type(result).__name__}"] += 1
            self.wrong.append(f"{question}: {result!r}")
        else:
            self.ends["answer"] += 1
            if result.description != f"You asked: {question}":
                self.wrong.append(f"{question}: {result.description!r}")
        self.memory.append(resident())


def resident() -> int:
    """Resident memory of this process, in bytes."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def open_files() -> int:
    """Files and sockets this process has open."""
    return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())


@contextlib.contextmanager
def lab() -> Iterator[str]:
    """Start the server in a process of its own."""
    script = pathlib.Path(__file__).with_name("lab.py")
    server = subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, str(script)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.communicate("", timeout=30)  # the end of its input stops it


def servers_count(base_url: str) -> dict[str, int]:
    """What the server itself counted."""
    with urllib.request.urlopen(base_url + "/count") as answer:  # noqa: S310 - our own server
        counts: dict[str, int] = json.load(answer)
    return counts


def with_threads(base_url: str, spending: Spending, requests: int, concurrency: int) -> Tally:
    """Ask from as many threads as requests may be in flight."""
    tally = Tally()
    lock = threading.Lock()
    with PhosphoClient(
        base_url=base_url, spending=spending, max_concurrency=concurrency, **OPTIONS
    ) as client:

        def ask(number: int) -> None:
            question = f"question {number}"
            result: Any
            try:
                result = client.describe(PICTURE, question)
            except Exception as error:  # noqa: BLE001 - untyped ones are what is looked for
                result = error
            with lock:
                tally.note(question, result)

        with ThreadPoolExecutor(concurrency) as pool:
            for _ in pool.map(ask, range(requests)):
                pass
    return tally


def with_await(base_url: str, spending: Spending, requests: int, concurrency: int) -> Tally:
    """Ask from one event loop."""
    tally = Tally()

    async def run() -> None:
        questions = iter(range(requests))
        async with AsyncPhosphoClient(
            base_url=base_url, spending=spending, max_concurrency=concurrency, **OPTIONS
        ) as client:

            async def worker() -> None:
                for number in questions:
                    question = f"question {number}"
                    result: Any
                    try:
                        result = await client.describe(PICTURE, question)
                    except Exception as error:  # noqa: BLE001 - untyped ones are looked for
                        result = error
                    tally.note(question, result)

            await asyncio.gather(*(worker() for _ in range(concurrency)))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            tally.wrong.append(f"{len(left)} tasks are left")

    asyncio.run(run())
    return tally


def soak(mode: str, requests: int, concurrency: int, *, growth: float = 0.05) -> list[str]:
    """Run once and judge.

    Args:
        mode: `threads` or `await`.
        requests: How many questions.
        concurrency: How many at once.
        growth: By which share memory of the last quarter may be above that of the second.

    Returns:
        What is wrong; empty if all is well.
    """
    files, threads = open_files(), threading.active_count()
    spending = Spending()
    with lab() as base_url:
        start = time.monotonic()
        run = with_threads if mode == "threads" else with_await
        tally = run(base_url, spending, requests, concurrency)
        tally.seconds = time.monotonic() - start
        counted = servers_count(base_url)
    gc.collect()
    quarter = len(tally.memory) // 4
    second = mean(tally.memory[quarter : 2 * quarter])
    last = mean(tally.memory[3 * quarter :])
    snapshot = spending.snapshot()
    _report(mode, tally, counted, snapshot, second, last)
    problems = list(tally.wrong)
    if sum(tally.ends.values()) != requests:
        problems.append(f"{requests} questions, {sum(tally.ends.values())} ends")
    if snapshot.images_billed != tally.ends["answer"]:
        problems.append("billed is not the number of answers")
    if snapshot.images_billed + snapshot.images_in_doubt != counted["billed"]:
        problems.append("billed and in doubt are not what the server billed")
    if snapshot.images_reserved:
        problems.append("something is still reserved")
    if last > second * (1 + growth):
        problems.append(f"memory grew from {second:,.0f} to {last:,.0f} bytes")
    if open_files() > files or threading.active_count() > threads:
        problems.append("files or threads are left open")
    return problems


def _report(  # noqa: PLR0917 - one line each
    mode: str, tally: Tally, counted: dict[str, int], snapshot: Any, second: float, last: float
) -> None:
    rate = sum(tally.ends.values()) / tally.seconds
    print(f"{mode}: {tally.seconds:.1f} s, {rate:.0f} questions a second")
    print(f"  ends: {dict(tally.ends.most_common())}")
    print(f"  server: {counted}")
    print(f"  ledger: {snapshot}")
    print(f"  memory by quarters: second {second / 2**20:.1f} MiB, last {last / 2**20:.1f} MiB")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    problems = [
        f"{mode}: {problem}"
        for mode in ("threads", "await")
        for problem in soak(mode, options.requests, options.concurrency)
    ]
    print("\n".join(problems) or "All of it adds up.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
