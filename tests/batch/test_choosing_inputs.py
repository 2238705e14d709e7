"""Which files of a folder are inputs: what is left out, what is followed, and how many."""

from __future__ import annotations

import codecs
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from describing_many import check_books, data_url, draw_numbered, fill, numbered, read_rows
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


ENCODINGS = {
    "UTF-8": ("utf-8", b""),
    "UTF-8 with a mark": ("utf-8-sig", b""),
    "UTF-16 with a mark": ("utf-16", b""),
    "UTF-16 big endian with a mark": ("utf-16-be", codecs.BOM_UTF16_BE),
    "UTF-16 without a mark": ("utf-16-le", b""),
    "UTF-16 big endian without a mark": ("utf-16-be", b""),
    "UTF-32": ("utf-32", b""),
    "cp1252": ("cp1252", b""),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("start", ["", "sep"])
def test_a_csv_may_have_another_encoding(tmp_path, encoding, separator, start):
    name, mark = ENCODINGS[encoding]
    first = f"sep={separator}\r\n" if start else ""
    text = f"{first}id{separator}image\r\né{separator}Übergröße.png\r\n"
    (tmp_path / "t.csv").write_bytes(mark + text.encode(name))
    (item,) = open_source(tmp_path / "t.csv", id_column="id")
    assert (item.id, item.source) == ("é", "Übergröße.png")
    (item,) = open_source(tmp_path / "t.csv", id_column="id", encoding=name)
    assert item.id == "é"


@pytest.mark.parametrize("name", ["iso8859-2", "utf-16", "mac-roman"])
def test_an_encoding_that_is_named_is_used(endpoint, tmp_path, name):
    server = endpoint()
    fill(tmp_path / "in", 1)
    table = tmp_path / "in" / "t.csv"
    table.write_bytes("image,title\n00000.png,Š é\n".encode(name, "replace"))
    options: Any = {"base_url": server.base_url, "encoding": name, "results": "jsonl"}
    describe_many(table, tmp_path / "out", keep=["title"], **options)
    (row,) = read_rows(tmp_path / "out")
    assert row["title"] == "Š é".encode(name, "replace").decode(name)


def test_an_encoding_that_python_does_not_have_is_rejected(tmp_path):
    (tmp_path / "t.csv").write_text("image\na.png\n")
    with pytest.raises(ConfigurationError, match=r"no encoding 'utf-9'. Nothing was sent"):
        open_source(tmp_path / "t.csv", encoding="utf-9")


def test_images_below_a_size_are_left_out_and_counted(endpoint, batch, tmp_path):
    server, photos = endpoint(), tmp_path / "in"
    for number, size in enumerate([(300, 100), (99, 400), (100, 100), (8, 8)]):
        draw_numbered(photos / f"{number}.png", number, size=size)
    (photos / "broken.png").write_bytes(b"no image")
    said = []

    def confirm(preflight: Any) -> bool:
        said.append(preflight.skipped)
        return True

    options: Any = {"base_url": server.base_url, "confirm": confirm}
    summary = batch(photos, tmp_path / "out", min_size=100, **options)
    assert (summary.described, summary.failed, summary.inputs) == (2, 1, 3)
    assert said == ["2 images below 100 pixels"]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(photos / "0.png", "a.png")
        archive.add(photos / "3.png", "b.png")
    assert batch(tmp_path / "x.tar", tmp_path / "tar", min_size=100, **options).inputs == 1
    for size in (0, -1, "large"):
        with pytest.raises(ConfigurationError, match="min_size must be"):
            batch(photos, tmp_path / "out", min_size=size, **options)


def _write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (path.parent / "state.json").write_text("{}")


def _rows(*numbers: int, column: str = "image") -> list[dict[str, Any]]:
    return [{column: {"bytes": numbered(n), "path": f"{n}.png"}, "label": n} for n in numbers]


def _shards(folder: Path) -> None:
    (folder / "data").mkdir()
    for shard, numbers in enumerate([(0, 1), (2,)]):
        rows = pa.Table.from_pylist(_rows(*numbers))
        pq.write_table(rows, folder / "data" / f"train-0000{shard}-of-00002.parquet")
    (folder / "README.md").touch()


def _saved(folder: Path) -> None:
    _write_arrow(folder / "data-00000-of-00002.arrow", _rows(0, 1))
    _write_arrow(folder / "data-00001-of-00002.arrow", _rows(2))
    _write_arrow(folder / "cache-1234.arrow", _rows(9))


def _saved_splits(folder: Path) -> None:
    _write_arrow(folder / "test" / "data-00000-of-00001.arrow", _rows(0, 1))
    _write_arrow(folder / "train" / "data-00000-of-00001.arrow", _rows(2))
    (folder / "dataset_dict.json").write_text("{}")


def _webdataset(folder: Path) -> None:
    for shard, numbers in enumerate([(0, 1), (2,)]):
        with tarfile.open(folder / f"s-00{shard}.tar", "w") as archive:
            for n in numbers:
                archive.add(draw_numbered(folder / "x.png", n), f"{n}.png")
    (folder / "x.png").unlink()


def _laion(folder: Path) -> None:
    rows = [{"URL": data_url(numbered(n)), "TEXT": "x"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")


@pytest.mark.parametrize("make", [_shards, _saved, _saved_splits, _webdataset, _laion])
def test_a_folder_may_hold_shards_of_a_dataset(endpoint, batch, tmp_path, make):
    server, folder = endpoint(), tmp_path / "in"
    folder.mkdir()
    make(folder)
    for _ in range(2):
        assert batch(folder, tmp_path / "out", base_url=server.base_url).described == 3
    assert dict(server.asked) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("column", ["URL", "Url", "IMAGE_URL", "Image"])
@pytest.mark.parametrize("asked", [None, "lower", "upper"])
def test_capitals_of_a_column_do_not_count(tmp_path, column, asked):
    given = None if asked is None else getattr(column, asked)()
    (tmp_path / "t.csv").write_text(f"{column},x\nhttps://example.org/a.png,1\n")
    (item,) = open_source(tmp_path / "t.csv", column=given)
    assert item.image == "https://example.org/a.png"
    (tmp_path / "t.csv").write_text(f"{column},{column.lower()}x,{column.swapcase()}\n1,2,3\n")
    with pytest.raises(ConfigurationError, match=r"several columns|no column"):
        open_source(tmp_path / "t.csv", column=None if asked is None else column.title() + "y")


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
