"""`describe_many` and `adescribe_many`: describe any number of images, one row for each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from phospho_multimodal.batch.foreground import run_on_thread
from phospho_multimodal.batch.options import BatchOptions
from phospho_multimodal.batch.preflight import Preflight
from phospho_multimodal.batch.results.manifest import Summary
from phospho_multimodal.batch.run import BatchRun
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["BatchOptions", "adescribe_many", "describe_many"]


def describe_many(
    source: str | os.PathLike[str] | Iterable[Any],
    out: str | os.PathLike[str],
    prompt: str | Sequence[str] = DEFAULT_PROMPT,
    **options: Unpack[BatchOptions],
) -> Summary:
    """Send the same prompt about many images, and write a row for each; see `adescribe_many`.

    Ctrl-C, SIGTERM and SIGHUP let the requests in progress finish and keep their answers. Then
    `KeyboardInterrupt` is raised. A second Ctrl-C does not wait. Python delivers signals only to
    the main thread, and a handler of your own stays in place.

    Args:
        source: The inputs.
        out: The folder for results.
        prompt: The prompt.
        **options: See `BatchOptions`.

    Returns:
        The counts, the cost and the files of the job.

    Raises:
        PhosphoError: As in `adescribe_many`.
    """
    interrupted = options.get("interrupted") or threading.Event()
    options["interrupted"] = interrupted

    def make_job(confirm: Callable[[Preflight], bool] | None) -> Coroutine[Any, Any, Summary]:
        options["confirm"] = confirm
        return adescribe_many(source, out, prompt, **options)

    return run_on_thread(make_job, options.get("confirm"), interrupted)


async def adescribe_many(
    source: str | os.PathLike[str] | Iterable[Any],
    out: str | os.PathLike[str],
    prompt: str | Sequence[str] = DEFAULT_PROMPT,
    **options: Unpack[BatchOptions],
) -> Summary:
    """Send the same prompt about many images, and write a row for each.

    Each distinct image is paid for once, judged by the bytes that are sent. The job can be stopped
    and killed at any moment, and the same call continues it. Another prompt, model, parameter or
    image size is another job, in a folder of its own inside `out`.

    Args:
        source: A folder, a pattern, a table (CSV, JSONL, Parquet), tar archives, the URL of any of
            these, `-`, or a list of images or of (id, image) pairs; see `open_source`.
        out: The folder for results, or its URL in a store. Each job has its own folder inside.
        prompt: The prompt. `{name}` stands for a column of the source. With several prompts, each
            image has a row for each.
        **options: See `BatchOptions`.

    Returns:
        The counts, the cost and the files of the job.

    Raises:
        PhosphoError: The key is rejected, there is no billing method or no such endpoint, the
            spending limit is reached, an outage is longer than `max_outage`, or 50 images in a row
            had no answer. Finished rows are kept, and `Summary.read` returns their counts.
        ImportError: An extra is missing.
    """
    return await BatchRun(source, out, prompt, options).run()
