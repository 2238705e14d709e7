"""The table of shapes, sent through the real classes of both frameworks to a server on a socket."""

from __future__ import annotations

import ast
import asyncio
import base64
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.content import create_image_block
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import StructuredTool
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.schema import ImageDocument
from llama_index.core.tools import FunctionTool

from fault_server import FaultServer
from langchain_phospho import ChatPhospho
from llama_index_phospho import Phospho, PhosphoMultiModal
from phospho_multimodal.messages.content_blocks import BLOCK_KINDS
from shapes import (
    AS_DOCUMENTS,
    BASE64,
    BLOCKS,
    CONVERSATIONS,
    DATA_URL,
    IN_MESSAGES,
    NATIVE,
    PICTURE,
    TOOL_RESULTS,
    Conversation,
    Fails,
    Picture,
    Sent,
    Shape,
    Spoken,
    Text,
    Unsendable,
)

# Helpers of the frameworks that open URLs and paths, or copy a picture to look at it.
FORBIDDEN = {
    "aestimate_tokens",
    "convert_to_openai_image_block",
    "estimate_tokens",
    "image_documents_to_base64",
    "inline_url",
    "is_data_content_block",
    "resolve_binary",
    "resolve_image",
}

Ask = Callable[..., None]
"""Sends what the framework takes, synchronously or with await."""


@pytest.fixture(scope="module")
def running() -> Iterator[FaultServer]:
    with FaultServer().running() as server:
        yield server


@pytest.fixture
def server(running: FaultServer) -> FaultServer:
    """Answers each question with the question, and keeps what it was sent."""
    running.requests.clear()
    return running


# How a method is called and what a message holds do not interact, so the quick run sends each form
# in one way, and a few forms in all ways: see `test_every_kind_of_form_goes_in_every_way`.
LONG = [pytest.mark.long]


@pytest.fixture(params=["sync", pytest.param("async", marks=LONG)])
def ask(request: pytest.FixtureRequest) -> Ask:
    return caller(request.param)


def caller(way: str) -> Ask:
    """Calls a method of a model, or its twin with await, and closes the model."""

    async def wait(model: Any, method: str, given: tuple[Any, ...]) -> None:
        try:
            await getattr(model, f"a{method}")(*given)
        finally:
            await model.aclose()

    def call(model: Any, method: str, *given: Any) -> None:
        if way == "async":
            asyncio.run(wait(model, method, given))
            return
        try:
            getattr(model, method)(*given)
        finally:
            model.close()

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    file.write_bytes(PICTURE)
    return file


def listed(shapes: list[Shape]) -> Any:
    return pytest.mark.parametrize("shape", shapes, ids=[shape.name for shape in shapes])


CARRIERS = ["user", "assistant", "tool"]
every_carrier = pytest.mark.parametrize(
    "carrier", ["user", *[pytest.param(carrier, marks=LONG) for carrier in CARRIERS[1:]]]
)

LABELS = {"assistant": "Assistant", "tool": "Tool (camera)"}


def needs_a_picture(becomes: Sent) -> bool:
    """A text alone is not sent."""
    return isinstance(becomes, Text)


def check(
    server: FaultServer, becomes: Sent, send: Callable[[], None], carrier: str = "user"
) -> None:
    """See that what must come of a shape comes: one request, or an error before any."""
    if isinstance(becomes, Fails):
        with pytest.raises(becomes.error, match=re.compile(becomes.saying, re.DOTALL)) as raised:
            send()
        message = str(raised.value)
        assert len(message) < 500
        assert BASE64[:40] not in message
        assert server.requests == []
        return
    send()
    (request,) = server.requests
    picture = becomes.sent if isinstance(becomes, Picture) else PICTURE
    assert (request.item["image_url"] if isinstance(picture, str) else request.image) == picture
    text = "What?"
    if isinstance(becomes, Text) and becomes.sent is not None:
        text += f"\n{becomes.sent}"
    if carrier != "user":
        text = f"User: Look\n{LABELS[carrier]}: {text}".rstrip()
    assert request.item["text"] == text


