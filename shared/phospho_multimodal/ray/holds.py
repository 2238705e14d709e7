"""Which question is about which picture: one at a time, and the others wait for its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

__all__ = ["Hold", "Holds"]


@dataclass(slots=True)
class Hold:
    """A picture that a question of a worker is about.

    Attributes:
        token: Of the worker.
        question: Names it among all questions.
        over: Set when it is about the picture no longer.
    """

    token: str
    question: str
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Holds:
    """Keeps them, on one event loop."""

    def __init__(self) -> None:
        """Begin without any."""
        self._holds: dict[bytes, Hold] = {}

    def of(self, picture: bytes) -> Hold | None:
        """Tell who holds a picture."""
        return self._holds.get(picture)

    def are(self, picture: bytes, token: str, question: str) -> bool:
        """Tell whether a picture is held by a question of a worker."""
        hold = self._holds.get(picture)
        return hold is not None and (hold.token, hold.question) == (token, question)

    def is_held(self, picture: bytes, question: str) -> bool:
        """The same, whatever the worker's token is by now."""
        hold = self._holds.get(picture)
        return hold is not None and hold.question == question

    def take(self, picture: bytes, token: str, question: str) -> None:
        """Hold a picture that nobody holds, or this question does."""
        self._holds.setdefault(picture, Hold(token, question))

    def let_go(self, picture: bytes, question: str) -> None:
        """Hold it no longer, and wake who waits for that."""
        if self.is_held(picture, question):
            self._holds.pop(picture).over.set()

    def bury(self, token: str) -> None:
        """Let go of all that a worker held."""
        for picture, hold in list(self._holds.items()):
            if hold.token == token:
                self.let_go(picture, hold.question)

    def wake_all(self) -> None:
        """Wake all who wait; nothing is let go."""
        for hold in self._holds.values():
            hold.over.set()
