"""How much a request may bring, and how many requests may be at work or waiting."""

import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi import Request

from phospho_multimodal.server import errors as failures

__all__ = ["ClientGoneError", "Intake", "Places", "WorkQueue"]

_RETRY_AFTER = 1  # seconds; an answer of the slowest engine takes about that long
_LARGEST_BODIES = 4  # so many may be held at once, or as many bytes in smaller ones

_READERS = 4  # pictures that are decoded at the same time, for an engine that needs no thread

Answer = TypeVar("Answer")
Read = TypeVar("Read")


class ClientGoneError(Exception):
    """The client hung up before its answer was ready."""


class Intake:
    """What bodies may bring: how many bytes, in which time, and how many all of them together."""

    def __init__(self, *, max_body_bytes: int, max_seconds: float) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_seconds = max_seconds
        self._free = _LARGEST_BODIES * max_body_bytes

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[Request], Awaitable[bytes]]]:
        """Give out a way to read one body, whose bytes count as held until the block ends.

        Yields:
            A function that gets the request, reads its body, and raises a Refusal: a 413 for more
            bytes than may be, before the first one if Content-Length says so; a 408 if they take
            too long; a 503 if all bodies together hold too many.
        """
        held = 0

        async def read(request: Request) -> bytes:
            nonlocal held
            announced = request.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > self._max_body_bytes:
                raise failures.body_too_large(self._max_body_bytes)
            body = bytearray()
            with anyio.move_on_after(self._max_seconds):
                async for chunk in request.stream():
                    held += len(chunk)
                    self._free -= len(chunk)
                    body += chunk
                    if held > self._max_body_bytes:
                        raise failures.body_too_large(self._max_body_bytes)
                    if self._free < 0:
                        raise failures.server_full(_RETRY_AFTER)
                return bytes(body)
            raise failures.body_too_slow(self._max_seconds)

        try:
            yield read
        finally:
            self._free += held


class Places:
    """What the requests at work share: threads, and turns of those that work without one."""

    def __init__(self, workers: int) -> None:
        self._turns = anyio.CapacityLimiter(workers)
        # A decoded image may take 300 MB of memory: few at a time.
        self._readers = anyio.CapacityLimiter(_READERS)

    def resize(self, workers: int) -> None:
        """Let more or fewer requests work at the same time; those at work finish first."""
        if workers != self._turns.total_tokens:
            self._turns.total_tokens = workers

    async def on_thread(self, work: Callable[[], Answer]) -> Answer:
        """Run all of a request's work on a thread, in its turn."""
        return await anyio.to_thread.run_sync(work, limiter=self._turns)

    async def read_and_wait(
        self, read: Callable[[], Read], wait: Callable[[Read], Awaitable[Answer]]
    ) -> Answer:
        """Run the first part of a request's work on a thread, and await the rest."""
        async with self._turns:
            # No name for what was read: it shall live no longer than who waits needs it.
            return await wait(await anyio.to_thread.run_sync(read, limiter=self._readers))


class WorkQueue:
    """A number of requests at work, and a fixed number waiting for their turn.

    How many may be at work is asked before each request: an engine can learn it.

    Who waits can leave at any time. Work that has begun on a thread is finished, and its thread
    counts as taken until then, since a thread cannot be stopped from outside.
    """

    def __init__(self, *, workers: Callable[[], int], max_waiting: int) -> None:
        self._workers = workers
        self._max_waiting = max_waiting
        self._held = 0
        self._places: Places | None = None

    async def run(self, request: Request, work: Callable[[Places], Awaitable[Answer]]) -> Answer:
        """Do work as soon as there is a place.

        Args:
            request: The request it is for, its body read; once its client is gone, work that has
                not begun never will.
            work: What to do, in places that it is given.

        Returns:
            What the work returned.

        Raises:
            Refusal: A 503, if as many wait already as may; or what the work raised.
            ClientGoneError: The client hung up.
        """
        # Made here because a limiter belongs to an event loop, and an app is made before its own.
        workers = self._workers()
        if self._places is None:
            self._places = Places(workers)
        self._places.resize(workers)
        # A count of our own: the limiter's does not have those who are just about to wait.
        if self._held >= workers + self._max_waiting:
            raise failures.queue_full(_RETRY_AFTER)
        self._held += 1
        try:
            return await _unless_gone(request, functools.partial(work, self._places))
        finally:
            self._held -= 1


async def _unless_gone(request: Request, work: Callable[[], Awaitable[Answer]]) -> Answer:
    answers: list[Answer] = []
    failure: Exception | None = None

    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            answers.append(await work())
        except Exception as error:  # noqa: BLE001 - raised below: a group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not answers:
        raise ClientGoneError
    return answers[0]
