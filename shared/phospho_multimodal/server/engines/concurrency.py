"""How many requests a model server gets at the same time, where it does not report it."""

from __future__ import annotations

from phospho_multimodal.server.engines.dialects import MOST_AT_ONCE

__all__ = ["LearnedConcurrency"]


class LearnedConcurrency:
    """Half as many after a server was too slow or busy, one more after as many answers."""

    def __init__(self, start: int, *, grows: bool) -> None:
        self._limit = float(start)
        self._grows = grows

    @property
    def limit(self) -> int:
        """Requests at the same time, 1 or more."""
        return int(self._limit)

    def answered(self, in_progress: int) -> None:
        """Count an answer; only a server that is fully used can show that it takes more."""
        if self._grows and in_progress >= self.limit:
            self._limit = min(self._limit + 1 / self._limit, MOST_AT_ONCE)

    def overloaded(self) -> None:
        """Count a request that the server did not answer in time, or not at all."""
        self._limit = max(self._limit / 2, 1.0)
