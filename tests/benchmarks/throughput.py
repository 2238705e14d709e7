"""Many calls at once against a server that takes 50 ms: how near to a raw socket each comes."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from contestants import Payload, langchain_message, peer, raw_request
from langchain_phospho import ChatPhospho
from machine import FullSpeed, QuietRounds
from stub import running_stub

__all__ = ["DELAY", "RAW", "measure_throughput"]

DELAY = 0.05
"""Seconds that the server takes."""

RAW = "raw sockets"
_PEERS = ("ChatOpenAI", "ChatAnthropic")
_END = b"\r\n\r\n"


def measure_throughput(
    payload: Payload, *, width: int, rounds: int, calls: int
) -> dict[str, float]:
    """Measure requests a second.

    Args:
        payload: What is asked about.
        width: Calls at once.
        rounds: How often everybody has a turn.
        calls: How many calls a turn is; a quarter for those of others.

    Returns:
        Of the raw sockets, requests a second; of the others, their share of it, by name and way.
    """
    with running_stub(delay=DELAY) as base_url:
        runs = _runs(base_url, payload, width, calls)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for run, count in runs.values():
            run(min(count, 2 * width))
        gc.freeze()  # the modules of all peers are in this process, and in no user's
        core = FullSpeed()
        for quiet in QuietRounds(rounds):
            taken: dict[str, float] = {}
            for name in random.sample(list(runs), len(runs)):
                taken[name] = core.have(partial(_rate, *runs[name]))
            if quiet():
                for name, rate in taken.items():
                    rates[name].append(rate if name == RAW else rate / taken[RAW])
        return {name: median(all_) for name, all_ in rates.items()}


def _rate(run: Callable[[int], None], count: int) -> float:
    begin = time.perf_counter()
    run(count)
    return count / (time.perf_counter() - begin)


def _runs(
    base_url: str, payload: Payload, width: int, calls: int
) -> dict[str, tuple[Callable[[int], None], int]]:
    """Put together who runs how, and for how many calls."""
    request = raw_request(base_url, payload)
    config: Any = {"max_concurrency": width}
    loop = asyncio.new_event_loop()
    # One message for all: how users come by their base64 is not what is measured here.
    message = langchain_message(payload)
    runs: dict[str, tuple[Callable[[int], None], int]] = {
        RAW: (lambda count: loop.run_until_complete(_raw(base_url, request, width, count)), calls)
    }

    def add(name: str, model: Any, count: int) -> None:
        def batch(number: int) -> None:
            model.batch([[message]] * number, config=config)

        def abatch(number: int) -> None:
            loop.run_until_complete(model.abatch([[message]] * number, config=config))

        runs[f"{name} batch"] = (batch, count)
        runs[f"{name} abatch"] = (abatch, count)

    add("ChatPhospho", ChatPhospho(base_url=base_url, max_concurrency=width), calls)
    for name in _PEERS:
        model = peer(name, base_url)
        if model is not None:
            add(name, model, calls // 4)
    return runs


async def _raw(base_url: str, request: bytes, width: int, count: int) -> None:
    host, port = base_url.partition("://")[2].split(":")
    left = iter(range(count))

    async def ask_one_by_one() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in left:
            writer.write(request)
            head = (await reader.readuntil(_END)).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(ask_one_by_one() for _ in range(width)))
