"""CPU time of single calls, all contestants in turn, and what a plugin adds to its floor.

O is the CPU time of a plugin's call, without that of a do-nothing model of the same framework given
the same message and that of `httpx` sending a finished body. It is judged as a share of what
`httpx json=` takes for all, in the same run: both go up and down with the machine.

Each turn begins with calls that are not timed: after everybody else's turn the first takes up to
twice as long, and only the sixth or so what all that follow take (the processor's caches and
malloc's free lists are the others' before). Users have one client, and not twelve in turn. Turns
are short and many: a core whose host shares it with another machine changes its speed within a
second. A median of rounds at two speeds is at the one or the other, and where both are as frequent
it jumps for one contestant and not for another: in one run `httpx json=` alone took a quarter less.
So the mean without the tenth at either end is judged, and the median told beside it.

Rounds are spread over several processes, and each finds another heap. Where a megabyte comes to
lie, and whether malloc gives its pages back after each call, is chance, but the same chance in each
process that does the same: `httpx json=` had 228 to 260 page faults a call in all of them, and
anything from 0 to 260 once blocks of random sizes lay about (0.4 ms of its time).

    python overhead.py --picture --rounds 6 --calls 10 < picture.jpg

is one of the processes; it prints the microseconds of each round, by way and contestant.
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
from statistics import fmean, median

from contestants import QUESTION, Contestant, Payload, contestants
from machine import QuietRounds
from stub import running_stub, seen

__all__ = ["Overhead", "measure_overhead"]

REFERENCE, CARRIER = "httpx json=", "httpx content="
PROCESSES = 5


@dataclass(frozen=True)
class Overhead:
    """One table: CPU microseconds of a call, by contestant; `cpu` is what is judged."""

    payload: str
    mode: str
    cpu: dict[str, float]
    medians: dict[str, float]
    floors: dict[str, str]

    def share(self, name: str) -> float:
        """The whole call over `httpx json=`."""
        return self.cpu[name] / self.cpu[REFERENCE]

    def over_floor(self, name: str) -> float:
        """O, in microseconds."""
        return self.cpu[name] - self.cpu[self.floors[name]] - self.cpu[CARRIER]


def measure_overhead(payload: Payload, *, rounds: int, calls: int) -> list[Overhead]:
    """Measure everybody with one payload, with threads' methods and with await.

    Args:
        payload: What is asked about.
        rounds: How often everybody has a turn in each process, in an order that chance makes.
        calls: How many calls a turn is.

    Returns:
        A table for `sync` and one for `async`.
    """
    check(payload)
    picture = isinstance(payload.image, bytes)
    command = [sys.executable, __file__, f"--rounds={rounds}", f"--calls={calls}"]
    if picture:
        command.append("--picture")
    content = payload.image if isinstance(payload.image, bytes) else payload.image.encode()
    pooled: dict[str, dict[str, list[float]]] = {"sync": {}, "async": {}}
    floors: dict[str, str] = {}
    for _ in range(PROCESSES):
        ran = subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True)
        times, floors, noisy = json.loads(ran.stdout)
        QuietRounds.noisy += noisy
        for mode, by_name in times.items():
            for name, taken in by_name.items():
                pooled[mode].setdefault(name, []).extend(taken)
    return [
        Overhead(
            payload.name,
            mode,
            cpu={name: _trimmed_mean(taken) for name, taken in all_.items()},
            medians={name: median(taken) for name, taken in all_.items()},
            floors=floors,
        )
        for mode, all_ in pooled.items()
    ]


def _trimmed_mean(taken: list[float]) -> float:
    cut = len(taken) // 10
    return fmean(sorted(taken)[cut : len(taken) - cut])


def _one_process(payload: Payload, *, rounds: int, calls: int) -> None:
    with running_stub() as base_url:
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
    print(json.dumps([times, floors, QuietRounds.noisy]))


def _times(
    field: list[Contestant], turn: Callable[[Contestant, int], None], rounds: int, calls: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {one.name: [] for one in field}
    for one in 3 * field:  # the first calls make clients, and fill caches and free lists
        turn(one, calls)
    gc.freeze()  # what is there to stay is not looked through again and again
    for quiet in QuietRounds(rounds):
        in_the_way = _blocks_lying_about()
        taken: dict[str, float] = {}
        for one in random.sample(field, len(field)):
            gc.collect()
            turn(one, calls // 2)
            begin = time.process_time()
            turn(one, calls)
            taken[one.name] = (time.process_time() - begin) / calls * 1e6
        if quiet():
            for name, value in taken.items():
                times[name].append(value)
        del in_the_way
    return times


def _blocks_lying_about() -> list[bytearray]:
    """Take blocks of 16 bytes to 2 MB, and give every second one back: some 5 MB with holes."""
    blocks = [bytearray(round(2 ** random.uniform(4, 21))) for _ in range(60)]
    return random.sample(blocks, len(blocks) // 2)


def check(payload: Payload) -> None:
    """Have a server that looks say that everybody sends the same question and the same image."""

    async def look(field: list[Contestant]) -> None:
        for one in field:
            for arrived in (one.ask(), await one.ask_async()):
                if one.sends and arrived != seen(QUESTION, payload.image):
                    message = f"{one.name} sends something else: {arrived}"
                    raise AssertionError(message)

    with running_stub(check=True) as base_url:
        asyncio.run(look(contestants(base_url, payload)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    content = sys.stdin.buffer.read()
    image = content if options.picture else content.decode()
    _one_process(Payload("", image), rounds=options.rounds, calls=options.calls)


if __name__ == "__main__":
    main()
