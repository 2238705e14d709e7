"""Locks for objects of the caller that only one thread at a time may use.

An open file and a PIL image each have one read position. Two threads that read the same one would
each get parts of it, and would send wrong images.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from phospho_multimodal.spending.processes import after_fork

__all__ = ["exclusive_access"]


class _Locks:
    """The locks in use, by the `id` of the locked object: a PIL image cannot be hashed."""

    def __init__(self) -> None:
        self._reset()
        after_fork(self._reset)  # the threads that hold the locks do not exist in the child

    def _reset(self) -> None:
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[int, threading.Lock] = WeakValueDictionary()

    def of(self, owned: object) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(id(owned), threading.Lock())


_locks = _Locks()


@contextmanager
def exclusive_access(owned: object) -> Iterator[None]:
    """Wait until no other thread uses this object; threads with other objects do not wait."""
    with _locks.of(owned):
        yield
