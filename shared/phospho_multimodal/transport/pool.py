"""httpx transports behind a free list: one connection each, so that none has to search a pool.

httpx 0.28 walks all connections of its pool whenever a request starts or ends, and throws idle
ones away above twenty: at 64 calls at once a stock pool falls to a twentieth of its speed. Here
every transport holds one connection; the idle ones wait on a stack, the last used on top. How many
there are at once is the clients' business, which give out the turns.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar, cast

import httpx

from phospho_multimodal.errors import ConfigurationError, PhosphoError
from phospho_multimodal.exchange.steps import (
    MAX_REPLY_BYTES,
    DeadlineError,
    HttpResponse,
    SendRequest,
)
from phospho_multimodal.settings import Settings, Timeouts
from phospho_multimodal.transport.connections import (
    IDLE_SECONDS,
    async_connection_maker,
    connection_maker,
    has_more,
    is_usable,
)

__all__ = [
    "AsyncConnectionPool",
    "ConnectionPool",
    "build_request",
    "check_borrowed",
    "foreign_errors_as_httpx",
    "read_async_reply",
    "read_reply",
]

_TELLS_ITS_END = {"content-length", "transfer-encoding"}
"""Headers of a body that is known to be whole; any other may have been cut off."""

_DEADLINE = "phospho.deadline"
"""The extension of a request that tells the pool when to give up on it."""

T = TypeVar("T")


class _FreeList(Generic[T]):
    """Idle transports, the last used on top; those idle for too long are handed back to close."""

    def __init__(self) -> None:
        self._idle: deque[tuple[float, T]] = deque()

    def take(self) -> T | None:
        try:
            return self._idle.pop()[1]
        except IndexError:
            return None

    def put(self, transport: T) -> None:
        self._idle.append((time.monotonic(), transport))

    def expired(self) -> list[T]:
        """Take out what has been idle for too long; the oldest are at the bottom."""
        oldest = time.monotonic() - IDLE_SECONDS
        old: list[T] = []
        while self._idle:
            try:
                since, transport = self._idle.popleft()
            except IndexError:  # another thread was faster
                break
            if since > oldest:
                self._idle.appendleft((since, transport))
                break
            old.append(transport)
        return old

    def drain(self) -> list[T]:
        """Take out everything."""
        everything: list[T] = []
        while (transport := self.take()) is not None:
            everything.append(transport)
        return everything


class _Connection:
    """A transport with its one connection, which can be cut off at a deadline.

    A server that drips is never late by httpx's clock, so a timer cuts the line: it shuts it down,
    by a descriptor of its own, and leaves closing to the thread that uses it. A descriptor that is
    closed while another thread reads from it may by then be another connection's.
    """

    def __init__(self, transport: httpx.HTTPTransport) -> None:
        self.transport = transport
        self._socket: socket.socket | None = None
        self._line: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self._cutting = threading.Lock()

    def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request; if it has a deadline, the line is cut there until `leave` is called."""
        deadline: float | None = request.extensions.get(_DEADLINE)
        if deadline is not None:
            request.extensions["trace"] = partial(self._connected, deadline)
            if self._socket is not None:
                self._watch(self._socket, deadline)
        return self.transport.handle_request(request)

    def leave(self) -> None:
        """Call off the cutting."""
        if self._timer is not None:
            self._timer.cancel()
        with self._cutting:
            line, self._line = self._line, None
        if line is not None:
            line.close()

    def close(self) -> None:
        """Close the connection, with the thread that used it."""
        self.leave()
        self.transport.close()

    def _connected(self, deadline: float, event: str, info: Mapping[str, Any]) -> None:
        """Learn of a new connection, by httpx's `trace` extension."""
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            self._socket = info["return_value"].get_extra_info("socket")
            if self._socket is not None:
                self._watch(self._socket, deadline)

    def _watch(self, connected: socket.socket, deadline: float) -> None:
        self.leave()
        if connected.fileno() < 0:  # closed since: a new connection will tell
            return
        self._line = socket.socket(fileno=socket.dup(connected.fileno()))
        self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _cut(self) -> None:
        with self._cutting, contextlib.suppress(OSError):  # the other side was faster
            if self._line is not None:
                self._line.shutdown(socket.SHUT_RDWR)


