"""Who asks the same about a picture at the same time shares one request, however it is called."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AnyMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from fault_server import Connection, FaultServer, Received, answer, status
from langchain_phospho import ChatPhospho, VisionMiddleware
from langchain_phospho.image_describer import ImageDescriber, ImageQuestion, RecognizedImage
from langchain_phospho.message_images import shown_images
from scripted_chat import ScriptedChat

PATIENCE = 20.0


class Gate:
    """A server that answers when it is told to."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.then = answer()
        self.server = FaultServer(self._behave)

    def _behave(self, connection: Connection, request: Received) -> None:
        self.open.wait(PATIENCE)
        self.then(connection, request)

    @property
    def asked(self) -> list[str]:
        return [request.item["text"].splitlines()[-1] for request in self.server.requests]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    with gate.server.running():
        yield gate
        gate.open.set()


@pytest.fixture
def model(gate: Gate) -> Iterator[ChatPhospho]:
    model = ChatPhospho(base_url=gate.server.base_url, max_retries=0)
    yield model
    model.close()


@pytest.fixture
def agent(model: ChatPhospho) -> Any:
    return create_agent(ScriptedChat(), middleware=[VisionMiddleware(model)])


def ask(picture: Any, text: str = "What?") -> dict[str, Any]:
    return {"messages": [HumanMessage([text, picture.block])]}


def open_when_waited_for(gate: Gate) -> None:
    """Open when the first request is there, and those who would ask too had the time to."""
    gate.server.wait_for_requests(1)
    threading.Timer(0.3, gate.open.set).start()


@pytest.mark.parametrize(
    ("threads", "event_loops", "tasks"), [(8, 0, 0), (0, 1, 8), (3, 3, 1)], ids=str
)
def test_concurrent_callers_share_one_request(  # noqa: PLR0917 - the columns of the table
    threads: int, event_loops: int, tasks: int, gate: Gate, agent: Any, model: ChatPhospho, red: Any
) -> None:
    async def call_in_tasks() -> list[Any]:
        answers = await asyncio.gather(*(agent.ainvoke(ask(red)) for _ in range(tasks)))
        await model.aclose()
        return answers

    with ThreadPoolExecutor(threads + event_loops) as pool:
        waiting = [pool.submit(asyncio.run, call_in_tasks()) for _ in range(event_loops)]
        waiting += [pool.submit(lambda: [agent.invoke(ask(red))]) for _ in range(threads)]
        open_when_waited_for(gate)
        outcomes = [outcome for future in waiting for outcome in future.result()]
    assert {outcome["messages"][-1].text for outcome in outcomes} == {"Yes."}
    assert gate.asked == ["What?"]


def test_parallel_branches_of_a_graph_share_one_request(gate: Gate, agent: Any, red: Any) -> None:
    class Both(TypedDict):
        messages: Annotated[list[AnyMessage], operator.add]
        said: Annotated[list[str], operator.add]

    def branch(state: Both) -> dict[str, Any]:
        return {"said": [agent.invoke({"messages": state["messages"]})["messages"][-1].text]}

    builder = StateGraph(Both)
    for name in ("left", "right"):
        builder.add_node(name, branch)
        builder.add_edge(START, name)
        builder.add_edge(name, END)
    graph = builder.compile(checkpointer=InMemorySaver())
    opener = threading.Thread(target=open_when_waited_for, args=(gate,))
    opener.start()
    outcome = graph.invoke(ask(red), {"configurable": {"thread_id": "1"}})
    opener.join()
    assert outcome["said"] == ["Yes.", "Yes."]
    assert gate.asked == ["What?"]


def test_several_pictures_of_a_turn_are_asked_about_at_once(
    gate: Gate, agent: Any, red: Any, blue: Any
) -> None:
    message = HumanMessage(["What?", red.block, blue.block, red.block])
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(agent.invoke, {"messages": [message]})
        gate.server.wait_for_requests(2)
        gate.open.set()
        outcome.result()
    assert gate.asked == ["What?"] * 2


