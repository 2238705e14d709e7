"""One question of a batch on its way: noted before it is sent, counted when it comes back."""

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

__all__ = ["EventLog", "Question", "RequestRunner"]

_LOOK_UP = 0.25  # seconds


class EventLog(Protocol):
    """Where the steps of questions are noted."""

    async def begin_attempt(self, picture: bytes) -> None:
        """Wait until an attempt may begin; its turn has come, and its money is not set aside."""

    async def note(self, step: Noted) -> int:
        """Note a step, and tell how many inputs have their row by it."""

    def note_at_last(self, step: Noted) -> None:
        """Note a step that nobody can wait for any more."""


@dataclass(slots=True)
class Question:
    """A picture that is ready to be asked about.

    Attributes:
        picture: What it is known by.
        call: What is sent.
        refusals: How often it was refused while the endpoint answered other questions.
        answers_before: How many answers the endpoint had given when that was last looked at.
    """

    picture: bytes
    call: RequestState
    refusals: int = 0
    answers_before: int = 0

    @property
    def size(self) -> int:
        """What it holds in memory, in bytes."""
        return sum(map(len, self.call.body))

    def renew(self) -> None:
        """Make it ready to be asked again, with all of its retries."""
        self.call = replace(self.call, attempts=0, service_errors=0)


