"""How far memory grows for pictures of 5 MB: in a process of its own for each contestant.

    python memory.py CONTESTANT BASE_URL PATTERN < picture.jpg

prints, in bytes, the size of the base64, the growth of the peak, and what stays.

What is free inside glibc's malloc is given back before each look, so that only what is held counts.
That takes one arena for all threads: the free end of a thread's own cannot be given back on demand,
and whether a picture lay there last is chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from contestants import Payload, langchain_message, peer
from machine import forget_peak, memory
from pictures_to_send import clean_jpeg
from stub import running_stub

__all__ = ["measure_memory"]

_SIDE = 2048  # pixels: 5 MB of noise are 1600, and shall be sent as they are
IN_A_ROW, AT_ONCE = 100, 64
_UNDER_WAY = 3.0  # seconds until an answer comes


def measure_memory(names: list[str]) -> dict[str, dict[str, float]]:
    """Measure growth of the peak, as multiples of the base64.

    Args:
        names: Of contestants.

    Returns:
        By contestant: `in a row`, `at once` for each call, and what stays after all of them:
        `kept in a row`, `kept at once`; nothing for who is not installed.
    """
    found: dict[str, dict[str, float]] = {}
    picture = clean_jpeg(5_000_000)
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    # All are to be under way at once, whoever prepares his pictures one after the other, too.
    with running_stub() as at_once, running_stub(delay=_UNDER_WAY) as slow:
        for name in names:
            sizes = {}
            for pattern, base_url in (("in a row", at_once), ("at once", slow)):
                command = [sys.executable, __file__, name, base_url, pattern]
                ran = subprocess.run(
                    command, input=picture, capture_output=True, check=True, env=environment
                )
                if not ran.stdout.strip():
                    break
                base64, grown, kept = json.loads(ran.stdout)
                sizes[pattern] = grown / base64 / (AT_ONCE if pattern == "at once" else 1)
                sizes[f"kept {pattern}"] = kept / base64
            else:
                found[name] = sizes
    return found


def _ask(name: str, base_url: str, payload: Payload) -> tuple[Callable[[], Any], Any] | None:
    """Make a way to ask with threads and one with await, about a picture that is there already."""
    if name == "PhosphoClient":
        from phospho_multimodal import AsyncPhosphoClient, PhosphoClient  # noqa: PLC0415

        more: Any = {"base_url": base_url, "max_concurrency": AT_ONCE, "max_image_side": _SIDE}
        client, async_client = PhosphoClient(**more), AsyncPhosphoClient(**more)
        return (
            lambda: client.describe(payload.image),
            lambda: async_client.describe(payload.image),
        )
    message = langchain_message(payload)
    if name == "ChatPhospho":
        from langchain_phospho import ChatPhospho  # noqa: PLC0415

        model: Any = ChatPhospho(base_url=base_url, max_concurrency=AT_ONCE, max_image_side=_SIDE)
    else:
        model = peer(name, base_url)
        if model is None:
            return None
    return lambda: model.invoke([message]), lambda: model.ainvoke([message])


def _give_back() -> None:
    """Give back what is free: Python's garbage, and what glibc keeps for the next one."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    name, base_url, pattern = sys.argv[1:]
    picture = sys.stdin.buffer.read()
    asked = _ask(name, base_url, Payload("5 MB", picture))
    if asked is None:
        return
    ask, ask_async = asked
    base64 = -(-len(picture) // 3) * 4

    async def at_once(width: int) -> None:
        await asyncio.gather(*(ask_async() for _ in range(width)))

    loop = asyncio.new_event_loop()
    if pattern == "in a row":
        ask()  # whatever is imported and made at the first call
    else:
        loop.run_until_complete(at_once(1))
    _give_back()
    before = memory("VmRSS")
    forget_peak()
    if pattern == "in a row":
        for _ in range(IN_A_ROW):
            ask()
    else:
        loop.run_until_complete(at_once(AT_ONCE))
    grown = memory("VmHWM") - before
    _give_back()
    print(json.dumps([base64, grown, memory("VmRSS") - before]))


if __name__ == "__main__":
    main()
