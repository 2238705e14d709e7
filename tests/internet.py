"""A make-believe internet: public names and addresses, and one server on the loopback behind all.

It takes the place of the network below the fetcher's guard, so it sees every address that the
guard lets through, and nothing that the guard stops.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore
import pytest
from fetch_corpus import NAMES

from fault_server import Behaviour, Connection, FaultServer, Received
from phospho_multimodal.images import safe_fetch as fetch
from phospho_multimodal.images.safe_fetch import Fetcher

__all__ = ["Internet", "Witness", "picture", "redirect", "resolve"]


def resolve(host: str, port: int) -> list[str]:
    """Look up a name of the corpus; what is no name is read as the system's resolver reads it."""
    if host in NAMES:
        if not NAMES[host]:
            message = "Name or service not known"
            raise socket.gaierror(socket.EAI_NONAME, message)
        return list(NAMES[host])
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [str(address[0]) for *_, address in found]


class Internet(httpcore.NetworkBackend):
    """One server behind every address; without one, nobody answers."""

    def __init__(
        self,
        server: FaultServer | None = None,
        *,
        refusing: Sequence[str] = (),
        silent: Sequence[str] = (),
    ) -> None:
        self.server = server
        self.dialled: list[tuple[str, int]] = []
        self.handshakes: list[tuple[str | None, ssl.SSLContext]] = []
        self._refusing = refusing
        self._silent = silent
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        self.dialled.append((host, port))
        if self.server is None or host in self._refusing:
            message = "nobody there"
            raise httpcore.ConnectError(message)
        if host in self._silent:
            raise httpcore.ConnectTimeout
        return _Stream(self._sockets.connect_tcp("127.0.0.1", self.server.port, timeout), self)

    @property
    def requests(self) -> list[Received]:
        """What was asked."""
        return [] if self.server is None else self.server.requests

    @property
    def addresses(self) -> list[str]:
        """What was dialled, without ports."""
        return [address for address, _ in self.dialled]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Internet:
        """Let all fetches of this process go here."""
        monkeypatch.setattr(fetch, "_FETCHER", Fetcher(resolve=resolve, network=self))
        return self


class _Stream(httpcore.NetworkStream):
    """A connection on which TLS is only played: who shakes hands with whom is noted."""

    def __init__(self, stream: httpcore.NetworkStream, internet: Internet) -> None:
        self._stream = stream
        self._internet = internet

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        self._internet.handshakes.append((server_hostname, ssl_context))
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Witness:
    """A socket that listens on 127.0.0.1 and counts who comes."""

    def __init__(self) -> None:
        self.came = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.came += 1
            client.close()


def picture(data: bytes, *headers: str) -> Behaviour:
    """Answer with a file."""

    def behave(connection: Connection, request: Received) -> None:
        head = "".join(f"{header}\r\n" for header in headers)
        length = f"Content-Length: {len(data)}\r\n"
        connection.send(f"HTTP/1.1 200 OK\r\n{length}{head}\r\n".encode() + data)

    return behave


def redirect(location: str, code: int = 302) -> Behaviour:
    """Answer with another address."""

    def behave(connection: Connection, request: Received) -> None:
        head = f"HTTP/1.1 {code} Elsewhere\r\nContent-Length: 0\r\nSet-Cookie: a=b\r\n"
        connection.send(f"{head}Location: {location}\r\n\r\n".encode())

    return behave
