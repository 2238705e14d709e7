"""One line of JSON for each request, with nothing in it that a request holds.

Neither prompt, picture nor key: of the address only a path that is the server's own, of the
headers nothing, of the body its length.
"""

import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phospho_multimodal.server.metrics import known_path

__all__ = ["AccessLog", "print_line"]

_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}


def print_line(line: str) -> None:
    """Write a line to the standard output at once, whole: other processes may write there too."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class AccessLog:
    """ASGI middleware that writes a line when a request is done."""

    def __init__(self, app: ASGIApp, write: Callable[[str], None] = print_line) -> None:
        self._app = app
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, received, sent = 500, 0, 0

        async def counted_in() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_out(message: Message) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        begun, started = datetime.now(timezone.utc), time.perf_counter()
        try:
            await self._app(scope, counted_in, counted_out)
        finally:
            line = {
                "time": begun.isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"] if scope["method"] in _METHODS else "other",
                "path": known_path(scope["path"]),
                "status": status,
                "seconds": round(time.perf_counter() - started, 4),
                "bytes_received": received,
                "bytes_sent": sent,
            }
            self._write(orjson.dumps(line).decode())
