"""Opening an image URL that anyone may have written: public addresses only, little, and soon.

Connections are opened in one place, and that place dials nothing but addresses it has just
checked: no name is left to be looked up a second time, with another result.
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
"""The largest file that is fetched, in bytes."""

MAX_FETCH_SECONDS = 20.0
"""How long a fetch may take, from looking up the name to the last byte, redirects included."""

MAX_REDIRECTS = 3

_CONNECT_SECONDS = 5.0  # for each address: the next one may answer
_GLANCE = 0.25  # seconds after which a wait looks up whether anybody still waits for it

_OK = 200
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = (
    (b"User-Agent", f"phospho-multimodal/{__version__}".encode()),
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),  # what is never unpacked is no bomb
    (b"Connection", b"close"),
)
# A comment ends at its first "-->": if it could go on, trying would never end.
_WEB_PAGE = re.compile(
    rb"(?is)\s*(<!--((?!-->).)*-->\s*)*<(!doctype\s+html|html|head|body)\b",
)

Resolver: TypeAlias = Callable[[str, int], Sequence[str]]
"""From a name and a port to addresses; raises OSError if there are none."""


def fetch_image(
    url: str, *, deadline: float | None = None, given_up: Callable[[], bool] = lambda: False
) -> bytes:
    """Get the image that a URL leads to, if it is public. It blocks: that is work for a thread.

    Args:
        url: Whoever wrote it.
        deadline: On the monotonic clock; it can only shorten the 20 seconds.
        given_up: Asked while waiting; once it says yes, the fetch ends.

    Returns:
        The file, at most 20 MB, of which only the type was looked at.

    Raises:
        ImageError: The URL may not be opened, or there is no image behind it. Of the URL it tells
            the origin alone.
    """
    return _FETCHER.fetch(url, deadline=deadline, given_up=given_up)


class Fetcher:
    """Follows URLs to images.

    Both its seams lie below the guard: what a resolver says is checked, and a network is given
    nothing but checked addresses.
    """

    def __init__(
        self, *, resolve: Resolver | None = None, network: httpcore.NetworkBackend | None = None
    ) -> None:
        """Take what a test puts in the place of the real network; no setting leads here."""
        self._resolve = resolve or _look_up
        self._network = network or httpcore.SyncBackend()

    def fetch(self, url: str, *, deadline: float | None, given_up: Callable[[], bool]) -> bytes:
        """Get the image that a URL leads to; see `fetch_image`."""
        patience = _Patience(deadline, given_up)
        place = Place.of(url)
        for _ in range(MAX_REDIRECTS + 1):
            found = self._get(place, patience)
            if isinstance(found, bytes):
                return found
            place = found
        reason = f"there are more than {MAX_REDIRECTS} redirects on the way"
        raise place.refused(reason)

    def _get(self, place: Place, patience: _Patience) -> bytes | Place:
        """Ask once; a redirect is returned, not followed."""
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
            reason = "the answer broke off, or is not HTTP"
        raise place.refused(reason)


class _Patience:
    """How long one fetch may take, and whether anybody still waits for it."""

    def __init__(self, deadline: float | None, given_up: Callable[[], bool]) -> None:
        now = time.monotonic()
        self._end = now + MAX_FETCH_SECONDS if deadline is None else deadline
        self._end = min(self._end, now + MAX_FETCH_SECONDS)
        self._given_up = given_up
        self.seconds = max(0.0, self._end - now)

    def left(self, longest: float = MAX_FETCH_SECONDS) -> float:
        """Tell for how many seconds to wait now; a TimeoutError if for none."""
        with contextlib.suppress(RuntimeError):  # raised where this is no thread of anyio's
            anyio.from_thread.check_cancelled()
        left = self._end - time.monotonic()
        if left <= 0 or self._given_up():
            raise TimeoutError
        return min(left, longest)


class _GuardedNetwork(httpcore.NetworkBackend):
    """The one place where connections are opened."""

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
        """Dial the addresses of a host in turn, if every one of them is public."""
        del timeout, local_address, socket_options  # a fetch has one clock, its own
        addresses = [host] if is_address(host) else self._addresses(host, port)
        # One private address is enough: who mixes it in wants it dialled. And a name that leads
        # inside gets the words of one that leads nowhere, or inside names could be found out.
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
        """Look up a name, once. On a thread: the system's resolver knows no timeout."""
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
    """A connection whose every wait ends with the fetch: one that drips is late all the same."""

    def __init__(self, stream: httpcore.NetworkStream, patience: _Patience) -> None:
        self._stream = stream
        self._patience = patience

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Wait for bytes, and look up in between."""
        del timeout
        while True:
            with contextlib.suppress(httpcore.ReadTimeout):
                return self._stream.read(max_bytes, self._patience.left(_GLANCE))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Hand over bytes."""
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
        """Shake hands; the certificate has to be the host's, whichever address was dialled."""
        del timeout
        left = self._patience.left()
        stream = self._stream.start_tls(ssl_context, server_hostname, left)
        return _PatientStream(stream, self._patience)

    def get_extra_info(self, info: str) -> Any:
        """Tell something about the connection."""
        return self._stream.get_extra_info(info)


def _read(response: httpcore.Response, place: Place) -> bytes | Place:
    """Take an answer: the file, or the next place to ask."""
    headers = {name.lower(): value for name, value in response.headers}
    if response.status in _REDIRECTS:
        return place.redirected(headers.get(b"location", b""))
    if response.status != _OK:
        reason = f"the answer is a {response.status}"
        raise place.refused(reason)
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        reason = "it comes compressed, which was not asked for"
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
        reason = f"the answer is {_words_for(start)}, not an image"
        raise place.refused(reason)
    return bytes(data)


def _words_for(start: bytes) -> str:
    """Name what came instead of an image."""
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
    """Load the CA certificates once. A client's `verify=` is about its endpoint, not about this."""
    del environment  # only tells apart what httpx reads from it
    return httpx.create_ssl_context()


_FETCHER = Fetcher()
