"""The accounts of a job that many machines work at: who may send what now, and what came of it.

All that is decided is decided here, on one event loop beside the journal: which worker asks about a
picture, what it may cost, when it may start. A worker asks before each attempt and tells after it.
What is permitted is in the journal before the worker hears of it, so that nothing that was paid is
lost with any of them. This knows nothing of Ray.

What a call is told twice, since its answer was lost, it does once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from phospho_multimodal.batch.journal.commits import GroupCommit
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import (
    AttemptFailed,
    AttemptStarted,
    ImageClaimed,
    ImageFinished,
    LateWord,
    State,
)
from phospho_multimodal.batch.pipeline.circuit_breaker import FailureStreak
from phospho_multimodal.errors import (
    ConfigurationError,
    PhosphoError,
    ReplyLostError,
    SpendingLimitError,
)
from phospho_multimodal.exchange.limits import RateLimit
from phospho_multimodal.ray.holds import Hold, Holds
from phospho_multimodal.ray.liveness import Liveness
from phospho_multimodal.ray.told import Answered, Snapshot, Word
from phospho_multimodal.spending.budget import Reservation, Spending

__all__ = ["Books"]

_LOOK_EVERY = 0.5  # seconds: how often somebody who waits looks whether the other one lives


@dataclass(slots=True)
class _Attempt:
    """Money that is set aside for a worker, from its permission to what it tells."""

    token: str
    question: str
    picture: bytes
    reservation: Reservation
    noted: bool = False
    given_up: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event | None = None


class Books:
    """What workers share, on one event loop."""

    def __init__(
        self, journal: Journal, spending: Spending, rate: RateLimit, liveness: Liveness
    ) -> None:
        """Open them.

        Args:
            journal: Where everything is noted.
            spending: The ledger, with what the journal knows.
            rate: At which attempts may start.
            liveness: Who is dead.
        """
        self._journal = journal
        self._commits = GroupCommit(journal)
        self._spending = spending
        self._rate = rate
        self._liveness = liveness
        self._holds = Holds()
        self._open: dict[str, _Attempt] = {}
        self._doubted: dict[str, _Attempt] = {}
        self._stopped: PhosphoError | None = None
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        self._failures = FailureStreak()
        self._done: Counter[State] = Counter()
        self._duplicates = 0
        self._answers = 0

    # --- workers -------------------------------------------------------------------------------

    async def hello(self, token: str, name: str, node: str) -> None:
        """Take a worker in; its earlier incarnations are dead."""
        for dead in self._liveness.hello(token, name, node):
            await self._bury(dead, "it was started again")

    def beat(self, token: str) -> PhosphoError | None:
        """Note a sign of life, and tell why nothing more is asked, if that is so."""
        self._liveness.beat(token)
        return self._stopped

    # --- one question --------------------------------------------------------------------------

    async def claim(self, token: str, question: str, claim: ImageClaimed) -> Word | Answered:
        """Ask for a picture; while another question is about it, that one's end is waited for.

        Args:
            token: Of the worker.
            question: Names it, among all questions of all workers.
            claim: The picture.

        Returns:
            `GO` if the question is this one's to ask, or what is known; `STOP` or `FENCED`.

        Raises:
            ConfigurationError: The journal cannot be written.
        """
        counted = False  # among the inputs of the one that is asked
        while True:
            refused = self._refused(token)
            if refused is not None:
                return refused
            hold = self._holds.of(claim.picture)
            if hold is not None and (hold.token, hold.question) != (token, question):
                await self._until_over(hold)
                continue
            state = State(await self._noted(claim))
            if state >= State.DESCRIBED:
                self._done[state] += not counted
                self._duplicates += 1
                return Answered(await self._answer(claim.picture))
            counted = claim.position is not None
            if state is State.SENDING and hold is None:
                self.stop(ConfigurationError("Somebody else asks for this job. See the journal."))
            elif self._holds.of(claim.picture) is hold:  # nobody came between
                self._holds.take(claim.picture, token, question)
                return Word.GO

    async def permit(self, token: str, question: str, picture: bytes, attempt: str) -> Word:
        """Ask whether an attempt may begin now: under the cap, at its time, noted as sent.

        Args:
            token: Of the worker.
            question: Whose attempt it is.
            picture: What it is about.
            attempt: Names it, among all attempts of all workers.

        Returns:
            Any word.

        Raises:
            ConfigurationError: The journal cannot be written.
        """
        asked = self._open.get(attempt)
        if asked is not None:
            await asked.ready.wait()
            return Word.GO if self._open.get(attempt) is asked else Word.FENCED
        while True:
            refused = self._refused(token)
            if refused is not None:
                return refused
            if not self._holds.are(picture, token, question):
                return Word.CLAIM
            try:
                (reservation,) = self._spending.reserve()
            except SpendingLimitError as refusal:
                await self._wait_for_money(refusal)
                continue
            break
        mine = self._open[attempt] = _Attempt(token, question, picture, reservation)
        try:
            return await self._start(attempt, mine)
        finally:
            mine.ready.set()

    async def settle(
        self, question: str, attempt: str | None, step: AttemptFailed | ImageFinished
    ) -> Mapping[str, Any]:
        """Note what an attempt came to, or a question that ended without a further one.

        Args:
            question: Whose attempt it was.
            attempt: The one that was permitted; `None` if none was.
            step: What is to be noted.

        Returns:
            All that is known about the picture, after that.

        Raises:
            ConfigurationError: The journal cannot be written.
        """
        mine = None if attempt is None else self._open.get(attempt)
        if mine is not None and mine.settled is not None:
            await mine.settled.wait()
        elif mine is not None and attempt is not None:
            mine.settled = asyncio.Event()
            await self._settle(mine, step)
            self._open.pop(attempt, None)
            mine.settled.set()
            self._tell_settled()
        elif attempt is None:
            if self._holds.is_held(step.picture, question):
                await self._note_end(step, step)
        else:
            await self._hear_late(self._doubted.get(attempt), attempt, step)
        if isinstance(step, ImageFinished):
            self._holds.let_go(step.picture, question)
        return await self._answer(step.picture)

    async def give_up(self, question: str, picture: bytes) -> None:
        """Take back a claim; an attempt of it that nobody told the end of is in doubt."""
        for attempt, open_one in list(self._open.items()):
            if open_one.question == question and open_one.settled is None:
                await self._doubt(attempt, open_one, "it gave up")
        self._holds.let_go(picture, question)

    async def note_broken(self, position: int, error: PhosphoError) -> None:
        """Note an input of the job that is no picture."""
        try:
            await asyncio.to_thread(self._journal.fail, [(position, error)], ended=time.time())
        except ConfigurationError as failure:
            self.stop(failure)
            raise
        self._done[State.FAILED] += 1

    # --- all of them ---------------------------------------------------------------------------

    def stop(self, error: PhosphoError) -> None:
        """Have nothing more be sent; the first reason counts."""
        if self._stopped is None:
            self._stopped = error
            self._stopping.set()
            self._tell_settled()
            self._holds.wake_all()

    async def quiet(self) -> None:
        """Wait until nothing is under way: what was sent is told, or in doubt."""
        while self._open:
            await self._wait_for_news()
            await self._look_at_open()

    async def snapshot(self) -> Snapshot:
        """Tell how it stands; attempts of workers that are dead are in doubt by that."""
        await self._look_at_open()
        money = self._spending.snapshot()
        doubted = sum(not late.given_up for late in self._doubted.values())
        return Snapshot(
            money=replace(
                money,
                images_in_doubt=money.images_in_doubt + doubted,
                images_reserved=money.images_reserved - doubted,
            ),
            done=dict(self._done),
            duplicates=self._duplicates,
            answers=self._answers,
            workers=len(self._liveness),
            stopped_by=self._stopped,
        )

    async def close(self, patience: float) -> None:
        """End all of it: what is under way after some seconds is in doubt."""
        self.stop(ConfigurationError("The accounts are closed."))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.quiet(), patience)
        # Whoever has taken the job over has put it in doubt already.
        with contextlib.suppress(ConfigurationError):
            for attempt, open_one in list(self._open.items()):
                await self._doubt(attempt, open_one, "the accounts were closed")
        await asyncio.to_thread(self._commits.close)
        await asyncio.to_thread(self._journal.close)

    # --- within: permissions -------------------------------------------------------------------

    def _refused(self, token: str) -> Word | None:
        if self._stopped is not None:
            return Word.STOP
        return None if self._liveness.is_alive(token) else Word.FENCED

    async def _start(self, attempt: str, mine: _Attempt) -> Word:
        """Wait for the time to start, and note the attempt as sent."""
        wait = self._rate.reserve(time.monotonic())
        if wait:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
        if self._open.get(attempt) is not mine:  # buried meanwhile
            return Word.FENCED
        if self._stopped is not None:
            self._open.pop(attempt)
            mine.reservation.release()
            self._tell_settled()
            return Word.STOP
        mine.noted = True
        await self._noted(AttemptStarted(mine.picture))
        return Word.GO if self._open.get(attempt) is mine else Word.FENCED

    async def _wait_for_money(self, refusal: SpendingLimitError) -> None:
        """Wait for an attempt that may turn out to cost nothing; without one, it is the end."""
        if self._open:
            await self._wait_for_news()
            await self._look_at_open()
            return
        for late in self._doubted.values():  # from now on no word can make room
            late.given_up = True
            late.reservation.mark_in_doubt()
        self.stop(refusal)

    # --- within: what came of it ---------------------------------------------------------------

    async def _settle(self, mine: _Attempt, step: AttemptFailed | ImageFinished) -> None:
        await self._note_end(step, step)
        _end_of(mine.reservation, step)()

    async def _hear_late(
        self, late: _Attempt | None, attempt: str, step: AttemptFailed | ImageFinished
    ) -> None:
        """Hear what became of an attempt in doubt, from a worker that was not dead after all."""
        if late is None or step.images_in_doubt:
            return
        del self._doubted[attempt]
        await self._note_end(LateWord(step), step)
        _end_of(late.reservation, step)()
        self._tell_settled()

    async def _note_end(
        self, noted: AttemptFailed | ImageFinished | LateWord, step: AttemptFailed | ImageFinished
    ) -> None:
        inputs = await self._noted(noted)
        if not isinstance(step, ImageFinished) or step.state is State.PENDING:
            return
        self._answers += 1
        self._done[step.state] += inputs or 1
        if isinstance(noted, LateWord):
            self._done[State.IN_DOUBT] -= inputs or 1
        self._failures.note(step.error)
        if step.error is not None and self._failures.is_too_long:
            self.stop(step.error)

    async def _answer(self, picture: bytes) -> Mapping[str, Any]:
        return await asyncio.to_thread(self._journal.answer, picture)

    async def _noted(
        self, step: ImageClaimed | AttemptStarted | AttemptFailed | ImageFinished | LateWord
    ) -> int:
        try:
            return await self._commits.note(step)
        except ConfigurationError as failure:  # what cannot be noted must not be sent
            self.stop(failure)
            raise

    # --- within: the dead ----------------------------------------------------------------------

    async def _look_at_open(self) -> None:
        for token in {attempt.token for attempt in self._open.values()}:
            await self._look(token)

    async def _look(self, token: str) -> None:
        why = await self._liveness.look(token)
        if why is not None:
            await self._bury(token, why)

    async def _bury(self, token: str, why: str) -> None:
        """Have what a dead worker had under way be in doubt, and its pictures be free."""
        for attempt, open_one in list(self._open.items()):
            if open_one.token == token and open_one.settled is None:
                await self._doubt(attempt, open_one, why)
        self._holds.bury(token)

    async def _doubt(self, attempt: str, lost: _Attempt, why: str) -> None:
        if self._open.pop(attempt, None) is None:
            return
        if not lost.noted:
            lost.reservation.release()
        else:
            self._doubted[attempt] = lost  # its money stays set aside: a late word may free it
            message = f"The worker that asked is lost ({why}): whether it was billed is not known."
            step = ImageFinished(
                lost.picture,
                State.IN_DOUBT,
                error=ReplyLostError(message),
                images_in_doubt=1,
                ended=time.time(),
            )
            self._done[State.IN_DOUBT] += await self._noted(step) or 1
        self._tell_settled()

    # --- within: waiting -----------------------------------------------------------------------

    async def _until_over(self, hold: Hold) -> None:
        try:
            await asyncio.wait_for(hold.over.wait(), _LOOK_EVERY)
        except asyncio.TimeoutError:
            await self._look(hold.token)

    def _tell_settled(self) -> None:
        self._settled.set()
        self._settled = asyncio.Event()

    async def _wait_for_news(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._settled.wait(), _LOOK_EVERY)


def _end_of(reservation: Reservation, step: AttemptFailed | ImageFinished) -> Callable[[], None]:
    """Tell how the money of an attempt is settled by what it came to."""
    if step.images_in_doubt:
        return reservation.mark_in_doubt
    if isinstance(step, ImageFinished) and step.state is State.DESCRIBED:
        return reservation.bill
    return reservation.release
