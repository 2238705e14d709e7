"""The plots of the report, drawn by matplotlib as SVG: cost and rate over the working time."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from typing import Any

import pybase64

from phospho_multimodal.batch.report.figures import count, duration, money, need

__all__ = ["Moment", "Plot", "plot_course"]

_STYLE = {"svg.hashsalt": "phospho", "svg.fonttype": "none", "font.size": 9, "axes.grid": True}
_SIZE = (4.6, 2.2)  # inches
_SOFT = "#8a8d98"  # readable on white and on black
_BILLED, _IN_DOUBT = "#2f8fb3", "#c98a1b"


@dataclass(frozen=True, slots=True)
class Moment:
    """A span of the working time in which answers ended."""

    seconds: float  # how long it is
    images_billed: int  # billed images of these answers
    images_in_doubt: int  # images of these answers that are in doubt
    rows: int  # inputs that have their row by these answers


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with its title, its content in one sentence, and its file as a `data:` URL."""

    title: str
    summary: str
    url: str


def plot_course(moments: Sequence[Moment], usd_per_image: Decimal) -> list[Plot]:
    """Draw the cost and the rate of a job; nothing without answers."""
    if not moments:
        return []
    price = float(usd_per_image)
    minutes = [0.0, *accumulate(moment.seconds / 60 for moment in moments)]
    billed = [0.0, *accumulate(moment.images_billed * price for moment in moments)]
    both = [
        one + doubt
        for one, doubt in zip(
            billed,
            [0.0, *accumulate(moment.images_in_doubt * price for moment in moments)],
            strict=True,
        )
    ]
    rates = [moment.rows * 60 / moment.seconds for moment in moments]

    def draw_cost(axes: Any) -> None:
        axes.fill_between(minutes, billed, color=_BILLED, alpha=0.5)
        axes.fill_between(minutes, both, billed, color=_IN_DOUBT, alpha=0.5)
        axes.set_ylabel("dollars", color=_SOFT)

    def draw_rate(axes: Any) -> None:
        axes.stairs(rates, minutes, fill=True, color=_BILLED, alpha=0.5)
        axes.set_ylabel("rows a minute", color=_SOFT)

    cost = f"{money(round(billed[-1], 6))} billed"
    if both[-1] > billed[-1]:
        cost += f", {money(round(both[-1] - billed[-1], 6))} in doubt"
    highest = f"{count(max(rates))} rows a minute at most, over {duration(moments[0].seconds)} each"
    return [
        Plot("Cost so far", cost, _drawn(draw_cost)),
        Plot("Rows per minute", highest, _drawn(draw_rate)),
    ]


def _drawn(draw: Callable[[Any], None]) -> str:
    matplotlib = need("matplotlib")
    figures = need("matplotlib.figure")  # without pyplot, which keeps every figure
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel("minutes of working time", color=_SOFT)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.tick_params(colors=_SOFT)
        axes.grid(color=_SOFT, alpha=0.3)
        axes.spines[:].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{pybase64.b64encode_as_string(file.getvalue())}"
