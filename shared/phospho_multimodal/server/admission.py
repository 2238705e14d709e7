"""How many requests are worked on at the same time, and how many wait."""

import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi import Request

from phospho_multimodal.server.errors import unavailable

__all__ = ["ClientDisconnectedError", "WorkQueue", "Workers"]

_RETRY_AFTER = 1  # seconds; the slowest engine takes about that long for an answer
_DECODERS = 4  # images that are decoded at the same time; one may take 300 MB

T = TypeVar("T")
Result = TypeVar("Result")


class ClientDisconnectedError(Exception):
    """The client disconnected before its answer was ready."""


class Workers:
    """Limits the requests in progress, and the images that are decoded at the same time."""

    def __init__(self, count: int) -> None:
        self._limiter = anyio.CapacityLimiter(count)
        self._decoders = anyio.CapacityLimiter(_DECODERS)

    def resize(self, count: int) -> None:
        """Change the limit; requests in progress finish first."""
        if count != self._limiter.total_tokens:
            self._limiter.total_tokens = count

    async def run_in_thread(self, work: Callable[[], Result]) -> Result:
        """Run all of a request's work in a thread."""
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    async def decode_and_await(
        self, decode: Callable[[], T], answer: Callable[[T], Awaitable[Result]]
    ) -> Result:
        """Decode the image in a thread, and await the answer on the event loop."""
        async with self._limiter:
            # No variable for the image, which would keep its pixels alive during the answer.
            return await answer(await anyio.to_thread.run_sync(decode, limiter=self._decoders))


class WorkQueue:
    """A limited number of requests in progress, and a limited number that wait.

    The engine can change the first number at any time. A waiting request ends when its client
    disconnects. Work in a thread cannot be stopped, so it keeps its place until it is finished.
    """

    def __init__(self, *, workers: Callable[[], int], max_waiting: int) -> None:
        self._count = workers
        self._max_waiting = max_waiting
        self._held = 0
        self._workers: Workers | None = None

    async def run(self, request: Request, work: Callable[[Workers], Awaitable[Result]]) -> Result:
        """Do a request's work when there is a place.

        Raises:
            HTTPException: A 503, if too many requests wait already.
            ClientDisconnectedError: The client disconnected.
        """
        count = self._count()
        if self._workers is None:  # a limiter belongs to an event loop, so it is made here
            self._workers = Workers(count)
        self._workers.resize(count)
        # The limiter does not count requests that are about to wait.
        if self._held >= count + self._max_waiting:
            reason = "Too many requests are waiting"
            raise unavailable(reason, _RETRY_AFTER)
        self._held += 1
        try:
            return await _unless_disconnected(request, functools.partial(work, self._workers))
        finally:
            self._held -= 1


async def _unless_disconnected(request: Request, work: Callable[[], Awaitable[Result]]) -> Result:
    results: list[Result] = []
    failure: Exception | None = None

    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            results.append(await work())
        except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not results:
        raise ClientDisconnectedError
    return results[0]
