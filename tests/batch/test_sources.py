"""Where inputs come from: every kind of source, whole and broken."""

from __future__ import annotations

import base64
import csv
import gc
import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phospho_multimodal.batch.sources.folders import expand_braces
from phospho_multimodal.batch.sources.items import is_image, make_item
from phospho_multimodal.batch.sources.select import Item, open_source
from phospho_multimodal.errors import ConfigurationError, ImageError
from phospho_multimodal.images.decode import SUPPORTED
from phospho_multimodal.images.source import MAX_IMAGE_BYTES, image_source
from pictures import draw, encoded

NAMES = ["a.jpg", "b/c.png", "b/d.jpg", "e.webp"]
MANY = 15_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, and what is none."""
    photos = tmp_path / "photos"
    for name, colour in zip(NAMES, ("teal", "red", "blue", "green"), strict=True):
        write(
            photos / name,
            encoded(
                draw(colour=colour),
                Image.registered_extensions().get(name[-4:], "WEBP"),
            ),
        )
    write(photos / "notes.txt", b"no picture")
    write(photos / ".hidden.jpg", b"hidden")
    write(photos / ".thumbnails" / "a.jpg", b"hidden")
    return photos


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table in the form that the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if ".csv" in path.name or ".tsv" in path.name:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return write(path, gzip.compress(data) if path.suffix == ".gz" else data)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            header.mtime = 1_700_000_000
            archive.addfile(header, io.BytesIO(data))
    return path


def read(item: Item) -> bytes:
    assert item.error is None
    data = image_source(item.image).read()
    assert isinstance(data, bytes)
    return data


def ids(source: Any) -> list[str]:
    return [item.id for item in source]


def error_of(item: Item) -> str:
    assert isinstance(item.error, ImageError)
    assert item.image is None
    return str(item.error)


# Each makes a source of the four pictures of a folder.
def as_table(suffix: str) -> Callable[[Path], Any]:
    return lambda folder: open_source(
        write_table(folder / f"rows{suffix}", [{"image": name, "n": 1} for name in NAMES])
    )


def as_archive(suffix: str, mode: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        members = {name: (folder / name).read_bytes() for name in NAMES}
        return open_source(write_tar(folder.parent / f"all{suffix}", members, mode))

    return make


def as_shards(folder: Path) -> Any:
    for shard, names in (("0", NAMES[:2]), ("1", NAMES[2:])):
        members = {name: (folder / name).read_bytes() for name in names}
        write_tar(folder.parent / f"shard-{shard}.tar", members)
    return open_source(str(folder.parent / "shard-{0..1}.tar"))


def as_pictures_in_parquet(folder: Path) -> Any:
    rows = [{"image": (folder / name).read_bytes()} for name in NAMES]
    return open_source(write_table(folder / "rows.parquet", rows))


def as_image_dataset(folder: Path) -> Any:
    rows = [{"image": {"bytes": (folder / name).read_bytes(), "path": name}} for name in NAMES[:3]]
    rows.append({"image": {"bytes": None, "path": NAMES[3]}})
    return open_source(write_table(folder / "rows.parquet", rows))


def as_data_urls(folder: Path) -> Any:
    rows = []
    for name in NAMES:
        data = base64.b64encode((folder / name).read_bytes()).decode()
        rows.append({"url": f"data:image/png;base64,{data}"})
    return open_source(write_table(folder / "rows.csv", rows))


KINDS: dict[str, Callable[[Path], Any]] = {
    "folder": open_source,
    "folder as text": lambda folder: open_source(str(folder)),
    "pattern": lambda folder: open_source(str(folder / "**" / "*")),
    "pattern of suffixes": lambda folder: open_source(str(folder / "**" / "*.{jpg,png,webp}")),
    **{
        suffix: as_table(suffix)
        for suffix in (".csv", ".csv.gz", ".tsv", ".jsonl", ".jsonl.gz", ".ndjson", ".parquet")
    },
    "bytes in parquet": as_pictures_in_parquet,
    "image dataset": as_image_dataset,
    "data URLs": as_data_urls,
    ".tar": as_archive(".tar", "w"),
    ".tar.gz": as_archive(".tar.gz", "w:gz"),
    ".tgz": as_archive(".tgz", "w:gz"),
    ".tar.bz2": as_archive(".tar.bz2", "w:bz2"),
    ".tar.xz": as_archive(".tar.xz", "w:xz"),
    "shards": as_shards,
    "standard input": lambda folder: open_source(
        "-", stdin=io.StringIO("\n".join(NAMES)), root=folder
    ),
    "list of paths": lambda folder: open_source([folder / name for name in NAMES]),
    "list of texts": lambda folder: open_source(NAMES, root=folder),
    "list of bytes": lambda folder: open_source([(folder / name).read_bytes() for name in NAMES]),
    "pairs": lambda folder: open_source([(name, folder / name) for name in NAMES]),
    "mapping": lambda folder: open_source({name: folder / name for name in NAMES}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_pictures_each_time(folder: Path, kind: str):
    source = KINDS[kind](folder)
    items = list(source)
    assert [read(item) for item in items] == [(folder / name).read_bytes() for name in NAMES]
    assert list(source) == items
    assert len(set(ids(source))) == len(NAMES)
    assert source.name


def test_ids_of_a_folder_are_relative_paths_and_sources_are_paths(folder: Path):
    items = list(open_source(folder))
    assert ids(items) == NAMES
    assert [item.source for item in items] == [str(folder / name) for name in NAMES]


def test_the_order_is_that_of_the_whole_paths(tmp_path: Path):
    names = ["a-b.jpg", "a.jpg", "a/x.jpg", "a/y/z.jpg", "a0.jpg", "A.JPG", "ä.png"]
    for name in names:
        write(tmp_path / name, b"x")
    assert ids(open_source(tmp_path)) == sorted(names)


def test_a_file_that_is_added_moves_no_id_and_no_stamp(folder: Path):
    before = {item.id: item.stamp for item in open_source(folder)}
    write(folder / "b" / "cc.jpg", b"new")
    after = {item.id: item.stamp for item in open_source(folder)}
    assert after.keys() - before.keys() == {"b/cc.jpg"}
    assert {name: after[name] for name in before} == before


def test_a_changed_file_has_another_stamp(folder: Path):
    [before, *_] = open_source(folder)
    os.utime(folder / "a.jpg", ns=(1, 1))
    [after, *_] = open_source(folder)
    assert before.stamp is not None
    assert before.stamp != after.stamp


def test_a_folder_is_looked_through_alone_if_so_asked(folder: Path):
    assert ids(open_source(folder, recursive=False)) == ["a.jpg", "e.webp"]


def test_linked_folders_are_not_followed_by_depth_and_linked_files_are(folder: Path):
    (folder / "loop").symlink_to(folder)
    (folder / "link.jpg").symlink_to(folder / "a.jpg")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    assert ids(open_source(folder)) == [
        "a.jpg",
        "b/c.png",
        "b/d.jpg",
        "e.webp",
        "gone.jpg",
        "link.jpg",
        "self.jpg",
    ]
    assert ids(open_source(str(folder / "*" / "a.jpg"))) == ["loop/a.jpg"]


def test_a_name_that_is_no_utf8_can_be_stored(tmp_path: Path):
    if sys.platform != "linux":
        pytest.skip("other systems have no such names")
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")), b"x")
    [item] = open_source(tmp_path)
    assert item.id.encode() == b"caf\\udce9.jpg"
    assert item.source.encode()
    assert read(item) == b"x"


def test_a_folder_that_cannot_be_read_is_no_folder_without_pictures(folder: Path):
    source = open_source(folder)
    shutil.rmtree(folder)
    with pytest.raises(ConfigurationError, match=r"photos cannot be read: No such file"):
        list(source)


def test_every_supported_type_has_its_suffixes():
    for suffix, kind in Image.registered_extensions().items():
        assert is_image(f"photo{suffix.upper()}") == (kind in SUPPORTED and kind != "DIB")
    assert is_image("photo.heic")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg"]),
        ("?.*", ["a.jpg", "e.webp"]),
        ("*", ["a.jpg", "e.webp"]),
        ("*.txt", ["notes.txt"]),
        ("**/*.jpg", ["a.jpg", "b/d.jpg"]),
        ("**", NAMES),
        ("**/b/**/[cd].*", ["b/c.png", "b/d.jpg"]),
        ("*/*.png", ["b/c.png"]),
        (".h*.jpg", [".hidden.jpg"]),
        ("{b,nowhere}/*.png", ["b/c.png"]),
        ("*.gif", []),
    ],
)
def test_patterns(folder: Path, pattern: str, found: list[str]):
    assert ids(open_source(str(folder / pattern))) == found


def test_ids_of_a_pattern_begin_after_its_fixed_part(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert ids(open_source(str(folder / "b" / "*.png"))) == ["c.png"]
    monkeypatch.chdir(folder)
    items = list(open_source("*.jpg"))
    assert [(item.id, item.source) for item in items] == [("a.jpg", "a.jpg")]


def test_a_path_that_is_there_is_no_pattern(tmp_path: Path):
    write(tmp_path / "[1]" / "a*.jpg", b"x")
    assert ids(open_source(str(tmp_path / "[1]"))) == ["a*.jpg"]
    assert ids(open_source(str(tmp_path / "[1]" / "a*.jpg"))) == ["a*.jpg"]


def test_one_picture_is_a_source(folder: Path):
    assert ids(open_source(folder / "a.jpg")) == ["a.jpg"]


@pytest.mark.parametrize(
    ("pattern", "written_out"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-{8..10}", ["s-8", "s-9", "s-10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..4..2}", ["0", "2", "4"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{a,b{1,2}}", ["a", "b1", "b2"]),
        ("{a}", ["{a}"]),
        ("plain", ["plain"]),
        ("{a..c}", ["{a..c}"]),
    ],
)
def test_braces(pattern: str, written_out: list[str]):
    assert sorted(expand_braces(pattern)) == sorted(written_out)


@given(st.integers(0, 2000), st.integers(0, 300), st.integers(4, 6))
def test_a_range_in_braces_is_every_number_in_order(first: int, more: int, width: int):
    pattern = f"s-{{{first:0{width}d}..{first + more:0{width}d}}}.tar"
    assert expand_braces(pattern) == [
        f"s-{number:0{width}d}.tar" for number in range(first, first + more + 1)
    ]


def test_braces_of_too_much_are_refused():
    with pytest.raises(ConfigurationError, match="100,000"):
        expand_braces("{0..999999999}{0..999999999}")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".jsonl", ".jsonl.gz", ".parquet"])
def test_columns_of_a_table(folder: Path, suffix: str):
    rows = [
        {"key": "one", "picture": "a.jpg", "file": "nowhere.jpg"},
        {"key": "", "picture": "nowhere.jpg", "file": "nowhere.jpg"},
        {"key": "three", "picture": "https://example.org/a.jpg", "file": "nowhere.jpg"},
        {"key": "four", "picture": "", "file": "nowhere.jpg"},
        {"key": "five", "picture": "ftp://example.org/a.jpg", "file": "nowhere.jpg"},
    ]
    path = write_table(folder / f"rows{suffix}", rows)
    one, two, three, four, five = open_source(path, column="picture", id_column="key")
    assert (one.id, one.source, one.image) == ("one", "a.jpg", folder / "a.jpg")
    assert one.stamp
    assert (two.id, two.image, two.stamp) == ("000000001", folder / "nowhere.jpg", None)
    assert (three.id, three.source) == ("three", "https://example.org/a.jpg")
    assert (three.image, three.stamp, three.error) == (three.source, None, None)
    assert "empty" in error_of(four)
    assert "cannot be a ftp: URL" in error_of(five)
    assert ids(open_source(path)) == [f"{number:09d}" for number in range(5)]
    [elsewhere, *_] = open_source(path, column="picture", root=folder / "b")
    assert elsewhere.image == folder / "b" / "a.jpg"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, suffix: str):
    path = write_table(tmp_path / f"rows{suffix}", [{"id": "1", "path": "a", "url": "b"}])
    for options in ({"column": "image"}, {"column": "url", "id_column": "key"}, {}):
        with pytest.raises(ConfigurationError, match="'id', 'path', 'url'"):
            open_source(path, **options)
    path = write_table(tmp_path / f"others{suffix}", [{"id": "1", "picture": "a"}])
    with pytest.raises(ConfigurationError, match=r"no column with a usual name.*'id', 'picture'"):
        open_source(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".csv.gz"])
def test_an_empty_table_is_empty(tmp_path: Path, suffix: str):
    data = gzip.compress(b"") if suffix.endswith(".gz") else b""
    assert list(open_source(write(tmp_path / f"rows{suffix}", data))) == []
    assert list(open_source(tmp_path / f"rows{suffix}", column="image")) == []


def test_broken_lines_of_json_are_errors_without_their_content(folder: Path):
    lines = [
        b'\xef\xbb\xbf{"image": "a.jpg", "score": NaN}',
        b"",
        b'{"image": "secret',
        b'["secret"]',
        b'{"image": 5}',
        b'{"other": "secret"}',
        b'{"image": "\xff secret"}',
        b"[" * 100_000,
        b'{"image": {"path": "a.jpg", "bytes": null}}',
        b'{"image": "\\ud800.jpg"}',
    ]
    good, cut, array, number, without, binary, deep, nested, lone = open_source(
        write(folder / "rows.jsonl", b"\n".join(lines))
    )
    assert read(good) == read(nested) == (folder / "a.jpg").read_bytes()
    assert error_of(cut) == "Line 3 of rows.jsonl is not a JSON object."
    assert error_of(array) == "Line 4 of rows.jsonl is not a JSON object."
    assert "A int is not an image" in error_of(number)
    assert "empty" in error_of(without)
    assert binary.source == "\\udcff secret"
    assert "Line 8" in error_of(deep)
    assert (lone.source.encode(), lone.stamp) == (b"\\ud800.jpg", None)


def test_broken_rows_of_csv_are_errors(folder: Path):
    data = b"\xef\xbb\xbf id , image\n1,a.jpg\n\n2\n3, a.jpg ,more\n4,caf\xe9.jpg\n"
    write(folder / "rows.csv", data)
    items = list(open_source(folder / "rows.csv", id_column="id"))
    assert ids(items) == ["1", "2", "3", "4"]
    assert read(items[0]) == read(items[2])
    assert error_of(items[1]) == "Line 4 of rows.csv is too short."
    assert items[3].source == "caf\\udce9.jpg"


def test_a_picture_of_some_size_goes_into_a_cell(folder: Path):
    url = "data:image/png;base64," + base64.b64encode(os.urandom(1_000_000)).decode()
    [item] = open_source(write_table(folder / "rows.csv", [{"image": url}]))
    assert (item.source, item.image) == ("data: URL", url)


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl.gz"])
def test_a_packed_table_that_is_cut_off_ends_with_an_error(folder: Path, suffix: str):
    rows = [{"image": f"{os.urandom(8).hex()}.jpg"} for _ in range(5000)]
    path = write_table(folder / f"rows{suffix}", rows)
    path.write_bytes(path.read_bytes()[:-20_000])
    *items, last = open_source(path)
    assert items
    assert all(item.error is None for item in items)
    assert f"further than {len(items)} rows" in error_of(last)


def test_rows_with_too_much_in_them_are_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("phospho_multimodal.batch.sources.rows._MAX_LINE", 200_000)
    rows = [{"image": "a.jpg"}, {"image": "secret" * 100_000}, {"image": "b/c.png"}]
    limit = csv.field_size_limit(200_000)
    try:
        for suffix in (".csv", ".jsonl"):
            first, long, last = open_source(write_table(folder / f"rows{suffix}", rows))
            assert [first.source, last.source] == ["a.jpg", "b/c.png"]
            assert error_of(long).startswith(f"Line {'3' if suffix == '.csv' else '2'} of rows")
            assert "secret" not in error_of(long)
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "x.tar"])
def test_what_is_gone_at_the_second_pass_is_told(folder: Path, name: str):
    path = folder / name
    if name == "x.tar":
        write_tar(path, {"a.jpg": b"x"})
    else:
        write_table(path, [{"image": "a.jpg"}])
    source = open_source(path)
    assert len(list(source)) == 1
    path.unlink()
    with pytest.raises(ConfigurationError, match=f"{name} cannot be read: No such file"):
        list(source)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_whose_column_is_gone_at_the_second_pass_gives_no_pictures(
    folder: Path, suffix: str
):
    source = open_source(write_table(folder / f"rows{suffix}", [{"image": "a.jpg"}]))
    write_table(folder / f"rows{suffix}", [{"picture": "a.jpg"}])
    assert all(item.error for item in source)


@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz", ".jsonl.gz", ".csv"])
def test_a_file_that_is_no_such_table_is_told_at_once(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"rows{suffix}", "path,url".encode("utf-16") * 10)
    with pytest.raises(ConfigurationError, match="rows"):
        open_source(path)


def test_a_parquet_file_with_a_broken_page_ends_with_an_error(folder: Path):
    pictures = [os.urandom(20_000) for _ in range(200)]
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"image": pictures}), path, row_group_size=50)
    data = bytearray(path.read_bytes())
    data[2_000_000:3_000_000] = bytes(1_000_000)
    path.write_bytes(data)
    *items, last = open_source(path)
    assert [item.image for item in items] == pictures[: len(items)]
    assert 40 < len(items) <= 100
    assert f"further than {len(items)} rows" in error_of(last)


def test_parquet_columns_of_other_forms(folder: Path):
    picture = (folder / "a.jpg").read_bytes()
    columns = {
        "long": pa.array(["a.jpg", None], pa.large_string()),
        "named": pa.array(["a.jpg", "a.jpg"]).dictionary_encode(),
        "fixed": pa.array([picture] * 2, pa.binary(len(picture))),
        "several": pa.array([["a.jpg"], ["a.jpg"]]),
        "number": pa.array([7, 8]),
    }
    columns["binary id"] = pa.array([b"x\xff", b"y"])
    offsets, broken = pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea")
    columns["broken"] = pa.StringArray.from_buffers(2, offsets, broken)
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    long, null = open_source(path, column="long", id_column="number")
    assert (long.id, read(long)) == ("7", picture)
    assert "empty" in error_of(null)
    cut, whole = open_source(path, column="broken", id_column="binary id")
    assert (cut.id, whole.id, whole.source) == ("x\\xff", "y", "a")
    assert error_of(cut) == "The cell cannot be read (UnicodeDecodeError)."
    for column in ("named", "fixed"):
        assert [read(item) for item in open_source(path, column=column)] == [picture] * 2
    assert [item.source for item in open_source(path, column="fixed")] == ["bytes"] * 2
    assert "A list is not an image" in error_of(next(iter(open_source(path, column="several"))))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "phospho-multimodal\[batch\]"'):
        open_source(write(tmp_path / "rows.parquet", b""))


def test_tables_in_shards_are_one_after_the_other(folder: Path):
    for shard in ("0", "1"):
        write_table(folder / f"rows-{shard}.jsonl", [{"id": f"x{shard}", "image": "a.jpg"}] * 2)
    pattern = str(folder / "rows-*.jsonl")
    assert ids(open_source(pattern)) == [
        f"rows-{shard}/{number:09d}" for shard in (0, 1) for number in (0, 1)
    ]
    assert ids(open_source(pattern, id_column="id")) == ["x0", "x0", "x1", "x1"]


def test_members_of_an_archive(tmp_path: Path):
    members = {
        "./a/000.jpg": b"one",
        "a/000.json": b"{}",
        "a/._000.jpg": b"of a Mac",
        "a/001.seg.png": b"two",
        "a/empty.jpg": b"",
    }
    path = write_tar(tmp_path / "x.tar", members)
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            header = tarfile.TarInfo("odd.jpg")
            header.type, header.linkname = kind, "a/000.jpg"
            archive.addfile(header)
    one, two, empty = open_source(path)
    assert (one.id, one.source, one.image) == ("a/000.jpg", f"{path}::./a/000.jpg", b"one")
    assert (two.id, two.image) == ("a/001.seg.png", b"two")
    assert "0 bytes" in error_of(empty)
    assert len({one.stamp, two.stamp}) == 2
    assert ids(open_source(str(tmp_path / "*.tar"))) == ["x/a/000", "x/a/001", "x/a/empty"]


def test_shards_in_several_folders(tmp_path: Path):
    for shard in ("train/0", "train/1", "test/0"):
        write_tar(tmp_path / f"{shard}.tar.gz", {"a.jpg": b"x"}, "w:gz")
    assert ids(open_source(str(tmp_path / "*" / "*.tar.gz"))) == [
        *("test/0/a", "train/0/a", "train/1/a")
    ]
    assert ids(open_source(str(tmp_path / "{train,test}" / "{0..0}.tar.gz"))) == [
        *("train/0/a", "test/0/a")
    ]
    with pytest.raises(ConfigurationError, match=r"There is no .*test/1\.tar\.gz"):
        open_source(str(tmp_path / "{train,test}" / "{0..1}.tar.gz"))


def test_a_member_that_is_too_large_is_an_error(tmp_path: Path):
    members = {"a.jpg": bytes(MAX_IMAGE_BYTES + 1), "b.jpg": b"small"}
    large, small = open_source(write_tar(tmp_path / "x.tar.gz", members, "w:gz"))
    assert "maximum is 52,428,800" in error_of(large)
    assert read(small) == b"small"


@pytest.mark.parametrize(
    "damage", ["cut in a member", "cut in a header", "header", "cut when packed"]
)
def test_a_broken_archive_ends_with_an_error(tmp_path: Path, damage: str):
    members = {f"{number}.jpg": os.urandom(2000) for number in range(20)}
    packed = damage == "cut when packed"
    path = write_tar(tmp_path / "x.tar", members, "w:gz" if packed else "w")
    data = bytearray(path.read_bytes())
    a_member = 512 + 2048
    if damage == "cut in a member":
        del data[a_member * 10 + 1000 :]
    elif damage == "cut in a header":
        del data[a_member * 10 + 100 :]
    elif damage == "header":
        data[a_member * 10 : a_member * 10 + 512] = os.urandom(512)
    else:
        del data[20_000:]
    path.write_bytes(data)
    items = list(open_source(path))
    whole = [item for item in items if item.error is None]
    assert [item.image for item in whole] == list(members.values())[: len(whole)]
    assert 5 < len(whole) <= 10
    assert "x.tar" in error_of(items[-1])


@pytest.mark.parametrize("data", [b"", b"no archive" * 1000])
def test_a_file_that_is_no_archive_is_an_error(tmp_path: Path, data: bytes):
    [item] = open_source(write(tmp_path / "x.tar", data))
    assert "is broken" in error_of(item)


def test_lines_of_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    raw = b"a.jpg\r\n\n https://example.org/b.jpg\nhttps://example.org/b.jpg\ncaf\xe9.jpg"
    source = open_source("-", stdin=io.TextIOWrapper(io.BytesIO(raw), "utf-8"))
    items = list(source)
    assert ids(items) == [f"{number:09d}" for number in range(4)]
    assert [item.source for item in items][::2] == ["a.jpg", "https://example.org/b.jpg"]
    assert items[0].image == Path("a.jpg")
    assert items[3].image == Path("caf\udce9.jpg")
    first, second = iter(source), iter(source)  # neither is in the other's way
    assert [next(first), next(second), next(first), next(second)] == [
        *(items[0], items[0], items[1], items[1])
    ]


def test_a_list_of_all_kinds(folder: Path):
    picture = (folder / "a.jpg").read_bytes()
    drawn = draw()
    as_base64 = base64.b64encode(picture).decode()
    entries: list[tuple[Any, str]] = [
        (folder / "a.jpg", str(folder / "a.jpg")),
        (str(folder / "a.jpg"), str(folder / "a.jpg")),
        ("https://example.org/a.jpg?token=x", "https://example.org/a.jpg?token=x"),
        ("data:image/png;base64," + as_base64, "data: URL"),
        (picture, "bytes"),
        (bytearray(picture), "bytes"),
        (drawn, "image"),
        (io.BytesIO(picture), "file"),
        (as_base64, "base64"),
    ]
    source = open_source([image for image, _ in entries])
    items = list(source)
    assert [item.source for item in items] == [shown for _, shown in entries]
    assert items[6].image is drawn
    assert all(item.error is None for item in items)
    assert as_base64[:40] not in repr(items)


@pytest.mark.parametrize("value", [None, "", "  ", b"", 5, float("nan"), [b"x"], {}, "x" * 5000])
def test_what_can_be_no_picture_is_an_error(value: object):
    [item] = open_source([("name", value)])
    assert item.id == "name"
    assert error_of(item)
    assert "xxxx" not in f"{item}{item.error}"


def test_paths_that_no_system_takes_are_left_to_the_reader():
    for text in ("a\0b.jpg", "a" * 300 + ".jpg"):
        item = make_item("1", text)
        assert (item.image, item.stamp, item.error) == (Path(text), None, None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (iter(["a.jpg"]), "Pass a list"),
        ({"a.jpg", "b.jpg"}, "sorted list"),
        (b"bytes", "not a source"),
        (5, "not a source"),
        ("data:image/png;base64,AAAA", "data: URL is not a source"),
        ("nostore://bucket/photos", "Protocol not known"),
        ("nowhere", "There is no nowhere"),
        (Path("nowhere*"), "There is no nowhere"),
        ("nowhere/*.jpg", "There is no folder nowhere"),
        ("nowhere/{0..3}.tar", "There is no folder nowhere"),
        ("{0..3}.tar", "There is no 0.tar"),
        ("{0.tar,1.csv}", "several kinds"),
        ("{/,}*.jpg", "absolute and relative"),
        (__file__, "not a folder, an image, a table"),
    ],
)
def test_what_is_no_source(source: Any, words: str):
    with pytest.raises(ConfigurationError, match=words):
        open_source(source)


def test_columns_mean_nothing_but_in_tables(folder: Path):
    write_tar(folder / "x.tar", {})
    for source in (folder, folder / "a.jpg", folder / "x.tar", str(folder / "*.jpg"), ["a"], "-"):
        with pytest.raises(ConfigurationError, match="column"):
            open_source(source, column="image")
    with pytest.raises(ConfigurationError, match="root"):
        open_source(folder, root=folder)


def test_what_is_empty_is_empty(tmp_path: Path):
    assert list(open_source(tmp_path)) == []
    assert list(open_source([])) == []
    assert list(open_source("-", stdin=io.StringIO())) == []
    assert list(open_source(write_tar(tmp_path / "x.tar", {}))) == []
    assert list(open_source(str(tmp_path / "*.csv"))) == []


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(
            lambda text: text.strip() or "x"
        ),
        max_size=20,
    )
)
def test_any_id_comes_through_a_table(tmp_path_factory: pytest.TempPathFactory, names: list[str]):
    folder = tmp_path_factory.mktemp("tables")
    rows = [{"id": name, "image": "a.jpg"} for name in ["first", *names]]
    for suffix in (".csv", ".tsv", ".jsonl"):
        path = write_table(folder / f"rows{suffix}", rows)
        assert ids(open_source(path, id_column="id")) == ["first", *names]


def peak_of(source: Any) -> tuple[int, int]:
    """Count the inputs, and find the least peak of three passes in bytes.

    What threads of other tests allocate meanwhile is traced too, and does not come three times.
    """
    peaks = []
    for _ in range(3):
        gc.collect()
        tracemalloc.start()
        try:
            count = sum(1 for _ in source)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return count, min(peaks)


@pytest.mark.long
def test_a_long_table_takes_no_memory(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"url": "https://example.org/{n}.jpg"}}\n' for n in range(MANY))
    count, peak = peak_of(open_source(path))
    assert count == MANY
    assert peak < 2_000_000


@pytest.mark.long
def test_a_folder_of_many_files_takes_no_memory(tmp_path: Path):
    for number in range(MANY):
        (tmp_path / f"{number:06d}.png").touch()
    count, peak = peak_of(open_source(tmp_path))
    assert count == MANY
    assert peak < 500_000


@pytest.mark.long
def test_a_long_archive_takes_no_memory(tmp_path: Path):
    members = {f"{number}.jpg": b"x" * 600 for number in range(5000)}
    count, peak = peak_of(open_source(write_tar(tmp_path / "x.tar", members)))
    assert count == len(members)
    assert peak < 1_000_000


def test_pictures_in_parquet_take_the_memory_of_a_page(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    table = pa.table({"image": [os.urandom(100_000) for _ in range(400)]})
    pq.write_table(table, path, use_dictionary=False, write_batch_size=16)  # rows of a page
    del table
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in open_source(path)]
    assert len(held) == 400
    assert max(held) < 10_000_000
