"""Several processes behind one address, and one that watches over them."""

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import SpawnProcess
from typing import Any

from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead

from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server.app import create_app
from phospho_multimodal.server.engines import load_engine
from phospho_multimodal.server.run import run

__all__ = ["application", "run_workers"]

_TOO_SOON = 5.0  # seconds; who ends earlier than that would end again

_SPAWN = multiprocessing.get_context("spawn")


def application(engine: str, engine_options: Mapping[str, Any], **options: Any) -> FastAPI:
    """Make an application from what pickles: an engine itself does not.

    Args:
        engine: The engine's name.
        engine_options: The engine's own options.
        **options: Keywords of `create_app`.

    Returns:
        The application.

    Raises:
        ConfigurationError: The engine cannot be made, or reports that it can never answer.
    """
    made = load_engine(engine, **engine_options)
    check = getattr(made, "check", None)
    if check is not None:
        asyncio.run(check())
    return create_app(made, **options)


def run_workers(
    make: Callable[[], FastAPI], listener: socket.socket, *, count: int, access_log: bool = True
) -> None:
    """Serve with several processes until told to stop by a signal.

    Each finishes what it is answering first. One that dies is replaced.

    Args:
        make: Makes the application, in each process anew; it has to pickle.
        listener: Where all of them listen.
        count: How many processes.
        access_log: Whether uvicorn writes its own access log.

    Raises:
        ConfigurationError: A process ended as soon as it had begun; its log says why.
    """
    stop, told = _SPAWN.Pipe(duplex=False), threading.Event()

    def tell(*_: object) -> None:
        told.set()
        with contextlib.suppress(OSError):
            stop[1].send(None)

    previous = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    workers: dict[SpawnProcess, float] = {}

    def start() -> None:
        worker = _SPAWN.Process(target=_work, args=(make, listener, access_log))
        worker.start()
        workers[worker] = time.monotonic()

    try:
        with _shared_counts() as forget:
            for _ in range(count):
                start()
            while not told.is_set():
                sentinels = [worker.sentinel for worker in workers]
                multiprocessing.connection.wait([stop[0], *sentinels])
                for worker in [each for each in workers if not each.is_alive()]:
                    lived = time.monotonic() - workers.pop(worker)
                    forget(worker.pid or 0)
                    if told.is_set():
                        continue
                    if lived < _TOO_SOON:
                        message = "A worker process ended at once; its log, above, says why."
                        raise ConfigurationError(message)
                    start()
            _end(workers)
    finally:
        _end(workers)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end(workers: dict[SpawnProcess, float]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.terminate()
    for worker in workers:
        worker.join()


def _work(make: Callable[[], FastAPI], listener: socket.socket, access_log: bool) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        app = make()
    except (ConfigurationError, ImportError) as failure:
        raise SystemExit(str(failure)) from None  # its text on stderr, as of a single process
    run(app, listener, access_log=access_log)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _shared_counts() -> Iterator[Callable[[int], None]]:
    """Give the processes a folder for their counts, which `/metrics` adds up.

    Yields:
        What to call with the number of a process that is gone: it has nothing in flight.
    """
    with tempfile.TemporaryDirectory(prefix="phospho-metrics-") as folder:
        # prometheus-client looks at it as it is imported: in the processes that begin now.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            yield lambda pid: _forget(pid, folder)
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


def _forget(pid: int, folder: str) -> None:
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
