"""httpcore's asynchronous connection with as few rounds of the event loop as there can be.

httpcore goes by anyio, which lets the loop go round for each lock, write and read, and sets up a
cancel scope for each: a small request takes half as long again. Here a write that the socket takes
at once, and a read of what is there already, do not wait at all. TLS, and other event loops than
asyncio's own, stay with anyio's way of writing and reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import select
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import anyio
import httpcore

from phospho_multimodal.transport.socket_network import joined, segments

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncConnection", "AsyncioNetwork"]

_ENOUGH = 256 * 1024
"""Bytes that are read ahead; more wait in the socket, and in the end with the server."""

_HAPPY_EYEBALLS = 0.25
"""Seconds until the next address of a host is tried beside the one before (RFC 8305)."""


class AsyncConnection:
    """One connection to one origin, for one request at a time: whoever has it sees to that."""

    def __init__(self, origin: httpcore.Origin, tls: ssl.SSLContext, idle: float) -> None:
        """Open nothing yet.

        Args:
            origin: Scheme, host and port.
            tls: For https.
            idle: Seconds for which it is kept open without a request.
        """
        self._origin = origin
        self._tls = tls
        self._idle = idle
        self._connection: httpcore.AsyncHTTP11Connection | None = None

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request, and connect before if need be."""
        if self._connection is None:
            stream = await self._connect(request.extensions.get("timeout", {}).get("connect"))
            self._connection = httpcore.AsyncHTTP11Connection(
                self._origin, stream, keepalive_expiry=self._idle
            )
            # There is nobody else to be locked out; anyio's lock costs two rounds of the loop.
            self._connection._state_lock = cast("Any", _OpenLock())  # noqa: SLF001
        return await self._connection.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.aclose()

    def is_available(self) -> bool:
        """Whether it is open and idle."""
        return self._connection is not None and self._connection.is_available()

    def has_expired(self) -> bool:
        """Whether it was idle for too long, or something came that nobody asked for."""
        return self._connection is None or self._connection.has_expired()

    async def _connect(self, seconds: float | None) -> httpcore.AsyncNetworkStream:
        host, plain = self._origin.host.decode("ascii"), self._origin.scheme == b"http"
        # uvloop does not try addresses one beside the other, which anyio does by itself; and of a
        # write that Windows's own loop had begun nobody could tell whether it was sent.
        own_loop = isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
        network = AsyncioNetwork() if plain and own_loop else httpcore.AnyIOBackend()
        stream = await network.connect_tcp(host, self._origin.port, timeout=seconds)
        if plain:
            return stream
        self._tls.set_alpn_protocols(["http/1.1"])  # a context of the user's may offer another
        return await stream.start_tls(self._tls, host, seconds)


class _OpenLock:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        pass


