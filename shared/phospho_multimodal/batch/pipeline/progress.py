"""The progress of a running job, reported to a callback."""

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
_LONG_COUNT = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Progress:
    """A running job at one moment.

    Attributes:
        inputs: All inputs; while they are counted, those that were found so far.
        described: Inputs with an answer, also from earlier runs.
        failed: Inputs with an error.
        in_doubt: Inputs that may have been billed without an answer.
        duplicates: Inputs of this run whose image another input paid for.
        in_flight: Requests in progress.
        limit: The most requests that may be in progress.
        inputs_per_second: The rate of the last half minute.
        seconds_left: The time left at that rate; `None` if nothing is known.
        usd_spent: Dollars billed by all runs.
        usd_in_doubt: Dollars that may have been billed.
        usd_saved: Dollars that duplicates would have cost in this run.
        waits_for: What the job waits for, in words, while nothing is sent: an endpoint that refuses
            all requests, or the count of the inputs.
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
    """Counts what a run does, and reports it at most four times a second."""

    def __init__(
        self,
        before: JobCounts | None,
        spending: Spending,
        tell: Callable[[Progress], None] | None,
    ) -> None:
        """Begin with the counts of earlier runs; `None` while the inputs are counted."""
        before = before or JobCounts(0, 0, 0, 0, 0, 0, 0, 0)
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
        self._money: SpendingSnapshot | None = None  # of a ledger in another process
        self._tell = tell
        self._told = 0.0
        self._began = time.monotonic()
        self._course: deque[tuple[float, int]] = deque([(self._began, self._done.total())])

    def count_ready(self, done: Mapping[State, int], duplicates: int) -> None:
        """Count rows that are finished, and inputs whose image is sent for another input."""
        self._done.update(done)
        self._duplicates += duplicates

    def count_ended(self, state: State, inputs: int) -> None:
        """Count an image whose requests have ended."""
        self._done[state] += inputs

    def follow(self, done: Mapping[State, int], duplicates: int, money: SpendingSnapshot) -> None:
        """Take the counts of this run from another process."""
        self._done = self._before + Counter(done)
        self._duplicates, self._money = duplicates, money

    def show_counting(self, inputs: int) -> None:
        """Report how many inputs are found so far, if counting them takes seconds."""
        if time.monotonic() - self._began < _LONG_COUNT:
            return
        self._inputs = inputs
        self.show(0, 0, waits_for=f"Counting inputs: {inputs:,} found")

    def show(
        self, in_flight: int, limit: int, *, at_once: bool = False, waits_for: str | None = None
    ) -> None:
        """Report the progress, unless it was reported in the last quarter of a second."""
        now = time.monotonic()
        if self._tell is None or (not at_once and now - self._told < _TICK):
            return
        self._told = now
        progress = replace(self._progress(now, in_flight, limit), waits_for=waits_for)
        try:
            self._tell(progress)
        except Exception:
            # Requests in progress are paid. A failing display is no reason to lose them.
            self._tell = None
            logger.exception("on_progress= failed and is not called again; the job continues")

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
