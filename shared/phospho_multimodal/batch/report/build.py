"""A job's page, put together from what the job knows."""

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
    """Look whether a page can be made, before anything is paid.

    Raises:
        ImportError: Jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        message = (
            "The report needs jinja2, which is not installed: pip install"
            ' "phospho-multimodal[batch]".'
        )
        raise ImportError(message)


def report_on(summary: Summary, source: Source, journal: Journal, results: Results) -> None:
    """Write the page of a job.

    Args:
        summary: What it came to.
        source: Its inputs: the pictures that are shown are looked for there.
        journal: When its answers ended.
        results: Its rows.

    Raises:
        OSError: The page cannot be written.
    """
    from phospho_multimodal.batch.report.page import Moment, write_report  # noqa: PLC0415 - an extra

    write_report(
        summary.folder / REPORT_NAME,
        summary.manifest,
        results.rows(),
        (Moment(*moment) for moment in journal.course()),
        thumbnail=_Pictures(source).thumbnail,
    )


class _Pictures:
    """Finds pictures in a source again; quickly, if they are asked for in its order."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._items: Iterator[Item] = iter(())
        self._passes = 0

    def thumbnail(self, row: Mapping[str, Any]) -> bytes | None:
        """Make a small picture of a row's input, if it is still there."""
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
