"""`describe_many`, from outside: inputs in, rows out, whatever the endpoint does."""

from __future__ import annotations

import asyncio
import io
import json
import re
import tarfile
from datetime import datetime, timedelta
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from describing_many import (
    Batch,
    answer_to,
    check_books,
    data_url,
    draw_numbered,
    fill,
    numbered,
    read_manifest,
    read_rows,
    write_csv,
)
from fault_server import answer, reset, status
from phospho_multimodal.batch import adescribe_many, describe_many

COLUMNS = [
    ("id", "string", str),
    ("source", "string", str),
    ("description", "string", str),
    ("status", "string", str),
    ("error_class", "string", str),
    ("error", "string", str),
    ("attempts", "int", int),
    ("cost_usd", "double", float),
    ("images_in_doubt", "int", int),
    ("duplicate_of", "string", str),
    ("sha256", "string", str),
    ("width", "int", int),
    ("height", "int", int),
    ("seconds", "double", float),
    ("prompt_id", "string", str),
    ("model", "string", str),
    ("time", "timestamp", (str, datetime)),
    ("removed", "bool", bool),
]
NEVER_NULL = {
    "id",
    "source",
    "status",
    "attempts",
    "cost_usd",
    "images_in_doubt",
    "prompt_id",
    "model",
    "removed",
}


