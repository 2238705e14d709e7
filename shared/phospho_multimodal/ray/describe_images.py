"""`DescribeImages`: a column of images in a Ray Dataset becomes columns of answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import ray.data

from phospho_multimodal.batch.job import image_digest
from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.batch.sources.items import Item, make_item
from phospho_multimodal.errors import ConfigurationError, ImageError
from phospho_multimodal.images.numpy_arrays import image_from_array
from phospho_multimodal.ray.accounts import Accounts
from phospho_multimodal.ray.worker import Outcome, Worker

__all__ = ["ADDED", "DescribeImages", "map_with_workers"]

ADDED = {
    "description": pa.string(),
    "status": pa.string(),
    "error_class": pa.string(),
    "error": pa.string(),
    "attempts": pa.int32(),
    "cost_usd": pa.float64(),
    "images_in_doubt": pa.int32(),
    "sha256": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "seconds": pa.float64(),
    "prompt_id": pa.string(),
    "model": pa.string(),
    "time": pa.timestamp("us", tz="UTC"),
}
"""The columns that are added, and their types."""

_BATCH_ROWS = 32  # half of what `auto` rises to
_ON_COLLISION = "phospho_"


class DescribeImages:
    """Describes the images of a column, for `Dataset.map_batches`.

    It is a callable class as Ray knows them, and works with every batch format:

        dataset.map_batches(
            DescribeImages,
            fn_constructor_kwargs={"accounts": accounts, "column": "image"},
            concurrency=4,
            num_cpus=0,  # a worker waits most of the time; CPUs are for reading
        )

    `DescribeImages.on` calls that with good values for the rest.

    The column may hold arrays (`ray.data.read_images`), bytes, texts (paths and http(s) URLs) or
    structs with `bytes` and `path`. A broken image is a row with its error. An error that every
    further request would meet ends the Ray job, after all requests in progress have their results.

    `cost_usd`, `attempts` and `images_in_doubt` of a row count the request that was sent for this
    row. They are 0 if the answer was known: for a duplicate, or for a row that Ray computes again.
    `accounts.snapshot()` has the sums.
    """

    def __init__(
        self,
        accounts: Accounts,
        column: str = "image",
        concurrency: int | Literal["auto"] = 8,
        *,
        prefix: str | None = None,
        prompt_column: str | None = None,
    ) -> None:
        """Start a worker, in a process of Ray's.

        Args:
            accounts: The job; see `open_accounts`.
            column: The column of images.
            concurrency: Concurrent requests of this worker; `auto` finds out how many the endpoint
                answers well. Ray's own `concurrency` is the number of workers.
            prefix: Begins the name of each added column, so that several prompts fit into one
                dataset. Without it, only a name that the dataset has already gets a prefix,
                `phospho_`.
            prompt_column: The column with a prompt for each row. An empty value stands for the
                job's prompt. The journal keeps each pair of image and prompt.

        Raises:
            ConfigurationError: A value is out of range, or the job is closed.
        """
        _check_concurrency(concurrency)
        self._orders = accounts.orders
        self._price = accounts.orders.limits["usd_per_image"]
        self._column = column
        self._prompt_column = prompt_column
        self._prefix = prefix
        self._worker = Worker(accounts, concurrency)

    @classmethod
    def on(
        cls,
        dataset: ray.data.Dataset,
        accounts: Accounts,
        *,
        column: str = "image",
        workers: int | tuple[int, int] | None = None,
        concurrency: int | Literal["auto"] = 8,
        batch_size: int | None = None,
        prefix: str | None = None,
        prompt_column: str | None = None,
        **options: Any,
    ) -> ray.data.Dataset:
        """Describe the images of a dataset.

        Args:
            dataset: A dataset with a column of images.
            accounts: The job.
            column: The column of images.
            workers: The number of workers, or the fewest and the most. By default, Ray starts up
                to one for each node that is alive now.
            concurrency: Concurrent requests of each worker, or `auto`.
            batch_size: Rows in one call. Each worker has two calls in progress, with 32 rows or as
                many as its `concurrency` by default.
            prefix: See `DescribeImages`.
            prompt_column: See `DescribeImages`.
            **options: Further arguments of `Dataset.map_batches`, such as `num_cpus` (0 by
                default), `resources`, `runtime_env` and `batch_format` (`pyarrow` by default).

        Returns:
            The dataset with further columns. Nothing is sent before its rows are read. To try the
            first few rows, call `limit` on the dataset before: `take` reads ahead.

        Raises:
            ConfigurationError: A value is out of range.
        """
        _check_concurrency(concurrency)
        arguments = {
            "accounts": accounts,
            "column": column,
            "concurrency": concurrency,
            "prefix": prefix,
            "prompt_column": prompt_column,
        }
        if batch_size is not None:
            options["batch_size"] = batch_size
        return map_with_workers(dataset, cls, arguments, workers, **options)

    def __call__(self, batch: Any) -> Any:
        """Describe a batch.

        Args:
            batch: A dict of numpy arrays, a pandas data frame or an Arrow table.

        Returns:
            The same, with further columns.

        Raises:
            PhosphoError: The error that ended the job.
        """
        names = list(batch.column_names if isinstance(batch, pa.Table) else batch.keys())
        added = self._added_names(names)
        cells = _cells(batch, self._column)
        prompts = cells if self._prompt_column is None else _cells(batch, self._prompt_column)
        items = [self._item(*both) for both in zip(cells, prompts, strict=True)]
        outcomes = self._worker.describe([(item, None) for item in items])
        error = self._worker.stopped_by
        if error is not None and any(outcome.state is State.PENDING for outcome in outcomes):
            self._worker.wait_until_quiet()
            raise error
        rows = [self._row(*both) for both in zip(items, outcomes, strict=True)]
        columns = {
            added[name]: pa.array([row[name] for row in rows], kind) for name, kind in ADDED.items()
        }
        return _with_columns(batch, columns)

    def _added_names(self, names: Sequence[str]) -> dict[str, str]:
        """Check the columns of the dataset, and return the names of the added columns."""
        for column, what in ((self._column, "images"), (self._prompt_column, "prompts")):
            if column is not None and column not in names:
                listed = ", ".join(map(repr, names[:30]))
                message = (
                    f"There is no column {column!r} of {what}. Nothing was sent. The dataset has"
                    f" {listed}."
                )
                raise ConfigurationError(message)
        taken = set(names)
        if self._prefix is None:
            added = {name: _ON_COLLISION + name if name in taken else name for name in ADDED}
        else:
            added = {name: self._prefix + name for name in ADDED}
        collisions = sorted(taken & set(added.values()))
        if collisions:
            message = (
                f"The dataset already has {', '.join(map(repr, collisions))}. Nothing was sent."
                f" Choose another prefix= than {self._prefix!r}."
            )
            raise ConfigurationError(message)
        return added

    def _item(self, cell: Any, prompt: Any) -> Item:
        item = _image_item(cell)
        prompt = prompt.as_py() if isinstance(prompt, pa.Scalar) else prompt
        if self._prompt_column is None or (pd.api.types.is_scalar(prompt) and pd.isna(prompt)):
            return item
        if isinstance(prompt, str):
            is_own = prompt not in {"", self._orders.job.prompt}
            return replace(item, prompt=str(prompt) if is_own else None)
        message = "The prompt is neither text nor empty. Nothing was sent for this row."
        return replace(item, error=ConfigurationError(message))

    def _row(self, item: Item, outcome: Outcome) -> dict[str, Any]:
        answer: Mapping[str, Any] = outcome.answer or {}
        pays, error = outcome.pays, outcome.error
        job, ended = self._orders.job, answer.get("ended")
        if item.prompt is not None:
            job = replace(job, prompt=item.prompt)
        return {
            "description": answer.get("description"),
            "status": outcome.state.name.lower(),
            "error_class": answer.get("error_class") if error is None else type(error).__name__,
            "error": answer.get("error") if error is None else str(error),
            "attempts": answer["attempts"] if pays else 0,
            "cost_usd": float(answer["images_billed"] * self._price) if pays else 0.0,
            "images_in_doubt": answer["images_in_doubt"] if pays else 0,
            "sha256": image_digest(answer.get("picture", b"")),
            "width": answer.get("width"),
            "height": answer.get("height"),
            "seconds": answer.get("seconds"),
            "prompt_id": job.prompt_id,
            "model": job.asking.model,
            "time": datetime.fromtimestamp(time.time() if ended is None else ended, timezone.utc),
        }


def _check_concurrency(concurrency: Any) -> None:
    """Reject a wrong number of requests."""
    if concurrency != "auto" and not (isinstance(concurrency, int) and concurrency >= 1):
        message = f"concurrency must be 'auto' or 1 or greater, got {concurrency!r}."
        raise ConfigurationError(message)


def map_with_workers(
    dataset: ray.data.Dataset,
    worker_class: type,
    arguments: Mapping[str, Any],
    workers: int | tuple[int, int] | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """Map the batches of a dataset, with two calls in progress in each worker.

    With one call, each batch would wait for the slowest answer of the batch before.
    """
    if workers is None:
        workers = (1, max(1, sum(node["Alive"] for node in ray.nodes())))
    few, many = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= few <= many:
        message = f"workers must be 1 or greater, or the fewest and the most, got {workers!r}."
        raise ConfigurationError(message)
    concurrency = arguments["concurrency"]
    given = {
        "batch_format": "pyarrow",
        "batch_size": _BATCH_ROWS if concurrency == "auto" else max(_BATCH_ROWS, concurrency),
        "compute": ray.data.ActorPoolStrategy(
            min_size=few,
            max_size=many,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        "num_cpus": 0,
        "udf_modifying_row_count": False,
        **options,
    }
    mapped = dataset.map_batches(worker_class, fn_constructor_kwargs=arguments, **given)
    mapped.context.raise_original_map_exception = True  # keeps the class of our errors
    return mapped


def _cells(batch: Any, column: str) -> Sequence[Any]:
    cells: Sequence[Any] = batch[column]
    return list(cells) if isinstance(batch, pd.DataFrame) else cells


def _image_item(cell: Any) -> Item:
    """Make an input of a cell, as a batch does with a table; a cell may also be an array."""
    try:
        value = cell
        if hasattr(cell, "to_numpy"):  # Ray's tensors
            value = cell.to_numpy()
        elif isinstance(cell, pa.Scalar):
            value = cell.as_py()
        if isinstance(value, np.ndarray):
            value = image_from_array(value)
    except (ImageError, ValueError, NotImplementedError) as failure:
        error = failure if isinstance(failure, ImageError) else None
        error = error or ImageError(f"The cell cannot be read ({type(failure).__name__}).")
        return Item("", "", None, None, error)
    return make_item("", value)


def _with_columns(batch: Any, columns: Mapping[str, pa.Array]) -> Any:
    """Add columns to a batch, in the batch's own format."""
    if isinstance(batch, pa.Table):
        for name, cells in columns.items():
            batch = batch.append_column(name, cells)
        return batch
    if isinstance(batch, pd.DataFrame):  # Arrow's types, because an int column may have gaps
        series = {
            n: pd.Series(cells, dtype=pd.ArrowDtype(cells.type)) for n, cells in columns.items()
        }
        return batch.assign(**{name: one.set_axis(batch.index) for name, one in series.items()})
    return {
        **batch,
        **{name: np.array(cells.to_pylist(), object) for name, cells in columns.items()},
    }
