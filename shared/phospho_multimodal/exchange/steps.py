"""The steps that an exchange asks of a client, and what the client sends back for each.

An exchange is a generator: it yields a step, and the client does it and sends back the result. A
client that fails throws the failure in instead, where the exchange judges it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx

__all__ = [
    "MAX_REPLY_BYTES",
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
]

MAX_REPLY_BYTES = 10 * 1024 * 1024
"""What is read of a reply; an answer has a few hundred bytes."""

_JOINED = 128 * 1024
_WHOLE_PIECES = 2 * 1024 * 1024
_SLICE = 256 * 1024
_SHORT_END = 64


class RequestBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of one attempt, which knows whether all of it was handed to the socket.

    A small one is put together, since that costs less than another write. The pieces of a larger
    one go as they are, without a copy. The largest go in slices: a piece given whole is copied
    with each partial send.

    The end is handed over by itself, a few bytes, and the body counts as sent from then on: whoever
    is interrupted before has not sent it, and whoever is interrupted while it is written may have.
    """

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.size = sum(map(len, pieces))
        self.fully_sent = False

    def __iter__(self) -> Iterator[bytes]:
        end = self._pieces[-1] if self._pieces else b""
        rest: list[bytes | memoryview] = [*self._pieces[:-1]]
        if not rest or len(end) > _SHORT_END:
            rest.append(memoryview(end)[:-1])
            end = end[-1:]
        if self.size > _WHOLE_PIECES:
            yield from _slices(rest)
        elif self.size > _JOINED:
            yield from map(bytes, rest)  # which copies none that is bytes already
        elif self.size > 1:
            yield b"".join(rest)
        self.fully_sent = True
        yield end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def _slices(pieces: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    """Cut what the pieces are together, without ever putting all of it together."""
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
    """Run this, which does not belong on an event loop, and send back what it returns.

    What computes goes on as many threads at once as there are cores: more would only take memory.
    What waits (for a lock on a file, for an image of somebody's server) takes no core.
    """

    run: Callable[[], Any]
    computes: bool


@dataclass(frozen=True, slots=True)
class AcquireSlot:
    """Wait for a free slot and for the rate.

    Send back the function that frees the slot again, or `None` if the deadline came first.
    """

    deadline: float | None


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Send one request and send back its `HttpResponse`."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: RequestBody
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Gather:
    """Run several conversations at once, and send back what each came to.

    That is a list in their order: what a conversation returned, or the `PhosphoError` it raised.
    Any other error of one ends them all.
    """

    conversations: Sequence[Generator[Step, Any, Any]]


Step: TypeAlias = "RunInThread | AcquireSlot | SendRequest | Sleep | Gather"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer with its body, of which at most 10 MB were read."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class DeadlineError(Exception):
    """A client tells the exchange with this that the deadline passed while it was sending."""


TRANSPORT_FAILURES = (httpx.RequestError, DeadlineError)
"""What a client may throw in where a `HttpResponse` was asked for."""
