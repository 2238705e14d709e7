"""The coordinator of a Ray job: one actor that decides which request may be sent now.

Ray schedules the work, starts workers again and knows which ones are dead. The coordinator keeps
what Ray does not have: the rate limit, the spending limit, the circuit breaker, and the job journal
with the images that were requested before. A worker asks before each request and reports each
result. The journal records a request before the worker may send it, so a lost worker leaves its
images in doubt. If the coordinator is lost, the job ends, and the same call resumes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.commits import GroupCommit
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import (
    AttemptFailed,
    AttemptStarted,
    ImageClaimed,
    ImageFinished,
    State,
    Step,
)
from phospho_multimodal.batch.pipeline.circuit_breaker import (
    MAX_OUTAGE,
    CircuitBreaker,
    FailureStreak,
)
from phospho_multimodal.errors import (
    ConfigurationError,
    PhosphoError,
    ReplyLostError,
    SpendingLimitError,
)
from phospho_multimodal.exchange.limits import RateLimit
from phospho_multimodal.ray.answered_pixels import AnsweredPixels
from phospho_multimodal.settings import Settings
from phospho_multimodal.spending.budget import Reservation, Spending, SpendingSnapshot

__all__ = ["Coordinator", "Orders", "Snapshot"]

_PATIENCE = 15.0  # seconds that closing waits for requests in progress


@dataclass(frozen=True, slots=True)
class Orders:
    """What the coordinator and its workers have to know.

    Attributes:
        job: The prompt and its parameters.
        settings: The settings of the workers' clients. The rate is that of all workers combined.
        limits: The arguments of `Spending`: `max_usd`, `max_images` and `usd_per_image`.
        max_outage: Seconds without an answer after which the job stops.
        root: Where relative paths in the journal start, if decoded images are compared with files.
    """

    job: Job
    settings: Settings
    limits: Mapping[str, Any]
    max_outage: float = MAX_OUTAGE
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a job at one moment.

    Attributes:
        money: Images billed by all runs, in doubt, and in progress.
        done: Rows of this run, by their state.
        duplicates: Rows of this run whose image was requested for another row.
        answers: Requests of this run that have ended.
        workers: How many workers are alive.
        stopped_by: The error that ended the run, if there was one.
        waits_for: What the job waits for, in words, while the endpoint refuses all requests.
    """

    money: SpendingSnapshot
    done: Mapping[State, int]
    duplicates: int
    answers: int
    workers: int
    stopped_by: PhosphoError | None
    waits_for: str | None = None

    def __str__(self) -> str:
        text = f"{self.answers:,} questions answered or failed; {self.money}"
        return text if self.stopped_by is None else f"{text}; stopped: {self.stopped_by}"


@dataclass(slots=True)
class _Claim:
    """An image that one worker asks about, from its claim to its result."""

    worker: str
    picture: bytes
    over: asyncio.Event = field(default_factory=asyncio.Event)
    reservation: Reservation | None = None
    in_progress: bool = False  # the journal has the request, and not its result
    started: float = 0.0


