"""Prompts of their own for the rows, columns that the results keep, and captions beside images."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from describing_many import (
    answer_to,
    check_books,
    draw_numbered,
    fill,
    folder_of,
    numbered,
    read_manifest,
    read_rows,
)
from fault_server import status
from phospho_multimodal.batch import describe_many
from phospho_multimodal.cli.main import app
from phospho_multimodal.errors import ConfigurationError

ROWS: list[dict[str, Any]] = [
    {"title": "a cat", "year": 2020, "tags": ["x", "y"]},
    {"title": "ein Hörnchen", "year": 2021, "tags": []},
    {"title": "猫", "year": None, "tags": None},
]


def tar_of(rows: list[dict[str, Any]]) -> bytes:
    """A shard of webdataset, with the caption of each image beside it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, row in enumerate(rows):
            members = {
                "png": numbered(number),
                "json": json.dumps(row).encode(),
                "txt": row["title"].encode(),
            }
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def as_shard(folder: Path) -> Any:
    (folder / "s-000.tar").write_bytes(tar_of(ROWS))
    return str(folder / "s-{000..000}.tar")


def as_jsonl(folder: Path) -> Any:
    fill(folder, len(ROWS))
    lines = [json.dumps({"image": f"{n:05d}.png", **row}) for n, row in enumerate(ROWS)]
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "t.jsonl"


def as_parquet(folder: Path) -> Any:
    rows = [{"image": {"bytes": numbered(n), "path": None}, **row} for n, row in enumerate(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return folder / "t.parquet"


def as_imagefolder(folder: Path) -> Any:
    fill(folder, len(ROWS))
    lines = [json.dumps({"file_name": f"{n:05d}.png", **row}) for n, row in enumerate(ROWS)]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


FORMS = {
    "webdataset": as_shard,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
    "imagefolder": as_imagefolder,
    "list": lambda _: [{"image": numbered(n), **row} for n, row in enumerate(ROWS)],
}


def prompts_in(server: Any) -> list[str]:
    """What the endpoint was asked, in the order of the images."""
    asked = [json.loads(question.body)["inputs"][0] for question in server.questions]
    return sorted(given["text"] for given in asked)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["template", "column"])
def test_each_row_has_its_prompt_and_the_columns_it_keeps(endpoint, batch, tmp_path, form, way):
    (tmp_path / "in").mkdir()
    source, server, out = FORMS[form](tmp_path / "in"), endpoint(), tmp_path / "out"
    options: Any = {"base_url": server.base_url, "keep": ["title", "year", "tags"]}
    if form in {"parquet", "list"}:
        options["column"] = "image"
    expected = [row["title"] for row in ROWS]
    if way == "column":
        options["prompt_column"] = "title"
        prompts: tuple[str, ...] = ()
    else:
        expected = [f"Describe {title}, {{x}}." for title in expected]
        prompts = ("Describe {title}, {{x}}.",)
    for _ in range(2):
        if prompts:
            summary = batch(source, out, *prompts, **options)
        else:
            options["results"] = batch.results
            summary = describe_many(source, out, **options)
    assert summary.described == server.billed == 3
    assert prompts_in(server) == sorted(expected)
    rows = read_rows(out)
    assert [row["prompt"] for row in rows] == expected
    assert [row["description"] for row in rows] == [answer_to(number) for number in range(3)]
    as_texts = batch.results == "parquet"
    assert [row["year"] for row in rows] == (
        ["2020", "2021", None] if as_texts else [2020, 2021, None]
    )
    assert rows[0]["tags"] == ('["x","y"]' if as_texts else ["x", "y"])
    assert [row["title"] for row in rows] == [row["title"] for row in ROWS]
    assert all(row["sha256"] and row["width"] == 8 for row in rows)
    check_books(server, out)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [{"prompt": "A {titel}"}, {"prompt_column": "titel"}, {"keep": ["titel"]}],
    ids=["template", "column", "keep"],
)
def test_an_unknown_field_is_rejected_before_anything_is_paid(endpoint, tmp_path, form, options):
    (tmp_path / "in").mkdir()
    source, server = FORMS[form](tmp_path / "in"), endpoint()
    column = {"column": "image"} if form in {"parquet", "list"} else {}
    with pytest.raises(ConfigurationError, match=r"'titel'.*Nothing was sent"):
        describe_many(source, tmp_path / "out", base_url=server.base_url, **column, **options)
    assert server.requests == []


