"""A short run of the fuzzing; the long one is `python tests/fuzz/fuzz_images.py`."""

from __future__ import annotations

import pytest
from fuzz_images import fuzz

pytestmark = pytest.mark.long


def test_a_few_seconds_of_broken_pictures_find_nothing():
    ends, findings = fuzz(4.0, seed=7)

    assert findings == 0
    assert ends["ImageError"] > 100
    assert ends["image"] > 100
