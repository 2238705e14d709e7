"""What a review of the batch found: each of these was wrong once."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fault_server import Behaviour, Connection, FaultServer, Received, prediction
from phospho_multimodal.batch import Summary, describe_many


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
