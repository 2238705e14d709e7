"""Long chats about one image: the memory that keeps it, and the error where it was dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import ImageNode

from consumers import FixedRetriever
from fault_server import FaultServer, answer
from llama_index_phospho import ImageMemoryBlock
from phospho_multimodal import MissingImageError
from pictures import draw, encoded

Make = Callable[..., Any]
LONG = "lorem ipsum dolor sit amet " * 30
TURNS = 30


def shown(picture: bytes, text: str = "What is this?") -> ChatMessage:
    return ChatMessage(blocks=[TextBlock(text=text), ImageBlock(image=picture)])


def chat(llm: Any, memory: Any, *messages: Any) -> None:
    async def run() -> None:
        agent = FunctionAgent(tools=[], llm=llm)
        for message in messages:
            await agent.run(message, memory=memory)
        await llm.aclose()
        if isinstance(memory, Memory):
            await memory.sql_store._async_engine.dispose()  # core leaves it open

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _loop() -> Iterator[None]:
    """Have the loop that core's synchronous methods take, and close it, which they do not."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]


@pytest.mark.parametrize("later", [False, True], ids=["one image", "another image later"])
def test_a_memory_that_is_full_keeps_the_newest_image(
    make: Make, server: FaultServer, picture: bytes, *, later: bool
) -> None:
    server.script = [answer(LONG)]
    llm = make(is_function_calling_model=True)
    memory = Memory.from_defaults(
        session_id="s", token_limit=2500, token_flush_size=500, memory_blocks=[ImageMemoryBlock()]
    )
    questions = [f"And question {turn}? {LONG}" for turn in range(TURNS)]
    newest = encoded(draw(colour="olive")) if later else picture
    if later:
        questions[2] = shown(newest, "And this?")  # type: ignore[call-overload]
    chat(llm, memory, shown(picture), *questions)
    assert len(server.requests) == TURNS + 1
    assert all(request.image == newest for request in server.requests[3:])
    assert "question 1?" not in server.requests[-1].item["text"]  # the rest was cut


def test_one_block_does_not_mix_sessions_up(picture: bytes) -> None:
    async def run() -> None:
        block = ImageMemoryBlock()
        await block.aput([shown(picture)], session_id="a")
        (kept,) = await block.aget([ChatMessage("What?")], session_id="a")
        assert kept.additional_kwargs == {}
        assert await block.aget([ChatMessage("What?")], session_id="b") == []
        assert await block.aget([shown(picture)], session_id="a") == []

    asyncio.run(run())


def test_another_memory_ends_with_an_error_that_names_it(
    make: Make, server: FaultServer, picture: bytes
) -> None:
    server.script = [answer(LONG)]
    llm = make(is_function_calling_model=True)
    questions = [f"And question {turn}? {LONG}" for turn in range(TURNS)]
    with pytest.raises(MissingImageError, match=r"memory.*context_window="):
        chat(llm, ChatMemoryBuffer.from_defaults(llm=llm), shown(picture), *questions)
    assert len(server.requests) > 10


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
@pytest.mark.parametrize("words", [200, 900, 1500])
def test_a_found_image_with_a_page_of_metadata_is_looked_at(
    make: Make,
    *,
    server: FaultServer,
    picture_base64: str,
    picture: bytes,
    words: int,
    mode: str,
    how: str,
) -> None:
    node = ImageNode(image=picture_base64, metadata={"page": "lorem ipsum dolor " * (words // 3)})
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever([node]), llm=make(), multimodal=True, response_mode=mode
    )
    response = engine.query("What?") if how == "query" else asyncio.run(engine.aquery("What?"))
    assert str(response).startswith("You asked: ")
    (request,) = server.requests
    assert request.image == picture
