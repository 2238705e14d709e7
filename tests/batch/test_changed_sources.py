"""A source that changes between two runs: no image is paid for twice, and no paid row is lost."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from describing_many import (
    Endpoint,
    answer_to,
    check_books,
    draw_numbered,
    fill,
    numbered,
    read_manifest,
    read_rows,
    write_csv,
)
from fault_server import reset, status
from phospho_multimodal.batch import Summary, describe_many
from phospho_multimodal.errors import SpendingLimitError


def describe(server: Endpoint, source: Any, out: Path, **options: Any) -> Summary:
    options = {"results": "jsonl", "concurrency": 4, **options}
    return describe_many(source, out, base_url=server.base_url, **options)


def present(out: Path) -> dict[str, str]:
    """The answers by id, without the rows of removed inputs."""
    return {row["id"]: row["description"] for row in read_rows(out) if not row["removed"]}


def removed(out: Path) -> list[str]:
    return [row["description"] for row in read_rows(out) if row["removed"]]


def table(folder: Path, numbers: Sequence[int]) -> Path:
    """A table without ids, whose paths name the images in a folder."""
    for number in numbers:
        draw_numbered(folder / f"{number:05d}.png", number)
        # One size and one time, as a checkout, an image of a container or `tar` makes them.
        os.utime(folder / f"{number:05d}.png", (0, 0))
    return write_csv(folder / "t.csv", [{"image": f"{number:05d}.png"} for number in numbers])


CHANGES = {
    "one is inserted first": ([1, 2, 3], [0, 1, 2, 3]),
    "one is inserted between": ([1, 2, 3], [1, 9, 2, 3]),
    "one is appended": ([1, 2, 3], [1, 2, 3, 4]),
    "the first is removed": ([1, 2, 3], [2, 3]),
    "one between is removed": ([1, 2, 3], [1, 3]),
    "the last is removed": ([1, 2, 3], [1, 2]),
    "they are sorted the other way": ([1, 2, 3], [3, 2, 1]),
    "all are others": ([1, 2, 3], [4, 5]),
    "one is there twice": ([1, 2, 3], [1, 2, 2, 3]),
}


@pytest.mark.parametrize("form", ["table", "list", "standard input"])
@pytest.mark.parametrize("change", CHANGES)
def test_rows_of_a_table_may_come_and_go(endpoint, tmp_path, change, form, monkeypatch):
    server, out = endpoint(), tmp_path / "out"
    for numbers in CHANGES[change]:
        source: Any = table(tmp_path / "in", numbers)
        lines = [str(tmp_path / "in" / f"{number:05d}.png") for number in numbers]
        if form == "list":
            source = lines
        elif form == "standard input":
            monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
            source = "-"
        describe(server, source, out)
    before, after = CHANGES[change]
    assert server.asked == dict.fromkeys({*before, *after}, 1)
    assert list(present(out).values()) == [answer_to(number) for number in after]
    shown = {*present(out).values(), *removed(out)}
    assert shown == {answer_to(number) for number in {*before, *after}}, "nothing paid is lost"
    check_books(server, out)


def _copied(source: Path) -> Path:
    shutil.copytree(source, source.with_name("new"), copy_function=shutil.copyfile)
    return source.with_name("new")


def _moved(source: Path) -> Path:
    return source.rename(source.with_name("new"))


def _copied_elsewhere_in_part(source: Path) -> Path:
    (source / "00001.png").unlink()
    return _copied(source)


MOVES: dict[str, Callable[[Path], Path]] = {
    "a copy with new times": _copied,
    "a moved folder": _moved,
    "a copy without one image": _copied_elsewhere_in_part,
}


@pytest.mark.parametrize("move", MOVES)
def test_the_same_images_in_another_folder_are_not_paid_for_again(endpoint, tmp_path, move):
    server, out = endpoint(), tmp_path / "out"
    source = fill(tmp_path / "old", 4)
    describe(server, source, out)
    source = MOVES[move](source)
    summary = describe(server, source, out)
    assert (summary.described, server.billed) == (4, 4)
    names = [path.name for path in sorted(source.iterdir())]
    assert list(present(out)) == names
    kept = [row["source"] for row in read_rows(out) if not row["removed"]]
    assert kept == [str(source / name) for name in names]
    assert summary.removed == 4 - len(names)
    check_books(server, out)


@pytest.mark.parametrize("names", [("00001.png", "z.png"), ("00001.png", "0.png")])
def test_a_renamed_image_is_not_paid_for_again(endpoint, tmp_path, names):
    server, out = endpoint(), tmp_path / "out"
    source = fill(tmp_path / "in", 3)
    describe(server, source, out)
    (source / names[0]).rename(source / names[1])
    describe(server, source, out)
    assert server.billed == 3
    assert present(out)[names[1]] == answer_to(1)
    assert [row["id"] for row in read_rows(out) if row["removed"]] == [names[0]]
    check_books(server, out)


def test_other_images_under_the_same_names_keep_the_rows_of_the_first(endpoint, tmp_path):
    server, out = endpoint(), tmp_path / "out"
    for folder, first in (("one", 10), ("two", 20)):
        for number in range(3):
            draw_numbered(tmp_path / folder / f"{number}.png", first + number)
        describe(server, tmp_path / folder, out)
    assert list(present(out).values()) == [answer_to(number) for number in (20, 21, 22)]
    assert removed(out) == [answer_to(number) for number in (10, 11, 12)]
    assert {row["source"] for row in read_rows(out) if row["removed"]} == {
        str(tmp_path / "one" / f"{number}.png") for number in range(3)
    }
    check_books(server, out)
    describe(server, tmp_path / "one", out)
    assert list(present(out).values()) == [answer_to(number) for number in (10, 11, 12)]
    assert removed(out) == [answer_to(number) for number in (20, 21, 22)]
    assert server.billed == 6
    check_books(server, out)


@pytest.mark.parametrize("results", ["parquet", "jsonl"])
def test_a_removed_input_is_marked_and_may_come_back(endpoint, tmp_path, results):
    server, out = endpoint(of={1: [reset()], 2: [status(422)]}), tmp_path / "out"
    source = fill(tmp_path / "in", 5)
    describe(server, source, out, results=results)
    for number in (0, 1, 2):
        (source / f"{number:05d}.png").unlink()
    summary = describe(server, source, out, results=results)
    assert [row["removed"] for row in read_rows(out)] == [True] * 3 + [False] * 2
    assert (summary.removed, read_manifest(out)["removed"]) == (3, 3)
    assert "3 rows of removed inputs" in str(summary)
    again = {"retry_failed": True, "retry_in_doubt": True}
    summary = describe(server, source, out, results=results, **again)
    assert (summary.in_doubt, summary.failed, summary.pending) == (1, 1, 0)
    fill(source, 3)
    summary = describe(server, source, out, results=results)
    assert [row["removed"] for row in read_rows(out)] == [False] * 5
    assert summary.removed == 0
    assert server.asked == dict.fromkeys(range(5), 1)
    check_books(server, out)


def test_removed_rows_that_come_back_leave_no_part_behind(endpoint, tmp_path):
    server, out = endpoint(), tmp_path / "out"
    rows = [f"a{n}.png" for n in range(1000)]
    draw_numbered(tmp_path / "a0.png", 5)
    draw_numbered(tmp_path / "b.png", 6)
    for name in rows[1:]:
        os.link(tmp_path / "a0.png", tmp_path / name)
    for first in ("a0.png", "b.png", "a0.png"):
        describe(server, [str(tmp_path / name) for name in (first, *rows[1:])], out)
        check_books(server, out)
    assert server.asked == {5: 1, 6: 1}
    assert [part["rows"] for part in read_manifest(out)["results"]["parts"]] == [1000, 1]
    describe(server, [str(tmp_path / name) for name in ("b.png", *rows[1:])], out)
    assert [part["rows"] for part in read_manifest(out)["results"]["parts"]] == [1000]
    check_books(server, out)


def test_a_run_that_stops_while_it_counts_marks_nothing(endpoint, tmp_path):
    server, out = endpoint(), tmp_path / "out"
    describe(server, [numbered(number) for number in range(600)], out)

    class Failing(list[bytes]):
        def __iter__(self) -> Any:
            yield from list(super().__iter__())[:300]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        describe(server, Failing([numbered(number) for number in range(600)]), out)
    assert not any(row["removed"] for row in read_rows(out))
    assert not describe(server, [numbered(n) for n in range(600)], out).removed
    assert server.billed == 600


def test_a_stop_before_all_is_looked_at_keeps_what_was_replaced(endpoint, tmp_path):
    server, out = endpoint(), tmp_path / "out"
    describe(server, table(tmp_path / "in", [1, 2]), out)
    longer = table(tmp_path / "in", [7, 8, 9, *range(20, 60)])
    with pytest.raises(SpendingLimitError):
        describe(server, longer, out, max_images=3, concurrency=1)
    describe(server, longer, out)
    assert removed(out) == [answer_to(1), answer_to(2)]
    assert server.billed == 45
    check_books(server, out)


def test_a_journal_of_an_older_run_opens_and_its_parts_get_the_new_column(endpoint, tmp_path):
    server, out = endpoint(), tmp_path / "out"
    source = fill(tmp_path / "in", 3)
    folder = describe(server, source, out, results="parquet").folder
    with sqlite3.connect(folder / "_journal.sqlite") as database:
        database.execute("DROP TABLE replaced")
        database.execute("DELETE FROM facts WHERE name IN ('columns', 'counted_run')")
    database.close()
    (source / "00000.png").unlink()
    describe(server, source, out, results="parquet")
    assert [row["removed"] for row in read_rows(out)] == [True, False, False]
    assert server.billed == 3
