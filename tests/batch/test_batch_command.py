"""`phospho-multimodal batch`, against an endpoint on the loopback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

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
from fault_server import reset, status
from phospho_multimodal.cli.main import app

CLI = [sys.executable, "-c", "from phospho_multimodal.cli.main import main; main()", "batch"]

Command = Callable[..., Result]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures, and a copy of one."""
    folder = fill(tmp_path / "photos", 5)
    draw_numbered(folder / "copy.png", 2)
    return folder


@pytest.fixture
def command(photos: Path, tmp_path: Path) -> Command:
    """Runs the command on the five pictures, results as JSONL."""

    def run(
        server: Any, *flags: str, source: str | None = None, stdin: str | None = None
    ) -> Result:
        told = ["batch", source or str(photos), "--out", str(tmp_path / "out")]
        told += ["--base-url", server if isinstance(server, str) else server.base_url]
        return CliRunner().invoke(app, [*told, "--format", "jsonl", *flags], input=stdin)

    return run


def words(result: Result) -> str:
    """All that was printed, on one line."""
    return " ".join(result.output.split())


def test_yes_goes_on_without_asking(endpoint, command, tmp_path):
    server = endpoint()
    result = command(server, "--yes", "--prompt", "Well?")
    assert result.exit_code == 0, result.output
    said = words(result)
    for part in (
        "6 inputs: 6 described, 0 failed, 0 in doubt",
        "5 images billed, $0.05",
        "$0.00 to $0.08, $0.05 if every file is an image",
        "saved by sending equal images once: 1 images, $0.01",
    ):
        assert part in said
    assert [row["description"] for row in read_rows(tmp_path / "out")][-1] == answer_to(2)
    assert {question.item["text"] for question in server.questions} == {"Well?"}
    check_books(server, tmp_path / "out")
    again = command(server, "--yes", "--prompt", "Well?")
    assert again.exit_code == 0
    assert "$0.00 to $0.00" in words(again)
    assert len(server.questions) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="no file has such a name there")
def test_a_name_of_a_file_tells_the_terminal_nothing(endpoint, command, photos):
    min(photos.iterdir()).rename(photos / "0\x1b]0;title\x07.png")
    server = endpoint(reset())
    result = command(server, "--yes")
    assert result.exit_code == 4
    assert "In doubt: 0\N{REPLACEMENT CHARACTER}]0;title" in words(result)
    assert "\x1b" not in result.output


def test_a_dry_run_tells_the_price_and_asks_nothing(endpoint, command):
    server = endpoint()
    result = command(server, "--dry-run", "--max-usd", "7")
    assert result.exit_code == 0, result.output
    said = words(result)
    for part in (
        "6 inputs, 5 distinct files",
        "$0.00 to $0.08, $0.05 if every file is an image",
        "700 images more",
        "6 not asked",
    ):
        assert part in said
    assert server.questions == []
    assert command(server, "--dry-run", "--yes").exit_code == 0
    assert server.questions == []


def test_without_a_terminal_nobody_can_say_yes(endpoint, command, tmp_path):
    server = endpoint()
    result = command(server)
    assert result.exit_code == 1
    assert "--yes" in result.output
    assert server.requests == []
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such terminals")
@pytest.mark.parametrize(("answer", "asked"), [("y", 5), ("n", 0), ("", 0)])
def test_on_a_terminal_it_asks(endpoint, photos, tmp_path, answer, asked):
    server = endpoint()
    ours, theirs = os.openpty()
    options = ["--out", str(tmp_path / "out"), "--base-url", server.base_url, "--format", "jsonl"]
    os.write(ours, f"{answer}\n".encode())
    process = subprocess.run(  # noqa: S603 - our own code
        [*CLI, str(photos), *options], stdin=theirs, capture_output=True, timeout=60, check=False
    )
    os.close(theirs)
    os.close(ours)
    assert process.returncode == 0, process.stderr
    assert b"Go on?" in process.stdout + process.stderr
    assert len(server.questions) == asked


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipe has a name there")
def test_pipes_and_an_empty_file_are_rows_and_nobody_waits_for_them(endpoint, photos, tmp_path):
    names = ["empty.png", "pipe1.png", "pipe2.png"]  # all of one size, as copies are
    (photos / names[0]).touch()
    for name in names[1:]:
        os.mkfifo(photos / name)
    server = endpoint()
    options = ["--out", str(tmp_path / "out"), "--base-url", server.base_url, "--format", "jsonl"]
    # A process of its own can be ended: a thread that opens a pipe waits for its writer for ever.
    process = subprocess.run(  # noqa: S603 - our own code
        [*CLI, str(photos), *options, "--yes"], capture_output=True, timeout=60, check=False
    )
    assert process.returncode == 3, process.stderr
    rows = {row["id"]: row for row in read_rows(tmp_path / "out")}
    assert len(rows) == 9
    for name, said in zip(names, ["empty", "not a file", "not a file"], strict=True):
        assert (rows[name]["status"], rows[name]["error_class"]) == ("failed", "ImageError")
        assert said in rows[name]["error"]
        assert (rows[name]["cost_usd"], rows[name]["attempts"]) == (0, 0)
    assert server.asked == dict.fromkeys(range(5), 1)
    assert server.billed == 5
    check_books(server, tmp_path / "out")


