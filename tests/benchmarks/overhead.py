"""CPU time of single calls, and the part of it that a plugin adds to its framework and httpx.

O is the CPU time of a plugin's call, without the call of a do-nothing model of the same framework
with the same message, and without `httpx` sending a finished body. The O of each plugin is compared
with the lowest O of the other integrations of its framework.

All contestants take turns in random order, and each turn begins with calls that are not timed: the
first calls after other contestants take up to twice as long. The mean without the lowest and the
highest tenth is reported. The rounds are spread over several processes, because each finds another
heap.

    python overhead.py --image --rounds 6 --calls 10 < image.jpg

is one of the processes. It prints the microseconds of each round, by mode and contestant.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from contestants import QUESTION, Contestant, Payload, contestants
from stub import running_stub, seen

__all__ = ["CARRIER", "Overhead", "measure_overhead"]

CARRIER = "httpx content="
PEERS = {
    "ChatPhospho": ("ChatOpenAI", "ChatAnthropic"),
    "Phospho.chat": ("LlamaIndex OpenAI",),
    "PhosphoMultiModal.complete": ("LlamaIndex OpenAI",),
}
"""The plugins, and the comparable integrations of each."""


@dataclass(frozen=True)
class Overhead:
    """One table: CPU microseconds of a call, by contestant."""

    payload: str
    mode: str
    scheme: str
    cpu: dict[str, float]
    floors: dict[str, str]

    def added(self, name: str) -> float:
        """O, in microseconds."""
        return self.cpu[name] - self.cpu[self.floors[name]] - self.cpu[CARRIER]

    def share_of_best_peer(self, name: str) -> float:
        """O of a plugin divided by the lowest O of its peers; NaN if none is installed."""
        peers = [self.added(peer) for peer in PEERS[name] if peer in self.cpu]
        return self.added(name) / min(peers) if peers else float("nan")


def measure_overhead(
    payload: Payload, certificate: Path | None, *, processes: int, rounds: int, calls: int
) -> list[Overhead]:
    """Measure all contestants with one payload.

    Args:
        payload: The image.
        certificate: The server's certificate. `None` means http.
        processes: How many processes measure.
        rounds: How many turns each contestant has in a process.
        calls: How many calls a turn has.

    Returns:
        A table for `sync` and one for `async`.
    """
    check(payload, certificate)
    command = [sys.executable, __file__, f"--rounds={rounds}", f"--calls={calls}"]
    if certificate is not None:
        command.append(f"--certificate={certificate}")
    if isinstance(payload.image, bytes):
        command.append("--image")
    content = payload.image if isinstance(payload.image, bytes) else payload.image.encode()
    pooled: dict[str, dict[str, list[float]]] = {"sync": {}, "async": {}}
    floors: dict[str, str] = {}
    for _ in range(processes):
        ran = subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True)
        times, floors = json.loads(ran.stdout)
        for mode, by_name in times.items():
            for name, taken in by_name.items():
                pooled[mode].setdefault(name, []).extend(taken)
    scheme = "http" if certificate is None else "https"
    return [
        Overhead(
            payload.name,
            mode,
            scheme,
            {name: _trimmed_mean(taken) for name, taken in all_.items()},
            floors,
        )
        for mode, all_ in pooled.items()
    ]


def _trimmed_mean(taken: list[float]) -> float:
    cut = len(taken) // 10
    return fmean(sorted(taken)[cut : len(taken) - cut])


def _one_process(payload: Payload, certificate: str | None, *, rounds: int, calls: int) -> None:
    with running_stub(certificate) as base_url:
        field = contestants(base_url, payload)
        loop = asyncio.new_event_loop()

        def asynchronous(one: Contestant, calls: int) -> None:
            async def turn() -> None:
                for _ in range(calls):
                    await one.ask_async()

            loop.run_until_complete(turn())

        def synchronous(one: Contestant, calls: int) -> None:
            for _ in range(calls):
                one.ask()

        try:
            times = {
                "sync": _times(field, synchronous, rounds, calls),
                "async": _times(field, asynchronous, rounds, calls),
            }
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
    floors = {one.name: one.floor for one in field if one.floor is not None}
    print(json.dumps([times, floors]))


def _times(
    field: list[Contestant], turn: Callable[[Contestant, int], None], rounds: int, calls: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {one.name: [] for one in field}
    for one in 2 * field:  # the first calls make clients, and fill caches
        turn(one, calls)
    gc.freeze()  # the modules of all contestants are in this process, and in no user's
    for _ in range(rounds):
        for one in random.sample(field, len(field)):
            gc.collect()
            turn(one, calls // 2)
            begin = time.process_time()
            turn(one, calls)
            times[one.name].append((time.process_time() - begin) / calls * 1e6)
    return times


def check(payload: Payload, certificate: Path | None) -> None:
    """Check that all contestants send the same prompt and the same image."""

    async def look(field: list[Contestant]) -> None:
        for one in field:
            for arrived in (one.ask(), await one.ask_async()):
                if one.sends and arrived != seen(QUESTION, payload.image):
                    message = f"{one.name} sends something else: {arrived}"
                    raise AssertionError(message)

    with running_stub(certificate, check=True) as base_url:
        asyncio.run(look(contestants(base_url, payload)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--certificate")
    parser.add_argument("--image", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    content = sys.stdin.buffer.read()
    payload = Payload("", content if options.image else content.decode())
    _one_process(payload, options.certificate, rounds=options.rounds, calls=options.calls)


if __name__ == "__main__":
    main()
