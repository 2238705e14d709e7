"""Objects instead of text: what is asked for, what is read, and what a wrong answer costs."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import pickle
from typing import Annotated, Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field, RootModel
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import NotRequired, TypedDict

import structured_replies
from langchain_phospho import ChatPhospho
from phospho_multimodal import ConfigurationError
from structured_replies import FULL, READABLE, UNREADABLE, Node, Pet

METHODS = ["json_schema", "function_calling", "json_mode"]
RECEIPT = {"shop": "Café Lumière", "total": 42.5}
REPLY = json.dumps(RECEIPT, ensure_ascii=False)


class Receipt(BaseModel):
    """What a receipt says."""

    shop: str = Field(description="Who sells")
    total: float


class ReceiptV1(BaseModelV1):
    """What a receipt says."""

    shop: str
    total: float


class ReceiptDict(TypedDict):
    """What a receipt says."""

    shop: Annotated[str, ..., "Who sells"]
    total: Annotated[float, ..., "How much"]


SCHEMA = {
    "title": "receipt",
    "description": "What a receipt says.",
    "type": "object",
    "properties": {"shop": {"type": "string"}, "total": {"type": "number"}},
    "required": ["shop", "total"],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "receipt",
        "description": "What a receipt says.",
        "parameters": {name: SCHEMA[name] for name in ("type", "properties", "required")},
    },
}
SCHEMAS = {
    "pydantic": (Receipt, Receipt(**RECEIPT)),
    "pydantic v1": (ReceiptV1, ReceiptV1(**RECEIPT)),
    "TypedDict": (ReceiptDict, RECEIPT),
    "JSON schema": (SCHEMA, RECEIPT),
    "OpenAI tool": (TOOL, RECEIPT),
}


def ask(picture: Any) -> list[Any]:
    return [HumanMessage(["What does it say?", picture.block])]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("strict", [None, True, False])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_object_comes_of_every_schema_by_every_method(
    schema: str, method: Any, strict: bool | None, *, driver: Any, endpoint: Any, red: Any
) -> None:
    wanted, expected = SCHEMAS[schema]
    model = ChatPhospho(base_url=endpoint.base_url)
    chain = model.with_structured_output(wanted, method=method, strict=strict)
    endpoint.answer(f"Here it is:\n```json\n{REPLY}\n```")
    endpoint.answer(REPLY)
    assert driver.invoke(chain, ask(red)) == expected
    assert driver.stream(chain, ask(red)) == [expected]
    assert [request.picture for request in endpoint.received] == [red.sha256] * 2


@pytest.mark.parametrize(
    ("method", "told", "hidden"),
    [
        ("json_schema", "Its JSON schema: {", "tools"),
        ("function_calling", "Call the tool Receipt now.", "JSON schema"),
        ("json_mode", "Answer with one JSON object and nothing else.\nUser:", "Who sells"),
    ],
)
def test_what_the_model_is_told(
    method: Any, told: str, hidden: str, *, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    endpoint.answer(REPLY)
    driver.invoke(model.with_structured_output(Receipt, method=method), ask(red))
    (request,) = endpoint.received
    assert told in request.text
    assert hidden not in request.text
    assert ("Who sells" in request.text) == (method != "json_mode")
    assert request.text.endswith("User: What does it say?")


def test_the_raw_message_and_its_cost_come_along(
    method: Any, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    chain = model.with_structured_output(Receipt, method=method, include_raw=True)
    endpoint.answer(REPLY)
    answer = driver.invoke(chain, ask(red))
    assert answer.keys() == {"raw", "parsed", "parsing_error"}
    assert (answer["parsed"], answer["parsing_error"]) == (Receipt(**RECEIPT), None)
    raw = answer["raw"]
    assert isinstance(raw, AIMessage)
    if method == "function_calling":
        assert (raw.tool_calls[0]["name"], raw.tool_calls[0]["args"]) == ("Receipt", RECEIPT)
    else:
        assert json.loads(raw.text) == RECEIPT
    assert raw.response_metadata["raw_reply"] == REPLY
    assert (raw.response_metadata["images_billed"], raw.response_metadata["repairs"]) == (1, 0)


WRONG = {
    "prose": ("The total is 42.50.", "no whole JSON object"),
    "nothing": ("", "no whole JSON object"),
    "cut off": ('{"shop": "Café Lum', "no whole JSON object"),
    "a list": ("[1, 2]", "no whole JSON object"),
    "another object": ('{"sum": 1}', "shop"),
    "cut off as a call": ('{"name": "Receipt", "arguments": {"shop": "Caf', None),
    "another tool": ('{"name": "Invoice", "arguments": {"shop": "x", "total": 1}}', None),
}


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_such_object_is_an_error_with_the_text(
    wrong: str,
    schema: str,
    method: Any,
    *,
    driver: Any,
    model: ChatPhospho,
    endpoint: Any,
    red: Any,
) -> None:
    reply, says = WRONG[wrong]
    wanted, _ = SCHEMAS[schema]
    for _ in range(3):
        endpoint.answer(reply)
    chain = model.with_structured_output(wanted, method=method)
    with pytest.raises(OutputParserException, match=says) as raised:
        driver.invoke(chain, ask(red))
    assert raised.value.llm_output == reply
    assert "Images billed: 1." in str(raised.value)
    with pytest.raises(OutputParserException):
        driver.stream(chain, ask(red))
    quiet = model.with_structured_output(wanted, method=method, include_raw=True)
    answer = driver.invoke(quiet, ask(red))
    assert answer["parsed"] is None
    assert isinstance(answer["parsing_error"], OutputParserException)
    assert answer["raw"].response_metadata["raw_reply"] == reply
    assert len(endpoint.received) == 3


def test_a_wrong_answer_is_repaired_as_often_as_that_was_paid_for(
    method: Any, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    chain = model.with_structured_output(Receipt, method=method, include_raw=True, max_repairs=2)
    for reply in ("It says a lot.", '{"shop": "Café Lumière", "total": "a lot"}', REPLY):
        endpoint.answer(reply)
    answer = driver.invoke(chain, ask(red))
    assert answer["parsed"] == Receipt(**RECEIPT)
    metadata = answer["raw"].response_metadata
    assert (metadata["images_billed"], metadata["attempts"], metadata["repairs"]) == (3, 3, 2)
    assert metadata["cost_usd"] == pytest.approx(0.03)
    assert [request.picture for request in endpoint.received] == [red.sha256] * 3
    lines = endpoint.received[-1].text.splitlines()
    assert "Assistant: It says a lot." in lines
    assert lines[-1].startswith("User: That is not what was asked for: total: ")
    assert lines[-1].endswith("Answer with the JSON object alone.")


def test_repairs_end(driver: Any, model: ChatPhospho, endpoint: Any, red: Any) -> None:
    for reply in ("One.", "Two.", "Three."):
        endpoint.answer(reply)
    chain = model.with_structured_output(Receipt, max_repairs=1)
    with pytest.raises(OutputParserException, match="Images billed: 2") as raised:
        driver.invoke(chain, ask(red))
    assert raised.value.llm_output == "Two."
    assert len(endpoint.received) == 2


def test_json_is_read_as_json(driver: Any, model: ChatPhospho, endpoint: Any, red: Any) -> None:
    class Visit(BaseModel):
        """When, and where on the map."""

        model_config = {"strict": True}
        day: dt.date
        place: tuple[int, int]

    endpoint.answer('{"day": "2026-11-22", "place": [1, 2]}')
    visit = driver.invoke(model.with_structured_output(Visit), ask(red))
    assert visit == Visit(day=dt.date(2026, 11, 22), place=(1, 2))


@pytest.mark.parametrize(
    ("schema", "options", "says"),
    [
        (Receipt, {"method": "grammar"}, "method must be .*got 'grammar'"),
        (Receipt, {"max_repairs": -1}, "max_repairs must be .*got -1"),
        ({"title": "totals", "type": "array", "items": {}}, {}, "does not describe an object"),
        ({"title": "receipt", "$ref": "#/$defs/receipt"}, {}, "does not describe an object"),
        (RootModel[list[str]], {}, "does not describe an object"),
        ({"type": "object", "properties": {"shop": {}}}, {}, "cannot read the schema.*'title' key"),
    ],
)
def test_what_cannot_be_asked_for_is_told_before_anything_is_sent(
    schema: Any, options: dict[str, Any], says: str, model: ChatPhospho
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        model.with_structured_output(schema, **options)


def test_keywords_of_a_call_are_sent_and_wrong_ones_refused(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    endpoint.answer(REPLY)
    driver.invoke(model.with_structured_output(Receipt, max_tokens=9), ask(red))
    assert endpoint.received[0].parameters == {"max_new_tokens": 9, "repetition_penalty": 1.0}
    with pytest.raises(ConfigurationError, match="seed"):
        driver.invoke(model.with_structured_output(Receipt, seed=1), ask(red))
    assert len(endpoint.received) == 1


def test_in_a_chain_and_in_a_batch(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, default_image=red.data)
    prompt = ChatPromptTemplate.from_messages([("human", "What does the {thing} say?")])
    chain = prompt | model.with_structured_output(Receipt)
    for _ in range(3):
        endpoint.answer(REPLY)
    assert driver.batch(chain, [{"thing": "receipt"}] * 2) == [Receipt(**RECEIPT)] * 2
    assert driver.invoke(model.with_structured_output(Receipt), "Well?") == Receipt(**RECEIPT)
    assert endpoint.received[-1].text.endswith("User: Well?")


# Schemas whose fields are all optional.


OPTIONALS = [
    (structured_replies.Receipt, structured_replies.Receipt(**FULL)),
    (structured_replies.Receipt.model_json_schema(), FULL),
]


@pytest.mark.parametrize("reply", READABLE)
def test_an_object_is_read_in_every_form(
    reply: str, method: Any, *, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    for wanted, expected in OPTIONALS:
        endpoint.answer(reply)
        chain = model.with_structured_output(wanted, method=method)
        assert driver.invoke(chain, ask(red)) == expected


@pytest.mark.parametrize("reply", UNREADABLE)
def test_another_object_is_never_an_empty_answer(
    reply: str, method: Any, *, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    for wanted, _ in OPTIONALS:
        endpoint.answer(reply)
        chain = model.with_structured_output(wanted, method=method)
        with pytest.raises(OutputParserException) as raised:
            driver.invoke(chain, ask(red))
        assert raised.value.llm_output == reply


def test_a_number_for_a_text_keeps_its_figures(
    method: Any, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    class Package(BaseModel):
        """What is installed."""

        version: str
        others: list[str]

    endpoint.answer('{"version": 3.10, "others": [1.0, "2", 4]}')
    package = driver.invoke(model.with_structured_output(Package, method=method), ask(red))
    assert package == Package(version="3.10", others=["1.0", "2", "4"])


# What the model is shown of a schema.


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize(
    ("schema", "reply", "shown"),
    [
        (Node, '{"name": "a", "parts": [{"name": "b"}]}', '"items": {"$ref": "#/$defs/Node"}'),
        (Pet, '{"pet": {"kind": "cat"}}', '"const": "dog"'),
    ],
)
def test_a_schema_is_shown_completely(
    schema: Any,
    reply: str,
    shown: str,
    method: Any,
    *,
    driver: Any,
    model: ChatPhospho,
    endpoint: Any,
    red: Any,
) -> None:
    for bound in (model.with_structured_output(schema, method=method), model.bind_tools([schema])):
        endpoint.answer(reply)
        answer = driver.invoke(bound, ask(red))
        text = endpoint.received[-1].text
        assert shown in text
        assert '"items": {}' not in text
        assert "#/$defs/" not in text or '"$defs": {' in text
        assert isinstance(answer, AIMessage) or answer == schema.model_validate_json(reply)


class Loose(TypedDict):
    """A receipt."""

    shop: str
    total: NotRequired[float]


def test_a_schema_that_langchain_cannot_read_is_told_before_anything_is_sent(
    model: ChatPhospho,
) -> None:
    for method in ("json_schema", "function_calling"):
        with pytest.raises(ConfigurationError, match="Nothing was sent"):
            model.with_structured_output(Loose, method=method)
    with pytest.raises(ConfigurationError, match="Nothing was sent"):
        model.bind_tools([Loose])


# As a runnable.


def _invoke(chain: Any, question: Any, **keywords: Any) -> Any:
    return chain.invoke(question, **keywords)


def _ainvoke(chain: Any, question: Any, **keywords: Any) -> Any:
    return asyncio.run(chain.ainvoke(question, **keywords))


def _batch(chain: Any, question: Any, **keywords: Any) -> Any:
    return chain.batch([question], **keywords)[0]


def _abatch(chain: Any, question: Any, **keywords: Any) -> Any:
    return asyncio.run(chain.abatch([question], **keywords))[0]


def _as_completed(chain: Any, question: Any, **keywords: Any) -> Any:
    return next(iter(chain.batch_as_completed([question], **keywords)))[1]


def _stream(chain: Any, question: Any, **keywords: Any) -> Any:
    return list(chain.stream(question, **keywords))[-1]


def _astream(chain: Any, question: Any, **keywords: Any) -> Any:
    async def collect() -> list[Any]:
        return [chunk async for chunk in chain.astream(question, **keywords)]

    return asyncio.run(collect())[-1]


def _bind(chain: Any, question: Any, **keywords: Any) -> Any:
    return chain.bind(**keywords).invoke(question)


def _pickle(chain: Any, question: Any, **keywords: Any) -> Any:
    return pickle.loads(pickle.dumps(chain)).invoke(question, **keywords)  # noqa: S301 - our own


WAYS = [_invoke, _ainvoke, _batch, _abatch, _as_completed, _stream, _astream, _bind, _pickle]


@pytest.mark.parametrize("way", WAYS)
def test_keywords_of_a_call_reach_the_model(
    way: Any, method: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    chain = model.with_structured_output(Receipt, method=method, temperature=0.5, max_repairs=1)
    keywords = {"max_tokens": 99, "temperature": 0.7, "repetition_penalty": 1.3}
    for reply in ("No.", f"{REPLY}~ and more: {{"):
        endpoint.answer(reply)
    assert way(chain, ask(red), stop=["~"], **keywords) == Receipt(**RECEIPT)
    sent = {"max_new_tokens": 99, "temperature": 0.7, "repetition_penalty": 1.3}
    assert [request.parameters for request in endpoint.received] == [sent, sent]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_it_goes_to_another_process(
    schema: str, method: Any, driver: Any, model: ChatPhospho, *, endpoint: Any, red: Any
) -> None:
    wanted, expected = SCHEMAS[schema]
    chain = model.with_structured_output(wanted, method=method, include_raw=True)
    twin = pickle.loads(pickle.dumps(chain))  # noqa: S301 - our own bytes
    endpoint.answer(REPLY)
    assert driver.invoke(twin, ask(red))["parsed"] == expected
