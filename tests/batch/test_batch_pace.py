"""How many at once, how fast, how far, and how it is told to end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from describing_many import (
    check_books,
    data_url,
    described,
    draw_numbered,
    fill,
    numbered,
    read_manifest,
    slow,
    write_csv,
)
from fault_server import Connection, Received, status
from phospho_multimodal.batch import Progress, describe_many
from phospho_multimodal.batch.pipeline import progress as progress_module
from phospho_multimodal.errors import (
    PaymentRequiredError,
)


class TestPace:
    @pytest.mark.parametrize("concurrency", [1, 5])
    def test_the_number_at_once_is_never_passed(self, endpoint, batch, tmp_path, concurrency):
        together = threading.Barrier(concurrency)

        def wait_for_all(connection: Connection, request: Received) -> None:
            together.wait(20)
            described()(connection, request)

        server = endpoint(*[wait_for_all] * concurrency, slow(0.01))
        source = [numbered(n) for n in range(40)]
        batch(source, tmp_path / "out", base_url=server.base_url, concurrency=concurrency)
        assert server.most_in_flight == concurrency

    def test_auto_goes_up_while_answers_come(self, endpoint, batch, tmp_path):
        server = endpoint(slow(0.02))
        source = [numbered(n) for n in range(400)]
        batch(source, tmp_path / "out", base_url=server.base_url, concurrency="auto")
        assert 4 < server.most_in_flight <= 64

    @pytest.mark.parametrize("code", [429, 503])
    def test_auto_goes_down_in_a_storm(self, endpoint, tmp_path, code):
        told: list[Progress] = []
        storm = [slow(0.01, status(code))] * 3 + [slow(0.01)]
        server = endpoint(*[slow(0.01)] * 300, *storm * 60)
        source = [numbered(n) for n in range(340)]
        describe_many(
            source,
            tmp_path / "out",
            base_url=server.base_url,
            concurrency="auto",
            results="jsonl",
            max_retries=0,
            on_progress=told.append,
        )
        assert told[-1].limit < max(progress.limit for progress in told)
        assert told[-1].limit <= 4

    def test_requests_per_second_hold(self, endpoint, batch, tmp_path):
        server = endpoint()
        began = time.monotonic()
        batch(
            [numbered(n) for n in range(60)],
            tmp_path / "out",
            base_url=server.base_url,
            concurrency=20,
            requests_per_second=40,
        )
        # One second's worth may start at once; on a busy machine they arrive later, never earlier.
        for number, moment in enumerate(sorted(request.at for request in server.questions)):
            assert moment - began >= (number + 1 - 40) / 40 - 0.001

    def test_progress_rises_to_all(self, endpoint, batch, tmp_path):
        told: list[Progress] = []
        photos = fill(tmp_path / "photos", 60)
        draw_numbered(photos / "copy.png", 3)
        server = endpoint(slow(0.01), slow(0.02))
        batch(photos, tmp_path / "out", base_url=server.base_url, on_progress=told.append)
        assert [progress.done for progress in told] == sorted(progress.done for progress in told)
        assert {progress.inputs for progress in told} == {61}
        assert all(progress.in_flight <= progress.limit <= 4 for progress in told)
        last = told[-1]
        assert (last.done, last.described, last.duplicates, last.in_flight) == (61, 61, 1, 0)
        assert (float(last.usd_spent), float(last.usd_saved)) == (0.6, 0.01)
        told.clear()
        batch(photos, tmp_path / "out", base_url=server.base_url, on_progress=told.append)
        assert all(progress.done == 61 for progress in told)

    def test_a_long_count_is_reported(self, endpoint, batch, tmp_path, monkeypatch):
        monkeypatch.setattr(progress_module, "_LONG_COUNT", 0.0)
        photos = fill(tmp_path / "photos", 7)
        seen: list[Progress] = []
        batch(photos, tmp_path / "out", base_url=endpoint().base_url, on_progress=seen.append)
        assert seen[0].waits_for == "Counting inputs: 7 found"
        assert (seen[0].inputs, seen[0].done, seen[0].limit) == (7, 0, 0)
        assert seen[-1].done == 7

    def test_an_error_of_on_progress_is_logged_once_and_ends_nothing(
        self, endpoint, batch, tmp_path, caplog
    ):
        def fail(progress: Progress) -> None:
            message = "enough"
            raise RuntimeError(message)

        photos, out = fill(tmp_path / "photos", 40), tmp_path / "out"
        server = endpoint(slow(0.02))
        assert batch(photos, out, base_url=server.base_url, on_progress=fail).described == 40
        assert caplog.text.count("RuntimeError: enough") == 1
        check_books(server, out)

    def test_three_thousand_tiny_inputs_take_seconds(self, endpoint, tmp_path):
        source = write_csv(
            tmp_path / "rows.csv", [{"image": data_url(numbered(n % 50))} for n in range(3000)]
        )
        server = endpoint()
        began = time.process_time()
        summary = describe_many(source, tmp_path / "out", base_url=server.base_url, results="jsonl")
        assert time.process_time() - began < 10
        assert (summary.described, server.billed) == (3000, 50)

    @pytest.mark.parametrize("wait", ["before a retry", "for the rate"])
    def test_a_wait_ends_when_the_job_is_to_end(self, endpoint, batch, tmp_path, wait):
        interrupted = threading.Event()
        options: dict[str, Any] = {}
        busy = status(503, headers={"retry-after": "20"})

        def stop(connection: Connection, request: Received) -> None:
            interrupted.set()
            described()(connection, request)

        script = [busy, busy, busy, described(), stop]
        if wait == "for the rate":
            script, options = [described(), stop], {"requests_per_second": 4}
        server = endpoint(*script)
        source = [numbered(n) for n in range(100)]
        began = time.monotonic()
        summary = batch(
            source,
            tmp_path / "out",
            base_url=server.base_url,
            interrupted=interrupted,
            concurrency=40,
            **options,
        )
        assert time.monotonic() - began < 15
        assert summary.pending >= 50
        assert summary.failed == summary.in_doubt == 0
        check_books(server, tmp_path / "out")

    def test_a_fatal_answer_does_not_wait_for_retries(self, endpoint, batch, tmp_path):
        busy = status(503, headers={"retry-after": "20"})
        server = endpoint(busy, busy, slow(0.1, status(402)))
        began = time.monotonic()
        with pytest.raises(PaymentRequiredError):
            batch([numbered(n) for n in range(9)], tmp_path / "out", base_url=server.base_url)
        assert time.monotonic() - began < 15
        assert read_manifest(tmp_path / "out")["statuses"]["pending"] == 9
