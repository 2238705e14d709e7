from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from batch_soak import lab
from clusters import cluster, driver


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """A cluster of a head and two nodes; who removes one adds another."""
    with cluster() as made:
        yield made


@pytest.fixture(scope="session")
def ray_cluster(nodes: Any) -> Iterator[Any]:
    """The same, with this process as its driver."""
    with driver(nodes):
        yield nodes


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start servers that count what they bill; each returns its base URL."""
    yield from _serve()


@pytest.fixture(scope="module")
def serve_shared() -> Iterator[Callable[..., str]]:
    """The same, for all tests of a file."""
    yield from _serve()


def _serve() -> Iterator[Callable[..., str]]:
    with ExitStack() as stack:

        def start(faults: float = 0.0, seconds: float = 0.02, **options: int) -> str:
            return stack.enter_context(lab(faults=faults, seconds=seconds, **options))

        yield start


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
