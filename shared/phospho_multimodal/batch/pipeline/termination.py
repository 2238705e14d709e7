"""SIGTERM and SIGHUP end a job as Ctrl-C does.

Preemption, `docker stop`, `timeout` and a closed terminal send them.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["as_interrupt"]

_NAMES = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@contextlib.contextmanager
def as_interrupt(interrupted: threading.Event) -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the main thread on the signals that ask a process to end.

    A handler that the program installed stays, and so does an ignored signal (`nohup`). A second
    signal changes nothing: systemd sends SIGHUP right after SIGTERM, and the requests in progress
    still have to finish.

    Args:
        interrupted: Set as soon as such a signal comes.

    Yields:
        Nothing. Outside the main thread, which alone receives signals, nothing changes.
    """

    def handle(_number: int, _frame: Any) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    replaced: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, handle)
                replaced.append(number)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)
