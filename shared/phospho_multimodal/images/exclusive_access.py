"""The caller's own open files and PIL images, which one thread at a time may read.

Both have a place at which they are read, and a PIL image that was only opened decodes by it at the
first use. Two questions about one of them, each made ready on a thread of its own, would each get
pieces of it: a picture that nobody took, answered and paid for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from phospho_multimodal.spending.processes import after_fork

__all__ = ["exclusive_access"]


@dataclass(slots=True)
class _Turn:
    """Of one object: whose turn it is, and how many have it or wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class _Turns:
    """The turns of all objects that are being read, by `id`: a PIL image cannot be hashed."""

    def __init__(self) -> None:
        self._begin()
        after_fork(self._begin)  # whoever was reading will not end it in the child

    def _begin(self) -> None:
        self._looking = threading.Lock()
        self._of: dict[int, _Turn] = {}

    def join(self, owned: object) -> _Turn:
        with self._looking:
            turn = self._of.setdefault(id(owned), _Turn())
            turn.users += 1
            return turn

    def leave(self, owned: object) -> None:
        with self._looking:
            turn = self._of[id(owned)]
            turn.users -= 1
            if not turn.users:
                del self._of[id(owned)]


_turns = _Turns()


@contextmanager
def exclusive_access(owned: object) -> Iterator[None]:
    """Read something of the caller's while no other thread does, here.

    Threads that read something else are not held up.

    Args:
        owned: A file object or PIL image.
    """
    turn = _turns.join(owned)
    try:
        with turn.lock:
            yield
    finally:
        _turns.leave(owned)