class ConnectionPool(httpx.BaseTransport):
    """The connections of one client, for any number of threads."""

    def __init__(self, settings: Settings) -> None:
        self._make = connection_maker(settings)
        self._free: _FreeList[_Connection] = _FreeList()
        self._closed = False
        self._process = os.getpid()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send over an idle connection or a new one; closing the response gives it back."""
        self._leave_parents_connections()
        connection = self._take()
        try:
            response = connection.send(request)
        except BaseException:
            connection.close()
            raise
        stream = cast("httpx.SyncByteStream", response.stream)
        response.stream = _PooledStream(stream, partial(self._give_back, connection))
        return response

    def close(self) -> None:
        """Close what is idle; what is in use closes when it comes back."""
        self._closed = True
        self._close_idle()

    def _take(self) -> _Connection:
        while (connection := self._free.take()) is not None:
            if is_usable(connection.transport):
                return connection
            connection.close()
        return _Connection(self._make())

    def _close_idle(self) -> None:
        for connection in self._free.drain():
            connection.close()

    def _give_back(self, connection: _Connection) -> None:
        connection.leave()
        if has_more(connection.transport):
            connection.close()
            return
        self._free.put(connection)
        for old in self._free.expired():
            old.close()
        if self._closed:  # looked at after putting it there: of this and `close` one finds it
            self._close_idle()

    def _leave_parents_connections(self) -> None:
        """After a fork the idle connections belong to the parent, which goes on using them."""
        if self._process != os.getpid():
            self._close_idle()  # only descriptors of this process: nothing goes over the wire
            self._process = os.getpid()  # after that: another thread may ask at the same time


class AsyncConnectionPool(httpx.AsyncBaseTransport):
    """The connections of one client on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._make = async_connection_maker(settings)
        self._free: _FreeList[httpx.AsyncHTTPTransport] = _FreeList()
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send over an idle connection or a new one; closing the response gives it back."""
        transport = await self._take()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await transport.aclose()
            raise
        stream = cast("httpx.AsyncByteStream", response.stream)
        response.stream = _AsyncPooledStream(stream, partial(self._give_back, transport))
        return response

    async def aclose(self) -> None:
        """Close what is idle; what is in use closes when it comes back."""
        self._closed = True
        await _close_all(self._free.drain())

    async def _take(self) -> httpx.AsyncHTTPTransport:
        while (transport := self._free.take()) is not None:
            if is_usable(transport):
                return transport
            await transport.aclose()
        return self._make()

    async def _give_back(self, transport: httpx.AsyncHTTPTransport) -> None:
        if self._closed or has_more(transport):
            await transport.aclose()
            return
        self._free.put(transport)
        expired = self._free.expired()
        if expired:
            with contextlib.suppress(httpx.RequestError, OSError):  # an answer is there to be given
                await _close_all(expired)


async def _close_all(transports: Iterable[httpx.AsyncHTTPTransport]) -> None:
    """Close every one, whatever comes between."""
    async with contextlib.AsyncExitStack() as stack:
        for transport in transports:
            stack.push_async_callback(transport.aclose)


class _PooledStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, give_back: Callable[[], None]) -> None:
        self._stream = stream
        self._give_back: Callable[[], None] | None = give_back

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        self._stream.close()
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class _AsyncPooledStream(httpx.AsyncByteStream):
    def __init__(
        self, stream: httpx.AsyncByteStream, give_back: Callable[[], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._give_back: Callable[[], Awaitable[None]] | None = give_back

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        give_back, self._give_back = self._give_back, None
        try:
            await self._stream.aclose()
        finally:  # one that was interrupted is not usable, and will not be used
            if give_back is not None:
                await give_back()


def check_borrowed(
    settings: Settings, http_client: object, wanted: type[httpx.Client | httpx.AsyncClient]
) -> None:
    """Refuse a borrowed client of the wrong kind, and settings that it would silently not obey.

    Args:
        settings: Of the client that borrows.
        http_client: What it borrows, if anything.
        wanted: What it has to be.

    Raises:
        ConfigurationError: It is something else, or `proxy=` or `verify=` was given too, which the
            borrowed client has its own of.
    """
    if http_client is not None and not isinstance(http_client, wanted):
        given = type(http_client).__name__
        message = f"http_client= is a {given}; it has to be an httpx.{wanted.__name__}."
        raise ConfigurationError(message)
    if http_client is not None and (settings.proxy is not None or settings.verify is not True):
        message = "proxy= and verify= belong to the http client: set them on the one you pass in."
        raise ConfigurationError(message)


def build_request(
    step: SendRequest, timeouts: Timeouts, borrowed: httpx.Client | httpx.AsyncClient | None
) -> httpx.Request:
    """Make httpx's request of a step, with its timeouts bounded by its deadline.

    Args:
        step: What to send.
        timeouts: Seconds for each phase.
        borrowed: A client whose own headers and cookies go along.

    Returns:
        The request; it reads the body from the step's own stream, which notes what was sent.

    Raises:
        DeadlineError: The deadline has passed.
    """
    if borrowed is None:
        url, host = _parsed(step.url)
        # Given a stream, httpx adds no header of its own, and neither reads nor wraps the body.
        headers = {"host": host, **step.headers}
        request = httpx.Request(step.method, url, headers=headers, stream=step.body)
    else:
        request = borrowed.build_request(step.method, step.url, headers=step.headers)
        if step.body.size:
            # httpx reads a request that it builds without a body as empty, and some transports
            # send what was read, so the stream cannot be assigned afterwards.
            request = httpx.Request(
                request.method, request.url, headers=request.headers, stream=step.body
            )
    _check_deadline(step.deadline)
    request.extensions[_DEADLINE] = step.deadline
    request.extensions["timeout"] = bounds = _bounded(timeouts, step.deadline)
    if step.deadline is not None and isinstance(borrowed, httpx.Client):
        request.extensions["trace"] = partial(_bound_anew, bounds, timeouts, step.deadline)
    return request


def _bounded(timeouts: Timeouts, deadline: float | None) -> dict[str, float | None]:
    # Never 0, which is no waiting at all, for a socket: what it does then is no timeout.
    left = None if deadline is None else max(0.001, deadline - time.monotonic())
    return {
        "connect": _earlier(timeouts.connect, left),
        "read": _earlier(timeouts.read, left),
        "write": _earlier(timeouts.write, left),
        "pool": None,  # turns are given out before, bounded by the deadline alone
    }


def _bound_anew(
    bounds: dict[str, float | None],
    timeouts: Timeouts,
    deadline: float,
    event: str,
    info: Mapping[str, Any],
) -> None:
    """Bound what comes next by what is left, when httpx's `trace` extension tells that it begins.

    That is all that can be done to a borrowed client: its line may be shared with other requests
    (HTTP/2), and is not ours to cut. A server that drips is on time for each of its bytes.
    """
    del event, info
    bounds.update(_bounded(timeouts, deadline))


@lru_cache(maxsize=64)  # a client asks for three, and httpx takes 60 µs to read one
def _parsed(url: str) -> tuple[httpx.URL, str]:
    """Read a URL, and tell what the `Host` header says."""
    parsed = httpx.URL(url)
    return parsed, parsed.netloc.decode("ascii")


def read_reply(response: httpx.Response, deadline: float | None) -> HttpResponse:
    """Read an answer, 10 MB at most, and close it.

    Args:
        response: With its body still to come.
        deadline: On the monotonic clock.

    Returns:
        The answer.

    Raises:
        DeadlineError: The deadline passed between two pieces of the body.
        httpx.RequestError: The connection failed.
    """
    body = bytearray()
    try:
        stream: Iterable[bytes] | object = response.stream
        # What httpx does to decode a body is not needed for one that is plain, as it was asked to.
        if not isinstance(stream, _PooledStream) or "content-encoding" in response.headers:
            stream = response.iter_bytes()
        for piece in stream:
            body += piece
            _check_deadline(deadline)
            if len(body) > MAX_REPLY_BYTES:
                break
        if not _TELLS_ITS_END & response.headers.keys():
            _check_deadline(deadline)  # that cuts the line, and such a body ends with the line
    finally:
        response.close()
    return HttpResponse(response.status_code, response.headers, bytes(body))


async def read_async_reply(response: httpx.Response) -> HttpResponse:
    """Read an answer, 10 MB at most, and close it; a cancel scope keeps the deadline.

    Args:
        response: With its body still to come.

    Returns:
        The answer.

    Raises:
        httpx.RequestError: The connection failed.
    """
    body = bytearray()
    try:
        stream: AsyncIterable[bytes] | object = response.stream  # as in the twin above
        if not isinstance(stream, _AsyncPooledStream) or "content-encoding" in response.headers:
            stream = response.aiter_bytes()
        async for piece in stream:
            body += piece
            if len(body) > MAX_REPLY_BYTES:
                break
    finally:
        await response.aclose()
    return HttpResponse(response.status_code, response.headers, bytes(body))


@contextlib.contextmanager
def foreign_errors_as_httpx() -> Iterator[None]:
    """Raise what a borrowed client's transport raises as one of httpx's errors.

    httpx-aiohttp lets some of aiohttp's errors through, and an ASGI app raises its own.
    """
    try:
        yield
    except (httpx.RequestError, DeadlineError, PhosphoError):
        raise
    except Exception as error:  # noqa: BLE001 - the transport may be anybody's
        message = f"{type(error).__name__}: {error}"
        raise httpx.TransportError(message) from None


def _check_deadline(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineError


def _earlier(timeout: float | None, left: float | None) -> float | None:
    if left is None:
        return timeout
    return min((limit for limit in (timeout, left) if limit is not None), default=None)
