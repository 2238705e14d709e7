"""One image on its way: each step is noted before it is taken, and counted when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.steps import (
    AttemptFailed,
    AttemptStarted,
    ImageFinished,
    State,
)
from phospho_multimodal.batch.journal.steps import Step as Noted
from phospho_multimodal.batch.pipeline.adaptive_concurrency import AdaptiveConcurrency
from phospho_multimodal.batch.pipeline.circuit_breaker import is_refusal
from phospho_multimodal.client.async_client import AsyncPhosphoClient
from phospho_multimodal.errors import FATAL_ERRORS, PhosphoError, SpendingLimitError
from phospho_multimodal.exchange.attempts import ClientState, RequestState, send_with_retries
from phospho_multimodal.exchange.steps import AcquireSlot, SendRequest, Sleep, Step
from phospho_multimodal.messages.conversation import cut_at_stop

__all__ = ["EventLog", "Question", "RequestRunner", "TiledQuestion"]

_LOOK_UP = 0.25  # seconds


class EventLog(Protocol):
    """Where steps are noted."""

    async def begin_attempt(self, picture: bytes) -> None:
        """Wait until an attempt may begin. It has its slot, and its money is not reserved yet."""

    async def note(self, step: Noted) -> int:
        """Note a step, and return how many inputs have their row by it."""

    def note_at_last(self, step: Noted) -> None:
        """Note a step without waiting."""


@dataclass(slots=True)
class Question:
    """A prepared image."""

    picture: bytes  # the key of the image
    call: RequestState  # the request
    refusals: int = 0  # how often it was refused while the endpoint answered other requests
    answers_before: int = 0  # how many answers the endpoint had given at the last refusal

    @property
    def size(self) -> int:
        """The memory that it holds, in bytes."""
        return sum(map(len, self.call.body))

    @property
    def pictures(self) -> list[bytes]:
        """The keys that are taken for it."""
        return [self.picture]

    def renew(self) -> None:
        """Make it ready to be sent again, with all of its retries."""
        self.call = replace(self.call, attempts=0, service_errors=0)


@dataclass(slots=True)
class TiledQuestion:
    """A prepared image with a request for each tile."""

    picture: bytes  # the key of the image
    # the key of each tile, and the heading of its answer, in reading order
    tiles: tuple[tuple[bytes, str], ...]
    questions: list[Question]  # the tiles that have no answer yet

    @property
    def size(self) -> int:
        """The memory that it holds, in bytes."""
        return sum(question.size for question in self.questions)

    @property
    def pictures(self) -> list[bytes]:
        """The keys that are taken for it."""
        return [self.picture, *(question.picture for question in self.questions)]


class RequestRunner:
    """Sends images through one client, on one event loop."""

    def __init__(
        self,
        shared: ClientState,
        client: AsyncPhosphoClient,
        job: Job,
        log: EventLog,
        concurrency: AdaptiveConcurrency,
        *,
        keeps_refused: bool = False,
    ) -> None:
        """Keep what requests share.

        Args:
            shared: The state of the client.
            client: The client.
            job: The prompt and its parameters.
            log: Where each step is noted.
            concurrency: The limit of concurrent requests.
            keeps_refused: Whether an image that the endpoint refused for reasons of its own ends
                as `PENDING`, for a caller that sends it again; see `is_refusal`.
        """
        self._keeps_refused = keeps_refused
        self._shared = shared
        self._client = client
        self._job = job
        self._log = log
        self._concurrency = concurrency

    async def ask(
        self,
        question: Question,
        stopping: Callable[[], PhosphoError | None],
        stop: Callable[[PhosphoError], None] = lambda _: None,
    ) -> tuple[ImageFinished, int, PhosphoError | None]:
        """Send one image, and note its end.

        An image that ends as `PENDING` was refused or stopped, and cost nothing.

        Args:
            question: The image. Its request is used up.
            stopping: Called before each attempt. It returns a reason to make none.
            stop: Called with an error that would end every request, before the next is sent.

        Returns:
            How it ended, how many inputs have their row by that, and the error, if it was one.

        Raises:
            ConfigurationError: The journal cannot be written.
        """
        call, picture = question.call, question.picture
        call.abort_reason, call.deadline = stopping, None
        way = AttemptProgress(call.attempts, call.in_doubt)

        async def perform(step: Step) -> Any:
            return await self._perform(step, question, way, stopping)

        failure: PhosphoError | None = None
        try:
            description = await self._client.run(send_with_retries(self._shared, call), perform)
        except PhosphoError as error:
            failure = error
            if way.has_turn and way.began is not None and stopping() is None:
                # An attempt failed, and the spending limit did not allow the next one yet.
                failure = SpendingLimitError(f"No retry is allowed: {self._shared.spending}.")
                return self._ended(picture, State.PENDING, call, way), 0, failure
            if self._keeps_refused and not error.images_in_doubt and is_refusal(error):
                return await self._refused(picture, call, way), 0, failure
            state = _state_of(error, stopping() is not None)
            _stop_all(error, stop)
            ended = self._ended(picture, state, call, way, error=error)
            if state is State.PENDING and way.began is None:  # nothing of it is noted
                return ended, 0, failure
        except BaseException:
            # A cancelled task may never be resumed, so the note is not awaited.
            if way.is_answered and call.in_doubt == way.in_doubt:
                call.in_doubt += 1  # the answer was billed, and is lost
            state = State.IN_DOUBT if call.in_doubt else State.PENDING
            self._log.note_at_last(self._ended(picture, state, call, way))
            raise
        else:
            text = cut_at_stop(description, self._job.asking.stop)
            ended = self._ended(picture, State.DESCRIBED, call, way, description=text)
        return ended, await self._log.note(ended), failure

    async def _refused(
        self, picture: bytes, call: RequestState, way: AttemptProgress
    ) -> ImageFinished:
        """Note that no request is in progress. The image stays taken."""
        attempts, in_doubt = way.news(call)
        if attempts:
            await self._log.note(AttemptFailed(picture, in_doubt))
        return self._ended(picture, State.PENDING, call, way)

    async def fail(self, question: Question, error: PhosphoError) -> tuple[ImageFinished, int]:
        """Note that an image failed without a request in progress; see `ask` for the result."""
        picture = question.picture
        ended = ImageFinished(picture, State.FAILED, error=error, attempts=0, ended=time.time())
        return ended, await self._log.note(ended)

    async def _perform(
        self,
        step: Step,
        question: Question,
        way: AttemptProgress,
        stopping: Callable[[], PhosphoError | None],
    ) -> Any:
        call, picture = question.call, question.picture
        if isinstance(step, AcquireSlot):
            release = await self._turn(step, picture, stopping)
            way.has_turn = release is not None
            if way.began is None:  # waiting for the first slot is not part of it
                call.deadline = self._deadline()
            return release
        if isinstance(step, SendRequest):
            way.has_turn = way.is_answered = False
            await self._log.note(AttemptStarted(picture))
            way.began = way.began or time.monotonic()
            reply = await self._send(step)
            way.is_answered = reply.status_code == 200  # noqa: PLR2004 - an answer
            return reply
        if isinstance(step, Sleep):  # no request is in progress meanwhile
            await self._log.note(AttemptFailed(picture, way.news(call)[1]))
            return await _pause(step.seconds, stopping)
        return await self._client.perform(step)

    def _deadline(self) -> float | None:
        seconds = self._shared.settings.deadline
        return None if seconds is None else self._shared.clock() + seconds

    async def _turn(
        self, step: AcquireSlot, picture: bytes, stopping: Callable[[], PhosphoError | None]
    ) -> Callable[[], None] | None:
        """Wait for the concurrency limit, then for the client: its queue assigns start times."""
        await self._concurrency.take()
        if step.deadline is not None and self._shared.clock() >= step.deadline:
            self._concurrency.give_back()
            return None
        try:
            release = await self._client_turn(step, stopping)
        except BaseException:
            self._concurrency.give_back()
            raise
        if release is None:
            self._concurrency.give_back()
            return None

        def give_back() -> None:
            release()
            self._concurrency.give_back()

        try:
            await self._log.begin_attempt(picture)
        except BaseException:
            give_back()
            raise
        return give_back

    async def _client_turn(
        self, step: AcquireSlot, stopping: Callable[[], PhosphoError | None]
    ) -> Callable[[], None] | None:
        """Wait for the client's slots and its rate, or for a reason to stop."""
        if self._shared.settings.requests_per_second is None:
            turn: Callable[[], None] | None = await self._client.perform(step)
            return turn
        waiting = asyncio.ensure_future(self._client.perform(step))
        try:
            while not waiting.done() and stopping() is None:
                await asyncio.wait([waiting], timeout=_LOOK_UP)
            waiting.cancel()
            await asyncio.wait([waiting])
        except BaseException:
            waiting.cancel()
            waiting.add_done_callback(_let_go)
            raise
        # The exchange checks for a reason to stop before it sends.
        return _nothing if waiting.cancelled() else waiting.result()

    async def _send(self, step: SendRequest) -> Any:
        sent = time.monotonic()
        try:
            reply = await self._client.perform(step)
        except BaseException:
            self._concurrency.note(None, sent)
            raise
        self._concurrency.note(reply.status_code, sent)
        return reply

    @staticmethod
    def _ended(
        picture: bytes,
        state: State,
        call: RequestState,
        way: AttemptProgress,
        *,
        description: str | None = None,
        error: PhosphoError | None = None,
    ) -> ImageFinished:
        attempts, in_doubt = way.news(call)
        return ImageFinished(
            picture,
            state,
            description=description,
            error=None if state is State.PENDING else error,
            attempts=attempts,
            images_in_doubt=in_doubt,
            seconds=None if way.began is None else time.monotonic() - way.began,
            ended=None if state is State.PENDING else time.time(),
        )


