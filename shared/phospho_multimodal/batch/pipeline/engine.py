"""The work itself: inputs made ready on threads, questions asked on one event loop, rows written.

    source ──threads──▶ ready ──tasks──▶ endpoint
       └────────── journal, at every step ──────────┘──▶ parts

What is held in memory is what is under way, however many inputs there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from phospho_multimodal.batch.journal.commits import run_to_completion
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.batch.pipeline.adaptive_concurrency import AdaptiveConcurrency
from phospho_multimodal.batch.pipeline.circuit_breaker import CircuitBreaker, is_refusal
from phospho_multimodal.batch.pipeline.outage import Outage
from phospho_multimodal.batch.pipeline.preparation import Preparation
from phospho_multimodal.batch.pipeline.progress import ProgressReporter
from phospho_multimodal.batch.pipeline.questions import Question, RequestRunner
from phospho_multimodal.batch.results.rows import Results
from phospho_multimodal.batch.sources.select import Item
from phospho_multimodal.errors import (
    PhosphoError,
    ServiceError,
    SpendingLimitError,
)
from phospho_multimodal.spending.budget import Spending

__all__ = ["Engine", "StopSignal"]

_MOST_HELD = 128 * 1024 * 1024  # bytes of pictures that wait for their turn or their answer
_PARTS_EVERY = 1.0  # seconds
_LOOK_AGAIN = 0.5  # seconds, while money that is set aside may come free
_MOST_REFUSALS = 10  # of one question (503), while the endpoint answers other ones
_FETCHING = 16  # threads that wait for other people's servers


class Engine:
    """One run of a job, on one event loop."""

    def __init__(
        self,
        *,
        preparation: Preparation,
        asker: RequestRunner,
        level: AdaptiveConcurrency,
        journal: Journal,
        results: Results,
        spending: Spending,
        watch: ProgressReporter,
        ceiling: int,
        fetches: bool,
        stop: StopSignal,
        breaker: CircuitBreaker,
    ) -> None:
        """Put together what a run needs.

        Args:
            preparation: Where questions come from.
            asker: Who asks them.
            level: How many at once.
            journal: Where everything is noted.
            results: Where rows go.
            spending: The ledger.
            watch: Who is told.
            ceiling: What the level may rise to.
            fetches: Whether making ready waits for other servers.
            stop: Why nothing more shall be sent, once there is a reason.
            breaker: What holds questions back while the endpoint refuses them.
        """
        self._breaker = breaker
        self._preparation = preparation
        self._asker = asker
        self._level = level
        self._journal = journal
        self._results = results
        self._spending = spending
        self._watch = watch
        self._asking = ceiling + max(2, ceiling // 4)  # some are between two attempts
        self._preparing = _FETCHING if fetches else max(2, os.cpu_count() or 1)
        self._stop = stop
        self._over = asyncio.Event()
        self._held = 0
        self._room = asyncio.Event()
        self._settled = asyncio.Event()
        self._outage = Outage()
        self._failure: Exception | None = None
        self._ready: asyncio.Queue[Question | None] = asyncio.Queue(self._asking)

    async def run(self) -> None:
        """Work until everything has its row, or something stops it: `StopSignal` tells what.

        Raises:
            Exception: What nobody expected; what was under way then has ended.
        """
        reader = ThreadPoolExecutor(1, thread_name_prefix="phospho-inputs")
        threads = ThreadPoolExecutor(self._preparing, thread_name_prefix="phospho-ready")
        try:
            await _all(
                self._until_over(
                    self._feed(reader, threads), *(self._answer() for _ in range(self._asking))
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

    # --- inputs --------------------------------------------------------------------------------

    async def _feed(self, reader: ThreadPoolExecutor, threads: ThreadPoolExecutor) -> None:
        with self._ending_well():
            await self._make_all_ready(reader, threads)
        for _ in range(self._asking):
            await self._ready.put(None)

    @contextlib.contextmanager
    def _ending_well(self) -> Iterator[None]:
        """Have an error end the run as any other reason does: what is under way may be paid."""
        try:
            yield
        except PhosphoError as failure:
            self._stop.because(failure)
        except Exception as failure:  # noqa: BLE001 - raised at the end
            self._stop.because(None)
            self._failure = self._failure or failure

    async def _make_all_ready(
        self, reader: ThreadPoolExecutor, threads: ThreadPoolExecutor
    ) -> None:
        loop = asyncio.get_running_loop()
        under_way: set[asyncio.Task[None]] = set()
        try:
            while self._stop() is None:
                inputs = await loop.run_in_executor(reader, self._preparation.next_inputs)
                if not inputs:
                    break
                while len(under_way) >= self._preparing + 1:
                    done, under_way = await asyncio.wait(
                        under_way, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()
                await self._wait_for_room()
                under_way.add(loop.create_task(self._make_ready(inputs, threads)))
            await asyncio.gather(*under_way)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _wait_for_room(self) -> None:
        while self._held > _MOST_HELD and self._stop() is None:
            self._room.clear()
            await self._room.wait()

    async def _make_ready(
        self, inputs: Sequence[tuple[int, Item]], threads: ThreadPoolExecutor
    ) -> None:
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(threads, self._preparation.make_ready, inputs)
        self._watch.count_ready(ready.done, ready.duplicates)
        for question in ready.questions:
            self._held += question.size
            await self._ready.put(question)

    # --- answers -------------------------------------------------------------------------------

    async def _answer(self) -> None:
        while (question := await self._ready.get()) is not None:
            size = question.size
            try:
                if self._stop() is not None:
                    self._journal.give_back([question.picture])
                    continue
                with self._ending_well():
                    await self._answer_one(question)
            finally:
                self._held -= size
                self._room.set()

    async def _answer_one(self, question: Question) -> None:
        while True:
            await self._breaker.wait(self._stop)
            if self._stop() is not None:
                break
            started = time.monotonic()
            ended, inputs, error = await self._asker.ask(question, self._stop, self._stop.because)
            if ended.state is State.PENDING and is_refusal(error):
                if await self._goes_on(question, error, started):
                    continue
                return
            if ended.state is not State.PENDING:
                self._count_ended(ended.state, inputs, error)
                return
            if not isinstance(error, SpendingLimitError) or self._is_spent():
                self._stop.because(error)
                break
            # What is under way may turn out to cost nothing: then there is one image more.
            self._settled.clear()
            with contextlib.suppress(asyncio.TimeoutError):  # or of somebody else's, elsewhere
                await asyncio.wait_for(self._settled.wait(), _LOOK_AGAIN)
        self._journal.give_back([question.picture])
        self._show()

    async def _goes_on(self, question: Question, error: Any, started: float) -> bool:
        """Tell whether a question that was refused is asked again; if not, it has ended."""
        self._settled.set()  # its money is free
        over = None
        if self._stop() is None:
            over = self._breaker.note_refusal(error, started)
        if over is not None:
            self._stop.because(over)
        if isinstance(error, ServiceError) and self._breaker.answers > question.answers_before:
            # The endpoint answers others. Once that is an accident; in the end it is the image.
            question.refusals += 1
            question.answers_before = self._breaker.answers
            if question.refusals >= _MOST_REFUSALS:
                ended, inputs = await self._asker.fail(question, error)
                self._count_ended(ended.state, inputs, None)
                return False
        question.renew()
        self._show()
        return True

    def _count_ended(self, state: State, inputs: int, error: PhosphoError | None) -> None:
        self._settled.set()  # a refusal is no news: those that wait would wake each other
        self._watch.count_ended(state, inputs)
        if state is not State.IN_DOUBT:
            self._breaker.note_answer()
        outage = self._outage.note(error)
        if outage is not None:
            self._stop.because(outage)
        self._show()

    def _show(self, *, at_once: bool = False) -> None:
        self._watch.show(
            self._level.in_flight,
            self._level.limit,
            at_once=at_once,
            waits_for=self._breaker.waits_for,
        )

    def _is_spent(self) -> bool:
        return not self._spending.snapshot().images_left

    def _give_back_the_rest(self) -> None:
        while not self._ready.empty():
            question = self._ready.get_nowait()
            if question is not None:
                self._journal.give_back([question.picture])

    # --- rows ----------------------------------------------------------------------------------

    async def _write_parts(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._over.wait(), _PARTS_EVERY)
            with self._ending_well():
                await asyncio.to_thread(self._results.write_finished)
            self._show()


class StopSignal:
    """Why a run sends nothing more: asked from any thread, and the first reason counts."""

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        """Begin without a reason.

        Args:
            interrupted: Whether somebody wants the run to end.
        """
        self._interrupted = interrupted
        self._reason: PhosphoError | None = None

    def __call__(self) -> PhosphoError | None:
        """Tell the reason, if there is one."""
        if self._reason is None and self._interrupted():
            self._reason = _OverError()
        return self._reason

    def because(self, error: PhosphoError | None) -> None:
        """Give a reason; `None` is that everything is done."""
        if self._reason is None:
            self._reason = error or _OverError()

    @property
    def error(self) -> PhosphoError | None:
        """The error that ended the run, if it was one."""
        return None if isinstance(self._reason, _OverError) else self._reason


class _OverError(PhosphoError):
    """The run has ended, and not by an error."""

    def __init__(self) -> None:
        super().__init__("This run is over.")


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    """Wait for all; the first that fails ends the others, and is raised when they have ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
