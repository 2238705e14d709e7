"""What a script can rely on: exit codes, the last line, `--json`, and lines in a log."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from describing_many import described, fill, numbered, slow
from fault_server import reset, status
from phospho_multimodal.batch import Preflight, Progress, Summary, describe_many
from phospho_multimodal.batch.sources.items import NoInputsError
from phospho_multimodal.cli.batch_progress import ProgressDisplay
from phospho_multimodal.cli.main import app

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command on a source, results as JSONL."""

    def run_it(server: Any, source: Path | str, *flags: str) -> Result:
        told = ["batch", str(source), "--out", str(tmp_path / "out"), "--format", "jsonl"]
        return CliRunner().invoke(app, [*told, "--base-url", server.base_url, "--yes", *flags])

    return run_it


def last(result: Result) -> str:
    return str(result.output.rstrip().splitlines()[-1])


def broken(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(b"<html>403</html>")
    return folder


ENDS: dict[str, tuple[dict[int, list[Any]], int, str]] = {
    "all described": ({}, 0, "All 3 inputs are described."),
    "one failed": ({1: [status(422)]}, 3, "2 of 3 inputs are described: 1 failed."),
    "one in doubt": ({2: [reset()]}, 3, "2 of 3 inputs are described: 1 in doubt."),
    "all failed": (
        {n: [status(422)] for n in range(3)}, 4, "None of 3 inputs are described: 3 failed.",
    ),
    "all in doubt": (
        {n: [reset()] for n in range(3)}, 4, "None of 3 inputs are described: 3 in doubt.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_the_exit_code_and_the_last_line_say_how_it_ended(endpoint, run, tmp_path, end):
    faults, code, words = ENDS[end]
    result = run(endpoint(of=faults), fill(tmp_path / "photos", 3))
    assert (result.exit_code, last(result)) == (code, f"{words} (exit code {code})")
    again = run(endpoint(), tmp_path / "photos")
    assert again.exit_code == code, "a run that has nothing to do says the same"


def test_files_that_are_no_images_are_no_success(endpoint, run, tmp_path):
    result = run(endpoint(), broken(tmp_path / "photos", 5))
    assert (result.exit_code, "5 failed" in last(result)) == (4, True)


def test_the_cap_is_an_error(endpoint, run, tmp_path):
    result = run(endpoint(), fill(tmp_path / "photos", 3), "--max-images", "1")
    assert (result.exit_code, last(result)[-13:]) == (1, "(exit code 1)")


def test_a_dry_run_is_no_failure(endpoint, run, tmp_path):
    server = endpoint()
    result = run(server, fill(tmp_path / "photos", 3), "--dry-run")
    assert (result.exit_code, last(result)) == (0, "Nothing was sent. (exit code 0)")
    assert server.questions == []


def _empty(folder: Path) -> Path:
    return folder


def _tables(folder: Path) -> Path:
    (folder / "train-0.csv").write_text("image\na.png\n")
    return folder


def _linked(folder: Path) -> Path:
    (folder / "2024").symlink_to(fill(folder.with_name("disk"), 2))
    return folder


def _hidden(folder: Path) -> Path:
    fill(folder / ".thumbnails", 2)
    (folder / "._a.jpg").touch()
    return folder


def _texts(folder: Path) -> Path:
    for name in ("a.txt", "b.txt", "c.MOV", "LICENSE"):
        (folder / name).touch()
    return folder


def _table(folder: Path) -> Path:
    (folder / "t.csv").write_text("image\n")
    return folder / "t.csv"


def _tar(folder: Path) -> Path:
    with tarfile.open(folder / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.json"), io.BytesIO())
    return folder / "x.tar"


NOTHING: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "an empty folder": (_empty, ["folder"]),
    "tables": (_tables, ["1 .csv files", "'folder/*.csv'"]),
    "a linked folder": (_linked, ["1 linked folders"]),
    "hidden files": (_hidden, ["1 hidden folders", "1 hidden files"]),
    "other files": (_texts, ["2 .txt files", "1 .mov files", "1 files without a suffix"]),
    "a table without rows": (_table, ["t.csv"]),
    "an archive without images": (_tar, ["x.tar", "1 .json files"]),
}


@pytest.mark.parametrize("what", NOTHING)
def test_nothing_found_says_what_was_searched_and_left_out(endpoint, run, tmp_path, what):
    make, said = NOTHING[what]
    server = endpoint()
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    result = run(server, source)
    assert result.exit_code == 4
    words = " ".join(result.output.split())
    for part in (str(source), *said):
        assert part in words
    assert server.questions == []


def test_a_source_that_became_empty_removes_nothing(endpoint, tmp_path):
    server, photos = endpoint(), fill(tmp_path / "photos", 2)
    options: Any = {"base_url": server.base_url, "results": "jsonl"}
    folder = describe_many(photos, tmp_path / "out", **options).folder
    photos.rename(tmp_path / "unmounted")
    photos.mkdir()
    with pytest.raises(NoInputsError):
        describe_many(photos, tmp_path / "out", **options)
    assert Summary.read(folder).described == 2
    photos.rmdir()
    (tmp_path / "unmounted").rename(photos)
    assert describe_many(photos, tmp_path / "out", **options).removed == 0


def test_a_price_is_no_promise_where_files_may_be_broken(endpoint, tmp_path):
    photos = fill(tmp_path / "photos", 1)
    for number in range(10):
        (photos / f"broken{number}.png").write_bytes(b"x" * (number + 1))
    told: list[Preflight] = []
    summary = describe_many(
        photos,
        tmp_path / "out",
        base_url=endpoint().base_url,
        results="jsonl",
        confirm=lambda preflight: not told.append(preflight),
    )
    assert float(told[0].usd_from) <= summary.cost_usd <= float(told[0].usd_to)
    assert "$0.00 to $0.14, $0.11 if every file is an image" in str(told[0])


def test_time_that_a_killed_run_worked_counts(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("phospho_multimodal.batch.run._NOTE_EVERY", 0.01)
    source: Any = [numbered(number) for number in range(30)]
    options: Any = {"base_url": endpoint(slow(0.02)).base_url, "results": "jsonl"}

    def killed(*_args: Any, **_options: Any) -> None:  # before anything is written at the end
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("phospho_multimodal.batch.run.write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            describe_many(source, tmp_path / "out", **options, concurrency=1)
    summary = describe_many(source, tmp_path / "out", **options)
    assert summary.manifest["seconds"] > 0.5


@pytest.mark.parametrize("results", ["jsonl", "parquet"])
def test_a_folder_of_results_is_a_dataset(endpoint, tmp_path, results):
    options: Any = {"base_url": endpoint().base_url, "results": results}
    folder = describe_many(fill(tmp_path / "photos", 3), tmp_path / "out", **options).folder
    card = folder / "README.md"
    assert card.exists() == (results == "jsonl")
    if results == "jsonl":
        assert 'data_files: "part-*.jsonl"' in card.read_text()
    assert pq.read_table(folder).num_rows == 3 if results == "parquet" else True


def test_a_report_looks_for_images_in_a_few_passes(endpoint, tmp_path):
    class Counted(list[Any]):
        passes = 0

        def __iter__(self) -> Any:
            Counted.passes += 1
            return super().__iter__()

    pairs = [(f"{number:03d}", numbered(number)) for number in range(80)]
    options: Any = {"base_url": endpoint().base_url, "results": "jsonl"}
    describe_many(Counted(pairs), tmp_path / "out", **options)
    Counted.passes = 0
    describe_many(Counted(pairs[1::2]), tmp_path / "out", **options, report=True)
    assert Counted.passes <= 6


def test_what_is_left_out_is_said_before_anything_is_paid(endpoint, run, tmp_path):
    photos = fill(tmp_path / "photos", 2)
    (photos / "notes.txt").touch()
    result = run(endpoint(), photos)
    assert "Left out     1 .txt files" in result.output


@pytest.mark.parametrize("end", [*ENDS, "the cap", "nothing found"])
def test_json_is_all_of_standard_output(endpoint, run, tmp_path, end):
    faults, code, _ = ENDS.get(end, ({}, 1, ""))
    flags = ["--json"]
    source = fill(tmp_path / "photos", 3)
    if end == "the cap":
        flags += ["--max-images", "1"]
    elif end == "nothing found":
        source, code = tmp_path / "none", 4
        source.mkdir()
    result = run(endpoint(of=faults), source, *flags)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["exit_code"]) == (code, code)
    if end == "nothing found":
        assert (told["manifest"], told["error"]["class"]) == (None, "NoInputsError")
        return
    assert told["manifest"] == json.loads(Path(told["folder"], "_manifest.json").read_text())
    assert (told["error"] is not None) == (end == "the cap")
    assert "Inputs" in result.stderr


@pytest.mark.parametrize("width", ["20", "80"])
def test_a_path_is_not_cut_where_nobody_looks(endpoint, run, tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    result = run(endpoint(), fill(tmp_path / "photos", 1))
    (folder,) = (tmp_path / "out").iterdir()
    assert f"Results in {folder}\n" in result.output


def _progress(done: int, **fields: Any) -> Progress:
    told: dict[str, Any] = {
        "inputs": 50, "described": done, "failed": 0, "in_doubt": 0, "duplicates": 0,
        "in_flight": 4, "limit": 4, "inputs_per_second": 2.0, "seconds_left": 60.0,
        "usd_spent": Decimal("0.10"), "usd_in_doubt": Decimal(0), "usd_saved": Decimal(0),
    }  # fmt: skip
    return Progress(**{**told, **fields})


def test_a_log_gets_a_line_now_and_then(tmp_path):
    now = [0.0]
    log = io.StringIO()
    reporter = ProgressDisplay(Console(file=log, width=40), clock=lambda: now[0])
    for second in range(51):
        now[0] = float(second)
        reporter.show(_progress(second))
        reporter.show(_progress(second))
    lines = log.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [
        "0/50",
        "10/50",
        "20/50",
        "30/50",
        "40/50",
        "50/50",
    ]
    assert lines[1] == (
        "10/50 (20%) 2.0/s · $0.10 spent, $0.00 saved · 0 failed, 0 in doubt · 4 of 4 at once"
        " · 0:01:00 left"
    )


def test_a_wait_is_one_line_in_a_log():
    log = io.StringIO()
    reporter = ProgressDisplay(Console(file=log, width=40), clock=lambda: 0.0)
    reporter.show(_progress(7))
    for seconds in (5, 4, 3):
        reporter.show(_progress(7, waits_for=f"The endpoint limits the rate (429): in {seconds} s"))
    reporter.show(_progress(7))
    assert [("429" in line) for line in log.getvalue().splitlines()] == [False, True, False]


def test_a_log_gets_a_line_while_inputs_are_counted():
    now = [0.0]
    log = io.StringIO()
    reporter = ProgressDisplay(Console(file=log, width=40), clock=lambda: now[0])
    for second in range(0, 25, 5):
        now[0] = float(second)
        found = 1000 * second
        reporter.show(
            _progress(0, inputs=found, limit=0, waits_for=f"Counting inputs: {found:,} found")
        )
    assert log.getvalue().splitlines() == [
        f"Counting inputs: {found} found" for found in ("0", "10,000", "20,000")
    ]


def test_an_interrupted_run_says_so_on_its_last_line(endpoint, run, tmp_path, monkeypatch):
    def interrupt(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("phospho_multimodal.cli.batch.describe_many", interrupt)
    result = run(endpoint(), tmp_path)
    assert (result.exit_code, last(result)[-15:]) == (130, "(exit code 130)")


def test_the_event_of_a_caller_leaves_rows_that_are_not_asked(endpoint, tmp_path):
    from phospho_multimodal.batch.results.outcome import exit_code_of, last_line  # noqa: PLC0415

    interrupted = threading.Event()
    server = endpoint(described())
    summary = describe_many(
        [numbered(n) for n in range(100)],
        tmp_path / "out",
        base_url=server.base_url,
        results="jsonl",
        concurrency=1,
        interrupted=interrupted,
        on_progress=lambda progress: interrupted.set() if progress.done else None,
    )
    assert exit_code_of(summary) == 3
    assert "not asked yet" in last_line(summary)
