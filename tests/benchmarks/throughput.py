"""64 concurrent calls to a server that takes 50 ms, compared with raw sockets."""

from __future__ import annotations

import asyncio
import gc
import random
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from httpx_aiohttp import HttpxAiohttpClient

from contestants import Payload, langchain_message, peer, raw_request
from langchain_phospho import ChatPhospho
from stub import running_stub

__all__ = ["AIOHTTP", "OURS", "PEERS", "RAW", "measure_throughput"]

DELAY = 0.05
"""Seconds that the server takes."""

RAW, OURS, AIOHTTP = "raw sockets", "ChatPhospho", "ChatPhospho over aiohttp"
PEERS = ("ChatOpenAI", "ChatAnthropic")
_WIDTH = 64
_END = b"\r\n\r\n"

Run = Callable[[int], None]


def measure_throughput(
    payload: Payload, certificate: Path | None, *, rounds: int, calls: int
) -> dict[str, float]:
    """Measure requests per second.

    Args:
        payload: The image.
        certificate: The server's certificate. `None` means http.
        rounds: How many turns each contestant has.
        calls: How many calls a turn has. The peers have a quarter.

    Returns:
        The requests per second of the raw sockets, and the shares of it that the others reach.
    """
    with running_stub(certificate, delay=DELAY) as base_url:
        runs = _runs(base_url, payload, certificate is not None, calls)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for run, count in runs.values():
            run(min(count, 2 * _WIDTH))
        gc.freeze()  # the modules of all contestants are in this process, and in no user's
        for _ in range(rounds):
            taken = {name: _rate(*runs[name]) for name in random.sample(list(runs), len(runs))}
            for name, rate in taken.items():
                rates[name].append(rate if name == RAW else rate / taken[RAW])
        return {name: median(all_) for name, all_ in rates.items()}


def _rate(run: Run, count: int) -> float:
    begin = time.perf_counter()
    run(count)
    return count / (time.perf_counter() - begin)


def _runs(base_url: str, payload: Payload, tls: bool, calls: int) -> dict[str, tuple[Run, int]]:
    """The function and the number of calls of each contestant."""
    request = raw_request(base_url, payload)
    context = ssl.create_default_context() if tls else None  # reads SSL_CERT_FILE
    config: Any = {"max_concurrency": _WIDTH}
    loop = asyncio.new_event_loop()
    message = langchain_message(payload)
    runs: dict[str, tuple[Run, int]] = {
        RAW: (lambda count: loop.run_until_complete(_raw(base_url, request, context, count)), calls)
    }

    def add(name: str, model: Any, count: int, *, async_only: bool = False) -> None:
        def batch(number: int) -> None:
            model.batch([[message]] * number, config=config)

        def abatch(number: int) -> None:
            loop.run_until_complete(model.abatch([[message]] * number, config=config))

        if not async_only:
            runs[f"{name} batch"] = (batch, count)
        runs[f"{name} abatch"] = (abatch, count)

    ours: Any = {"base_url": base_url, "max_concurrency": _WIDTH}
    add(OURS, ChatPhospho(**ours), calls)
    add(
        AIOHTTP, ChatPhospho(**ours, http_async_client=HttpxAiohttpClient()), calls, async_only=True
    )
    for name in PEERS:
        model = peer(name, base_url)
        if model is not None:
            add(name, model, calls // 4)
    return runs


async def _raw(base_url: str, request: bytes, context: ssl.SSLContext | None, count: int) -> None:
    host, port = base_url.partition("://")[2].split(":")
    left = iter(range(count))

    async def send_one_by_one() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        for _ in left:
            writer.write(request)
            head = (await reader.readuntil(_END)).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(send_one_by_one() for _ in range(_WIDTH)))
