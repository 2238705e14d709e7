"""How many requests of a client are in flight at once, and how many start in a second."""

from __future__ import annotations

import threading

__all__ = ["Rate"]


class Rate:
    """Hands out starting times, evenly spaced after at most one second's worth at once.

    It only does the arithmetic and never sleeps, so that threads and event loops share it: each
    caller is told how long to wait. (The limiters on the shelf sleep themselves, in one world.)
    """

    def __init__(self, per_second: float | None) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        # A burst of one second's worth: the first of them may start that much early.
        self._head_start = 0.0 if per_second is None else max(0.0, 1.0 - self._interval)
        self._next = 0.0
        self._lock = threading.Lock()

    def reserve(self, now: float, *, latest: float | None = None) -> float | None:
        """Take the next free starting time.

        Args:
            now: The clock, in seconds.
            latest: The last acceptable start on that clock; `None` is for ever.

        Returns:
            Seconds to wait before starting, or `None` if that would be too late; then no starting
            time was taken.
        """
        if self._interval == 0.0:
            return 0.0
        with self._lock:
            due = max(self._next, now)
            wait = max(0.0, due - self._head_start - now)
            if latest is not None and now + wait > latest:
                return None
            self._next = due + self._interval
            return wait
