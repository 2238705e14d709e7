"""What a job looks at before anything is paid, and what it refuses."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from describing_many import (
    data_url,
    draw_numbered,
    fill,
    numbered,
    read_rows,
    write_csv,
)
from phospho_multimodal import Spending
from phospho_multimodal.batch import describe_many
from phospho_multimodal.errors import (
    AuthenticationError,
    ConfigurationError,
)


class TestBeforeAnythingIsPaid:
    def test_no_is_no(self, endpoint, batch, tmp_path):
        photos = fill(tmp_path / "photos", 5)
        for name in ("copy.png", "again.png"):
            draw_numbered(photos / name, 2)
        (photos / "broken.png").write_bytes(b"broken")
        told = []

        def look(preflight):
            told.append(preflight)
            return False

        server = endpoint()
        options = {"base_url": server.base_url, "max_usd": 20}
        summary = batch(photos, tmp_path / "out", confirm=look, **options)
        assert server.questions == []
        assert (summary.inputs, summary.pending) == (8, 8)
        (first,) = told
        assert (first.inputs, first.pending, first.described) == (8, 8, 0)
        assert first.pictures == 6
        assert first.usd_from <= first.usd_to
        assert first.usd_from == 0, "each of them may be broken"
        assert float(first.usd_expected) == pytest.approx(0.06)
        assert first.max_images == 2000
        assert first.base_url == server.base_url
        assert first.models == ("phospho-multimodal",)
        assert first.folder == summary.folder
        for said in ("8, ", "$0.00 to $0.09, $0.06 if", "2,000 images more", server.base_url):
            assert said in str(first)

        batch(photos, tmp_path / "out", confirm=lambda preflight: True, **options)
        assert server.billed == 5
        batch(photos, tmp_path / "out", confirm=look, **options)
        last = told[-1]
        assert (last.pending, last.described, last.failed, last.pictures) == (0, 7, 1, 0)
        assert last.usd_from == last.usd_to == 0
        assert server.billed == 5

    def test_the_price_is_no_more_than_the_cap(self, endpoint, tmp_path):
        told = []
        server = endpoint()
        describe_many(
            [numbered(n) for n in range(50)],
            tmp_path / "out",
            base_url=server.base_url,
            results="jsonl",
            max_images=20,
            confirm=lambda preflight: bool(told.append(preflight)),
        )
        (preflight,) = told
        assert (float(preflight.usd_expected), float(preflight.usd_to)) == (0.2, 0.2)

    def test_confirm_may_ask_on_another_thread_and_its_errors_are_handed_on(
        self, endpoint, batch, tmp_path
    ):
        def refuse(preflight: object) -> bool:
            message = "not today"
            raise RuntimeError(message)

        server = endpoint()
        with pytest.raises(RuntimeError, match="not today"):
            batch([numbered(1)], tmp_path / "out", base_url=server.base_url, confirm=refuse)
        assert server.questions == []
        assert batch([numbered(1)], tmp_path / "out", base_url=server.base_url).described == 1

    @pytest.mark.parametrize("key", ["wrong", None])
    def test_a_wrong_key(self, endpoint, batch, tmp_path, key):
        server = endpoint(key="right")
        with pytest.raises(AuthenticationError):
            batch([numbered(1)], tmp_path / "out", base_url=server.base_url, api_key=key)
        assert server.questions == []
        summary = batch([numbered(1)], tmp_path / "out", base_url=server.base_url, api_key="right")
        assert summary.described == 1

    def test_nothing_answers(self, endpoint, batch, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match="Nothing answers"):
            batch([numbered(1)], tmp_path / "out", base_url=f"http://127.0.0.1:{port}")
        assert read_rows_if_any(tmp_path / "out") == []

    @pytest.mark.parametrize(
        "options",
        [
            {"concurrency": 0},
            {"concurrency": -1},
            {"concurrency": "many"},
            {"concurrency": 2.5},
            {"max_concurrency": 4},
            {"results": "csv"},
            {"temperature": -1},
            {"max_new_tokens": 0},
            {"top_p": 7},
            {"max_images": -1},
            {"max_usd": -1},
            {"max_usd": "much"},
            {"usd_per_image": -1},
            {"max_usd": 1, "spending": Spending()},
            {"requests_per_second": 0},
            {"model": "another"},
            {"timeout": -1},
            {"column": "nowhere"},
            {"base_url": "not a url"},
            {"unheard_of": 1},
        ],
        ids=str,
    )
    def test_a_bad_setting_is_told_and_nothing_is_made(self, endpoint, batch, tmp_path, options):
        source = write_csv(tmp_path / "rows.csv", [{"image": data_url(numbered(1))}])
        server = endpoint()
        with pytest.raises((ConfigurationError, TypeError)) as caught:
            batch(source, tmp_path / "out", **{"base_url": server.base_url, **options})
        assert isinstance(caught.value, TypeError) == ("unheard_of" in options)
        assert server.questions == []
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "source",
        ["nowhere/", "nowhere/*.jpg/", "rows.xyz", pytest.param(iter([]), id="iterator"), 5, None],
        ids=str,
    )
    def test_a_source_that_is_none(self, endpoint, batch, tmp_path, source, monkeypatch):
        monkeypatch.chdir(tmp_path)
        server = endpoint()
        with pytest.raises(ConfigurationError):
            batch(source, tmp_path / "out", base_url=server.base_url)
        assert server.requests == []
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_cannot_be_written(self, endpoint, batch, tmp_path):
        (tmp_path / "out").write_text("a file is in the way")
        server = endpoint()
        with pytest.raises(ConfigurationError):
            batch([numbered(1)], tmp_path / "out", base_url=server.base_url)
        assert server.questions == []
        assert (tmp_path / "out").read_text() == "a file is in the way"

    @pytest.mark.parametrize(
        ("module", "options"),
        [("pyarrow", {"results": "parquet"}), ("jinja2", {"results": "jsonl", "report": True})],
    )
    def test_a_missing_extra_is_named(self, endpoint, tmp_path, monkeypatch, module, options):
        for name in (module, f"{module}.parquet"):
            monkeypatch.setitem(__import__("sys").modules, name, None)
        server = endpoint()
        with pytest.raises(ImportError, match="batch"):
            describe_many([numbered(1)], tmp_path / "out", base_url=server.base_url, **options)
        assert server.requests == []
        assert not (tmp_path / "out").exists()

    def test_two_inputs_with_one_id(self, endpoint, batch, tmp_path):
        server = endpoint()
        pairs = [("a", numbered(1)), ("b", numbered(2)), ("a", numbered(3))]
        with pytest.raises(ConfigurationError, match=r"\ba\b"):
            batch(pairs, tmp_path / "out", base_url=server.base_url)
        assert server.questions == []


class TestOutputs:
    @pytest.mark.parametrize(
        "place",
        [
            Path("s3://bucket/captions"),
            Path("gs://bucket"),
            Path("https://host/x"),
            Path("file:///captions"),
        ],
        ids=str,
    )
    def test_a_path_that_was_a_url_is_rejected(self, endpoint, batch, tmp_path, monkeypatch, place):
        monkeypatch.chdir(tmp_path)
        server = endpoint()
        with pytest.raises(ConfigurationError, match="Pass the URL as a text"):
            batch([numbered(1)], place, base_url=server.base_url)
        assert server.requests == []
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["captions:v1", "a:b:c", "s3:bucket", "100%", "{x}", "a b?"])
    @pytest.mark.skipif(sys.platform == "win32", reason="no folder has such a name there")
    def test_a_folder_may_have_an_odd_name(self, endpoint, batch, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        server = endpoint()
        summary = batch([numbered(1)], Path(name), base_url=server.base_url)
        assert summary.described == 1
        assert [part.is_file() for part in summary.parts] == [True]
        assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize(
        "name",
        ["part-00000", "_manifest.json", "_manifest.json.new", "_report.html", "_part-00000"],
    )
    def test_every_output_is_opened_before_anything_is_paid(self, endpoint, batch, tmp_path, name):
        server, out = endpoint(), tmp_path / "out"
        options = {"base_url": server.base_url}
        folder = batch([numbered(1)], out, confirm=lambda _: False, **options).folder
        suffix = {"part-00000": f".{batch.results}", "_part-00000": f".{batch.results}.new"}
        (folder / "_manifest.json").unlink()
        (folder / f"{name}{suffix.get(name, '')}").mkdir()
        with pytest.raises(ConfigurationError, match=name):
            batch([numbered(1)], out, **options)
        assert server.questions == []

    def test_a_file_is_no_folder_for_results(self, endpoint, batch, tmp_path):
        server = endpoint()
        (tmp_path / "out").touch()
        with pytest.raises(ConfigurationError, match="out"):
            batch([numbered(1)], tmp_path / "out", base_url=server.base_url)
        assert server.questions == []


def test_a_table_that_calls_two_images_the_same_is_told_before_it_is_paid(
    endpoint, batch, tmp_path
):
    server = endpoint()
    rows = [{"image": data_url(numbered(n)), "key": "twice"} for n in (1, 2)]
    table = write_csv(tmp_path / "rows.csv", rows)
    batch(fill(tmp_path / "one", [1]), tmp_path / "out", base_url=server.base_url)
    server.asked.clear()
    with pytest.raises(ConfigurationError, match="twice"):
        batch(table, tmp_path / "out", base_url=server.base_url, id_column="key")
    assert not server.asked


def read_rows_if_any(out: Path) -> list[dict[str, Any]]:
    return read_rows(out) if out.exists() and any(out.iterdir()) else []
