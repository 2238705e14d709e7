"""Fetch an image from an untrusted URL, with limits on addresses, size and time.

Only `_GuardedNetwork` opens connections. It resolves a name once, checks the addresses and connects
to those same addresses, so that DNS rebinding cannot replace them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import anyio.from_thread
import httpcore
import httpx

from phospho_multimodal._version import __version__
from phospho_multimodal.images.inspect import sniff
from phospho_multimodal.images.url_policy import Place, is_address, is_public

__all__ = ["MAX_FETCH_BYTES", "MAX_FETCH_SECONDS", "MAX_REDIRECTS", "Fetcher", "fetch_image"]

MAX_FETCH_BYTES = 20 * 1024 * 1024
"""The size limit of a fetched file, in bytes."""

MAX_FETCH_SECONDS = 20.0
"""The time limit of a fetch, from the DNS lookup to the last byte, redirects included."""

MAX_REDIRECTS = 3

_CONNECT_SECONDS = 5.0  # for each address, so that the next one gets its turn
_GLANCE = 0.25  # seconds between two checks for cancellation

_OK = 200
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = (
    (b"User-Agent", f"phospho-multimodal/{__version__}".encode()),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),  # so that nothing can be a decompression bomb
    (b"Connection", b"close"),
)
# A comment ends at its first "-->". Otherwise matching would take exponential time.
_WEB_PAGE = re.compile(
    rb"(?is)\s*(<!--((?!-->).)*-->\s*)*<(!doctype\s+html|html|head|body)\b",
)

Resolver: TypeAlias = Callable[[str, int], Sequence[str]]
"""Resolves a name and a port to addresses, or raises OSError."""


def fetch_image(
    url: str, *, deadline: float | None = None, given_up: Callable[[], bool] = lambda: False
) -> bytes:
    """Fetch the image behind a public URL. This blocks, so call it in a thread.

    Args:
        url: The URL, which may come from an attacker.
        deadline: A time on the monotonic clock. It can only shorten the 20 seconds.
        given_up: A function that returns true to cancel the fetch.

    Returns:
        The file, at most 20 MB. Only its type was checked.

    Raises:
        ImageError: The URL must not be opened, or there is no image behind it. The message names
            only the origin of the URL.
    """
    return _FETCHER.fetch(url, deadline=deadline, given_up=given_up)


class Fetcher:
    """Fetches images from URLs.

    Tests can replace the resolver and the network. Both lie below the address check.
    """

    def __init__(
        self, *, resolve: Resolver | None = None, network: httpcore.NetworkBackend | None = None
    ) -> None:
        """Use the system's resolver and plain sockets unless a test passes others."""
        self._resolve = resolve or _look_up
        self._network = network or httpcore.SyncBackend()

    def fetch(self, url: str, *, deadline: float | None, given_up: Callable[[], bool]) -> bytes:
        """Fetch an image; see `fetch_image`."""
        patience = _Patience(deadline, given_up)
        place = Place.of(url)
        for _ in range(MAX_REDIRECTS + 1):
            found = self._get(place, patience)
            if isinstance(found, bytes):
                return found
            place = found
        reason = f"there are more than {MAX_REDIRECTS} redirects"
        raise place.refused(reason)

    def _get(self, place: Place, patience: _Patience) -> bytes | Place:
        """Send one request; return the file, or the target of a redirect."""
        network = _GuardedNetwork(self._resolve, self._network, place, patience)
        url = httpcore.URL(
            scheme=place.scheme.encode(),
            host=place.host.encode(),
            port=place.port,
            target=place.target.encode(),
        )
        headers = [(b"Host", place.authority.encode()), *_HEADERS]
        tls = _tls_context() if place.scheme == "https" else None
        try:
            with (
                httpcore.ConnectionPool(ssl_context=tls, network_backend=network) as connections,
                connections.stream("GET", url, headers=headers) as response,
            ):
                return _read(response, place)
        except TimeoutError:
            reason = f"it took longer than {patience.seconds:.3g} s"
        except httpcore.ConnectError as failure:
            reason = f"there is no connection ({failure}), and no proxy is used for this"
        except httpcore.TimeoutException:
            reason = "there is no connection in time, and no proxy is used for this"
        except (httpcore.NetworkError, httpcore.ProtocolError):
            reason = "the response was cut off, or is not HTTP"
        raise place.refused(reason)


