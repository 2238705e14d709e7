"""How far a running job is, for whoever watches it."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from phospho_multimodal.batch.journal.steps import JobCounts, State
from phospho_multimodal.spending.budget import Spending, SpendingSnapshot

__all__ = ["Progress", "ProgressReporter"]

logger = logging.getLogger("phospho_multimodal")

_WINDOW = 30.0  # seconds that "now" is
_TICK = 0.25


@dataclass(frozen=True, slots=True)
class Progress:
    """A running job at one moment.

    Attributes:
        inputs: All of them.
        described: Inputs with an answer, those of earlier runs included.
        failed: Inputs with an error.
        in_doubt: Inputs that may have been billed, without an answer.
        duplicates: Inputs of this run whose picture another one paid for.
        in_flight: Requests under way.
        limit: How many may be.
        inputs_per_second: In the last half minute.
        seconds_left: At that rate; `None` if nothing tells.
        usd_spent: Dollars billed by all runs.
        usd_in_doubt: Dollars that may have been billed.
        usd_saved: Dollars that duplicates would have cost, in this run.
        waits_for: What the job waits for, in words, while the endpoint refuses all requests.
    """

    inputs: int
    described: int
    failed: int
    in_doubt: int
    duplicates: int
    in_flight: int
    limit: int
    inputs_per_second: float
    seconds_left: float | None
    usd_spent: Decimal
    usd_in_doubt: Decimal
    usd_saved: Decimal
    waits_for: str | None = None

    @property
    def done(self) -> int:
        """Inputs with a row."""
        return self.described + self.failed + self.in_doubt


class ProgressReporter:
    """Counts what a run does, and tells it at most four times a second."""

    def __init__(
        self, before: JobCounts, spending: Spending, tell: Callable[[Progress], None] | None
    ) -> None:
        """Begin to count.

        Args:
            before: What earlier runs have done.
            spending: The ledger.
            tell: Who wants to know.
        """
        self._inputs = before.inputs
        self._before = Counter(
            {
                State.DESCRIBED: before.described,
                State.FAILED: before.failed,
                State.IN_DOUBT: before.in_doubt,
            }
        )
        self._done = Counter(self._before)
        self._duplicates = 0
        self._spending = spending
        self._money: SpendingSnapshot | None = None  # of a ledger that is elsewhere
        self._tell = tell
        self._told = 0.0
        self._began = time.monotonic()
        self._answers = 0
        self._course: deque[tuple[float, int]] = deque([(self._began, self._done.total())])

    @property
    def answers_per_second(self) -> float:
        """Questions that came to their end, over the whole run."""
        return self._answers / max(0.001, time.monotonic() - self._began)

    @property
    def answers(self) -> int:
        """Questions that came to their end in this run."""
        return self._answers

    def count_ready(self, done: Counter[State], duplicates: int) -> None:
        """Count what preparing some inputs came to."""
        self._done.update(done)
        self._duplicates += duplicates

    def count_ended(self, state: State, inputs: int) -> None:
        """Count a question that came to its end."""
        self._done[state] += inputs
        self._answers += 1

    def follow(
        self, done: Mapping[State, int], duplicates: int, answers: int, money: SpendingSnapshot
    ) -> None:
        """Take over what somebody else has counted in this run."""
        self._done = self._before + Counter(done)
        self._duplicates, self._answers, self._money = duplicates, answers, money

    def show(
        self, in_flight: int, limit: int, *, at_once: bool = False, waits_for: str | None = None
    ) -> None:
        """Tell how far it is, unless that was told just now."""
        now = time.monotonic()
        if self._tell is None or (not at_once and now - self._told < _TICK):
            return
        self._told = now
        progress = replace(self._progress(now, in_flight, limit), waits_for=waits_for)
        try:
            self._tell(progress)
        except Exception:
            # What is under way is paid: a display that fails is no reason to give it up.
            self._tell = None
            logger.exception("on_progress= failed and is told no more; the job goes on")

    def _progress(self, now: float, in_flight: int, limit: int) -> Progress:
        done = self._done.total()
        self._course.append((now, done))
        while len(self._course) > 2 and now - self._course[1][0] > _WINDOW:  # noqa: PLR2004
            self._course.popleft()
        since, then = self._course[0]
        rate = (done - then) / (now - since) if now > since else 0.0
        money = self._money or self._spending.snapshot()
        return Progress(
            inputs=self._inputs,
            described=self._done[State.DESCRIBED],
            failed=self._done[State.FAILED],
            in_doubt=self._done[State.IN_DOUBT],
            duplicates=self._duplicates,
            in_flight=in_flight,
            limit=limit,
            inputs_per_second=rate,
            seconds_left=(self._inputs - done) / rate if rate else None,
            usd_spent=money.usd_billed,
            usd_in_doubt=money.usd_in_doubt,
            usd_saved=self._duplicates * money.usd_per_image,
        )
