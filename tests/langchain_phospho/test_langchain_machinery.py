"""What LangChain puts around a model: caches, limits, handlers, retries, traces, batches."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import time
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.exceptions import (
    ModelAuthenticationError,
    ModelRateLimitError,
    OutputParserException,
)
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.rate_limiters import BaseRateLimiter, InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

from fault_server import Connection, FaultServer, Received, answer, status
from fresh_python import in_fresh_python
from langchain_phospho import ChatPhospho
from phospho_multimodal import (
    ImageError,
    PaymentRequiredError,
    RateLimitedError,
    ServiceError,
    Spending,
)
from scripted_chat import ScriptedChat

BROKEN = {"type": "image", "base64": "aGVsbG8=", "mime_type": "image/png"}


def question(*blocks: Any, text: str = "What is this?") -> list[HumanMessage]:
    return [HumanMessage([{"type": "text", "text": text}, *blocks])]


def no_retries(endpoint: Any, **options: Any) -> ChatPhospho:
    return ChatPhospho(base_url=endpoint.base_url, max_retries=0, **options)


# Caches. One is there for repeated calls; `test_configuration` shows what its key depends on.


@pytest.fixture
def cached(endpoint: Any) -> ChatPhospho:
    return ChatPhospho(base_url=endpoint.base_url, cache=InMemoryCache(), spending=Spending())


def test_two_pictures_never_share_a_cached_answer(
    driver: Any, cached: ChatPhospho, endpoint: Any, red: Any, blue: Any
) -> None:
    for _ in range(2):
        for picture in (red, blue):
            answered = driver.invoke(cached, question(picture.block))
            assert answered.response_metadata["images"][0]["sha256"] == picture.sha256
    assert [request.picture for request in endpoint.received] == [red.sha256, blue.sha256]


def test_a_cache_tells_split_embedded_images_by_their_messages_and_not_by_their_pixels(
    driver: Any, cached: ChatPhospho, endpoint: Any, red: Any
) -> None:
    forms = [
        red.block,
        {**red.block, "id": "lc_1"},  # what LangChain's own create_image_block makes anew each time
        {**red.block, "id": "lc_2"},
        {"type": "image_url", "image_url": {"url": red.data_url}},
    ]
    for _ in range(2):
        for block in forms:
            driver.invoke(cached, question(block))
    assert [request.picture for request in endpoint.received] == [red.sha256] * 4


def test_a_cached_answer_repeats_its_metadata_and_charges_nothing(
    driver: Any, cached: ChatPhospho, red: Any
) -> None:
    first, second = (driver.invoke(cached, question(red.block)) for _ in range(2))
    assert second.response_metadata == first.response_metadata
    assert (first.usage_metadata, second.usage_metadata) == (None, {"total_cost": 0})
    assert cached.spending is not None
    assert cached.spending.snapshot().images_billed == 1


def test_a_stream_goes_past_the_cache(
    driver: Any, cached: ChatPhospho, endpoint: Any, red: Any
) -> None:
    for _ in range(2):
        driver.stream(cached, question(red.block))
    assert len(endpoint.received) == 2


def test_an_error_is_not_cached(driver: Any, cached: ChatPhospho, endpoint: Any, red: Any) -> None:
    endpoint.reply({"detail": "no"}, status=422)
    with pytest.raises(Exception, match="422"):
        driver.invoke(cached, question(red.block))
    assert driver.invoke(cached, question(red.block)).text == "You asked: What is this?"


@pytest.fixture
def global_cache() -> Iterator[None]:
    before = get_llm_cache()
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(before)


@pytest.mark.usefixtures("global_cache")
def test_the_global_cache_serves_another_model_of_the_same_settings(
    driver: Any, endpoint: Any, red: Any
) -> None:
    for options in ({}, {}, {"max_retries": 5}, {"cache": False}, {"temperature": 0.5}):
        model = ChatPhospho(base_url=endpoint.base_url, **options)
        driver.invoke(model, question(red.block))
    assert len(endpoint.received) == 3


# Rate limits.


class Counting(BaseRateLimiter):
    """Lets everything through and counts."""

    def __init__(self) -> None:
        self.taken = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.taken += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire()


def test_a_rate_limiter_is_asked_once_for_a_call_and_not_for_a_cached_one(
    driver: Any, endpoint: Any, red: Any
) -> None:
    limiter = Counting()
    model = ChatPhospho(base_url=endpoint.base_url, rate_limiter=limiter, cache=InMemoryCache())
    # LangChain's limiter stands before our retries; requests_per_second counts them all.
    endpoint.reply({"detail": "busy"}, status=503, retry_after="0")
    driver.invoke(model, question(red.block))
    assert (limiter.taken, len(endpoint.received)) == (1, 2)
    driver.invoke(model, question(red.block))
    assert (limiter.taken, len(endpoint.received)) == (1, 2)
    driver.stream(model, question(red.block))
    assert (limiter.taken, len(endpoint.received)) == (2, 3)


def test_langchains_own_rate_limiter_slows_calls_down(driver: Any, endpoint: Any, red: Any) -> None:
    limiter = InMemoryRateLimiter(requests_per_second=20, check_every_n_seconds=0.01)
    model = ChatPhospho(base_url=endpoint.base_url, rate_limiter=limiter)
    started = time.monotonic()
    driver.batch(model, [question(red.block)] * 5)
    assert time.monotonic() - started >= 0.15


# Handlers and traces.


class Heard(BaseCallbackHandler):
    """Writes down what a handler is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.errors: list[BaseException] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.events.append("start")

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.events.append("end")

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append("error")
        self.errors.append(error)


