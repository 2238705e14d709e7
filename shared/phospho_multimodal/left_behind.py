"""Calls that nobody goes on with: their event loop was closed before they ended.

What such a call holds, a slot and money, it would hold until it is collected, and some never are:
anyio remembers a task that waits in one of its scopes, which are in every deadline, in work on a
thread, and in httpcore's own network. So the calls under way are listed by their loops, and whoever
needs a slot or looks at money first ends those of closed loops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["calls_under_way", "end_calls_left_behind"]

_CALLS: dict[ref[AbstractEventLoop], set[Generator[Any, Any, Any]]] = {}


def calls_under_way(loop: AbstractEventLoop) -> set[Generator[Any, Any, Any]]:
    """List the calls of a loop; who begins one puts it in, and takes it out when it has ended.

    Args:
        loop: The one that runs here.

    Returns:
        Their conversations with the exchange.
    """
    calls = _CALLS.get(ref(loop))
    if calls is None:
        end_calls_left_behind()
        _CALLS[ref(loop)] = calls = set()
    return calls


def end_calls_left_behind() -> None:
    """Close the conversations of closed loops, which settles what they hold."""
    for known, calls in list(_CALLS.items()):
        loop = known()
        if loop is not None and not loop.is_closed():
            continue
        _CALLS.pop(known, None)
        while calls:
            # Another thread may be at the same, or the garbage collector.
            with contextlib.suppress(KeyError, ValueError):
                calls.pop().close()
