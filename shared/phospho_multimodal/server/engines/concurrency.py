"""How many concurrent requests a model server gets, if it does not report a number."""

from __future__ import annotations

from phospho_multimodal.server.engines.dialects import MOST_AT_ONCE

__all__ = ["LearnedConcurrency"]


class LearnedConcurrency:
    """Halves the limit for each late request, and raises it by one after `limit` answers."""

    def __init__(self, start: int, *, grows: bool) -> None:
        self._limit = float(start)
        self._grows = grows

    @property
    def limit(self) -> int:
        """Concurrent requests, 1 or more."""
        return int(self._limit)

    def answered(self, in_progress: int) -> None:
        """Count an answer; the limit grows only while it is fully used."""
        if self._grows and in_progress >= self.limit:
            self._limit = min(self._limit + 1 / self._limit, MOST_AT_ONCE)

    def overloaded(self) -> None:
        """Count a request that the server did not answer in time."""
        self._limit = max(self._limit / 2, 1.0)
