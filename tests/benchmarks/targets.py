"""The targets, which are ratios within one run. Only https is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imports import FLOORS
from overhead import PEERS, Overhead
from throughput import AIOHTTP, OURS
from throughput import PEERS as THROUGHPUT_PEERS

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """One target and its measured value."""

    what: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        if self.at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit


def judge(results: dict[str, Any]) -> list[Verdict]:
    """Return a verdict for each target, from the results of a run by section."""
    return [
        *_overheads(results["overhead"]),
        *_throughputs(results["throughput"]["https"]),
        *_memory(results["memory"]),
        *_imports(results["imports"]),
        Verdict(
            "12 megapixels: prepare_image / Pillow's usual recipe",
            results["preparation"]["ours"] / results["preparation"]["usual"],
            0.55,
        ),
    ]


def _overheads(tables: list[Overhead]) -> list[Verdict]:
    return [
        Verdict(
            f"{table.payload}, {table.mode}: O of {name} / O of the best peer",
            table.share_of_best_peer(name),
            0.25,
        )
        for table in tables
        if table.scheme == "https"
        for name in PEERS
    ]


def _throughputs(rates: dict[str, float]) -> list[Verdict]:
    verdicts = []
    for mode in ("batch", "abatch"):
        peers = [rate for name in THROUGHPUT_PEERS if (rate := rates.get(f"{name} {mode}"))]
        share = rates[f"{OURS} {mode}"] / max(peers) if peers else float("nan")
        what = f"64 concurrent, 50 ms: {OURS} {mode} / the best peer"
        verdicts.append(Verdict(what, share, 2.5, at_least=True))
    what = f"64 concurrent, 50 ms: {AIOHTTP} abatch / raw TLS sockets"
    return [*verdicts, Verdict(what, rates[f"{AIOHTTP} abatch"], 0.5, at_least=True)]


def _memory(table: dict[str, dict[str, float]]) -> list[Verdict]:
    limits = {"in a row": 2.5, "at once": 1.5, "kept in a row": 0.5, "kept at once": 0.5}
    return [
        Verdict(f"5 MB, {pattern}: memory of {name} / base64", table[name][pattern], limit)
        for name in ("PhosphoClient", "ChatPhospho")
        for pattern, limit in limits.items()
    ]


def _imports(table: dict[str, dict[str, float]]) -> list[Verdict]:
    verdicts = []
    for ours, floor in FLOORS.items():
        verdicts.append(Verdict(f"import {ours} / {floor}", table[ours]["over"], 1.10))
        verdicts.append(Verdict(f"foreign modules that {ours} loads", table[ours]["foreign"], 0))
    return verdicts
