from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from live_server import serve
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import InputImage, Question
from phospho_multimodal.server.engines.echo import EchoEngine


@dataclass
class SamplePicture:
    """A small file, and the requests that send it."""

    data: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()

    def request(self, text: str = "What is this?", **parameters: Any) -> dict[str, Any]:
        item = {"text": text, "image_url": self.base64, **parameters}
        return {"model": "phospho-multimodal", "inputs": [item]}


class GatedEngine:
    """Answers with the question, but not before its gate is opened."""

    name = "gated"

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.seen: list[str] = []

    def describe(self, picture: InputImage, question: Question) -> str:
        self.seen.append(question.text)
        self.entered.release()
        assert self.gate.wait(30)
        return question.text


@pytest.fixture(scope="session")
def picture() -> SamplePicture:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(buffer, "PNG")
    return SamplePicture(buffer.getvalue())


@pytest.fixture
def gated() -> Iterator[GatedEngine]:
    engine = GatedEngine()
    yield engine
    engine.gate.set()


@pytest.fixture
def echo_client() -> Iterator[httpx.Client]:
    with serve(create_app(EchoEngine())) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@dataclass(frozen=True)
class Reply:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> Any:
        return json.loads(self.body)["detail"]

    @property
    def description(self) -> str:
        return json.loads(self.body)["predictions"][0]["description"]


class RawClient:
    """A connection on which anything can be sent, also what no HTTP client would send."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=20)
        self._replies = self.socket.makefile("rb")

    def close(self) -> None:
        self._replies.close()
        self.socket.close()

    def send(self, *headers: str, body: bytes = b"", key: str | None = None) -> None:
        """Send a request's head with these headers, then this body."""
        fixed = ["POST /v2/predict HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        if key is not None:
            fixed.append(f"Authorization: Bearer {key}")
        # A server that refuses the beginning need not take the rest.
        with contextlib.suppress(ConnectionError):
            self.socket.sendall("\r\n".join([*fixed, *headers, "", ""]).encode() + body)

    def reply(self) -> Reply | None:
        """Read one answer, or nothing if the connection has ended."""
        try:
            start = self._replies.readline()
            if not start:
                return None
            headers = {}
            while line := self._replies.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            status = int(start.split()[1])
            length = 0 if status == 100 else int(headers.get("content-length", -1))
            return Reply(status, headers, self._replies.read(length))
        except ConnectionError:
            return None


@pytest.fixture
def dial() -> Callable[[str], contextlib.AbstractContextManager[RawClient]]:
    return lambda base_url: contextlib.closing(RawClient(base_url))
