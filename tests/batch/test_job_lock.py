"""Two processes and one job: on one machine, in two containers, and on two hosts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from describing_many import Endpoint, fill, folder_of
from phospho_multimodal.batch import Summary, describe_many
from phospho_multimodal.batch.job import Job
from phospho_multimodal.batch.journal.journal import Journal
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.settings import Settings

PROMPT = "What is this?"
JOB = Job.of(PROMPT, Settings.resolve(base_url="http://127.0.0.1:1"), {})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", 3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def describe(server: Endpoint, photos: Path, out: Path, **options: Any) -> Summary:
    return describe_many(photos, out, PROMPT, base_url=server.base_url, results="jsonl", **options)


def leave_record(out: Path, content: str) -> Path:
    folder = JOB.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "_journal.owner"
    path.write_text(content, encoding="utf-8")
    return path


ELSEWHERE = {"host": "spot-17", "process": 1, "since": "2026-11-29T10:00:00+00:00"}


def test_a_second_process_is_rejected_before_anything_is_sent(endpoint, photos, out):
    server = endpoint()
    first = Journal(JOB.folder(out), JOB)
    for options in ({}, {"take_over": True}):
        with pytest.raises(ConfigurationError, match=rf"{os.getpid()} on .+, since 20\d\d-"):
            describe(server, photos, out, **options)
    assert server.requests == []
    first.close()
    assert describe(server, photos, out).described == 3


def test_a_record_of_another_machine_is_reported_and_taken_over_only_if_told(endpoint, photos, out):
    server = endpoint()
    record = leave_record(out, json.dumps({**ELSEWHERE, "kernel": "another", "token": "t"}))
    with pytest.raises(ConfigurationError, match=r"spot-17.*10:00.*--take-over"):
        describe(server, photos, out)
    assert server.requests == []
    assert "spot-17" in record.read_text()
    assert describe(server, photos, out, take_over=True).described == 3
    assert not record.exists()
    assert describe(server, photos, out).described == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "{}"])
def test_a_record_that_says_nothing_stops_nobody(endpoint, photos, out, content):
    leave_record(out, content)
    assert describe(endpoint(), photos, out).described == 3


def test_a_record_of_this_machine_is_no_proof_without_the_lock(endpoint, photos, out):
    journal = Journal(JOB.folder(out), JOB)
    record = JOB.folder(out) / "_journal.owner"
    told = record.read_text()
    journal.close()
    record.write_text(told)  # as after a kill
    assert describe(endpoint(), photos, out).described == 3


def test_a_run_whose_job_was_taken_over_notes_nothing_more(tmp_path):
    lost = Journal(tmp_path, JOB)
    assert lost._job_lock is not None
    lost._job_lock.release()  # the file system's locks do not reach the other machine
    heir = Journal(tmp_path, JOB)
    with pytest.raises(ConfigurationError, match="Another process is at the job"):
        lost.note("anything", "1")
    lost.close()
    heir.note("anything", "2")
    assert (tmp_path / "_journal.owner").exists()
    heir.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "_journal.lock", "_journal.sqlite",
    ]  # fmt: skip


def test_without_filelock_the_extra_is_named(endpoint, photos, out, monkeypatch):
    server = endpoint()
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(ImportError, match=r"phospho-multimodal\[batch\]"):
        describe(server, photos, out)
    assert server.requests == []


def test_a_folder_that_cannot_be_locked_is_an_error_of_ours(endpoint, photos, out):
    (JOB.folder(out) / "_journal.lock").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        describe(endpoint(), photos, out)
    assert folder_of(out).is_dir()
