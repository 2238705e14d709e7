"""Writing to the journal from an event loop: grouped, and awaited until it is on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import Step

__all__ = ["GroupCommit", "run_to_completion"]


class GroupCommit:
    """Writes steps on one thread. Steps that arrive during a write are the next group.

    A disk takes as long for one step as for sixty-four. Steps are written in the order in which
    they came, even if their tasks are cancelled.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="phospho-journal")
        self._lock = threading.Lock()
        self._waiting: list[tuple[Step, asyncio.Future[int] | None]] = []

    async def begin_attempt(self, picture: bytes) -> None:
        """Let an attempt begin. In one process there is nothing to wait for."""

    async def note(self, step: Step) -> int:
        """Write a step, and return how many inputs have their row by it.

        Cancelling the caller does not take the step back.
        """
        noted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._enqueue(step, noted)
        return await noted

    def note_at_last(self, step: Step) -> None:
        """Write a step without waiting, for a task that is being cancelled."""
        self._enqueue(step, None)

    def close(self) -> None:
        """End the thread as soon as it has written everything."""
        self._thread.shutdown()

    def _enqueue(self, step: Step, noted: asyncio.Future[int] | None) -> None:
        with self._lock:
            self._waiting.append((step, noted))
            first = len(self._waiting) == 1
        if first:  # the thread writes the other steps with it
            self._thread.submit(self._commit)

    def _commit(self) -> None:
        with self._lock:
            group, self._waiting = self._waiting, []
        counts: list[int] = []
        failure: BaseException | None = None
        try:
            counts = self._journal.commit([step for step, _ in group])
        except BaseException as error:  # noqa: BLE001 - raised where the step is awaited
            failure = error
        noted_by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int]]] = {}
        for (_, noted), count in zip(group, counts or [0] * len(group), strict=True):
            if noted is not None:
                noted_by_loop.setdefault(noted.get_loop(), []).append((noted, count))
        for loop, futures in noted_by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no task waits there
                loop.call_soon_threadsafe(_answer, futures, failure)


def _answer(futures: list[tuple[asyncio.Future[int], int]], failure: BaseException | None) -> None:
    for noted, count in futures:
        if noted.done():  # cancelled
            continue
        if failure is None:
            noted.set_result(count)
        else:
            noted.set_exception(failure)


async def run_to_completion(work: Callable[[], object]) -> None:
    """Run blocking work on a thread, and return when it has ended, even if cancelled meanwhile.

    `asyncio.to_thread` abandons its thread when it is cancelled. What the thread uses would be
    closed while it still runs.
    """
    running = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled = None
    while not running.done():
        try:  # waiting does not cancel the thread's future, unlike awaiting it
            await asyncio.wait([running])
        except asyncio.CancelledError as error:  # noqa: PERF203 - each wait may be cancelled
            cancelled = error
    running.result()
    if cancelled is not None:
        raise cancelled
