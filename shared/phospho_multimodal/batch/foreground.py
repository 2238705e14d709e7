"""Running a job on a thread while the caller's thread answers `confirm` and takes Ctrl-C.

The caller may have an event loop already, as a notebook has, so the job gets its own thread.
Python delivers signals to the main thread only, and a prompt on the terminal has to be there too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from phospho_multimodal.batch.pipeline.stop_signal import as_interrupt

__all__ = ["CallerThread", "run_on_thread"]

T = TypeVar("T")


class CallerThread:
    """Calls functions on the caller's thread for a job on another thread."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._open: list[Future[bool]] = []
        self._refused = False

    def call(self, question: Callable[[], bool]) -> bool:
        """On the job's thread: have a function called, and return its result."""
        answer: Future[bool] = Future()
        self._open.append(answer)

        def ask() -> None:
            try:
                answer.set_result(question())
            except Exception as error:  # noqa: BLE001 - raised on the job's thread
                answer.set_exception(error)

        self._calls.put(ask)
        if self._refused:  # `refuse` may have missed this answer
            return False
        return answer.result()

    def serve(self) -> None:
        """On the caller's thread: call functions until the job has ended."""
        while (call := self._calls.get()) is not None:
            call()

    def refuse(self) -> None:
        """On the caller's thread: answer everything with `False` from now on."""
        self._refused = True
        for answer in self._open:
            if not answer.done():
                answer.set_result(False)

    def end(self) -> None:
        """On the job's thread: end `serve`."""
        self._calls.put(None)


def run_on_thread(
    make_job: Callable[[], Coroutine[Any, Any, T]],
    caller: CallerThread,
    interrupted: threading.Event,
) -> T:
    """Run a job, and turn Ctrl-C into an end that keeps its answers; the second does not wait."""
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - `asyncio.run` makes one
        running.append((asyncio.get_running_loop(), task))
        return await make_job()

    with (
        as_interrupt(interrupted),
        ThreadPoolExecutor(1, thread_name_prefix="phospho-batch") as thread,
    ):
        job = thread.submit(lambda: asyncio.run(run()))
        job.add_done_callback(lambda _: caller.end())
        try:
            caller.serve()
        except BaseException:  # Ctrl-C, or a `confirm` that ends the program
            interrupted.set()
            caller.refuse()
            try:
                job.exception()
            except KeyboardInterrupt:
                for loop, task in running:
                    loop.call_soon_threadsafe(task.cancel)
                raise
            raise
        return job.result()
