"""What a review of the batch found: each of these was wrong once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import tarfile
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest
from PIL import Image
from pyarrow import parquet

from fault_server import Behaviour, Connection, FaultServer, Received, prediction
from phospho_multimodal.batch import Preflight, Summary, adescribe_many, describe_many
from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.commits import GroupCommit
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.batch.journal.steps import AttemptStarted, ImageFinished, InputRecord, State
from phospho_multimodal.batch.pipeline.preparation import Preparation
from phospho_multimodal.batch.pipeline.progress import ProgressReporter
from phospho_multimodal.batch.results.rows import Results
from phospho_multimodal.batch.sources.items import Item
from phospho_multimodal.batch.sources.signed_urls import without_signature
from phospho_multimodal.errors import (
    ConfigurationError,
    SpendingLimitError,
    UnsupportedContentError,
)
from phospho_multimodal.settings import Settings
from phospho_multimodal.spending.budget import Reservation, Spending

SETTINGS = Settings.resolve(base_url="http://127.0.0.1:9")
JOB = Job.of("What?", SETTINGS, {})


def endpoint(behave: Behaviour | None = None) -> Behaviour:
    """Answer a look at the endpoint, and each picture by its digest or by another behaviour."""

    def serve(connection: Connection, request: Received) -> None:
        if request.method == "GET":
            listed = b'{"models": ["phospho-multimodal"]}'
            connection.reply(200, listed, billed=False)
        elif not json.loads(request.body)["model"].startswith("phospho-multimodal"):
            connection.reply(400, b'{"detail": "Model not supported."}', billed=False)
        elif behave is not None:
            behave(connection, request)
        else:
            connection.reply(200, prediction(seen(request.image)), billed=True)

    return serve


def seen(picture: bytes) -> str:
    return f"sees {hashlib.sha256(picture).hexdigest()[:16]}"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(endpoint()).running() as running:
        yield running


def draw(seed: int) -> Image.Image:
    return Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192))  # noqa: S311


def photos(folder: Path, count: int, *, first: int = 0) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:06d}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, start=first):
        draw(number).save(path)
    return paths


def rows(summary: Summary) -> list[dict[str, Any]]:
    lines = [line for part in summary.parts for line in part.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_an_input_that_comes_later_gets_its_row(tmp_path: Path, server: FaultServer) -> None:
    def run() -> Summary:
        return describe_many(
            tmp_path / "in", tmp_path / "out", results="jsonl", base_url=server.base_url
        )

    photos(tmp_path / "in", 3)
    assert len(rows(run())) == 3
    photos(tmp_path / "in", 2, first=3)
    assert [row["status"] for row in rows(run())] == ["described"] * 5


def test_a_row_says_where_its_file_is_now(tmp_path: Path, server: FaultServer) -> None:
    photos(tmp_path / "in", 1)
    options: Any = {"results": "jsonl", "base_url": server.base_url}
    describe_many(tmp_path / "in", tmp_path / "out", **options)
    (tmp_path / "in").rename(tmp_path / "moved")
    (row,) = rows(describe_many(tmp_path / "moved", tmp_path / "out", **options))
    assert row["source"] == str(tmp_path / "moved" / "000000.png")
    assert server.billed == 1


def test_money_stands_beside_one_row_when_an_earlier_file_comes_back(
    tmp_path: Path, server: FaultServer
) -> None:
    pictures = photos(tmp_path / "in", 1005)
    pictures[0].unlink()
    listed = [str(path) for path in pictures]
    options: Any = {"results": "jsonl", "base_url": server.base_url, "concurrency": 16}
    describe_many(listed, tmp_path / "out", **options)
    pictures[0].write_bytes(pictures[1002].read_bytes())
    summary = describe_many(listed, tmp_path / "out", **options, retry_failed=True)
    told = rows(summary)
    assert round(sum(row["cost_usd"] for row in told), 2) == summary.cost_usd == 10.04
    assert (told[0]["duplicate_of"], told[1002]["duplicate_of"]) == (None, "000000000")


def lose(connection: Connection, _request: Received) -> None:
    connection.server.count_billed()
    connection.abort()


def test_who_says_no_keeps_the_rows_that_there_are(tmp_path: Path) -> None:
    photos(tmp_path / "in", 3)
    with FaultServer(endpoint(lose)).running() as server:
        options: Any = {"results": "jsonl", "base_url": server.base_url}
        told: list[Preflight] = []

        def confirm(preflight: Preflight) -> bool:
            told.append(preflight)
            return False

        describe_many(tmp_path / "in", tmp_path / "out", **options)
        again: Any = {**options, "retry_in_doubt": True, "retry_failed": True}
        summary = describe_many(tmp_path / "in", tmp_path / "out", **again, confirm=confirm)
        assert (told[0].in_doubt, told[0].pending, told[0].pictures) == (0, 3, 3)
        assert summary.in_doubt == 3
        assert describe_many(tmp_path / "in", tmp_path / "out", **options).in_doubt == 3
        assert server.billed == 3


def test_many_copies_of_one_picture_are_counted_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path, JOB)
    for first in range(0, 20_000, 250):
        journal.add(
            [
                InputRecord(f"{number}", "a.png", "1-1", 1, b"the same")
                for number in range(first, first + 250)
            ]
        )
    began = time.monotonic()
    assert journal.distinct_to_ask() == (1, 1)
    assert time.monotonic() - began < 5  # it took a minute
    journal.close()


class Interrupting(list[Path]):
    """Inputs of which the second pass, or the first one, is a Ctrl-C."""

    def __iter__(self) -> Iterator[Path]:
        for path in list.__iter__(self):
            yield path
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.2)


def test_ctrl_c_while_inputs_are_counted_asks_nobody(tmp_path: Path, server: FaultServer) -> None:
    asked: list[Preflight] = []
    paths = Interrupting(photos(tmp_path / "in", 1))
    with pytest.raises(KeyboardInterrupt):
        describe_many(
            paths,
            tmp_path / "out",
            results="jsonl",
            base_url=server.base_url,
            confirm=lambda preflight: bool(asked.append(preflight)),
        )
    assert asked == []
    assert server.billed == 0


def test_a_confirm_that_ends_the_program_ends_the_job(tmp_path: Path, server: FaultServer) -> None:
    def confirm(_preflight: Preflight) -> bool:
        raise SystemExit(3)

    photos(tmp_path / "in", 1)
    with pytest.raises(SystemExit):
        describe_many(
            tmp_path / "in",
            tmp_path / "out",
            results="jsonl",
            base_url=server.base_url,
            confirm=confirm,
        )
    assert server.billed == 0


class SlowJournal:
    """Where a note takes as long as on a slow disk."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def commit(self, steps: list[Any]) -> list[int]:
        time.sleep(0.2)
        self.steps += steps
        return [1] * len(steps)


