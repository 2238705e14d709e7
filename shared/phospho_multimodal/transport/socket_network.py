"""Plain TCP for httpcore: no copy of what is sent, and it goes in pieces of one segment.

httpcore hands a body over whole, and copies the rest of it with each write that the socket takes in
part. TLS stays with httpcore's own way.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpcore

__all__ = ["SocketNetwork", "joined", "segments"]

_SMALL = 16 * 1024
"""Bytes up to which writes are put together: a request's headers, its body, and the body's end."""

_SEGMENT = 62 * 1024
"""Bytes that go out as one segment: 64 kB with all headers is the most that the loopback carries,
and that a network card takes to cut up by itself. A megabyte costs a quarter less so than given
whole, and 5 % less than in pieces of 64 kB: the other side begins to read at once, and the kernel
uses the same pages again while they are in the processor's cache."""


class SocketNetwork(httpcore.SyncBackend):
    """Opens connections as httpcore does, and writes and reads by itself."""

    def connect_tcp(self, *arguments: Any, **keywords: Any) -> httpcore.NetworkStream:
        """Connect as httpcore does: its arguments, and its errors."""
        return _Stream(super().connect_tcp(*arguments, **keywords))


class _Stream(httpcore.NetworkStream):
    """What httpcore reads from and writes to.

    What is small is held until something larger follows, or until the end of the request: httpcore
    writes an empty piece there, for every request that tells its length as all of ours do.
    """

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._socket: socket.socket = stream.get_extra_info("socket")
        self._timeout = self._socket.gettimeout()
        self._held = b""
        self._broken: OSError | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._wait_for(timeout)
            data = self._socket.recv(max_bytes)
        except TimeoutError as late:
            raise httpcore.ReadTimeout(str(late)) from late
        except OSError as failure:
            if self._broken is None:
                raise httpcore.ReadError(str(failure)) from failure
            data = b""
        if self._broken is not None and not data:
            # httpcore passes over what is wrong with a write, to see whether there is an answer.
            # There is none, and the end of the request has not gone out.
            message = f"The connection was closed before all was sent: {self._broken}"
            raise httpcore.WriteError(message) from self._broken
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        ready, self._held = joined(self._held, buffer)
        try:
            self._wait_for(timeout)
            for whole in ready:
                self._send(whole)
        except TimeoutError as late:
            raise httpcore.WriteTimeout(str(late)) from late
        except OSError as failure:
            self._broken = failure
            raise httpcore.WriteError(str(failure)) from failure

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *arguments: Any, **keywords: Any) -> httpcore.NetworkStream:
        return self._stream.start_tls(*arguments, **keywords)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _send(self, buffer: bytes) -> None:
        for piece in segments(buffer):
            sent = self._socket.send(piece)
            while sent < len(piece):
                sent += self._socket.send(memoryview(piece)[sent:])

    def _wait_for(self, seconds: float | None) -> None:
        if seconds != self._timeout:
            self._socket.settimeout(seconds)
            self._timeout = seconds


def joined(held: bytes, piece: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """Put together what was held and what follows it, where a copy costs less than a write.

    Args:
        held: What was held until now.
        piece: What comes next; nothing, at the end of a request.

    Returns:
        What to send now, one after the other, none of it empty; and what to hold.
    """
    if piece and len(held) + len(piece) <= _SMALL:
        return (), held + piece
    return tuple(one for one in (held, piece) if one), b""


def segments(buffer: bytes) -> Iterator[bytes | memoryview]:
    """Cut what is to be sent, without a copy.

    Args:
        buffer: Of any size.

    Yields:
        Its pieces, in their order.
    """
    if len(buffer) <= _SEGMENT:
        yield buffer
        return
    whole = memoryview(buffer)
    for begin in range(0, len(buffer), _SEGMENT):
        yield whole[begin : begin + _SEGMENT]
