"""The page about a job: counts, cost and course, and the pictures beside what was said of them.

One file that needs nothing else. The rows may be a million: of them only examples are kept, and a
picture is read when its place on the page is written. All they say is somebody else's text.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pybase64

from phospho_multimodal.batch.report import figures
from phospho_multimodal.batch.report.course import FRAME, Course, Moment, cost_plot, rate_plot
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
"""Characters of a text that the page repeats; the results hold all of it."""

# What a browser would not show, or would turn the text around it by: controls without tab and line
# feed, marks of direction, and what no file in UTF-8 can hold.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def write_report(
    path: Path,
    manifest: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    moments: Iterable[Moment],
    *,
    thumbnail: Callable[[Mapping[str, Any]], bytes | None],
    pictures: int = 60,
) -> None:
    """Write the page about a job; a reader finds the old one or the whole new one.

    Args:
        path: The file; its folder is there.
        manifest: The job's, which all counts are taken from.
        rows: All results in order; gone through once, and only examples are kept.
        moments: All answers, in any order; gone through once.
        thumbnail: Makes a small JPEG of a row's picture, `None` if there is none to be had; it is
            asked for the rows that are shown alone.
        pictures: How many described rows to show, taken evenly from all of them.

    Raises:
        ImportError: Jinja2 is not installed.
        OSError: The file cannot be written.
    """
    template = _template()  # first, since the rows may be long to read
    examples = _Examples(pictures)
    for number, row in enumerate(rows, start=1):
        examples.add(number, row)
    course = Course()
    for moment in moments:
        course.add(moment)
    chosen = examples.described.chosen()
    price = Decimal(str(manifest["usd_per_image"]))
    page = template.generate(
        manifest=manifest,
        statuses=_STATUSES,
        finished=sum(manifest["statuses"].get(status, 0) for status in _STATUSES[:3]),
        frame=FRAME,
        plots=[plot for plot in (cost_plot(course, price), rate_plot(course)) if plot],
        bars=_bars(manifest.get("error_classes") or {}),
        cards=_cards(chosen, thumbnail),
        shown=len(chosen),
        distinct=examples.described.seen,
        failures=examples.failures,
        in_doubt=examples.in_doubt,
    )
    # Its name begins as the page's does, so whoever passes over that passes over this as well.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(page)
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def make_thumbnail(image: ImageInput, side: int = 240) -> bytes | None:
    """Make a small picture for the page.

    Args:
        image: What the clients take.
        side: Its longest side, in pixels.

    Returns:
        A JPEG without metadata; `None` if the picture cannot be read, or is an http(s) URL, which
        is not opened.
    """
    try:
        prepared = prepare_image(image, max_image_side=side)
        from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow, so only now

        # What was small and clean came through as it is, and can be a PNG, or large for its size.
        picture = decode.to_rgb(decode.open_image(prepared.data), max_side=side)
        return decode.encode(picture, lossless=False)[0]
    except ImageError:
        return None


class _EvenSample:
    """Every so manyth of a sequence whose length is not known: at least as many as are wanted."""

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
        """As many as are wanted, or all if there are fewer."""
        shown = min(self._wanted, len(self._kept))
        return [self._kept[place * len(self._kept) // shown] for place in range(shown)]


class _Examples:
    """What of all rows is shown."""

    def __init__(self, pictures: int) -> None:
        self.described = _EvenSample(pictures)
        self.failures: dict[str, list[dict[str, Any]]] = {}
        self.in_doubt: list[dict[str, Any]] = []

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        status = row["status"]
        if status == "described":
            # A duplicate would be the same picture with the same answer once more.
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
    """Bring each picture when its card is written, so that one is in memory at a time."""
    for number, row in chosen:
        jpeg = thumbnail(row)
        picture = None if jpeg is None else pybase64.b64encode_as_string(jpeg)
        yield {**row, "number": number, "picture": picture}


def _bars(classes: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Classes of failures with their counts and their share of the longest bar, longest first."""
    ranked = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) > MOST_CLASSES:
        rest = sum(number for _, number in ranked[MOST_CLASSES:])
        ranked = [*ranked[:MOST_CLASSES], ("all others", rest)]
    longest = max((number for _, number in ranked), default=0)
    return [(name, number, number / max(1, longest)) for name, number in ranked]


def _template() -> Template:
    try:
        import jinja2  # noqa: PLC0415 - an extra, which nothing else needs
    except ModuleNotFoundError as missing:
        message = (
            f"The report needs {missing.name!r}, which is not installed:"
            ' pip install "phospho-multimodal[batch]"'
        )
        raise ImportError(message) from missing
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,  # every value on its way to the page, whatever place it is put in
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
    return environment.from_string(source.read_text(encoding="utf-8"))


def _visible(value: Any) -> Any:
    # What a macro made consists of values that came through here before.
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return _HIDDEN.sub("\ufffd", value.replace("\r\n", "\n").replace("\r", "\n"))


def _cut(text: str | None) -> str:
    whole = text or ""
    if len(whole) <= _LONGEST:
        return whole
    return f"{whole[:_LONGEST]}… ({len(whole) - _LONGEST:,} characters more)"