async def test_what_was_told_is_noted_in_its_order_whoever_is_cancelled() -> None:
    journal: Any = SlowJournal()
    commits = GroupCommit(journal)
    told = [
        AttemptStarted(b"a"),
        AttemptStarted(b"b"),
        ImageFinished(b"c", State.DESCRIBED, description="paid"),
    ]
    tasks = []
    for step in told:
        tasks.append(asyncio.ensure_future(commits.note(step)))
        await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    last = ImageFinished(b"b", State.PENDING)
    commits.note_at_last(last)
    await asyncio.to_thread(commits.close)
    assert journal.steps == [*told, last]


def slowly(connection: Connection, request: Received) -> None:
    time.sleep(0.3)
    connection.reply(200, prediction(seen(request.image)), billed=True)


class Vanishing(list[Path]):
    """Inputs that cannot be read to their end when the work is done."""

    passes = 0

    def __iter__(self) -> Iterator[Path]:
        self.passes += 1
        for number, path in enumerate(list.__iter__(self)):
            if self.passes == 3 and number == 130:  # after the count and the digests
                message = "gone"
                raise ConfigurationError(message)
            yield path


def unwritable(_results: Results) -> None:
    message = "the disk is full"
    raise ConfigurationError(message)


@pytest.mark.parametrize("what", ["source", "results", "bug", "progress"])
def test_what_fails_meanwhile_gives_up_nothing_that_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    paths = Vanishing(photos(tmp_path / "in", 200))
    paths.passes = 0 if what == "source" else 10
    options: Any = {"results": "jsonl", "concurrency": 32}
    expected: type[Exception] | None = ConfigurationError
    if what == "results":
        monkeypatch.setattr(Results, "write_finished", unwritable)
    elif what == "bug":
        broken = Mock(side_effect=[*[DEFAULT] * 20, ZeroDivisionError])
        monkeypatch.setattr(ProgressReporter, "count_ended", broken)
        expected = ZeroDivisionError
    elif what == "progress":
        options["on_progress"] = Mock(side_effect=[None, ZeroDivisionError])
        expected = None
    with FaultServer(endpoint(slowly)).running() as server:
        options["base_url"] = server.base_url
        with contextlib.nullcontext() if expected is None else pytest.raises(expected):
            describe_many(paths, tmp_path / "out", **options)
        monkeypatch.undo()
        (folder,) = (tmp_path / "out").iterdir()
        options["confirm"] = lambda _: False
        summary = describe_many(list(paths), tmp_path / "out", **options)
        assert summary.folder == folder
        assert summary.in_doubt == 0
        assert 0 < summary.described == server.billed
        assert (summary.described == 200) == (what == "progress")


