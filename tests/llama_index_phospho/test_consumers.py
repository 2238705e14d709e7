"""What LlamaIndex does with an LLM: every cell of the matrix, and errors on the way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import BaseNode, ImageNode, TextNode

from consumer_matrix import CONSUMERS, PICTURES, Consumer, table
from consumers import Animal, FixedRetriever, Material
from fault_server import FaultServer, answer, status
from llama_index_phospho import Phospho, PhosphoMultiModal
from phospho_multimodal import (
    APIStatusError,
    AuthenticationError,
    EndpointGoneError,
    InvalidRequestError,
    MissingImageError,
    NoToolCallError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitedError,
    ServiceError,
    UnexpectedReplyError,
)
from pictures import draw, encoded

Ask = Callable[..., list[Any]]


@pytest.fixture(params=[Phospho, PhosphoMultiModal])
def kind(request: pytest.FixtureRequest) -> type[Phospho]:
    return request.param


@pytest.fixture
def image_node(tmp_path: Path, picture: bytes) -> ImageNode:
    path = tmp_path / "picture.jpg"
    path.write_bytes(picture)
    return ImageNode(image_path=str(path), metadata={"file_name": "picture.jpg"})


DEFAULT = encoded(draw(colour="white"), "PNG")
SHEET = re.compile(r"The image is a montage of (\d+) images")

# All ways with one class, and the first with the other: the methods are the same.
CELLS = [
    pytest.param(
        kind,
        consumer,
        way,
        id=f"{kind.__name__}, {consumer.name.replace('`', '')}: {way}",
        marks=[] if kind is Phospho and way == next(iter(consumer.ways)) else [pytest.mark.long],
    )
    for kind in (Phospho, PhosphoMultiModal)
    for consumer in CONSUMERS
    for way in list(consumer.ways)[: None if kind is Phospho else 1]
]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Files of as many distinct pictures as the matrix asks for."""
    paths = [tmp_path / f"{number}.png" for number in range(max(PICTURES))]
    for path in paths:
        draw(width=60 + int(path.stem)).save(path)
    return paths


@pytest.fixture(autouse=True)
def _surroundings() -> Iterator[None]:
    """Have the loop that core's synchronous methods take, and close it, which they do not."""
    llm, loop = Settings._llm, asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
    Settings._llm = llm


def requests_of(server: FaultServer) -> str:
    """Tell what was sent as the matrix does: how many pictures each, or `d`."""
    told = ""
    for request in server.requests:
        sheet = SHEET.search(request.item["text"])
        told += "d" if request.image == DEFAULT else sheet.group(1) if sheet else "1"
    return told


def asked(consumer: Consumer, way: str, llm: Any, material: Material) -> str:
    outcome = consumer.ways[way](llm, material)
    return outcome if isinstance(outcome, str) else asyncio.run(outcome)


# Workflows look at every attribute of an agent, the deprecated ones of pydantic too.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*SimpleMultiModalQueryEngine is deprecated:DeprecationWarning")
# A chat engine streams in a thread, and hands on what is raised there, but does not catch it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("default_image", [DEFAULT, None], ids=["default image", "none"])
@pytest.mark.parametrize(("kind", "consumer", "way"), CELLS)
def test_a_cell_of_the_matrix(
    kind: type[Phospho],
    *,
    consumer: Consumer,
    way: str,
    default_image: bytes | None,
    pictures: list[Path],
) -> None:
    for number, cell in zip(PICTURES, consumer.cells, strict=True):
        if default_image is not None and "d" not in cell:
            continue  # it is not looked at, as the other half of this test shows
        material = Material(pictures[:number], consumer.note)
        with FaultServer(*map(answer, consumer.replies)).running() as server:
            llm = kind(
                base_url=server.base_url,
                default_image=default_image,
                max_concurrency=1 if consumer.at_once else 16,
                **consumer.options,
            )
            if default_image is None and "d" in cell:
                with pytest.raises(MissingImageError, match="default_image"):
                    asked(consumer, way, llm, material)
                # What comes before is paid for; of those that are started at once, some may be.
                before = cell[: cell.index("d")]
                assert requests_of(server) == before or (consumer.at_once and way.startswith("a"))
            else:
                text = asked(consumer, way, llm, material)
                sent = requests_of(server)
                # Those that are started at once come in any order.
                assert sent == cell or (consumer.at_once and sorted(sent) == sorted(cell))
                assert server.billed == len(cell)
                if cell:
                    assert (consumer.ends or consumer.replies[-1]) in text
                    assert "Empty Response" not in text
            llm.close()


def test_the_readme_shows_the_matrix() -> None:
    readme = (Path(__file__).parents[2] / "cookbook/reference/llama_index_matrix.md").read_text(
        encoding="utf-8"
    )
    assert table() in readme


@pytest.mark.parametrize("mode", ["compact", "simple_summarize"])
@pytest.mark.parametrize("how", ["query", "aquery"])
def test_a_query_engine_asks_about_the_image_it_found(
    llm: Any, *, server: FaultServer, image_node: ImageNode, picture: bytes, mode: str, how: str
) -> None:
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever([image_node]), llm=llm, multimodal=True, response_mode=mode
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


