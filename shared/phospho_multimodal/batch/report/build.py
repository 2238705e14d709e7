"""The report of a job, made from its manifest, its rows and its journal."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.results.manifest import Summary
from phospho_multimodal.batch.results.rows import REPORT_NAME, Results
from phospho_multimodal.batch.sources.select import Item, Source

_MOST_PASSES = 4  # each may read a million inputs; images that are gone since would cost one each

__all__ = ["REPORT_NAME", "check_report", "report_on"]


def check_report() -> None:
    """Raise an `ImportError` before anything is paid if a library of the report is missing."""
    for module in ("jinja2", "matplotlib", "humanize"):
        if importlib.util.find_spec(module) is None:
            message = (
                f"The report needs {module}, which is not installed: pip install"
                ' "phospho-multimodal[batch]".'
            )
            raise ImportError(message)


def report_on(summary: Summary, source: Source, journal: Journal, results: Results) -> None:
    """Write the report of a job, with images that are read from its source."""
    from phospho_multimodal.batch.report.page import Moment, write_report  # noqa: PLC0415 - an extra

    write_report(
        summary.folder / REPORT_NAME,
        summary.manifest,
        results.rows(),
        [Moment(*moment) for moment in journal.course(float(summary.manifest["seconds"]))],
        thumbnail=_Pictures(source).thumbnail,
    )


class _Pictures:
    """Finds images in a source again, in one pass if they are wanted in its order."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._items: Iterator[Item] = iter(())
        self._passes = 0

    def thumbnail(self, row: Mapping[str, Any]) -> bytes | None:
        """Return a small image of a row's input, if it is still there."""
        from phospho_multimodal.batch.report.page import make_thumbnail  # noqa: PLC0415 - see above

        if row["removed"]:  # a search would go through all inputs
            return None
        item = self._find(row["id"])
        if item is None or item.image is None:
            return None
        return make_thumbnail(item.image)

    def _find(self, name: str) -> Item | None:
        for _ in range(2):  # on from the last one, then from the beginning
            for item in self._items:
                if item.id == name:
                    return item
            if self._passes == _MOST_PASSES:
                break
            self._items = iter(self._source)
            self._passes += 1
        return None