def in_langchain(carrier: str, *blocks: Any) -> list[BaseMessage]:
    content = [{"type": "text", "text": "What?"}, *blocks]
    call = {"name": "camera", "args": {}, "id": "call_1"}
    if carrier == "user":
        return [HumanMessage(content)]
    if carrier == "assistant":
        return [HumanMessage("Look"), AIMessage(content)]
    answer = ToolMessage(content, name="camera", tool_call_id="call_1")
    return [HumanMessage("Look"), AIMessage("", tool_calls=[call]), answer]


def in_llama_index(carrier: str, *blocks: Any) -> list[ChatMessage]:
    message = ChatMessage("What?", role=carrier)
    message.blocks.extend(blocks)  # after validation: core itself lets no mapping in
    if carrier == "user":
        return [message]
    if carrier == "assistant":
        return [ChatMessage("Look"), message]
    message.additional_kwargs["tool_call_id"] = "call_1"
    call = ToolCallBlock(tool_name="camera", tool_call_id="call_1")
    return [ChatMessage("Look"), ChatMessage(role="assistant", blocks=[call]), message]


ONE_OF_EACH_KIND = [
    next(shape for shape in BLOCKS if isinstance(shape.becomes, kind))
    for kind in (Picture, Text, Fails)
]


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("carrier", CARRIERS)
@listed(ONE_OF_EACH_KIND)
def test_every_kind_of_form_goes_in_every_way(
    server: FaultServer, shape: Shape, carrier: str, way: str
) -> None:
    more = [{"type": "image_url", "image_url": DATA_URL}] if needs_a_picture(shape.becomes) else []
    in_both = [
        (ChatPhospho(base_url=server.base_url), "invoke", in_langchain),
        (Phospho(base_url=server.base_url), "chat", in_llama_index),
    ]
    for model, method, messages in in_both:
        server.requests.clear()
        asking = caller(way)
        given = messages(carrier, shape.block, *more)
        check(server, shape.becomes, lambda: asking(model, method, given), carrier)  # noqa: B023


@listed(BLOCKS)
@every_carrier
def test_a_block_in_a_message_of_langchain(
    ask: Ask, server: FaultServer, shape: Shape, carrier: str
) -> None:
    becomes = shape.in_langchain or shape.becomes
    more = [{"type": "image_url", "image_url": DATA_URL}] if needs_a_picture(becomes) else []
    model = ChatPhospho(base_url=server.base_url)
    messages = in_langchain(carrier, shape.block, *more)
    check(server, becomes, lambda: ask(model, "invoke", messages), carrier)


@listed(BLOCKS)
@every_carrier
def test_a_mapping_in_a_message_of_llama_index(
    ask: Ask, server: FaultServer, shape: Shape, carrier: str
) -> None:
    block = TextBlock(text=shape.block) if isinstance(shape.block, str) else shape.block
    more = [ImageBlock(image=PICTURE)] if needs_a_picture(shape.becomes) else []
    model = Phospho(base_url=server.base_url)
    messages = in_llama_index(carrier, block, *more)
    check(server, shape.becomes, lambda: ask(model, "chat", messages), carrier)


@listed([shape for shape in BLOCKS if isinstance(shape.becomes, Picture)])
def test_a_mapping_as_image_document(ask: Ask, server: FaultServer, shape: Shape) -> None:
    model = PhosphoMultiModal(base_url=server.base_url)
    check(server, shape.becomes, lambda: ask(model, "complete", "What?", [shape.block]))


@listed(NATIVE + IN_MESSAGES)
@every_carrier
def test_a_block_of_llama_index_in_a_message(
    ask: Ask, server: FaultServer, path: Path, shape: Shape, carrier: str
) -> None:
    more = [ImageBlock(image=PICTURE)] if needs_a_picture(shape.becomes) else []
    model = Phospho(base_url=server.base_url)
    messages = in_llama_index(carrier, shape.block(path), *more)
    check(server, shape.becomes, lambda: ask(model, "chat", messages), carrier)


