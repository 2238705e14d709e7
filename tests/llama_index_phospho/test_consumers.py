"""What LlamaIndex does with an LLM: settings, engines, programs, agents; and errors on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
from pydantic import BaseModel

from fault_server import FaultServer, answer, status
from phospho_multimodal import (
    APIStatusError,
    AuthenticationError,
    EndpointGoneError,
    InvalidRequestError,
    MissingImageError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitedError,
    ServiceError,
    UnexpectedReplyError,
)

Ask = Callable[..., list[Any]]


class FixedRetriever(BaseRetriever):
    """Finds the same nodes for every query."""

    def __init__(self, *nodes: TextNode) -> None:
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=node, score=1.0) for node in self.nodes]


@pytest.fixture
def image_node(tmp_path: Path, picture: bytes) -> ImageNode:
    path = tmp_path / "picture.jpg"
    path.write_bytes(picture)
    return ImageNode(image_path=str(path), metadata={"file_name": "picture.jpg"})


@pytest.fixture
def settings() -> Iterator[Any]:
    llm, embedding = Settings._llm, Settings._embed_model
    yield Settings
    Settings._llm, Settings._embed_model = llm, embedding


def test_it_is_the_llm_of_the_settings(
    llm: Any, *, settings: Any, server: FaultServer, image_node: ImageNode, picture: bytes
) -> None:
    settings.llm = llm
    assert settings.llm is llm
    engine = RetrieverQueryEngine.from_args(FixedRetriever(image_node), multimodal=True)
    assert "You asked:" in str(engine.query("What is in the picture?"))
    assert server.requests[0].image == picture


@pytest.mark.parametrize("mode", ["compact", "simple_summarize"])
@pytest.mark.parametrize("how", ["query", "aquery"])
def test_a_query_engine_asks_about_the_image_it_found(
    llm: Any, *, server: FaultServer, image_node: ImageNode, picture: bytes, mode: str, how: str
) -> None:
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever(image_node), llm=llm, multimodal=True, response_mode=mode
    )
    if how == "query":
        response = engine.query("What is in the picture?")
    else:
        response = asyncio.run(engine.aquery("What is in the picture?"))
    assert str(response).startswith("You asked: ")
    (request,) = server.requests
    assert request.image == picture
    assert "What is in the picture?" in request.item["text"]
    assert "picture.jpg" in request.item["text"]


def test_a_streaming_query_engine(llm: Any, server: FaultServer, image_node: ImageNode) -> None:
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever(image_node), llm=llm, multimodal=True, streaming=True
    )
    stream = engine.query("What is in the picture?")
    assert "".join(stream.response_gen).startswith("You asked: ")
    assert len(server.requests) == 1


def test_an_index_of_an_image_answers(
    llm: Any, server: FaultServer, image_node: ImageNode, picture: bytes
) -> None:
    index = VectorStoreIndex([image_node], embed_model=MockEmbedding(embed_dim=3))
    engine = RetrieverQueryEngine.from_args(index.as_retriever(), llm=llm, multimodal=True)
    assert str(engine.query("What is it?")).startswith("You asked: ")
    assert server.requests[0].image == picture


def test_each_image_is_a_request_of_its_own(
    llm: Any, server: FaultServer, image_node: ImageNode, picture: bytes
) -> None:
    """What the small context window is for."""
    others = [ImageNode(image_path=image_node.image_path) for _ in range(2)]
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever(image_node, *others), llm=llm, multimodal=True
    )
    engine.query("What is in the pictures?")
    assert [request.image for request in server.requests] == [picture] * 3


def test_an_engine_without_an_image_says_so(llm: Any, server: FaultServer) -> None:
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever(TextNode(text="cats are nice")), llm=llm, multimodal=True
    )
    with pytest.raises(MissingImageError):
        engine.query("What is in the picture?")
    assert server.requests == []


def test_an_engine_does_not_swallow_an_error(
    llm: Any, server: FaultServer, image_node: ImageNode
) -> None:
    server.script = [status(402)]
    engine = RetrieverQueryEngine.from_args(FixedRetriever(image_node), llm=llm, multimodal=True)
    with pytest.raises(PaymentRequiredError):
        engine.query("What is in the picture?")


def test_predict_and_structured_predict(
    make: Callable[..., Any], server: FaultServer, picture: bytes
) -> None:
    class Animal(BaseModel):
        name: str

    llm = make(default_image=picture)
    assert llm.predict(PromptTemplate("Is it a {thing}?"), thing="cat").endswith("Is it a cat?")
    server.script = [answer('{"name": "cat"}')]
    prompt = PromptTemplate("Which animal?")
    assert llm.structured_predict(Animal, prompt) == Animal(name="cat")
    message = ChatMessage("Which animal?")
    message.blocks.append(ImageBlock(image=picture))
    response = llm.as_structured_llm(Animal).chat([message])
    assert response.raw == Animal(name="cat")


# Workflows look at every attribute of an agent, the deprecated ones of pydantic too.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
def test_a_react_agent_answers_about_an_image(
    llm: Any, server: FaultServer, picture: bytes
) -> None:
    server.script = [answer("Thought: I can answer.\nAnswer: A cat.")]
    message = ChatMessage("What is it?")
    message.blocks.append(ImageBlock(image=picture))

    async def run() -> Any:
        return await ReActAgent(llm=llm, tools=[]).run(user_msg=message)

    assert str(asyncio.run(run())) == "A cat."
    assert server.requests[0].image == picture


def test_a_token_counter_counts_and_does_not_fail(make: Callable[..., Any], picture: bytes) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = make(callback_manager=CallbackManager([counter]))
    llm.complete("What is it?", [picture])
    assert counter.prompt_llm_token_count == 3


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (302, APIStatusError),
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (402, PaymentRequiredError),
        (403, PermissionDeniedError),
        (404, EndpointGoneError),
        (418, APIStatusError),
        (422, InvalidRequestError),
        (429, RateLimitedError),
        (500, ServiceError),
        (503, ServiceError),
    ],
)
@pytest.mark.parametrize("method", ["chat", "astream_complete"], indirect=True)
def test_a_status_is_an_error_that_core_does_not_swallow(
    ask: Ask,
    make: Callable[..., Any],
    *,
    server: FaultServer,
    picture: bytes,
    code: int,
    error: type[APIStatusError],
) -> None:
    server.script = [status(code, "so it is")]
    with pytest.raises(error, match="so it is") as raised:
        ask(make(max_retries=0), "A private question?", picture)
    assert type(raised.value) is error
    assert raised.value.status_code == code
    assert not isinstance(raised.value, (TypeError, ValueError))
    assert "private" not in str(raised.value)


def test_a_reply_that_is_not_the_contract_is_an_error(
    ask: Ask, llm: Any, server: FaultServer, picture: bytes
) -> None:
    server.script = [status(200)]
    with pytest.raises(UnexpectedReplyError) as raised:
        ask(llm, "What?", picture)
    assert raised.value.images_in_doubt == len(server.requests) == 1
