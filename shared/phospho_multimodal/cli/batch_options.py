"""The options of `phospho-multimodal batch`, as one table."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from phospho_multimodal.contract import DEFAULT_MODEL
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT

__all__ = ["BatchFlags"]

_OF_THE_COMMAND = ("source", "out", "prompt", "yes", "dry_run", "as_json_")


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
        typer.Option(
            help="The folder for results, or its URL. Each prompt has its own folder inside."
        ),
    ]
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="The prompt. {name} stands for a column. If it is given several times, each image"
            f" has a row for each prompt. [default: {DEFAULT_PROMPT}]",
            show_default=False,
        ),
    ] = None
    prompt_column: Annotated[
        str | None,
        typer.Option(help="The column that holds each row's prompt.", show_default=False),
    ] = None
    journal: Annotated[
        Path | None,
        typer.Option(
            help="The local folder for the journal, if --out is a URL. [default: in the user's"
            " state folder]",
            show_default=False,
        ),
    ] = None
    column: Annotated[
        str | None, typer.Option(help="The table's column of images.", show_default=False)
    ] = None
    id_column: Annotated[
        str | None, typer.Option(help="The table's column of ids.", show_default=False)
    ] = None
    root: Annotated[
        Path | None,
        typer.Option(
            help="The folder of relative paths in a table. [default: its folder]",
            show_default=False,
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="A pattern of file or folder names to leave out; may be given several times.",
            show_default=False,
        ),
    ] = None
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Look into folders that are links.")
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Describe only the first N inputs.", show_default=False),
    ] = None
    min_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Leave out images whose shorter side has fewer pixels.",
            show_default=False,
        ),
    ] = None
    encoding: Annotated[
        str | None,
        typer.Option(
            help="The encoding of a table, such as cp1252. [default: detected]",
            show_default=False,
        ),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(
            help="Columns that the results keep, separated by commas.", show_default=False
        ),
    ] = None
    sidecar: Annotated[
        Literal["txt", "metadata"] | None,
        typer.Option(
            help="Write captions beside the images: a .txt for each, or one metadata.jsonl.",
            show_default=False,
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files with captions that exist.")
    ] = False
    results: Annotated[
        Literal["parquet", "jsonl"], typer.Option("--format", help="The format of the results.")
    ] = "parquet"
    concurrency: Annotated[
        str, typer.Option(help="Concurrent requests: a number, or auto to find out.")
    ] = "auto"
    max_usd: Annotated[
        float | None,
        typer.Option(
            help="The spending limit of all runs together, in dollars.", show_default=False
        ),
    ] = None
    max_images: Annotated[
        int | None, typer.Option(min=0, help="The same, in images.", show_default=False)
    ] = None
    usd_per_image: Annotated[
        float | None,
        typer.Option(
            help="The price of an image; 0 on a server of your own. [default: 0.01]",
            show_default=False,
        ),
    ] = None
    requests_per_second: Annotated[
        float | None, typer.Option(help="The highest rate.", show_default=False)
    ] = None
    model: Annotated[str, typer.Option(help="The model.")] = DEFAULT_MODEL
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The longest answer, 1 to 250.", show_default=False)
    ] = None
    temperature: Annotated[float | None, typer.Option(help="0.1 to 1.", show_default=False)] = None
    top_p: Annotated[float | None, typer.Option(help="0 to 1.", show_default=False)] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 repeats less.", show_default=False)
    ] = None
    max_image_side: Annotated[
        int | None,
        typer.Option(min=1, help="Longest side of what is sent, in pixels.", show_default=False),
    ] = None
    detail: Annotated[
        Literal["auto", "tiles"],
        typer.Option(
            help="Send an image once, or as tiles: each is billed, and their answers are joined."
        ),
    ] = "auto"
    max_tiles: Annotated[
        int | None, typer.Option(min=1, help="The most tiles of one image.", show_default=False)
    ] = None
    url_mode: Annotated[
        Literal["pass", "fetch"],
        typer.Option(help="Pass URLs on unopened, or fetch public ones and send the images."),
    ] = "pass"
    timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait for an answer.", show_default=False)
    ] = None
    base_url: Annotated[
        str | None,
        typer.Option(
            help="The URL of the endpoint. [default: PHOSPHO_BASE_URL]", show_default=False
        ),
    ] = None
    api_key: Annotated[
        str | None, typer.Option(help="The key. [default: PHOSPHO_API_KEY]", show_default=False)
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Describe only shard I of N, in a folder of its own, with an N-th of the limit.",
            show_default=False,
        ),
    ] = None
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Send again what failed in an earlier run.")
    ] = False
    retry_in_doubt: Annotated[
        bool,
        typer.Option(
            "--retry-in-doubt", help="Send again what may have been billed without an answer."
        ),
    ] = False
    max_outage: Annotated[
        float | None,
        typer.Option(
            help="Seconds to wait for an endpoint that limits the rate or cannot be reached."
            " [default: 600]",
            show_default=False,
        ),
    ] = None
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Work on a job that a process on another machine did not end properly. Make sure"
            " that it has ended.",
        ),
    ] = False
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The Ray cluster that does the work, or auto for the one on this machine. Its"
            " nodes see the files under the same names.",
            show_default=False,
        ),
    ] = None
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the price, and send nothing.")
    ] = False
    as_json_: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, for a program.")
    ] = False
    report: Annotated[
        bool, typer.Option("--report", help="Write _report.html next to the results.")
    ] = False

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