class TestRows:
    def test_each_input_is_a_row_in_its_place_with_every_column(self, endpoint, batch, tmp_path):
        photos = fill(tmp_path / "photos", 7)
        (photos / "00003a.png").write_bytes(b"no picture at all")
        server = endpoint()
        summary = batch(photos, tmp_path / "out", base_url=server.base_url)
        rows = read_rows(summary)
        names = sorted(path.name for path in photos.iterdir())
        assert [row["id"] for row in rows] == names
        for row in rows:
            assert list(row) == [name for name, _, _ in COLUMNS]
            for name, _, kind in COLUMNS:
                assert isinstance(row[name], kind) or (
                    row[name] is None and name not in NEVER_NULL
                ), name
            assert row["source"] == str(photos / row["id"])
            assert row["model"] == "phospho-multimodal"
            assert summary.folder.name == f"job-{row['prompt_id']}"
        good = [row for row in rows if row["id"] != "00003a.png"]
        assert [row["description"] for row in good] == [answer_to(n) for n in range(7)]
        for row in good:
            assert row["status"] == "described"
            assert row["error_class"] is row["error"] is row["duplicate_of"] is None
            assert (row["attempts"], row["images_in_doubt"]) == (1, 0)
            assert row["cost_usd"] == pytest.approx(0.01)
            assert (row["width"], row["height"]) == (8, 6)
            assert re.fullmatch(r"[0-9a-f]{64}", row["sha256"])
            assert 0 < row["seconds"] < 60
            time = datetime.fromisoformat(str(row["time"]).replace("Z", "+00:00"))
            assert time.utcoffset() == timedelta(0)
        (broken,) = (row for row in rows if row["id"] == "00003a.png")
        assert (broken["status"], broken["error_class"]) == ("failed", "ImageError")
        assert broken["error"]
        assert broken["sha256"] is broken["width"] is broken["description"] is None
        assert (broken["attempts"], broken["cost_usd"]) == (0, 0.0)
        assert str(summary).startswith("8 inputs: 7 described, 1 failed, 0 in doubt\n")
        check_books(server, summary)

    def test_a_parquet_dataset_is_the_folder_itself(self, endpoint, tmp_path):
        photos = fill(tmp_path / "photos", 3)
        (photos / "9.png").write_bytes(b"broken")
        server = endpoint()
        summary = describe_many(photos, tmp_path / "out", base_url=server.base_url)
        table = pq.read_table(summary.folder)
        assert table.num_rows == 4
        for (name, kind, _), column in zip(COLUMNS, table.schema, strict=True):
            assert column.name == name
            assert kind in str(column.type)

    def test_the_types_are_the_same_when_all_is_broken(self, endpoint, tmp_path):
        good, bad = fill(tmp_path / "good", 2), tmp_path / "bad"
        bad.mkdir()
        (bad / "1.png").write_bytes(b"broken")
        server = endpoint()
        tables = []
        for photos in (good, bad):
            out = tmp_path / f"{photos.name}-out"
            summary = describe_many(photos, out, base_url=server.base_url)
            tables.append(pq.read_table(summary.folder))
        assert tables[0].schema.equals(tables[1].schema)

    def test_more_than_a_part_holds_are_several_parts(self, endpoint, tmp_path):
        rows = [{"image": data_url(numbered(n))} for n in range(2100)]
        server = endpoint()
        source = write_csv(tmp_path / "rows.csv", rows)
        summary = describe_many(
            source, tmp_path / "out", base_url=server.base_url, results="jsonl", concurrency=16
        )
        assert [path.name for path in summary.parts] == [f"part-0000{n}.jsonl" for n in range(2)]
        parts = read_manifest(summary)["results"]["parts"]
        assert [part["rows"] for part in parts] == [1000, 1100]
        assert [row["description"] for row in read_rows(summary)] == [
            answer_to(n) for n in range(2100)
        ]
        check_books(server, summary)

    def test_nothing_of_a_row_is_lost(self, endpoint, batch, tmp_path):
        said = {
            "ключ — 鍵 🗝\ufe0f": "long " * 20_000,
            "line\nbreak\r\n": "one\ntwo\r\nthree\u2028four\u0085five\ttab",
            'quote"\\, comma': '"{}",\\n \\u0000 \x01 \x7f <script>',
            " spaces ": " kept as they are \n",
            "e\u0301 é": "e\u0301 is not é; \U0001f468\u200d\U0001f469\u200d\U0001f467",
            "empty answer": "",
        }
        pairs = [(name, numbered(n)) for n, name in enumerate(said)]
        server = endpoint(of={n: [answer(text)] for n, text in enumerate(said.values())})
        rows = read_rows(batch(pairs, tmp_path / "out", base_url=server.base_url))
        assert [row["id"] for row in rows] == list(said)
        assert [row["description"] for row in rows] == list(said.values())

    def test_what_is_no_picture_is_a_row_and_asks_nothing(self, endpoint, batch, tmp_path):
        draw_numbered(tmp_path / "good.png", 5)
        (tmp_path / "cut.png").write_bytes(numbered(5, size=(90, 90))[:100])
        (tmp_path / "text.jpg").write_text("this is text")
        (tmp_path / "empty.png").write_bytes(b"")
        cells = ["cut.png", "text.jpg", "empty.png", "missing.png", "", "ftp://example.org/a.png"]
        cells += ["data:image/png;base64,!!!", ".", "good.png"]
        source = write_csv(tmp_path / "rows.csv", [{"image": cell, "n": "1"} for cell in cells])
        server = endpoint()
        summary = batch(source, tmp_path / "out", base_url=server.base_url)
        rows = read_rows(summary)
        assert [row["error_class"] for row in rows] == ["ImageError"] * 8 + [None]
        assert all(row["error"] and row["cost_usd"] == 0 for row in rows[:-1])
        assert rows[-1]["description"] == answer_to(5)
        assert len(server.questions) == 1
        check_books(server, summary)

    def test_sixty_broken_pictures_are_no_reason_to_stop(self, endpoint, batch, tmp_path):
        pairs = [(str(n), b"broken %d" % n) for n in range(60)] + [("good", numbered(1))]
        server = endpoint()
        rows = read_rows(batch(pairs, tmp_path / "out", base_url=server.base_url))
        assert [row["status"] for row in rows] == ["failed"] * 60 + ["described"]

    def test_urls_are_passed_on_unopened_and_the_same_one_is_asked_once(self, endpoint, tmp_path):
        url = "https://example.org/a.jpg"
        told: list[str] = []

        def look(connection, request):
            told.append(request.item["image_url"])
            answer("far away")(connection, request)

        server = endpoint()
        server._question = lambda request: look  # a URL has no number
        rows = read_rows(
            describe_many(
                [("1", url), ("2", url), ("3", url + "?3")],
                tmp_path / "out",
                base_url=server.base_url,
                results="jsonl",
            )
        )
        assert sorted(told) == [url, url + "?3"]
        assert [row["description"] for row in rows] == ["far away"] * 3
        assert [row["source"] for row in rows] == [url, url, url + "?3"]
        assert [row["sha256"] for row in rows] == [None] * 3
        assert [row["duplicate_of"] for row in rows] == [None, "1", None]
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(0.02)

    def test_what_is_asked_is_prompt_model_and_parameters(self, endpoint, batch, tmp_path):
        server = endpoint()
        summary = batch(
            [numbered(1)],
            tmp_path / "out",
            "Wie viele?",
            base_url=server.base_url,
            model="phospho-multimodal-2",
            temperature=0.5,
            max_new_tokens=20,
            stop=["c"],
        )
        (request,) = server.questions
        body = json.loads(request.body)
        assert body["model"] == "phospho-multimodal-2"
        assert request.item["text"] == "Wie viele?"
        parameters = json.dumps(body)
        assert '"temperature": 0.5' in parameters.replace('":', '": ').replace(":  ", ": ")
        manifest = read_manifest(summary)
        assert (manifest["prompt"], manifest["model"]) == ("Wie viele?", "phospho-multimodal-2")
        assert manifest["parameters"]["max_new_tokens"] == 20
        assert manifest["stop"] == ["c"]
        (row,) = read_rows(summary)
        assert row["description"] == "Pi"


