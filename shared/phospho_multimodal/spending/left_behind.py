"""Calls that nobody goes on with: their event loop was closed before they ended.

What such a call holds, a slot and money, it would hold until it is collected, and some never are:
anyio remembers a task that waits in one of its scopes, which are in every deadline, in work on a
thread, and in httpcore's own network. So what has to be ended is listed by its loop, and whoever
needs a slot or looks at money first ends what belongs to closed loops.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from phospho_multimodal.spending.processes import after_fork

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Held", "UnderWay", "end_what_was_left_behind"]

logger = logging.getLogger("phospho_multimodal")


class _Closable(Protocol):
    def close(self) -> object: ...


class _Lists:
    """By event loop, what is under way on it.

    All of it weakly: what waits in a queue is known to the queue, and would keep a loop that is
    dropped without being closed. What nobody can collect is there to be ended.
    """

    def __init__(self) -> None:
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        # What is under way in the parent is the parent's to end.
        self._by_loop: dict[ref[asyncio.AbstractEventLoop], set[ref[_Closable]]] = {}

    def of(self, loop: asyncio.AbstractEventLoop) -> set[ref[_Closable]]:
        listed = self._by_loop.get(ref(loop))
        if listed is None:
            self.end_those_of_closed_loops()
            self._by_loop[ref(loop)] = listed = set()
        return listed

    def end_those_of_closed_loops(self) -> None:
        for known in list(self._by_loop):
            loop = known()
            if loop is not None and not loop.is_closed():
                continue
            listed = self._by_loop.get(known, set())
            for one in list(listed):
                _end(one())
                listed.discard(one)
            self._by_loop.pop(known, None)  # not before: a Ctrl-C may come between


def _end(left_behind: _Closable | None) -> None:
    try:
        if left_behind is not None:
            left_behind.close()
    except ValueError:  # another thread is closing it, or the garbage collector
        pass
    except Exception:
        # Whoever looks here has a call of its own, and others may be left.
        logger.exception("What a call on a closed event loop left behind could not be ended")


_LISTS = _Lists()


class UnderWay:
    """In this, something is closed if the event loop that runs here is closed before it ends."""

    __slots__ = ("_list", "_one")

    def __init__(self, closable: _Closable) -> None:
        """List it.

        Args:
            closable: It is closed by another thread maybe, and again by whoever has it.
        """
        self._list = _LISTS.of(asyncio.get_running_loop())
        self._one = ref(closable)

    def __enter__(self) -> None:
        self._list.add(self._one)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._list.discard(self._one)


class Held:
    """Something to be given back once: by whoever takes that over, or by closing this."""

    __slots__ = ("__weakref__", "_give_back")

    def __init__(self, give_back: Callable[[], None]) -> None:
        """Hold it.

        Args:
            give_back: Called once at most.
        """
        self._give_back = [give_back]

    def take_over(self) -> Callable[[], None]:
        """Take what gives it back; an IndexError if somebody has done so."""
        return self._give_back.pop()

    def close(self) -> None:
        """Give it back, unless somebody has taken that over."""
        try:
            give_back = self.take_over()
        except IndexError:
            return
        give_back()


def end_what_was_left_behind() -> None:
    """End what is listed of closed loops, which gives back slots and settles money."""
    _LISTS.end_those_of_closed_loops()
