"""How many requests are under way at once: as many as the endpoint answers well.

One more for each round of answers, and fewer when it says that it has too much (429, 503) or when
answers take clearly longer than they could: what waits in the endpoint's queue makes nothing
faster. The rule about latency is that of TCP Vegas: `level * (1 - fastest / now)` is how many of
the requests under way are waiting there.

(Limiters on the shelf hold a number or a rate that they are given; none that is well kept finds
one.)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

__all__ = ["AUTO_CEILING", "AdaptiveConcurrency"]

AUTO_CEILING = 64
"""What the level may rise to if nobody says a number."""

_FIRST = 4
_TOO_MUCH = frozenset({429, 503})
_BACK_OFF = 0.7  # of the level, once a round: gentler than TCP's half, since nothing is lost
_MEMORY = 600.0  # seconds that the fastest answer counts: an endpoint may become slower


class AdaptiveConcurrency:
    """A limit on what is in flight, on one event loop, that moves by itself."""

    def __init__(
        self, ceiling: int, *, fixed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin low, or at the ceiling.

        Args:
            ceiling: What it may rise to.
            fixed: Begin there, and go below it only if the endpoint asks for that (429, 503).
            clock: In seconds.
        """
        self._ceiling = ceiling
        self._fixed = fixed
        self._clock = clock
        self._limit = float(ceiling if fixed else min(_FIRST, ceiling))
        self._in_flight = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._rising_fast = not fixed
        self._lowered_at = -math.inf
        self._round: list[float] = []  # seconds of the answers since the last change
        # Rounds by when they ended and their fastest answer, without those that a later and faster
        # one makes superfluous: the first is the fastest of all.
        self._fastest: deque[tuple[float, float]] = deque()

    @property
    def limit(self) -> int:
        """How many may be in flight now; 1 at least."""
        return max(1, int(self._limit))

    @property
    def in_flight(self) -> int:
        """How many are."""
        return self._in_flight

    async def take(self) -> None:
        """Wait until one more may be in flight."""
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
        """Let another one take its place."""
        self._in_flight -= 1
        self._wake()

    def note(self, status: int | None, started: float) -> None:
        """Learn from one request.

        Args:
            status: Of its answer; `None` if none came.
            started: When it was sent, on the clock.
        """
        now = self._clock()
        if status in _TOO_MUCH:
            self._lower(_BACK_OFF, started)
        elif status == 200:  # noqa: PLR2004 - an answer; what failed tells nothing about load
            self._answered(now - started, started)
        self._wake()

    def _lower(self, share: float, started: float) -> None:
        # Those that were sent before the level was last lowered say nothing about it.
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
        """Tell the fastest answer of the last minutes, this round's included."""
        now = self._clock()
        while self._fastest and self._fastest[-1][1] >= seconds:
            self._fastest.pop()
        self._fastest.append((now, seconds))
        while now - self._fastest[0][0] > _MEMORY:
            self._fastest.popleft()
        return self._fastest[0][1]

    def _bounds(self) -> tuple[float, float]:
        """How many waiting requests are few, and how many are many: both grow with the level."""
        return 2.0 + self._limit / 4, 4.0 + self._limit / 2

    def _wake(self) -> None:
        while self._queue and self._in_flight < self.limit:
            turn = self._queue.popleft()
            if not turn.done() and not turn.get_loop().is_closed():
                self._in_flight += 1
                turn.set_result(None)
