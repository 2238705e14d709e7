"""Processes: which one wrote something down, whether it still runs, and what a fork leaves."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any, cast

__all__ = ["after_fork", "is_alive", "name_of_process"]

_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], Any]] = weakref.WeakKeyDictionary()


def after_fork(renew: Callable[[], Any]) -> None:
    """Have a method called in each forked child, as long as its object lives.

    A fork copies locks as they are: one that another thread held is held in the child for ever.

    Args:
        renew: A bound method that makes locks and counts anew.
    """
    method = cast("MethodType", renew)
    _renewals[method.__self__] = method.__func__


def _renew_all() -> None:
    for owner, renew in list(_renewals.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


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
