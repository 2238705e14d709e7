"""The machine: its name, its cores, and the memory of this process."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

__all__ = [
    "describe_machine",
    "forget_peak",
    "memory",
    "stay_on_core",
    "versions",
]


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
