"""httpx's transports with one connection each: to the endpoint itself, or through a proxy."""

from __future__ import annotations

import os
import ssl
import urllib.request
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, cast

import httpx

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.settings import Settings, checked_proxy, is_loopback

__all__ = [
    "IDLE_SECONDS",
    "async_connection_maker",
    "connection_maker",
    "has_more",
    "is_usable",
]

IDLE_SECONDS = 4.0
"""A kept-alive connection is dropped after this: servers close theirs from 5 s on, and a request
sent into a closing connection is a lost reply."""

_ONE_CONNECTION = httpx.Limits(
    max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE_SECONDS
)


class _Direct(httpx.HTTPTransport):
    """One connection in place of a pool, which has no choice to make and takes a while to make it.

    httpx hands requests to whatever is its `_pool`, and has no argument for that.
    """

    def __init__(self, url: httpx.URL, tls: ssl.SSLContext) -> None:
        import httpcore  # noqa: PLC0415 - with the first connection, as httpx does

        from phospho_multimodal.transport.socket_network import SocketNetwork  # noqa: PLC0415 - as above

        self._pool = cast(
            "Any",
            httpcore.HTTPConnection(
                _origin(url),
                ssl_context=tls,
                keepalive_expiry=IDLE_SECONDS,
                network_backend=SocketNetwork() if url.scheme == "http" else None,
            ),
        )


class _AsyncDirect(httpx.AsyncHTTPTransport):
    """The same with await."""

    def __init__(self, url: httpx.URL, tls: ssl.SSLContext) -> None:
        from phospho_multimodal.transport.asyncio_network import AsyncConnection  # noqa: PLC0415 - as above

        self._pool = cast("Any", AsyncConnection(_origin(url), tls, IDLE_SECONDS))


def connection_maker(settings: Settings) -> Callable[[], httpx.HTTPTransport]:
    """Make a maker of connections, with the TLS context shared by them all.

    Args:
        settings: Of the client.

    Returns:
        It makes a transport of one connection, not yet opened.

    Raises:
        ConfigurationError: There is no such CA file, or the proxy cannot be used.
    """
    tls, proxy = _tls_context(settings.verify), _proxy(settings)
    if proxy is None:
        return partial(_Direct, httpx.URL(settings.base_url), tls)
    return partial(httpx.HTTPTransport, verify=tls, limits=_ONE_CONNECTION, proxy=proxy)


def async_connection_maker(settings: Settings) -> Callable[[], httpx.AsyncHTTPTransport]:
    """Make the twin of `connection_maker`'s, whose maker is called on the event loop."""
    tls, proxy = _tls_context(settings.verify), _proxy(settings)
    if proxy is None:
        return partial(_AsyncDirect, httpx.URL(settings.base_url), tls)
    return partial(httpx.AsyncHTTPTransport, verify=tls, limits=_ONE_CONNECTION, proxy=proxy)


def is_usable(transport: httpx.BaseTransport | httpx.AsyncBaseTransport) -> bool:
    """Tell whether an idle connection can take another request: a proxy's sees to that itself."""
    if not isinstance(transport, (_Direct, _AsyncDirect)):
        return True
    connection: Any = transport._pool  # noqa: SLF001 - made above
    return bool(connection.is_available() and not connection.has_expired())


def has_more(transport: httpx.BaseTransport | httpx.AsyncBaseTransport) -> bool:
    """Tell whether something came after an answer, which would be taken for the next one.

    httpcore looks for it at the socket, but what came in the same piece has been read already. It
    waits in the parser, to which there is no public way: past the connection, and those that a
    proxy wraps around it.
    """
    outer = getattr(transport, "_pool", None)
    for connection in getattr(outer, "connections", (outer,)):
        inner = connection
        while (below := getattr(inner, "_connection", None)) is not None:
            inner = below
        parser = getattr(inner, "_h11_state", None)
        if parser is not None and parser.trailing_data[0]:
            return True
    return False


def _origin(url: httpx.URL) -> Any:
    import httpcore  # noqa: PLC0415 - as above

    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/").origin


def _tls_context(verify: bool | str | ssl.SSLContext) -> ssl.SSLContext:
    if isinstance(verify, ssl.SSLContext):
        return verify
    environment = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    return _shared_tls_context(verify, environment)


@lru_cache(maxsize=8)
def _shared_tls_context(
    verify: bool | str,
    environment: tuple[str | None, str | None],
) -> ssl.SSLContext:
    """Load the CA certificates once: it takes 30 ms, and a context serves any number of clients."""
    del environment  # only tells apart what httpx reads from it
    if isinstance(verify, bool):
        return httpx.create_ssl_context(verify=verify)
    try:
        if os.path.isdir(verify):  # noqa: PTH112 - a CA path is a string in every TLS library
            return ssl.create_default_context(capath=verify)
        return ssl.create_default_context(cafile=verify)
    except OSError as failure:
        message = f"verify={verify!r} is no CA file or folder that can be read: {failure}."
        raise ConfigurationError(message) from None


def _proxy(settings: Settings) -> str | None:
    """The proxy for the base URL: the argument's or the environment's, and none to the loopback."""
    if is_loopback(settings.host):
        return None
    if settings.proxy is not None or urllib.request.proxy_bypass(settings.host):
        return settings.proxy
    proxies = urllib.request.getproxies()
    proxy = proxies.get(settings.base_url.split(":", 1)[0]) or proxies.get("all")
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    return checked_proxy(proxy)