def test_another_picture_of_the_same_place_is_asked_about(
    tmp_path: Path, server: FaultServer
) -> None:
    def run(seed: int, form: str) -> str:
        picture, file = draw(seed), BytesIO()
        picture.save(file, "BMP")
        source: Any = [picture] if form == "pil" else [file]
        if form == "tar":
            source = tmp_path / "shard.tar"
            with tarfile.open(source, "w") as archive:
                member = tarfile.TarInfo("a.bmp")  # its time is 0
                member.size = len(file.getvalue())
                archive.addfile(member, BytesIO(file.getvalue()))
        summary = describe_many(source, tmp_path / form, results="jsonl", base_url=server.base_url)
        (row,) = rows(summary)
        return str(row["description"])

    for form in ("pil", "file", "tar"):
        assert run(1, form) != run(2, form)
        billed = server.billed
        assert run(2, form)
        assert server.billed == billed


def test_few_items_that_hold_their_picture_are_held(tmp_path: Path) -> None:
    made = 0

    def items() -> Iterator[Item]:
        nonlocal made
        for number in range(100):
            made += 1
            yield Item(f"{number}", "a.png", bytes(5_000_000), None)

    journal = Journal(tmp_path, JOB)
    journal.add([InputRecord(f"{number}", "a.png") for number in range(100)])
    source: Any = items()
    preparation = Preparation(source, journal, JOB, SETTINGS, lambda: False)
    assert len(preparation.next_inputs()) == 2
    assert made == 2
    journal.close()


def test_a_broken_file_with_an_odd_name_is_a_row(tmp_path: Path, server: FaultServer) -> None:
    photos(tmp_path / "in", 1)
    (tmp_path / os.fsdecode(b"in/\xff.png")).symlink_to("nowhere")
    summary = describe_many(
        tmp_path / "in", tmp_path / "out", results="jsonl", base_url=server.base_url
    )
    assert [row["status"] for row in rows(summary)] == ["described", "failed"]


def test_half_a_character_in_an_answer_is_written(tmp_path: Path) -> None:
    def half(connection: Connection, _request: Received) -> None:
        answer = b'{"predictions": [{"description": "a smile \\ud83d"}]}'
        connection.reply(200, answer, billed=True)

    photos(tmp_path / "in", 1)
    with FaultServer(endpoint(half)).running() as server:
        summary = describe_many(
            tmp_path / "in", tmp_path / "out", results="jsonl", base_url=server.base_url
        )
    assert summary.described + summary.in_doubt == 1
    assert len(rows(summary)) == 1


