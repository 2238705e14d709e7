"""`DescribeImages`: a column of pictures in a Ray Dataset becomes columns of answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa
import ray.data

from phospho_multimodal.batch.job import DIGEST_BYTES, Job
from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.batch.results.rows import COLUMNS
from phospho_multimodal.batch.sources.items import Item, make_item
from phospho_multimodal.errors import ConfigurationError, ImageError
from phospho_multimodal.images.numpy_arrays import image_from_array
from phospho_multimodal.ray.accounts import Accounts
from phospho_multimodal.ray.worker import Outcome, Worker

__all__ = ["ADDED", "DescribeImages"]

ADDED = {
    name: kind
    for name, kind in COLUMNS.items()
    if name not in {"id", "source", "duplicate_of", "removed"}
}
"""The columns that are added, and their types, by their names in Arrow."""


_BATCH_ROWS = 32  # half of what `auto` rises to


class DescribeImages:
    """Describes the pictures of a column, for `Dataset.map_batches`.

    `DescribeImages.on` calls that with what has to be said to it. By hand it is:

        dataset.map_batches(
            DescribeImages,
            fn_constructor_kwargs={"accounts": accounts, "column": "image", "concurrency": 8},
            batch_format="pyarrow",
            batch_size=32,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=4),
            num_cpus=0,  # workers wait, mostly; with all CPUs theirs, nothing would be read
        )

    A column of arrays (`ray.data.read_images`), of bytes, of texts (paths and http(s) URLs) or of
    structs with `bytes` and `path` will do. A broken picture is a row with its error. What would
    end every further question in the same way ends the Ray job, with that error, once what is under
    way anywhere is told; what was done is kept by the accounts, and the same job goes on.

    A row's `cost_usd`, `attempts` and `images_in_doubt` are those of a question that was asked for
    it; where the answer was there already (a duplicate, a row that Ray made again after a node was
    lost) they are 0. What was paid is what the accounts say.
    """

    def __init__(
        self,
        accounts: Accounts,
        column: str = "image",
        concurrency: int | Literal["auto"] = 8,
    ) -> None:
        """Begin to work, in a process of Ray's.

        Args:
            accounts: Of the job; see `open_accounts`.
            column: Of the pictures.
            concurrency: Requests of this worker at once; `auto` finds out how many are well
                answered.
        """
        self._orders = accounts.orders
        self._column = column
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
    ) -> ray.data.Dataset:
        """Describe the pictures of a dataset, in the way that was tried.

        Args:
            dataset: With a column of pictures.
            accounts: Of the job.
            column: Of the pictures.
            workers: How many processes: a number, or the fewest and the most; up to one for each
                node that there is now, if nothing is said.
            concurrency: Requests of each worker at once, or `auto`.
            batch_size: Rows that a worker takes together; each has two such batches under way, and
                32 or its concurrency is in each, if nothing is said.

        Returns:
            The dataset with further columns; nothing is asked before somebody wants its rows. For
            a look at the first few, `limit` the dataset before: `take` reads ahead.

        Raises:
            ConfigurationError: A figure is out of range.
        """
        checked_concurrency(concurrency)
        described = dataset.map_batches(
            cls,
            fn_constructor_kwargs={
                "accounts": accounts,
                "column": column,
                "concurrency": concurrency,
            },
            batch_format="pyarrow",
            batch_size=rows_for(concurrency) if batch_size is None else batch_size,
            compute=pool(workers),
            num_cpus=0,
            udf_modifying_row_count=False,
        )
        # The error that ends the job is ours by its class, and not only by its text.
        described.context.raise_original_map_exception = True
        return described

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Describe a batch.

        Args:
            batch: As `batch_format="pyarrow"` gives it.

        Returns:
            The same, with the columns that are added.

        Raises:
            PhosphoError: What ended the job.
        """
        self._check(batch)
        values = batch.column(self._column)
        items = [(_item(values[at]), None) for at in range(batch.num_rows)]
        outcomes = self._worker.describe(items)
        if any(outcome.state is State.PENDING for outcome in outcomes):
            error = self._worker.stopped_by()
            if error is not None:
                raise error
        rows = [_row(outcome, self._orders.job, self._orders.usd_per_image) for outcome in outcomes]
        for name, kind in ADDED.items():
            cells = pa.array([row[name] for row in rows], getattr(pa, kind)())
            batch = batch.append_column(name, cells)
        return batch

    def _check(self, batch: Any) -> None:
        problem = None
        if not isinstance(batch, pa.Table):
            problem = 'DescribeImages takes batch_format="pyarrow"; DescribeImages.on says so.'
        elif self._column not in batch.column_names:
            names = ", ".join(map(repr, batch.column_names[:30]))
            problem = f"There is no column {self._column!r} of pictures. There are: {names}."
        else:
            taken = sorted(ADDED.keys() & set(batch.column_names))
            if taken:
                names = ", ".join(map(repr, taken))
                problem = f"The dataset has columns that are added here: {names}. Rename them."
        if problem is not None:
            raise ConfigurationError(problem)


