"""How much a request may bring, and how many requests may be at work or waiting."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi import Request

from phospho_multimodal.server import failures

__all__ = ["ClientGoneError", "WorkQueue", "read_body"]

_RETRY_AFTER = 1  # seconds; an answer of the slowest engine takes about that long

Answer = TypeVar("Answer")


class ClientGoneError(Exception):
    """The client hung up before its answer was ready."""


async def read_body(request: Request, limit: int) -> bytes:
    """Read a request's body, but never more than the limit.

    Args:
        request: The request, its body not read yet.
        limit: Bytes.

    Returns:
        The body.

    Raises:
        Refusal: A 413. When Content-Length says so, before a byte is read; a body that does not
            tell its length is given up as soon as it passes the limit.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise failures.body_too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise failures.body_too_large(limit)
    return bytes(body)


class WorkQueue:
    """A fixed number of worker threads, and a fixed number of requests waiting for one.

    Who waits can leave at any time. Work that has begun is finished, and its thread counts as
    taken until then, since a thread cannot be stopped from outside.
    """

    def __init__(self, *, workers: int, max_waiting: int) -> None:
        self._workers = workers
        self._places = workers + max_waiting
        self._threads: anyio.CapacityLimiter | None = None

    async def run(self, request: Request, work: Callable[[], Answer]) -> Answer:
        """Run work on a thread as soon as one is free.

        Args:
            request: The request it is for, its body read; once its client is gone, work that has
                not begun never will.
            work: What blocks.

        Returns:
            What the work returned.

        Raises:
            Refusal: A 503, if as many wait already as may; or what the work raised.
            ClientGoneError: The client hung up.
        """
        # Made here because a limiter belongs to an event loop, and an app is made before its own.
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(self._workers)
        # A count of our own: the limiter's does not have those who are just about to wait.
        if self._places == 0:
            raise failures.queue_full(_RETRY_AFTER)
        self._places -= 1
        try:
            return await _unless_gone(request, work, self._threads)
        finally:
            self._places += 1


async def _unless_gone(
    request: Request, work: Callable[[], Answer], threads: anyio.CapacityLimiter
) -> Answer:
    answers: list[Answer] = []
    failure: Exception | None = None

    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            answers.append(await anyio.to_thread.run_sync(work, limiter=threads))
        except Exception as error:  # noqa: BLE001 - raised below: a group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not answers:
        raise ClientGoneError
    return answers[0]