def test_another_question_is_another_request_since_its_answer_could_tell_of_it(
    gate: Gate, agent: Any, red: Any
) -> None:
    gate.open.set()
    agent.invoke(ask(red, "Is this my salary?"))
    agent.invoke(ask(red, "What is this?"))
    assert gate.asked == ["Is this my salary?", "What is this?"]


def test_a_failure_is_shared_and_not_remembered(gate: Gate, agent: Any, red: Any) -> None:
    gate.then = status(503)
    with ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(agent.invoke, ask(red)) for _ in range(4)]
        open_when_waited_for(gate)
        for outcome in outcomes:
            outcome.result()
    assert len(gate.asked) == 1
    gate.then = answer()
    agent.invoke(ask(red))
    assert len(gate.asked) == 2


def test_one_who_is_cancelled_leaves_the_question_to_those_who_wait(
    gate: Gate, agent: Any, model: ChatPhospho, red: Any
) -> None:
    async def together() -> str:
        first = asyncio.create_task(agent.ainvoke(ask(red)))
        await asyncio.to_thread(gate.server.wait_for_requests, 1)
        second, third = (asyncio.create_task(agent.ainvoke(ask(red))) for _ in range(2))
        await asyncio.sleep(0.2)
        # One who waits is gone, and then the one who asked.
        third.cancel()
        await asyncio.sleep(0.05)
        first.cancel()
        gate.open.set()
        outcome = await second
        assert [isinstance(each, asyncio.CancelledError) for each in await _ends(first, third)] == [
            True,
            True,
        ]
        await model.aclose()
        return str(outcome["messages"][-1].text)

    assert asyncio.run(together()) == "Yes."
    assert gate.asked == ["What?"] * 2


async def _ends(*tasks: asyncio.Task[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_synchronous_call_on_the_thread_of_an_event_loop_does_not_wait_for_it(
    gate: Gate, agent: Any, model: ChatPhospho, red: Any
) -> None:
    async def together() -> None:
        first = asyncio.create_task(agent.ainvoke(ask(red)))
        await asyncio.to_thread(gate.server.wait_for_requests, 1)
        gate.open.set()
        agent.invoke(ask(red))
        await first
        await model.aclose()

    asyncio.run(together())
    assert len(gate.asked) <= 2


def test_one_middleware_serves_one_event_loop_after_another(
    gate: Gate, agent: Any, model: ChatPhospho, red: Any, blue: Any
) -> None:
    gate.open.set()

    async def alone(number: int) -> None:
        await agent.ainvoke(ask(red))
        await agent.ainvoke(ask(blue, f"round {number}"))
        await model.aclose()

    for number in range(3):
        asyncio.run(alone(number))
    assert gate.asked == ["What?", "round 0", "round 1", "round 2"]


def test_the_same_look_twice_in_a_row_is_one_request(
    gate: Gate, model: ChatPhospho, red: Any
) -> None:
    gate.open.set()
    describer = ImageDescriber(model)
    (picture,) = shown_images(HumanMessage([red.block]))
    image = describer.recognize(picture)
    assert isinstance(image, RecognizedImage)
    answers = describer.describe(
        [ImageQuestion(image, "What?"), ImageQuestion(image, "What?"), ImageQuestion(image, "Why?")]
    )
    assert [answer.text for answer in answers] == [  # type: ignore[union-attr]
        "You asked: What?",
        "You asked: What?",
        "You asked: Why?",
    ]
    assert sorted(gate.asked) == ["What?", "Why?"]


def test_memory_does_not_grow_for_ever(
    gate: Gate, model: ChatPhospho, red: Any, blue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langchain_phospho.image_describer._MOST_ANSWERS", 1)
    monkeypatch.setattr("langchain_phospho.image_describer._MOST_KEYS", 1)
    gate.open.set()
    describer = ImageDescriber(model)
    for picture in (red, blue, red):
        (shown,) = shown_images(HumanMessage([picture.block]))
        image = describer.recognize(shown)
        assert isinstance(image, RecognizedImage)
        describer.describe([ImageQuestion(image, "What?")])
    assert (len(describer._answers), len(describer._keys)) == (1, 1)
    assert len(gate.asked) == 3
