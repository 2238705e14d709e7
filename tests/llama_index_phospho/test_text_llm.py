"""`text_llm=`: requests without an image go to another LLM, and no image is billed."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
)
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.tools import FunctionTool

from consumers import Animal, FixedRetriever
from fault_server import FaultServer, answer
from llama_index_phospho import Phospho
from phospho_multimodal import ConfigurationError, MissingImageError, NoToolCallError
from scripted_text_llm import Call, ScriptedText, text_of

Ask = Callable[..., list[Any]]
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _loop() -> Iterator[None]:
    """Have the loop that core's synchronous methods take, and close it, which they do not."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def other() -> ScriptedText:
    return ScriptedText()


@pytest.mark.parametrize("default_image", [False, True])
def test_a_request_without_an_image_goes_to_the_other_llm(
    ask: Ask,
    method: str,
    make: Make,
    *,
    other: ScriptedText,
    server: FaultServer,
    picture: bytes,
    default_image: bool,
) -> None:
    llm = make(text_llm=other, default_image=picture if default_image else None)
    (response,) = ask(llm, "What is text?", temperature=0.3, max_images=2)
    text = response.message.content if "chat" in method else response.text
    assert text == "It is text."
    assert response.delta == "It is text."
    assert other.read[0][-1].content == "What is text?"
    assert {**other.given[0], "formatted": False} == {"temperature": 0.3, "formatted": False}
    assert response.raw["usage"] == 7
    assert response.raw["image_policy"] == "text_llm"
    assert response.raw["model_name"] == "scripted-text"
    assert (response.raw["images_billed"], response.raw["cost_usd"]) == (0, 0.0)
    assert server.requests == []
    ask(llm, "What is this?", picture)
    assert len(server.requests) == 1
    assert len(other.read) == 1


@pytest.mark.parametrize(
    ("blocks", "looks"),
    [
        ([TextBlock(text="a"), "image"], True),
        (["document"], True),
        (["nested"], True),
        ([AudioBlock(audio=b"RIFF")], False),
        ([DocumentBlock(data=b"%PDF-1.7", document_mimetype="application/pdf")], False),
        ([], False),
    ],
    ids=["image", "image document", "nested image", "audio", "PDF", "text"],
)
def test_what_has_no_image_is_passed_on_as_it_is(
    make: Make,
    *,
    other: ScriptedText,
    server: FaultServer,
    picture: bytes,
    blocks: Any,
    looks: bool,
) -> None:
    """Another LLM may read what this endpoint cannot."""
    image = ImageBlock(image=picture)
    made = {
        "image": image,
        "document": DocumentBlock(data=picture, document_mimetype="image/jpeg"),
        "nested": CitableBlock(title="t", source="s", content=[image]),
    }
    given = [made.get(block, block) if isinstance(block, str) else block for block in blocks]
    messages = [ChatMessage(blocks=given), ChatMessage("And now?")]
    make(text_llm=other).chat(messages)
    assert (len(server.requests), len(other.read)) == ((1, 0) if looks else (0, 1))
    assert looks or other.read[0] == messages


def test_without_one_the_error_says_where_the_image_may_have_gone(make: Make) -> None:
    with pytest.raises(MissingImageError) as raised:
        make().chat([ChatMessage("What?")])
    for advice in ("memory", "context_window=", "multimodal=True", "text_llm=", "default_image="):
        assert advice in str(raised.value)


@pytest.mark.parametrize(
    "text_llm", ["gpt", Phospho(base_url="http://127.0.0.1:9")], ids=["str", "Phospho"]
)
def test_what_cannot_answer_text_is_refused(make: Make, text_llm: Any) -> None:
    with pytest.raises(ConfigurationError, match="text_llm="):
        make(text_llm=text_llm)


@pytest.mark.parametrize("duplicate", ["pickle", "deepcopy", "copy", "model_copy"])
def test_a_copy_keeps_it(make: Make, other: ScriptedText, duplicate: str) -> None:
    llm = make(text_llm=other)
    twin = {
        "pickle": lambda: pickle.loads(pickle.dumps(llm)),  # noqa: S301 - our own
        "deepcopy": lambda: copy.deepcopy(llm),
        "copy": lambda: copy.copy(llm),
        "model_copy": lambda: llm.model_copy(update={"temperature": 0.2}),
    }[duplicate]()
    assert twin.complete("What?").text == "It is text."
    assert "text_llm" not in llm.to_dict()
    assert "scripted" not in repr(llm) + llm.to_json()


# In the places of core that ask without an image


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "accumulate"])
def test_a_query_engine_over_notes_and_images(
    make: Make, *, other: ScriptedText, server: FaultServer, picture: bytes, mode: str, how: str
) -> None:
    nodes = [
        TextNode(text="Cats are nice. " * 1200),  # too long to stand beside an image
        ImageNode(image=base64.b64encode(picture).decode(), metadata={"name": "a"}),
    ]
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever(nodes), llm=make(text_llm=other), multimodal=True, response_mode=mode
    )
    response = engine.query("What?") if how == "query" else asyncio.run(engine.aquery("What?"))
    assert "Empty Response" not in str(response)
    assert len(server.requests) == server.billed == 1
    assert other.read


