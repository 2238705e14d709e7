"""How rows are spread over the files of the results."""

from __future__ import annotations

from phospho_multimodal.batch.journal.file import part_of, rows_of_part


def test_a_million_rows_are_tens_of_files_and_the_first_thousand_are_readable_soon():
    assert part_of(1_000_000) < 30
    assert rows_of_part(0) == (1, 1000)


def test_every_row_is_in_exactly_one_file():
    position = 1
    for number in range(40):
        first, last = rows_of_part(number)
        assert first == position
        assert {part_of(first), part_of(last)} == {number}
        position = last + 1
