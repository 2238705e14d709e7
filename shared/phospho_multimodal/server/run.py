"""Running the application with uvicorn: the address, timeouts, and several processes."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server.app import create_app
from phospho_multimodal.server.engines import load_engine

__all__ = ["TimeoutProtocol", "base_url", "bind", "in_background", "make_app", "run", "run_workers"]

_KEEP_ALIVE = 75  # seconds, as common proxies do: longer than our clients keep a connection
_GRACE = 30  # seconds for the requests in progress when the server stops
_WORKER_START = 120  # seconds after which uvicorn replaces a process that does not respond
_START = 30.0  # seconds for a server in the background to start


class TimeoutProtocol(H11Protocol):
    """uvicorn's protocol with a limit for how long it waits for a client.

    uvicorn waits forever for the rest of a request's head, for the rest of a body that was already
    answered, and for a client that does not read its response. Each of them would keep a
    connection until the process has no file descriptors left.
    """

    max_wait: ClassVar[float] = 60.0
    """Seconds."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once a request is complete."""
        super().data_received(data)
        if not getattr(self.cycle, "response_complete", True):
            self._stop_waiting()
        elif self._end is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client never read the last response."""
        super().timeout_keep_alive_handler()
        self.transport.abort()

    def _wait(self) -> None:
        self._end = self.loop.call_later(self.max_wait, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


def bind(host: str, port: int, *, api_key: str | None) -> socket.socket:
    """Bind the address to listen on; port 0 takes any free one.

    Raises:
        ConfigurationError: The address needs a key, or is taken.
    """
    if api_key is None and not _is_loopback(host):
        message = (
            f"{host} can be reached from other machines, so the server needs a key there: give"
            " --api-key, or set PHOSPHO_SERVER_API_KEY, or bind to 127.0.0.1."
        )
        raise ConfigurationError(message)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as refused:
        message = f"Cannot listen on {host}, port {port}: {refused}. Choose another with --port."
        raise ConfigurationError(message) from refused
    # Connections inherit it. Without it, a body waits up to 40 ms until its head is acknowledged.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # the address of any other name can change


def base_url(listener: socket.socket) -> str:
    """Give the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_app(engine: str, engine_options: Mapping[str, Any], **options: Any) -> FastAPI:
    """Create an application from values that can be pickled, which an engine cannot."""
    return create_app(load_engine(engine, **engine_options), **options)


def run(app: FastAPI, listener: socket.socket, *, access_log: bool = True) -> None:
    """Serve until a signal stops the process, and finish the requests in progress."""
    # uvicorn raises the signal again after its shutdown, for the previous handler. Python's handler
    # of SIGTERM kills the process, so an orderly end would look like a failure.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(_config(app, access_log=access_log)).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_workers(
    make: Callable[[], FastAPI], listener: socket.socket, *, count: int, access_log: bool = True
) -> None:
    """Serve with several processes, which uvicorn supervises, until a signal stops this process.

    Args:
        make: Creates the application in each process. It must be picklable.
        listener: The socket that all processes listen on.
        count: The number of processes.
        access_log: Whether uvicorn writes its own access log.

    Raises:
        ConfigurationError: A process did not start.
    """
    config = _config(
        make,
        factory=True,
        workers=count,
        timeout_worker_healthcheck=_WORKER_START,
        access_log=access_log,
    )
    with tempfile.TemporaryDirectory(prefix="phospho-metrics-") as folder:
        # prometheus-client reads it in the new processes, when they import it.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            supervisor = _Supervisor(config, [listener])
            supervisor.run()
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        message = "A worker process did not start. The log above says why."
        raise ConfigurationError(message)


class _Supervisor(Multiprocess):
    def keep_subprocess_alive(self) -> None:
        """Replace dead processes, and forget the requests that they had in flight."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid, os.environ["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def in_background(app: FastAPI) -> Iterator[str]:
    """Serve on a free port of the loopback, in a thread, and yield the base URL."""
    listener = bind("127.0.0.1", 0, api_key=None)
    server = uvicorn.Server(_config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                message = "The server did not start. Its log says why."
                raise ConfigurationError(message)
            time.sleep(0.01)
        yield base_url(listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _config(app: FastAPI | Callable[[], FastAPI], **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # Not the parser that happens to be installed: it accepts requests that h11 rejects.
        http=TimeoutProtocol,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_GRACE,
        ws="none",
        server_header=False,
        **options,
    )
