"""The progress of a job: a moving line on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar
from typing_extensions import Self

from phospho_multimodal.batch.pipeline.progress import Progress
from phospho_multimodal.cli.console import plain

__all__ = ["ProgressDisplay"]

_LINE_EVERY = 10.0  # seconds between two lines of a log


class ProgressDisplay:
    """Shows the progress of a job on a console."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Show a bar if the console is a terminal, and print lines otherwise."""
        self._console = console
        self._clock = clock
        self._printed: tuple[float, tuple[bool, int, str | None]] | None = None
        self._bar = Bar(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, facts="")
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar until the next progress."""
        if self._started:
            self._bar.stop()
            self._started = False

    def show(self, progress: Progress) -> None:
        """Show the progress."""
        if not self._console.is_terminal:
            self._print(progress)
            return
        if not self._started:
            self._bar.start()
            self._started = True
        facts = _facts(progress)
        self._bar.update(self._task, completed=progress.done, total=progress.inputs, facts=facts)

    def _print(self, progress: Progress) -> None:
        now = self._clock()
        # A wait for the endpoint is printed when it begins, not again while its seconds pass.
        waiting = progress.waits_for and progress.waits_for.partition(":")[0]
        news = (_is_counting(progress), progress.done, waiting)
        last = self._printed
        ended = progress.done == progress.inputs
        due = last is None or now - last[0] >= _LINE_EVERY or last[1][2] != waiting
        if (due or ended) and (last is None or last[1] != news or _is_counting(progress)):
            self._printed = (now, news)
            line = _facts(progress)
            if not _is_counting(progress):
                share = progress.done / progress.inputs if progress.inputs else 1.0
                line = f"{progress.done:,}/{progress.inputs:,} ({share:.0%}) {line}"
            self._console.print(plain(line), soft_wrap=True)


def _is_counting(progress: Progress) -> bool:
    """Nothing can be sent yet."""
    return progress.limit == 0


def _facts(progress: Progress) -> str:
    if _is_counting(progress):
        return progress.waits_for or ""
    left = progress.seconds_left
    facts = [
        f"{progress.inputs_per_second:,.1f}/s",
        f"${progress.usd_spent:,.2f} spent, ${progress.usd_saved:,.2f} saved",
        f"{progress.failed:,} failed, {progress.in_doubt:,} in doubt",
        f"{progress.in_flight} of {progress.limit} at once",
    ]
    if progress.waits_for is not None:
        facts.insert(0, progress.waits_for)
    elif left is not None:
        facts.append(f"{_duration(left)} left")
    return " · ".join(facts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
