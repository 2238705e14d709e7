"""The machine: its name, its two sides, its speed, and whether the neighbours are quiet."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import ClassVar, TypeVar

__all__ = [
    "FullSpeed",
    "QuietRounds",
    "describe_machine",
    "forget_peak",
    "memory",
    "stay_on_core",
    "versions",
]

QUIET = 0.25
"""Cores that others may use during a round."""

FULL = 0.75
"""Share of its best speed from which a core counts as at full speed."""

_PATIENCE = 3
"""How many times the rounds asked for are tried, at most."""

_TRIES = 8
"""Of a turn, at most."""

_LONGEST_WAIT = 0.5
"""Seconds for which a core that is not at full speed is waited for."""

_LOOKS = 200
"""At a core's speed, to know its best: a third of a second in all."""

T = TypeVar("T")


class QuietRounds:
    """Rounds, of which those with noisy neighbours do not count; patience has an end.

    Each step gives a function to be called when the round is over: it says whether it counts. Where
    the machine does not tell how busy it is, every round does. If too few were quiet, the quietest
    are all there is: the last rounds count whatever happens, so that a busy machine has figures
    too, and `noisy` tells how many.
    """

    noisy = 0

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
            begin = (time.monotonic(), *_busy())
            yield over


class FullSpeed:
    """Turns for which the core was at its full speed; patience has an end.

    What a virtual machine cannot see is what else its host does. A core whose other half is busy
    takes twice as long, for a tenth of a second or for minutes, and `/proc/stat` says nothing. Of
    two that take CPU time both take more, but beside what waits for a server all the time, as raw
    sockets do, half the core is half the share. So a turn begins when some short work takes no
    longer than it can, and is had again if that is over at its end. If no try was at full speed,
    the one that was nearest to it counts, whatever it took. The rule is the same for everybody.
    """

    speeds: ClassVar[list[float]] = []
    """Of the turns that counted: the speed of the core, as a share of its best one."""

    def __init__(self) -> None:
        self._best = min(_step() for _ in range(_LOOKS))

    def have(self, turn: Callable[[], T]) -> T:
        """Have a turn, again if need be, and give what came of the one that counts."""
        tries: list[tuple[float, T]] = []
        while len(tries) < _TRIES:
            before = self._wait()
            outcome = turn()
            speed = min(before, self._speed())
            tries.append((speed, outcome))
            if speed >= FULL:
                break
        speed, outcome = max(tries, key=itemgetter(0))
        self.speeds.append(speed)
        return outcome

    def _wait(self) -> float:
        give_up = time.monotonic() + _LONGEST_WAIT
        while (speed := self._speed()) < FULL and time.monotonic() < give_up:
            pass
        return speed

    def _speed(self) -> float:
        steps = [_step() for _ in range(3)]
        self._best = min(self._best, *steps)
        return self._best / median(steps)


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
