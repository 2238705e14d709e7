"""A server on a raw socket that misbehaves to order, and keeps its own count of what it billed.

A behaviour is a function that gets the connection and the request; a script is one behaviour for
each request, the last one for all further ones.
"""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "Behaviour",
    "Connection",
    "FaultServer",
    "Received",
    "answer",
    "close_after",
    "drip",
    "hang",
    "raw",
    "reset",
    "status",
]

_PATIENCE = 20.0


@dataclass(frozen=True)
class Received:
    """One request as it came in whole."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def item(self) -> dict[str, Any]:
        """The one input of the contract."""
        (item,) = json.loads(self.body)["inputs"]
        return item

    @property
    def image(self) -> bytes:
        """The image file, decoded."""
        return base64.b64decode(self.item["image_url"], validate=True)


@dataclass
class Connection:
    """One client's connection, for a behaviour to use or misuse."""

    socket: socket.socket
    server: FaultServer

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(
        self, code: int, body: bytes, headers: Mapping[str, str] | None = None, *, billed: bool
    ) -> None:
        """Send a whole, well-formed reply."""
        if billed:
            self.server.count_billed()
        fields = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.send(f"HTTP/1.1 {code} Whatever\r\n{head}\r\n".encode() + body)

    def wait_until_closed(self, seconds: float) -> None:
        """Wait until the client closes the connection, the server stops, or the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.server.stopping.is_set():
            if select.select([self.socket], [], [], 0.02)[0]:
                return

    def abort(self) -> None:
        """Close with a reset instead of a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Behaviour: TypeAlias = Callable[[Connection, Received], None]


def prediction(text: str) -> bytes:
    """The body of a 200."""
    return json.dumps({"predictions": [{"description": text}]}, ensure_ascii=False).encode()


def answer(text: str | None = None, *, headers: Mapping[str, str] | None = None) -> Behaviour:
    """Answer as the contract says; without a text the question comes back."""

    def behave(connection: Connection, request: Received) -> None:
        words = f"You asked: {request.item['text']}" if text is None else text
        connection.reply(200, prediction(words), headers, billed=True)

    return behave


def status(
    code: int, detail: object = "no", *, headers: Mapping[str, str] | None = None
) -> Behaviour:
    """Answer an error in the contract's form; a 502 or 504 may hide a billed prediction."""

    def behave(connection: Connection, request: Received) -> None:
        body = detail if isinstance(detail, bytes) else json.dumps({"detail": detail}).encode()
        connection.reply(code, body, headers, billed=code in {502, 504})

    return behave


def raw(data: bytes, *, billed: bool = False, then: str = "close") -> Behaviour:
    """Send exactly these bytes, then close, reset, or keep the connection."""

    def behave(connection: Connection, request: Received) -> None:
        if billed:
            connection.server.count_billed()
        connection.send(data)
        if then == "close":
            connection.socket.close()
        elif then == "reset":
            connection.abort()

    return behave


def reset(*, billed: bool = True) -> Behaviour:
    """Take the whole request, then reset the connection without a word."""

    def behave(connection: Connection, request: Received) -> None:
        if billed:
            connection.server.count_billed()
        connection.abort()

    return behave


def hang(seconds: float = _PATIENCE) -> Behaviour:
    """Take the request and say nothing, until the client or the server gives up."""

    def behave(connection: Connection, request: Received) -> None:
        connection.server.count_billed()
        connection.wait_until_closed(seconds)
        connection.socket.close()

    return behave


def drip(data: bytes, *, every: float = 0.05) -> Behaviour:
    """Send a reply byte by byte."""

    def behave(connection: Connection, request: Received) -> None:
        connection.server.count_billed()
        for byte in data:
            if connection.server.stopping.wait(every):
                break
            connection.send(bytes([byte]))
        connection.socket.close()

    return behave


def close_after(behaviour: Behaviour) -> Behaviour:
    """Behave, then close the kept-alive connection although nothing said so."""

    def behave(connection: Connection, request: Received) -> None:
        behaviour(connection, request)
        connection.socket.close()

    return behave


class FaultServer:
    """Runs a script on a free port of 127.0.0.1, one thread a connection."""

    def __init__(
        self, *script: Behaviour, before_body: Callable[[Connection], None] | None = None
    ) -> None:
        """Make a server that is not started yet.

        Args:
            *script: A behaviour for each request, the last one for all further ones.
            before_body: What to do with a connection when a head has come, instead of reading on.
        """
        self.script: list[Behaviour] = list(script) or [answer()]
        self._before_body = before_body
        self.requests: list[Received] = []
        self.billed = 0
        self.connections = 0
        self.open_connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultServer]:
        """Serve for the length of a `with` block."""
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stopping.set()
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            with self._lock:
                for client in self._sockets:
                    with contextlib.suppress(OSError):
                        client.shutdown(socket.SHUT_RDWR)
            thread.join(_PATIENCE)
            self.wait_until_idle()

    def count_billed(self) -> None:
        with self._lock:
            self.billed += 1

    def wait_for_requests(self, count: int) -> None:
        """Wait until so many requests have come."""
        end = time.monotonic() + _PATIENCE
        while len(self.requests) < count:
            assert time.monotonic() < end, f"only {len(self.requests)} requests came"
            time.sleep(0.002)

    def wait_until_idle(self) -> None:
        """Wait until every client has closed its connections."""
        end = time.monotonic() + _PATIENCE
        while self.open_connections:
            assert time.monotonic() < end, f"{self.open_connections} connections are still open"
            time.sleep(0.005)

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self.open_connections += 1
                self._sockets.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        connection = Connection(client, self)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError, ValueError):
                while (request := self._next(connection)) is not None:
                    self._behave(connection, request)
        finally:
            with self._lock:
                self._sockets.discard(client)
                self.open_connections -= 1
            client.close()

    def _next(self, connection: Connection) -> Received | None:
        head = _read_head(connection.socket)
        if head is None or self._before_body is None:
            return head and _read_request(connection.socket, *head)
        self._before_body(connection)
        return None

    def _behave(self, connection: Connection, request: Received) -> None:
        with self._lock:
            self.requests.append(request)
            behaviour = self.script[min(len(self.requests), len(self.script)) - 1]
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            behaviour(connection, request)
        finally:
            with self._lock:
                self.in_flight -= 1


def _read_head(client: socket.socket) -> tuple[bytes, bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def _read_request(client: socket.socket, head: bytes, body: bytes) -> Received | None:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    pieces = [body]
    missing = int(headers.get("content-length", "0")) - len(body)
    while missing > 0:
        piece = client.recv(min(missing, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        missing -= len(piece)
    return Received(method, path, headers, b"".join(pieces))
