"""The same prompts through both frameworks, to every engine that uses images.

To add an engine, add a line to `HELD` with a way to run it. One that cannot read, because its
weights are random, is held to the form of its answers; one that can, to what they say as well.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.schema import ImageDocument
from PIL import Image

from langchain_phospho import ChatPhospho
from live_server import serve
from llama_index_phospho import Phospho, PhosphoMultiModal
from phospho_multimodal.contract import GenerationParameters
from phospho_multimodal.errors import ImageError
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import Engine, InputImage, Question, load_engine
from phospho_multimodal.server.engines.openai import OpenAIEngine
from pictures import encoded, receipt
from scripted_upstream import Asked, scripted

pytestmark = pytest.mark.long

WORDS = 6  # the shortest answer that is asked for
BAKERY = encoded(receipt("BAKERY", "TOTAL 11.40", size=(480, 240)), "PNG")
GARAGE = encoded(receipt("GARAGE", "TOTAL 250.00", size=(480, 240)), "PNG")
QUESTION = "What is the total?"


@functools.cache
def ocr() -> Engine:
    return load_engine("ocr")


@contextlib.contextmanager
def running_ocr() -> Iterator[Engine]:
    yield ocr()


@contextlib.contextmanager
def running_openai() -> Iterator[Engine]:
    """The engine `openai`, in front of an upstream that reads the image."""

    def read(asked: Asked) -> str:
        pixels = Image.open(io.BytesIO(asked.image)).convert("RGB")
        picture = InputImage(asked.image, asked.kind, *pixels.size, pixels)
        parameters = GenerationParameters(max_new_tokens=asked.body["max_tokens"])
        return ocr().describe(picture, Question(asked.text, asked.body["model"], parameters))

    with scripted("vllm", read) as upstream:
        yield OpenAIEngine(upstream=upstream.url, model="a-model")


@contextlib.contextmanager
def running_transformers() -> Iterator[Engine]:
    """The engine `transformers`, with a model of random weights."""
    from tiny_llava import save_tiny_llava  # noqa: PLC0415 - PyTorch is not part of `make test`

    with tempfile.TemporaryDirectory() as folder:
        yield load_engine("transformers", model=str(save_tiny_llava(Path(folder))))


HELD: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[Engine]], bool]] = {
    "ocr": (running_ocr, True),
    "openai": (running_openai, True),
}
"""Name of an engine → how to run it, and whether it reads."""

if "TEST_ENGINES" in os.environ:  # as `make test-engines` says
    HELD["transformers"] = (running_transformers, False)


@dataclass(frozen=True)
class Door:
    """A local server, and the checks of its answers."""

    base_url: str
    reads: bool

    def check(self, answer: object, *expected: str) -> None:
        """It is an answer, and says this if the engine can read."""
        assert isinstance(answer, str)
        assert answer.strip()
        if self.reads:
            assert [text for text in expected if text not in answer] == []


@pytest.fixture(scope="module", params=list(HELD))
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    run, reads = HELD[request.param]
    with run() as engine, serve(create_app(engine)) as base_url:
        while httpx.get(f"{base_url}/health").json()["status"] == "loading":
            time.sleep(0.05)
        yield Door(base_url, reads)


class TestLangChain:
    @pytest.fixture
    def model(self, door: Door) -> Iterator[ChatPhospho]:
        with contextlib.closing(ChatPhospho(base_url=door.base_url)) as model:
            yield model

    def message(self, *pictures: bytes, text: str = QUESTION) -> HumanMessage:
        images = [
            {"type": "image", "base64": base64.b64encode(p).decode(), "mime_type": "image/png"}
            for p in pictures
        ]
        return HumanMessage([{"type": "text", "text": text}, *images])

    def test_one_image(self, door, model):
        answer = model.invoke([self.message(BAKERY)])
        door.check(answer.text, "11.40")
        assert answer.response_metadata["images_billed"] == 1
        assert answer.response_metadata["attempts"] == 1

    def test_asked_with_await(self, door, model):
        async def ask() -> str:
            try:
                return (await model.ainvoke([self.message(BAKERY)])).text
            finally:
                await model.aclose()

        door.check(asyncio.run(ask()), "11.40")

    def test_streamed(self, door, model):
        chunks = list(model.stream([self.message(BAKERY)]))
        door.check("".join(chunk.text for chunk in chunks), "11.40")

    def test_a_batch_keeps_its_order(self, door, model):
        answers = model.batch([[self.message(BAKERY)], [self.message(GARAGE)]])
        for answer, total in zip(answers, ["11.40", "250.00"], strict=True):
            door.check(answer.text, total)

    def test_two_images_on_one_sheet(self, door, model):
        answer = model.invoke([self.message(BAKERY, GARAGE)])
        door.check(answer.text, "11.40", "250.00")
        assert answer.response_metadata["images_billed"] == 1

    def test_two_images_one_by_one(self, door):
        model = ChatPhospho(base_url=door.base_url, multi_image="each")
        with contextlib.closing(model):
            answer = model.invoke([self.message(BAKERY, GARAGE)])
        door.check(answer.text, "11.40", "250.00")
        assert re.findall(r"^Image \d:", answer.text, re.MULTILINE) == ["Image 1:", "Image 2:"]
        assert answer.response_metadata["images_billed"] == 2

    def test_a_conversation(self, door, model):
        turns = [
            SystemMessage("Answer in one sentence."),
            self.message(BAKERY),
            AIMessage("It is a receipt."),
            HumanMessage("And how much is it?"),
        ]
        door.check(model.invoke(turns).text, "11.40")

    def test_a_short_answer(self, door, model):
        answer = model.bind(max_tokens=WORDS).invoke([self.message(BAKERY)]).text
        door.check(answer)
        assert len(answer.split()) <= WORDS

    def test_every_parameter(self, door, model):
        bound = model.bind(max_tokens=80, temperature=0.5, top_p=0.9, repetition_penalty=1.2)
        door.check(bound.invoke([self.message(BAKERY)]).text, "11.40")

    def test_a_broken_image_is_not_asked_about(self, model):
        with pytest.raises(ImageError):
            model.invoke([self.message(BAKERY[:200])])


class TestLlamaIndex:
    @pytest.fixture
    def model(self, door: Door) -> Iterator[Phospho]:
        with contextlib.closing(Phospho(base_url=door.base_url)) as model:
            yield model

    def message(self, *pictures: bytes) -> ChatMessage:
        images = [ImageBlock(image=p) for p in pictures]
        return ChatMessage(role="user", blocks=[TextBlock(text=QUESTION), *images])

    def test_one_image(self, door, model):
        response = model.chat([self.message(BAKERY)])
        door.check(response.message.content, "11.40")
        assert response.raw["images_billed"] == 1

    def test_asked_with_await(self, door, model):
        async def ask() -> object:
            try:
                return (await model.achat([self.message(BAKERY)])).message.content
            finally:
                await model.aclose()

        door.check(asyncio.run(ask()), "11.40")

    def test_streamed(self, door, model):
        *_, last = model.stream_chat([self.message(BAKERY)])
        door.check(last.message.content, "11.40")

    def test_two_images_on_one_sheet(self, door, model):
        response = model.chat([self.message(BAKERY, GARAGE)])
        door.check(response.message.content, "11.40", "250.00")
        assert response.raw["images_billed"] == 1

    def test_a_conversation(self, door, model):
        turns = [
            ChatMessage(role="system", content="Answer in one sentence."),
            self.message(BAKERY),
            ChatMessage(role="assistant", content="It is a receipt."),
            ChatMessage(role="user", content="And how much is it?"),
        ]
        door.check(model.chat(turns).message.content, "11.40")

    def test_a_short_answer(self, door, model):
        answer = model.chat([self.message(BAKERY)], max_tokens=WORDS).message.content
        door.check(answer)
        assert len(answer.split()) <= WORDS

    def test_a_completion_with_image_documents(self, door):
        with contextlib.closing(PhosphoMultiModal(base_url=door.base_url)) as model:
            document = ImageDocument(image=base64.b64encode(BAKERY).decode())
            door.check(model.complete(QUESTION, image_documents=[document]).text, "11.40")
