"""Why a run sends nothing more: an error, the end of its work, Ctrl-C, SIGTERM or SIGHUP.

Preemption, `docker stop`, `timeout` and a closed terminal send these signals.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from phospho_multimodal.errors import PhosphoError

__all__ = ["StopSignal", "as_interrupt"]

_NAMES = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class StopSignal:
    """The first reason to send nothing more. Any thread may call it."""

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        self._interrupted = interrupted
        self._reason: PhosphoError | None = None

    def __call__(self) -> PhosphoError | None:
        """Return the reason, if there is one."""
        if self._reason is None and self._interrupted():
            self._reason = _OverError()
        return self._reason

    def because(self, error: PhosphoError | None) -> None:
        """Stop for an error, or with `None` because all work is done."""
        if self._reason is None:
            self._reason = error or _OverError()

    @property
    def error(self) -> PhosphoError | None:
        """The error that ended the run, if it was one."""
        return None if isinstance(self._reason, _OverError) else self._reason


class _OverError(PhosphoError):
    """The run has ended without an error."""

    def __init__(self) -> None:
        super().__init__("This run is over.")


@contextlib.contextmanager
def as_interrupt(interrupted: threading.Event) -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the main thread on the signals that ask a process to end.

    A handler that the program installed stays, and so does an ignored signal (`nohup`). A second
    signal changes nothing: systemd sends SIGHUP right after SIGTERM, and the requests in progress
    still have to finish. Outside the main thread nothing changes.
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
