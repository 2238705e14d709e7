"""A short run of the soak; the long one is `python tests/soak/soak.py`."""

from __future__ import annotations

import pytest

from soak import soak

pytestmark = pytest.mark.long


@pytest.mark.parametrize("mode", ["threads", "await"])
def test_everything_adds_up(mode: str):
    # So short a run still grows into its buffers: the long one judges memory.
    assert soak(mode, requests=400, concurrency=64, growth=1.0) == []