def test_a_file_that_is_gone_keeps_its_answer(tmp_path: Path, server: FaultServer) -> None:
    listed = [str(path) for path in photos(tmp_path / "in", 2)]
    options: Any = {"results": "jsonl", "base_url": server.base_url}
    whole = rows(describe_many(listed, tmp_path / "out", **options))
    (tmp_path / "in").rename(tmp_path / "unmounted")
    assert rows(describe_many(listed, tmp_path / "out", **options)) == whole
    (tmp_path / "unmounted").rename(tmp_path / "in")
    draw(99).save(listed[1])
    again = rows(describe_many(listed, tmp_path / "out", **options))
    assert again[0] == whole[0]
    assert again[1]["description"] == seen(Path(listed[1]).read_bytes())
    assert server.billed == 3


def test_another_format_leaves_nothing_of_the_first(tmp_path: Path, server: FaultServer) -> None:
    photos(tmp_path / "in", 3)
    options: Any = {"base_url": server.base_url, "concurrency": 1}
    with pytest.raises(SpendingLimitError):
        describe_many(tmp_path / "in", tmp_path / "out", results="jsonl", max_images=2, **options)
    summary = describe_many(tmp_path / "in", tmp_path / "out", results="parquet", **options)
    assert parquet.read_table(summary.folder).num_rows == 3


def test_a_deadline_begins_when_a_question_has_its_turn(tmp_path: Path) -> None:
    photos(tmp_path / "in", 20)
    with FaultServer(endpoint(slowly)).running() as server:
        summary = describe_many(
            tmp_path / "in",
            tmp_path / "out",
            results="jsonl",
            base_url=server.base_url,
            concurrency=16,  # twenty are under way, so four wait as long as an answer takes
            requests_per_second=10,
            deadline=0.8,
        )
    assert summary.described == 20


def test_who_wants_the_end_does_not_wait_for_the_rate(tmp_path: Path, server: FaultServer) -> None:
    photos(tmp_path / "in", 30)
    interrupted = threading.Event()
    timer = threading.Timer(0.5, interrupted.set)
    timer.start()
    began = time.monotonic()
    describe_many(
        tmp_path / "in",
        tmp_path / "out",
        results="jsonl",
        base_url=server.base_url,
        concurrency=16,
        requests_per_second=1,
        interrupted=interrupted,
    )
    assert time.monotonic() - began < 6
    timer.join()


def test_a_retry_that_the_cap_forbids_is_asked_by_the_next_run(tmp_path: Path) -> None:
    later = threading.Event()

    def busy_once(connection: Connection, request: Received) -> None:
        if not later.is_set():
            later.set()
            refused = {"retry-after": "1"}
            connection.reply(429, b'{"detail": "no"}', refused, billed=False)
        else:
            connection.reply(200, prediction(seen(request.image)), billed=True)

    photos(tmp_path / "in", 3)
    with FaultServer(endpoint(busy_once)).running() as server:
        options: Any = {"results": "jsonl", "base_url": server.base_url, "concurrency": 1}
        with pytest.raises(SpendingLimitError):
            describe_many(tmp_path / "in", tmp_path / "out", max_images=2, **options)
        assert server.billed == 2
        summary = describe_many(tmp_path / "in", tmp_path / "out", **options)
        assert (summary.described, summary.images_billed, server.billed) == (3, 3, 3)


async def test_an_answer_that_a_cancellation_lost_is_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FaultServer
) -> None:
    billing = threading.Event()
    bill = Reservation.bill

    def wait_for_others(reservation: Reservation) -> None:
        billing.set()
        time.sleep(0.5)
        bill(reservation)

    monkeypatch.setattr(Reservation, "bill", wait_for_others)
    photos(tmp_path / "in", 1)
    options: Any = {"results": "jsonl", "base_url": server.base_url}
    spending = Spending(path=tmp_path / "spending.db")
    job = asyncio.ensure_future(
        adescribe_many(tmp_path / "in", tmp_path / "out", spending=spending, **options)
    )
    await asyncio.to_thread(billing.wait)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert (await adescribe_many(tmp_path / "in", tmp_path / "out", **options)).in_doubt == 1
    assert server.billed == 1


