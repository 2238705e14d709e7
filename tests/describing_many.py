"""A batch under test: pictures with a number in them, an endpoint that reads it, rows read back."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fault_server import Behaviour, Connection, FaultServer, Received, prediction
from phospho_multimodal.batch import Summary, adescribe_many, describe_many

__all__ = [
    "BATCHES",
    "Batch",
    "Endpoint",
    "answer_to",
    "check_books",
    "data_url",
    "described",
    "draw_numbered",
    "fill",
    "folder_of",
    "numbered",
    "read_manifest",
    "read_rows",
    "slow",
    "statuses",
    "write_csv",
]

PRICE = 0.01


def numbered(
    number: int, kind: str = "PNG", size: tuple[int, int] = (8, 6), **options: Any
) -> bytes:
    """A picture file that holds a number: its colour."""
    colour = (number >> 16, number >> 8 & 255, number & 255)
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def draw_numbered(path: Path, number: int, **options: Any) -> Path:
    """Write a picture with a number to a file, whose suffix says of which type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = Image.registered_extensions()[path.suffix]
    path.write_bytes(numbered(number, kind, **options))
    return path


def fill(folder: Path, numbers: Sequence[int] | int) -> Path:
    """Make a folder with a picture for each number, in their order."""
    for number in range(numbers) if isinstance(numbers, int) else numbers:
        draw_numbered(folder / f"{number:05d}.png", number)
    return folder


def number_in(file: bytes) -> int:
    """Read a picture's number."""
    red, green, blue = Image.open(io.BytesIO(file)).convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(red << 16 | green << 8 | blue)


def answer_to(number: int) -> str:
    """What the endpoint says of a picture."""
    return f"Picture {number}."


def described() -> Behaviour:
    """Tell the picture's number, as the contract says."""

    def behave(connection: Connection, request: Received) -> None:
        words = prediction(answer_to(number_in(request.image)))
        connection.reply(200, words, billed=True)

    return behave


