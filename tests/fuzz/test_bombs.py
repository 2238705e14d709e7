"""No picture, however made, takes more than a second and 300 MB."""

from __future__ import annotations

import pytest
from bombs import BOMBS
from measured_child import LIMIT_BYTES, LIMIT_SECONDS, measure


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_error_or_a_picture_in_time_and_memory(name: str):
    # Each in a process of its own: what one leaves of the heap is not the next one's.
    (result,) = measure([BOMBS[name]()])

    assert result.end in {"image", "ImageError"}
    assert result.seconds < LIMIT_SECONDS
    assert result.growth < LIMIT_BYTES
