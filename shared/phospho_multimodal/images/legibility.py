"""Whether small text can still be read in an image that was shrunk."""

from __future__ import annotations

import logging
from functools import lru_cache

__all__ = ["shrinking_warnings"]

logger = logging.getLogger("phospho_multimodal")

_MOST_SHRINKING = 3.0
"""Factor above which text of the usual size becomes unreadable."""
_LEAST_SIDE = 400
"""Pixels of the short side, below which a page or a screenshot becomes unreadable."""


def shrinking_warnings(before: tuple[int, int], after: tuple[int, int]) -> list[str]:
    """Return a warning if an image was shrunk so far that small text is lost, and log it once."""
    factor = max(before) / max(after)
    if factor <= _MOST_SHRINKING and not (factor > 1 and min(after) < _LEAST_SIDE):
        return []
    _log_once()
    return [f"shrunk {factor:.1f} times, so small text may be unreadable"]


@lru_cache(maxsize=1)
def _log_once() -> None:
    logger.warning(
        "An image was shrunk so far that small text in it may be unreadable. detail='tiles' sends"
        " such an image in several parts, each of which is billed. This is logged once."
    )
