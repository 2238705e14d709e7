"""Collections as sources: data frames, datasets and lists of rows, and what is rejected."""

from __future__ import annotations

import io
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from describing_many import answer_to, check_books, fill, numbered, read_rows, statuses
from phospho_multimodal.batch import describe_many
from phospho_multimodal.batch.sources.select import open_source
from phospho_multimodal.errors import ConfigurationError


class Frame:
    """What pandas and polars have in common: columns by name, each a sequence."""

    def __init__(self, **columns: Sequence[Any]) -> None:
        self._columns = columns
        self.columns = list(columns)
        self.dtypes = [object] * len(columns)

    def __getitem__(self, name: str) -> Sequence[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class Dataset:
    """What a dataset of Hugging Face has: rows, features, and the choice of columns."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any]) -> None:
        self._rows = rows
        self.features = features
        self.column_names = list(features)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self._rows:
            chosen = {name: row[name] for name in self.column_names}
            image = self.features["image"]
            if image.decode:
                chosen["image"] = Image.open(io.BytesIO(chosen["image"]["bytes"]))
            yield chosen

    def select_columns(self, names: list[str]) -> Dataset:
        return Dataset(self._rows, {name: self.features[name] for name in names})

    def cast_column(self, name: str, feature: Any) -> Dataset:
        return Dataset(self._rows, {**self.features, name: feature})


class ImageFeature:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


def dataset(paths: Sequence[Path], decode: bool) -> Dataset:
    rows = [{"image": {"bytes": path.read_bytes()}, "key": path.stem, "x": 1} for path in paths]
    return Dataset(rows, {"image": ImageFeature(decode), "key": None, "x": None})


class Streamed:
    """A dataset that is streamed: rows, and nothing known before them."""

    column_names = None

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._rows)


def rows_of(paths: Sequence[Path]) -> list[dict[str, Any]]:
    return [{"image": str(path), "key": path.stem, "label": 1} for path in paths]


SHAPES: dict[str, Any] = {
    "a data frame": lambda paths: Frame(
        image=[str(path) for path in paths], key=[path.stem for path in paths]
    ),
    "a list of dicts": rows_of,
    "a tuple of dicts": lambda paths: tuple(rows_of(paths)),
    "a dataset that decodes": lambda paths: dataset(paths, decode=True),
    "a dataset of files": lambda paths: dataset(paths, decode=False),
    "a streamed dataset": lambda paths: Streamed(rows_of(paths)),
    "an Arrow table": lambda paths: pa.Table.from_pylist(rows_of(paths)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_with_fields_are_a_source_with_their_column(endpoint, batch, tmp_path, shape):
    paths = sorted(fill(tmp_path / "photos", 3).iterdir())
    server, source = endpoint(), SHAPES[shape](paths)
    options = {"base_url": server.base_url, "column": "image"}
    batch(source, tmp_path / "numbers", **options)
    numbers = [f"{number:09d}" for number in range(3)]
    assert statuses(read_rows(tmp_path / "numbers")) == dict.fromkeys(numbers, "described")
    batch(source, tmp_path / "keys", **options, id_column="key")
    rows = read_rows(tmp_path / "keys")
    assert [row["id"] for row in rows] == [path.stem for path in paths]
    assert [row["description"] for row in rows] == [answer_to(number) for number in range(3)]
    check_books(server, tmp_path / "keys", billed=3)
    # The files go out as they are, compressed only once.
    assert {question.image for question in server.questions} == {p.read_bytes() for p in paths}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options", [{}, {"column": "nope"}, {"column": "image", "id_column": "no"}]
)
def test_rows_with_fields_are_rejected_without_their_column(endpoint, tmp_path, shape, options):
    paths = sorted(fill(tmp_path / "photos", 2).iterdir())
    server = endpoint()
    with pytest.raises(ConfigurationError, match=r"Nothing was sent.*'image'"):
        describe_many(SHAPES[shape](paths), tmp_path / "out", base_url=server.base_url, **options)
    assert server.requests == []
    assert not (tmp_path / "out").exists()


def test_a_path_among_other_fields_needs_no_column_and_may_have_one(tmp_path):
    rows = [{"path": "a.png", "key": "k"}]
    assert [item.source for item in open_source(rows)] == ["a.png"]
    (item,) = open_source(rows, column="path", id_column="key", root=tmp_path)
    assert (item.id, item.image) == ("k", tmp_path / "a.png")


@pytest.mark.parametrize("value", [None, float("nan"), "", {"other": 1}, 7])
def test_a_row_without_an_image_is_one_row_that_fails(value):
    rows = [{"image": "a.png"}, {"image": value}, {"no": 1}]
    one, *others = open_source(rows, column="image")
    assert one.error is None
    assert all(item.error is not None for item in others)


UNUSABLE: dict[str, Any] = {
    "an image as an array": np.zeros((4, 4, 3), np.uint8),
    "images as one array": np.zeros((2, 4, 4, 3), np.uint8),
    "a list of arrays": [np.zeros((6, 8, 3), np.uint8)],
    "numbers": np.arange(3),
    "a tensor": SimpleNamespace(dtype="float32", shape=(2, 3), __iter__=None),
    "an array of bytes": array("B", b"abc"),
    "a range": range(3).__iter__,
    "splits": {"train": Frame(image=["a.png"])},
    "rows by name": {"a": {"image": "a.png"}},
    "a list of frames": [Frame(image=["a.png"])],
    "a frame of Spark": SimpleNamespace(columns=["image"], dtypes=[], collect=None),
    "an image": Image.new("RGB", (2, 2)),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_could_only_fail_is_rejected_before_anything_is_sent(endpoint, tmp_path, what):
    server = endpoint()
    with pytest.raises(ConfigurationError):
        describe_many(UNUSABLE[what], tmp_path / "out", base_url=server.base_url)
    assert server.requests == []
    assert not (tmp_path / "out").exists()


def test_an_array_of_paths_is_a_source():
    (item,) = open_source(np.array(["a.png"]))
    assert (item.source, item.error) == ("a.png", None)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_real_data_frame(library):
    frame = pytest.importorskip(library).DataFrame({"image": ["a.png", None], "key": ["x", "y"]})
    assert len(list(open_source(frame["image"]))) == 2
    one, two = open_source(frame, column="image", id_column="key")
    assert (one.id, two.id, two.error is not None) == ("x", "y", True)


def write_tar(path: Path, members: Sequence[tuple[str, int]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, number in members:
            data = numbered(number, "JPEG" if name.endswith("jpg") else "PNG", size=(16, 16))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


DOUBLES = {
    "a name twice": ["x.png", "x.png", "y.png"],
    "a name thrice": ["x.png", "y.png", "x.png", "x.png"],
    "two types": ["x.png", "x.jpg", "y.png"],
    "two parts of a sample": ["x.a.png", "x.b.png", "y.png"],
    "a name that another one might get": ["x.png", "x.png", "x#2.png"],
    "with and without ./": ["x.png", "./x.png", "y.png"],
}


@pytest.mark.parametrize("form", ["shard", "archive"])
@pytest.mark.parametrize("double", DOUBLES)
def test_a_doubled_name_in_an_archive_fails_its_row_only(endpoint, batch, tmp_path, double, form):
    names = DOUBLES[double]
    path = write_tar(tmp_path / "s-0.tar", [(name, at) for at, name in enumerate(names)])
    source = path if form == "archive" else str(tmp_path / "s-{0..0}.tar")
    seen: set[str] = set()
    expected = []
    for name in names:
        key = (
            name.removeprefix("./") if form == "archive" else name.removeprefix("./").split(".")[0]
        )
        expected.append("failed" if key in seen else "described")
        seen.add(key)
    server = endpoint()
    for _ in range(2):
        batch(source, tmp_path / "out", base_url=server.base_url)
        rows = read_rows(tmp_path / "out")
        assert sorted(row["status"] for row in rows) == sorted(expected)
        assert len({row["id"] for row in rows}) == len(names)
        check_books(server, tmp_path / "out")
    assert server.billed == expected.count("described")


def test_shards_of_one_name_share_their_ids(tmp_path):
    import gzip  # noqa: PLC0415 - once

    write_tar(tmp_path / "s.tar", [("x.png", 1), ("y.png", 2)])
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress((tmp_path / "s.tar").read_bytes()))
    items = list(open_source(str(tmp_path / "{s.tar,s.tar.gz}")))
    assert [item.id for item in items] == ["s/x", "s/y", "s/x (same id 2)", "s/y (same id 2)"]
    assert [item.error is None for item in items] == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("0001.png", "0001"),
        ("dir/0001.thumb.png", "dir/0001"),
        ("v1.2/0001.seg.0.png", "v1.2/0001"),
        ("a b.c.d.jpg", "a b"),
    ],
)
def test_ids_of_shards_are_the_keys_of_webdataset(tmp_path, name, key):
    write_tar(tmp_path / "s-000.tar", [(name, 1)])
    assert [item.id for item in open_source(str(tmp_path / "s-{000..000}.tar"))] == [f"s-000/{key}"]
