"""What a client may do with a connection, below the requests on it."""

import asyncio
import socket
from typing import ClassVar

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from phospho_multimodal.server import errors as failures

__all__ = ["ImpatientProtocol", "OneLength"]


class ImpatientProtocol(H11Protocol):
    """uvicorn's protocol, with an end to waiting for a client.

    By itself it waits forever for the rest of a request's head, for the rest of a body that was
    answered already, and for a client to take its answer. Each would keep a connection and its
    memory, until the process has no file descriptors left to accept another.
    """

    max_wait: ClassVar[float] = 60.0
    """Seconds."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        # Head and body are written one after the other; the body is not to wait until the head is
        # acknowledged, which can take 40 ms. asyncio sees to that only for sockets it made itself.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what came, and go on waiting, but no longer than before, if it was no request."""
        super().data_received(data)
        if not getattr(self.cycle, "response_complete", True):
            self._stop_waiting()
        elif self._end is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, even if its client never took the last answer."""
        super().timeout_keep_alive_handler()
        self.transport.abort()

    def _wait(self) -> None:
        self._end = self.loop.call_later(self.max_wait, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


class OneLength:
    """ASGI middleware that refuses a request with two lengths, and closes its connection.

    A proxy in front may believe the other one, and take the rest for someone else's request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            await failures.ambiguous_length().response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)
