"""A batch over a Ray cluster: its inputs go out in datasets, one after the other.

Each is small enough to be held by Ray, and large enough that the start of its workers does not
count. What the workers find out goes into the job's own journal by way of the accounts, so that
results, resuming and the manifest are those of a batch on one machine.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
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
from phospho_multimodal.batch.sources.select import Source
from phospho_multimodal.errors import ConfigurationError, PhosphoError
from phospho_multimodal.ray.accounts import (
    Accounts,
    as_ours,
    ask_actor,
    start_accounts,
    stop_accounts,
)
from phospho_multimodal.ray.actor import Limits
from phospho_multimodal.ray.describe_images import pool, rows_for
from phospho_multimodal.ray.inputs import Block, image_of, item_of
from phospho_multimodal.ray.worker import Worker
from phospho_multimodal.settings import Settings

__all__ = ["BatchJob", "connect"]

_WINDOW_ROWS = 10_000
_WINDOW_BYTES = 256 * 1024 * 1024
_PATIENCE = 5.0  # seconds, for a cluster to answer
_TICK = 0.25
_PARTS_EVERY = 4  # ticks


def connect(address: str) -> Callable[[], None]:
    """Become a driver of a cluster, and say nothing on the terminal but what goes wrong.

    Args:
        address: Of the cluster; `auto` for the one that runs on this machine. A Ray that was
            initialized before is used as it is.

    Returns:
        What undoes it.

    Raises:
        ConfigurationError: There is none.
    """
    loggers = {logging.getLogger(name): logging.NOTSET for name in ("ray", "ray.data")}
    for logger in loggers:
        loggers[logger] = logger.level
        logger.setLevel(logging.CRITICAL)  # errors are ours to tell
    begun = not ray.is_initialized()

    def leave() -> None:
        if begun:
            ray.shutdown()
        for logger, level in loggers.items():
            logger.setLevel(level)

    if begun:
        try:
            _knock(address)
            ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
            )
        except (OSError, RuntimeError, ValueError) as failure:
            leave()
            message = f"There is no Ray cluster at {address!r}: {failure}"
            raise ConfigurationError(message) from None
    return leave


def _knock(address: str) -> None:
    """Look whether anybody is there: Ray itself would wait for minutes."""
    if address.startswith("ray://"):
        message = "A batch is driven from a node of the cluster, not over ray://."
        raise ConfigurationError(message)
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


class BatchJob:
    """One run of a job over the cluster that this process is a driver of."""

    def __init__(
        self,
        *,
        source: Source,
        journal: Journal,
        results: Results,
        job: Job,
        settings: Settings,
        limits: Limits,
        concurrency: int | Literal["auto"],
        watch: ProgressReporter,
        stop: StopSignal,
    ) -> None:
        """Put together what a run needs.

        Args:
            source: The inputs.
            journal: Of the job; it is lent to the accounts meanwhile.
            results: Where rows go.
            job: What is asked.
            settings: Of the workers' clients.
            limits: What all runs may spend.
            concurrency: Requests of each worker at once.
            watch: Who is told.
            stop: Why nothing more shall be sent, once there is a reason.
        """
        self._preparation = Preparation(source, journal, job, settings, self._is_stopped)
        self._journal = journal
        self._results = results
        self._job = job
        self._settings = settings
        self._limits = limits
        self._concurrency = concurrency
        self._watch = watch
        self._stop = stop

    async def run(self) -> None:
        """Work until everything has its row, or something stops it: `StopSignal` tells what.

        Raises:
            ConfigurationError: The journal or the results cannot be written, or Ray fails.
        """
        accounts = await asyncio.to_thread(
            start_accounts, self._journal, self._job, self._settings, self._limits
        )
        try:
            work = asyncio.ensure_future(asyncio.to_thread(self._go_through, accounts))
            ticks = 0
            while not work.done():
                await asyncio.wait([work], timeout=_TICK)
                await self._look(accounts)
                ticks += 1
                if ticks % _PARTS_EVERY == 0:
                    await asyncio.to_thread(self._results.write_finished)
            await work
        except asyncio.CancelledError:  # whoever cancels does not wait
            ray.kill(accounts.actor)
            raise
        else:
            await self._look(accounts, at_once=True)
        finally:
            self._stop.because(None)
            await asyncio.to_thread(stop_accounts, accounts.actor)
        await asyncio.to_thread(self._results.write_finished)

    def _is_stopped(self) -> bool:
        return self._stop() is not None

    async def _look(self, accounts: Accounts, *, at_once: bool = False) -> None:
        """Tell the accounts to stop, be told that they did, and tell how far it is."""
        reason = self._stop()
        if reason is not None:
            await asyncio.to_thread(ask_actor, accounts.actor.stop, reason)
        snapshot = await asyncio.to_thread(accounts.snapshot)
        if snapshot.stopped_by is not None:
            self._stop.because(snapshot.stopped_by)
        self._watch.follow(snapshot.done, snapshot.duplicates, snapshot.answers, snapshot.money)
        most = AUTO_CEILING if self._concurrency == "auto" else self._concurrency
        under_way = snapshot.money.images_reserved
        self._watch.show(under_way, most * snapshot.workers, at_once=at_once)

    # --- on a thread ---------------------------------------------------------------------------

    def _go_through(self, accounts: Accounts) -> None:
        while not self._is_stopped():
            window = self._next_window(accounts)
            if not window:
                return
            described = ray.data.from_arrow_refs(window).map_batches(
                _DescribeInputs,
                fn_constructor_kwargs={"accounts": accounts, "concurrency": self._concurrency},
                batch_format="pyarrow",
                batch_size=rows_for(self._concurrency),
                compute=pool(None),
                num_cpus=0,
                udf_modifying_row_count=False,
            )
            described.context.enable_progress_bars = False
            described.context.raise_original_map_exception = True
            try:
                for _ in described.iter_batches(batch_size=None, batch_format="pyarrow"):
                    pass  # the journal has their rows
            except ray.exceptions.RayError as failure:
                raise _ended_by(failure) from None

    def _next_window(self, accounts: Accounts) -> list[Any]:
        """Hand the next inputs without a row to Ray, in blocks."""
        window, block = [], Block()
        count = size = 0
        while count < _WINDOW_ROWS and size < _WINDOW_BYTES:
            inputs = self._preparation.next_inputs()
            for position, item in inputs:
                try:
                    block.add(position, image_of(item, self._settings))
                except PhosphoError as error:  # noqa: PERF203 - each may be broken
                    ask_actor(accounts.actor.note_broken, position, error)
            if block.is_full or not inputs:
                count, size = count + len(block.rows), size + block.size
                if block.rows:
                    window.append(ray.put(block.table()))
                block = Block()
            if not inputs:
                break
        return window


class _DescribeInputs:
    """Describes inputs of a job; what becomes of them is in its journal."""

    def __init__(self, accounts: Accounts, concurrency: int | Literal["auto"]) -> None:
        self._worker = Worker(accounts, concurrency)

    def __call__(self, batch: pa.Table) -> pa.Table:
        items = [(item_of(row), row["position"]) for row in batch.to_pylist()]
        outcomes = self._worker.describe(items)
        states = pa.array([outcome.state for outcome in outcomes], pa.int8())
        return pa.table({"position": batch.column("position"), "state": states})


def _ended_by(failure: ray.exceptions.RayError) -> PhosphoError:
    cause = getattr(failure, "cause", None)
    if isinstance(cause, PhosphoError):
        return as_ours(failure)
    words = str(failure).strip().rpartition("\n")[2][:300]
    message = (
        f"The Ray job failed ({type(failure).__name__}: {words}). What was done is kept; the same"
        " call goes on from there."
    )
    return ConfigurationError(message)