async def test_who_cancels_twice_loses_no_answer_that_waits_for_the_disk(tmp_path: Path) -> None:
    asked, answered, answer = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def wait(connection: Connection, request: Received) -> None:
        asked.release()
        assert answer.wait(30)
        connection.reply(200, prediction(seen(request.image)), billed=True)
        answered.release()

    photos(tmp_path / "in", 12)
    with FaultServer(endpoint(wait)).running() as server:
        options: Any = {"results": "jsonl", "base_url": server.base_url, "concurrency": 12}
        job = asyncio.ensure_future(adescribe_many(tmp_path / "in", tmp_path / "out", **options))
        for _ in range(12):
            await asyncio.to_thread(asked.acquire)
        (path,) = (tmp_path / "out").glob("job-*/_journal.sqlite")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the disk is slow
            answer.set()
            for _ in range(12):
                await asyncio.to_thread(answered.acquire)
            await asyncio.sleep(0.3)  # the answers are here, and not on the disk
            for _ in range(3):
                job.cancel()
                await asyncio.sleep(0.2)
            other.execute("ROLLBACK")
        with pytest.raises(asyncio.CancelledError):
            await job
        summary = await adescribe_many(tmp_path / "in", tmp_path / "out", **options)
        assert (summary.described, summary.in_doubt, server.billed) == (12, 0, 12)


@pytest.mark.parametrize(
    "other", [{"max_image_side": 6}, {"prepare": False}], ids=["smaller", "as it is"]
)
def test_pictures_of_another_size_are_another_job(
    tmp_path: Path, server: FaultServer, other: dict[str, Any]
) -> None:
    photos(tmp_path / "in", 3)
    options: Any = {"results": "jsonl", "base_url": server.base_url}
    with pytest.raises(SpendingLimitError):
        describe_many(tmp_path / "in", tmp_path / "out", max_images=1, concurrency=1, **options)
    of_other = describe_many(tmp_path / "in", tmp_path / "out", **options, **other)
    whole = describe_many(tmp_path / "in", tmp_path / "out", **options)
    assert of_other.folder != whole.folder
    assert (of_other.described, whole.described, server.billed) == (3, 3, 6)
    assert of_other.manifest["max_image_side"] == other.get("max_image_side")
    assert {row["width"] for row in rows(whole)} == {8}


def test_rows_and_manifest_tell_one_price(tmp_path: Path, server: FaultServer) -> None:
    photos(tmp_path / "in", 1003)
    options: Any = {"results": "jsonl", "base_url": server.base_url, "usd_per_image": "0.01"}
    with pytest.raises(SpendingLimitError):
        describe_many(tmp_path / "in", tmp_path / "out", max_images=1001, **options)
    options["usd_per_image"] = "0.02"
    for confirm in (lambda _: False, lambda _: True):
        summary = describe_many(tmp_path / "in", tmp_path / "out", confirm=confirm, **options)
        assert {row["cost_usd"] for row in rows(summary)} == {0.02}
        assert summary.cost_usd == pytest.approx(0.02 * summary.images_billed)
    assert summary.described == server.billed == 1003


SIGNED = [
    "X-Amz-Credential=me&X-Amz-Date={0}&X-Amz-Expires=60&X-Amz-Signature={0}",
    "X-Goog-Credential=me&X-Goog-Date={0}&X-Goog-Signature={0}",
    "x-oss-credential=me&x-oss-date={0}&x-oss-signature={0}",
    "AWSAccessKeyId=me&Expires={0}&Signature={0}",
    "GoogleAccessId=me&Expires={0}&Signature={0}",
    "OSSAccessKeyId=me&Expires={0}&Signature={0}",
    "Expires={0}&Signature={0}&Key-Pair-Id=me",
    "Policy={0}&Signature={0}&Key-Pair-Id=me",
    "sv=2024-11-04&sr=b&sp=r&se={0}&sig={0}",
]