@pytest.mark.parametrize("kind", ["folder", "pattern", "list", "archive without fields"])
def test_a_source_without_fields_rejects_a_template(endpoint, tmp_path, kind):
    server, folder = endpoint(), fill(tmp_path / "in", 2)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(folder / "00000.png", "a.png")
    source: Any = {
        "folder": folder,
        "pattern": str(folder / "*.png"),
        "list": [numbered(1)],
        "archive without fields": tmp_path / "x.tar",
    }[kind]
    with pytest.raises(ConfigurationError, match=r"'title'.*Nothing was sent"):
        describe_many(source, tmp_path / "out", "A {title}", base_url=server.base_url)
    assert server.requests == []


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ('Answer with {"a": 1} or {}', 'Answer with {"a": 1} or {}'),
        ("Answer {{title}}", "Answer {title}"),
        ("{ a, b }, {0}, {a:b}", "{ a, b }, {0}, {a:b}"),
        ("100 % {", "100 % {"),
    ],
)
def test_braces_that_name_no_field_are_text(endpoint, batch, tmp_path, prompt, sent):
    server = endpoint()
    batch([numbered(1)], tmp_path / "out", prompt, base_url=server.base_url)
    assert prompts_in(server) == [sent]
    assert "prompt" not in read_rows(tmp_path / "out")[0]


def test_only_rows_whose_prompt_changed_are_asked_about_again(endpoint, batch, tmp_path):
    server, out = endpoint(), tmp_path / "out"
    fill(tmp_path / "in", 3)
    table = tmp_path / "in" / "t.csv"

    def run(*titles: str) -> Any:
        lines = [f"{n:05d}.png,{title}" for n, title in enumerate(titles)]
        table.write_text("image,title\n" + "\n".join(lines), encoding="utf-8")
        return batch(table, out, "A {title}", base_url=server.base_url)

    run("one", "two", "three")
    assert run("one", "two", "three").described == server.billed == 3
    assert run("one", "zwei", "three").described == 3
    assert dict(server.asked) == {0: 1, 1: 2, 2: 1}
    by_id = {row["id"]: row for row in read_rows(out)}
    assert [by_id[f"{n:09d}"]["prompt"] for n in range(3)] == ["A one", "A zwei", "A three"]
    # What was asked before is not paid for again.
    assert run("one", "two", "three").described >= 3
    assert server.billed == 4


def test_a_row_without_a_prompt_fails_and_costs_nothing(endpoint, batch, tmp_path):
    server = endpoint()
    titles = ["a", None, float("nan"), " ", "b"]
    rows = [{"image": numbered(n), "title": title} for n, title in enumerate(titles)]
    options: Any = {"base_url": server.base_url, "column": "image"}
    summary = batch(rows, tmp_path / "out", "{title}", **options)
    assert (summary.described, summary.failed) == (2, 3)
    assert server.billed == 2
    assert all("prompt" in row["error"] for row in read_rows(tmp_path / "out") if row["error"])


def test_several_prompts_give_a_row_for_each_image_and_prompt(endpoint, batch, tmp_path):
    server, photos, out = endpoint(), fill(tmp_path / "in", 2), tmp_path / "out"
    prompts: Any = ["What is this?", "Which colours?", "Where is it?"]
    estimates = []

    def confirm(preflight: Any) -> bool:
        estimates.append((preflight.inputs, preflight.pictures))
        return True

    for _ in range(2):
        summary = batch(photos, out, prompts, base_url=server.base_url, confirm=confirm)
    assert estimates == [(6, 6), (6, 0)]
    assert summary.described == server.billed == 6
    assert Counter(prompts_in(server)) == dict.fromkeys(prompts, 2)
    rows = read_rows(out)
    assert [(row["id"], row["prompt"]) for row in rows] == [
        (f"{n:05d}.png#prompt {number}", prompt)
        for n in range(2)
        for number, prompt in enumerate(prompts, start=1)
    ]
    assert {row["sha256"] for row in rows if row["source"].endswith("00000.png")} == {
        rows[0]["sha256"]
    }
    assert read_manifest(out)["prompt"] == prompts
    check_books(server, out)


@pytest.mark.parametrize("prompts", [[], ["a", "a"], ["a", "b", "a"]])
def test_prompts_that_are_none_or_the_same_are_rejected(endpoint, batch, tmp_path, prompts):
    server = endpoint()
    with pytest.raises(ConfigurationError, match=r"several different.*Nothing was sent"):
        batch([numbered(1)], tmp_path / "out", prompts, base_url=server.base_url)
    assert server.requests == []


def test_a_kept_column_that_changes_is_written_again(endpoint, batch, tmp_path):
    server, out = endpoint(), tmp_path / "out"
    for label in ("old", "new"):
        rows = [{"image": numbered(n), "label": f"{label} {n}", "width": n} for n in range(3)]
        options: Any = {"base_url": server.base_url, "column": "image"}
        batch(rows, out, keep=["label", "width"], **options)
    kept = read_rows(out)
    assert [row["label"] for row in kept] == ["new 0", "new 1", "new 2"]
    assert [str(row["input_width"]) for row in kept] == ["0", "1", "2"]
    assert {row["width"] for row in kept} == {8}
    batch(rows, out, **options)
    assert "label" not in read_rows(out)[0]
    assert server.billed == 3


