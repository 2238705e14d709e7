"""The options of `phospho-multimodal batch`, as one table."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from phospho_multimodal.contract import DEFAULT_MODEL
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT

__all__ = ["BatchFlags"]

_OF_THE_COMMAND = ("source", "out", "prompt", "yes", "dry_run", "as_json_")


_option = partial(typer.Option, show_default=False)


@dataclass(kw_only=True)
class BatchFlags:
    """What a user can pass. A flag that is `None` is left to its default in `BatchOptions`."""

    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a pattern ('photos/**/*.jpg', 'shard-{000..012}.tar'), a table (.csv,"
            " .jsonl, .parquet), a tar archive, the URL of any of these in a store (s3://, gs://,"
            " hf://, https://), or - for paths and URLs on standard input.",
            show_default=False,
        ),
    ]
    out: Annotated[
        str,
        _option(help="The folder for results, or its URL. Each prompt has its own folder inside."),
    ]
    prompt: Annotated[
        list[str] | None,
        _option(
            help="The prompt. {name} stands for a column. If it is given several times, each image"
            f" has a row for each prompt. [default: {DEFAULT_PROMPT}]"
        ),
    ] = None
    prompt_column: Annotated[
        str | None, _option(help="The column that holds each row's prompt.")
    ] = None
    journal: Annotated[
        Path | None,
        _option(
            help="The local folder for the journal, if --out is a URL. [default: in the user's"
            " state folder]"
        ),
    ] = None
    column: Annotated[str | None, _option(help="The table's column of images.")] = None
    id_column: Annotated[str | None, _option(help="The table's column of ids.")] = None
    root: Annotated[
        Path | None, _option(help="The folder of relative paths in a table. [default: its folder]")
    ] = None
    exclude: Annotated[
        list[str] | None,
        _option(help="A pattern of file or folder names to leave out; may be given several times."),
    ] = None
    follow_links: Annotated[
        bool, _option("--follow-links", help="Look into folders that are links.")
    ] = False
    limit: Annotated[int | None, _option(help="Describe only the first N inputs.", min=1)] = None
    min_size: Annotated[
        int | None, _option(help="Leave out images whose shorter side has fewer pixels.", min=1)
    ] = None
    encoding: Annotated[
        str | None, _option(help="The encoding of a table, such as cp1252. [default: detected]")
    ] = None
    keep: Annotated[
        str | None, _option(help="Columns that the results keep, separated by commas.")
    ] = None
    sidecar: Annotated[
        Literal["txt", "metadata"] | None,
        _option(help="Write captions beside the images: a .txt for each, or one metadata.jsonl."),
    ] = None
    overwrite: Annotated[
        bool, _option("--overwrite", help="Replace files with captions that exist.")
    ] = False
    results: Annotated[
        Literal["parquet", "jsonl"], typer.Option("--format", help="The format of the results.")
    ] = "parquet"
    concurrency: Annotated[
        str, typer.Option(help="Concurrent requests: a number, or auto to find out.")
    ] = "auto"
    max_usd: Annotated[
        float | None, _option(help="The spending limit of all runs together, in dollars.")
    ] = None
    max_images: Annotated[int | None, _option(help="The same, in images.", min=0)] = None
    usd_per_image: Annotated[
        float | None,
        _option(help="The price of an image; 0 on a server of your own. [default: 0.01]"),
    ] = None
    requests_per_second: Annotated[float | None, _option(help="The highest rate.")] = None
    model: Annotated[str, typer.Option(help="The model.")] = DEFAULT_MODEL
    max_new_tokens: Annotated[int | None, _option(help="The longest answer, 1 to 250.")] = None
    temperature: Annotated[float | None, _option(help="0.1 to 1.")] = None
    top_p: Annotated[float | None, _option(help="0 to 1.")] = None
    repetition_penalty: Annotated[float | None, _option(help="Above 1 repeats less.")] = None
    max_image_side: Annotated[
        int | None, _option(help="Longest side of what is sent, in pixels.", min=1)
    ] = None
    detail: Annotated[
        Literal["auto", "tiles"],
        typer.Option(
            help="Send an image once, or as tiles: each is billed, and their answers are joined."
        ),
    ] = "auto"
    max_tiles: Annotated[int | None, _option(help="The most tiles of one image.", min=1)] = None
    url_mode: Annotated[
        Literal["pass", "fetch"],
        typer.Option(help="Pass URLs on unopened, or fetch public ones and send the images."),
    ] = "pass"
    timeout: Annotated[float | None, _option(help="Seconds to wait for an answer.")] = None
    base_url: Annotated[
        str | None, _option(help="The URL of the endpoint. [default: PHOSPHO_BASE_URL]")
    ] = None
    api_key: Annotated[str | None, _option(help="The key. [default: PHOSPHO_API_KEY]")] = None
    shard: Annotated[
        str | None,
        _option(
            help="Describe only shard I of N, in a folder of its own, with an N-th of the limit.",
            metavar="I/N",
        ),
    ] = None
    retry_failed: Annotated[
        bool, _option("--retry-failed", help="Send again what failed in an earlier run.")
    ] = False
    retry_in_doubt: Annotated[
        bool,
        _option("--retry-in-doubt", help="Send again what may have been billed without an answer."),
    ] = False
    max_outage: Annotated[
        float | None,
        _option(
            help="Seconds to wait for an endpoint that limits the rate or cannot be reached."
            " [default: 600]"
        ),
    ] = None
    take_over: Annotated[
        bool,
        _option(
            "--take-over",
            help="Work on a job that a process on another machine did not end properly. Make sure"
            " that it has ended.",
        ),
    ] = False
    ray: Annotated[
        str | None,
        _option(
            help="The Ray cluster that does the work, or auto for the one on this machine. Its"
            " nodes see the files under the same names.",
            metavar="ADDRESS",
        ),
    ] = None
    yes: Annotated[bool, _option("--yes", help="Start without asking.")] = False
    dry_run: Annotated[bool, _option("--dry-run", help="Print the price, and send nothing.")] = (
        False
    )
    as_json_: Annotated[
        bool, _option("--json", help="Print the summary as JSON, for a program.")
    ] = False
    report: Annotated[bool, _option("--report", help="Write _report.html next to the results.")] = (
        False
    )

    def to_options(self) -> dict[str, Any]:
        """Return the keywords of `describe_many`."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.concurrency.isdecimal():  # `checked_concurrency` rejects other texts
            given["concurrency"] = int(self.concurrency)
        if self.keep is not None:
            given["keep"] = [name.strip() for name in self.keep.split(",")]
        return {
            name: value
            for name, value in given.items()
            if value is not None and name not in _OF_THE_COMMAND
        }
