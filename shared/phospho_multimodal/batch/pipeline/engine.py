"""The work of a run: inputs are prepared on threads, requests run on one event loop, rows follow.

    source ──threads──▶ ready ──tasks──▶ endpoint
       └────────── journal, at every step ──────────┘──▶ parts

Memory holds only what is in progress, however many inputs there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from phospho_multimodal.batch.journal.commits import GroupCommit, run_to_completion
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import State, TilesJoined
from phospho_multimodal.batch.pipeline.adaptive_concurrency import AdaptiveConcurrency
from phospho_multimodal.batch.pipeline.circuit_breaker import (
    CircuitBreaker,
    FailureStreak,
    is_refusal,
)
from phospho_multimodal.batch.pipeline.preparation import Preparation
from phospho_multimodal.batch.pipeline.progress import ProgressReporter
from phospho_multimodal.batch.pipeline.questions import Question, RequestRunner, TiledQuestion
from phospho_multimodal.batch.pipeline.stop_signal import StopSignal
from phospho_multimodal.batch.results.rows import Results
from phospho_multimodal.batch.sources.select import Item
from phospho_multimodal.errors import PhosphoError, ServiceError, SpendingLimitError
from phospho_multimodal.spending.budget import Spending

__all__ = ["Engine"]

_MOST_HELD = 128 * 1024 * 1024  # bytes of images that wait for their turn or their answer
_PARTS_EVERY = 1.0  # seconds
_LOOK_AGAIN = 0.5  # seconds, while reserved money may be released
_MOST_REFUSALS = 10  # of one image (503), while the endpoint answers other images
_FETCHING = 16  # threads that wait for other servers


class Engine:
    """One run of a job, on one event loop."""

    def __init__(
        self,
        *,
        preparation: Preparation,
        runner: RequestRunner,
        concurrency: AdaptiveConcurrency,
        journal: Journal,
        log: GroupCommit,
        results: Results,
        spending: Spending,
        reporter: ProgressReporter,
        ceiling: int,
        fetches: bool,
        stop: StopSignal,
        breaker: CircuitBreaker,
    ) -> None:
        self._preparation = preparation
        self._runner = runner
        self._concurrency = concurrency
        self._journal = journal
        self._log = log
        self._results = results
        self._spending = spending
        self._reporter = reporter
        self._sending = ceiling + max(2, ceiling // 4)  # some are between two attempts
        self._preparing = _FETCHING if fetches else max(2, os.cpu_count() or 1)
        self._stop = stop
        self._breaker = breaker
        self._failures = FailureStreak()
        self._over = asyncio.Event()
        self._held = 0
        self._room = asyncio.Event()
        self._settled = asyncio.Event()
        self._failure: Exception | None = None
        self._ready: asyncio.Queue[Question | TiledQuestion | None] = asyncio.Queue(self._sending)

    async def run(self) -> None:
        """Work until every input has its row, or until `StopSignal` has a reason.

        An unexpected error is raised when the requests in progress have ended.
        """
        reader = ThreadPoolExecutor(1, thread_name_prefix="phospho-inputs")
        threads = ThreadPoolExecutor(self._preparing, thread_name_prefix="phospho-ready")
        try:
            await _all(
                self._until_over(
                    self._feed(reader, threads), *(self._answer() for _ in range(self._sending))
                ),
                self._write_parts(),
            )
        finally:
            self._stop.because(None)
            self._give_back_the_rest()
            try:
                await run_to_completion(reader.shutdown)
            finally:
                await run_to_completion(threads.shutdown)
        self._show(at_once=True)
        if self._failure is not None:
            raise self._failure

    async def _until_over(self, *work: Coroutine[Any, Any, None]) -> None:
        try:
            await _all(*work)
        finally:
            self._over.set()

    @contextlib.contextmanager
    def _stopping_on_errors(self) -> Iterator[None]:
        """Have an error stop the run like any other reason: a request in progress may be paid."""
        try:
            yield
        except PhosphoError as failure:
            self._stop.because(failure)
        except Exception as failure:  # noqa: BLE001 - raised at the end
            self._stop.because(None)
            self._failure = self._failure or failure

    # --- inputs --------------------------------------------------------------------------------

    async def _feed(self, reader: ThreadPoolExecutor, threads: ThreadPoolExecutor) -> None:
        with self._stopping_on_errors():
            await self._prepare_all(reader, threads)
        for _ in range(self._sending):
            await self._ready.put(None)

    async def _prepare_all(self, reader: ThreadPoolExecutor, threads: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        running: set[asyncio.Task[None]] = set()
        try:
            while self._stop() is None:
                inputs = await loop.run_in_executor(reader, self._preparation.next_inputs)
                if not inputs:
                    break
                while len(running) >= self._preparing + 1:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                await self._wait_for_room()
                running.add(loop.create_task(self._prepare(inputs, threads)))
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _wait_for_room(self) -> None:
        while self._held > _MOST_HELD and self._stop() is None:
            self._room.clear()
            await self._room.wait()

    async def _prepare(
        self, inputs: Sequence[tuple[int, Item]], threads: ThreadPoolExecutor
    ) -> None:
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(threads, self._preparation.make_ready, inputs)
        self._reporter.count_ready(ready.done, ready.duplicates)
        for question in ready.questions:
            self._held += question.size
            await self._ready.put(question)

    # --- answers -------------------------------------------------------------------------------

    async def _answer(self) -> None:
        while (question := await self._ready.get()) is not None:
            size = question.size
            try:
                if self._stop() is not None:
                    self._journal.give_back(question.pictures)
                    continue
                with self._stopping_on_errors():
                    if isinstance(question, TiledQuestion):
                        await self._answer_tiles(question)
                    else:
                        await self._answer_one(question)
            finally:
                self._held -= size
                self._room.set()

    async def _answer_tiles(self, image: TiledQuestion) -> None:
        """Send the tiles that have no answer yet, and join the answers of all."""
        await _all(*(self._answer_one(tile) for tile in image.questions))
        inputs = await self._log.note(TilesJoined(image.picture, image.tiles, time.time()))
        if not inputs:  # a tile is pending
            self._journal.give_back([image.picture])
            return
        joined = await asyncio.to_thread(self._journal.answer, image.picture)
        self._reporter.count_ready({State(joined["state"]): inputs}, 0)
        self._show()

    async def _answer_one(self, question: Question) -> None:
        while True:
            await self._breaker.wait(self._stop)
            if self._stop() is not None:
                break
            started = time.monotonic()
            ended, inputs, error = await self._runner.ask(question, self._stop, self._stop.because)
            if ended.state is State.PENDING and is_refusal(error):
                if await self._is_sent_again(question, error, started):
                    continue
                return
            if ended.state is not State.PENDING:
                self._count_ended(ended.state, inputs, error)
                return
            if not isinstance(error, SpendingLimitError) or self._is_spent():
                self._stop.because(error)
                break
            # A request in progress may turn out to cost nothing, which leaves one image more.
            self._settled.clear()
            with contextlib.suppress(asyncio.TimeoutError):  # another process may settle, too
                await asyncio.wait_for(self._settled.wait(), _LOOK_AGAIN)
        self._journal.give_back([question.picture])
        self._show()

    async def _is_sent_again(self, question: Question, error: Any, started: float) -> bool:
        """Return whether a refused image is sent again. If not, it has failed."""
        self._settled.set()  # its money is free
        over = None
        if self._stop() is None:
            over = self._breaker.note_refusal(error, started)
        if over is not None:
            self._stop.because(over)
        if isinstance(error, ServiceError) and self._breaker.answers > question.answers_before:
            # The endpoint answers other images. After several times, this image is the reason.
            question.refusals += 1
            question.answers_before = self._breaker.answers
            if question.refusals >= _MOST_REFUSALS:
                ended, inputs = await self._runner.fail(question, error)
                self._count_ended(ended.state, inputs, None)
                return False
        question.renew()
        self._show()
        return True

    def _count_ended(self, state: State, inputs: int, error: PhosphoError | None) -> None:
        self._settled.set()
        self._reporter.count_ended(state, inputs)
        if state is not State.IN_DOUBT:
            self._breaker.note_answer()
        self._failures.note(error)
        if self._failures.is_too_long:
            self._stop.because(error)
        self._show()

    def _show(self, *, at_once: bool = False) -> None:
        self._reporter.show(
            self._concurrency.in_flight,
            self._concurrency.limit,
            at_once=at_once,
            waits_for=self._breaker.waits_for,
        )

    def _is_spent(self) -> bool:
        return not self._spending.snapshot().images_left

    def _give_back_the_rest(self) -> None:
        while not self._ready.empty():
            question = self._ready.get_nowait()
            if question is not None:
                self._journal.give_back(question.pictures)

    # --- rows ----------------------------------------------------------------------------------

    async def _write_parts(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._over.wait(), _PARTS_EVERY)
            with self._stopping_on_errors():
                await asyncio.to_thread(self._results.write_finished)
            self._show()


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    """Wait for all. The first failure cancels the others, and is raised when they have ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
