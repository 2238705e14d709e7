"""The machine: its name, its two sides, its speed, and whether the neighbours are quiet."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import ClassVar

__all__ = [
    "QuietRounds",
    "describe_machine",
    "forget_peak",
    "memory",
    "stay_on_core",
    "versions",
]

QUIET = 0.25
"""Cores that others may use during a round."""

_PATIENCE = 3
"""How many times the rounds asked for are tried, at most."""


class QuietRounds:
    """Rounds, of which those with noisy neighbours do not count; patience has an end.

    Each step gives a function to be called when the round is over: it says whether it counts. Where
    the machine does not tell how busy it is, every round does. If too few were quiet, the quietest
    are all there is: the last rounds count whatever happens, so that a busy machine has figures
    too, and `noisy` tells how many.

    What a virtual machine cannot see is what else its host does: a core whose other half is busy
    takes twice as long, and `/proc/stat` says nothing. `steps` tells of it: seconds that the same
    short work took before each round.
    """

    noisy = 0
    steps: ClassVar[list[float]] = []

    @classmethod
    def speed(cls) -> float:
        """The usual speed of a core while it was measured, as a share of its best one."""
        return min(cls.steps) / median(cls.steps)

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted

    def __iter__(self) -> Iterator[Callable[[], bool]]:
        counted = tried = 0

        def over() -> bool:
            nonlocal counted
            left = self._wanted * _PATIENCE - tried
            if _others(begin) > QUIET:
                if left >= self._wanted - counted:
                    return False
                type(self).noisy += 1
            counted += 1
            return True

        while counted < self._wanted:
            tried += 1
            self.steps.append(_step())
            begin = (time.monotonic(), *_busy())
            yield over


def _step() -> float:
    begin = time.perf_counter()
    sum(range(100_000))
    return time.perf_counter() - begin


def _busy() -> tuple[float, float]:
    """Seconds of CPU: of everybody, and of this process and its children and their server."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0.0, 0.0
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, steal = (int(field) / tick for field in fields[:8])
    return user + nice + system + irq + softirq + steal, _of_this_family()


def _of_this_family() -> float:
    """Seconds of CPU of this process and of those that it started and that still run."""
    tick = os.sysconf("SC_CLK_TCK")
    total = 0.0
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):
        for process in [str(os.getpid()), *children.read_text().split()]:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def _others(begin: tuple[float, float, float]) -> float:
    """Cores that others used since."""
    everybody, family = _busy()
    seconds = max(time.monotonic() - begin[0], 0.01)
    return ((everybody - begin[1]) - (family - begin[2])) / seconds


def stay_on_core(core: int) -> None:
    """Keep this process, and what it starts from now on, on one core, where that can be said."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})


def describe_machine() -> str:
    """Name the machine, for those who read the figures elsewhere."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores of {model}, {platform.system()}, Python {python}"


def versions(*names: str) -> str:
    """Name versions of what is installed."""
    found = []
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def memory(field: str) -> int:
    """Read a size of this process from the kernel, in bytes: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def forget_peak() -> None:
    """Have the peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
