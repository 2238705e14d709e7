"""A worker of a Ray job: makes pictures ready, asks about those that nobody asked about.

It has an event loop on a thread of its own, for as long as its process lives, so that the calls of
Ray, which come on other threads, share one client and its connections.
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
from phospho_multimodal.batch.pipeline.preparation import make_sendable, size_of
from phospho_multimodal.batch.pipeline.questions import Question, RequestRunner
from phospho_multimodal.batch.sources.items import Item
from phospho_multimodal.client.async_client import AsyncPhosphoClient
from phospho_multimodal.errors import FATAL_ERRORS, PhosphoError
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.exchange.prediction import build_request
from phospho_multimodal.images.prepare import SendableImage
from phospho_multimodal.ray.accounts import Accounts
from phospho_multimodal.ray.link import Link
from phospho_multimodal.ray.told import Answered, Word

__all__ = ["Outcome", "Worker"]

_FETCHING = 16  # threads that wait for other people's servers


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture.

    Attributes:
        error: Why it is none.
        answer: What the journal knows of it.
        pays: Whether it was asked about here: the money stands beside this one.
        sha256: Of what is sent, in hexadecimal.
    """

    error: PhosphoError | None = None
    answer: Mapping[str, Any] | None = None
    pays: bool = False

    @property
    def state(self) -> State:
        """`PENDING` if nothing more was asked."""
        if self.error is not None:
            return State.FAILED
        return State.PENDING if self.answer is None else State(self.answer["state"])


class Worker:
    """One process, which may be called from any thread."""

    def __init__(self, accounts: Accounts, concurrency: int | Literal["auto"]) -> None:
        """Say hello to the accounts.

        Args:
            accounts: Of the job.
            concurrency: Requests of this worker at once.

        Raises:
            ConfigurationError: The accounts are gone.
        """
        ceiling = AUTO_CEILING if concurrency == "auto" else concurrency
        self._job = accounts.orders.job
        # The rate is the accounts' business, and so are the slots the level's.
        self._settings = replace(
            accounts.orders.settings, requests_per_second=None, max_concurrency=ceiling
        )
        self._link = Link(accounts)
        self._shared = ClientState.of(self._settings, None)
        self._client = AsyncPhosphoClient.sharing(self._shared)
        self._level = AdaptiveConcurrency(ceiling, fixed=concurrency != "auto")
        threads = _FETCHING if self._settings.url_mode == "fetch" else max(2, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="phospho-ready")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="phospho-ray", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._link.keep_beating(), self._loop)

    def describe(self, items: Sequence[tuple[Item, int | None]]) -> list[Outcome]:
        """Ask about some pictures.

        Args:
            items: Each with its position among the job's inputs, if it has one.

        Returns:
            What became of each; some are `PENDING` if the job was stopped.

        Raises:
            PhosphoError: The accounts are gone, or cannot write.
        """
        work = self._describe_all(items)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stopped_by(self) -> PhosphoError | None:
        """Tell why nothing more is asked.

        Returns:
            The error, once nothing is under way anywhere: whoever raises it ends all workers.
        """
        error = self._link.stopped_by
        if error is not None:
            waiting = self._link.ask("quiet")
            asyncio.run_coroutine_threadsafe(waiting, self._loop).result()
        return error

    async def _describe_all(self, items: Sequence[tuple[Item, int | None]]) -> list[Outcome]:
        tasks = [asyncio.ensure_future(self._describe(item, at)) for item, at in items]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)  # what is sent is settled
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, Outcome)]

    async def _describe(self, item: Item, position: int | None) -> Outcome:
        if self._link.stopped_by is not None:
            return Outcome()
        image = await self._loop.run_in_executor(
            self._threads, make_sendable, item, self._settings, self._is_stopped
        )
        if isinstance(image, PhosphoError):
            if self._is_stopped():  # a URL that was given up says nothing about its picture
                return Outcome()
            if position is not None:
                await self._link.ask("note_broken", position, image)
            return Outcome(error=image)
        claim = ImageClaimed(picture_key(image), position, *size_of(image))
        outcome = None
        while outcome is None:
            outcome = await self._ask(image, _Notes(self._link, claim))
        return outcome

    async def _ask(self, image: SendableImage, notes: _Notes) -> Outcome | None:
        """Ask one question; `None` if it was taken away on the way, and has to be put anew."""
        found = await notes.claim()
        if found is not None:
            return Outcome(answer=found)
        if self._link.stopped_by is not None:
            await notes.give_up()
            return Outcome()
        asker = RequestRunner(self._shared, self._client, self._job, notes, self._level)
        call = build_request(image, self._job.prompt, self._job.asking, self._settings)
        question = Question(notes.picture, call)
        try:
            ended, _, failure = await asker.ask(question, notes.stopping)
        except _AnsweredElsewhereError as elsewhere:
            return Outcome(answer=elsewhere.answer)
        if ended.state is State.PENDING:
            await notes.give_up()
            if isinstance(failure, FATAL_ERRORS):
                await self._link.stop(failure)
            return Outcome()
        if notes.answer is None or notes.answer["state"] < State.DESCRIBED:
            return None
        return Outcome(answer=notes.answer, pays=True)

    def _is_stopped(self) -> bool:
        return self._link.stopped_by is not None


class _Notes:
    """Where the steps of one question are noted: in the accounts."""

    def __init__(self, link: Link, claim: ImageClaimed) -> None:
        self.picture = claim.picture
        self.answer: Mapping[str, Any] | None = None
        self._link = link
        self._claim = claim
        self._question = uuid.uuid4().hex
        self._attempt: str | None = None

    async def claim(self) -> Mapping[str, Any] | None:
        """Claim the picture; what is known about it, or nothing if it is to be asked.

        Nothing, too, if the job was stopped: then `stopping` tells.
        """
        told = await self._link.ask_as_worker("claim", self._question, self._claim)
        return told.answer if isinstance(told, Answered) else None

    async def give_up(self) -> None:
        """Leave the picture to others."""
        await self._link.ask("give_up", self._question, self.picture)

    def stopping(self) -> PhosphoError | None:
        """Tell why there shall be no further attempt; one that is permitted is made."""
        return None if self._attempt is not None else self._link.stopped_by

    async def begin_attempt(self, picture: bytes) -> None:
        """Ask for a permission. Without one, since the job was stopped, `stopping` tells."""
        while True:
            attempt = uuid.uuid4().hex
            told = await self._link.ask_as_worker("permit", self._question, picture, attempt)
            if told is Word.GO:
                self._attempt = attempt
            if told is not Word.CLAIM:
                return
            found = await self.claim()
            if found is not None:
                raise _AnsweredElsewhereError(found)

    async def note(self, step: Step) -> int:
        """Tell what an attempt came to; that it is sent was noted with the permission."""
        if not isinstance(step, AttemptStarted):
            attempt, self._attempt = self._attempt, None
            self.answer = await self._link.ask("settle", self._question, attempt, step)
        return 0

    def note_at_last(self, step: Step) -> None:
        """Tell it without waiting."""
        if self._attempt is not None:
            self._last = asyncio.ensure_future(self.note(step))


class _AnsweredElsewhereError(Exception):
    """The picture was asked about by somebody else, while this worker was taken for dead."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__()
        self.answer = answer