@pytest.mark.parametrize("signature", SIGNED)
def test_a_url_that_is_signed_anew_is_the_same_picture(tmp_path: Path, signature: str) -> None:
    def see(connection: Connection, _request: Received) -> None:
        connection.reply(200, prediction("A cat."), billed=True)

    def describe(number: int, version: int = 7, **caps: Any) -> Summary:
        urls = [
            f"http://127.0.0.1:9/{name}.png?versionId={version}&{signature.format(number)}"
            for name in "abc"
        ]
        options: Any = {"results": "jsonl", "base_url": server.base_url, "concurrency": 1}
        return describe_many(urls, tmp_path / "out", **options, **caps)

    with FaultServer(endpoint(see)).running() as server:
        with pytest.raises(SpendingLimitError):
            describe(1, max_images=2)
        summary = describe(2)
        assert (summary.described, server.billed) == (3, 3)
        assert all(row["source"].endswith(signature.format(2)) for row in rows(summary))
        describe(2, version=8)
        assert server.billed == 6, "another version is another picture"


@pytest.mark.parametrize(
    "url",
    [
        "https://h/a.png?id={0}",
        "https://h/a.png?signature={0}",
        "https://h/a.png?policy={0}&signature=a",
        "https://h/a.png?x-oss-process=crop,{0}&x-oss-credential=me&x-oss-signature=a",
        "https://h/a.png?x-amz-meta-page={0}&X-Amz-Credential=me&X-Amz-Signature=a",
        "https://h/a.png?si={0}&sig=a&sv=b",
        "https://h/a.png?generation={0}&GoogleAccessId=me&Signature=a",
        "https://h/{0}.png?Expires=1&Signature=a&Key-Pair-Id=me",
        "https://h/a.png#{0}",
    ],
)
def test_what_may_name_a_picture_is_no_signature(url: str) -> None:
    assert without_signature(url.format(1)) != without_signature(url.format(2))


def test_a_signature_alone_makes_no_other_picture() -> None:
    signed = "https://h/a.png?Expires=1&Signature=a&Key-Pair-Id=me"
    assert without_signature(signed) == "https://h/a.png"


@pytest.mark.parametrize("texts", [{"prompt": "a\ud800"}, {"prompt": "a", "stop": ["\udc00"]}])
def test_half_a_character_in_a_prompt_is_told_before_anything_is_sent(
    tmp_path: Path, server: FaultServer, texts: dict[str, Any]
) -> None:
    photos(tmp_path / "in", 1)
    with pytest.raises(UnsupportedContentError, match="half of a surrogate pair"):
        describe_many(
            tmp_path / "in", tmp_path / "out", results="jsonl", base_url=server.base_url, **texts
        )
    assert not (tmp_path / "out").exists()


def test_a_message_tells_no_signature(tmp_path: Path, server: FaultServer) -> None:
    options: Any = {"results": "jsonl", "base_url": server.base_url}
    signed = "https://user:key@h.example/a.png?signature="
    pairs = [("a", signed + "one"), ("a", signed + "two")]
    with pytest.raises(ConfigurationError, match=r"https://h\.example") as told:
        describe_many(pairs, tmp_path / "out", **options)
    assert not {"key", "one", "two", "signature"} & set(re.split(r"\W", str(told.value)))


def test_a_journal_that_was_given_up_can_be_taken_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, JOB)
    with pytest.raises(ConfigurationError, match="is at this job"):
        Journal(tmp_path, JOB)
    del journal  # as a cancelled task does, whose thread had just opened it
    gc.collect()
    Journal(tmp_path, JOB).close()
    broken = Journal(tmp_path, JOB)
    broken._database.close()
    broken.close()
    Journal(tmp_path, JOB).close()


def test_a_source_is_not_gone_through_where_no_two_files_have_one_size(
    tmp_path: Path, server: FaultServer
) -> None:
    class Archive(list[bytes]):
        times = 0

        def __iter__(self) -> Iterator[bytes]:
            self.times += 1
            return super().__iter__()

    pictures = Archive(path.read_bytes() for path in photos(tmp_path / "in", 3))
    summary = describe_many(pictures, tmp_path / "out", base_url=server.base_url, results="jsonl")
    assert summary.described == 3
    assert pictures.times == 3, "once to see what it is, once to count, and once to ask"
