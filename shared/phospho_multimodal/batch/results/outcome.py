"""How the command ends: its last lines, and the exit code that says the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.results.manifest import Summary
from phospho_multimodal.batch.sources.items import NoInputsError
from phospho_multimodal.errors import PhosphoError

__all__ = ["ExitCode", "as_json", "describe_outcome", "exit_code_of", "last_line"]

_LISTED = 20  # ids of rows in doubt that are printed


class ExitCode(IntEnum):
    """What the command returns to its caller; 2 is a wrong flag."""

    ALL_DESCRIBED = 0
    ERROR = 1
    PARTLY_DESCRIBED = 3
    NOTHING_DESCRIBED = 4
    INTERRUPTED = 130


def exit_code_of(result: Summary | BaseException) -> ExitCode:
    """Return the exit code of a job."""
    if isinstance(result, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(result, BaseException):
        nothing = isinstance(result, NoInputsError)
        return ExitCode.NOTHING_DESCRIBED if nothing else ExitCode.ERROR
    if not result.described:
        return ExitCode.NOTHING_DESCRIBED
    whole = result.described == result.inputs
    return ExitCode.ALL_DESCRIBED if whole else ExitCode.PARTLY_DESCRIBED


def last_line(result: Summary | BaseException) -> str:
    """Say how the job ended, with the exit code."""
    code = exit_code_of(result)
    if isinstance(result, KeyboardInterrupt):
        words = "Interrupted. All answers are kept. The same command continues the job."
    elif isinstance(result, BaseException):
        words = str(result)
    elif code is ExitCode.ALL_DESCRIBED:
        words = f"All {result.inputs:,} inputs are described."
    else:
        counts = {
            "failed": result.failed,
            "in doubt": result.in_doubt,
            "not asked yet": result.pending,
        }
        left = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        described = f"{result.described:,}" if result.described else "None"
        words = f"{described} of {result.inputs:,} inputs are described: {left}."
    return f"{words} (exit code {code})"


def describe_outcome(summary: Summary) -> str:
    """Describe the outcome of a job, and how to send the rest again."""
    lines = [str(summary)]
    ids = summary.manifest["in_doubt"]
    if ids:
        more = "" if summary.in_doubt <= _LISTED else f" and {summary.in_doubt - _LISTED:,} more"
        listed = f"In doubt: {', '.join(ids[:_LISTED])}{more}."
        lines.append(f"{listed} They may have been billed; --retry-in-doubt asks again.")
    if summary.failed:
        classes = summary.manifest["error_classes"].items()
        listed = ", ".join(f"{count:,} {name}" for name, count in classes)
        lines.append(f"Failed: {listed}. --retry-failed asks again.")
    return "\n".join(lines)


def as_json(result: Summary | BaseException, code: int, folder: Path | None) -> str:
    """Write the outcome of a job for a program."""
    manifest: Mapping[str, Any] | None = None
    if isinstance(result, Summary):
        folder, manifest = result.folder, result.manifest
    elif folder is not None:
        try:
            manifest = Summary.read(folder).manifest
        except PhosphoError:
            manifest = None
    told: dict[str, Any] = {
        "exit_code": int(code),
        "folder": None if folder is None else str(folder),
        "manifest": manifest,
        "error": None,
    }
    if isinstance(result, BaseException):
        told["error"] = {"class": type(result).__name__, "message": str(result)}
    return json.dumps(told)
