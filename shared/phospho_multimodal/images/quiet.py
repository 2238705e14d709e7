"""Keeps Pillow's warnings about odd files from users, and from becoming errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from phospho_multimodal.images.exclusive_access import exclusive_access

__all__ = ["without_pillow_warnings"]


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Ignore the warnings of Pillow's modules while headers and metadata are read.

    Python's filters belong to the whole process. One thread at a time changes them, for about a
    millisecond, so that concurrent calls restore what the program has set. Never decode in here.
    """
    with exclusive_access(warnings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)(\.|$)")
        yield
