"""One question of a batch on its way: noted before it is sent, counted when it comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from phospho_multimodal.async_client import AsyncPhosphoClient
from phospho_multimodal.batch.commits import GroupCommit
from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.level import Level
from phospho_multimodal.batch.steps import AttemptFailed, Ended, Sending, State
from phospho_multimodal.conversation import cut_at_stop
from phospho_multimodal.errors import FATAL_ERRORS, PhosphoError
from phospho_multimodal.exchange import AwaitTurn, Call, Exchange, Pause, Send, Step, ask

__all__ = ["Asker", "Question"]

_LOOK_UP = 0.25  # seconds


@dataclass(slots=True)
class Question:
    """A picture that is ready to be asked about.

    Attributes:
        picture: What it is known by.
        call: What is sent.
    """

    picture: bytes
    call: Call

    @property
    def size(self) -> int:
        """What it holds in memory, in bytes."""
        return sum(map(len, self.call.body))


class Asker:
    """Asks questions through one client, on one event loop."""

    def __init__(
        self,
        shared: Exchange,
        client: AsyncPhosphoClient,
        job: Job,
        commits: GroupCommit,
        level: Level,
    ) -> None:
        """Tell how.

        Args:
            shared: What the client's calls share.
            client: Who sends.
            job: What is asked.
            commits: Where each step is noted.
            level: How many may be in flight.
        """
        self._shared = shared
        self._client = client
        self._job = job
        self._commits = commits
        self._level = level

    async def ask(
        self, question: Question, stopping: Callable[[], PhosphoError | None]
    ) -> tuple[Ended, int, PhosphoError | None]:
        """Ask one question, and note what becomes of it.

        Args:
            question: What is asked; its call is used up.
            stopping: Asked before each attempt: why there shall be none.

        Returns:
            How it ended, how many inputs have their row by that, and the error if it was one.
            What ends as `PENDING` was refused, or not asked any more, and cost nothing.

        Raises:
            ConfigurationError: The journal cannot be written.
        """
        call, picture = question.call, question.picture
        call.stopped_by = stopping
        if self._shared.settings.deadline is not None:
            call.deadline = self._shared.clock() + self._shared.settings.deadline
        noted = _Noted(call.attempts, call.in_doubt)
        began: float | None = None
        failure: PhosphoError | None = None

        async def perform(step: Step) -> Any:
            nonlocal began
            if isinstance(step, AwaitTurn):
                return await self._turn(step)
            if isinstance(step, Send):
                await self._commits.note(Sending(picture))
                began = began or time.monotonic()
                return await self._send(step)
            if isinstance(step, Pause):  # nothing is on its way meanwhile
                await self._commits.note(AttemptFailed(picture, noted.news(call)[1]))
                return await _pause(step.seconds, stopping)
            return await self._client.perform(step)

        try:
            description = await self._client.run(ask(self._shared, call), perform)
        except PhosphoError as error:
            failure = error
            state = _state_of(error, stopping() is not None)
            ended = self._ended(picture, state, call, noted, began, error=error)
            if state is State.PENDING and began is None:  # the journal has heard nothing of it
                return ended, 0, failure
        except BaseException:
            # Cancelled. Whatever is awaited now may never come back: the note goes on by itself.
            state = State.IN_DOUBT if call.in_doubt else State.PENDING
            self._commits.note_at_last(self._ended(picture, state, call, noted, began))
            raise
        else:
            text = cut_at_stop(description, self._job.asking.stop)
            ended = self._ended(picture, State.DESCRIBED, call, noted, began, description=text)
        return ended, await self._commits.note(ended), failure

    async def _turn(self, step: AwaitTurn) -> Callable[[], None] | None:
        """Wait for the level before the client's own queue: what waits there has its start time."""
        await self._level.take()
        try:
            release: Callable[[], None] | None = await self._client.perform(step)
        except BaseException:
            self._level.give_back()
            raise
        if release is None:
            self._level.give_back()
            return None

        def give_back() -> None:
            release()
            self._level.give_back()

        return give_back

    async def _send(self, step: Send) -> Any:
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
        call: Call,
        noted: _Noted,
        began: float | None,
        *,
        description: str | None = None,
        error: PhosphoError | None = None,
    ) -> Ended:
        attempts, in_doubt = noted.news(call)
        return Ended(
            picture,
            state,
            description=description,
            error=None if state is State.PENDING else error,
            attempts=attempts,
            images_in_doubt=in_doubt,
            seconds=None if began is None else time.monotonic() - began,
            ended=None if state is State.PENDING else time.time(),
        )


@dataclass(slots=True)
class _Noted:
    """What the journal has been told about a call."""

    attempts: int = 0
    in_doubt: int = 0

    def news(self, call: Call) -> tuple[int, int]:
        """Tell what it has not been told yet: attempts, and images in doubt."""
        attempts, in_doubt = call.attempts - self.attempts, call.in_doubt - self.in_doubt
        self.attempts, self.in_doubt = call.attempts, call.in_doubt
        return attempts, in_doubt


async def _pause(seconds: float, stopping: Callable[[], PhosphoError | None]) -> None:
    """Do nothing for some seconds; who wants the run to end does not wait for them."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and stopping() is None:  # noqa: ASYNC110 - of threads
        await asyncio.sleep(min(left, _LOOK_UP))


def _state_of(error: PhosphoError, stopping: bool) -> State:
    """Tell how a question stands that has no answer."""
    if error.images_in_doubt:
        return State.IN_DOUBT
    if isinstance(error, FATAL_ERRORS) or stopping:
        return State.PENDING  # the next run asks it
    return State.FAILED