@listed(NATIVE + AS_DOCUMENTS)
def test_an_image_document_of_a_completion(
    ask: Ask, server: FaultServer, path: Path, shape: Shape
) -> None:
    model = PhosphoMultiModal(base_url=server.base_url)
    check(server, shape.becomes, lambda: ask(model, "complete", "What?", [shape.block(path)]))


@pytest.mark.parametrize("document", [{"type": "text", "text": "hi"}, {"type": "tool_use"}])
def test_a_mapping_without_an_image_is_no_image_document(
    ask: Ask, server: FaultServer, document: Any
) -> None:
    model = PhosphoMultiModal(base_url=server.base_url)
    becomes = Fails("not an image block")
    check(server, becomes, lambda: ask(model, "complete", "What?", [document]))


def test_a_picture_of_additional_kwargs_counts_once_however_often_core_copies_it(
    ask: Ask, server: FaultServer
) -> None:
    images = [ImageDocument(image=BASE64)]
    message = ChatMessage("What?", additional_kwargs={"images": images})
    for _ in range(3):
        message = ChatMessage.model_validate(message)
    assert len(message.blocks) > 2
    model = Phospho(base_url=server.base_url, multi_image="error")
    check(server, Picture(), lambda: ask(model, "chat", [message]))


def test_every_kind_that_is_known_is_in_the_table() -> None:
    """But for those that are passed over, which differ in nothing but their name."""
    written = str([shape.block for shape in BLOCKS])
    read = {kind for kind, reading in BLOCK_KINDS.items() if reading != "ignored"}
    assert {kind for kind in read if f"'{kind}'" not in written} == set()


def test_the_table_has_no_shape_twice() -> None:
    for table in (BLOCKS, NATIVE + IN_MESSAGES, NATIVE + AS_DOCUMENTS):
        names = [shape.name for shape in table]
        assert len(set(names)) == len(names)


# What a framework makes of what a tool returns


def returns(value: Any) -> Callable[[], Any]:
    def camera() -> Any:
        """Take a picture."""
        return value

    return camera


results = pytest.mark.parametrize(
    ("value", "langchain", "llama_index"),
    [row[1:] for row in TOOL_RESULTS],
    ids=[row[0] for row in TOOL_RESULTS],
)


@results
def test_what_a_tool_of_langchain_returns(
    ask: Ask, server: FaultServer, value: Any, langchain: Sent, llama_index: Sent
) -> None:
    call = {"name": "camera", "args": {}, "id": "call_1", "type": "tool_call"}
    tool = StructuredTool.from_function(returns(value))
    messages = [HumanMessage("Look"), AIMessage("", tool_calls=[call]), tool.invoke(call)]
    model = ChatPhospho(base_url=server.base_url)
    check_result(server, langchain, lambda: ask(model, "invoke", messages))


@results
def test_what_a_tool_of_llama_index_returns(
    ask: Ask, server: FaultServer, value: Any, langchain: Sent, llama_index: Sent
) -> None:
    output = FunctionTool.from_defaults(returns(value)).call()
    call = ToolCallBlock(tool_name="camera", tool_call_id="call_1")
    told = {"tool_call_id": "call_1"}
    messages = [
        ChatMessage("Look"),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", blocks=output.blocks, additional_kwargs=told),
    ]
    model = Phospho(base_url=server.base_url)
    check_result(server, llama_index, lambda: ask(model, "chat", messages))


def check_result(server: FaultServer, becomes: Sent, send: Callable[[], None]) -> None:
    if isinstance(becomes, Fails):
        check(server, becomes, send)
        return
    send()
    (request,) = server.requests
    assert isinstance(becomes, Picture)
    assert request.image == becomes.sent
    assert request.item["text"] == "User: Look\nTool (camera):"


# What LangChain itself makes of images

TEMPLATES = [
    ("a string", {"type": "image_url", "image_url": "{image}"}),
    ("a mapping", {"type": "image_url", "image_url": {"url": "{image}"}}),
    ("v1", {"type": "image", "url": "{image}"}),
    ("v1 base64", {"type": "image", "base64": "{base64}", "mime_type": "image/png"}),
    (
        "v0",
        {"type": "image", "source_type": "base64", "data": "{base64}", "mime_type": "image/png"},
    ),
]


