"""`phospho-multimodal batch`: the command line of a job."""

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from phospho_multimodal.cli.batch_options import BatchFlags
from phospho_multimodal.cli.batch_progress import ProgressDisplay
from phospho_multimodal.cli.console import errors, output, plain
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT

__all__ = ["INTERRUPTED", "run_batch"]

INTERRUPTED = int(ExitCode.INTERRUPTED)  # the exit code of a program that Ctrl-C ended


def run_batch(**given: Any) -> None:
    """Send one prompt about any number of images. The same command continues after a stop.

    The exit code is 0 if all inputs are described, 3 if some failed, are in doubt or were not
    sent, 4 if nothing was found or described, 130 after an interruption, and 1 after any other
    error.
    """
    flags = BatchFlags(**given)
    if not (flags.yes or flags.dry_run) and (flags.source == "-" or not sys.stdin.isatty()):
        errors.print("Nobody can be asked whether to start: pass --yes, or --dry-run.")
        raise typer.Exit(1)
    console = errors if flags.as_json_ else output  # standard output is for the program then
    confirmed = _Confirmed()
    result: Summary | BaseException
    with ProgressDisplay(errors) as display:

        def confirm(preflight: Preflight) -> bool:
            display.stop()
            console.print(plain(str(preflight)), soft_wrap=True)
            confirmed.folder = preflight.folder
            confirmed.goes_on = not flags.dry_run and (
                flags.yes or not preflight.pending or typer.confirm("Go on?", err=flags.as_json_)
            )
            return confirmed.goes_on

        try:
            result = describe_many(
                flags.source,
                flags.out,
                _one_or_several(flags.prompt),
                **flags.to_options(),
                confirm=confirm,
                on_progress=display.show,
            )
        except (KeyboardInterrupt, PhosphoError, ImportError) as failure:
            result = failure
    raise typer.Exit(_print_outcome(result, confirmed, as_json_=flags.as_json_))


# typer reads the options from the signature.
run_batch.__signature__ = inspect.signature(BatchFlags)  # type: ignore[attr-defined]


@dataclass
class _Confirmed:
    """The answer to the price."""

    goes_on: bool = True
    folder: Path | None = None


def _print_outcome(
    result: Summary | BaseException, confirmed: _Confirmed, *, as_json_: bool
) -> int:
    """Print the outcome of a job, and return the exit code."""
    code = exit_code_of(result)
    line = last_line(result)
    if not confirmed.goes_on and isinstance(result, Summary):
        code, line = ExitCode.ALL_DESCRIBED, "Nothing was sent. (exit code 0)"
    if as_json_:
        typer.echo(as_json(result, code, confirmed.folder))
    if isinstance(result, Summary):
        console = errors if as_json_ else output
        console.print(plain(describe_outcome(result)), soft_wrap=True)
        console.print(plain(line), soft_wrap=True)
    else:
        errors.print(plain(line), style="red", soft_wrap=True)
    return code


def _one_or_several(prompts: list[str] | None) -> str | list[str]:
    """One prompt is not a list: rows of a job with several prompts say which one."""
    if not prompts:
        return DEFAULT_PROMPT
    return prompts[0] if len(prompts) == 1 else prompts