class AsyncioNetwork(httpcore.AsyncNetworkBackend):
    """Opens plain TCP connections on the running event loop, which has to be asyncio's own."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host: its addresses one beside the other, until one answers.

        Args:
            host: A name or an address.
            port: Its port.
            timeout: Seconds; `None` is for ever.
            local_address: Where to connect from.
            socket_options: Set on the socket.

        Returns:
            The connection.

        Raises:
            httpcore.ConnectTimeout: It took too long.
            httpcore.ConnectError: It was refused, or there is no such host.
        """
        loop = asyncio.get_running_loop()
        try:
            with anyio.fail_after(timeout):
                _, line = await loop.create_connection(
                    _Line,
                    host,
                    port,
                    local_addr=None if local_address is None else (local_address, 0),
                    # Asked for, asyncio races a single address too, and a cancelled race may
                    # leave a connected socket to the garbage collector.
                    happy_eyeballs_delay=None if _is_address(host) else _HAPPY_EYEBALLS,
                )
        except TimeoutError as late:
            raise httpcore.ConnectTimeout(str(late)) from late
        except OSError as failure:
            raise httpcore.ConnectError(str(failure)) from failure
        for option in socket_options or ():
            line.socket.setsockopt(*option)
        return _Stream(line)

    async def sleep(self, seconds: float) -> None:
        """Do nothing for some seconds."""
        await asyncio.sleep(seconds)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Line(asyncio.Protocol):
    """One connection: what has come in, and whether more can go out."""

    transport: asyncio.Transport
    socket: socket.socket

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = False
        self.failure: Exception | None = None
        self.is_full = False
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._is_held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.socket = transport.get_extra_info("socket")
        # Full as long as the socket has not taken all: what is written is with the kernel then.
        self.transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= _ENOUGH:
            self._is_held = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self.ended = True
        self._wake()
        return True  # the other direction may go on

    def connection_lost(self, failure: Exception | None) -> None:
        if failure is not None:
            # A server may answer and close before it has read all: when a write fails, asyncio
            # reads no more, and the answer is still in the socket.
            with contextlib.suppress(OSError), self.socket.dup() as rest:
                rest.settimeout(0)
                while len(self.received) < _ENOUGH and (data := rest.recv(_ENOUGH)):
                    self.received += data
        self.ended = True
        self.failure = failure
        self._wake()

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._wake()

    async def send(self, piece: bytes | memoryview, seconds: float | None) -> bool:
        """Hand a piece to the socket, and tell whether it took all of it."""
        # Asked of the transport, which knows it before `connection_lost` is called.
        is_closing = self.transport.is_closing
        if is_closing():
            return False
        self.transport.write(piece)
        if is_closing():
            return False
        if self.is_full:
            await self.wait_until(
                lambda: not self.is_full or is_closing(), seconds, httpcore.WriteTimeout
            )
        return not self.is_full

    def take(self, most: int) -> bytes:
        """Take out what has come in."""
        data = bytes(self.received[:most])
        del self.received[:most]
        if self._is_held and len(self.received) < _ENOUGH:
            self._is_held = False
            self.transport.resume_reading()
        return data

    async def wait_until(
        self, happened: Callable[[], bool], seconds: float | None, late: type[Exception]
    ) -> None:
        """Wait for something that comes with one of the calls above.

        Args:
            happened: Looked at after each.
            seconds: How long; `None` is for ever.
            late: Raised after that.
        """
        deadline = None if seconds is None else self._loop.time() + seconds
        while not happened():
            if deadline is not None and self._loop.time() >= deadline:
                raise late
            self._waiter = waiter = self._loop.create_future()
            timer = None if deadline is None else self._loop.call_at(deadline, _wake, waiter)
            try:
                await waiter
            finally:
                if timer is not None:
                    timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None:
            _wake(self._waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Stream(httpcore.AsyncNetworkStream):
    """What httpcore reads from and writes to. It holds what is small, as its twin does."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._is_whole = True
        self._held = b""

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> bytes:
        line = self._line
        if not line.received and not line.ended:
            await line.wait_until(
                lambda: bool(line.received) or line.ended, timeout, httpcore.ReadTimeout
            )
        if not line.received and not self._is_whole:
            # httpcore passes over what is wrong with a write, to see whether there is an answer.
            # There is none, and the end of the request has not gone out.
            message = f"The connection was closed before all was sent: {line.failure}"
            raise httpcore.WriteError(message) from line.failure
        if not line.received and line.failure is not None:
            raise httpcore.ReadError(str(line.failure)) from line.failure
        return line.take(max_bytes)

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> None:
        ready, self._held = joined(self._held, buffer)
        for whole in ready:
            for piece in segments(whole):
                # A connection that broke once takes no other request.
                self._is_whole = await self._line.send(piece, timeout)
                if not self._is_whole:
                    message = "The connection is closed."
                    raise httpcore.WriteError(message)

    async def aclose(self) -> None:
        self._line.transport.abort()
        await asyncio.sleep(0)  # asyncio closes the socket in its next round

    def get_extra_info(self, info: str) -> Any:
        line = self._line
        if info == "is_readable":
            return bool(line.received) or line.ended or _is_readable(line.socket)
        name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
        return line.transport.get_extra_info(name)


def _is_readable(connected: socket.socket) -> bool:
    """Look at the socket itself: its event loop may not have run since something came."""
    descriptor = connected.fileno()
    if descriptor < 0:
        return True
    if hasattr(select, "poll"):  # it knows descriptors of any number; Windows has any with select
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])
