"""The keywords of `describe_many`, and their checks before anything is opened."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from phospho_multimodal.batch.pipeline.progress import Progress
from phospho_multimodal.batch.preflight import Preflight
from phospho_multimodal.batch.results.captions import Sidecar
from phospho_multimodal.batch.results.rows import ResultsFormat
from phospho_multimodal.batch.sources.remote import StorageOptions
from phospho_multimodal.batch.sources.shards import Shard
from phospho_multimodal.contract import ParameterOptions
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.settings import ClientOptions
from phospho_multimodal.spending.budget import USD_PER_IMAGE, Spending

if TYPE_CHECKING:
    import httpx

__all__ = ["BatchOptions", "check_names", "check_over_ray", "checked_concurrency", "open_spending"]


class BatchOptions(ClientOptions, ParameterOptions, total=False):
    """The keywords of a batch, besides those of a client and of a prompt.

    `concurrency` replaces the client's `max_concurrency`.

    Attributes:
        column: The table's column of images. By default, the column with a usual name.
        id_column: The table's column of ids. By default, ids are the numbers of the rows.
        root: What a table's relative paths are relative to. By default, the table's folder.
        recursive: Whether to look into the folders of a folder. The default is `True`.
        exclude: Patterns of file and folder names that a folder or a pattern leaves out. Hidden
            files and the folders in which a NAS keeps thumbnails are always left out.
        follow_links: Whether to look into folders that are links. The default is `False`.
        limit: How many inputs are described at most, to try a prompt. The same call without it
            describes the others.
        min_size: The shorter side in pixels below which an image is left out.
        encoding: The encoding of a table of text. By default, a byte order mark decides, and
            whether the text is valid UTF-8.
        prompt_column: The table's column that holds the prompt of each row.
        keep: Columns of the source that the rows of the results keep. Samples of webdataset have
            the fields of their `.json` member, and `txt`.
        sidecar: Captions beside the images: `txt` for a file each, `metadata` for the
            `metadata.jsonl` of an imagefolder.
        overwrite: Whether files with captions that exist are replaced. The default is `False`.
        storage_options: Options of fsspec's file systems, by protocol:
            `{"s3": {"endpoint_url": "…"}}`. By default, each looks for credentials as usual.
        journal: The local folder for the journal, if the output is the URL of a store.
        stop: Strings at which an answer is cut.
        results: `parquet` (the default, extra `batch`) or `jsonl`.
        concurrency: Concurrent requests. `auto` (the default) finds out how many the endpoint
            answers well, up to 64. A number is used from the start, and is lowered only while the
            endpoint answers 429 or 503.
        max_usd: Dollars that all runs of this job together may spend, in doubt included.
        max_images: The same, in images.
        usd_per_image: Dollars for one image.
        spending: A `Spending` of your own, instead of these three.
        retry_failed: Whether to send again what failed in an earlier run.
        retry_in_doubt: Whether to send again what may have been billed without an answer.
        shard: `i/n` to describe only shard i of n, for array jobs without a cluster. Each shard has
            its own folder and journal, and an n-th of `max_usd` and `max_images`.
        max_outage: Seconds without an answer after which the job ends, while the endpoint limits
            the rate (429), is not ready (503) or cannot be reached; 600 by default. Until then
            the job waits, for as long as `Retry-After` says or up to a minute each time. The rows
            stay pending.
        take_over: Whether to work on the job though a process on another machine did not end it
            properly.
        ray: The address of a Ray cluster that does the work, or `auto` for the cluster of this
            machine (extra `ray`). Its nodes see the files under the same names, and `concurrency`
            is that of each node.
        report: Whether to write `_report.html` next to the results (extra `batch`).
        confirm: Called before the first paid request. If it returns `False`, the job ends.
        on_progress: Called with the progress, at most four times a second.
        interrupted: If it is set, the job ends well: requests in progress finish and are kept.
        http_client: A client of your own to send with. It is not closed.
    """

    column: str | None
    id_column: str | None
    root: Path | None
    recursive: bool
    exclude: Sequence[str]
    follow_links: bool
    limit: int | None
    min_size: int | None
    encoding: str | None
    prompt_column: str | None
    keep: Sequence[str]
    sidecar: Sidecar | None
    overwrite: bool
    storage_options: StorageOptions | None
    journal: str | os.PathLike[str] | None
    stop: Sequence[str] | None
    results: ResultsFormat
    concurrency: int | Literal["auto"]
    max_usd: float | Decimal | str | None
    max_images: int | None
    usd_per_image: float | Decimal | str
    spending: Spending | None
    retry_failed: bool
    retry_in_doubt: bool
    shard: str | None
    max_outage: float
    take_over: bool
    ray: str | None
    report: bool
    confirm: Callable[[Preflight], bool] | None
    on_progress: Callable[[Progress], None] | None
    interrupted: threading.Event | None
    http_client: httpx.AsyncClient | None


def check_names(options: BatchOptions) -> None:
    """Reject keywords that a batch does not have: a misspelt spending limit would not hold."""
    if "max_concurrency" in options:
        message = "A batch has no max_concurrency=; set concurrency=."
        raise ConfigurationError(message)
    unknown = sorted(options.keys() - BatchOptions.__annotations__.keys())
    if unknown:
        message = f"A batch has no {', '.join(f'{name}=' for name in unknown)}."
        raise TypeError(message)


def checked_concurrency(options: BatchOptions) -> int | Literal["auto"]:
    """Return `concurrency`, or reject it."""
    concurrency: Any = options.get("concurrency", "auto")
    if concurrency != "auto" and not (isinstance(concurrency, int) and concurrency >= 1):
        message = f"concurrency must be 'auto' or a number from 1, got {concurrency!r}."
        raise ConfigurationError(message)
    return cast("int | Literal['auto']", concurrency)


def open_spending(
    options: BatchOptions, images_billed: int = 0, images_in_doubt: int = 0
) -> Spending:
    """Return the caller's `Spending`, or one that continues from what the job has spent."""
    own = options.get("spending")
    limits = {"max_usd", "max_images", "usd_per_image"} & {
        name for name, value in options.items() if value is not None
    }
    if own is not None:
        if limits:
            message = f"Pass spending=, or {', '.join(sorted(limits))}=, not both."
            raise ConfigurationError(message)
        return own
    price = options.get("usd_per_image")
    max_usd, max_images = options.get("max_usd"), options.get("max_images")
    text = options.get("shard")
    if text is not None:
        shard = Shard(text)
        Spending(max_usd, max_images=max_images)  # rejects wrong figures
        max_usd = None if max_usd is None else Decimal(str(max_usd)) / shard.count
        max_images = None if max_images is None else shard.share_of(max_images)
    return Spending.resumed(
        images_billed,
        images_in_doubt,
        max_usd=max_usd,
        max_images=max_images,
        usd_per_image=USD_PER_IMAGE if price is None else price,
    )


def check_over_ray(options: BatchOptions) -> None:
    """Reject what does not work over Ray."""
    from phospho_multimodal.ray import check_ray  # noqa: PLC0415 - only then

    check_ray()
    for name in ("spending", "http_client"):
        if options.get(name) is not None:
            message = f"Over Ray, {name}= stays behind on this machine. Leave it out."
            raise ConfigurationError(message)
    if options.get("detail") == "tiles":
        message = "Over Ray, an image is sent as one. Leave ray= or detail='tiles' out."
        raise ConfigurationError(message)