class RequestRunner:
    """Asks questions through one client, on one event loop."""

    def __init__(
        self,
        shared: ClientState,
        client: AsyncPhosphoClient,
        job: Job,
        commits: EventLog,
        level: AdaptiveConcurrency,
        *,
        keeps_refused: bool = False,
    ) -> None:
        """Tell how.

        Args:
            shared: What the client's calls share.
            client: Who sends.
            job: What is asked.
            commits: Where each step is noted.
            level: How many may be in flight.
            keeps_refused: Whether a question that the endpoint refused for reasons of its own ends
                as `PENDING`, for a caller that asks it again; see `is_refusal`.
        """
        self._keeps_refused = keeps_refused
        self._shared = shared
        self._client = client
        self._job = job
        self._commits = commits
        self._level = level

    async def ask(
        self,
        question: Question,
        stopping: Callable[[], PhosphoError | None],
        stop: Callable[[PhosphoError], None] = lambda _: None,
    ) -> tuple[ImageFinished, int, PhosphoError | None]:
        """Ask one question, and note what becomes of it.

        Args:
            question: What is asked; its call is used up.
            stopping: Asked before each attempt: why there shall be none.
            stop: Told of what would end every question so, before the next one is sent.

        Returns:
            How it ended, how many inputs have their row by that, and the error if it was one.
            What ends as `PENDING` was refused, or not asked any more, and cost nothing.

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
                # After an attempt that failed, which the journal knows, the cap did not allow the
                # next one: the question waits.
                failure = SpendingLimitError(f"No retry is allowed: {self._shared.spending}.")
                return self._ended(picture, State.PENDING, call, way), 0, failure
            if self._keeps_refused and not error.images_in_doubt and is_refusal(error):
                return await self._refused(picture, call, way), 0, failure
            state = _state_of(error, stopping() is not None)
            _stop_all(error, stop)
            ended = self._ended(picture, state, call, way, error=error)
            if state is State.PENDING and way.began is None:  # the journal has heard nothing of it
                return ended, 0, failure
        except BaseException:
            # Cancelled. Whatever is awaited now may never come back: the note goes on by itself.
            if way.is_answered and call.in_doubt == way.in_doubt:
                call.in_doubt += 1  # the ledger in a file has it, and the answer is lost
            state = State.IN_DOUBT if call.in_doubt else State.PENDING
            self._commits.note_at_last(self._ended(picture, state, call, way))
            raise
        else:
            text = cut_at_stop(description, self._job.asking.stop)
            ended = self._ended(picture, State.DESCRIBED, call, way, description=text)
        return ended, await self._commits.note(ended), failure

    async def _refused(
        self, picture: bytes, call: RequestState, way: AttemptProgress
    ) -> ImageFinished:
        """Note that nothing is on its way any more; the picture stays taken by its question."""
        attempts, in_doubt = way.news(call)
        if attempts:
            await self._commits.note(AttemptFailed(picture, in_doubt))
        return self._ended(picture, State.PENDING, call, way)

    async def fail(self, question: Question, error: PhosphoError) -> tuple[ImageFinished, int]:
        """Note that a question is not asked any more.

        Args:
            question: What was asked; nothing of it is on its way.
            error: Why.

        Returns:
            How it ended, and how many inputs have their row by that.

        Raises:
            ConfigurationError: The journal cannot be written.
        """
        picture = question.picture
        ended = ImageFinished(picture, State.FAILED, error=error, attempts=0, ended=time.time())
        return ended, await self._commits.note(ended)

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
            if way.began is None:  # to wait for the first turn is no part of the call
                call.deadline = self._deadline()
            return release
        if isinstance(step, SendRequest):
            way.has_turn = way.is_answered = False
            await self._commits.note(AttemptStarted(picture))
            way.began = way.began or time.monotonic()
            reply = await self._send(step)
            way.is_answered = reply.status_code == 200  # noqa: PLR2004 - an answer
            return reply
        if isinstance(step, Sleep):  # nothing is on its way meanwhile
            await self._commits.note(AttemptFailed(picture, way.news(call)[1]))
            return await _pause(step.seconds, stopping)
        return await self._client.perform(step)

    def _deadline(self) -> float | None:
        seconds = self._shared.settings.deadline
        return None if seconds is None else self._shared.clock() + seconds

    async def _turn(
        self, step: AcquireSlot, picture: bytes, stopping: Callable[[], PhosphoError | None]
    ) -> Callable[[], None] | None:
        """Wait for the level before the client's own queue: what waits there has its start time."""
        await self._level.take()
        if step.deadline is not None and self._shared.clock() >= step.deadline:
            self._level.give_back()
            return None
        try:
            release = await self._client_turn(step, stopping)
        except BaseException:
            self._level.give_back()
            raise
        if release is None:
            self._level.give_back()
            return None

        def give_back() -> None:
            release()
            self._level.give_back()

        try:
            await self._commits.begin_attempt(picture)
        except BaseException:
            give_back()
            raise
        return give_back

    async def _client_turn(
        self, step: AcquireSlot, stopping: Callable[[], PhosphoError | None]
    ) -> Callable[[], None] | None:
        """Wait for the client's slots and its rate; who wants the run to end does not wait."""
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
        # Before it sends, the exchange looks whether it is to stop.
        return _nothing if waiting.cancelled() else waiting.result()

    async def _send(self, step: SendRequest) -> Any:
        sent = time.monotonic()
        try:
            reply = await self._client.perform(step)
        except BaseException:
            self._level.note(None, sent)
            raise
        self._level.note(reply.status_code, sent)
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
    """How far a question is, and what the journal has been told about its call."""

    attempts: int
    in_doubt: int
    began: float | None = None
    has_turn: bool = False  # and has not used it
    is_answered: bool = False  # by its last attempt

    def news(self, call: RequestState) -> tuple[int, int]:
        """Tell what it has not been told yet: attempts, and images in doubt."""
        attempts, in_doubt = call.attempts - self.attempts, call.in_doubt - self.in_doubt
        self.attempts, self.in_doubt = call.attempts, call.in_doubt
        return attempts, in_doubt


async def _pause(seconds: float, stopping: Callable[[], PhosphoError | None]) -> None:
    """Do nothing for some seconds; who wants the run to end does not wait for them."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and stopping() is None:  # noqa: ASYNC110 - of threads
        await asyncio.sleep(min(left, _LOOK_UP))


def _nothing() -> None:
    """Free a turn that was not waited for."""


def _let_go(turn: asyncio.Future[Callable[[], None] | None]) -> None:
    """Free a turn that came when nobody wanted it any more."""
    if not turn.cancelled() and turn.exception() is None and (release := turn.result()) is not None:
        release()


def _stop_all(error: PhosphoError, stop: Callable[[PhosphoError], None]) -> None:
    """Stop on a fatal error, but for the cap: what is under way may yet leave an image."""
    if isinstance(error, FATAL_ERRORS) and not isinstance(error, SpendingLimitError):
        stop(error)


def _state_of(error: PhosphoError, stopping: bool) -> State:
    """Tell how a question stands that has no answer."""
    if error.images_in_doubt:
        return State.IN_DOUBT
    if isinstance(error, FATAL_ERRORS) or stopping:
        return State.PENDING  # the next run asks it
    return State.FAILED
