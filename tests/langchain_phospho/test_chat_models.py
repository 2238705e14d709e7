"""What a chain gets from the model, and what the endpoint gets from the chain."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import RetryPolicy

import langchain_phospho
from fresh_python import in_fresh_python
from langchain_phospho import ChatPhospho
from phospho_multimodal import (
    ConfigurationError,
    RateLimitedError,
    ServiceError,
    UnexpectedReplyError,
    UnsupportedContentError,
)
from phospho_multimodal._version import __version__

NOWHERE = "http://127.0.0.1:9"


def question(picture: Any, text: str = "What is this?") -> list[HumanMessage]:
    return [HumanMessage([{"type": "text", "text": text}, picture.block])]


def test_a_question_about_a_picture(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    endpoint.answer("A red square.\n\nAnd a black one.")
    answer = driver.invoke(model, question(red))
    (request,) = endpoint.received
    assert request.body["model"] == "phospho-multimodal"
    assert (request.text, request.picture, request.parameters) == ("What is this?", red.sha256, {})
    assert isinstance(answer, AIMessage)
    assert answer.content == "A red square.\n\nAnd a black one."
    assert answer.usage_metadata is None
    metadata = answer.response_metadata
    assert metadata["finish_reason"] == "stop"
    assert (metadata["model_name"], metadata["model_provider"]) == ("phospho-multimodal", "phospho")
    assert (metadata["images_billed"], metadata["cost_usd"], metadata["attempts"]) == (1, 0.01, 1)
    assert metadata["images"][0]["sha256"] == red.sha256


def test_a_url_is_passed_on_as_it_is(driver: Any, model: ChatPhospho, endpoint: Any) -> None:
    url = "https://example.com/a%2Fb.png?X-Amz-Signature=%7Eabc&é=1"
    driver.invoke(model, [HumanMessage([{"type": "image", "url": url}])])
    (request,) = endpoint.received
    assert (request.image_url, request.text) == (url, "Describe this image.")


def test_a_chain(driver: Any, model: ChatPhospho, endpoint: Any, red: Any) -> None:
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "You are {mood}."),
            (
                "human",
                [{"type": "text", "text": "{ask}"}, {"type": "image_url", "image_url": "{image}"}],
            ),
        ]
    )
    chain = prompt | model | StrOutputParser()
    given = {"mood": "brief", "ask": "What?", "image": red.data_url}
    assert driver.invoke(chain, given) == "You asked: You are brief.\nUser: What?"
    assert driver.stream(chain, given) == ["You asked: You are brief.\nUser: What?"]
    assert [request.picture for request in endpoint.received] == [red.sha256] * 2


def test_a_batch_keeps_its_order(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any, blue: Any
) -> None:
    pictures = [red, blue] * 4
    asked = [question(picture, f"number {index}") for index, picture in enumerate(pictures)]
    answers = driver.batch(model, asked)
    assert [answer.content for answer in answers] == [f"You asked: number {i}" for i in range(8)]
    digests = [answer.response_metadata["images"][0]["sha256"] for answer in answers]
    assert digests == [picture.sha256 for picture in pictures]
    assert len(endpoint.received) == 8


def test_a_stream_is_one_last_chunk(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    (chunk,) = driver.stream(model, question(red))
    assert isinstance(chunk, AIMessageChunk)
    assert chunk.content == "You asked: What is this?"
    assert chunk.chunk_position == "last"
    assert chunk.response_metadata["finish_reason"] == "stop"
    assert chunk.response_metadata["images"][0]["sha256"] == red.sha256
    assert len(endpoint.received) == 1


class Tokens(BaseCallbackHandler):
    """Counts what a handler is told."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.ends = 0

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ends += 1


@pytest.mark.parametrize("streaming", [None, True])
def test_a_handler_is_told_of_the_one_token_once(
    streaming: bool | None, driver: Any, endpoint: Any, red: Any
) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, streaming=streaming)
    heard = Tokens()
    driver.invoke(model, question(red), config={"callbacks": [heard]})
    assert heard.tokens == (["You asked: What is this?"] if streaming else [])
    driver.stream(model, question(red), config={"callbacks": [heard]})
    assert heard.tokens[-1:] == ["You asked: What is this?"]
    assert (len(heard.tokens), heard.ends) == (2 if streaming else 1, 2)
    assert len(endpoint.received) == 2


