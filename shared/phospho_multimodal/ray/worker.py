"""A worker of a Ray job: it prepares images, and sends an image when the coordinator permits it.

The worker runs an event loop on its own thread. So the calls of Ray, which come on several threads,
share one client and its connections.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from phospho_multimodal.batch.job import picture_key
from phospho_multimodal.batch.journal.steps import AttemptStarted, ImageClaimed, State, Step
from phospho_multimodal.batch.pipeline.adaptive_concurrency import AUTO_CEILING, AdaptiveConcurrency
from phospho_multimodal.batch.pipeline.circuit_breaker import is_refusal
from phospho_multimodal.batch.pipeline.preparation import make_sendable, size_of
from phospho_multimodal.batch.pipeline.questions import Question, RequestRunner
from phospho_multimodal.batch.sources.items import Item
from phospho_multimodal.client.async_client import AsyncPhosphoClient
from phospho_multimodal.errors import FATAL_ERRORS, PhosphoError, ServiceError
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.exchange.prediction import build_request
from phospho_multimodal.images.prepare import SendableImage
from phospho_multimodal.ray.accounts import Accounts, call_coordinator, call_from_driver
from phospho_multimodal.ray.answered_pixels import hash_pixels

__all__ = ["Outcome", "Worker"]

_FETCHING = 16  # threads that wait for other servers
_MOST_REFUSALS = 10  # of one question (503), while the endpoint answers other ones


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one image.

    Attributes:
        error: The reason, if the row failed before a request.
        answer: What the journal knows of the image.
        pays: Whether this image's request was sent for this row, so that the row has its cost.
    """

    error: PhosphoError | None = None
    answer: Mapping[str, Any] | None = None
    pays: bool = False

    @property
    def state(self) -> State:
        """`PENDING` if the job was stopped before."""
        if self.error is not None:
            return State.FAILED
        return State.PENDING if self.answer is None else State(self.answer["state"])