def checked_concurrency(concurrency: Any) -> int | Literal["auto"]:
    """Check how many requests a worker may have under way.

    Args:
        concurrency: The number, or `auto`.

    Returns:
        The same.

    Raises:
        ConfigurationError: It is something else.
    """
    if concurrency != "auto" and not (isinstance(concurrency, int) and concurrency >= 1):
        message = f"concurrency is {concurrency!r}; it is 'auto', or a number from 1."
        raise ConfigurationError(message)
    return concurrency  # type: ignore[no-any-return]


def rows_for(concurrency: int | Literal["auto"]) -> int:
    """Tell how many rows a worker takes together: two such batches keep it busy."""
    return _BATCH_ROWS if concurrency == "auto" else max(_BATCH_ROWS, concurrency)


def pool(workers: int | tuple[int, int] | None) -> ray.data.ActorPoolStrategy:
    """Tell Ray how many workers there may be, and that each works at two batches at once.

    With one at a time, each batch would wait for the slowest answer of the one before.

    Args:
        workers: A number, the fewest and the most, or `None` for up to one for each node.

    Returns:
        The strategy.

    Raises:
        ConfigurationError: A figure is out of range.
    """
    if workers is None:
        workers = (1, max(1, sum(node["Alive"] for node in ray.nodes())))
    few, many = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= few <= many:
        message = f"workers is {workers!r}; it is a number from 1, or the fewest and the most."
        raise ConfigurationError(message)
    return ray.data.ActorPoolStrategy(
        min_size=few,
        max_size=many,
        max_concurrent_calls_per_actor=2,
        enable_true_multi_threading=True,
    )


def _item(scalar: Any) -> Item:
    """Make of a cell what a table's cell is in a batch; arrays are pictures, too."""
    try:
        value = scalar.to_numpy() if hasattr(scalar, "to_numpy") else scalar.as_py()
        if type(value).__name__ == "ndarray":
            value = image_from_array(value)
    except (ImageError, ValueError, NotImplementedError) as failure:
        error = failure if isinstance(failure, ImageError) else None
        error = error or ImageError(f"The cell cannot be read ({type(failure).__name__}).")
        return Item("", "", None, None, error)
    return make_item("", value)


def _row(outcome: Outcome, job: Job, price: Decimal) -> dict[str, Any]:
    answer: Mapping[str, Any] = outcome.answer or {}
    pays = outcome.pays
    picture, ended = answer.get("picture", b""), answer.get("ended")
    time = (
        datetime.now(timezone.utc) if ended is None else datetime.fromtimestamp(ended, timezone.utc)
    )
    error = outcome.error
    return {
        "description": answer.get("description"),
        "status": outcome.state.name.lower(),
        "error_class": answer.get("error_class") if error is None else type(error).__name__,
        "error": answer.get("error") if error is None else str(error),
        "attempts": answer["attempts"] if pays else 0,
        "cost_usd": float(answer["images_billed"] * price) if pays else 0.0,
        "images_in_doubt": answer["images_in_doubt"] if pays else 0,
        "sha256": picture.hex() if len(picture) == DIGEST_BYTES else None,
        "width": answer.get("width"),
        "height": answer.get("height"),
        "seconds": answer.get("seconds"),
        "prompt_id": job.prompt_id,
        "model": job.asking.model,
        "time": time.isoformat(),
    }
