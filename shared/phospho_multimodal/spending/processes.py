"""Names of processes, which tell whether the process that wrote something still runs."""

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
    """Call a bound method in each forked child, as long as its object lives.

    A fork copies a lock that another thread holds, and nobody releases it in the child.
    """
    method = cast("MethodType", renew)
    _renewals[method.__self__] = method.__func__


def _renew_all() -> None:
    for owner, renew in list(_renewals.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


def name_of_process(pid: int | None = None) -> str:
    """Return the number of a process and its start time, if the system provides it.

    A later process with the same number has another name. Without `pid`, it is this process.
    """
    number = os.getpid() if pid is None else pid
    try:
        # The 22nd field is the start time. The second field, the name, may contain spaces.
        started = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""  # this system has no /proc
    return f"{number}:{started}"


def is_alive(name: str) -> bool:
    """Return whether the process with a name of `name_of_process` still runs.

    On Windows it is always `True`, because signal 0 would interrupt the process there.
    """
    if os.name == "nt":
        return True
    pid = int(name.partition(":")[0])
    try:
        os.kill(pid, 0)  # signal 0 does nothing to the process
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, and belongs to another user
    return name_of_process(pid) == name
