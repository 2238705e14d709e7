"""How many requests of a client may start in a second."""

from __future__ import annotations

import threading

__all__ = ["RateLimit"]


class RateLimit:
    """Hands out starting times, evenly spaced after a burst of at most one second's worth.

    It does only the arithmetic and never sleeps, so threads and event loops can share it.
    """

    def __init__(self, per_second: float | None) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._burst = 0.0 if per_second is None else max(0.0, 1.0 - self._interval)
        self._next = 0.0
        self._lock = threading.Lock()

    def reserve(self, now: float, *, latest: float | None = None) -> float | None:
        """Take the next free starting time.

        Args:
            now: The time of the clock, in seconds.
            latest: The last acceptable start on that clock. `None` means no limit.

        Returns:
            Seconds to wait before starting, or `None` if that would be after `latest`. In that
            case, no starting time was taken.
        """
        if self._interval == 0.0:
            return 0.0
        with self._lock:
            due = max(self._next, now)
            wait = max(0.0, due - self._burst - now)
            if latest is not None and now + wait > latest:
                return None
            self._next = due + self._interval
            return wait
