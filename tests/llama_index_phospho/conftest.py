from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler

from fault_server import FaultServer
from llama_index_phospho import Phospho
from pictures import encoded

KEY = "sk-secret-0123456789"

Ask = Callable[..., list[Any]]
"""Calls one of the eight methods with a model, a question and images; gives all that came."""


def message(question: str, *images: bytes) -> ChatMessage:
    return ChatMessage(
        blocks=[TextBlock(text=question), *(ImageBlock(image=image) for image in images)]
    )


def _chat(llm: Any, question: str, *images: bytes, **given: Any) -> list[Any]:
    return [llm.chat([message(question, *images)], **given)]


def _complete(llm: Any, question: str, *images: bytes, **given: Any) -> list[Any]:
    return [llm.complete(question, image_documents=_blocks(images), **given)]


def _stream_chat(llm: Any, question: str, *images: bytes, **given: Any) -> list[Any]:
    return list(llm.stream_chat([message(question, *images)], **given))


def _stream_complete(llm: Any, question: str, *images: bytes, **given: Any) -> list[Any]:
    return list(llm.stream_complete(question, image_documents=_blocks(images), **given))


def _achat(llm: Any, question: str, *images: bytes, **given: Any) -> list[Any]:
    return [asyncio.run(llm.achat([message(question, *images)], **given))]


def _acomplete(llm: Any, question: str, *images: bytes, **given: Any) -> list[Any]:
    return [asyncio.run(llm.acomplete(question, image_documents=_blocks(images), **given))]


def _astream_chat(llm: Any, question: str, *images: bytes, **given: Any) -> list[Any]:
    async def collect() -> list[Any]:
        stream = await llm.astream_chat([message(question, *images)], **given)
        return [chunk async for chunk in stream]

    return asyncio.run(collect())


def _astream_complete(llm: Any, question: str, *images: bytes, **given: Any) -> list[Any]:
    async def collect() -> list[Any]:
        blocks = _blocks(images)
        stream = await llm.astream_complete(question, image_documents=blocks, **given)
        return [chunk async for chunk in stream]

    return asyncio.run(collect())


def _blocks(images: Sequence[bytes]) -> list[ImageBlock]:
    return [ImageBlock(image=image) for image in images]


ASK: dict[str, Ask] = {
    "chat": _chat,
    "complete": _complete,
    "stream_chat": _stream_chat,
    "stream_complete": _stream_complete,
    "achat": _achat,
    "acomplete": _acomplete,
    "astream_chat": _astream_chat,
    "astream_complete": _astream_complete,
}


@pytest.fixture(params=list(ASK))
def method(request: pytest.FixtureRequest) -> str:
    """Each of the eight."""
    return request.param


@pytest.fixture
def ask(method: str) -> Ask:
    return ASK[method]


@pytest.fixture
def kind() -> type[Phospho]:
    """The class of the models; some files test both classes."""
    return Phospho


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Answers each question with the question, and keeps what it was sent."""
    with FaultServer().running() as running:
        yield running


@pytest.fixture
def make(server: FaultServer, kind: type[Phospho]) -> Iterator[Callable[..., Any]]:
    """Makes models of this server; closes their connections in the end."""
    made: list[Phospho] = []

    def new(**options: Any) -> Phospho:
        made.append(kind(**{"base_url": server.base_url, "api_key": KEY, **options}))
        return made[-1]

    yield new
    for llm in made:
        llm.close()


@pytest.fixture
def llm(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture(scope="session")
def picture() -> bytes:
    """An upright file without metadata: it is sent byte for byte."""
    return encoded()


@pytest.fixture(scope="session")
def picture_base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


class Events(BaseEventHandler):
    """Keeps every event of the instrumentation."""

    seen: list[Any] = []  # noqa: RUF012 - pydantic copies it

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]


@pytest.fixture
def events() -> Iterator[Events]:
    root, handler = get_dispatcher(), Events()
    before = list(root.event_handlers)
    root.add_event_handler(handler)
    yield handler
    root.event_handlers = before
