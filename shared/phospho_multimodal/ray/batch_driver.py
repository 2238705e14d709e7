"""A batch over a Ray cluster: its inputs go out in datasets, one after the other.

Each dataset is small enough for Ray to hold, and so large that the start of its workers does not
matter. The coordinator writes the results into the job's own journal. So the rows, the manifest and
the resuming are the same as on one machine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.pipeline.adaptive_concurrency import AUTO_CEILING
from phospho_multimodal.batch.pipeline.preparation import Preparation
from phospho_multimodal.batch.pipeline.progress import ProgressReporter
from phospho_multimodal.batch.pipeline.stop_signal import StopSignal
from phospho_multimodal.batch.results.rows import Results
from phospho_multimodal.batch.sources.items import Item
from phospho_multimodal.batch.sources.remote import RemoteFile
from phospho_multimodal.batch.sources.select import Source
from phospho_multimodal.errors import ConfigurationError, PhosphoError
from phospho_multimodal.images.source import image_source
from phospho_multimodal.ray.accounts import (
    Accounts,
    call_from_driver,
    end,
    start,
    to_phospho_error,
)
from phospho_multimodal.ray.describe_images import map_with_workers
from phospho_multimodal.ray.worker import Worker
from phospho_multimodal.settings import Settings
from phospho_multimodal.spending.budget import Spending

__all__ = ["BatchDriver", "connect"]

_WINDOW_ROWS = 10_000
_WINDOW_BYTES = 256 * 1024 * 1024
_BLOCK_ROWS = 64
_BLOCK_BYTES = 16 * 1024 * 1024
_PATIENCE = 5.0  # seconds, for a cluster to answer
_TICK = 0.25
_PARTS_EVERY = 4  # ticks


def connect(address: str) -> Callable[[], None]:
    """Connect to a cluster unless this process is connected; return what disconnects again."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    is_ours = not ray.is_initialized()

    def disconnect() -> None:
        if is_ours:
            ray.shutdown()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # the batch reports errors itself
    try:
        if is_ours:
            _check_reachable(address)
            quiet = {"log_to_driver": False, "configure_logging": False}
            ray.init(address=address, logging_level=logging.CRITICAL, **quiet)
    except (OSError, RuntimeError, ValueError) as failure:
        disconnect()
        message = f"There is no Ray cluster at {address!r}: {failure}. Nothing was sent."
        raise ConfigurationError(message) from None
    return disconnect


def _check_reachable(address: str) -> None:
    """Open a connection, because Ray itself would wait for minutes."""
    if address.startswith("ray://"):
        message = "run the batch on a node of the cluster, for example as a Ray job"
        raise ValueError(message)
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


class BatchDriver:
    """One run of a batch over the cluster that this process is connected to."""

    def __init__(
        self,
        *,
        source: Source,
        journal: Journal,
        results: Results,
        job: Job,
        settings: Settings,
        spending: Spending,
        max_outage: float,
        concurrency: int | Literal["auto"],
        reporter: ProgressReporter,
        stop: StopSignal,
    ) -> None:
        """Put together what a run needs; `concurrency` is that of each worker."""
        self._preparation = Preparation(source, journal, job, settings, self._is_stopped)
        self._start = partial(start, journal, job, settings, spending, max_outage=max_outage)
        self._results = results
        self._concurrency = concurrency
        self._reporter = reporter
        self._stop = stop

    async def run(self) -> None:
        """Work until every input has its row, or until something stops the run."""
        accounts = await asyncio.to_thread(self._start)
        try:
            work = asyncio.ensure_future(asyncio.to_thread(self._describe_all, accounts))
            ticks = 0
            while not work.done():
                await asyncio.wait([work], timeout=_TICK)
                await self._report(accounts)
                ticks += 1
                if ticks % _PARTS_EVERY == 0:
                    await asyncio.to_thread(self._results.write_finished)
            await work
            await self._report(accounts, at_once=True)
        except asyncio.CancelledError:  # a second Ctrl-C does not wait
            ray.kill(accounts.actor)
            raise
        finally:
            self._stop.because(None)
            await asyncio.to_thread(end, accounts.actor)
        await asyncio.to_thread(self._results.write_finished)

    def _is_stopped(self) -> bool:
        return self._stop() is not None

    async def _report(self, accounts: Accounts, *, at_once: bool = False) -> None:
        """Pass on a reason to stop, in both directions, and report the progress."""
        reason = self._stop()
        if reason is not None:
            await asyncio.to_thread(call_from_driver, accounts.actor.stop, reason)
        state = await asyncio.to_thread(accounts.snapshot)
        if state.stopped_by is not None:
            self._stop.because(state.stopped_by)
        self._reporter.follow(state.done, state.duplicates, state.money)
        most = AUTO_CEILING if self._concurrency == "auto" else self._concurrency
        self._reporter.show(
            state.money.images_reserved,
            most * state.workers,
            at_once=at_once,
            waits_for=state.waits_for,
        )

    # --- on a thread ---------------------------------------------------------------------------

    def _describe_all(self, accounts: Accounts) -> None:
        while not self._is_stopped() and (window := self._next_window()):
            arguments = {"accounts": accounts, "concurrency": self._concurrency}
            inputs = ray.data.from_arrow_refs(window)
            described = map_with_workers(inputs, _DescribeInputs, arguments)
            described.context.enable_progress_bars = False
            try:
                for _ in described.iter_batches(batch_size=None, batch_format="pyarrow"):
                    pass  # the journal has their rows
            except ray.exceptions.RayError as failure:
                raise to_phospho_error(failure) from None

    def _next_window(self) -> list[Any]:
        """Put the next inputs without a row into Ray's object store, in blocks."""
        window: list[Any] = []
        positions: list[int] = []
        data: list[bytes] = []
        rows = size = block = 0
        while rows < _WINDOW_ROWS and size < _WINDOW_BYTES:
            inputs = self._preparation.next_inputs()
            for position, item in inputs:
                positions.append(position)
                data.append(pickle.dumps(_portable(item)))
                block += len(data[-1])
            if positions and (not inputs or len(data) >= _BLOCK_ROWS or block >= _BLOCK_BYTES):
                rows, size = rows + len(data), size + block
                cells = pa.array(data, pa.large_binary())
                window.append(ray.put(pa.table({"position": positions, "item": cells})))
                positions, data, block = [], [], 0
            if not inputs:
                break
        return window


class _DescribeInputs:
    """Describes inputs of a job; the journal has the results."""

    def __init__(self, accounts: Accounts, concurrency: int | Literal["auto"]) -> None:
        self._worker = Worker(accounts, concurrency)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()  # which the driver of this job has written
        items = [(pickle.loads(row["item"]), row["position"]) for row in rows]  # noqa: S301
        outcomes = self._worker.describe(items)
        states = pa.array([outcome.state for outcome in outcomes], pa.int8())
        return pa.table({"position": batch.column("position"), "state": states})


def _portable(item: Item) -> Item:
    """Make an item that another process can open."""
    image = item.image
    if isinstance(image, os.PathLike):
        image = Path(os.path.abspath(image))  # noqa: PTH100 - links stay as they are
    elif item.error is None and not isinstance(image, (str, RemoteFile)):
        try:
            image = image_source(image).read()
        except PhosphoError as error:
            return replace(item, image=None, error=error)
    return replace(item, image=image, fields={})
