"""How far a job is, on the terminal: a line that moves, or plain lines in a log."""

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
    """Shows the progress of a job, from its first news on."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without news.

        Args:
            console: Where it is shown: as a bar on a terminal, else as lines.
            clock: In seconds.
        """
        self._console = console
        self._clock = clock
        self._printed: tuple[float, int, str | None] | None = None
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
        """Take the bar away."""
        if self._started:
            self._bar.stop()
            self._started = False

    def show(self, progress: Progress) -> None:
        """Show how far the job is."""
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
        # A wait is worth a line when it begins, and not again while its seconds pass.
        waiting = progress.waits_for and progress.waits_for.partition(":")[0]
        last = self._printed
        ended = progress.done == progress.inputs
        due = last is None or now - last[0] >= _LINE_EVERY or last[2] != waiting
        if (due or ended) and (last is None or last[1:] != (progress.done, waiting)):
            self._printed = (now, progress.done, waiting)
            share = progress.done / progress.inputs if progress.inputs else 1.0
            line = f"{progress.done:,}/{progress.inputs:,} ({share:.0%}) {_facts(progress)}"
            self._console.print(plain(line), soft_wrap=True)


def _facts(progress: Progress) -> str:
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