def test_an_index_of_an_image_answers(
    llm: Any, server: FaultServer, image_node: ImageNode, picture: bytes
) -> None:
    index = VectorStoreIndex([image_node], embed_model=MockEmbedding(embed_dim=3))
    engine = RetrieverQueryEngine.from_args(index.as_retriever(), llm=llm, multimodal=True)
    assert str(engine.query("What is it?")).startswith("You asked: ")
    assert server.requests[0].image == picture


def test_an_engine_does_not_swallow_an_error(
    llm: Any, server: FaultServer, image_node: ImageNode
) -> None:
    server.script = [status(402)]
    engine = RetrieverQueryEngine.from_args(FixedRetriever([image_node]), llm=llm, multimodal=True)
    with pytest.raises(PaymentRequiredError):
        engine.query("What is in the picture?")


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("options", [{"output_cls": Animal}, {"structured_answer_filtering": True}])
def test_prose_instead_of_an_object_is_no_empty_response(
    make: Callable[..., Any],
    *,
    server: FaultServer,
    image_node: ImageNode,
    options: dict[str, Any],
    how: str,
) -> None:
    """It was paid for, and core takes a ValueError of its own parser for nothing found."""
    server.script = [answer("It is a cat.")]
    llm = make(is_function_calling_model=True)
    synthesizer = get_response_synthesizer(llm=llm, multimodal=True, **options)
    engine = RetrieverQueryEngine(FixedRetriever([image_node]), synthesizer)
    with pytest.raises(NoToolCallError, match="had to call a tool"):
        queried(engine, how)
    assert server.billed == 1


def queried(engine: RetrieverQueryEngine, how: str) -> Any:
    question = "Which animal?"
    return asyncio.run(engine.aquery(question)) if how == "aquery" else engine.query(question)


def filtering(llm: Any, node: BaseNode, *, multimodal: bool) -> RetrieverQueryEngine:
    synthesizer = get_response_synthesizer(
        llm=llm, multimodal=multimodal, structured_answer_filtering=True
    )
    return RetrieverQueryEngine(FixedRetriever([node]), synthesizer)


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("multimodal", [True, False], ids=["pictures", "texts"])
class TestFilteringOfAnswersByText:
    """`structured_answer_filtering` with `is_function_calling_model=False`."""

    @pytest.mark.parametrize("reply", ["It is a cat.", '{"answer": "a cat"}', '{"query_sat'])
    def test_prose_is_no_empty_response(
        self,
        make: Callable[..., Any],
        *,
        server: FaultServer,
        image_node: ImageNode,
        picture: bytes,
        multimodal: bool,
        how: str,
        reply: str,
    ) -> None:
        server.script = [answer(reply)]
        node = image_node if multimodal else TextNode(text="Cats are nice.")
        engine = filtering(make(default_image=picture), node, multimodal=multimodal)
        with pytest.raises(NoToolCallError, match="holds no StructuredRefineResponse"):
            queried(engine, how)
        assert server.billed == 1

    @pytest.mark.parametrize(
        ("satisfied", "says"), [("true", "a cat"), ("false", "Empty Response")]
    )
    def test_an_answer_is_taken_or_filtered_out(
        self,
        make: Callable[..., Any],
        *,
        server: FaultServer,
        image_node: ImageNode,
        picture: bytes,
        multimodal: bool,
        how: str,
        satisfied: str,
        says: str,
    ) -> None:
        server.script = [answer(f'{{"query_satisfied": {satisfied}, "answer": "a cat"}}')]
        node = image_node if multimodal else TextNode(text="Cats are nice.")
        engine = filtering(make(default_image=picture), node, multimodal=multimodal)
        assert str(queried(engine, how)) == says


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
@pytest.mark.parametrize("how", ["query", "aquery"])
def test_prose_instead_of_an_object_by_text_is_no_empty_response_either(
    make: Callable[..., Any],
    *,
    server: FaultServer,
    image_node: ImageNode,
    mode: str,
    how: str,
) -> None:
    server.script = [answer("It is a cat.")]
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever([image_node]),
        llm=make(),
        multimodal=True,
        response_mode=mode,
        output_cls=Animal,
    )

    with pytest.raises(NoToolCallError, match="holds no Animal"):
        queried(engine, how)
    assert server.billed == 1


def test_predict_and_structured_predict(
    make: Callable[..., Any], server: FaultServer, picture: bytes
) -> None:
    llm = make(default_image=picture)
    assert llm.predict(PromptTemplate("Is it a {thing}?"), thing="cat").endswith("Is it a cat?")
    server.script = [answer('{"name": "cat"}')]
    prompt = PromptTemplate("Which animal?")
    assert llm.structured_predict(Animal, prompt) == Animal(name="cat")
    message = ChatMessage("Which animal?")
    message.blocks.append(ImageBlock(image=picture))
    response = llm.as_structured_llm(Animal).chat([message])
    assert response.raw == Animal(name="cat")


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