class Worker:
    """One process of a Ray job; any thread may call it."""

    def __init__(self, accounts: Accounts, concurrency: int | Literal["auto"]) -> None:
        """Connect to the coordinator of a job, with so many concurrent requests."""
        orders = accounts.orders
        ceiling = AUTO_CEILING if concurrency == "auto" else concurrency
        self.job = orders.job
        # The coordinator has the rate limit, and `AdaptiveConcurrency` the limit on requests.
        self.settings = replace(orders.settings, requests_per_second=None, max_concurrency=ceiling)
        self.exchange = ClientState.of(self.settings, None)
        self.client = AsyncPhosphoClient.sharing(self.exchange)
        self.level = AdaptiveConcurrency(ceiling, fixed=concurrency != "auto")
        self.stopped_by: PhosphoError | None = None
        self.name = uuid.uuid4().hex
        self.coordinator = accounts.actor
        # This process owns the result, so Ray reports it as lost when this process dies.
        self._lease = self.coordinator.lease.remote()
        call_from_driver(self.coordinator.join, self.name, [self._lease])
        self._hashes_pixels = orders.root is not None
        self._room = asyncio.Semaphore(2 * ceiling)  # images in memory, however large a batch is
        fetches = self.settings.url_mode == "fetch"
        threads = _FETCHING if fetches else max(2, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="phospho-ready")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="phospho-ray", daemon=True).start()
        self._watching = asyncio.run_coroutine_threadsafe(self._wait_for_stop(), self._loop)

    def describe(self, items: Sequence[tuple[Item, int | None]]) -> list[Outcome]:
        """Describe images, each with its position among the job's inputs if the journal lists it.

        If the job stops, the rest is `PENDING`.
        """
        return asyncio.run_coroutine_threadsafe(self._describe_all(items), self._loop).result()

    def wait_until_quiet(self) -> None:
        """Wait until no worker has a request in progress: an error that is raised ends them."""
        waiting = call_coordinator(self.coordinator.quiet)
        asyncio.run_coroutine_threadsafe(waiting, self._loop).result()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the coordinator in the name of this worker."""
        return await call_coordinator(getattr(self.coordinator, method), self.name, *arguments)

    async def stop(self, error: PhosphoError) -> None:
        """Stop the whole job."""
        self.stopped_by = self.stopped_by or error
        await call_coordinator(self.coordinator.stop, error)

    def _is_stopped(self) -> bool:
        return self.stopped_by is not None

    async def _wait_for_stop(self) -> None:
        try:
            error = await call_coordinator(self.coordinator.stop_reason)
        except PhosphoError as gone:
            error = gone
        self.stopped_by = self.stopped_by or error

    async def _describe_all(self, items: Sequence[tuple[Item, int | None]]) -> list[Outcome]:
        tasks = [asyncio.ensure_future(self._describe_one(*item)) for item in items]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)  # requests sent get settled
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, Outcome)]

    async def _describe_one(self, item: Item, position: int | None) -> Outcome:
        async with self._room:
            return await self._describe(item, position)

    async def _describe(self, item: Item, position: int | None) -> Outcome:
        if self._is_stopped():
            return Outcome()
        image, pixels = await self._loop.run_in_executor(self._threads, self._prepare, item)
        if isinstance(image, PhosphoError):
            if self._is_stopped():  # a fetch that was abandoned says nothing about its image
                return Outcome()
            if position is not None:
                await call_coordinator(self.coordinator.note_broken, position, image)
            return Outcome(error=image)
        claim = ImageClaimed(picture_key(image, item.prompt), position, *size_of(image))
        return await _Request(self, claim, image, item.prompt).run(pixels)

    def _prepare(self, item: Item) -> tuple[SendableImage | PhosphoError, str | None]:
        image = make_sendable(item, self.settings, self._is_stopped)
        # Only an image that Ray has decoded is compared with files by its pixels.
        decoded: Any = item.image if hasattr(item.image, "convert") else None
        compares = self._hashes_pixels and decoded is not None and item.prompt is None
        return image, hash_pixels(decoded) if compares else None


class _Request:
    """One image's question, which asks the coordinator before each attempt and reports results."""

    def __init__(
        self, worker: Worker, claim: ImageClaimed, image: SendableImage, prompt: str | None
    ) -> None:
        self._worker = worker
        self._claim = claim
        self._image = image
        self._prompt = worker.job.prompt if prompt is None else prompt
        self._is_permitted = False
        self._answer: Mapping[str, Any] = {}

    async def run(self, pixels: str | None) -> Outcome:
        """Ask until there is a result, or until the job is stopped."""
        worker, job, key = self._worker, self._worker.job, self._claim.picture
        decision = await worker.call("claim", self._claim, pixels)
        if isinstance(decision, PhosphoError):
            worker.stopped_by = worker.stopped_by or decision
            return Outcome()
        if decision is not None:
            return Outcome(answer=decision)
        call = build_request(self._image, self._prompt, job.asking, worker.settings)
        question = Question(key, call)
        runner = RequestRunner(
            worker.exchange, worker.client, job, self, worker.level, keeps_refused=True
        )
        while worker.stopped_by is None:
            question.renew()
            ended, _, error = await runner.ask(question, self._stopping)
            if isinstance(error, FATAL_ERRORS) and worker.stopped_by is None:
                await worker.stop(error)
            elif ended.state is State.PENDING and is_refusal(error) and worker.stopped_by is None:
                await self._refused(runner, question, error)
            if self._answer.get("state", State.PENDING) >= State.DESCRIBED:
                return Outcome(answer=self._answer, pays=True)
        await worker.call("release", key)
        return Outcome()

    async def _refused(self, runner: RequestRunner, question: Question, error: Any) -> None:
        """Report a refusal; the question fails if only this image is refused again and again."""
        answers = await self._worker.call("refused", question.picture, error)
        if isinstance(error, ServiceError) and answers > question.answers_before:
            question.refusals += 1
            question.answers_before = answers
            if question.refusals >= _MOST_REFUSALS:
                await runner.fail(question, error)

    def _stopping(self) -> PhosphoError | None:
        """Return the reason to make no further attempt; a permitted attempt is made."""
        return None if self._is_permitted else self._worker.stopped_by

    # --- the event log of `RequestRunner` ------------------------------------------------------

    async def begin_attempt(self, picture: bytes) -> None:
        """Wait for the coordinator's permission; without it, the job is stopped."""
        forbidden_by = await self._worker.call("begin", picture)
        self._is_permitted = forbidden_by is None
        self._worker.stopped_by = self._worker.stopped_by or forbidden_by

    async def note(self, step: Step) -> int:
        """Report a result; the coordinator has recorded the attempt already."""
        if not isinstance(step, AttemptStarted):
            self._is_permitted = False
            self._answer = await self._worker.call("end", step)
        return 0

    def note_at_last(self, step: Step) -> None:
        """Report a result without waiting."""
        self._last = asyncio.ensure_future(self.note(step))
