"""Running the application: the address it may bind to, and uvicorn's settings."""

import contextlib
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server.connections import ImpatientProtocol

__all__ = ["base_url", "bind", "in_background", "run"]

_KEEP_ALIVE = 75  # seconds, as common proxies do: longer than our clients keep a connection
_GRACE = 30  # seconds for the requests at work when the server is told to stop
_START = 30.0  # seconds for a server in the background to come up


def bind(host: str, port: int, *, api_key: str | None) -> socket.socket:
    """Take the address to listen on.

    Args:
        host: A name or an address.
        port: A port, or 0 for any free one.
        api_key: The key the server will ask for.

    Returns:
        The bound socket.

    Raises:
        ConfigurationError: The address is not on the loopback and there is no key, or it is taken.
    """
    if api_key is None and not _is_loopback(host):
        message = (
            f"{host} can be reached from other machines, so the server needs a key there: give"
            " --api-key, or set PHOSPHO_SERVER_API_KEY, or bind to 127.0.0.1."
        )
        raise ConfigurationError(message)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as refused:
        message = f"Cannot listen on {host}, port {port}: {refused}. Choose another with --port."
        raise ConfigurationError(message) from refused


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name can come to mean anything


def base_url(listener: socket.socket) -> str:
    """Tell the address of a bound socket as clients write it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listener: socket.socket, *, access_log: bool = True) -> None:
    """Serve until told to stop by a signal; what is being answered then is finished first.

    Args:
        app: The application.
        listener: Where to listen; closed in the end.
        access_log: Whether uvicorn writes its own access log.
    """
    # uvicorn raises the signal again once it has shut down, for the handler that was there before.
    # Python's own for SIGTERM kills the process, and an orderly end would look like a failure.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _server(app, access_log=access_log).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def in_background(app: FastAPI) -> Iterator[str]:
    """Serve on a free port of the loopback, on a thread, for the length of a `with` block.

    Args:
        app: The application.

    Yields:
        The base URL.
    """
    listener = bind("127.0.0.1", 0, api_key=None)
    server = _server(app, log_config=None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                message = "The server did not start; its log says why."
                raise ConfigurationError(message)
            time.sleep(0.01)
        yield base_url(listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _server(app: FastAPI, **options: Any) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        # Not what happens to be installed: the other parser takes requests that this one refuses.
        http=ImpatientProtocol,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_GRACE,
        ws="none",
        server_header=False,
        **options,
    )
    return uvicorn.Server(config)
