"""How many requests of a client are in flight at once, and how many start in a second."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress

from phospho_multimodal.spending.finalizing import is_finalizing
from phospho_multimodal.spending.left_behind import UnderWay, end_what_was_left_behind
from phospho_multimodal.spending.processes import after_fork

__all__ = ["RateLimit", "Slots"]


_FIRST_GLANCE = 1.0
"""Seconds after which whoever waits looks whether a slot was left behind; then it doubles."""

_LONGEST_GLANCE = 16.0


class _Waiter:
    """Somebody in the queue; `wake` may be called from any thread, and raises if nobody is left."""

    __slots__ = ("__weakref__", "_leave", "has_slot", "wake")

    def __init__(self, wake: Callable[[], object], leave: Callable[[_Waiter], None]) -> None:
        self.wake = wake
        self.has_slot = False
        self._leave = leave

    def close(self) -> None:
        """Leave the queue, and give back the slot if it has come."""
        self._leave(self)


class _Glances:
    """Looks now and then, for one who waits on an event loop, whether a slot was left behind."""

    __slots__ = ("_loop", "_pause", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pause = _FIRST_GLANCE
        self._timer = loop.call_later(self._pause, self._look)

    def _look(self) -> None:
        end_what_was_left_behind()
        self._pause = min(2 * self._pause, _LONGEST_GLANCE)
        self._timer = self._loop.call_later(self._pause, self._look)

    def close(self) -> None:
        self._timer.cancel()


class Slots:
    """A limit on what is in flight that threads and event loops share, first come, first served.

    (The semaphores on the shelf belong to threads, or to one event loop.)
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        # In a forked child the threads that held slots, or this lock, are gone.
        self._free = self._limit
        self._queue: deque[_Waiter] = deque()
        self._left: deque[_Waiter | None] = deque()  # by finalizers: places, and slots (`None`)
        self._lock = threading.Lock()

    def take(self, timeout: float | None = None) -> bool:
        """Wait for a slot, with a thread.

        Args:
            timeout: Seconds; `None` is for ever.

        Returns:
            Whether there is one; then it has to be given back.
        """
        if self._take_free():
            return True
        event = threading.Event()
        waiter = self._join(event.set)
        if waiter is None:
            return True
        end = None if timeout is None else time.monotonic() + timeout
        glance = _FIRST_GLANCE
        try:
            while not event.wait(glance if end is None else min(glance, end - time.monotonic())):
                if end is not None and time.monotonic() >= end:
                    break
                end_what_was_left_behind()
                glance = min(2 * glance, _LONGEST_GLANCE)
        except BaseException:
            waiter.close()
            raise
        return self._leave(waiter)

    async def take_async(self, timeout: float | None = None) -> bool:
        """Wait for a slot, on an event loop; see `take`."""
        if self._take_free():
            return True
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        waiter = self._join(lambda: loop.call_soon_threadsafe(_wake, turn))
        if waiter is None:
            return True
        # A scope of anyio's would keep a task that is left behind in it from being collected.
        timer = None if timeout is None else loop.call_later(timeout, _wake, turn)
        try:
            with UnderWay(waiter), closing(_Glances(loop)):
                await turn
        except BaseException:
            waiter.close()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return self._leave(waiter)

    def give_back(self) -> None:
        """Hand a slot to whoever has waited longest."""
        if is_finalizing():
            self._left.append(None)
        else:
            with self._lock:
                self._hand_on()
        if self._left:
            self._catch_up()

    def _take_free(self) -> bool:
        """Take a slot if there is one: whoever waits for one finds none free."""
        with self._lock:
            is_free = self._free > 0
            if is_free:
                self._free -= 1
        if self._left:
            self._catch_up()
        return is_free

    def _join(self, wake: Callable[[], object]) -> _Waiter | None:
        """Take a slot (`None`), or a place in the queue."""
        end_what_was_left_behind()
        waiter = _Waiter(wake, self._abandon)
        with self._lock:
            is_free = self._free > 0
            if is_free:
                self._free -= 1
            else:
                self._queue.append(waiter)
        if self._left:
            self._catch_up()
        return None if is_free else waiter

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the queue, and tell whether a slot came before that."""
        with self._lock:
            has_slot = self._strike_out(waiter)
        if self._left:
            self._catch_up()
        return has_slot

    def _abandon(self, waiter: _Waiter) -> None:
        """Have somebody struck out, at whatever moment: maybe by the garbage collector."""
        self._left.append(waiter)
        self._catch_up()

    def _catch_up(self) -> None:
        """Do what finalizers left: at once, or when whoever has the lock has given it back."""
        while self._left and self._lock.acquire(blocking=False):
            try:
                while self._left:
                    waiter = self._left.popleft()
                    if waiter is None or self._strike_out(waiter):
                        self._hand_on()
            finally:
                self._lock.release()

    # --- with the lock -------------------------------------------------------------------------

    def _hand_on(self) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            waiter.has_slot = True
            try:
                waiter.wake()
            except RuntimeError:  # its event loop is closed, and whoever waited there is gone
                waiter.has_slot = False
                continue
            return
        self._free += 1

    def _strike_out(self, waiter: _Waiter) -> bool:
        has_slot, waiter.has_slot = waiter.has_slot, False
        if not has_slot:
            with suppress(ValueError):  # struck out before, since its event loop is closed
                self._queue.remove(waiter)
        return has_slot


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # cancelled, in the meantime
        turn.set_result(None)


class RateLimit:
    """Hands out starting times, evenly spaced after at most one second's worth at once.

    It only does the arithmetic and never sleeps, so that threads and event loops share it: each
    caller is told how long to wait. (The limiters on the shelf sleep themselves, in one world.)
    """

    def __init__(self, per_second: float | None) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        # A burst of one second's worth: the first of them may start that much early.
        self._head_start = 0.0 if per_second is None else max(0.0, 1.0 - self._interval)
        self._next = 0.0
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
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