def test_a_handler_hears_of_a_call_once_however_often_it_was_tried(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    heard = Heard()
    endpoint.reply({"detail": "busy"}, status=503, retry_after="0")
    answered = driver.invoke(model, question(red.block), config={"callbacks": [heard]})
    assert heard.events == ["start", "end"]
    assert answered.response_metadata["attempts"] == 2


def test_a_handler_hears_of_an_error_with_what_it_cost(
    driver: Any, endpoint: Any, red: Any
) -> None:
    heard = Heard()
    endpoint.reply({"detail": "later"}, status=429, x_request_id="req-7")
    with pytest.raises(RateLimitedError):
        driver.invoke(no_retries(endpoint), question(red.block), config={"callbacks": [heard]})
    assert heard.events == ["start", "error"]
    (error,) = heard.errors
    assert isinstance(error, ModelRateLimitError)
    assert isinstance(error, RateLimitedError)
    assert (error.attempts, error.request_id, error.images_in_doubt) == (1, "req-7", 0)


def test_no_usage_is_made_up(driver: Any, model: ChatPhospho, red: Any) -> None:
    with get_usage_metadata_callback() as usage:
        driver.invoke(model, question(red.block))
    assert usage.usage_metadata == {}


def test_a_trace_has_the_whole_chain_and_no_key(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, api_key="sk-secret", max_tokens=9)
    traced = RunCollectorCallbackHandler()
    chain = (model | StrOutputParser()).with_config(run_name="caption", tags=["receipts"])
    driver.invoke(chain, question(red.block), config={"callbacks": [traced]})
    (root,) = traced.traced_runs
    assert (root.name, root.tags, root.outputs) == (
        "caption",
        ["receipts"],
        {"output": "You asked: What is this?"},
    )
    asked, _ = root.child_runs
    assert (asked.name, asked.run_type) == ("ChatPhospho", "llm")
    assert asked.extra["metadata"]["ls_provider"] == "phospho"
    assert asked.extra["metadata"]["ls_model_name"] == "phospho-multimodal"
    assert asked.extra["invocation_params"]["max_new_tokens"] == 9
    told = asked.outputs["generations"][0][0]["message"]["kwargs"]["response_metadata"]
    assert told["images"][0]["sha256"] == red.sha256
    assert "sk-secret" not in str(root.to_json() if hasattr(root, "to_json") else vars(root))
    assert "sk-secret" not in str(vars(asked))


def test_a_trace_of_a_failure_tells_the_error(driver: Any, endpoint: Any, red: Any) -> None:
    traced = RunCollectorCallbackHandler()
    endpoint.reply({"detail": "no card"}, status=402)
    with pytest.raises(PaymentRequiredError):
        driver.invoke(no_retries(endpoint), question(red.block), config={"callbacks": [traced]})
    (run,) = traced.traced_runs
    assert "no card" in (run.error or "")
    assert red.base64[:60] not in (run.error or "")


# Retries and fallbacks.


def test_with_retry_multiplies_what_was_tried_already(driver: Any, endpoint: Any, red: Any) -> None:
    """LangChain's own retry takes every exception: it is not needed, and here is what it costs."""
    for _ in range(9):
        endpoint.reply({"detail": "busy"}, status=503, retry_after="0")
    model = ChatPhospho(base_url=endpoint.base_url, max_retries=1)
    again = model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    with pytest.raises(ServiceError) as raised:
        driver.invoke(again, question(red.block))
    assert len(endpoint.received) == 6
    assert raised.value.attempts == 2


def test_with_retry_for_other_errors_alone_tries_nothing_again(
    driver: Any, endpoint: Any, red: Any
) -> None:
    endpoint.reply({"detail": "busy"}, status=503)
    again = no_retries(endpoint).with_retry(
        retry_if_exception_type=(ConnectionResetError,), stop_after_attempt=3
    )
    with pytest.raises(ServiceError) as raised:
        driver.invoke(again, question(red.block))
    assert not raised.value.is_retryable  # type: ignore[attr-defined]
    assert len(endpoint.received) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model.with_retry(wait_exponential_jitter=False),
        lambda model: model.with_fallbacks([model]),
    ],
    ids=["with_retry", "with_fallbacks"],
)
def test_a_batch_of_a_wrapped_model_goes_on_after_a_402_and_that_of_the_model_does_not(
    driver: Any, endpoint: Any, red: Any, wrap: Any
) -> None:
    """LangChain's own batches do: the docstring of `ChatPhospho` says so."""
    model = no_retries(endpoint, max_concurrency=1)
    questions = [question(red.block)] * 3
    config = {"max_concurrency": 1}
    for asked, is_wrapped in ((wrap(model), True), (model, False)):
        endpoint.forget()
        for _ in range(12):
            endpoint.reply({"detail": "no card"}, status=402)
        with pytest.raises(PaymentRequiredError):
            driver.batch(asked, questions, config=config)
        assert (len(endpoint.received) > 1) == is_wrapped


