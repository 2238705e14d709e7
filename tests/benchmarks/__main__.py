"""Compare phospho-multimodal with comparable integrations, and check its targets.

    make bench

installs the integrations (extra `bench`) into .venv. It needs Linux and less than six minutes. The
exit status is 1 if a target was missed. With `--write`, it writes the reference's table and plot.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import Any

from certificate import trusted_certificate
from contestants import Payload
from imports import measure_imports
from machine import describe_machine, stay_on_core
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
    """Measure everything, with the number of rounds multiplied by `scale`."""

    def rounds(number: int) -> int:
        return max(1, round(number * scale))

    image = Payload("1 MB", clean_jpeg(_MEGABYTE))
    overhead = []
    throughput = {}
    with trusted_certificate() as certificate:
        for scheme, served, processes in (("https", certificate, 2), ("http", None, 1)):
            say(f"CPU of single calls, {scheme}")
            how = {"processes": processes}
            overhead += measure_overhead(_URL, served, rounds=rounds(8), calls=12, **how)
            overhead += measure_overhead(image, served, rounds=rounds(6), calls=5, **how)
            say(f"64 concurrent calls, {scheme}")
            throughput[scheme] = measure_throughput(_URL, served, rounds=rounds(5), calls=256)
    say("memory")
    memory = measure_memory(["PhosphoClient", "ChatPhospho", "ChatOpenAI", "ChatAnthropic"])
    say("imports")
    imports = measure_imports(rounds(7))
    say("preparation")
    return {
        "overhead": overhead,
        "throughput": throughput,
        "memory": memory,
        "imports": imports,
        "preparation": measure_preparation(rounds(11)),
        "machine": describe_machine(),
    }


def say(what: str) -> None:
    """Print the part that is measured now."""
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
