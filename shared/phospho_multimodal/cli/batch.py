"""`phospho-multimodal batch`: the command line of a job."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from phospho_multimodal.batch.api import describe_many
from phospho_multimodal.batch.preflight import Preflight
from phospho_multimodal.batch.results.manifest import Summary
from phospho_multimodal.batch.results.outcome import (
    ExitCode,
    as_json,
    describe_outcome,
    exit_code_of,
    last_line,
)
from phospho_multimodal.cli.batch_progress import ProgressDisplay
from phospho_multimodal.cli.console import errors, output, plain
from phospho_multimodal.contract import DEFAULT_MODEL
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT

__all__ = ["INTERRUPTED", "run_batch"]

INTERRUPTED = int(ExitCode.INTERRUPTED)  # what a shell calls the end by Ctrl-C


def run_batch(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a pattern ('photos/**/*.jpg', 'shard-{000..012}.tar'), a table (.csv,"
            " .jsonl, .parquet), a tar archive, the URL of any of these in a store (s3://, gs://,"
            " hf://, https://), or - for paths and URLs on standard input.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        str,
        typer.Option(help="The folder for results, or its URL; each prompt has its own inside."),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="The prompt. {name} stands for a column. May be given several times: each image"
            f" then has a row for each prompt. [default: {DEFAULT_PROMPT}]",
            show_default=False,
        ),
    ] = None,
    prompt_column: Annotated[
        str | None,
        typer.Option(help="The column that holds each row's prompt.", show_default=False),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="The local folder for the journal, if --out is a URL. [default: in the user's"
            " folder for state]",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The table's column of images.", show_default=False)
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="The table's column of ids.", show_default=False)
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="What relative paths in a table are relative to. [default: its folder]",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="A pattern of file or folder names to leave out; may be given several times.",
            show_default=False,
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Look into folders that are links.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Describe only the first N inputs.", show_default=False),
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Leave out images whose shorter side has fewer pixels.",
            show_default=False,
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="The encoding of a table, such as cp1252. [default: found out]",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Columns that the results keep, with commas between them.", show_default=False
        ),
    ] = None,
    sidecar: Annotated[
        Literal["txt", "metadata"] | None,
        typer.Option(
            help="Write captions beside the images: a .txt for each, or a metadata.jsonl.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files with captions that exist.")
    ] = False,
    results: Annotated[
        Literal["parquet", "jsonl"], typer.Option("--format", help="What results are written as.")
    ] = "parquet",
    concurrency: Annotated[
        str, typer.Option(help="Requests at once: a number, or auto to find out.")
    ] = "auto",
    max_usd: Annotated[
        float | None,
        typer.Option(
            help="Stop before all runs together have spent more than this.", show_default=False
        ),
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=0, help="The same, in images.", show_default=False)
    ] = None,
    usd_per_image: Annotated[
        float | None,
        typer.Option(
            help="What an image costs; 0 on a server of your own. [default: 0.01]",
            show_default=False,
        ),
    ] = None,
    requests_per_second: Annotated[
        float | None, typer.Option(help="The highest rate.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="The model.")] = DEFAULT_MODEL,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The longest answer, 1 to 250.", show_default=False)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0.1 to 1.", show_default=False)] = None,
    top_p: Annotated[float | None, typer.Option(help="0 to 1.", show_default=False)] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 repeats less.", show_default=False)
    ] = None,
    max_image_side: Annotated[
        int | None,
        typer.Option(min=1, help="Longest side of what is sent, in pixels.", show_default=False),
    ] = None,
    detail: Annotated[
        Literal["auto", "tiles"],
        typer.Option(help="Send an image once, or as tiles that are billed and have rows each."),
    ] = "auto",
    max_tiles: Annotated[
        int | None, typer.Option(min=1, help="The most tiles of one image.", show_default=False)
    ] = None,
    url_mode: Annotated[
        Literal["pass", "fetch"],
        typer.Option(help="Hand URLs on unopened, or open public ones here."),
    ] = "pass",
    timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait for an answer.", show_default=False)
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="Where the endpoint is. [default: PHOSPHO_BASE_URL]", show_default=False),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key. [default: PHOSPHO_API_KEY]", show_default=False)
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again about what failed before.")
    ] = False,
    retry_in_doubt: Annotated[
        bool,
        typer.Option(
            "--retry-in-doubt", help="Ask again about what may have been billed unanswered."
        ),
    ] = False,
    max_outage: Annotated[
        float | None,
        typer.Option(
            help="Seconds to wait for an endpoint that limits the rate or cannot be reached."
            " [default: 600]",
            show_default=False,
        ),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Work on a job that a process on another machine did not end properly. Make sure"
            " that it has ended.",
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Work on this Ray cluster, or auto for the one that runs here; its nodes see the"
            " files under the same names.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Go on without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what it would cost, and stop there.")
    ] = False,
    as_json_: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, for a program.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write _report.html beside the results.")
    ] = False,
) -> None:
    """Ask the same about any number of pictures; the same command goes on after a stop.

    The exit code is 0 if all inputs are described, 3 if some failed, are in doubt or were not
    asked, 4 if nothing was found or described, 130 after an interruption, and 1 after any other
    error.
    """
    if not (yes or dry_run) and (source == "-" or not sys.stdin.isatty()):
        errors.print("Nobody can be asked whether to go on: pass --yes, or --dry-run.")
        raise typer.Exit(1)
    # What is not given is not handed on, so that each default stands in one place.
    given: dict[str, Any] = {
        name: value
        for name, value in {
            "column": column,
            "prompt_column": prompt_column,
            "journal": journal,
            "min_size": min_size,
            "encoding": encoding,
            "keep": [name.strip() for name in keep.split(",")] if keep else None,
            "sidecar": sidecar,
            "id_column": id_column,
            "root": root,
            "exclude": exclude,
            "limit": limit,
            "max_usd": max_usd,
            "max_images": max_images,
            "usd_per_image": usd_per_image,
            "requests_per_second": requests_per_second,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "max_image_side": max_image_side,
            "max_tiles": max_tiles,
            "timeout": timeout,
            "max_outage": max_outage,
            "base_url": base_url,
            "api_key": api_key,
            "ray": ray,
        }.items()
        if value is not None
    }

    # What is neither a number nor auto is refused where all settings are.
    number_at_once: Any = int(concurrency) if concurrency.isdecimal() else concurrency

    console = errors if as_json_ else output  # standard output is for the program then
    asked = _Asked()

    def confirm(preflight: Preflight) -> bool:
        console.print(plain(str(preflight)), soft_wrap=True)
        asked.folder = preflight.folder
        asked.goes_on = not dry_run and (
            yes or not preflight.pending or typer.confirm("Go on?", err=as_json_)
        )
        return asked.goes_on

    result: Summary | BaseException
    with ProgressDisplay(errors) as reporter:
        try:
            result = describe_many(
                source,
                out,
                DEFAULT_PROMPT if not prompt else prompt[0] if len(prompt) == 1 else prompt,
                **given,
                model=model,
                results=results,
                concurrency=number_at_once,
                detail=detail,
                url_mode=url_mode,
                follow_links=follow_links,
                overwrite=overwrite,
                retry_failed=retry_failed,
                retry_in_doubt=retry_in_doubt,
                take_over=take_over,
                report=report,
                confirm=confirm,
                on_progress=reporter.show,
            )
        except (KeyboardInterrupt, PhosphoError, ImportError) as failure:
            result = failure
    raise typer.Exit(_tell(result, asked, as_json_=as_json_))


@dataclass
class _Asked:
    """What was answered when the price was shown."""

    goes_on: bool = True
    folder: Path | None = None


def _tell(result: Summary | BaseException, asked: _Asked, *, as_json_: bool) -> int:
    """Print what a job came to, and return the exit code."""
    code = exit_code_of(result)
    line = last_line(result)
    if not asked.goes_on and isinstance(result, Summary):
        code, line = ExitCode.ALL_DESCRIBED, "Nothing was sent. (exit code 0)"
    if as_json_:
        typer.echo(as_json(result, code, asked.folder))
    if isinstance(result, Summary):
        console = errors if as_json_ else output
        console.print(plain(describe_outcome(result)), soft_wrap=True)
        console.print(plain(line), soft_wrap=True)
    else:
        errors.print(plain(line), style="red", soft_wrap=True)
    return code
