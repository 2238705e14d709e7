"""What becomes of a picture, of a job and of the money when the endpoint fails."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from describing_many import (
    answer_to,
    check_books,
    described,
    draw_numbered,
    fill,
    numbered,
    read_manifest,
    read_rows,
    slow,
)
from fault_server import raw, reset, status
from phospho_multimodal import Spending, errors
from phospho_multimodal.batch import describe_many
from phospho_multimodal.errors import (
    AuthenticationError,
    EndpointGoneError,
    PaymentRequiredError,
    ServiceError,
    SpendingLimitError,
)

HTML = b"<html>Not what you wanted</html>"
PAGE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(HTML), HTML)
OK = answer_to(1)
# name: what the server does, status, error class, attempts, images in doubt, images paid
FAULTS: dict[str, tuple[list[Any], str, str | None, int, int, int]] = {
    "429, then an answer": ([status(429)], "described", None, 2, 0, 1),
    "503 twice, then an answer": ([status(503)] * 2, "described", None, 3, 0, 1),
    "503 beyond all retries": ([status(503)] * 7, "described", None, 8, 0, 1),
    "429 beyond all retries": ([status(429)] * 7, "described", None, 8, 0, 1),
    "429, then 502": ([status(429)] * 4 + [status(502)], "in_doubt", "ServiceError", 5, 1, 0),
    "429, then 422": ([status(429)] * 4 + [status(422)], "failed", "InvalidRequestError", 5, 0, 0),
    "500, then an answer": ([status(500)], "described", None, 2, 0, 1),
    "500 twice": ([status(500)] * 2, "failed", "ServiceError", 2, 0, 0),
    "502": ([status(502)], "in_doubt", "ServiceError", 1, 1, 0),
    "504": ([status(504)], "in_doubt", "ServiceError", 1, 1, 0),
    "503, then 502": ([status(503), status(502)], "in_doubt", "ServiceError", 2, 1, 0),
    "422": ([status(422, "no")], "failed", "InvalidRequestError", 1, 0, 0),
    "413": ([status(413)], "failed", "InvalidRequestError", 1, 0, 0),
    "a reset": ([reset()], "in_doubt", "ReplyLostError", 1, 1, 0),
    "half a reply": (
        [raw(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{", billed=True)],
        "in_doubt", "ReplyLostError", 1, 1, 0,
    ),
    "a web page": (
        [raw(PAGE, billed=True, then="keep")],
        "in_doubt", "UnexpectedReplyError", 1, 1, 0,
    ),
}  # fmt: skip


class TestFaults:
    @pytest.mark.parametrize("name", FAULTS)
    def test_what_becomes_of_a_picture(self, endpoint, batch, tmp_path, name):
        faults, state, error, attempts, in_doubt, paid = FAULTS[name]
        server = endpoint(of={1: faults})
        source = [("bad", numbered(1)), ("good", numbered(2))]
        summary = batch(source, tmp_path / "out", base_url=server.base_url)
        bad, good = read_rows(summary)
        assert (bad["status"], bad["error_class"]) == (state, error)
        assert (bad["attempts"], bad["images_in_doubt"]) == (attempts, in_doubt)
        assert bad["cost_usd"] == pytest.approx(0.01 * paid)
        assert bad["description"] == (OK if state == "described" else None)
        assert (bad["error"] is None) == (error is None)
        assert bad["sha256"]
        assert (bad["width"], bad["height"]) == (8, 6)
        assert (good["status"], good["description"]) == ("described", answer_to(2))
        assert server.asked == {1: attempts, 2: 1}
        check_books(server, summary)

    def test_a_lost_reply_is_asked_again_if_so_told(self, endpoint, batch, tmp_path):
        server = endpoint(of={1: [reset()]})
        summary = batch(
            [numbered(1)], tmp_path / "out", base_url=server.base_url, retry_lost_replies=True
        )
        (row,) = read_rows(summary)
        assert (row["status"], row["attempts"]) == ("described", 2)
        assert (row["cost_usd"], row["images_in_doubt"]) == (0.01, 1)
        check_books(server, summary)

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (401, AuthenticationError),
            (402, PaymentRequiredError),
            (403, errors.PermissionDeniedError),
            (404, EndpointGoneError),
        ],
    )
    def test_what_would_end_each_question_ends_the_job_and_the_next_call_goes_on(
        self, endpoint, batch, tmp_path, code, error
    ):
        photos, out = fill(tmp_path / "photos", 40), tmp_path / "out"
        server = endpoint(*[described()] * 10, status(code))
        with pytest.raises(error):
            batch(photos, out, base_url=server.base_url)
        rows, manifest = read_rows(out), read_manifest(out)
        assert {row["status"] for row in rows} <= {"described"}
        assert len(rows) == 10
        assert manifest["statuses"] == {
            "described": 10, "failed": 0, "in_doubt": 0, "pending": 30,
        }  # fmt: skip
        assert len(server.questions) <= 10 + 4
        check_books(server, out)
        server.plan = [described()]
        server.asked.clear()
        summary = batch(photos, out, base_url=server.base_url)
        assert (summary.described, summary.pending) == (40, 0)
        assert server.asked.total() == 30
        assert [row["description"] for row in read_rows(out)] == [answer_to(n) for n in range(40)]
        check_books(server, out)

    def test_fifty_failures_without_an_answer_end_the_job(self, endpoint, batch, tmp_path):
        photos, out = fill(tmp_path / "photos", 120), tmp_path / "out"
        server = endpoint(status(500))
        with pytest.raises(ServiceError):
            batch(photos, out, base_url=server.base_url)
        failed = read_manifest(out)["statuses"]["failed"]
        assert 50 <= failed <= 54
        check_books(server, out)
        server.plan = [described()]
        summary = batch(photos, out, base_url=server.base_url, retry_failed=True)
        assert summary.described == 120
        check_books(server, out)

    def test_one_answer_among_fifty_failures_is_enough(self, endpoint, batch, tmp_path):
        photos = fill(tmp_path / "photos", 120)
        bad = [status(422)] * 40
        server = endpoint(*bad, described(), *bad, described(), status(422))
        summary = batch(photos, tmp_path / "out", base_url=server.base_url, concurrency=1)
        assert (summary.described, summary.failed) == (2, 118)


class TestCaps:
    @pytest.mark.parametrize(
        ("cap", "faults", "concurrency"),
        [
            ({"max_images": 7}, "none", 1),
            ({"max_images": 7}, "free", 1),
            ({"max_images": 7}, "none", 8),
            ({"max_images": 7}, "free", 8),
            ({"max_images": 7}, "free", "auto"),
            ({"max_images": 7, "max_usd": 9}, "none", 8),
            ({"max_usd": 0.07}, "free", 8),
            ({"max_usd": "0.079"}, "free", 8),
        ],
    )
    def test_the_cap_is_used_to_the_image(self, endpoint, tmp_path, cap, faults, concurrency):
        photos, out = fill(tmp_path / "photos", 30), tmp_path / "out"
        # no more of them than there are retries
        of = {n: [status(503)] for n in (1, 5, 8)} if faults == "free" else {}
        server = endpoint(of=of)
        options = {"base_url": server.base_url, "results": "jsonl", "concurrency": concurrency}
        with pytest.raises(SpendingLimitError):
            describe_many(photos, out, **options, **cap)
        assert server.billed == 7
        assert read_manifest(out)["images_billed"] == 7
        check_books(server, out)
        with pytest.raises(SpendingLimitError):
            describe_many(photos, out, **options, **cap)
        assert server.billed == 7
        with pytest.raises(SpendingLimitError):
            describe_many(photos, out, **options, max_images=11)
        assert server.billed == 11
        check_books(server, out)
        summary = describe_many(photos, out, **options)
        assert (summary.described, summary.pending) == (30, 0)
        check_books(server, out)

    def test_what_is_in_doubt_counts(self, endpoint, batch, tmp_path):
        photos, out = fill(tmp_path / "photos", 30), tmp_path / "out"
        server = endpoint(reset(), described(), reset(), described())
        with pytest.raises(SpendingLimitError):
            batch(photos, out, base_url=server.base_url, max_images=6)
        assert server.billed == 6
        manifest = read_manifest(out)
        assert (manifest["images_billed"], manifest["images_in_doubt"]) == (4, 2)
        check_books(server, out)

    def test_a_cap_that_is_just_enough_is_no_error(self, endpoint, batch, tmp_path):
        photos, out = fill(tmp_path / "photos", 12), tmp_path / "out"
        draw_numbered(photos / "copy.png", 3)
        server = endpoint()
        summary = batch(photos, out, base_url=server.base_url, max_images=12)
        assert summary.described == 13
        check_books(server, out)
        assert batch(photos, out, base_url=server.base_url, max_images=12).described == 13
        assert server.billed == 12

    def test_copies_of_what_is_paid_are_rows_though_the_cap_is_reached(
        self, endpoint, batch, tmp_path
    ):
        numbers = [0, 1, 2, 0, 1, 2, 3, 4]
        pairs = [(str(place), numbered(n)) for place, n in enumerate(numbers)]
        server = endpoint()
        with pytest.raises(SpendingLimitError):
            batch(pairs, tmp_path / "out", base_url=server.base_url, max_images=3, concurrency=1)
        rows = read_rows(tmp_path / "out")
        assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
        check_books(server, tmp_path / "out")

    def test_a_cap_of_nothing_asks_nothing(self, endpoint, batch, tmp_path):
        server = endpoint()
        with pytest.raises(SpendingLimitError):
            batch([numbered(1)], tmp_path / "out", base_url=server.base_url, max_images=0)
        assert server.questions == []

    def test_another_price(self, endpoint, batch, tmp_path):
        server = endpoint()
        source = [numbered(n) for n in range(5)]
        with pytest.raises(SpendingLimitError):
            batch(
                source,
                tmp_path / "out",
                base_url=server.base_url,
                max_usd="1",
                usd_per_image="0.25",
            )
        assert server.billed == 4
        rows, manifest = read_rows(tmp_path / "out"), read_manifest(tmp_path / "out")
        assert sum(row["cost_usd"] for row in rows) == manifest["cost_usd"] == 1.0
        assert manifest["usd_per_image"] == 0.25

    def test_a_ledger_of_ones_own_holds_over_jobs(self, endpoint, batch, tmp_path):
        server = endpoint()
        spending = Spending(max_images=5)
        source = [numbered(n) for n in range(4)]
        options = {"base_url": server.base_url, "spending": spending}
        assert batch(source, tmp_path / "one", **options).described == 4
        with pytest.raises(SpendingLimitError):
            batch(source, tmp_path / "two", **options)
        assert server.billed == spending.snapshot().images_billed == 5
        check_books(server, tmp_path / "two", billed=1)

    def test_what_somebody_else_has_reserved_may_come_free(self, endpoint, batch, tmp_path):
        server = endpoint()
        spending = Spending(max_images=3)
        (reserved,) = spending.reserve()
        timer = threading.Timer(0.5, reserved.release)
        timer.start()
        source = [numbered(n) for n in range(3)]
        summary = batch(source, tmp_path / "out", base_url=server.base_url, spending=spending)
        timer.join()
        assert summary.described == server.billed == 3

    def test_what_came_free_right_after_a_refusal_is_used(self, endpoint, batch, tmp_path):
        class Shared(Spending):
            """Somebody else has the image, and gives it back before anybody looks."""

            refusals = 0

            def reserve(self, images: int = 1) -> Any:
                if not self.refusals:
                    self.refusals += 1
                    message = "somebody else has it"
                    raise SpendingLimitError(message)
                return super().reserve(images)

        server, spending = endpoint(), Shared(max_images=1)
        source = [numbered(1)]
        summary = batch(source, tmp_path / "out", base_url=server.base_url, spending=spending)
        assert summary.described == server.billed == 1

    def test_waiting_for_the_last_image_is_no_work(self, endpoint, batch, tmp_path):
        server = endpoint(described(), described(), slow(1.0))
        batch([numbered(0)], tmp_path / "loaded", base_url=server.base_url)
        source = [numbered(n) for n in range(60)]
        began = time.process_time()
        with pytest.raises(SpendingLimitError):
            batch(source, tmp_path / "out", base_url=server.base_url, max_images=2, concurrency=32)
        assert server.billed == 1 + 2
        assert time.process_time() - began < 0.7

    def test_a_ledger_in_a_file(self, endpoint, batch, tmp_path):
        server = endpoint(of={2: [status(503)], 3: [reset()]})
        source = [numbered(n) for n in range(20)]
        with pytest.raises(SpendingLimitError):
            batch(
                source,
                tmp_path / "out",
                base_url=server.base_url,
                spending=Spending(max_images=12, path=tmp_path / "ledger"),
            )
        told = Spending(path=tmp_path / "ledger").snapshot()
        assert server.billed == 12 == told.images_billed + told.images_in_doubt
        assert told.images_reserved == 0
        check_books(server, tmp_path / "out")
