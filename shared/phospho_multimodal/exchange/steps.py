"""The steps that an exchange asks of a client, and what the client sends back for each.

An exchange is a generator: it yields a step, and the client does it and sends back the result. A
client that fails throws the failure in instead, where the exchange judges it.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

import httpx

__all__ = [
    "TRANSPORT_FAILURES",
    "AcquireSlot",
    "DeadlineError",
    "Gather",
    "HttpResponse",
    "RequestBody",
    "RunInThread",
    "SendRequest",
    "Sleep",
    "Step",
    "run_steps",
    "run_steps_async",
]

S = TypeVar("S")
T = TypeVar("T")

_SLICE = 256 * 1024


class RequestBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of one attempt, which knows whether all of it was passed to the transport.

    It goes in slices, because httpcore copies the rest of a slice after each partial send. The last
    byte goes by itself, and `fully_sent` is set before it. A call that is interrupted before that
    cannot be billed, and one that is interrupted while the last byte is written may be.

    Attributes:
        size: The length of the body in bytes.
        fully_sent: Whether the last byte was passed on.
    """

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.size = sum(map(len, pieces))
        self.fully_sent = False

    def __iter__(self) -> Iterator[bytes]:
        *pieces, last = self._pieces or [b""]
        yield from _slices([*pieces, memoryview(last)[:-1]])
        self.fully_sent = True
        yield last[-1:]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def _slices(pieces: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    """Join the pieces and cut them into slices, without a copy of the whole."""
    held: list[memoryview] = []
    room = _SLICE
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            part, rest = rest[:room], rest[room:]
            held.append(part)
            room -= len(part)
            if not room:
                yield b"".join(held)
                held, room = [], _SLICE
    if held:
        yield b"".join(held)


@dataclass(frozen=True, slots=True)
class RunInThread:
    """Run a function that would block an event loop, and send back its result.

    Functions that compute run on as many threads as there are cores. More threads would only take
    memory. Functions that wait for a file or a server do not count.
    """

    run: Callable[[], Any]
    computes: bool


@dataclass(frozen=True, slots=True)
class AcquireSlot:
    """Wait for a free slot and for the rate limit.

    Send back the function that releases the slot, or `None` if the deadline passed before.
    """

    deadline: float | None


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Send a request, and send back its `HttpResponse`."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: RequestBody
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Gather:
    """Run several exchanges concurrently, and send back a list of their outcomes.

    An outcome is the result of an exchange or the `PhosphoError` that it raised. Any other error
    ends all of them.
    """

    exchanges: Sequence[Generator[Step, Any, Any]]


Step: TypeAlias = "RunInThread | AcquireSlot | SendRequest | Sleep | Gather"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response with its body, of which at most 10 MB were read."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class DeadlineError(Exception):
    """The deadline passed while a client was sending."""


TRANSPORT_FAILURES = (httpx.RequestError, DeadlineError)
"""The errors that a client may throw in instead of sending back an `HttpResponse`."""


def run_steps(steps: Generator[S, Any, T], perform: Callable[[S], Any]) -> T:
    """Do the steps of a generator, each with `perform`, and return what the generator returns.

    Args:
        steps: The generator. It is closed at the end.
        perform: Does one step. Its result is sent back, and its error is thrown in.
    """
    result: Any = None
    failure: BaseException | None = None
    with closing(steps):
        while True:
            # Outside the handler below. Otherwise our error would have httpx's as its context,
            # which holds the request with the key.
            try:
                step = steps.send(result) if failure is None else steps.throw(failure)
            except StopIteration as done:
                return cast("T", done.value)
            result = failure = None
            try:
                result = perform(step)
            except BaseException as error:  # noqa: BLE001 - the generator judges it
                failure = error


async def run_steps_async(steps: Generator[S, Any, T], perform: Callable[[S], Awaitable[Any]]) -> T:
    """Do the steps of a generator with `await`. See `run_steps`."""
    result: Any = None
    failure: BaseException | None = None
    with closing(steps):
        while True:
            try:
                step = steps.send(result) if failure is None else steps.throw(failure)
            except StopIteration as done:
                return cast("T", done.value)
            result = failure = None
            try:
                result = await perform(step)
            except BaseException as error:  # noqa: BLE001 - the generator judges it
                failure = error
