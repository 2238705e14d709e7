"""Which files of a folder are inputs: what is left out, what is followed, and how many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from describing_many import check_books, draw_numbered, fill, read_rows
from phospho_multimodal.batch import describe_many
from phospho_multimodal.batch.sources.select import open_source
from phospho_multimodal.cli.main import app
from phospho_multimodal.errors import ConfigurationError


def ids(source: Path | str, **options: Any) -> list[str]:
    return [item.id for item in open_source(source, **options)]


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", ".@__thumb", "$RECYCLE.BIN", "__MACOSX", ".thumbnails", "@Recycle"],
)
def test_copies_that_a_nas_or_a_system_keeps_are_left_out_and_counted(tmp_path, name):
    draw_numbered(tmp_path / "a.png", 1)
    draw_numbered(tmp_path / "2024" / name / "a.png" / "thumb.png", 2)
    source = open_source(tmp_path)
    assert [item.id for item in source] == ["a.png"]
    assert source.skipped.total() == 1


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["*.gif"], ["a.png", "raw/c.png", "raw/thumb_d.png"]),
        (["raw"], ["a.png", "b.gif"]),
        (["raw/*"], ["a.png", "b.gif"]),
        (["thumb_*", "*.gif"], ["a.png", "raw/c.png"]),
        ([], ["a.png", "b.gif", "raw/c.png", "raw/thumb_d.png"]),
    ],
)
def test_names_that_a_user_excludes(tmp_path, exclude, left):
    for name in ("a.png", "b.gif", "raw/c.png", "raw/thumb_d.png"):
        draw_numbered(tmp_path / name, 1)
    assert ids(tmp_path, exclude=exclude) == left
    assert ids(f"{tmp_path}/**", exclude=exclude) == left


def test_a_text_is_no_list_of_patterns(tmp_path):
    with pytest.raises(ConfigurationError, match="list of patterns"):
        open_source(tmp_path, exclude="*.gif")


def test_links_are_followed_if_told_and_never_around_in_a_circle(tmp_path):
    fill(tmp_path / "disk" / "2024", 2)
    source = fill(tmp_path / "in", 1)
    (source / "2024").symlink_to(tmp_path / "disk" / "2024")
    (source / "self").symlink_to(source)
    (tmp_path / "disk" / "2024" / "up").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "2024" / "back").symlink_to(source)
    assert ids(source) == ["00000.png"]
    assert ids(source, follow_links=True) == ["00000.png", "2024/00000.png", "2024/00001.png"]


def test_a_limit_describes_the_first_and_the_next_run_the_others(endpoint, tmp_path):
    server, out = endpoint(), tmp_path / "out"
    photos = fill(tmp_path / "photos", 10)
    options: Any = {"base_url": server.base_url, "results": "jsonl"}
    assert describe_many(photos, out, limit=3, **options).described == 3
    assert describe_many(photos, out, **options).described == 10
    summary = describe_many(photos, out, limit=2, **options)
    assert (summary.described, summary.removed, server.billed) == (10, 0, 10)
    check_books(server, out)
    for limit in (0, -1):
        with pytest.raises(ConfigurationError, match="limit must be"):
            describe_many(photos, out, limit=limit, **options)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_may_have_another_separator(tmp_path, separator, quote, mark):
    rows = [["id", "image"], ["a", "x;y,z|1.png" if quote else "x.png"], ["b", "y.png"]]
    lines = [separator.join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    (tmp_path / "t.csv").write_text(mark + "\r\n".join(lines), encoding="utf-8")
    one, two = open_source(tmp_path / "t.csv", id_column="id")
    assert [(item.id, item.source) for item in (one, two)] == [tuple(row) for row in rows[1:]]


def test_a_csv_of_one_column_has_commas(tmp_path):
    (tmp_path / "t.csv").write_text("image\na;b.png\n")
    (item,) = open_source(tmp_path / "t.csv")
    assert item.source == "a;b.png"


def test_the_command_passes_them_on(endpoint, tmp_path):
    server, photos = endpoint(), fill(tmp_path / "photos", 5)
    fill(tmp_path / "disk", [7])
    (photos / "more").symlink_to(tmp_path / "disk")
    told = ["batch", str(photos), "--out", str(tmp_path / "out"), "--format", "jsonl", "--yes"]
    flags = ["--exclude", "00001*", "--exclude", "00003*", "--limit", "4", "--follow-links"]
    result = CliRunner().invoke(app, [*told, "--base-url", server.base_url, *flags])
    assert result.exit_code == 0, result.output
    assert "2 excluded names" in result.output
    names = ["00000.png", "00002.png", "00004.png", "more/00007.png"]
    assert [row["id"] for row in read_rows(tmp_path / "out")] == names
