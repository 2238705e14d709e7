"""Running a job on a thread while the caller's thread answers `confirm` and takes Ctrl-C.

The caller may have an event loop already, as a notebook has, so the job gets its own thread.
Python delivers signals to the main thread only, and a prompt on the terminal has to be there too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeAlias, TypeVar

from phospho_multimodal.batch.pipeline.stop_signal import as_interrupt
from phospho_multimodal.batch.preflight import Preflight

__all__ = ["run_on_thread"]

T = TypeVar("T")
_Confirm: TypeAlias = Callable[[Preflight], bool]


def run_on_thread(
    make_job: Callable[[_Confirm | None], Coroutine[Any, Any, T]],
    confirm: _Confirm | None,
    interrupted: threading.Event,
) -> T:
    """Run a job, and turn Ctrl-C into an end that keeps its answers; the second does not wait."""
    asked: Future[Preflight] = Future()
    answered: Future[bool] = Future()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    def confirm_on_caller(preflight: Preflight) -> bool:
        asked.set_result(preflight)
        return answered.result()

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - `asyncio.run` makes one
        running.append((asyncio.get_running_loop(), task))
        return await make_job(None if confirm is None else confirm_on_caller)

    with (
        as_interrupt(interrupted),
        ThreadPoolExecutor(1, thread_name_prefix="phospho-batch") as thread,
    ):
        job = thread.submit(lambda: asyncio.run(run()))
        first: list[Future[Any]] = [job, asked]
        try:
            wait(first, return_when=FIRST_COMPLETED)
            if confirm is not None and asked.done():
                _answer(answered, confirm, asked.result())
            wait([job])
        except BaseException:  # Ctrl-C, or a `confirm` that ends the program
            interrupted.set()
            if not answered.done():
                answered.set_result(False)
            try:
                job.exception()
            except KeyboardInterrupt:
                for loop, task in running:
                    loop.call_soon_threadsafe(task.cancel)
                raise
            raise
        return job.result()


def _answer(answered: Future[bool], confirm: _Confirm, preflight: Preflight) -> None:
    try:
        answered.set_result(confirm(preflight))
    except Exception as error:  # noqa: BLE001 - raised on the job's thread
        answered.set_exception(error)