def slow(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """Think first."""

    def behave(connection: Connection, request: Received) -> None:
        connection.server.stopping.wait(seconds)
        (then or described())(connection, request)

    return behave


class Endpoint(FaultServer):
    """Answers looks at it for nothing, and questions to order; counts them by their picture."""

    def __init__(
        self,
        *script: Behaviour,
        of: Mapping[int, Sequence[Behaviour]] | None = None,
        key: str | None = None,
    ) -> None:
        """Make an endpoint that is not started yet.

        Args:
            *script: A behaviour for each question, the last one for all further ones.
            of: Scripts of their own for some pictures; when one is over, the rest is answered.
            key: The one that is taken, if it asks for one.
        """
        super().__init__(self._route)
        self.plan: list[Behaviour] = list(script) or [described()]
        self.of = {number: list(behaviours) for number, behaviours in (of or {}).items()}
        self.key = key
        self.asked: Counter[int] = Counter()
        self.questions: list[Received] = []
        self._count = threading.Lock()

    def _route(self, connection: Connection, request: Received) -> None:
        if request.method == "GET":
            told = (
                {"status": "ok"}
                if request.path == "/health"
                else {"models": ["phospho-multimodal"]}
            )
            return connection.reply(200, json.dumps(told).encode(), billed=False)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return connection.reply(401, b'{"detail": "no such key"}', billed=False)
        if not json.loads(request.body)["model"].startswith("phospho-multimodal"):
            return connection.reply(400, b'{"detail": "Model not supported."}', billed=False)
        return self._question(request)(connection, request)

    def _question(self, request: Received) -> Behaviour:
        number = number_in(request.image)
        with self._count:
            self.questions.append(request)
            self.asked[number] += 1
            if number in self.of:
                return self.of[number].pop(0) if self.of[number] else described()
            return self.plan[min(len(self.questions), len(self.plan)) - 1]

    def forget(self) -> None:
        """Count from zero again."""
        self.questions.clear()
        self.asked.clear()
        self.billed = 0


class Batch:
    """`describe_many`, plain or with await, with results of one kind."""

    def __init__(self, way: str, results: str) -> None:
        self.way = way
        self.results = results

    def __call__(
        self, source: Any, out: Path, prompt: str = "What is this?", /, **options: Any
    ) -> Summary:
        """Run a job."""
        options = {"results": self.results, "concurrency": 4, **options}
        if self.way == "sync":
            return describe_many(source, out, prompt, **options)

        async def run() -> Summary:
            return await adescribe_many(source, out, prompt, **options)

        return asyncio.run(run())


BATCHES = [
    pytest.param(Batch(way, results), id=f"{way}-{results}")
    for way, results in (("sync", "parquet"), ("async", "jsonl"))
]


def folder_of(out: Path) -> Path:
    """The one job's folder."""
    (folder,) = out.iterdir()
    return folder


def read_rows(out: Path | Summary) -> list[dict[str, Any]]:
    """All rows of the one job in a folder, in their order."""
    folder = out.folder if isinstance(out, Summary) else folder_of(out)
    rows: list[dict[str, Any]] = []
    for part in sorted(folder.glob("part-*")):
        if part.suffix == ".parquet":
            import pyarrow.parquet as pq  # noqa: PLC0415 - not every test needs it

            rows += pq.read_table(part).to_pylist()
        else:
            rows += [json.loads(line) for line in part.read_bytes().split(b"\n") if line]
    return rows


def statuses(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The rows' ids and statuses."""
    return {row["id"]: row["status"] for row in rows}


def read_manifest(out: Path | Summary) -> dict[str, Any]:
    """What the one job says of itself."""
    folder = out.folder if isinstance(out, Summary) else folder_of(out)
    told: dict[str, Any] = json.loads((folder / "_manifest.json").read_text(encoding="utf-8"))
    return told


def check_books(endpoint: Endpoint, out: Path | Summary, *, billed: int | None = None) -> None:
    """Hold rows, manifest and files against each other and against the server's count."""
    rows, manifest = read_rows(out), read_manifest(out)
    folder = out.folder if isinstance(out, Summary) else folder_of(out)
    counted = Counter(row["status"] for row in rows)
    pending = manifest["inputs"] - len(rows)
    assert manifest["statuses"] == {
        **{status: counted[status] for status in ("described", "failed", "in_doubt")},
        "pending": pending,
    }
    errors = Counter(row["error_class"] for row in rows if row["status"] == "failed")
    assert manifest["error_classes"] == errors
    paid = sum(round(row["cost_usd"] / PRICE) for row in rows)
    doubted = sum(row["images_in_doubt"] for row in rows)
    assert manifest["images_billed"] == paid
    assert manifest["images_in_doubt"] == doubted
    assert manifest["cost_usd"] == pytest.approx(paid * PRICE)
    assert manifest["cost_in_doubt_usd"] == pytest.approx(doubted * PRICE)
    assert paid + doubted == (endpoint.billed if billed is None else billed)
    copies = [row for row in rows if row["duplicate_of"] is not None]
    assert all(row["cost_usd"] == row["images_in_doubt"] == 0 for row in copies)
    saved = sum(row["status"] == "described" for row in copies)
    assert manifest["duplicates"] == saved
    assert manifest["saved_by_deduplication_usd"] == pytest.approx(saved * PRICE)
    parts = manifest["results"]["parts"]
    assert [part["name"] for part in parts] == sorted(
        path.name for path in folder.iterdir() if path.name.startswith("part-")
    )
    assert sum(part["rows"] for part in parts) == len(rows)
    for part in parts:
        data = (folder / part["name"]).read_bytes()
        assert part["bytes"] == len(data)
        assert part["sha256"] == hashlib.sha256(data).hexdigest()


def data_url(file: bytes) -> str:
    """A picture as a table may hold it."""
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """A table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
