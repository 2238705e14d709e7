"""The HTML report: counts, cost and course, and images next to their descriptions.

It is one file that loads nothing. There may be a million rows, so only examples are kept, and an
image is read when its place on the page is written. All texts of rows come from strangers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pybase64

from phospho_multimodal.batch.report import figures
from phospho_multimodal.batch.report.plots import Moment, plot_course
from phospho_multimodal.errors import ImageError
from phospho_multimodal.images.prepare import prepare_image
from phospho_multimodal.images.source import ImageInput

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Moment", "make_thumbnail", "write_report"]

FAILURES_OF_A_CLASS = 10
MOST_CLASSES = 30
ROWS_IN_DOUBT = 50

_STATUSES = ("described", "failed", "in_doubt", "pending")
_LONGEST = 2_000
"""Characters of a text on the page. The results hold the whole text."""

# Control characters except tab and line feed, marks that reverse the direction of a text, and what
# UTF-8 cannot encode.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def write_report(
    path: Path,
    manifest: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    moments: Sequence[Moment],
    *,
    thumbnail: Callable[[Mapping[str, Any]], bytes | None],
    pictures: int = 60,
) -> None:
    """Write the report. A reader finds the old file or the whole new one.

    Args:
        path: The file, in an existing folder.
        manifest: The manifest of the job, from which all counts are taken.
        rows: All results in order. They are read once.
        moments: The course of the job.
        thumbnail: Returns a small JPEG of a row's image, or `None`. It is called only for rows that
            are shown.
        pictures: How many described rows to show, spread evenly over all of them.

    Raises:
        ImportError: jinja2, matplotlib or humanize is not installed.
        OSError: The file cannot be written.
    """
    template = _template()  # first, since the rows may be long to read
    examples = _Examples(pictures)
    for number, row in enumerate(rows, start=1):
        examples.add(number, row)
    chosen = examples.described.chosen()
    price = Decimal(str(manifest["usd_per_image"]))
    page = template.generate(
        manifest=manifest,
        statuses=_STATUSES,
        finished=sum(manifest["statuses"].get(status, 0) for status in _STATUSES[:3]),
        plots=plot_course(moments, price),
        bars=_bars(manifest.get("error_classes") or {}),
        cards=_cards(chosen, thumbnail),
        shown=len(chosen),
        distinct=examples.described.seen,
        failures=examples.failures,
        in_doubt=examples.in_doubt,
    )
    # The name begins with an underscore, so readers of the results ignore this file, too.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(page)
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def make_thumbnail(image: ImageInput, side: int = 240) -> bytes | None:
    """Return a small JPEG without metadata, or `None` for a URL or an image that cannot be read."""
    try:
        prepared = prepare_image(image, max_image_side=side)
        from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow, so only now

        # A small image without metadata is passed through, and may be a PNG or have many bytes.
        picture = decode.to_rgb(decode.open_image(prepared.data), max_side=side)
        return decode.encode(picture, lossless=False)[0]
    except ImageError:
        return None


class _EvenSample:
    """A spread sample of a sequence of unknown length: it keeps at least as many as are wanted."""

    def __init__(self, wanted: int) -> None:
        self._wanted = max(0, wanted)
        self._step = 1
        self.seen = 0
        self._kept: list[tuple[int, Mapping[str, Any]]] = []

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        if self._wanted and self.seen % self._step == 0:
            self._kept.append((number, dict(row)))
            if len(self._kept) == 2 * self._wanted:
                del self._kept[1::2]
                self._step *= 2
        self.seen += 1

    def chosen(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Return as many as are wanted, or all if there are fewer."""
        shown = min(self._wanted, len(self._kept))
        return [self._kept[place * len(self._kept) // shown] for place in range(shown)]


class _Examples:
    """The rows that are shown."""

    def __init__(self, pictures: int) -> None:
        self.described = _EvenSample(pictures)
        self.failures: dict[str, list[dict[str, Any]]] = {}
        self.in_doubt: list[dict[str, Any]] = []

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        status = row["status"]
        if status == "described":
            # A duplicate has the same image and the same answer.
            if row["duplicate_of"] is None:
                self.described.add(number, row)
        elif status == "failed":
            name = row["error_class"] or "Unknown"
            if name in self.failures or len(self.failures) < MOST_CLASSES:
                _keep(self.failures.setdefault(name, []), number, row, FAILURES_OF_A_CLASS)
        elif status == "in_doubt":
            _keep(self.in_doubt, number, row, ROWS_IN_DOUBT)


def _keep(kept: list[dict[str, Any]], number: int, row: Mapping[str, Any], most: int) -> None:
    if len(kept) < most:
        kept.append({**row, "number": number})


def _cards(
    chosen: list[tuple[int, Mapping[str, Any]]],
    thumbnail: Callable[[Mapping[str, Any]], bytes | None],
) -> Iterator[dict[str, Any]]:
    """Read each image when its card is written, so that only one is in memory."""
    for number, row in chosen:
        jpeg = thumbnail(row)
        picture = None if jpeg is None else pybase64.b64encode_as_string(jpeg)
        yield {**row, "number": number, "picture": picture}


def _bars(classes: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return classes of failures with their counts, most first."""
    ranked = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) > MOST_CLASSES:
        rest = sum(number for _, number in ranked[MOST_CLASSES:])
        ranked = [*ranked[:MOST_CLASSES], ("all others", rest)]
    return ranked


def _template() -> Template:
    jinja2 = figures.need("jinja2")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,  # applied to every value
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        cut=_cut,
        as_json=lambda value: json.dumps(value, ensure_ascii=False),
        count=figures.count,
        date=figures.date,
        duration=figures.duration,
        money=figures.money,
    )
    source = resources.files(__package__ or "").joinpath("report.html.j2")
    template: Template = environment.from_string(source.read_text(encoding="utf-8"))
    return template


def _visible(value: Any) -> Any:
    # The output of a macro consists of values that were checked before.
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return _HIDDEN.sub("\ufffd", value.replace("\r\n", "\n").replace("\r", "\n"))


def _cut(text: str | None) -> str:
    whole = text or ""
    if len(whole) <= _LONGEST:
        return whole
    return f"{whole[:_LONGEST]}… ({len(whole) - _LONGEST:,} characters more)"
