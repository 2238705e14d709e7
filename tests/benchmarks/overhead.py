"""CPU time of single calls, all contestants in turn, and what a plugin adds to its floor.

O is the CPU time of a plugin's call, without that of a do-nothing model of the same framework given
the same message and that of `httpx` sending a finished body. It is judged as a share of what
`httpx json=` takes for all, in the same run: both go up and down with the machine.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from contestants import QUESTION, Contestant, Payload, contestants
from machine import QuietRounds
from stub import running_stub, seen

__all__ = ["Overhead", "measure_overhead"]

REFERENCE, CARRIER = "httpx json=", "httpx content="


@dataclass(frozen=True)
class Overhead:
    """One table: CPU microseconds of a call, by contestant."""

    payload: str
    mode: str
    cpu: dict[str, float]
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
        rounds: How often everybody has a turn, in an order that chance makes.
        calls: How many calls a turn is.

    Returns:
        A table for `sync` and one for `async`.
    """
    check(payload)
    with running_stub() as base_url:
        field = contestants(base_url, payload)
        loop = asyncio.new_event_loop()
        often = {"rounds": rounds, "calls": calls}

        def asynchronous(one: Contestant) -> None:
            async def turn() -> None:
                for _ in range(calls):
                    await one.ask_async()

            loop.run_until_complete(turn())

        def synchronous(one: Contestant) -> None:
            for _ in range(calls):
                one.ask()

        try:
            return [
                _table(payload, "sync", field, synchronous, **often),
                _table(payload, "async", field, asynchronous, **often),
            ]
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


def _table(
    payload: Payload,
    mode: str,
    field: list[Contestant],
    turn: Callable[[Contestant], None],
    *,
    rounds: int,
    calls: int,
) -> Overhead:
    times: dict[str, list[float]] = {one.name: [] for one in field}
    for one in field:  # the first call makes clients and fills caches
        turn(one)
    gc.freeze()  # what is there to stay is not looked through again and again
    for quiet in QuietRounds(rounds):
        taken: dict[str, float] = {}
        for one in random.sample(field, len(field)):
            gc.collect()
            begin = time.process_time()
            turn(one)
            taken[one.name] = (time.process_time() - begin) / calls * 1e6
        if quiet():
            for name, value in taken.items():
                times[name].append(value)
    floors = {one.name: one.floor for one in field if one.floor is not None}
    return Overhead(
        payload.name, mode, {name: median(all_) for name, all_ in times.items()}, floors
    )


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
