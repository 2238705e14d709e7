"""Connections of a client: httpx transports of one connection each, with the idle ones in a list.

A stock pool of httpx 0.28 looks through all its connections whenever a request starts or ends, and
closes idle ones above twenty. With 64 concurrent calls it falls to a twentieth of its speed. How
many connections there are is decided by the clients, which limit concurrent requests.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import httpx

from phospho_multimodal.settings import Settings, checked_proxy, is_loopback
from phospho_multimodal.transport.requests import DEADLINE
from phospho_multimodal.transport.tls import tls_context

__all__ = ["KEEPALIVE_SECONDS", "AsyncConnectionPool", "ConnectionPool", "find_proxy"]

KEEPALIVE_SECONDS = 4.0
"""Servers close idle connections after 5 s or more, and a request that meets the close is lost."""

T = TypeVar("T")


class ConnectionPool(httpx.BaseTransport):
    """The connections of one client, for any number of threads."""

    def __init__(self, settings: Settings) -> None:
        self._make = partial(httpx.HTTPTransport, **_transport_options(settings))
        self._idle: _IdleList[_Connection] = _IdleList()
        self._closed = False
        self._process = os.getpid()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send over an idle connection or a new one. Closing the response gives it back."""
        if self._process != os.getpid():
            self._close_idle()  # After a fork, this closes descriptors and sends nothing.
            self._process = os.getpid()
        connection = self._idle.take() or _Connection(self._make())
        try:
            response = connection.send(request)
        except BaseException:
            connection.close()
            raise
        response.stream = _PooledStream(response.stream, partial(self._give_back, connection))
        return response

    def close(self) -> None:
        """Close the idle connections. The others close when they are given back."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        for connection in self._idle.take_all():
            connection.close()

    def _give_back(self, connection: _Connection) -> None:
        connection.call_off()
        if self._closed or _has_leftover_bytes(connection.transport):
            connection.close()
            return
        for expired in self._idle.put(connection):
            expired.close()


class AsyncConnectionPool(httpx.AsyncBaseTransport):
    """The connections of one client on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._make = partial(httpx.AsyncHTTPTransport, **_transport_options(settings))
        self._idle: _IdleList[httpx.AsyncHTTPTransport] = _IdleList()
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send over an idle connection or a new one. Closing the response gives it back."""
        transport = self._idle.take() or self._make()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await transport.aclose()
            raise
        response.stream = _AsyncPooledStream(response.stream, partial(self._give_back, transport))
        return response

    async def aclose(self) -> None:
        """Close the idle connections. The others close when they are given back."""
        self._closed = True
        await _close_all(self._idle.take_all())

    async def _give_back(self, transport: httpx.AsyncHTTPTransport) -> None:
        if self._closed or _has_leftover_bytes(transport):
            await transport.aclose()
        else:
            await _close_all(self._idle.put(transport))


class _IdleList(Generic[T]):
    """Idle connections, the last used on top. The operations of a deque are atomic."""

    def __init__(self) -> None:
        self._idle: deque[tuple[float, T]] = deque()

    def take(self) -> T | None:
        try:
            return self._idle.pop()[1]
        except IndexError:
            return None

    def put(self, connection: T) -> list[T]:
        """Add a connection, and take out those that have been idle for too long."""
        now = time.monotonic()
        self._idle.append((now, connection))
        expired: list[T] = []
        with contextlib.suppress(IndexError):  # another thread took the last one
            while self._idle[0][0] < now - KEEPALIVE_SECONDS:
                expired.append(self._idle.popleft()[1])
        return expired

    def take_all(self) -> list[T]:
        return list(iter(self.take, None))


class _Connection:
    """A transport whose one connection is shut down at the deadline of its request.

    A server that sends a byte now and then never exceeds a read timeout. So a timer shuts down the
    socket, and the thread that reads from it then fails. The timer uses its own duplicate of the
    descriptor: the number of a closed descriptor may already belong to another connection.
    """

    def __init__(self, transport: httpx.HTTPTransport) -> None:
        self.transport = transport
        self._socket: socket.socket | None = None
        self._duplicate: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def send(self, request: httpx.Request) -> httpx.Response:
        deadline: float | None = request.extensions[DEADLINE]
        if deadline is not None:
            request.extensions["trace"] = partial(self._watch_new, deadline)
            self._watch(self._socket, deadline)
        return self.transport.handle_request(request)

    def call_off(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            duplicate, self._duplicate = self._duplicate, None
        if duplicate is not None:
            duplicate.close()

    def close(self) -> None:
        self.call_off()
        self.transport.close()

    def _watch_new(self, deadline: float, event: str, info: Mapping[str, Any]) -> None:
        """Watch the socket of a new connection, which httpx's `trace` extension reports."""
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            self._socket = info["return_value"].get_extra_info("socket")
            self._watch(self._socket, deadline)

    def _watch(self, connected: socket.socket | None, deadline: float) -> None:
        self.call_off()
        if connected is None or connected.fileno() < 0:  # httpx will report a new connection
            return
        self._duplicate = socket.socket(fileno=socket.dup(connected.fileno()))
        self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._shut_down)
        self._timer.daemon = True
        self._timer.start()

    def _shut_down(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # the server has closed it already
            if self._duplicate is not None:
                self._duplicate.shutdown(socket.SHUT_RDWR)


class _PooledStream(httpx.SyncByteStream):
    def __init__(self, stream: Any, give_back: Callable[[], None]) -> None:
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
    def __init__(self, stream: Any, give_back: Callable[[], Any]) -> None:
        self._stream = stream
        self._give_back: Callable[[], Any] | None = give_back

    def __aiter__(self) -> AsyncIterator[bytes]:
        iterator: AsyncIterator[bytes] = self._stream.__aiter__()
        return iterator

    async def aclose(self) -> None:
        give_back, self._give_back = self._give_back, None
        try:
            await self._stream.aclose()
        finally:  # httpx has closed a connection that was interrupted, so it is not used again
            if give_back is not None:
                await give_back()


async def _close_all(transports: list[httpx.AsyncHTTPTransport]) -> None:
    """Close every transport, also if this is cancelled in between."""
    async with contextlib.AsyncExitStack() as stack:
        for transport in transports:
            stack.push_async_callback(transport.aclose)


def _has_leftover_bytes(transport: httpx.HTTPTransport | httpx.AsyncHTTPTransport) -> bool:
    """Whether bytes that follow a response are in the parser, or the connection is closed.

    The parser would take them for the next response. httpx itself finds only those that it has not
    read yet. A private name that is missing counts as leftover bytes: no connection is reused then.
    """
    try:
        connection: Any
        (connection,) = transport._pool.connections  # noqa: SLF001 - the marked private read
        while inner := getattr(connection, "_connection", None):
            connection = inner
        return bool(connection._h11_state.trailing_data[0])  # noqa: SLF001
    except (AttributeError, ValueError):
        return True


def _transport_options(settings: Settings) -> dict[str, Any]:
    """The arguments of each transport. They raise `ConfigurationError` before a request is made."""
    limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_SECONDS)
    return {"verify": tls_context(settings.verify), "limits": limits, "proxy": find_proxy(settings)}


def find_proxy(settings: Settings) -> str | None:
    """The proxy of the argument or the environment. Loopback addresses never use one."""
    if is_loopback(settings.host):
        return None
    if settings.proxy is not None or urllib.request.proxy_bypass(settings.host):
        return settings.proxy
    proxies = urllib.request.getproxies()
    proxy = proxies.get(settings.base_url.split(":", 1)[0]) or proxies.get("all")
    return checked_proxy(f"http://{proxy}" if proxy and "://" not in proxy else proxy)