# Middleware of LangChain's.


def test_middleware_summarises_at_a_fraction_of_the_profile(
    driver: Any, endpoint: Any, red: Any
) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, default_image=red.data)
    summaries = SummarizationMiddleware(model, trigger=("fraction", 0.5), keep=("fraction", 0.1))
    driving = ScriptedChat()
    agent = create_agent(driving, middleware=[summaries])
    endpoint.answer("They talked.")
    for words, requests in ((1000, 0), (2500, 1)):
        talk = [HumanMessage("word " * words), AIMessage("Yes."), HumanMessage("And?")]
        driver.invoke(agent, {"messages": talk})
        assert len(endpoint.received) == requests
    assert "They talked." in driving.last


@pytest.mark.parametrize("status", [413, 422])
def test_a_summary_that_is_too_long_is_tried_again_with_less(
    status: int, driver: Any, endpoint: Any, red: Any
) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, default_image=red.data)
    summaries = SummarizationMiddleware(model, trigger=("messages", 3), keep=("messages", 1))
    agent = create_agent(ScriptedChat(), middleware=[summaries])
    endpoint.reply({"detail": "The prompt is too long."}, status=status)
    endpoint.answer("They talked.")
    talk = [HumanMessage("word " * 500), AIMessage("Yes."), HumanMessage("And?")]
    driver.invoke(agent, {"messages": talk})
    first, second = (request.text for request in endpoint.received)
    assert len(second) < len(first)


@pytest.mark.parametrize("status", [402, 429, 503])
def test_a_fallback_gets_the_whole_question(
    status: int, driver: Any, endpoint: Any, red: Any
) -> None:
    first = no_retries(endpoint)
    second = no_retries(endpoint, model="phospho-multimodal-2")
    endpoint.reply({"detail": "no"}, status=status)
    answered = driver.invoke(first.with_fallbacks([second]), question(red.block))
    assert answered.response_metadata["model_name"] == "phospho-multimodal-2"
    assert [request.picture for request in endpoint.received] == [red.sha256] * 2


def test_a_fallback_can_be_for_some_errors_alone(driver: Any, endpoint: Any, red: Any) -> None:
    safe = no_retries(endpoint).with_fallbacks(
        [FakeListChatModel(responses=["busy"])], exceptions_to_handle=(ModelRateLimitError,)
    )
    endpoint.reply({"detail": "later"}, status=429)
    assert driver.invoke(safe, question(red.block)).text == "busy"
    endpoint.reply({"detail": "key"}, status=401)
    with pytest.raises(ModelAuthenticationError):
        driver.invoke(safe, question(red.block))


@tool
def get_weather(place: str) -> str:
    """Tell the weather of a place."""
    return f"It is sunny in {place}."


CALL = json.dumps({"name": "get_weather", "arguments": {"place": "Paris"}})
RECEIPT = {"title": "receipt", "type": "object", "properties": {"total": {"type": "number"}}}


