"""Work that has to come to its end, also when the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["run_to_completion"]


async def run_to_completion(work: Callable[[], object]) -> None:
    """Do what blocks on a thread, and wait until it is done, however often one is cancelled.

    `asyncio.to_thread` leaves the thread behind at the first cancellation: what is closed after
    that is closed under its hands.

    Args:
        work: What blocks.

    Raises:
        asyncio.CancelledError: The task was cancelled meanwhile; the work is done.
    """
    doing = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled = None
    while not doing.done():
        try:  # waiting for it so, unlike awaiting it, does not cancel it
            await asyncio.wait([doing])
        except asyncio.CancelledError as error:  # noqa: PERF203 - each may come while it waits
            cancelled = error
    doing.result()
    if cancelled is not None:
        raise cancelled
