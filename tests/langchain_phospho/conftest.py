"""A scripted endpoint that remembers what it was sent, and one way to call sync and async."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image, ImageDraw

from langchain_phospho import ChatPhospho
from live_server import serve


@dataclass(frozen=True)
class Received:
    """One request as the endpoint got it."""

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def item(self) -> dict[str, Any]:
        (item,) = self.body["inputs"]
        return dict(item)

    @property
    def text(self) -> str:
        return str(self.item["text"])

    @property
    def image_url(self) -> str:
        return str(self.item["image_url"])

    @property
    def picture(self) -> str:
        """The sha256 of the picture that came."""
        return hashlib.sha256(base64.b64decode(self.image_url, validate=True)).hexdigest()

    @property
    def parameters(self) -> dict[str, Any]:
        return {key: self.item[key] for key in self.item if key not in {"text", "image_url"}}


@dataclass
class Endpoint:
    """An ASGI app that answers as it is told; without a word, it repeats the question."""

    received: list[Received] = field(default_factory=list)
    replies: deque[tuple[int, Any, dict[str, str]]] = field(default_factory=deque)
    base_url: str = ""

    def reply(self, body: Any, *, status: int = 200, **headers: str) -> None:
        self.replies.append((status, body, headers))

    def answer(self, description: str) -> None:
        self.reply({"predictions": [{"description": description}]})

    def forget(self) -> None:
        self.received.clear()
        self.replies.clear()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        assert (scope["method"], scope["path"]) == ("POST", "/v2/predict")
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        request = Received(headers, json.loads(body))
        self.received.append(request)
        default = (200, {"predictions": [{"description": f"You asked: {request.text}"}]}, {})
        status, reply, more = self.replies.popleft() if self.replies else default
        content = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
        extra = [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
        await send({"type": "http.response.start", "status": status, "headers": extra})
        await send({"type": "http.response.body", "body": content})


@dataclass(frozen=True)
class Picture:
    """A drawn PNG, in the forms that messages carry."""

    data: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()

    @property
    def data_url(self) -> str:
        return f"data:image/png;base64,{self.base64}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def block(self) -> dict[str, Any]:
        return {"type": "image", "base64": self.base64, "mime_type": "image/png"}


def draw(colour: str) -> Picture:
    image = Image.new("RGB", (48, 32), colour)
    ImageDraw.Draw(image).rectangle((8, 8, 20, 20), fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(buffer.getvalue())


class Driver:
    """Calls a model's synchronous methods."""

    def invoke(self, model: Any, question: Any, /, **options: Any) -> Any:
        return model.invoke(question, **options)

    def batch(self, model: Any, questions: list[Any], **options: Any) -> Any:
        return model.batch(questions, **options)

    def stream(self, model: Any, question: Any, /, **options: Any) -> list[Any]:
        return list(model.stream(question, **options))


class AsyncDriver(Driver):
    """Calls the asynchronous ones, each in an event loop of its own."""

    def invoke(self, model: Any, question: Any, /, **options: Any) -> Any:
        return asyncio.run(model.ainvoke(question, **options))

    def batch(self, model: Any, questions: list[Any], **options: Any) -> Any:
        return asyncio.run(model.abatch(questions, **options))

    def stream(self, model: Any, question: Any, /, **options: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [chunk async for chunk in model.astream(question, **options)]

        return asyncio.run(collect())


@pytest.fixture(params=[Driver, AsyncDriver], ids=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Driver:
    chosen: Driver = request.param()
    return chosen


@pytest.fixture(scope="session")
def served() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    with serve(endpoint, lifespan="off") as base_url:
        endpoint.base_url = base_url
        yield endpoint


@pytest.fixture
def endpoint(served: Endpoint) -> Endpoint:
    served.forget()
    return served


@pytest.fixture
def model(endpoint: Endpoint) -> ChatPhospho:
    return ChatPhospho(base_url=endpoint.base_url)


@pytest.fixture(scope="session")
def red() -> Picture:
    return draw("red")


@pytest.fixture(scope="session")
def blue() -> Picture:
    return draw("blue")
