"""Names in order, however many there are."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phospho_multimodal.batch.sources import sorting
from phospho_multimodal.batch.sources.sorting import sorted_names

NAMES = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))


@given(NAMES, st.integers(1, 5), st.integers(1, 7))
def test_names_come_in_order_whatever_is_held_at_once(
    names: list[str], together: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_TOGETHER", together)
        patch.setattr(sorting, "_BLOCK", block)
        assert list(sorted_names(iter(names))) == sorted(names)


def test_a_name_that_is_no_utf8_comes_through() -> None:
    names = [f"{number:05d}\udcff\n.png" for number in range(9000)]
    assert list(sorted_names(reversed(names))) == names


@pytest.mark.long
def test_a_hundred_thousand_names_take_little_memory() -> None:
    tracemalloc.start()
    try:
        count = sum(
            1 for _ in sorted_names(f"{number * 7919 % 100_003:09d}" for number in range(100_000))
        )
        assert count == 100_000
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()
