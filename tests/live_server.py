"""A real uvicorn on a loopback socket, for the length of a `with` block."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

_PATIENCE = 20.0  # a busy runner takes its time; a healthy one starts in milliseconds


@contextlib.contextmanager
def serve(app: Any, **options: Any) -> Iterator[str]:
    """Serve an ASGI app on a free port of 127.0.0.1.

    Args:
        app: Any ASGI application; the lifespan protocol is optional.
        **options: Keywords of `uvicorn.Config` that differ from the ones chosen here.

    Yields:
        The base URL, without a slash at its end. Connections are accepted from the start.
    """
    settings = {
        "http": "h11",
        "ws": "none",  # the websockets package warns on import, and warnings are errors here
        "log_config": None,  # uvicorn's own would take the root logger away from caplog
        "access_log": False,
        "timeout_graceful_shutdown": 2,
        **options,
    }
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    # Bound here: no other process can take the port between choosing it and listening on it.
    listener = socket.socket(
        socket.AF_INET,
        socket.SOCK_STREAM,
        socket.IPPROTO_TCP,  # named, or asyncio leaves Nagle's 40 ms in every answer
    )
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        _wait_until_started(server, thread)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(_PATIENCE)
        listener.close()


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            message = "uvicorn did not start; its log says why"
            raise RuntimeError(message)
        time.sleep(0.005)