@pytest.mark.parametrize(
    "block", [block for _, block in TEMPLATES], ids=[name for name, _ in TEMPLATES]
)
def test_a_block_rendered_by_a_prompt_template(ask: Ask, server: FaultServer, block: Any) -> None:
    template = ChatPromptTemplate([("human", [{"type": "text", "text": "{question}"}, block])])
    prompt = template.invoke({"question": "What?", "image": DATA_URL, "base64": BASE64})
    model = ChatPhospho(base_url=server.base_url)
    check(server, Picture(), lambda: ask(model, "invoke", prompt))


CONTENT = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": DATA_URL}]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([{"role": "user", "content": CONTENT}], id="a mapping"),
        pytest.param([("user", CONTENT)], id="a pair"),
        pytest.param([("human", CONTENT)], id="a pair of LangChain's own role"),
        pytest.param(
            [HumanMessage([CONTENT[0], create_image_block(base64=BASE64, mime_type="image/png")])],
            id="create_image_block",
        ),
        pytest.param(
            [HumanMessage([CONTENT[0], create_image_block(url=DATA_URL)])],
            id="create_image_block of a URL",
        ),
        pytest.param(
            [HumanMessage(content_blocks=HumanMessage(CONTENT).content_blocks)],
            id="content_blocks and back",
        ),
        pytest.param([HumanMessage.model_validate(HumanMessage(CONTENT).model_dump())], id="dump"),
    ],
)
def test_a_message_written_in_another_way(ask: Ask, server: FaultServer, messages: Any) -> None:
    model = ChatPhospho(base_url=server.base_url)
    check(server, Picture(), lambda: ask(model, "invoke", messages))


@listed([shape for shape in BLOCKS if isinstance(shape.becomes, Picture)])
def test_what_content_blocks_shows_of_a_message_is_the_same_picture(
    ask: Ask, server: FaultServer, shape: Shape
) -> None:
    """LangChain's translation loses the source of one form, and lets a picture be a mapping."""
    blocks = HumanMessage([{"type": "text", "text": "What?"}, shape.block]).content_blocks
    becomes = shape.in_langchain or shape.becomes
    model = ChatPhospho(base_url=server.base_url)
    messages = [HumanMessage(content_blocks=blocks)]
    check(server, becomes, lambda: ask(model, "invoke", messages))


# The same conversation in both frameworks


def told_in_langchain(turn: Spoken) -> BaseMessage:
    def block(part: str | bytes | Unsendable) -> dict[str, Any]:
        if isinstance(part, Unsendable):
            return part.in_langchain
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "image", "base64": encode(part), "mime_type": "image/png"}

    content: list[Any] = list(map(block, turn.parts))
    if turn.role == "user":
        return HumanMessage(content, name=turn.name)
    if turn.role == "system":
        return SystemMessage(content)
    if turn.role == "tool":
        return ToolMessage(content, name=turn.name, tool_call_id=turn.call_id or "")
    calls = [{"name": name, "args": {}, "id": number} for name, number in turn.calls]
    return AIMessage(content, tool_calls=calls, name=turn.name)


def told_in_llama_index(turn: Spoken) -> ChatMessage:
    def block(part: str | bytes | Unsendable) -> Any:
        if isinstance(part, Unsendable):
            return part.in_llama_index
        return TextBlock(text=part) if isinstance(part, str) else ImageBlock(image=part)

    calls = [ToolCallBlock(tool_name=name, tool_call_id=number) for name, number in turn.calls]
    more = {"name": turn.name, "tool_call_id": turn.call_id}
    message = ChatMessage(
        role=MessageRole(turn.role),
        additional_kwargs={key: value for key, value in more.items() if value is not None},
    )
    message.blocks.extend([*map(block, turn.parts), *calls])
    return message


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=[told.name for told in CONVERSATIONS])
def test_a_conversation_is_the_same_request_in_both_frameworks(
    ask: Ask, server: FaultServer, conversation: Conversation
) -> None:
    options = {"base_url": server.base_url}
    turns = conversation.turns
    ask(ChatPhospho(**options), "invoke", [told_in_langchain(turn) for turn in turns])
    ask(Phospho(**options), "chat", [told_in_llama_index(turn) for turn in turns])
    one, other = server.requests
    assert one.body == other.body
    assert (one.item["text"], one.image) == (conversation.text, conversation.picture)


