"""Which workers are dead, told without asking Ray for what it does not say.

A worker that dies is started again under the same name, so its handle answers, and what it had
begun is done again there. Three things tell that a worker is gone:

1. its next incarnation says hello, which is exact and needs no clock;
2. its beat is late and its node is no longer among the living;
3. its beat is so late that nobody waits any longer.

2 and 3 are looked at only when somebody waits for what a worker holds. A worker that was taken for
dead is fenced: it gets no further permission under its old token, whatever it does.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

__all__ = ["BEAT", "SILENT", "Liveness"]

BEAT = 1.0
"""Seconds from one sign of life to the next."""

_LATE = 2 * BEAT

SILENT = 10.0
"""Seconds after which a worker without one is taken for dead."""


@dataclass(slots=True)
class _Worker:
    name: str
    node: str
    beat: float


class Liveness:
    """Keeps the workers that are alive, by the tokens under which they work."""

    def __init__(
        self,
        nodes: Callable[[], Awaitable[AbstractSet[str]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without any.

        Args:
            nodes: Tells which nodes are alive.
            clock: In seconds.
        """
        self._nodes = nodes
        self._clock = clock
        self._workers: dict[str, _Worker] = {}

    def __len__(self) -> int:
        """How many were heard just now."""
        since = self._clock() - _LATE
        return sum(worker.beat >= since for worker in self._workers.values())

    def hello(self, token: str, name: str, node: str) -> list[str]:
        """Take a worker in.

        Args:
            token: Under which it works; another one for each incarnation.
            name: The same for all incarnations of one worker.
            node: Where it runs.

        Returns:
            Tokens of its earlier incarnations, which are dead by that.
        """
        dead = [
            other
            for other, worker in self._workers.items()
            if worker.name == name and other != token
        ]
        for other in dead:
            self.fence(other)
        self._workers[token] = _Worker(name, node, self._clock())
        return dead

    def beat(self, token: str) -> bool:
        """Note a sign of life, and tell whether the token is good."""
        worker = self._workers.get(token)
        if worker is not None:
            worker.beat = self._clock()
        return worker is not None

    def is_alive(self, token: str) -> bool:
        """Tell whether a token is good, by what is known already."""
        return token in self._workers

    async def look(self, token: str) -> str | None:
        """Look whether a worker is dead, and fence it if so.

        Args:
            token: Under which it works.

        Returns:
            What happened to it; `None` if it is alive, or was fenced before.
        """
        worker = self._workers.get(token)
        if worker is None:
            return None
        silence = self._clock() - worker.beat
        why = None
        if silence > SILENT:
            why = f"nothing was heard of it for {silence:.0f} seconds"
        elif silence > _LATE and worker.node not in await self._nodes():
            why = "its node is gone"
        if why is None or token not in self._workers:
            return None
        self.fence(token)
        return why

    def fence(self, token: str) -> None:
        """Have a token be good no longer."""
        self._workers.pop(token, None)
