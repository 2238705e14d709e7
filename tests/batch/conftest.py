from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from phospho_multimodal.batch.pipeline import circuit_breaker
from phospho_multimodal.exchange import retry

pytest.register_assert_rewrite("describing_many")
from describing_many import BATCHES, Batch, Endpoint  # noqa: E402 - rewritten as it is imported


@pytest.fixture(params=BATCHES)
def batch(request: pytest.FixtureRequest) -> Batch:
    """Both functions and both kinds of results."""
    made: Batch = request.param
    return made


@pytest.fixture
def endpoint() -> Iterator[Callable[..., Endpoint]]:
    """Starts endpoints that answer to order, and stops them; none may be left with connections."""
    with ExitStack() as stack:

        def start(*script: Any, **options: Any) -> Endpoint:
            made = Endpoint(*script, **options)
            stack.enter_context(made.running())
            return made

        yield start


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off by milliseconds; the real figures are tested where they are decided."""
    monkeypatch.setattr(retry, "_FIRST_DELAY", 0.002)
    monkeypatch.setattr(retry, "_LONGEST_DELAY", 0.01)
    monkeypatch.setattr(circuit_breaker, "_FIRST_DELAY", 0.002)