class TestTheSamePicture:
    def test_it_is_asked_once_however_it_comes(self, endpoint, batch, tmp_path):
        file = numbered(9)
        draw_numbered(tmp_path / "a.png", 9)
        draw_numbered(tmp_path / "copy.png", 9)
        draw_numbered(tmp_path / "saved.gif", 9)
        draw_numbered(tmp_path / "saved.webp", 9, lossless=True)
        draw_numbered(tmp_path / "other.png", 10)
        cells = ["a.png", "copy.png", data_url(file), "saved.gif", "other.png", "saved.webp"]
        source = write_csv(tmp_path / "rows.csv", [{"image": cell, "n": "1"} for cell in cells])
        server = endpoint()
        summary = batch(source, tmp_path / "out", base_url=server.base_url)
        rows = read_rows(summary)
        assert server.asked == {9: 1, 10: 1}
        first, other = rows[0], rows[4]
        assert [row["description"] for row in rows] == [answer_to(n) for n in (9, 9, 9, 9, 10, 9)]
        assert len({row["sha256"] for row in rows}) == 2
        assert first["duplicate_of"] is other["duplicate_of"] is None
        for row in (rows[1], rows[2], rows[3], rows[5]):
            assert (row["duplicate_of"], row["cost_usd"]) == (first["id"], 0.0)
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(0.02)
        manifest = read_manifest(summary)
        assert (manifest["distinct_pictures"], manifest["duplicates"]) == (2, 4)
        assert manifest["saved_by_deduplication_usd"] == pytest.approx(0.04)
        check_books(server, summary)

    @pytest.mark.parametrize("concurrency", [1, 16])
    def test_many_copies_at_once_are_one_question(self, endpoint, tmp_path, concurrency):
        pairs = [(f"{n:03d}", numbered(n % 3)) for n in range(60)]
        server = endpoint()
        summary = describe_many(
            pairs,
            tmp_path / "out",
            base_url=server.base_url,
            results="jsonl",
            concurrency=concurrency,
        )
        assert server.asked == {0: 1, 1: 1, 2: 1}
        rows = read_rows(summary)
        assert [row["duplicate_of"] for row in rows[:3]] == [None] * 3
        assert [row["duplicate_of"] for row in rows[3:]] == [f"{n % 3:03d}" for n in range(3, 60)]
        check_books(server, summary)

    def test_a_copy_of_what_fails_fails_without_being_asked(self, endpoint, batch, tmp_path):
        pairs = [("a", numbered(1)), ("b", numbered(1)), ("c", numbered(2))]
        server = endpoint(of={1: [status(422)]})
        summary = batch(pairs, tmp_path / "out", base_url=server.base_url)
        rows = read_rows(summary)
        assert [row["status"] for row in rows] == ["failed", "failed", "described"]
        assert [row["error_class"] for row in rows[:2]] == ["InvalidRequestError"] * 2
        assert server.asked == {1: 1, 2: 1}
        check_books(server, summary)

    def test_a_copy_of_what_is_in_doubt_is_in_doubt_and_counted_once(
        self, endpoint, batch, tmp_path
    ):
        pairs = [("a", numbered(1)), ("b", numbered(1)), ("c", numbered(2))]
        server = endpoint(of={1: [reset()]})
        summary = batch(pairs, tmp_path / "out", base_url=server.base_url)
        rows = read_rows(summary)
        assert [row["status"] for row in rows] == ["in_doubt", "in_doubt", "described"]
        assert [row["images_in_doubt"] for row in rows] == [1, 0, 0]
        assert server.asked == {1: 1, 2: 1}
        check_books(server, summary)


