"""Objects by text and by tools: what is asked, what is read, and what an error says it cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.tools import FunctionTool

from consumers import Animal
from fault_server import FaultServer, answer, status
from phospho_multimodal import ConfigurationError, NoToolCallError
from pictures import encoded
from structured_replies import FULL, READABLE, UNREADABLE, Node, Pet, Receipt

PROMPT = PromptTemplate("What does the {thing} say?")


def _predict(llm: Any, wanted: Any, **given: Any) -> Any:
    return llm.structured_predict(wanted, PROMPT, given, thing="receipt")


def _apredict(llm: Any, wanted: Any, **given: Any) -> Any:
    return asyncio.run(llm.astructured_predict(wanted, PROMPT, given, thing="receipt"))


def _stream(llm: Any, wanted: Any, **given: Any) -> Any:
    return list(llm.stream_structured_predict(wanted, PROMPT, given, thing="receipt"))[-1]


def _astream(llm: Any, wanted: Any, **given: Any) -> Any:
    async def collect() -> list[Any]:
        stream = await llm.astream_structured_predict(wanted, PROMPT, given, thing="receipt")
        return [item async for item in stream]

    return asyncio.run(collect())[-1]


def _chat(llm: Any, wanted: Any, **given: Any) -> Any:
    image = ImageBlock(image=encoded())
    message = ChatMessage(blocks=[TextBlock(text="What does it say?"), image])
    return llm.as_structured_llm(wanted).chat([message], **given).raw


def _program(llm: Any, wanted: Any, **given: Any) -> Any:
    program = FunctionCallingProgram if llm.is_function_calling_model else LLMTextCompletionProgram
    made = program.from_defaults(output_cls=wanted, prompt=PROMPT.partial_format(), llm=llm)
    return made(llm_kwargs=given, thing="receipt")


WAYS = [_predict, _apredict, _stream, _astream, _chat, _program]
BY = {"text": False, "tools": True}


@pytest.fixture(params=BY)
def llm(request: pytest.FixtureRequest, make: Callable[..., Any], picture_base64: str) -> Any:
    return make(is_function_calling_model=BY[request.param], default_image=picture_base64)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("reply", READABLE)
def test_an_object_is_read_in_every_form(reply: str, llm: Any, server: FaultServer) -> None:
    server.script = [answer(reply)] * 2
    assert _predict(llm, Receipt) == Receipt(**FULL)
    assert _program(llm, Receipt) == Receipt(**FULL)


def test_an_object_comes_each_way(way: Any, llm: Any, server: FaultServer) -> None:
    server.script = [answer("{{'total': 8.20}}")]
    assert way(llm, Receipt) == Receipt(total=8.2)


@pytest.mark.parametrize(
    "reply",
    [
        *UNREADABLE,
        '{"total": "many"}',
        '{"name": "Receipt", "arguments": {"total": "many"}}',
    ],
)
def test_an_error_has_the_cost_of_an_answer_without_the_object(
    reply: str, llm: Any, server: FaultServer
) -> None:
    server.script = [status(503, headers={"retry-after": "0"}), answer(reply)]
    with pytest.raises(NoToolCallError, match="Images billed: 1") as raised:
        _predict(llm, Receipt)
    assert (raised.value.attempts, raised.value.images_in_doubt) == (2, 0)


def test_an_error_knows_its_cost_each_way(way: Any, llm: Any, server: FaultServer) -> None:
    server.script = [status(503, headers={"retry-after": "0"}), answer("It says tea.")]
    with pytest.raises(NoToolCallError, match="Images billed: 1") as raised:
        way(llm, Receipt)
    assert raised.value.attempts == 2


def _aprogram(llm: Any, wanted: Any, **given: Any) -> Any:
    program = FunctionCallingProgram.from_defaults(
        output_cls=wanted, prompt=PROMPT.partial_format(), llm=llm
    )
    return asyncio.run(program.acall(llm_kwargs=given, thing="receipt"))


@pytest.mark.parametrize("way", [*WAYS, _aprogram])
@pytest.mark.parametrize(
    "reply",
    [
        '{"total": "many"}',
        '{"total": [8.2, 3]}',
        '{"name": "Receipt", "arguments": {"total": "many"}}',
    ],
)
def test_an_error_of_a_program_by_tools_knows_what_a_wrong_value_cost(
    reply: str, way: Any, make: Any, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    llm = make(is_function_calling_model=True, default_image=encoded())
    server.script = [status(503, headers={"retry-after": "0"}), answer(reply)]
    with pytest.raises(NoToolCallError, match="Images billed: 1") as raised:
        way(llm, Receipt)
    assert (raised.value.attempts, raised.value.images_in_doubt) == (2, 0)
    assert "calls in one answer" not in caplog.text


def test_the_error_of_a_tool_that_is_called_once_stays_its_own(
    make: Any, server: FaultServer, picture_base64: str
) -> None:
    def divide(by: int) -> float:
        """Divide."""
        return 1 / by

    llm = make(is_function_calling_model=True, default_image=picture_base64)
    server.script = [answer('{"name": "divide", "arguments": {"by": 0}}')]
    outcome = llm.predict_and_call([FunctionTool.from_defaults(divide)], "Divide.")
    (output,) = outcome.sources
    assert output.is_error
    assert isinstance(output.exception, ZeroDivisionError)


def test_a_prompt_can_ask_for_several_objects(make: Any, server: FaultServer) -> None:
    """LlamaIndex leaves the schema of the first object in the prompt."""
    server.script = [answer('{"total": 1}'), answer('{"name": "A"}'), answer('{"total": 1}')]
    image = encoded()
    by_text, by_tools = (make(default_image=image, is_function_calling_model=by) for by in (0, 1))
    assert _predict(by_text, Receipt) == Receipt(total=1)
    assert _predict(by_tools, Animal) == Animal(name="A")
    assert PROMPT.output_parser is None
    stale = PROMPT.partial_format()
    LLMTextCompletionProgram.from_defaults(output_cls=Animal, prompt=stale, llm=by_text)
    assert by_tools.structured_predict(Receipt, stale, thing="receipt") == Receipt(total=1)
    assert "JSON schema to follow" not in server.requests[-1].item["text"]


@pytest.mark.parametrize("way", [_predict, _apredict, _stream, _astream])
@pytest.mark.parametrize("mode", ["function", "guidance"])
def test_what_was_never_sent_is_not_called_billed(
    mode: str, way: Any, make: Any, server: FaultServer, picture_base64: str
) -> None:
    llm = make(default_image=picture_base64, pydantic_program_mode=mode)
    with pytest.raises(ConfigurationError, match="Nothing was sent") as raised:
        way(llm, Receipt)
    assert "billed" not in str(raised.value)
    assert raised.value.attempts == 0
    assert server.requests == []


def test_the_schema_is_shown_as_json_and_completely(llm: Any, server: FaultServer) -> None:
    for wanted, reply in (
        (Receipt, '{"total": 1}'),
        (Node, '{"name": "a"}'),
        (Pet, '{"pet": {"kind": "cat"}}'),
    ):
        server.script = [answer(reply)]
        if wanted is Node and llm.is_function_calling_model:
            with pytest.raises(NoToolCallError):  # core cannot call a tool whose class recurs
                _predict(llm, wanted)
        else:
            assert _predict(llm, wanted) == wanted.model_validate_json(reply)
        text = server.requests[-1].item["text"]
        shown, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
        schema = shown["parameters"] if llm.is_function_calling_model else shown
        assert schema["properties"].keys() == wanted.model_fields.keys()
        assert "{{" not in text
        assert "Fill in values; do not repeat the schema." in text
        assert "#/$defs/" not in text or '"$defs": {' in text
        assert text.endswith("What does the receipt say?")


def test_numbers_and_repetitions_are_as_json_needs_them(llm: Any, server: FaultServer) -> None:
    server.script = [answer('{"total": 1}')] * 2
    _predict(llm, Receipt)
    _predict(llm, Receipt, repetition_penalty=1.3)
    first, second = (request.item for request in server.requests)
    assert "Numbers as 1234.5, without units or separators." in first["text"]
    assert (first["repetition_penalty"], second["repetition_penalty"]) == (1.0, 1.3)


def test_a_chat_without_an_object_is_asked_as_it_was(llm: Any, server: FaultServer) -> None:
    text = "Here's a JSON schema to follow:\nnone\n\nOutput a valid JSON object"
    server.script = [answer("It says {{tea}}.")]
    response = llm.chat([ChatMessage(text)])
    assert response.message.content == "It says {{tea}}."
    assert server.requests[0].item["text"] == text
    assert "repetition_penalty" not in server.requests[0].item
