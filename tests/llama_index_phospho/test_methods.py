"""The eight methods of both classes: what is asked, what comes back, which events fire."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.multi_modal_llms import MultiModalLLM

from fault_server import FaultServer, answer
from llama_index_phospho import Phospho, PhosphoMultiModal
from phospho_multimodal import (
    AsyncPhosphoClient,
    ConfigurationError,
    MissingImageError,
    PhosphoClient,
)

Ask = Callable[..., list[Any]]


@pytest.fixture(params=[Phospho, PhosphoMultiModal])
def kind(request: pytest.FixtureRequest) -> type[Phospho]:
    return request.param


class Callbacks(BaseCallbackHandler):
    """Keeps every event of the callback manager."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.started: list[tuple[CBEventType, Any]] = []
        self.ended: list[tuple[CBEventType, Any]] = []

    def on_event_start(
        self, event_type: CBEventType, payload: Any = None, *args: Any, **kwargs: Any
    ) -> str:
        self.started.append((event_type, payload))
        return "id"

    def on_event_end(
        self, event_type: CBEventType, payload: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        self.ended.append((event_type, payload))

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        pass


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    root, handler = get_dispatcher(), SimpleSpanHandler()
    before = list(root.span_handlers)
    root.add_span_handler(handler)
    yield handler
    root.span_handlers = before


def text_of(response: Any) -> str:
    return response.message.content if hasattr(response, "message") else response.text


def test_both_classes_are_llms_and_one_is_multimodal_too() -> None:
    assert issubclass(Phospho, FunctionCallingLLM)
    assert issubclass(PhosphoMultiModal, (Phospho, LLM))
    assert issubclass(PhosphoMultiModal, MultiModalLLM)
    assert PhosphoMultiModal.__mro__.index(LLM) < PhosphoMultiModal.__mro__.index(MultiModalLLM)
    assert "multi" in PhosphoMultiModal.class_name()


def test_the_metadata_plans_one_image_for_each_request(llm: Any) -> None:
    metadata = llm.metadata
    assert (metadata.context_window, metadata.num_output) == (5000, 200)
    assert (metadata.is_chat_model, metadata.is_function_calling_model) == (True, False)
    assert metadata.model_name == "phospho-multimodal"


def test_a_method_asks_and_answers(
    ask: Ask, method: str, llm: Any, *, server: FaultServer, picture: bytes
) -> None:
    digest = hashlib.sha256(picture).hexdigest()
    (response,) = ask(llm, "What is this?", picture)
    assert text_of(response) == "You asked: What is this?"
    assert response.delta == (text_of(response) if "stream" in method else None)
    assert response.raw["images"][0]["sha256"] == digest
    assert {"model_name", "images_billed", "cost_usd", "attempts", "image_policy"} <= {
        *response.raw
    }
    (request,) = server.requests
    assert request.item["text"] == "What is this?"
    assert request.image == picture
    assert request.headers["authorization"].startswith("Bearer sk-")


def test_a_method_uses_the_client_of_its_kind(
    ask: Ask, method: str, llm: Any, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    converse, aconverse = PhosphoClient.converse, AsyncPhosphoClient.converse

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append("sync")
        return converse(self, *args, **kwargs)

    async def arecorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append("async")
        return await aconverse(self, *args, **kwargs)

    monkeypatch.setattr(PhosphoClient, "converse", recorded)
    monkeypatch.setattr(AsyncPhosphoClient, "converse", arecorded)
    ask(llm, "What is this?", picture)
    assert used == ["async" if method.startswith("a") else "sync"]


def test_events_fire_exactly_once(
    ask: Ask,
    method: str,
    make: Callable[..., Any],
    *,
    picture: bytes,
    events: Any,
    spans: SimpleSpanHandler,
) -> None:
    callbacks = Callbacks()
    llm = make(callback_manager=CallbackManager([callbacks]))
    (response,) = ask(llm, "What is this?", picture)
    what = "Chat" if "chat" in method else "Completion"
    during = [f"LLM{what}InProgressEvent"] if "stream" in method else []
    assert events.names() == [f"LLM{what}StartEvent", *during, f"LLM{what}EndEvent"]
    assert text_of(events.seen[-1].response) == text_of(response)
    assert [kind for kind, _ in callbacks.started] == [CBEventType.LLM]
    assert [kind for kind, _ in callbacks.ended] == [CBEventType.LLM]
    of_us = [span.id_ for span in spans.completed_spans if f".{method}-" in span.id_]
    assert len(of_us) == 1
    assert spans.open_spans == {}


def test_events_of_a_failure_end_too(
    ask: Ask, make: Callable[..., Any], server: FaultServer
) -> None:
    callbacks = Callbacks()
    llm = make(callback_manager=CallbackManager([callbacks]))
    with pytest.raises(MissingImageError):
        ask(llm, "No image here")
    # Core also tells an exception as an event of its own kind.
    (_,) = [payload for kind, payload in callbacks.started if kind is CBEventType.LLM]
    (ended,) = [payload for kind, payload in callbacks.ended if kind is CBEventType.LLM]
    assert isinstance(ended[EventPayload.EXCEPTION], MissingImageError)
    assert server.requests == []


def test_a_stream_that_is_not_read_asks_nothing(
    llm: Any, server: FaultServer, picture: bytes
) -> None:
    llm.stream_complete("What is this?", image_documents=[picture])
    assert server.requests == []


def test_values_of_a_call_win(
    ask: Ask, make: Callable[..., Any], server: FaultServer, picture: bytes
) -> None:
    llm = make(max_tokens=9, temperature=0, top_p=0.5, repetition_penalty=1.2)
    ask(llm, "One", picture)
    given = {"max_tokens": 5, "temperature": 0.7, "model": "phospho-multimodal-7b"}
    ask(llm, "Two", picture, **given, top_p=None)
    first, second = (
        {key: value for key, value in request.item.items() if key not in {"text", "image_url"}}
        for request in server.requests
    )
    common = {"top_p": 0.5, "repetition_penalty": 1.2}
    assert first == {"max_new_tokens": 9, "temperature": 0.1, **common}
    assert second == {"max_new_tokens": 5, "temperature": 0.7, **common}
    assert b'"model":"phospho-multimodal-7b"' in server.requests[1].body


def test_only_what_was_set_is_sent(llm: Any, server: FaultServer, picture: bytes) -> None:
    llm.complete("What is this?", [picture])
    assert server.requests[0].item.keys() == {"text", "image_url"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temprature": 0.5}, "temprature"),
        ({"image_documents_": []}, "image_documents_"),
        ({"temperature": 1.5}, "temperature"),
        ({"max_tokens": 251}, "max_new_tokens"),
        ({"model": "gpt-4o"}, "gpt-4o"),
        ({"multi_image": "all"}, "multi_image"),
        ({"max_images": 0}, "max_images"),
    ],
)
def test_a_wrong_keyword_is_refused_before_anything_is_sent(
    ask: Ask, llm: Any, *, server: FaultServer, picture: bytes, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        ask(llm, "What is this?", picture, **given)
    assert server.requests == []


@pytest.mark.parametrize("stop", ["|", ["", "~", "|"]])
def test_stop_cuts_the_answer(
    ask: Ask, make: Callable[..., Any], server: FaultServer, picture: bytes, stop: Any
) -> None:
    server.script = [answer("before|after")]
    (of_the_model,) = ask(make(stop=stop), "What is this?", picture)
    (of_the_call,) = ask(make(stop="nothing"), "What is this?", picture, stop=stop)
    assert text_of(of_the_model) == text_of(of_the_call) == "before"


def test_complete_takes_its_second_argument_for_either_kind_of_llm(
    llm: Any, server: FaultServer, picture: bytes
) -> None:
    llm.complete("One", [ImageBlock(image=picture)])
    llm.complete("Two", True, [ImageBlock(image=picture)])  # noqa: FBT003 - as an LLM is called
    llm.complete(prompt="Three", formatted=True, image_documents=(picture,))
    llm.complete("Four", picture)
    assert [request.item["text"] for request in server.requests] == ["One", "Two", "Three", "Four"]
    assert {request.image for request in server.requests} == {picture}


def test_images_given_twice_are_an_error(llm: Any, server: FaultServer, picture: bytes) -> None:
    with pytest.raises(ConfigurationError, match="Pass them once"):
        llm.complete("Which?", [picture], image_documents=[picture])
    assert server.requests == []


def test_one_model_serves_one_loop_after_another(
    llm: Any, server: FaultServer, picture: bytes
) -> None:
    for _ in range(3):
        assert asyncio.run(llm.acomplete("Again?", image_documents=[picture])).text
    assert len(server.requests) == 3


def test_one_model_serves_many_threads(llm: Any, server: FaultServer, picture: bytes) -> None:
    failures: list[BaseException] = []

    def ask_once() -> None:
        try:
            llm.complete("All at once", [picture])
        except BaseException as failure:  # noqa: BLE001 - reported below
            failures.append(failure)

    threads = [threading.Thread(target=ask_once) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(server.requests) == 8


async def test_after_closing_a_call_opens_new_connections(
    llm: Any, server: FaultServer, picture: bytes
) -> None:
    llm.complete("One", [picture])
    llm.close()
    llm.complete("Two", [picture])
    await llm.acomplete("Three", [picture])
    await llm.aclose()
    await asyncio.to_thread(server.wait_until_idle)
    await llm.acomplete("Four", [picture])
    assert len(server.requests) == 4
    await llm.aclose()