def test_rows_in_doubt_and_failures_are_told_with_what_to_do(endpoint, command, tmp_path):
    server = endpoint(of={0: [reset()], 2: [reset()], 3: [status(422)]})
    result = command(server, "--yes")
    assert result.exit_code == 3, result.output
    said = words(result)
    assert said.endswith("2 of 6 inputs are described: 1 failed, 3 in doubt. (exit code 3)")
    assert "In doubt: 00000.png, 00002.png, copy.png." in said
    assert "--retry-in-doubt" in said
    assert "Failed: 1 InvalidRequestError. --retry-failed asks again." in said
    result = command(server, "--yes", "--retry-failed")
    assert "Failed:" not in words(result)
    result = command(server, "--yes", "--retry-in-doubt")
    assert "In doubt:" not in words(result)
    assert server.asked == {0: 2, 1: 1, 2: 2, 3: 2, 4: 1}
    check_books(server, tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--concurrency", "many"], "concurrency"),
        (["--concurrency", "0"], "concurrency"),
        (["--concurrency", "-3"], "concurrency"),
        (["--temperature", "-1"], "temperature"),
        (["--max-usd", "-1"], "max_usd"),
        (["--model", "other"], "model"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_a_sentence_and_exit_code_1(endpoint, command, tmp_path, flags, said):
    server = endpoint()
    result = command(server, "--yes", *flags)
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output
    assert server.questions == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--format", "csv"], ["--max-images", "-1"], ["--nothing"]])
def test_a_wrong_flag_is_exit_code_2(endpoint, command, flags):
    server = endpoint()
    assert command(server, "--yes", *flags).exit_code == 2
    assert server.requests == []


def test_the_cap_ends_it_with_1_and_the_same_command_goes_on(endpoint, command, tmp_path):
    server = endpoint()
    result = command(server, "--yes", "--max-images", "3")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert server.billed == 3
    assert command(server, "--yes", "--max-images", "5").exit_code == 0
    assert server.billed == 5
    check_books(server, tmp_path / "out")


def test_a_wrong_key_and_a_dead_endpoint_end_it_with_1(endpoint, command):
    server = endpoint(key="right")
    result = command(server, "--yes", "--api-key", "wrong-key-0815")
    assert result.exit_code == 1
    assert "401" in result.output
    assert "wrong-key-0815" not in result.output
    result = command("http://127.0.0.1:9", "--yes")
    assert result.exit_code == 1
    assert "Nothing answers" in words(result)
    assert server.questions == []


@pytest.mark.parametrize("form", ["paths", "blank lines"])
def test_a_dash_reads_standard_input(endpoint, command, photos, tmp_path, form):
    server = endpoint()
    gap = "\n\n" if form == "blank lines" else "\n"
    lines = gap.join([str(photos / "00001.png"), str(photos / "nowhere.png"), "copy.png"])
    result = command(server, "--yes", "--root", str(photos), source="-", stdin=lines + "\n")
    assert result.exit_code == 3, result.output
    rows = read_rows(tmp_path / "out")
    assert [row["description"] for row in rows] == [answer_to(1), None, answer_to(2)]
    assert rows[1]["error_class"] == "ImageError"


def test_a_dash_without_yes_is_refused(endpoint, command, photos):
    server = endpoint()
    assert command(server, source="-", stdin=str(photos / "copy.png")).exit_code == 1
    assert server.requests == []


def test_a_table_with_its_columns(endpoint, command, photos, tmp_path):
    table = tmp_path / "rows.jsonl"
    rows = [{"key": f"k{n}", "file": f"{n:05d}.png"} for n in range(5)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = endpoint()
    flags = ["--column", "file", "--id-column", "key", "--root", str(photos), "--yes"]
    result = command(server, *flags, source=str(table))
    assert result.exit_code == 0, result.output
    read = read_rows(tmp_path / "out")
    assert [row["id"] for row in read] == [f"k{n}" for n in range(5)]
    assert [row["source"] for row in read] == [f"{n:05d}.png" for n in range(5)]


def test_a_report_is_a_page(endpoint, command, tmp_path):
    server = endpoint(of={1: [status(422)]})
    result = command(server, "--yes", "--report")
    assert result.exit_code == 3, result.output
    page = (folder_of(tmp_path / "out") / "_report.html").read_text(encoding="utf-8")
    for part in ("<html", answer_to(4), "InvalidRequestError"):
        assert part in page
    assert read_manifest(tmp_path / "out")["statuses"]["described"] == 5


def test_parameters_are_handed_on(endpoint, command, tmp_path):
    server = endpoint()
    flags = ["--model", "phospho-multimodal-2", "--temperature", "0.25", "--max-new-tokens", "9"]
    assert command(server, "--yes", *flags).exit_code == 0
    body = json.loads(server.questions[0].body)
    assert body["model"] == "phospho-multimodal-2"
    manifest = read_manifest(tmp_path / "out")
    assert manifest["parameters"]["temperature"] == 0.25
    assert manifest["parameters"]["max_new_tokens"] == 9


def test_large_pictures_are_shrunk_to_what_is_told(endpoint, command, tmp_path):
    big = tmp_path / "big"
    big.mkdir()
    (big / "a.png").write_bytes(numbered(3, size=(300, 200)))
    server = endpoint()
    assert command(server, "--yes", "--max-image-side", "30", source=str(big)).exit_code == 0
    (row,) = read_rows(tmp_path / "out")
    assert (row["width"], row["height"]) == (30, 20)
    from PIL import Image  # noqa: PLC0415 - once

    assert Image.open(io.BytesIO(server.questions[0].image)).size == (30, 20)