async def test_it_works_inside_a_running_loop_and_two_jobs_at_once(endpoint, tmp_path):
    server = endpoint()
    photos = fill(tmp_path / "photos", 20)
    options: dict[str, Any] = {"base_url": server.base_url, "results": "jsonl"}
    one, two = await asyncio.gather(
        adescribe_many(photos, tmp_path / "out", "one?", **options),
        adescribe_many(photos, tmp_path / "out", "two?", **options),
    )
    three = describe_many(photos, tmp_path / "out", "three?", **options)
    assert one.described == two.described == three.described == 20
    assert len({one.folder, two.folder, three.folder}) == 3
    assert server.billed == 60


def test_the_digest_is_the_same_whatever_the_concurrency_and_the_kind(endpoint, tmp_path):
    photos = fill(tmp_path / "photos", 30)
    draw_numbered(photos / "copy.png", 3)
    (photos / "broken.png").write_bytes(b"broken")
    digests = set()
    for run, (results, concurrency) in enumerate(
        [("jsonl", 1), ("jsonl", 16), ("parquet", "auto")]
    ):
        server = endpoint()
        summary = Batch("sync", results)(
            photos, tmp_path / f"out{run}", base_url=server.base_url, concurrency=concurrency
        )
        digests.add(read_manifest(summary)["results"]["digest"])
        check_books(server, summary)
    assert len(digests) == 1


async def test_a_client_of_ones_own_is_used_and_not_closed(endpoint, tmp_path):
    server = endpoint()
    async with httpx.AsyncClient(headers={"x-mine": "yes"}) as client:
        summary = await adescribe_many(
            [numbered(1)],
            tmp_path / "out",
            base_url=server.base_url,
            results="jsonl",
            http_client=client,
        )
        assert not client.is_closed
    assert summary.described == 1
    assert server.questions[0].headers["x-mine"] == "yes"


def test_urls_that_are_to_be_opened_here_and_may_not_be_are_rows(endpoint, batch, tmp_path):
    server = endpoint()
    urls = [server.base_url + "/a.png", "https://127.0.0.1/b.png"]
    summary = batch(urls, tmp_path / "out", base_url=server.base_url, url_mode="fetch")
    rows = read_rows(summary)
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert [row["source"] for row in rows] == urls
    assert server.questions == []


def test_archives_go_through_whole(endpoint, batch, tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as archive:
            for n in range(3):
                file = numbered(10 * shard + n)
                header = tarfile.TarInfo(f"{n}.png")
                header.size = len(file)
                archive.addfile(header, io.BytesIO(file))
    server = endpoint()
    source = str(tmp_path / "s-{0..1}.tar")
    for _ in range(2):
        rows = read_rows(batch(source, tmp_path / "out", base_url=server.base_url))
        assert [row["description"] for row in rows] == [answer_to(n) for n in (0, 1, 2, 10, 11, 12)]
    assert server.billed == 6