FAILING = [shape for shape in BLOCKS if isinstance(shape.becomes, Fails)]


@listed([shape for shape in FAILING if not isinstance(shape.in_langchain, Fails)])
@every_carrier
def test_no_older_block_of_langchain_is_an_error(
    ask: Ask, server: FaultServer, shape: Shape, carrier: str
) -> None:
    newest = HumanMessage([{"type": "text", "text": "Well?"}, {"type": "image", "url": DATA_URL}])
    messages = [*in_langchain(carrier, shape.block), newest]
    ask(ChatPhospho(base_url=server.base_url), "invoke", messages)
    check_older(server, carrier)


@listed(FAILING)
@every_carrier
def test_no_older_mapping_of_llama_index_is_an_error(
    ask: Ask, server: FaultServer, shape: Shape, carrier: str
) -> None:
    newest = ChatMessage(blocks=[TextBlock(text="Well?"), ImageBlock(image=PICTURE)])
    ask(Phospho(base_url=server.base_url), "chat", [*in_llama_index(carrier, shape.block), newest])
    check_older(server, carrier)


@listed([shape for shape in NATIVE + IN_MESSAGES if isinstance(shape.becomes, Fails)])
@every_carrier
def test_no_older_block_of_llama_index_is_an_error(
    ask: Ask, server: FaultServer, path: Path, shape: Shape, carrier: str
) -> None:
    newest = ChatMessage(blocks=[TextBlock(text="Well?"), ImageBlock(image=PICTURE)])
    messages = [*in_llama_index(carrier, shape.block(path)), newest]
    ask(Phospho(base_url=server.base_url), "chat", messages)
    check_older(server, carrier)


def check_older(server: FaultServer, carrier: str) -> None:
    """See that a mark replaces what an older turn holds, and that the newest image is sent."""
    (request,) = server.requests
    assert request.image == PICTURE
    *_, asked, mark, newest = request.item["text"].splitlines()
    assert asked == f"{LABELS.get(carrier, 'User')}: What?"
    assert re.fullmatch(r"\[(image|.*, not sent|image: cannot be read)\]", mark), mark
    assert newest == "User: Well?"


def encode(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def test_a_single_text_is_the_same_as_a_string(ask: Ask, server: FaultServer) -> None:
    image = told_in_langchain(Spoken("user", (PICTURE,)))
    picture = told_in_llama_index(Spoken("user", (PICTURE,)))
    model, other = ChatPhospho(base_url=server.base_url), Phospho(base_url=server.base_url)
    ask(model, "invoke", [SystemMessage("Be brief."), image, AIMessage("A cat."), ("user", "")])
    ask(
        other,
        "chat",
        [
            ChatMessage("Be brief.", role="system"),
            picture,
            ChatMessage("A cat.", role="assistant"),
            ChatMessage("", role="user"),
        ],
    )
    one, two = server.requests
    assert one.body == two.body
    assert one.item["text"] == "Be brief.\nUser: Describe this image.\nAssistant: A cat."


@pytest.mark.parametrize(
    "package", ["langchain_phospho", "llama_index_phospho", "phospho_multimodal"]
)
def test_no_helper_of_a_framework_opens_an_image(package: str) -> None:
    used = {
        f"{file.name}: {name}"
        for file in Path(str(resources.files(package))).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        for name in (
            getattr(node, "attr", None),
            getattr(node, "id", None),
            getattr(node, "name", None),
        )
        if name in FORBIDDEN
    }
    assert used == set()