@pytest.fixture
def safe(endpoint: Any) -> Any:
    """A model whose first question fails, with another to fall back on."""
    endpoint.reply({"detail": "busy"}, status=503)
    second = no_retries(endpoint, model="phospho-multimodal-2")
    return no_retries(endpoint).with_fallbacks([second])


def test_a_model_with_a_fallback_offers_tools(
    driver: Any, safe: Any, endpoint: Any, red: Any
) -> None:
    endpoint.answer(CALL)
    answered = driver.invoke(safe.bind_tools([get_weather]), question(red.block))
    assert [(call["name"], call["args"]) for call in answered.tool_calls] == [
        ("get_weather", {"place": "Paris"})
    ]
    assert answered.response_metadata["model_name"] == "phospho-multimodal-2"
    assert [request.picture for request in endpoint.received] == [red.sha256] * 2
    assert all("get_weather" in request.text for request in endpoint.received)


def test_a_model_with_a_fallback_answers_with_an_object(
    driver: Any, safe: Any, endpoint: Any, red: Any
) -> None:
    endpoint.answer('{"total": 42.5}')
    chain = safe.with_structured_output(RECEIPT)
    assert driver.invoke(chain, question(red.block)) == {"total": 42.5}
    assert [request.picture for request in endpoint.received] == [red.sha256] * 2
    assert all("total" in request.text for request in endpoint.received)


def test_an_agent_has_a_model_with_a_fallback(
    driver: Any, safe: Any, endpoint: Any, red: Any
) -> None:
    endpoint.answer(CALL)
    endpoint.answer("Sunny.")
    agent = create_agent(safe, [get_weather])
    outcome = driver.invoke(agent, {"messages": question(red.block)})
    kinds = [message.type for message in outcome["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"]
    assert outcome["messages"][-1].text == "Sunny."
    assert len(endpoint.received) == 3


OWN = {
    name: value.fget if isinstance(value, property) else getattr(ChatPhospho, name)
    for kind in ChatPhospho.__mro__
    if kind.__module__.startswith("langchain_phospho.")
    for name, value in vars(kind).items()
    if not name.startswith("_")
}


@pytest.mark.parametrize("name", sorted(key for key in OWN if inspect.isroutine(OWN[key])))
def test_what_a_method_returns_can_be_asked_at_run_time(name: str) -> None:
    """LangChain asks it of a method that it finds through `with_fallbacks`."""
    assert "return" in get_type_hints(OWN[name])


# Configuration at run time.


def test_another_model_can_be_chosen_at_run_time(driver: Any, endpoint: Any, red: Any) -> None:
    choosable = no_retries(endpoint).configurable_alternatives(
        ConfigurableField(id="who"),
        default_key="phospho",
        fake=FakeListChatModel(responses=["nothing seen"]),
    )
    chosen = {"configurable": {"who": "fake"}}
    assert driver.invoke(choosable, question(red.block), config=chosen).text == "nothing seen"
    assert driver.invoke(choosable, question(red.block)).text == "You asked: What is this?"
    assert len(endpoint.received) == 1


def test_fields_that_were_made_configurable_keep_the_ledger_and_the_address(
    driver: Any, endpoint: Any, red: Any
) -> None:
    ledger = Spending(max_images=2)
    model = no_retries(endpoint, spending=ledger).configurable_fields(
        max_new_tokens=ConfigurableField(id="length"), stop=ConfigurableField(id="stop")
    )
    for length in (5, 6):
        configured = {"configurable": {"length": length, "stop": ["asked"]}}
        assert driver.invoke(model, question(red.block), config=configured).text == "You "
    assert [request.parameters for request in endpoint.received] == [
        {"max_new_tokens": 5},
        {"max_new_tokens": 6},
    ]
    assert ledger.snapshot().images_billed == 2
    with pytest.raises(Exception, match="2 images"):
        driver.invoke(model, question(red.block))


# Batches and streams.


def test_a_batch_can_return_its_errors_in_their_places(
    model: ChatPhospho, endpoint: Any, red: Any, blue: Any
) -> None:
    asked = [question(red.block), question(BROKEN), question(blue.block)]

    async def together() -> list[Any]:
        return await model.abatch(asked, return_exceptions=True)

    for outcomes in (model.batch(asked, return_exceptions=True), asyncio.run(together())):
        assert isinstance(outcomes[0], AIMessage)
        assert isinstance(outcomes[1], ImageError)
        assert isinstance(outcomes[2], AIMessage)
    assert len(endpoint.received) == 4


def test_a_batch_that_raises_has_paid_for_its_other_pictures_and_a_cache_keeps_them(
    endpoint: Any, red: Any, blue: Any
) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, cache=InMemoryCache())
    good = [question(red.block), question(blue.block)]
    with pytest.raises(ImageError):
        model.batch([*good, question(BROKEN)])
    assert len(endpoint.received) == 2
    assert len(model.batch(good)) == 2
    assert len(endpoint.received) == 2


