"""A job that is stopped, killed, changed or damaged between its runs goes on, and pays once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from describing_many import (
    Endpoint,
    answer_to,
    check_books,
    described,
    draw_numbered,
    fill,
    folder_of,
    numbered,
    read_manifest,
    read_rows,
    slow,
    statuses,
)
from fault_server import Connection, Received, hang, reset, status
from phospho_multimodal.batch import Progress, adescribe_many, describe_many
from phospho_multimodal.errors import ConfigurationError, SpendingLimitError

CLI = [sys.executable, "-c", "from phospho_multimodal.cli.main import main; main()", "batch"]
FORTY = [answer_to(n) for n in range(40)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty pictures."""
    return fill(tmp_path / "photos", 40)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def command(photos: Path, out: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the command in a process of its own; none is left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(server: Endpoint, *flags: str) -> subprocess.Popen[bytes]:
        options = ["--out", str(out), "--base-url", server.base_url, "--yes", "--format", "jsonl"]
        options += ["--concurrency", "4", "--prompt", "What is this?", *flags]
        process = subprocess.Popen(  # noqa: S603 - our own code
            [*CLI, str(photos), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def go_on(server: Endpoint, photos: Path, out: Path, **options: Any) -> Any:
    """The same call as `command` makes."""
    server.plan = [described()]
    return describe_many(
        photos, out, "What is this?", base_url=server.base_url, results="jsonl", **options
    )


class TestStopping:
    def test_what_is_under_way_is_finished_and_the_next_call_goes_on(
        self, endpoint, batch, photos, out
    ):
        interrupted = threading.Event()

        def stop(connection: Connection, request: Received) -> None:
            interrupted.set()
            slow(0.05)(connection, request)

        server = endpoint(*[described()] * 9, stop, slow(0.05))
        first = batch(photos, out, base_url=server.base_url, interrupted=interrupted)
        assert first.described == len(server.questions) == server.billed
        assert 10 <= first.described <= 10 + 4
        assert first.failed == first.in_doubt == 0
        check_books(server, out)
        second = batch(photos, out, base_url=server.base_url)
        assert (second.described, second.pending) == (40, 0)
        assert set(server.asked.values()) == {1}
        assert [row["description"] for row in read_rows(out)] == FORTY
        assert read_manifest(out)["runs"] == 2
        check_books(server, out)

    def test_an_event_that_is_set_before_asks_nothing(self, endpoint, batch, photos, out):
        server = endpoint()
        interrupted = threading.Event()
        interrupted.set()
        summary = batch(photos, out, base_url=server.base_url, interrupted=interrupted)
        assert (summary.inputs, summary.pending) == (40, 40)
        assert server.questions == []

    def test_ctrl_c_is_handed_on_when_all_is_kept(self, endpoint, photos, out):
        server = endpoint(*[described()] * 8, slow(0.05))

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGUSR1, interrupt)

        def look() -> None:
            server.wait_for_requests(12)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                describe_many(
                    photos,
                    out,
                    "What is this?",
                    base_url=server.base_url,
                    results="jsonl",
                    concurrency=4,
                )
        finally:
            watcher.join()
            signal.signal(signal.SIGUSR1, before)
        assert len(read_rows(out)) == server.billed < 40
        check_books(server, out)
        assert go_on(server, photos, out).described == 40
        assert set(server.asked.values()) == {1}
        check_books(server, out)

    @pytest.mark.parametrize("names", [["SIGTERM"], ["SIGHUP"], ["SIGTERM", "SIGHUP", "SIGTERM"]])
    def test_preemption_is_a_ctrl_c_and_a_second_signal_does_not_cut_it_short(
        self, endpoint, photos, out, names
    ):
        server = endpoint(*[described()] * 8, slow(0.2))
        numbers = [getattr(signal, name) for name in names]

        def preempt() -> None:
            server.wait_for_requests(12)
            for number in numbers:
                signal.pthread_kill(threading.main_thread().ident or 0, number)

        watcher = threading.Thread(target=preempt)
        watcher.start()
        with pytest.raises(KeyboardInterrupt):
            describe_many(
                photos,
                out,
                "What is this?",
                base_url=server.base_url,
                results="jsonl",
                concurrency=4,
            )
        watcher.join()
        assert {signal.getsignal(number) for number in numbers} == {signal.SIG_DFL}
        assert len(read_rows(out)) == server.billed < 40
        assert read_manifest(out)["images_in_doubt"] == 0
        check_books(server, out)
        assert go_on(server, photos, out).described == 40
        assert set(server.asked.values()) == {1}

    @pytest.mark.parametrize("handler", ["own", "ignored"])
    def test_a_handler_of_the_program_stays(self, endpoint, photos, out, handler):
        heard: list[int] = []
        own: Any = signal.SIG_IGN if handler == "ignored" else lambda *told: heard.append(told[0])
        server = endpoint(*[described()] * 8, slow(0.02))
        before = signal.signal(signal.SIGHUP, own)

        def tell() -> None:
            server.wait_for_requests(12)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGHUP)

        watcher = threading.Thread(target=tell)
        watcher.start()
        try:
            assert go_on(server, photos, out).described == 40
        finally:
            watcher.join()
            signal.signal(signal.SIGHUP, before)
        assert heard == ([] if handler == "ignored" else [signal.SIGHUP])

    def test_a_cancelled_task_keeps_what_is_done(self, endpoint, photos, out):
        server = endpoint(*[described()] * 10, slow(0.3))
        options: dict[str, Any] = {
            "base_url": server.base_url,
            "results": "jsonl",
            "concurrency": 4,
        }

        async def run() -> None:
            task = asyncio.create_task(adescribe_many(photos, out, "What is this?", **options))
            await asyncio.to_thread(server.wait_for_requests, 15)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(run())
        summary = go_on(server, photos, out)
        assert summary.described + summary.in_doubt == 40
        assert summary.in_doubt <= 4
        assert set(server.asked.values()) == {1}
        rows = read_rows(out)
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(0.01 * summary.described)
        assert server.billed <= summary.images_billed + summary.images_in_doubt

    def test_a_second_process_at_the_same_job_is_refused(self, endpoint, photos, out, command):
        server = endpoint(slow(0.5))  # long enough for this process, too, to begin
        command(server)
        server.wait_for_requests(8)
        asked = server.asked.total()
        began = time.monotonic()
        with pytest.raises(ConfigurationError):
            go_on(server, photos, out)
        assert time.monotonic() - began < 15
        assert asked > 0

    def test_a_second_call_in_this_process_is_refused(self, endpoint, photos, out):
        server = endpoint(slow(0.1))
        done: list[Any] = []
        options: dict[str, Any] = {"base_url": server.base_url, "results": "jsonl"}
        thread = threading.Thread(target=lambda: done.append(describe_many(photos, out, **options)))
        thread.start()
        server.wait_for_requests(5)
        with pytest.raises(ConfigurationError):
            describe_many(photos, out, **options)
        thread.join()
        assert done[0].described == 40
        assert describe_many(photos, out, **options).described == 40
        assert set(server.asked.values()) == {1}


@pytest.mark.long
class TestKills:
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
    def test_a_signal_ends_the_command_well_with_130(self, endpoint, photos, out, command, name):
        server = endpoint(*[described()] * 10, slow(0.1))
        process = command(server)
        server.wait_for_requests(3 + 12)
        process.send_signal(getattr(signal, name))
        assert process.wait(20) == 130
        rows = read_rows(out)
        assert 10 <= len(rows) < 40
        assert {row["status"] for row in rows} == {"described"}
        check_books(server, out)
        assert command(server).wait(30) == 0
        assert set(server.asked.values()) == {1}
        assert [row["description"] for row in read_rows(out)] == FORTY
        check_books(server, out)

    def test_a_second_sigint_does_not_wait(self, endpoint, photos, out, command):
        server = endpoint(*[described()] * 6, hang(15))
        process = command(server)
        server.wait_for_requests(3 + 10)
        process.send_signal(signal.SIGINT)
        time.sleep(0.4)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(12) == 130
        summary = go_on(server, photos, out)
        assert (summary.described, summary.in_doubt) == (36, 4)
        assert set(server.asked.values()) == {1}
        check_books(server, out)

    @pytest.mark.parametrize("after", [1, 11, 30])
    def test_after_a_kill_only_what_was_under_way_is_in_doubt(
        self, endpoint, photos, out, command, after
    ):
        draw_numbered(photos / "copy.png", 0)
        server = endpoint(slow(0.03))
        process = command(server)
        server.wait_for_requests(3 + after)
        process.send_signal(signal.SIGKILL)
        process.wait()
        summary = go_on(server, photos, out)
        assert summary.described + summary.in_doubt == 41
        assert summary.in_doubt <= 5  # 4 under way, and the copy
        assert set(server.asked.values()) == {1}
        assert server.billed <= summary.images_billed + summary.images_in_doubt
        assert summary.images_in_doubt <= 4
        asked = server.asked.total()
        again = go_on(server, photos, out)
        assert again.in_doubt == summary.in_doubt
        assert server.asked.total() == asked
        doubted = {n for n, row in enumerate(read_rows(out)) if row["status"] == "in_doubt"}
        server.asked.clear()
        last = go_on(server, photos, out, retry_in_doubt=True)
        assert (last.described, last.in_doubt) == (41, 0)
        assert server.asked == dict.fromkeys(doubted - {40}, 1)
        rows = read_rows(out)
        assert [row["description"] for row in rows] == [*FORTY, answer_to(0)]
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(0.4)
        assert last.images_in_doubt == summary.images_in_doubt

    def test_a_kill_while_inputs_are_counted_or_between_is_nothing(
        self, endpoint, photos, out, command
    ):
        server = endpoint()
        for seconds in (0.5, 0.7, 0.9):
            process = command(server)
            time.sleep(seconds)
            process.kill()
            process.wait()
        summary = go_on(server, photos, out)
        assert summary.described + summary.in_doubt == 40
        assert set(server.asked.values()) == {1}
        assert len(read_rows(out)) == 40


class TestAskingAgain:
    def test_only_what_is_told_to_be(self, endpoint, batch, photos, out):
        (photos / "broken.png").write_bytes(b"broken")
        server = endpoint(of={1: [status(422)], 2: [reset()], 3: [status(422)], 4: [reset()]})
        first = batch(photos, out, base_url=server.base_url)
        assert (first.described, first.failed, first.in_doubt) == (36, 3, 2)
        check_books(server, out)
        for again, asked, left in (
            ({}, {}, (36, 3, 2)),
            ({"retry_in_doubt": True}, {2: 1, 4: 1}, (38, 3, 0)),
            ({"retry_failed": True, "retry_in_doubt": True}, {1: 1, 3: 1}, (40, 1, 0)),
            ({"retry_failed": True, "retry_in_doubt": True}, {}, (40, 1, 0)),
        ):
            server.asked.clear()
            summary = batch(photos, out, base_url=server.base_url, **again)
            assert server.asked == asked
            assert (summary.described, summary.failed, summary.in_doubt) == left
            check_books(server, out)
        rows = read_rows(out)
        assert [row["description"] for row in rows] == [*FORTY, None]
        assert [row["attempts"] for row in rows[:5]] == [1, 2, 2, 2, 2]
        assert [row["images_in_doubt"] for row in rows[:5]] == [0, 0, 1, 0, 1]
        assert all(row["error"] is None for row in rows[:40])

    def test_failures_alone(self, endpoint, batch, photos, out):
        server = endpoint(of={1: [status(422)], 2: [reset()]})
        batch(photos, out, base_url=server.base_url)
        server.asked.clear()
        summary = batch(photos, out, base_url=server.base_url, retry_failed=True)
        assert server.asked == {1: 1}
        assert (summary.described, summary.failed, summary.in_doubt) == (39, 0, 1)
        check_books(server, out)

    def test_a_mended_picture_is_asked_without_being_told(self, endpoint, batch, photos, out):
        (photos / "broken.png").write_bytes(b"broken")
        server = endpoint()
        assert batch(photos, out, base_url=server.base_url).failed == 1
        draw_numbered(photos / "broken.png", 77)
        server.asked.clear()
        summary = batch(photos, out, base_url=server.base_url)
        assert (summary.described, summary.failed) == (41, 0)
        assert server.asked == {77: 1}
        check_books(server, out)

    def test_what_is_in_doubt_is_not_asked_for_a_copy_that_comes_later(
        self, endpoint, batch, photos, out
    ):
        server = endpoint(of={1: [reset()]})
        batch(photos, out, base_url=server.base_url)
        draw_numbered(photos / "copy.png", 1)
        summary = batch(photos, out, base_url=server.base_url)
        assert server.asked[1] == 1
        assert summary.in_doubt == 2
        check_books(server, out)


class TestOtherJobs:
    @pytest.mark.parametrize(
        "change",
        [
            {"prompt": "What else?"},
            {"model": "phospho-multimodal-2"},
            {"temperature": 0.5},
            {"max_new_tokens": 7},
            {"stop": ["."]},
        ],
        ids=str,
    )
    def test_another_question_is_another_folder(self, endpoint, batch, tmp_path, out, change):
        photos = fill(tmp_path / "few", 3)
        server = endpoint()
        one = batch(photos, out, base_url=server.base_url)
        options = {**change, "base_url": server.base_url}
        two = batch(photos, out, options.pop("prompt", "What is this?"), **options)
        assert one.folder != two.folder
        assert one.folder.parent == two.folder.parent == out
        assert set(server.asked.values()) == {2}
        for summary in (one, two):
            assert len(read_rows(summary)) == 3
            prompt_id = read_manifest(summary)["prompt_id"]
            assert {row["prompt_id"] for row in read_rows(summary)} == {prompt_id}

    def test_how_it_is_asked_is_no_other_question(self, endpoint, batch, tmp_path, out):
        photos = fill(tmp_path / "few", 3)
        server = endpoint()
        one = batch(photos, out, base_url=server.base_url)
        two = batch(photos, out, base_url=server.base_url, concurrency=1, timeout=5, max_retries=0)
        assert one.folder == two.folder
        assert set(server.asked.values()) == {1}

    def test_the_folder_can_be_moved(self, endpoint, batch, photos, tmp_path, out):
        server = endpoint()
        batch(photos, out, base_url=server.base_url)
        out.rename(tmp_path / "elsewhere")
        summary = batch(photos, tmp_path / "elsewhere", base_url=server.base_url)
        assert summary.described == 40
        assert set(server.asked.values()) == {1}


class TestChangedInputs:
    def test_changed_added_and_removed_pictures(self, endpoint, batch, photos, out):
        server = endpoint()
        batch(photos, out, base_url=server.base_url)
        draw_numbered(photos / "00003.png", 103)
        draw_numbered(photos / "00003b.png", 200)
        (photos / "00005.png").unlink()
        server.asked.clear()
        summary = batch(photos, out, base_url=server.base_url)
        assert server.asked == {103: 1, 200: 1}
        rows = {row["id"]: row for row in read_rows(out)}
        names = [f"{n:05d}.png" for n in range(40)]
        assert list(rows) == [*names, "00003b.png"]
        assert rows["00003.png"]["description"] == answer_to(103)
        assert rows["00003b.png"]["description"] == answer_to(200)
        assert rows["00005.png"]["description"] == answer_to(5)
        assert summary.images_billed == server.billed == 42
        assert (summary.described, summary.pending) == (41, 0)

    def test_a_picture_that_is_changed_to_a_known_one_costs_nothing(
        self, endpoint, batch, photos, out
    ):
        server = endpoint()
        batch(photos, out, base_url=server.base_url)
        draw_numbered(photos / "00003.png", 7)
        summary = batch(photos, out, base_url=server.base_url)
        assert server.asked.total() == 40
        rows = read_rows(out)
        assert rows[3]["description"] == rows[7]["description"] == answer_to(7)
        assert [row["duplicate_of"] for row in (rows[3], rows[7])].count(None) == 1
        assert summary.images_billed == server.billed == 40

    def test_a_first_that_is_changed_leaves_its_price_with_its_copy(
        self, endpoint, batch, photos, out
    ):
        draw_numbered(photos / "copy.png", 3)
        server = endpoint()
        batch(photos, out, base_url=server.base_url)
        draw_numbered(photos / "00003.png", 103)
        batch(photos, out, base_url=server.base_url)
        rows = {row["id"]: row for row in read_rows(out)}
        assert rows["00003.png"]["description"] == answer_to(103)
        copy = rows["copy.png"]
        assert (copy["description"], copy["duplicate_of"]) == (answer_to(3), None)
        assert copy["cost_usd"] == pytest.approx(0.01)
        check_books(server, out)

    def test_touched_files_and_another_order_cost_nothing(self, endpoint, batch, photos, out):
        server = endpoint()
        batch(photos, out, base_url=server.base_url)
        for path in photos.iterdir():
            path.touch()
        summary = batch(photos, out, base_url=server.base_url)
        assert (summary.described, server.asked.total()) == (40, 40)
        check_books(server, out)

    def test_data_that_changes_under_its_id_is_asked_again(self, endpoint, batch, out):
        server = endpoint()
        batch([("a", numbered(1)), ("b", numbered(2))], out, base_url=server.base_url)
        batch([("a", numbered(1)), ("b", numbered(3))], out, base_url=server.base_url)
        assert server.asked == {1: 1, 2: 1, 3: 1}
        assert [row["description"] for row in read_rows(out)] == [answer_to(1), answer_to(3)]

    def test_the_price_moves_over_the_edge_of_a_part(self, endpoint, batch, out):
        server = endpoint()
        pairs = [(str(n), numbered(n % 5)) for n in range(1000)]
        pairs += [("seven", numbered(7)), ("copy", numbered(7))]
        batch(pairs, out, base_url=server.base_url)
        pairs[3] = ("3", numbered(7))
        batch(pairs, out, base_url=server.base_url)
        rows = {row["id"]: row for row in read_rows(out)}
        assert rows["3"]["description"] == answer_to(7)
        assert rows["3"]["cost_usd"] == pytest.approx(0.01)
        assert rows["3"]["duplicate_of"] is None
        assert rows["seven"]["duplicate_of"] == rows["copy"]["duplicate_of"] == "3"
        assert rows["8"]["duplicate_of"] is None
        check_books(server, out)

    def test_a_source_that_grows_over_the_edge_of_a_part(self, endpoint, batch, out):
        server = endpoint()
        pairs = [(str(n), numbered(n % 7)) for n in range(1010)]
        batch(pairs[:995], out, base_url=server.base_url)
        summary = batch(pairs, out, base_url=server.base_url)
        assert [part["rows"] for part in read_manifest(out)["results"]["parts"]] == [1000, 10]
        assert [row["id"] for row in read_rows(summary)] == [name for name, _ in pairs]
        assert server.asked == dict.fromkeys(range(7), 1)
        check_books(server, out)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "cut": cut,
    "changed": change,
    "emptied": lambda path: path.write_bytes(b""),
    "another's": lambda path: path.write_bytes(b'{"id": "not mine"}\n'),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_parts_are_written_anew_without_asking(self, endpoint, batch, out, damage):
        server = endpoint()
        pairs = [(str(n), numbered(n % 7)) for n in range(1010)]
        before = batch(pairs, out, base_url=server.base_url)
        rows, manifest = read_rows(before), read_manifest(before)
        for part in before.parts:
            DAMAGES[damage](part)
        after = batch(pairs, out, base_url=server.base_url)
        assert server.asked.total() == 7
        assert read_rows(after) == rows
        assert read_manifest(after)["results"]["digest"] == manifest["results"]["digest"]
        check_books(server, out)

    def test_unfinished_results_of_the_other_kind_are_no_results(self, endpoint, photos, out):
        server = endpoint()
        with pytest.raises(SpendingLimitError):
            go_on(server, photos, out, max_images=7)
        describe_many(photos, out, "What is this?", base_url=server.base_url)
        assert len(read_rows(out)) == 40
        check_books(server, out)

    def test_the_manifest_and_the_report_are_made_anew(self, endpoint, batch, photos, out):
        server = endpoint()
        summary = batch(photos, out, base_url=server.base_url)
        (summary.folder / "_manifest.json").write_text("{")
        batch(photos, out, base_url=server.base_url, report=True)
        assert "<html" in (summary.folder / "_report.html").read_text()
        assert server.asked.total() == 40
        check_books(server, out)

    @pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
    def test_a_journal_that_is_none_is_told_and_kept(self, endpoint, batch, photos, out, content):
        server = endpoint()
        summary = batch(photos, out, base_url=server.base_url)
        for path in summary.folder.glob("_journal*"):
            if path.name != "_journal.sqlite":
                path.unlink()
        journal = summary.folder / "_journal.sqlite"
        journal.write_bytes(content)
        with pytest.raises(ConfigurationError, match="_journal"):
            batch(photos, out, base_url=server.base_url)
        assert server.asked.total() == 40
        assert journal.read_bytes() == content

    def test_results_of_the_other_kind_are_written_without_asking(self, endpoint, photos, out):
        server = endpoint()
        digests, kinds = set(), []
        for results in ("jsonl", "parquet", "jsonl"):
            summary = describe_many(photos, out, base_url=server.base_url, results=results)  # type: ignore[arg-type]
            kinds.append({path.suffix for path in summary.folder.glob("part-*")})
            digests.add(read_manifest(summary)["results"]["digest"])
            check_books(server, out)
        assert kinds == [{".jsonl"}, {".parquet"}, {".jsonl"}]
        assert len(digests) == 1
        assert server.asked.total() == 40

    def test_a_full_disk_or_a_folder_taken_away_is_an_error_of_ours(
        self, endpoint, photos, out, monkeypatch
    ):
        server = endpoint(slow(0.02))

        def take_away(progress: Progress) -> None:
            if progress.done >= 10:
                with contextlib.suppress(OSError):
                    out.rename(out.with_name("gone"))

        with contextlib.suppress(ConfigurationError):
            describe_many(
                photos,
                out,
                "What is this?",
                base_url=server.base_url,
                results="jsonl",
                concurrency=4,
                on_progress=take_away,
            )
        if not out.exists():
            out.with_name("gone").rename(out)
        summary = go_on(server, photos, out)
        assert summary.described + summary.in_doubt == 40
        assert set(server.asked.values()) == {1}


def test_a_job_that_stops_at_every_tenth_question_ends_as_one_that_does_not(
    endpoint, photos, tmp_path
):
    """Kill-free resumption many times over: the digest is that of a job in one go."""
    whole = endpoint()
    digest = read_manifest(go_on(whole, photos, tmp_path / "whole"))["results"]["digest"]
    server = endpoint()
    out = tmp_path / "pieces"
    runs = 0
    while True:
        runs += 1
        interrupted = threading.Event()

        def stop(progress: Progress, event: threading.Event = interrupted) -> None:
            event.set()

        summary = go_on(
            server, photos, out, on_progress=stop, interrupted=interrupted, concurrency=2
        )
        if not summary.pending:
            break
        assert runs < 50
    assert runs > 2
    assert set(server.asked.values()) == {1}
    assert read_manifest(out)["results"]["digest"] == digest
    assert statuses(read_rows(out)) == {f"{n:05d}.png": "described" for n in range(40)}
    assert folder_of(out).name == folder_of(tmp_path / "whole").name
    check_books(server, out)
