"""How rows are spread over the files of the results."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial

from describing_many import draw_numbered, fill, read_rows
from phospho_multimodal.batch import describe_many
from phospho_multimodal.batch.journal.resume import part_of, rows_of_part


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


def test_a_journal_and_files_of_an_earlier_version_are_continued(endpoint, tmp_path):
    photos = fill(tmp_path / "photos", 3)
    server = endpoint()
    describe = partial(
        describe_many, photos, tmp_path / "out", base_url=server.base_url, results="jsonl"
    )
    folder = describe().folder
    with closing(sqlite3.connect(folder / "_journal.sqlite")) as database:
        database.execute("ALTER TABLE inputs DROP COLUMN requests")
        database.execute("UPDATE facts SET value = 'id source time' WHERE name = 'columns'")
        database.commit()
    draw_numbered(photos / "00003.png", 3)

    summary = describe()

    assert summary.described == len(read_rows(summary)) == 4
    assert server.billed == 4
