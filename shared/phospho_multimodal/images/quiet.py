"""Keeps Pillow's warnings about odd files from users, and from becoming errors."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from phospho_multimodal.spending.processes import after_fork

__all__ = ["without_pillow_warnings"]


class _State:
    """The lock that a child process needs anew."""

    def __init__(self) -> None:
        self.renew()
        after_fork(self.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


_state = _State()


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Ignore the warnings of Pillow's modules while headers and metadata are read.

    Python's filters belong to the whole process. One thread at a time changes them, for about a
    millisecond, so that concurrent calls restore what the program has set. Never decode in here.
    """
    with _state.lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)(\.|$)")
        yield
