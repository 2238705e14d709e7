"""The course of a job over time: gathered in few buckets, drawn as lines.

The moments come in no particular order and may be a million, so they are gathered as they come:
whenever the buckets are too many, each two become one. Which come first changes nothing in the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal

from phospho_multimodal.batch.report.figures import count, duration, money

__all__ = ["FRAME", "Course", "Moment", "Plot", "cost_plot", "rate_plot"]

MOST_BUCKETS = 120
_PAUSE = 300.0
"""Seconds without an answer that are not drawn to scale: somebody had stopped the job."""
_SHORTEST_PAUSE = 3  # in buckets: what is less can be drawn as it is
_LAST = 253_402_300_800.0  # the year 10,000, which `datetime` does not know
_ENOUGH_BUCKETS = 24
_ENDS = 4  # buckets: two at either end
_ROWS_FOR_A_RATE = 5  # in a bucket: a rate made of fewer jumps up and down

LEFT, RIGHT, TOP, BOTTOM = 70, 452, 12, 182
FRAME = {"width": 460, "height": 210, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
"""A plot's size, and the field within it that the lines are drawn in."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One point of a job's course: an answer.

    Attributes:
        at: When it ended, in seconds since the epoch.
        images_billed: Of this answer.
        images_in_doubt: Of this answer.
        rows: Inputs that it finished, with their duplicates.
    """

    at: float
    images_billed: int
    images_in_doubt: int
    rows: int


@dataclass(slots=True)
class _Bucket:
    billed: int = 0
    in_doubt: int = 0
    rows: int = 0

    def add(self, other: _Bucket | Moment) -> None:
        if isinstance(other, Moment):
            self.billed += other.images_billed
            self.in_doubt += other.images_in_doubt
        else:
            self.billed += other.billed
            self.in_doubt += other.in_doubt
        self.rows += other.rows


class Course:
    """Moments, gathered in at most 120 buckets of the same width."""

    def __init__(self) -> None:
        self.width = 1.0
        self._first, self._last = math.inf, -math.inf
        self._buckets: dict[int, _Bucket] = {}

    def add(self, moment: Moment) -> None:
        """Take a moment in.

        Args:
            moment: Any; one at no time that a calendar knows is left out.
        """
        if not 0 <= moment.at < _LAST:
            return
        self._first, self._last = min(self._first, moment.at), max(self._last, moment.at)
        number = int(moment.at // self.width)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
            bucket.add(moment)
            while self._length() > MOST_BUCKETS:
                self._widen()
        else:
            bucket.add(moment)

    def slots(self) -> list[tuple[_Bucket | None, float]]:
        """Lay the buckets side by side, wide enough for a rate to mean something.

        Returns:
            Each with the seconds that it stands for; a long pause is a single `None`.
        """
        rows = sum(bucket.rows for bucket in self._buckets.values())
        while self._length() > max(_ENOUGH_BUCKETS, rows / _ROWS_FOR_A_RATE):
            self._widen()
        laid: list[tuple[_Bucket | None, float]] = []
        previous: int | None = None
        for number in sorted(self._buckets):
            empty = 0 if previous is None else number - previous - 1
            if self._is_pause(empty):
                laid.append((None, empty * self.width))
            else:
                laid += [(_Bucket(), self.width)] * empty
            laid.append((self._buckets[number], self.width))
            previous = number
        return laid

    def span(self) -> tuple[datetime, datetime] | None:
        """Tell when it began and ended, to one bucket; `None` if there was nothing."""
        if not self._buckets:
            return None
        ends = min(self._buckets) * self.width, (max(self._buckets) + 1) * self.width
        first, last = (datetime.fromtimestamp(min(end, _LAST - 1), timezone.utc) for end in ends)
        return first, last

    def covered(self) -> tuple[float, float]:
        """Tell how many seconds of its first and its last bucket the job was there for."""
        return self.width - self._first % self.width, self._last % self.width

    def _is_pause(self, empty: int) -> bool:
        return empty >= _SHORTEST_PAUSE and empty * self.width >= _PAUSE

    def _length(self) -> int:
        numbers = sorted(self._buckets)
        gaps = (after - before - 1 for before, after in itertools.pairwise(numbers))
        return len(numbers) + sum(1 if self._is_pause(gap) else gap for gap in gaps)

    def _widen(self) -> None:
        self.width *= 2
        narrow, self._buckets = self._buckets, {}
        for number, bucket in narrow.items():
            self._buckets.setdefault(number // 2, _Bucket()).add(bucket)


@dataclass(frozen=True)
class Plot:
    """What a plot consists of, in the coordinates of its frame.

    Attributes:
        name: Tells it from others on the page.
        title: What it shows.
        summary: The same in a sentence, for who does not see it.
        areas: The class of each one's colour, its upper line and its outline, as SVG writes paths.
        ticks: Heights and their labels.
        pauses: Where time is left out, and how much.
        begin: Label of the left end.
        end: Label of the right end.
    """

    name: str
    title: str
    summary: str
    areas: list[tuple[str, str, str]]
    ticks: list[tuple[float, str]]
    pauses: list[tuple[float, str]]
    begin: str
    end: str


def cost_plot(course: Course, usd_per_image: Decimal) -> Plot | None:
    """Draw what had been billed, and on top what is in doubt, as time went by.

    Args:
        course: All moments.
        usd_per_image: Dollars for an image.

    Returns:
        The plot; `None` without any moment.
    """
    slots = course.slots()
    price = float(usd_per_image)
    billed = _growing(slots, lambda bucket: bucket.billed * price)
    doubt = _growing(slots, lambda bucket: bucket.in_doubt * price)
    both = [one + other for one, other in zip(billed, doubt, strict=True)]
    height = _Height(both[-1])
    areas = [("billed", *_area([0.0] * len(billed), billed, height))]
    summary = f"{money(round(billed[-1], 6))} billed"
    if doubt[-1]:
        areas.append(("doubt", *_area(billed, both, height)))
        summary += f", {money(round(doubt[-1], 6))} in doubt"
    ticks = height.ticks(lambda value: money(value).removesuffix(".00"))
    return _plot(course, "cost", "Cost so far", summary=summary, areas=areas, ticks=ticks)


def rate_plot(course: Course) -> Plot | None:
    """Draw how many rows were finished in a minute.

    Args:
        course: All moments.

    Returns:
        The plot; `None` without any moment.
    """
    slots = course.slots()
    rates = _rates(course, slots)
    height = _Height(max(rates, default=0.0))
    steps = [f"M{LEFT} {BOTTOM}"]  # it goes up, along, up or down, along
    for number, rate in enumerate(rates, start=1):
        steps.append(f"V{height.of(rate):.1f}H{_across(number, len(rates)):.1f}")
    line = "".join(steps)
    areas = [("rows", line, f"{line}V{BOTTOM}Z")]
    summary = (
        f"{count(max(rates, default=0.0))} rows a minute at most,"
        f" counted over {duration(course.width)} each"
    )
    ticks = height.ticks(count)
    return _plot(course, "rate", "Rows per minute", summary=summary, areas=areas, ticks=ticks)


def _rates(course: Course, slots: Sequence[tuple[_Bucket | None, float]]) -> list[float]:
    rates = [0.0 if bucket is None else bucket.rows * 60 / width for bucket, width in slots]
    if len(slots) >= _ENDS:
        # The job began and ended within a bucket, which would look like a fall of the rate.
        for end, beside, covered in zip((0, -1), (1, -2), course.covered(), strict=True):
            both = slots[end][0], slots[beside][0]
            if all(both):
                rows = sum(bucket.rows for bucket in both if bucket)
                rates[end] = rates[beside] = rows * 60 / (course.width + covered)
    return rates


class _Height:
    """The scale of a plot's height, from nothing to a round figure."""

    def __init__(self, highest: float) -> None:
        power = 10.0 ** math.floor(math.log10(highest)) if highest > 0 else 1.0
        tops = (step * power for step in (1, 2, 4, 5, 8) if step * power >= highest)
        self._top = next(tops, 10 * power)

    def of(self, value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * value / self._top

    def ticks(self, written: Callable[[float], str]) -> list[tuple[float, str]]:
        values = (0.0, self._top / 2, self._top)
        return [(round(self.of(value), 1), written(round(value, 6))) for value in values]


def _plot(
    course: Course,
    name: str,
    title: str,
    *,
    summary: str,
    areas: list[tuple[str, str, str]],
    ticks: list[tuple[float, str]],
) -> Plot | None:
    span = course.span()
    if span is None:
        return None
    slots = course.slots()
    pauses = [
        (round(_across(number + 0.5, len(slots)), 1), duration(seconds))
        for number, (bucket, seconds) in enumerate(slots)
        if bucket is None
    ]
    first, last = span
    clock = "%H:%M:%S" if (last - first).total_seconds() < 600 else "%H:%M"  # noqa: PLR2004
    same_day = first.date() == last.date()
    begin, end = (f"{when:{clock}}" if same_day else f"{when.day} {when:%b %H:%M}" for when in span)
    return Plot(name, title, summary, areas, ticks, pauses, f"{begin} UTC", f"{end} UTC")


def _growing(
    slots: Sequence[tuple[_Bucket | None, float]], amount: Callable[[_Bucket], float]
) -> list[float]:
    """Add up, from nothing: one figure more than there are slots."""
    each: Iterator[float] = (0.0 if bucket is None else amount(bucket) for bucket, _ in slots)
    return list(itertools.accumulate(each, initial=0.0))


def _area(lower: Sequence[float], upper: Sequence[float], height: _Height) -> tuple[str, str]:
    """Draw the upper of two lines, and the outline of what lies between them."""
    last = len(upper) - 1
    apart = next((place for place in range(last + 1) if upper[place] > lower[place]), 0)
    places = range(max(0, apart - 1), last + 1)

    def through(line: Sequence[float], order: Iterable[int]) -> str:
        points = (f"{_across(place, last):.1f} {height.of(line[place]):.1f}" for place in order)
        return "L".join(points)

    line = f"M{through(upper, places)}"
    return line, f"{line}L{through(lower, reversed(places))}Z"


def _across(number: float, slots: int) -> float:
    return LEFT + (RIGHT - LEFT) * number / max(1, slots)