# --- captions beside the images ----------------------------------------------------


def test_captions_are_written_beside_the_images(endpoint, batch, tmp_path):
    server = endpoint(of={2: [status(400, {"detail": "no"})]})
    photos = fill(tmp_path / "in", 3)
    draw_numbered(photos / "sub" / "x.y.png", 7)
    (photos / "00001.txt").write_text("by hand")
    options: Any = {"base_url": server.base_url, "sidecar": "txt"}
    batch(photos, tmp_path / "out", **options)
    assert (photos / "00000.txt").read_text() == f"{answer_to(0)}\n"
    assert (photos / "00001.txt").read_text() == "by hand"
    assert not (photos / "00002.txt").exists()
    assert (photos / "sub" / "x.y.txt").read_text() == f"{answer_to(7)}\n"
    summary = batch(photos, tmp_path / "out", overwrite=True, retry_failed=True, **options)
    assert (photos / "00001.txt").read_text() == f"{answer_to(1)}\n"
    assert (photos / "00002.txt").read_text() == f"{answer_to(2)}\n"
    assert summary.inputs == 4
    assert not list(photos.glob(".phospho*"))


def test_metadata_of_an_imagefolder_is_written_and_kept_if_it_is_not_ours(
    endpoint, batch, tmp_path
):
    server, photos = endpoint(), fill(tmp_path / "in", 2)
    options: Any = {"base_url": server.base_url, "sidecar": "metadata"}
    for _ in range(2):
        batch(photos, tmp_path / "out", **options)
        draw_numbered(photos / "z" / "00009.png", 9)
    lines = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    assert lines == [
        {"file_name": name, "text": answer_to(number)}
        for name, number in (("00000.png", 0), ("00001.png", 1), ("z/00009.png", 9))
    ]
    (photos / "metadata.jsonl").write_text("by hand")
    server.forget()
    with pytest.raises(ConfigurationError, match=r"metadata.jsonl exists. Nothing was sent"):
        batch(photos, tmp_path / "other", "Another?", **options)
    assert server.questions == []
    batch(photos, tmp_path / "other", "Another?", overwrite=True, **options)
    assert "by hand" not in (photos / "metadata.jsonl").read_text()


@pytest.mark.parametrize(
    ("what", "options", "words"),
    [
        ("bytes", {"sidecar": "txt"}, "are not files"),
        ("list", {"sidecar": "metadata"}, "for a folder"),
        ("folder", {"sidecar": "txt", "prompt": ["a", "b"]}, "one prompt"),
        ("read-only", {"sidecar": "txt"}, "cannot be written"),
        ("read-only", {"sidecar": "metadata"}, "cannot be written"),
    ],
)
def test_captions_that_cannot_be_written_are_rejected_before_anything_is_paid(
    endpoint, tmp_path, what, options, words
):
    server, photos = endpoint(), fill(tmp_path / "in", 2)
    sources = {"bytes": [numbered(1)], "list": [photos / "00000.png"]}
    if what == "read-only":
        # Root may write to any folder, so something is in the way.
        (photos / ".phospho-multimodal").mkdir()
    with pytest.raises(ConfigurationError, match=words):
        describe_many(
            sources.get(what, photos), tmp_path / "out", base_url=server.base_url, **options
        )
    assert server.questions == []


def test_the_command_passes_prompts_columns_and_captions_on(endpoint, tmp_path):
    server, folder = endpoint(), tmp_path / "in"
    folder.mkdir()
    table = as_jsonl(folder)
    told = ["batch", str(table), "--out", str(tmp_path / "out"), "--format", "jsonl", "--yes"]
    told += ["--base-url", server.base_url, "--keep", "title, year", "--sidecar", "txt"]
    result = CliRunner().invoke(app, [*told, "--prompt-column", "title"])
    assert result.exit_code == 0, result.output
    assert [(r["title"], r["year"], r["prompt"]) for r in read_rows(tmp_path / "out")] == [
        (row["title"], row["year"], row["title"]) for row in ROWS
    ]
    assert (folder / "00002.txt").read_text() == f"{answer_to(2)}\n"
    out = tmp_path / "two"
    told = ["batch", str(folder), "--out", str(out), "--format", "jsonl", "--yes"]
    told += ["--base-url", server.base_url, "--prompt", "One?", "--prompt", "Two?"]
    assert CliRunner().invoke(app, told).exit_code == 0
    assert [row["prompt"] for row in read_rows(out)] == ["One?", "Two?"] * 3
    assert os.path.basename(folder_of(out)).startswith("job-")  # noqa: PTH119 - its name