def test_langchains_own_keyword_for_streaming_is_not_refused(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    for stream in (True, False):
        driver.invoke(model, question(red), stream=stream)
    assert len(endpoint.received) == 2


def test_events_of_version_2(model: ChatPhospho, endpoint: Any, red: Any) -> None:
    async def collect() -> list[Any]:
        events: AsyncIterator[Any] = model.astream_events(question(red), version="v2")
        return [event async for event in events]

    events = asyncio.run(collect())
    assert [event["event"] for event in events] == [
        "on_chat_model_start",
        "on_chat_model_stream",
        "on_chat_model_end",
    ]
    assert events[1]["data"]["chunk"].content == "You asked: What is this?"
    assert len(endpoint.received) == 1


@pytest.mark.filterwarnings("ignore:.*is in beta")
def test_events_of_version_3(model: ChatPhospho, endpoint: Any, red: Any) -> None:
    stream: Any = model.stream_events(question(red), version="v3")
    events = list(stream)
    assert events[0]["event"] == "message-start"
    assert events[-1]["event"] == "message-finish"
    answer = stream.output
    assert answer.text == "You asked: What is this?"
    assert answer.response_metadata["images"][0]["sha256"] == red.sha256
    assert len(endpoint.received) == 1


def test_one_model_serves_one_event_loop_after_another(
    model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    async def some() -> list[AIMessage]:
        return list(await asyncio.gather(*(model.ainvoke(question(red)) for _ in range(3))))

    for _ in range(3):
        assert {answer.content for answer in asyncio.run(some())} == {"You asked: What is this?"}
    assert model.invoke(question(red)).content == "You asked: What is this?"
    assert len(endpoint.received) == 10


# Parameters.


def test_what_is_set_is_sent_and_a_call_comes_before_the_model(
    driver: Any, endpoint: Any, red: Any
) -> None:
    model = ChatPhospho(
        base_url=endpoint.base_url, max_tokens=100, temperature=0, top_p=0.9, repetition_penalty=1.2
    )
    driver.invoke(model, question(red))
    driver.invoke(model, question(red), max_tokens=5, temperature=0.7, top_p=None)
    driver.invoke(model.bind(max_new_tokens=6, model="phospho-multimodal-2"), question(red))
    assert [request.parameters for request in endpoint.received] == [
        {"max_new_tokens": 100, "temperature": 0.1, "top_p": 0.9, "repetition_penalty": 1.2},
        {"max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2},
        {"max_new_tokens": 6, "temperature": 0.1, "top_p": 0.9, "repetition_penalty": 1.2},
    ]
    assert [request.body["model"] for request in endpoint.received] == [
        "phospho-multimodal",
        "phospho-multimodal",
        "phospho-multimodal-2",
    ]


def test_the_model_of_a_call_is_the_one_that_is_reported(
    driver: Any, model: ChatPhospho, red: Any
) -> None:
    answer = driver.invoke(model, question(red), model="phospho-multimodal-2")
    assert answer.response_metadata["model_name"] == "phospho-multimodal-2"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 251},
        {"temperature": 2.0},
        {"model": "gpt-4"},
        {"seed": 1},
        {"tools": []},
        {"api_key": "sk-secret"},
        {"max_tokens": 1, "max_new_tokens": 1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_keyword_of_a_call_is_refused_before_sending(
    wrong: dict[str, Any], driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        driver.invoke(model, question(red), **wrong)
    assert "sk-secret" not in str(raised.value)
    with pytest.raises(ConfigurationError):
        driver.stream(model, question(red), **wrong)
    assert endpoint.received == []


@pytest.mark.parametrize(
    ("constructor", "call", "answer"),
    [
        (None, None, "one two three"),
        (["three"], None, "one two "),
        ("two", None, "one "),
        (["three"], ["two"], "one "),
        (["two"], [], "one two three"),
        (None, ["three", "two"], "one "),
        (None, "two", "one "),
        (None, ["four", ""], "one two three"),
    ],
)
def test_an_answer_is_cut_at_the_first_stop(  # noqa: PLR0917 - the columns of the table
    constructor: Any, call: Any, answer: str, driver: Any, endpoint: Any, red: Any
) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, stop=constructor)
    endpoint.answer("one two three")
    endpoint.answer("one two three")
    assert driver.invoke(model, question(red), stop=call).content == answer
    (chunk,) = driver.stream(model, question(red), stop=call)
    assert chunk.content == answer
    assert "stop" not in endpoint.received[0].item


def test_a_field_can_be_made_configurable(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(
        base_url=endpoint.base_url, api_key="key", default_image=red.data, max_tokens=9
    )
    warm = model.configurable_fields(temperature=ConfigurableField(id="warmth"))
    configured = {"configurable": {"warmth": 0.9}}
    driver.invoke(warm, "Hello", config=configured)
    (request,) = endpoint.received
    assert request.parameters == {"max_new_tokens": 9, "temperature": 0.9}
    assert (request.picture, request.headers["authorization"]) == (red.sha256, "Bearer key")
    (chunk,) = driver.stream(warm, "Hello", config=configured)
    assert isinstance(chunk, AIMessageChunk)


# Conversations.


def test_a_conversation_becomes_a_transcript_about_its_newest_picture(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any, blue: Any
) -> None:
    call = {"name": "zoom", "args": {}, "id": "call-1", "type": "tool_call"}
    answer = driver.invoke(
        model,
        [
            SystemMessage("Be brief."),
            HumanMessage(["What is this?", red.block]),
            AIMessage("Red. Let me look closer.", tool_calls=[call]),
            ToolMessage(["closer:", blue.block], tool_call_id="call-1", name="zoom"),
            HumanMessage("And now?"),
        ],
    )
    (request,) = endpoint.received
    assert request.picture == blue.sha256
    assert request.text == (
        "Be brief.\n"
        "User: What is this?\n[image]\n"
        "Assistant: Red. Let me look closer.\n"
        "Tool (zoom): closer:\n"
        "User: And now?"
    )
    assert answer.response_metadata["images_omitted"] == 1


def test_several_pictures_are_refused_or_the_last_is_taken(
    driver: Any, endpoint: Any, red: Any, blue: Any
) -> None:
    both = [HumanMessage(["Which?", red.block, blue.block])]
    strict = ChatPhospho(base_url=endpoint.base_url, multi_image="error")
    with pytest.raises(UnsupportedContentError, match="2 images"):
        driver.invoke(strict, both)
    assert endpoint.received == []
    driver.invoke(ChatPhospho(base_url=endpoint.base_url, multi_image="last"), both)
    (request,) = endpoint.received
    assert (request.picture, request.text) == (blue.sha256, "Which?\n[image]")


def test_an_agent_without_tools_answers_about_a_picture(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    agent = create_agent(model, system_prompt="Be brief.")
    outcome = driver.invoke(agent, {"messages": question(red)})
    assert outcome["messages"][-1].content == "You asked: Be brief.\nUser: What is this?"
    assert len(endpoint.received) == 1


def test_the_retry_middleware_does_not_pay_again(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, max_retries=0)
    retry = ModelRetryMiddleware(max_retries=3, initial_delay=0, on_failure="error")
    agent = create_agent(model, middleware=[retry])
    for status, error in ((429, RateLimitedError), (503, ServiceError)):
        endpoint.forget()
        endpoint.reply({"detail": "no"}, status=status)
        with pytest.raises(error):
            driver.invoke(agent, {"messages": question(red)})
        assert len(endpoint.received) == 1


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        pytest.param(200, "<html>", UnexpectedReplyError, id="unreadable"),
        pytest.param(502, {}, ServiceError, id="502"),
        pytest.param(429, {}, RateLimitedError, id="429"),
    ],
)
def test_the_default_retry_policy_of_a_graph_sends_nothing_again(  # noqa: PLR0917 - the table
    status: int, body: Any, error: type[Exception], driver: Any, endpoint: Any, red: Any
) -> None:
    """LangGraph does not read `is_retryable`, but leaves a `RuntimeError` alone."""
    model = ChatPhospho(base_url=endpoint.base_url, max_retries=0)
    graph = StateGraph(MessagesState)
    graph.add_node("look", model_node(model), retry_policy=RetryPolicy(initial_interval=0.01))
    graph.add_edge(START, "look")
    endpoint.reply(body, status=status)
    with pytest.raises(error):
        driver.invoke(graph.compile(), {"messages": question(red)})
    assert len(endpoint.received) == 1


def model_node(model: ChatPhospho) -> RunnableLambda[Any, Any]:
    async def aask(state: Any) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return RunnableLambda(lambda state: {"messages": [model.invoke(state["messages"])]}, aask)


# What LangChain asks of a model besides answers.


def test_tokens_are_guessed_of_the_text_alone_and_without_a_network(
    monkeypatch: pytest.MonkeyPatch, red: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(socket, "socket", refuse)
    model = ChatPhospho(base_url=NOWHERE)
    assert model.get_num_tokens("") == 0
    assert model.get_num_tokens("12345") == 2
    messages = [SystemMessage("12345678"), *question(red, "1234")]
    assert model.get_num_tokens_from_messages(messages) == 3
    assert model.get_num_tokens_from_messages(messages, tools=[{"name": "x"}]) == 3
    with pytest.raises(ConfigurationError, match="custom_get_token_ids"):
        model.get_token_ids("hello")


def test_a_tokenizer_of_ones_own_counts() -> None:
    model = ChatPhospho(base_url=NOWHERE, custom_get_token_ids=lambda text: [*map(ord, text)])
    assert model.get_token_ids("hi") == [104, 105]
    assert model.get_num_tokens("hello") == 5
    assert model.get_num_tokens_from_messages([HumanMessage("hello")]) == 5


def test_the_params_of_a_trace() -> None:
    model = ChatPhospho(base_url=NOWHERE, max_tokens=9, temperature=0.2, stop=["."])
    assert model._get_ls_params() == {
        "ls_provider": "phospho",
        "ls_model_name": "phospho-multimodal",
        "ls_model_type": "chat",
        "ls_temperature": 0.2,
        "ls_max_tokens": 9,
        "ls_stop": ["."],
    }
    of_a_call = model._get_ls_params(
        stop=["!"], model="phospho-multimodal-2", max_tokens=3, temperature=0.9
    )
    assert (of_a_call["ls_model_name"], of_a_call["ls_max_tokens"]) == ("phospho-multimodal-2", 3)
    assert (of_a_call["ls_stop"], of_a_call["ls_temperature"]) == (["!"], 0.9)
    assert model._get_ls_params(max_new_tokens=4)["ls_max_tokens"] == 4
    assert "ls_max_tokens" not in ChatPhospho(base_url=NOWHERE)._get_ls_params()


def test_the_profile_promises_what_there_is() -> None:
    profile = ChatPhospho(base_url=NOWHERE).profile
    assert profile is not None
    assert (profile["max_input_tokens"], profile["max_output_tokens"]) == (4096, 250)
    promised = {name for name, value in profile.items() if value is True}
    assert promised == {
        "text_inputs",
        "text_outputs",
        "image_inputs",
        "image_url_inputs",
        "image_tool_message",
        "temperature",
        "tool_calling",
        "tool_choice",
    }
    assert ChatPhospho(base_url=NOWHERE, profile={"max_input_tokens": 9}).profile == {
        "max_input_tokens": 9
    }


def test_a_trace_tells_the_versions() -> None:
    model = ChatPhospho(base_url=NOWHERE)
    assert model.metadata is not None
    assert model.metadata["lc_versions"]["phospho-multimodal"] == __version__
    assert "langchain-core" in model.metadata["lc_versions"]
    assert (model._llm_type, model.asdict()["_type"]) == ("phospho-chat", "phospho-chat")


def test_a_subclass_is_still_of_this_provider() -> None:
    class ChatReceipts(ChatPhospho):
        """A model of someone's own."""

    assert ChatReceipts(base_url=NOWHERE)._get_ls_params()["ls_provider"] == "phospho"


# The package.


def test_the_package_exports_the_model_and_its_version() -> None:
    assert langchain_phospho.__all__ == [
        "ChatPhospho",
        "DescribeImageTool",
        "PhosphoImageBlobParser",
        "VisionMiddleware",
        "__version__",
    ]
    assert issubclass(langchain_phospho.ChatPhospho, BaseChatModel)


_WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import langchain_phospho
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_a_missing_framework_names_the_extra() -> None:
    done = in_fresh_python(_WITHOUT.format(absent="langchain_core"))
    assert done.stdout.startswith("ImportError "), done.stderr
    assert "phospho-multimodal[langchain]" in done.stdout


@pytest.mark.parametrize("absent", ["langchain_core.callbacks"])
def test_anything_else_that_is_missing_is_told_as_it_is(absent: str) -> None:
    done = in_fresh_python(_WITHOUT.format(absent=absent))
    assert done.stdout.startswith("ModuleNotFoundError "), done.stderr
    assert absent in done.stdout
    assert "langchain]" not in done.stdout
