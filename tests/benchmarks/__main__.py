"""Measure phospho-multimodal beside its peers, and hold it against its targets.

    make bench

installs the peers (extra `bench`) into .venv and measures what is there. It needs
Linux, takes some minutes, ends with 1 if a target was missed, and writes the reference's table and
`overhead.svg` beside this file if `--write` is given.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import Any

from contestants import Payload
from imports import measure_imports
from machine import FullSpeed, QuietRounds, describe_machine, stay_on_core
from memory import measure_memory
from overhead import measure_overhead
from pictures_to_send import clean_jpeg
from preparation import measure_preparation
from report import print_report, write_report
from targets import judge
from throughput import measure_throughput

_URL = Payload("URL", "https://example.com/receipt.jpg")
_MEGABYTE = 1_000_000


def measure(scale: float) -> dict[str, Any]:
    """Measure everything.

    Args:
        scale: Of the number of rounds; 1 is what verdicts need.

    Returns:
        Results by section.
    """

    def rounds(number: int) -> int:
        return max(1, round(number * scale))

    picture = Payload("1 MB", clean_jpeg(_MEGABYTE))
    say("overhead of single calls")
    overhead = [
        *measure_overhead(_URL, rounds=rounds(8), calls=16),
        *measure_overhead(picture, rounds=rounds(10), calls=6),
    ]
    say("many calls at once")
    throughput = {
        "URL, 64 at once": measure_throughput(_URL, width=64, rounds=rounds(6), calls=256),
        "1 MB, 16 at once": measure_throughput(picture, width=16, rounds=rounds(6), calls=64),
    }
    say("memory")
    memory = measure_memory(["PhosphoClient", "ChatPhospho", "ChatOpenAI", "ChatAnthropic"])
    say("imports")
    imports = measure_imports(rounds(19))
    say("preparation")
    return {
        "overhead": overhead,
        "throughput": throughput,
        "memory": memory,
        "imports": imports,
        "preparation": measure_preparation(rounds(15)),
        "machine": describe_machine(),
        "noisy": QuietRounds.noisy,
        "speeds": FullSpeed.speeds,
    }


def say(what: str) -> None:
    """Tell what is measured now."""
    print(f"{time.strftime('%X')} {what} …", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    stay_on_core(0)
    results = measure(options.scale)
    verdicts = judge(results)
    print_report(results, verdicts)
    if options.write:
        write_report(results)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
