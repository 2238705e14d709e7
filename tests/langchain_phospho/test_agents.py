"""Agents of LangChain and graphs of LangGraph that this model drives, with what each step costs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain.agents.structured_output import (
    ProviderStrategy,
    StructuredOutputValidationError,
    ToolStrategy,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, create_model
from typing_extensions import TypedDict

from langchain_phospho import ChatPhospho
from phospho_multimodal import NoToolCallError


class Weather(BaseModel):
    """The weather of a place."""

    place: str
    degrees: int


@tool
def get_weather(place: str) -> str:
    """Tell the weather of a place."""
    return f"It is sunny in {place}."


@tool
async def get_tide(place: str) -> str:
    """Tell the tide of a place."""
    return f"It is low in {place}."


@tool
def refresh() -> str:
    """Look again."""
    pytest.fail("no model asked for this")


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


PARIS = call("get_weather", place="Paris")
PARIS_WEATHER = call("Weather", place="Paris", degrees=21)


def asked(picture: Any, text: str = "How is the weather here?") -> dict[str, Any]:
    return {"messages": [HumanMessage([{"type": "text", "text": text}, picture.block])]}


def last_line(request: Any) -> str:
    return str(request.text.splitlines()[-1])


@pytest.fixture
def script(endpoint: Any) -> Iterator[Any]:
    """Queues answers; all of them have to be asked for."""

    def queue(*answers: str) -> None:
        for answer in answers:
            endpoint.answer(answer)

    yield queue
    assert not endpoint.replies


def test_an_agent_calls_a_tool_and_answers(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(f"Let me look.\n{PARIS}", "Sunny, with a red square.")
    agent = create_agent(model, [get_weather], system_prompt="Be brief.")
    outcome = driver.invoke(agent, asked(red))
    kinds = [type(message) for message in outcome["messages"]]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert outcome["messages"][-1].content == "Sunny, with a red square."
    assert [request.picture for request in endpoint.received] == [red.sha256] * 2
    assert endpoint.received[0].text.splitlines()[0] == "Be brief."
    assert endpoint.received[1].text.splitlines()[-3:] == [
        "User: How is the weather here?",
        f"Assistant: {PARIS}",
        "Tool (get_weather): It is sunny in Paris.",
    ]


def test_a_loop_of_several_steps(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(PARIS, call("get_weather", place="Brest"), "Both are sunny.")
    outcome = driver.invoke(create_agent(model, [get_weather]), asked(red))
    assert outcome["messages"][-1].content == "Both are sunny."
    assert last_line(endpoint.received[2]) == "Tool (get_weather): It is sunny in Brest."
    ids = [message.tool_call_id for message in outcome["messages"] if message.type == "tool"]
    assert len(set(ids)) == 2


def test_an_asynchronous_tool(model: ChatPhospho, endpoint: Any, script: Any, red: Any) -> None:
    script(call("get_tide", place="Brest"), "It is low.")
    outcome = asyncio.run(create_agent(model, [get_tide]).ainvoke(asked(red)))
    assert outcome["messages"][-1].content == "It is low."
    assert last_line(endpoint.received[1]) == "Tool (get_tide): It is low in Brest."


def test_a_picture_that_a_tool_returned_is_what_the_next_step_is_about(
    driver: Any, model: ChatPhospho, *, endpoint: Any, script: Any, red: Any, blue: Any
) -> None:
    @tool
    def take_picture(where: str) -> list[dict[str, Any]]:
        """Take a picture."""
        return [{"type": "text", "text": f"from the {where}"}, blue.block]

    script(call("take_picture", where="roof"), "It is blue.")
    outcome = driver.invoke(create_agent(model, [take_picture]), asked(red))
    assert outcome["messages"][-1].content == "It is blue."
    assert [request.picture for request in endpoint.received] == [red.sha256, blue.sha256]
    assert last_line(endpoint.received[1]) == "Tool (take_picture): from the roof"
    assert outcome["messages"][-1].response_metadata["images_omitted"] == 1


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (PARIS[:-10], "place: Field required"),
        ('{"name": "get_weather", "arguments": {"place": Paris}}', "place: Field required"),
        (call("get_weather"), "place: Field required"),
        ("{'name': 'get_weather', 'arguments': {'place': 'Par", "place: Field required"),
        ('{name: "get_weather", arguments: {place: "Paris"}}', "place: Field required"),
    ],
    ids=["cut off", "no JSON", "an argument is missing", "cut off in single quotes", "no quotes"],
)
def test_a_bad_call_is_told_to_the_model_which_then_does_better(
    bad: str, told: str, *, driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(bad, PARIS, "Sunny.")
    outcome = driver.invoke(create_agent(model, [get_weather]), asked(red))
    assert outcome["messages"][-1].content == "Sunny."
    assert told in endpoint.received[1].text
    assert len(endpoint.received) == 3


def test_a_bad_call_that_stays_bad_ends_the_loop_after_three_images(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(*[PARIS[:-10]] * 3)
    outcome = driver.invoke(create_agent(model, [get_weather]), asked(red))
    last = outcome["messages"][-1]
    assert (last.content, last.tool_calls) == (PARIS[:-10], [])
    assert last.invalid_tool_calls[0]["name"] == "get_weather"
    assert len(endpoint.received) == 3


def test_a_broken_call_of_a_tool_without_arguments_is_not_run(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    broken = '{"name": "refresh", "arguments": {"where": "the ro'
    script(broken)
    outcome = driver.invoke(create_agent(model, [refresh]), asked(red))
    assert outcome["messages"][-1].content == broken
    assert len(endpoint.received) == 1


def test_of_several_calls_at_once_the_first_is_made(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(f"[{PARIS}, {call('get_weather', place='Brest')}]", "Sunny.")
    outcome = driver.invoke(create_agent(model, [get_weather]), asked(red))
    _, first, result, _ = outcome["messages"]
    assert first.response_metadata["tool_calls_omitted"] == 1
    assert result.content == "It is sunny in Paris."


# Structured answers.


@pytest.mark.parametrize("response_format", [ToolStrategy(Weather), Weather], ids=["tool", "auto"])
def test_a_structured_answer_by_a_tool(
    response_format: Any, driver: Any, model: ChatPhospho, *, endpoint: Any, script: Any, red: Any
) -> None:
    script(PARIS, PARIS_WEATHER)
    agent = create_agent(model, [get_weather], response_format=response_format)
    outcome = driver.invoke(agent, asked(red))
    assert outcome["structured_response"] == Weather(place="Paris", degrees=21)
    assert len(endpoint.received) == 2
    assert "Call one of the tools now." in endpoint.received[0].text


def test_a_structured_answer_without_a_call_around_it(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script('```json\n{"place": "Paris", "degrees": 21}\n```')
    agent = create_agent(model, response_format=ToolStrategy(Weather))
    outcome = driver.invoke(agent, asked(red))
    assert outcome["structured_response"] == Weather(place="Paris", degrees=21)


class Tide(BaseModel):
    """The tide of a place."""

    place: str
    metres: float


class WeatherDict(TypedDict):
    """The weather of a place."""

    place: str
    degrees: int


@dataclass
class WeatherData:
    """The weather of a place."""

    place: str
    degrees: int


SCHEMA = Weather.model_json_schema()
BARE = {"place": "Paris", "degrees": 21}


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        (Weather, Weather(**BARE)),
        (ToolStrategy(Weather), Weather(**BARE)),
        (ToolStrategy(Tide | Weather), Weather(**BARE)),
        (ProviderStrategy(Weather), Weather(**BARE)),
        (WeatherDict, BARE),
        (WeatherData, WeatherData(**BARE)),
        (SCHEMA, BARE),
    ],
    ids=["class", "tool", "one of two", "provider", "TypedDict", "dataclass", "JSON schema"],
)
@pytest.mark.parametrize(
    "reply", ["%s", "```json\n%s\n```", '{"weather": %s}', f"{'It is sunny here. ' * 5}%s Bye."]
)
def test_a_structured_answer_beside_a_tool_is_taken_as_the_plain_object(
    reply: str,
    response_format: Any,
    expected: Any,
    *,
    driver: Any,
    model: ChatPhospho,
    endpoint: Any,
    script: Any,
    red: Any,
) -> None:
    script(PARIS, reply % json.dumps(BARE))
    agent = create_agent(model, [get_weather, refresh], response_format=response_format)
    assert driver.invoke(agent, asked(red))["structured_response"] == expected
    assert len(endpoint.received) == 2


def test_the_arguments_of_a_tool_alone_do_not_run_it_beside_a_structured_answer(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script('{"place": "Paris"}')
    agent = create_agent(model, [get_weather], response_format=ToolStrategy(Weather))
    with pytest.raises(NoToolCallError, match="it called none"):
        driver.invoke(agent, asked(red))
    assert len(endpoint.received) == 1


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "Pump X", "parameters": {"flow": "3 l/min", "power": "40 W"}}',
        '{"name": "nope", "arguments": {"place": "Paris"}}',
        '{"name": "get_weather", "type": "button"}',
        'The code on the screen is {"action": "submit", "args": ["a"]}',
        '{"name": "get_weather", "parameters": {"type": "object", "properties": {}}}',
        f"The screenshot shows a terminal, in which somebody has written this: {PARIS}",
        f"<think>I could call {PARIS}, but no.</think>It is sunny.",
    ],
)
def test_what_is_no_call_is_the_answer_of_an_agent(
    answer: str, *, driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(answer)
    outcome = driver.invoke(create_agent(model, [get_weather]), asked(red))
    assert [message.type for message in outcome["messages"]] == ["human", "ai"]
    assert outcome["messages"][-1].content == answer
    assert len(endpoint.received) == 1


def test_a_structured_answer_that_was_wrong_once(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(call("Weather", place="Paris", degrees="mild"), PARIS_WEATHER[:-8], PARIS_WEATHER)
    agent = create_agent(model, response_format=ToolStrategy(Weather))
    outcome = driver.invoke(agent, asked(red))
    assert outcome["structured_response"] == Weather(place="Paris", degrees=21)
    assert len(endpoint.received) == 3


@pytest.mark.parametrize(
    ("replies", "images"),
    [
        (["It is sunny."], 1),
        ([PARIS, "It is sunny."], 2),
        ([PARIS_WEATHER[:-8]] * 3, 3),
        ([call("nope")] * 3, 3),
        ([call("Weather"), call("nope"), PARIS_WEATHER[:-8]], 3),
        ([call("Weather", place="Paris", degrees="mild")] * 3, 3),
        ([call("Weather"), "It is sunny."], 2),
    ],
    ids=[
        "prose",
        "prose later",
        "always cut off",
        "never a tool",
        "all of it",
        "always of a wrong type",
        "prose at last",
    ],
)
@pytest.mark.parametrize("retries", [0, 3])
def test_a_model_that_never_makes_the_forced_call_costs_three_images_at_most(
    retries: int,
    replies: list[str],
    images: int,
    *,
    driver: Any,
    model: ChatPhospho,
    endpoint: Any,
    script: Any,
    red: Any,
) -> None:
    script(*replies)
    retry = ModelRetryMiddleware(max_retries=retries, initial_delay=0, on_failure="error")
    agent = create_agent(
        model, [get_weather], response_format=ToolStrategy(Weather), middleware=[retry]
    )
    with pytest.raises(NoToolCallError, match="Images billed: 1"):
        driver.invoke(agent, asked(red))
    assert len(endpoint.received) == images


class Part(BaseModel):
    """A part of something."""

    number: int


class Choice(BaseModel):
    """One value, of the kind that a test is about."""

    value: Any


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int | None, "mild"),
        (int | str, [1]),
        (int, 21.5),
        (Literal["sun", "rain"], "fog"),
        (list[int], ["mild"]),
        (dict[str, int], {"noon": "mild"}),
        (Part, {"number": "one"}),
        (Part, {}),
        (list[Part], [{"number": 1}, {"number": "two"}]),
    ],
    ids=str,
)
def test_arguments_that_a_schema_can_never_take_end_the_loop_after_three_images(
    kind: Any, value: Any, *, driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    wanted = create_model("Wanted", __base__=Choice, value=(kind, ...))
    script(*[call("Wanted", value=value)] * 3)
    agent = create_agent(model, response_format=ToolStrategy(wanted))
    with pytest.raises(NoToolCallError, match="a wrong type or value of value"):
        driver.invoke(agent, asked(red))
    assert len(endpoint.received) == 3


def test_a_number_that_a_tool_takes_as_text_is_given_as_text(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(call("get_weather", place=75001), "Sunny.")
    outcome = driver.invoke(create_agent(model, [get_weather]), asked(red))
    _, first, result, _ = outcome["messages"]
    assert result.content == "It is sunny in 75001."
    assert first.response_metadata["raw_reply"] == call("get_weather", place=75001)
    assert len(endpoint.received) == 2


def test_a_structured_answer_by_the_provider(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(PARIS, 'Here:\n```json\n{"place": "東京", "degrees": 21}\n```')
    agent = create_agent(model, [get_weather], response_format=ProviderStrategy(Weather))
    outcome = driver.invoke(agent, asked(red))
    assert outcome["structured_response"] == Weather(place="東京", degrees=21)
    assert outcome["messages"][-1].content == '{"place": "東京", "degrees": 21}'
    assert "Its JSON schema:" in endpoint.received[0].text
    script("It is sunny.")
    with pytest.raises(StructuredOutputValidationError):
        driver.invoke(agent, asked(red))


# Graphs and streams.


def test_a_graph_of_ones_own(
    driver: Any, model: ChatPhospho, *, endpoint: Any, script: Any, red: Any, blue: Any
) -> None:
    @tool
    def take_picture() -> list[dict[str, Any]]:
        """Take a picture."""
        return [blue.block]

    bound = model.bind_tools([take_picture])
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([take_picture]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    script(call("take_picture"), "It is blue.")
    outcome = driver.invoke(graph.compile(), asked(red))
    assert outcome["messages"][-1].content == "It is blue."
    assert [request.picture for request in endpoint.received] == [red.sha256, blue.sha256]


def test_messages_are_streamed(
    driver: Any, model: ChatPhospho, endpoint: Any, script: Any, red: Any
) -> None:
    script(PARIS, "Sunny.")
    agent = create_agent(model, [get_weather])
    parts = [part for part, _ in driver.stream(agent, asked(red), stream_mode="messages")]
    first, result, last = parts
    (made,) = first.tool_calls
    assert (made["name"], made["args"]) == ("get_weather", {"place": "Paris"})
    # Python 3.10 does not tell asynchronous steps who listens: there the message comes whole.
    assert isinstance(first, AIMessageChunk) or sys.version_info < (3, 11)
    assert (result.content, last.content) == ("It is sunny in Paris.", "Sunny.")
    assert len(endpoint.received) == 2
