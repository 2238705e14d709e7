"""What has to hold, judged by ratios within one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imports import FLOORS
from overhead import Overhead

__all__ = ["Verdict", "judge"]

OURS = ("ChatPhospho", "Phospho.chat", "PhosphoMultiModal.complete")


@dataclass(frozen=True)
class Verdict:
    """One target and what was measured."""

    what: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it holds."""
        if self.at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit


def judge(results: dict[str, Any]) -> list[Verdict]:
    """Hold a run's results against the targets.

    Args:
        results: By section, as the command collects them.

    Returns:
        A verdict for each target.
    """
    return [
        *_overheads(results["overhead"]),
        *_throughputs(results["throughput"]),
        *_memory(results["memory"]),
        *_imports(results["imports"]),
        *_preparation(results["preparation"]),
    ]


def _overheads(tables: list[Overhead]) -> list[Verdict]:
    verdicts = []
    for table in tables:
        limit = 0.65 if table.payload == "URL" else 0.24
        reference = table.cpu["httpx json="]
        verdicts += [
            Verdict(
                f"{table.payload}, {table.mode}: {name} over its floor / httpx json=",
                table.over_floor(name) / reference,
                limit,
            )
            for name in OURS
        ]
        if table.payload != "URL":
            verdicts.append(
                Verdict(
                    f"{table.payload}, {table.mode}: all of ChatPhospho / httpx json=",
                    table.share("ChatPhospho"),
                    0.65,
                )
            )
    return verdicts


def _throughputs(tables: dict[str, dict[str, float]]) -> list[Verdict]:
    limits = {
        ("URL, 64 at once", "abatch"): 0.45,
        ("URL, 64 at once", "batch"): 0.34,
        ("1 MB, 16 at once", "abatch"): 0.55,
        ("1 MB, 16 at once", "batch"): 0.55,
    }
    return [
        Verdict(
            f"{title}: ChatPhospho {way} / raw sockets",
            tables[title][f"ChatPhospho {way}"],
            limit,
            at_least=True,
        )
        for (title, way), limit in limits.items()
    ]


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
        verdicts.append(Verdict(f"import {ours} / {floor}", table[ours]["over"], 1.05))
        verdicts.append(Verdict(f"foreign modules that {ours} loads", table[ours]["foreign"], 0))
    share = table["langchain_phospho"]["over a bare object"]
    verdicts.append(Verdict("ChatPhospho() / a do-nothing model()", share, 3))
    return verdicts


def _preparation(figures: dict[str, float]) -> list[Verdict]:
    return [
        Verdict(
            "12 megapixels: prepare_image / Pillow's usual recipe",
            figures["ours"] / figures["usual"],
            0.55,
        ),
        Verdict("12 megapixels: growth of the peak, MiB", figures["ours peak"], 30),
    ]
