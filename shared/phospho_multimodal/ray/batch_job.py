"""A batch over a Ray cluster: its inputs go out in datasets, one after the other.

Each is small enough to be held by Ray, and large enough that the start of its workers does not
count. What the workers find out goes into the job's own journal by way of the accounts, so that
results, resuming and the manifest are those of a batch on one machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from phospho_multimodal.batch.engine import Stop
from phospho_multimodal.batch.items import Item
from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal import Journal
from phospho_multimodal.batch.level import AUTO_CEILING
from phospho_multimodal.batch.preparation import Preparation
from phospho_multimodal.batch.progress import Watch
from phospho_multimodal.batch.results import Results
from phospho_multimodal.batch.sources import Source
from phospho_multimodal.errors import ConfigurationError, ImageError, PhosphoError
from phospho_multimodal.images.prepare import LinkedImage, prepare_source
from phospho_multimodal.images.source import image_source
from phospho_multimodal.ray.accounts import (
    Accounts,
    Limits,
    as_ours,
    ask_actor,
    start_accounts,
    stop_accounts,
)
from phospho_multimodal.ray.describe_images import pool
from phospho_multimodal.ray.worker import Worker
from phospho_multimodal.settings import Settings

__all__ = ["BatchJob", "connected"]

_BLOCK_ROWS = 64
_BLOCK_BYTES = 16 * 1024 * 1024
_WINDOW_ROWS = 10_000
_WINDOW_BYTES = 256 * 1024 * 1024
_BATCH_ROWS = 32
_PATIENCE = 5.0  # seconds, for a cluster to answer
_TICK = 0.25
_PARTS_EVERY = 4  # ticks

_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("path", pa.binary()),  # a path need not be text
        ("text", pa.large_string()),
        ("data", pa.large_binary()),
    ]
)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of a cluster, and say nothing on the terminal but what goes wrong.

    Args:
        address: Of the cluster; `auto` for the one that runs on this machine. A Ray that was
            initialized before is used as it is.

    Yields:
        Nothing.

    Raises:
        ConfigurationError: There is none.
    """
    logger = logging.getLogger("ray.data")
    level = logger.level
    begun = not ray.is_initialized()
    if begun:
        try:
            _knock(address)
            ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError) as failure:
            message = f"There is no Ray cluster at {address!r}: {failure}"
            raise ConfigurationError(message) from None
    logger.setLevel(logging.CRITICAL)  # errors are ours to tell
    try:
        yield
    finally:
        logger.setLevel(level)
        if begun:
            ray.shutdown()


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
        watch: Watch,
        stop: Stop,
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
        """Work until everything has its row, or something stops it: `Stop` tells what.

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
                batch_size=_BATCH_ROWS,
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
        window, block = [], _Block()
        count = size = 0
        while count < _WINDOW_ROWS and size < _WINDOW_BYTES:
            inputs = self._preparation.next_inputs()
            for position, item in inputs:
                try:
                    block.add(position, _image(item, self._settings))
                except PhosphoError as error:  # noqa: PERF203 - each may be broken
                    ask_actor(accounts.actor.note_broken, position, error)
            if block.is_full or not inputs:
                count, size = count + len(block.rows), size + block.size
                if block.rows:
                    window.append(ray.put(block.table()))
                block = _Block()
            if not inputs:
                break
        return window


class _Block:
    """Inputs that go out together, written down so that another process finds them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.size = 0

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= _BLOCK_ROWS or self.size >= _BLOCK_BYTES

    def add(self, position: int, image: Path | str | bytes) -> None:
        row: dict[str, Any] = {"position": position, "path": None, "text": None, "data": None}
        if isinstance(image, str):
            row["text"] = image
        elif isinstance(image, bytes):
            row["data"] = image
        else:
            row["path"] = os.fsencode(image)
        self.rows.append(row)
        self.size += 0 if isinstance(image, Path) else len(image)

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=_SCHEMA)


class _DescribeInputs:
    """Describes inputs of a job; what becomes of them is in its journal."""

    def __init__(self, accounts: Accounts, concurrency: int | Literal["auto"]) -> None:
        self._worker = Worker(accounts, concurrency)

    def __call__(self, batch: pa.Table) -> pa.Table:
        items = [(_item(row), row["position"]) for row in batch.to_pylist()]
        outcomes = self._worker.describe(items)
        states = pa.array([outcome.state for outcome in outcomes], pa.int8())
        return pa.table({"position": batch.column("position"), "state": states})


def _image(item: Item, settings: Settings) -> Path | str | bytes:
    """What a worker needs of an input: what it can open itself, or the bytes."""
    if item.error is not None:
        raise item.error
    if isinstance(item.image, os.PathLike):
        return Path(os.path.abspath(item.image))  # noqa: PTH100 - links stay as they are
    if isinstance(item.image, str):
        return item.image
    source = image_source(item.image)
    content = source.read()
    if isinstance(content, bytes):
        return content
    # A picture in memory: made ready here, it is sent from there as it is.
    prepared = prepare_source(
        image_source(content), max_image_side=settings.max_image_side, prepare=settings.prepare
    )
    if isinstance(prepared, LinkedImage):
        message = "A picture in memory is no URL."
        raise ImageError(message)
    return prepared.data


def _item(row: dict[str, Any]) -> Item:
    path, text, data = row["path"], row["text"], row["data"]
    if path is not None:
        return Item("", "", Path(os.fsdecode(path)), None)
    return Item("", "", data if text is None else text, None)


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
