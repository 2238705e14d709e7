"""Which process wrote something down, and whether it still runs."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["is_alive", "name_of_process"]


def name_of_process(pid: int | None = None) -> str:
    """Name a process so that another one that gets its number later has another name.

    psutil knows the same of more systems; for one question it was not worth a compiled dependency.

    Args:
        pid: Its number; this process's own without one.

    Returns:
        The number, and when it started where the system tells.
    """
    number = os.getpid() if pid is None else pid
    try:
        # The 22nd field is when it started; the second, its name, may hold spaces.
        started = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""  # no such file system: the number alone has to do
    return f"{number}:{started}"


def is_alive(name: str) -> bool:
    """Tell whether the process of a name still runs.

    Args:
        name: What `name_of_process` gave, there.

    Returns:
        Whether it does. On Windows always `True`: what is asked of a process there by signal 0
        interrupts it.
    """
    if os.name == "nt":
        return True
    pid = int(name.partition(":")[0])
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and somebody else's
    return name_of_process(pid) == name