def late(connection: Connection, request: Received) -> None:
    time.sleep(0.2)
    answer()(connection, request)


@pytest.mark.parametrize("end", ["an error", "an error of one", "nobody listens", "cancelled"])
def test_no_more_of_a_batch_is_sent_once_it_has_ended(red: Any, end: str) -> None:
    first = status(402) if "error" in end else answer()

    async def ask(model: ChatPhospho) -> None:
        asked, config = [question(red.block)] * 200, {"max_concurrency": 2}
        if end == "an error":
            await model.abatch(asked, config)
        async for _ in model.abatch_as_completed(asked, config):
            if end == "cancelled":
                await asyncio.sleep(60)
            return

    async def ask_for_a_while(server: FaultServer) -> int:
        model = ChatPhospho(base_url=server.base_url, max_concurrency=2)
        asking = asyncio.ensure_future(ask(model))
        await asyncio.wait([asking], timeout=0.6)
        asking.cancel()
        (outcome,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(outcome, PaymentRequiredError) == ("error" in end)
        sent = len(server.requests)
        await asyncio.sleep(0.4)
        return len(server.requests) - sent

    with FaultServer(first, late).running() as server:
        assert asyncio.run(ask_for_a_while(server)) <= 2


@pytest.mark.parametrize("slow_ones_before", [0, 1])
def test_the_first_error_ends_a_batch_on_threads_too(red: Any, slow_ones_before: int) -> None:
    def very_late(connection: Connection, request: Received) -> None:
        time.sleep(0.8)
        answer()(connection, request)

    def ready_at_once(connection: Connection, request: Received) -> None:
        time.sleep(0.2)
        status(402)(connection, request)

    faults = [*[very_late] * slow_ones_before, ready_at_once, late]
    with FaultServer(*faults).running() as server:
        model = ChatPhospho(base_url=server.base_url, max_concurrency=2)
        with pytest.raises(PaymentRequiredError):
            model.batch([question(red.block)] * 200)
        assert len(server.requests) < 10


@pytest.mark.parametrize("way", ["batch", "abatch", "abatch_as_completed", "abatch of a chain"])
def test_the_first_error_ends_a_batch_of_structured_output(red: Any, way: str) -> None:
    def object_late(connection: Connection, request: Received) -> None:
        time.sleep(0.2)
        answer('{"total": 1.5}')(connection, request)

    schema = {
        "title": "Receipt",
        "description": "A receipt.",
        "type": "object",
        "properties": {"total": {"type": "number"}},
        "required": ["total"],
    }

    async def ask(asked: list[Any], reading: Runnable[Any, Any]) -> None:
        if way == "abatch_as_completed":
            async for _ in reading.abatch_as_completed(asked):
                pass
        elif way == "abatch of a chain":
            await (RunnableLambda(lambda messages: messages) | reading).abatch(asked)
        else:
            await reading.abatch(asked)

    with FaultServer(answer("I see a receipt."), object_late).running() as server:
        model = ChatPhospho(base_url=server.base_url, max_concurrency=8)
        reading, asked = model.with_structured_output(schema), [question(red.block)] * 100

        async def ask_and_stay() -> None:
            with pytest.raises(OutputParserException):
                await ask(asked, reading)
            await asyncio.sleep(0.4)  # what is left behind would go on

        if way == "batch":
            with pytest.raises(OutputParserException):
                reading.batch(asked)
        else:
            asyncio.run(ask_and_stay())
        assert len(server.requests) < 20


def test_an_error_that_is_returned_ends_no_batch(driver: Any, red: Any) -> None:
    with FaultServer(status(402), answer()).running() as server:
        model = ChatPhospho(base_url=server.base_url)
        outcomes = driver.batch(model, [question(red.block)] * 40, return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds.count(AIMessage) == 39
        assert sum(issubclass(kind, PaymentRequiredError) for kind in kinds) == 1


def test_every_question_of_a_batch_has_its_own_config_and_place(
    driver: Any, model: ChatPhospho, red: Any
) -> None:
    asked = [question(red.block, text=f"Question {number}") for number in range(50)]
    seen = [RunCollectorCallbackHandler() for _ in asked]
    configs = [{"callbacks": [handler], "max_concurrency": 7} for handler in seen]
    answers = driver.batch(model, asked, config=configs)
    assert [message.text for message in answers] == [f"You asked: Question {n}" for n in range(50)]
    for number, handler in enumerate(seen):
        (run,) = handler.traced_runs
        assert f"Question {number}" in str(run.inputs)
    assert driver.batch(model, []) == []


def test_a_large_batch_stays_within_the_models_own_concurrency(red: Any) -> None:
    def slow(connection: Connection, request: Received) -> None:
        time.sleep(0.02)
        answer()(connection, request)

    with FaultServer(slow).running() as server:
        model = ChatPhospho(base_url=server.base_url, max_concurrency=4)

        async def together() -> list[Any]:
            answers = await model.abatch([question(red.block)] * 40)
            await model.aclose()
            return answers

        assert len(asyncio.run(together())) == 40
        assert 2 <= server.most_in_flight <= 4
        server.most_in_flight = 0
        assert len(model.batch([question(red.block)] * 40)) == 40
        assert 2 <= server.most_in_flight <= 4
        model.close()


def test_what_is_done_first_comes_first(
    model: ChatPhospho, endpoint: Any, red: Any, blue: Any
) -> None:
    asked = [question(red.block, text="one"), question(blue.block, text="two"), question(BROKEN)]

    async def listen() -> dict[int, Any]:
        coming = model.abatch_as_completed(asked, return_exceptions=True)
        return {index: outcome async for index, outcome in coming}

    for done in (
        dict(model.batch_as_completed(asked, return_exceptions=True)),
        asyncio.run(listen()),
    ):
        assert isinstance(done.pop(2), ImageError)
        assert {index: message.text for index, message in done.items()} == {
            0: "You asked: one",
            1: "You asked: two",
        }


@pytest.mark.filterwarnings("ignore:.*is in beta")
def test_events_of_version_3_of_an_asynchronous_call(
    model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    async def collect() -> tuple[list[Any], Any]:
        stream: Any = await model.astream_events(question(red.block), version="v3")
        return [event["event"] async for event in stream], await stream.output

    events, output = asyncio.run(collect())
    assert (events[0], events[-1]) == ("message-start", "message-finish")
    assert output.text == "You asked: What is this?"
    assert len(endpoint.received) == 1


# Long conversations.


def test_messages_are_trimmed_by_the_model_without_a_network(
    monkeypatch: pytest.MonkeyPatch, red: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(socket, "socket", refuse)
    messages = [
        SystemMessage("Be brief."),
        *question(red.block, text="old " * 100),
        AIMessage("Red."),
        *question(red.block, text="And now?"),
    ]
    kept = trim_messages(
        messages,
        max_tokens=20,
        token_counter=ChatPhospho(base_url="http://127.0.0.1:9"),
        include_system=True,
        start_on="human",
    )
    assert kept == [messages[0], messages[-1]]
    assert kept[-1].content[1] == red.block


# Notebooks.

_UNDER_NEST_ASYNCIO = """
import asyncio, gc, nest_asyncio
nest_asyncio.apply()
from langchain_core.messages import HumanMessage
from langchain_phospho import ChatPhospho
from phospho_multimodal import AsyncPhosphoClient

question = [HumanMessage([{block!r}])]

async def main():
    model = ChatPhospho(base_url={url!r})
    await model.ainvoke(question)
    asyncio.run(model.ainvoke(question))
    del model
    gc.collect()
    closed = ChatPhospho(base_url={url!r})
    await closed.ainvoke(question)
    await closed.aclose()
    client = AsyncPhosphoClient(base_url={url!r})
    await client.describe({data!r})

model = ChatPhospho(base_url={url!r})
for _ in range(2):
    asyncio.run(model.abatch([question] * 3))
asyncio.run(main())
print("done")
"""


@pytest.mark.long
def test_nothing_is_printed_at_the_end_under_nest_asyncio(endpoint: Any, red: Any) -> None:
    """Its event loops are never closed, and finalize no asynchronous generators."""
    code = _UNDER_NEST_ASYNCIO.format(block=red.block, url=endpoint.base_url, data=red.data)
    done = in_fresh_python(code)
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert len(endpoint.received) == 10