def test_a_chat_engine_condenses_with_the_other_llm(
    make: Make, other: ScriptedText, server: FaultServer, picture: bytes
) -> None:
    node = ImageNode(image=base64.b64encode(picture).decode(), metadata={"name": "a"})
    engine = CondensePlusContextChatEngine.from_defaults(
        FixedRetriever([node]),
        llm=make(text_llm=other),
        memory=ChatMemoryBuffer.from_defaults(token_limit=3000),
    )
    for question in ("What is it?", "And its colour?"):
        engine.chat(question)
    # The context is text in this engine: all of it is read by the other LLM.
    assert server.requests == []
    assert len(other.read) == 3


@pytest.mark.parametrize("tools", [True, False], ids=["tools by prompt", "by text"])
@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_object_is_made_by_the_other_llm(
    make: Make, server: FaultServer, *, tools: bool, how: str
) -> None:
    said: Any = Call("Animal", name="cat") if tools else json.dumps({"name": "cat"})
    llm = make(text_llm=ScriptedText(answers=[said]), is_function_calling_model=tools)
    prompt = PromptTemplate("Which animal?")
    if how == "sync":
        assert llm.structured_predict(Animal, prompt) == Animal(name="cat")
        response = llm.as_structured_llm(Animal).chat([ChatMessage("Which?")])
    else:
        assert asyncio.run(llm.astructured_predict(Animal, prompt)) == Animal(name="cat")
        response = asyncio.run(llm.as_structured_llm(Animal).achat([ChatMessage("Which?")]))
    assert response.raw == Animal(name="cat")
    assert server.requests == []


@pytest.mark.parametrize("tools", [True, False], ids=["tools by prompt", "by text"])
@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("said", ["A cat.", '{"name": ["cat"]}', "{}", '{"kind": "cat"}'])
def test_an_object_that_the_other_llm_does_not_give_is_not_called_unsent(
    said: str, make: Make, server: FaultServer, *, tools: bool, how: str
) -> None:
    llm = make(text_llm=ScriptedText(answers=[said]), is_function_calling_model=tools)
    prompt = PromptTemplate("Which animal?")
    ways = {
        "sync": llm.structured_predict,
        "async": lambda *asked: asyncio.run(llm.astructured_predict(*asked)),
    }
    with pytest.raises(NoToolCallError) as raised:
        ways[how](Animal, prompt)
    assert "Nothing was sent" not in str(raised.value)
    assert "Images billed: 0" in str(raised.value)
    assert (raised.value.attempts, server.requests) == (0, [])


def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: a small animal"


def with_agent(llm: Any, *messages: Any, workflow: bool, streaming: bool = True) -> list[str]:
    async def chat() -> list[str]:
        tools: Any = [FunctionTool.from_defaults(fn=look_up)]
        agent: Any = (
            AgentWorkflow.from_tools_or_functions(tools, llm=llm)
            if workflow
            else FunctionAgent(tools=tools, llm=llm, streaming=streaming)
        )
        answers = [str(await agent.run(message)) for message in messages]
        await llm.aclose()
        return answers

    return asyncio.run(chat())


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
@pytest.mark.parametrize("workflow", [True, False], ids=["AgentWorkflow", "FunctionAgent"])
@pytest.mark.parametrize("streaming", [True, False])
def test_the_text_steps_of_an_agent_are_the_other_llms(
    make: Make, server: FaultServer, picture: bytes, *, workflow: bool, streaming: bool
) -> None:
    other = ScriptedText(answers=[Call("look_up", word="cat"), "A cat is small."])
    llm = make(text_llm=other, is_function_calling_model=True)
    server.script = [answer("A grey cat.")]
    image = ChatMessage(blocks=[TextBlock(text="What is this?"), ImageBlock(image=picture)])
    answers = with_agent(llm, "What is a cat?", image, workflow=workflow, streaming=streaming)
    assert answers == ["A cat is small.", "A grey cat."]
    assert other.given[0]["tools"] == ["look_up"]
    assert "a small animal" in (other.read[1][-1].content or "")
    assert server.billed == 1


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
@pytest.mark.parametrize("workflow", [True, False], ids=["AgentWorkflow", "FunctionAgent"])
@pytest.mark.parametrize("streaming", [True, False])
def test_an_llm_without_functions_calls_tools_by_prompt(
    make: Make, server: FaultServer, *, workflow: bool, streaming: bool
) -> None:
    call = json.dumps({"name": "look_up", "arguments": {"word": "cat"}})
    other = ScriptedText(answers=[call, "A cat is small."], calls_functions=False)
    llm = make(text_llm=other, is_function_calling_model=True)
    answers = with_agent(llm, "What is a cat?", workflow=workflow, streaming=streaming)
    assert answers == ["A cat is small."]
    assert "look_up" in (other.read[0][0].content or "")
    assert "Tool (look_up): cat: a small animal" in text_of(other.read[1])
    assert other.given == [{}, {}]
    assert server.requests == []


def test_an_llm_without_functions_answers_without_tools(make: Make, server: FaultServer) -> None:
    llm = make(text_llm=MockLLM(), is_function_calling_model=True)
    response = llm.chat_with_tools([], "What?")
    assert response.raw["image_policy"] == "text_llm"
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    assert server.requests == []