class _Patience:
    """The remaining time of one fetch, and whether the fetch was cancelled."""

    def __init__(self, deadline: float | None, given_up: Callable[[], bool]) -> None:
        now = time.monotonic()
        self._end = now + MAX_FETCH_SECONDS if deadline is None else deadline
        self._end = min(self._end, now + MAX_FETCH_SECONDS)
        self._given_up = given_up
        self.seconds = max(0.0, self._end - now)

    def left(self, longest: float = MAX_FETCH_SECONDS) -> float:
        """Return the seconds to wait now; raise TimeoutError if none are left."""
        with contextlib.suppress(RuntimeError):  # raised outside of a worker thread of anyio
            anyio.from_thread.check_cancelled()
        left = self._end - time.monotonic()
        if left <= 0 or self._given_up():
            raise TimeoutError
        return min(left, longest)


class _GuardedNetwork(httpcore.NetworkBackend):
    """Opens all connections, and only to public addresses."""

    def __init__(
        self,
        resolve: Resolver,
        network: httpcore.NetworkBackend,
        place: Place,
        patience: _Patience,
    ) -> None:
        self._resolve = resolve
        self._network = network
        self._place = place
        self._patience = patience

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the addresses of a host in turn, if all of them are public."""
        del timeout, local_address, socket_options  # the fetch has one deadline of its own
        addresses = [host] if is_address(host) else self._addresses(host, port)
        # One private address rejects the host, since an attacker can mix it with public ones. The
        # message is that of an unknown name, so that nobody can probe for internal names.
        if not addresses or not all(is_public(address) for address in addresses):
            reason = "its host has no address, or one that is not public"
            raise self._place.refused(reason)
        failure: Exception = TimeoutError()
        for address in addresses:
            left = self._patience.left(_CONNECT_SECONDS)
            try:
                stream = self._network.connect_tcp(address, port, timeout=left)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as refused:
                failure = refused
            else:
                return _PatientStream(stream, self._patience)
        raise failure

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        """Resolve a name once, in a thread, since the system's resolver has no timeout."""
        answers: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                answers.put(self._resolve(host, port))
            except (OSError, UnicodeError):
                answers.put(())

        threading.Thread(target=look_up, name="phospho-resolver", daemon=True).start()
        while True:
            with contextlib.suppress(queue.Empty):
                return answers.get(timeout=self._patience.left(_GLANCE))


class _PatientStream(httpcore.NetworkStream):
    """A connection whose waits end with the deadline of the fetch, also if bytes drip in."""

    def __init__(self, stream: httpcore.NetworkStream, patience: _Patience) -> None:
        self._stream = stream
        self._patience = patience

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read bytes, and check for cancellation while waiting."""
        del timeout
        while True:
            with contextlib.suppress(httpcore.ReadTimeout):
                return self._stream.read(max_bytes, self._patience.left(_GLANCE))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write bytes."""
        del timeout
        self._stream.write(buffer, self._patience.left())

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Start TLS. The certificate must be that of the host name, not of the address."""
        del timeout
        left = self._patience.left()
        stream = self._stream.start_tls(ssl_context, server_hostname, left)
        return _PatientStream(stream, self._patience)

    def get_extra_info(self, info: str) -> Any:
        """Return information about the connection."""
        return self._stream.get_extra_info(info)


def _read(response: httpcore.Response, place: Place) -> bytes | Place:
    """Read a response: the file, or the target of a redirect."""
    headers = {name.lower(): value for name, value in response.headers}
    if response.status in _REDIRECTS:
        return place.redirected(headers.get(b"location", b""))
    if response.status != _OK:
        reason = f"the response has status {response.status}"
        raise place.refused(reason)
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        reason = "the response is compressed, which was not requested"
        raise place.refused(reason)
    announced = int(headers.get(b"content-length", b"0"))
    data = bytearray()
    if announced <= MAX_FETCH_BYTES:
        for piece in response.iter_stream():
            data += piece
            if len(data) > MAX_FETCH_BYTES:
                break
    if max(announced, len(data)) > MAX_FETCH_BYTES:
        reason = f"it has more than {MAX_FETCH_BYTES:,} bytes"
        raise place.refused(reason)
    start = bytes(data[:4096])
    if sniff(start) in {None, "text"}:
        reason = f"the response is {_words_for(start)}, not an image"
        raise place.refused(reason)
    return bytes(data)


def _words_for(start: bytes) -> str:
    """Name the content that came instead of an image."""
    if not start:
        return "empty"
    if _WEB_PAGE.match(start):
        return "a web page"
    return "of an unknown type" if sniff(start) is None else "text"


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _tls_context() -> ssl.SSLContext:
    return _shared_tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=2)
def _shared_tls_context(*environment: str | None) -> ssl.SSLContext:
    """Load the CA certificates once. The `verify=` of a client is only for its endpoint."""
    del environment  # only the key of the cache: httpx reads the variables itself
    return httpx.create_ssl_context()


_FETCHER = Fetcher()