@dataclass(slots=True)
class AttemptProgress:
    """The progress of a request, and the counts that the journal already has."""

    attempts: int
    in_doubt: int
    began: float | None = None
    has_turn: bool = False  # and it has sent nothing with it
    is_answered: bool = False  # by its last attempt

    def news(self, call: RequestState) -> tuple[int, int]:
        """Return the attempts and the images in doubt that are not noted yet."""
        attempts, in_doubt = call.attempts - self.attempts, call.in_doubt - self.in_doubt
        self.attempts, self.in_doubt = call.attempts, call.in_doubt
        return attempts, in_doubt


async def _pause(seconds: float, stopping: Callable[[], PhosphoError | None]) -> None:
    """Sleep, but not past a reason to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and stopping() is None:  # noqa: ASYNC110 - of threads
        await asyncio.sleep(min(left, _LOOK_UP))


def _nothing() -> None:
    """Release a slot that was not acquired."""


def _let_go(turn: asyncio.Future[Callable[[], None] | None]) -> None:
    """Release a slot that came too late."""
    if not turn.cancelled() and turn.exception() is None and (release := turn.result()) is not None:
        release()


def _stop_all(error: PhosphoError, stop: Callable[[PhosphoError], None]) -> None:
    """Stop on a fatal error, except the limit: a request in progress may still cost nothing."""
    if isinstance(error, FATAL_ERRORS) and not isinstance(error, SpendingLimitError):
        stop(error)


def _state_of(error: PhosphoError, stopping: bool) -> State:
    """Return the state of an image without an answer."""
    if error.images_in_doubt:
        return State.IN_DOUBT
    if isinstance(error, FATAL_ERRORS) or stopping:
        return State.PENDING  # the next run sends it
    return State.FAILED