class Coordinator:
    """The limits and the journal of one job, on one event loop."""

    def __init__(
        self, orders: Orders, folder: Path, lent_by: str, breaker: CircuitBreaker | None = None
    ) -> None:
        """Open the journal that the driver lends."""
        self._journal = Journal(folder, orders.job, lent_by=lent_by)
        self._commits = GroupCommit(self._journal)
        counts = self._journal.tally()
        self._spending = Spending.resumed(
            counts.images_billed, counts.images_in_doubt, **orders.limits
        )
        self._rate = RateLimit(orders.settings.requests_per_second)
        self._breaker = breaker or CircuitBreaker(orders.max_outage)
        self._failures = FailureStreak()
        self._pixels = AnsweredPixels(self._journal, orders.settings, orders.root)
        self._claims: dict[bytes, _Claim] = {}
        self._workers: dict[str, asyncio.Future[None]] = {}
        self._stopped: PhosphoError | None = None
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        self._never = asyncio.Event()
        self._done: Counter[State] = Counter()
        self._duplicates = self._answers = 0

    # --- workers -------------------------------------------------------------------------------

    async def lease(self) -> None:
        """Never return: the worker owns the result, which Ray reports as lost when it dies."""
        await self._never.wait()

    async def join(self, worker: str, lease: Sequence[Awaitable[None]]) -> None:
        """Take in a worker, with the result of `lease` that it owns."""
        self._workers[worker] = asyncio.ensure_future(self._until_lost(worker, lease[0]))

    async def _until_lost(self, worker: str, lease: Awaitable[None]) -> None:
        with contextlib.suppress(Exception):  # Ray's OwnerDiedError
            await lease
        del self._workers[worker]
        for claim in list(self._claims.values()):
            if claim.worker == worker:
                with contextlib.suppress(ConfigurationError):  # that has stopped the job
                    await self._let_go(claim)

    # --- one image -----------------------------------------------------------------------------

    async def claim(
        self, worker: str, claim: ImageClaimed, pixels: str | None = None
    ) -> Mapping[str, Any] | PhosphoError | None:
        """Wait until the worker may ask about an image.

        Returns:
            The answer if it is known, the error if the job has stopped, or `None` for yes.
        """
        picture = await self._pixels.find(pixels) if pixels is not None else None
        claim = claim if picture is None else replace(claim, picture=picture)
        counted = False  # among the inputs of the claim that was first
        while self._stopped is None and worker in self._workers:
            held = self._claims.get(claim.picture)
            if held is not None:
                await self._wait(held.over)
                continue
            state = State(await self._record(claim))
            if state >= State.DESCRIBED:
                self._done[state] += not counted
                self._duplicates += 1
                return await self._answer(claim.picture)
            counted = claim.position is not None
            if claim.picture not in self._claims:
                self._claims[claim.picture] = _Claim(worker, claim.picture)
                return None
        return self._stopped or _lost()

    async def begin(self, worker: str, picture: bytes) -> PhosphoError | None:
        """Wait until an attempt may be sent, and record it; return the error that forbids it."""
        claim = self._held(worker, picture)
        if claim is None:
            return self._stopped or _lost()
        while self._stopped is None and claim.reservation is None:
            await self._breaker.wait(lambda: self._stopped)
            try:
                (claim.reservation,) = self._spending.reserve()
            except SpendingLimitError as refusal:
                if not self._spending.snapshot().images_reserved:
                    self.stop(refusal)
                await self._wait(self._settled)  # a request in progress may cost nothing
        delay = self._rate.reserve(time.monotonic()) if self._stopped is None else 0.0
        if delay:
            await self._wait(claim.over, delay)
        if self._stopped is not None or claim.over.is_set():
            self._settle(claim)
            return self._stopped or _lost()
        claim.in_progress, claim.started = True, time.monotonic()
        try:
            await self._record(AttemptStarted(picture))
        except ConfigurationError as failure:
            self._settle(claim)
            return failure
        return None

    async def end(self, worker: str, step: AttemptFailed | ImageFinished) -> Mapping[str, Any]:
        """Record the result of an attempt; return all that is known of the image."""
        claim = self._held(worker, step.picture)
        if claim is not None:
            await self._finish(claim, step)
        return await self._answer(step.picture)

    async def refused(self, worker: str, picture: bytes, error: PhosphoError) -> int:
        """Note that the endpoint took no request; return how many answers it has given so far."""
        claim = self._held(worker, picture)
        over = None if claim is None else self._breaker.note_refusal(error, claim.started)
        if over is not None:
            self.stop(over)
        return self._breaker.answers

    async def release(self, worker: str, picture: bytes) -> None:
        """Leave an image to others."""
        claim = self._held(worker, picture)
        if claim is not None:
            await self._let_go(claim)

    async def note_broken(self, position: int, error: PhosphoError) -> None:
        """Record an input that is not an image."""
        await asyncio.to_thread(self._journal.fail, [(position, error)], ended=time.time())
        self._done[State.FAILED] += 1

    # --- the whole job -------------------------------------------------------------------------

    async def stop_reason(self) -> PhosphoError | None:
        """Return the error that stops the job, as soon as there is one."""
        await self._stopping.wait()
        return self._stopped

    def stop(self, error: PhosphoError) -> None:
        """Permit no further request; the first error counts."""
        self._stopped = self._stopped or error
        self._stopping.set()

    async def quiet(self) -> None:
        """Wait until no request is in progress: each one has its result or is in doubt."""
        while any(claim.in_progress for claim in self._claims.values()):
            await self._settled.wait()

    async def snapshot(self) -> Snapshot:
        """Return the state of the job."""
        counts = dict(self._done), self._duplicates, self._answers, len(self._workers)
        return Snapshot(self._spending.snapshot(), *counts, self._stopped, self._breaker.waits_for)

    async def close(self, patience: float = _PATIENCE) -> None:
        """End the job; a request that is still in progress after some seconds is in doubt."""
        self.stop(ConfigurationError("The job is closed."))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.quiet(), patience)
        with contextlib.suppress(ConfigurationError):  # another process took over the job
            for claim in list(self._claims.values()):
                await self._let_go(claim)
        await asyncio.to_thread(self._commits.close)
        await asyncio.to_thread(self._journal.close)

    # --- results -------------------------------------------------------------------------------

    def _held(self, worker: str, picture: bytes) -> _Claim | None:
        claim = self._claims.get(picture)
        is_held = claim is not None and claim.worker == worker and worker in self._workers
        return claim if is_held else None

    async def _finish(self, claim: _Claim, step: AttemptFailed | ImageFinished) -> None:
        reservation, claim.reservation = claim.reservation, None  # it is lost no more
        try:
            inputs = await self._record(step)
        finally:
            claim.reservation = reservation
            self._settle(claim, step)
        if isinstance(step, AttemptFailed):
            return
        self._drop(claim)
        if step.state is State.PENDING:
            return
        self._answers += 1
        self._done[step.state] += inputs or 1
        if step.state is not State.IN_DOUBT:
            self._breaker.note_answer()
        self._failures.note(step.error)
        if step.error is not None and self._failures.is_too_long:
            self.stop(step.error)

    async def _let_go(self, claim: _Claim) -> None:
        """Drop a claim that gets no result; a request in progress is in doubt."""
        if claim.reservation is not None and claim.in_progress:
            error = ReplyLostError(
                "The worker that sent the request was lost. Whether it was billed is not known."
            )
            step = ImageFinished(
                claim.picture, State.IN_DOUBT, error=error, images_in_doubt=1, ended=time.time()
            )
            await self._finish(claim, step)
        else:
            self._settle(claim)
            self._drop(claim)

    def _drop(self, claim: _Claim) -> None:
        if self._claims.get(claim.picture) is claim:
            del self._claims[claim.picture]
        claim.over.set()

    def _settle(self, claim: _Claim, step: AttemptFailed | ImageFinished | None = None) -> None:
        reservation, claim.reservation, claim.in_progress = claim.reservation, None, False
        if reservation is None:
            return
        if step is not None and step.images_in_doubt:
            reservation.mark_in_doubt()
        elif isinstance(step, ImageFinished) and step.state is State.DESCRIBED:
            reservation.bill()
        else:
            reservation.release()
        self._settled.set()
        self._settled = asyncio.Event()

    async def _wait(self, event: asyncio.Event, seconds: float | None = None) -> None:
        """Wait for an event, for the end of the job, or for some seconds."""
        waiting = [asyncio.ensure_future(one.wait()) for one in (event, self._stopping)]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()

    async def _record(self, step: Step) -> int:
        try:
            return await self._commits.note(step)
        except ConfigurationError as failure:  # a request that cannot be recorded must not be sent
            self.stop(failure)
            raise

    async def _answer(self, picture: bytes) -> Mapping[str, Any]:
        return await asyncio.to_thread(self._journal.answer, picture)


def _lost() -> PhosphoError:
    return ConfigurationError("Ray reported this worker as lost, so it may not send requests.")
