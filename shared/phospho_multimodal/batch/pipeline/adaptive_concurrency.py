"""The limit of concurrent requests, which adapts to what the endpoint answers well.

It rises by one for each round of answers. It falls when the endpoint answers 429 or 503, and when
answers take clearly longer than the fastest one: a request in the endpoint's queue gains nothing.
The rule about latency is that of TCP Vegas: `limit * (1 - fastest / now)` requests wait in that
queue. (We found no well-maintained library that searches for a limit.)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

__all__ = ["AUTO_CEILING", "AdaptiveConcurrency"]

AUTO_CEILING = 64
"""The highest limit for `auto`."""

_FIRST = 4
_TOO_MUCH = frozenset({429, 503})
_BACK_OFF = 0.7  # of the limit, once a round: gentler than TCP's half, since nothing is lost
_MEMORY = 600.0  # seconds that the fastest answer counts, since an endpoint may become slower


class AdaptiveConcurrency:
    """A limit of concurrent requests on one event loop.

    It begins low and rises to `ceiling`. A `fixed` limit begins there, and falls only when the
    endpoint answers 429 or 503.
    """

    def __init__(
        self, ceiling: int, *, fixed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ceiling = ceiling
        self._fixed = fixed
        self._clock = clock
        self._limit = float(ceiling if fixed else min(_FIRST, ceiling))
        self._in_flight = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._rising_fast = not fixed
        self._lowered_at = -math.inf
        self._round: list[float] = []  # seconds of the answers since the last change
        # The time and the fastest answer of rounds. A later and faster round replaces earlier ones,
        # so the first is the fastest of all.
        self._fastest: deque[tuple[float, float]] = deque()

    @property
    def limit(self) -> int:
        """The most requests that may be in progress now, at least 1."""
        return max(1, int(self._limit))

    @property
    def in_flight(self) -> int:
        """The requests in progress."""
        return self._in_flight

    async def take(self) -> None:
        """Wait until one more request may be in progress."""
        if self._in_flight < self.limit and not self._queue:
            self._in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            elif turn in self._queue:
                self._queue.remove(turn)
            raise

    def give_back(self) -> None:
        """End a request, and wake the next one that waits."""
        self._in_flight -= 1
        self._wake()

    def note(self, status: int | None, started: float) -> None:
        """Adapt to one request: its status, if an answer came, and when it was sent."""
        now = self._clock()
        if status in _TOO_MUCH:
            self._lower(_BACK_OFF, started)
        elif status == 200:  # noqa: PLR2004 - an answer; what failed tells nothing about load
            self._answered(now - started, started)
        self._wake()

    def _lower(self, share: float, started: float) -> None:
        # Requests from before the last reduction say nothing about the new limit.
        self._rising_fast = False
        if started >= self._lowered_at:
            self._limit = max(1.0, self._limit * share)
            self._lowered_at = self._clock()
            self._round.clear()

    def _answered(self, seconds: float, started: float) -> None:
        self._round.append(seconds)
        if self._fixed:
            self._limit = min(float(self._ceiling), self._limit + 1.0 / self._limit)
            self._round.clear()
            return
        if started < self._lowered_at or len(self._round) < self.limit:
            return
        typical = sorted(self._round)[len(self._round) // 2]
        fastest = self._remember(min(self._round))
        self._round.clear()
        waiting = self._limit * (1.0 - fastest / typical) if typical else 0.0
        few, many = self._bounds()
        if waiting < few:
            step = self._limit if self._rising_fast else 1.0
            self._limit = min(float(self._ceiling), self._limit + step)
            return
        self._rising_fast = False
        if waiting > many:
            self._limit = max(1.0, self._limit - max(1.0, self._limit / 10))

    def _remember(self, seconds: float) -> float:
        """Return the fastest answer of the last minutes, this round included."""
        now = self._clock()
        while self._fastest and self._fastest[-1][1] >= seconds:
            self._fastest.pop()
        self._fastest.append((now, seconds))
        while now - self._fastest[0][0] > _MEMORY:
            self._fastest.popleft()
        return self._fastest[0][1]

    def _bounds(self) -> tuple[float, float]:
        """Return how many waiting requests are few and how many are many, for this limit."""
        return 2.0 + self._limit / 4, 4.0 + self._limit / 2

    def _wake(self) -> None:
        while self._queue and self._in_flight < self.limit:
            turn = self._queue.popleft()
            if not turn.done() and not turn.get_loop().is_closed():
                self._in_flight += 1
                turn.set_result(None)
