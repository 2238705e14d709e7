"""Objects that LlamaIndex programs request: by a schema in the text, or by a tool."""

import json
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.output_parsers.pydantic import PYDANTIC_FORMAT_TMPL
from llama_index.core.prompts.base import PromptTemplate
from pydantic import BaseModel
from typing_extensions import override

from llama_index_phospho.fields import PhosphoConfiguration
from phospho_multimodal import ConfigurationError, NoToolCallError
from phospho_multimodal.tools.answer_objects import find_answer
from phospho_multimodal.tools.parsing import no_tool_call_error
from phospho_multimodal.tools.schema import inline_references, matches_schema

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.tools.types import BaseTool

__all__ = [
    "StructuredPrediction",
    "asks_for_object",
    "record_prediction",
    "require_object",
    "take_schema",
]

_Object = TypeVar("_Object", bound=BaseModel)

_BEFORE, _, _AFTER = PYDANTIC_FORMAT_TMPL.partition("{schema}")

_predictions: ContextVar[list[Mapping[str, Any]] | None] = ContextVar("predictions", default=None)


class StructuredPrediction(PhosphoConfiguration):
    """The part of `Phospho` that asks for objects.

    LlamaIndex raises a ValueError for an answer without the object, and its response synthesizers
    turn a ValueError into "Empty Response". These methods raise `NoToolCallError`, with the cost.
    """

    @override
    def structured_predict(
        self,
        output_cls: type[_Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> _Object:
        """Ask for an object; see `LLM.structured_predict`.

        Raises:
            NoToolCallError: The answer has no such object.
            ConfigurationError: The prompt or the program mode is not supported.
        """
        with _object_or_error(output_cls):
            # A copy, because core leaves the parser of this object in the prompt.
            answer: _Object = super().structured_predict(
                output_cls, copy(prompt), llm_kwargs, **prompt_args
            )
        return answer

    @override
    async def astructured_predict(
        self,
        output_cls: type[_Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> _Object:
        """Do the same as `structured_predict`, async."""
        with _object_or_error(output_cls):
            answer: _Object = await super().astructured_predict(
                output_cls, copy(prompt), llm_kwargs, **prompt_args
            )
        return answer

    @override
    def stream_structured_predict(
        self, output_cls: type[_Object], *args: Any, **kwargs: Any
    ) -> Generator[_Object, None, None]:
        """Do the same as `structured_predict`, as a stream of one object."""
        # Core's own method makes an empty object of prose.
        yield self.structured_predict(output_cls, *args, **kwargs)

    @override
    async def astream_structured_predict(
        self, output_cls: type[_Object], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[_Object, None]:
        """Do the same as `stream_structured_predict`, async."""

        async def stream() -> AsyncGenerator[_Object, None]:
            yield await self.astructured_predict(output_cls, *args, **kwargs)

        return stream()

    @override
    def predict_and_call(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> "AgentChatResponse":
        """Call the tool that the model chose; see `LLM.predict_and_call`.

        Raises:
            NoToolCallError: The answer has no call that can be run, or a program asks, and its
                class refuses the arguments.
        """
        with _recorded_predictions() as predictions:
            outcome = super().predict_and_call(tools, *args, **kwargs)
        _check_outcome(outcome, kwargs, predictions)
        return outcome

    @override
    async def apredict_and_call(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> "AgentChatResponse":
        """Do the same as `predict_and_call`, async."""
        with _recorded_predictions() as predictions:
            outcome = await super().apredict_and_call(tools, *args, **kwargs)
        _check_outcome(outcome, kwargs, predictions)
        return outcome


def asks_for_object(given: Mapping[str, Any]) -> bool:
    """Check whether a program asks, whose tool is a class: only it passes `tool_choice=None`."""
    return "tool_choice" in given and given["tool_choice"] is None


def take_schema(
    messages: Sequence[ChatMessage],
) -> tuple[Sequence[ChatMessage], dict[str, Any] | None]:
    """Remove the schema that core's parser wrote into a chat, and return it, if there is one."""
    for number, message in enumerate(messages):
        for place, block in enumerate(message.blocks):
            if not isinstance(block, TextBlock) or _BEFORE not in block.text:
                continue
            before, _, rest = block.text.rpartition(_BEFORE)
            written, _, after = rest.partition(_AFTER.rstrip())
            schema = _read_schema(written)
            if schema is not None:
                blocks = list(message.blocks)
                blocks[place] = TextBlock(text=f"{before}{after}".strip())
                changed = message.model_copy(update={"blocks": blocks})
                return [*messages[:number], changed, *messages[number + 1 :]], schema
    return messages, None


def _read_schema(written: str) -> dict[str, Any] | None:
    if written.startswith("{{"):  # core doubles the braces for a template that it never fills in
        written = written.replace("{{", "{").replace("}}", "}")
    try:
        schema = json.loads(written)
    except ValueError:
        return None
    return inline_references(schema) if isinstance(schema, dict) else None


def require_object(text: str, schema: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Raise `NoToolCallError` if an answer has no object that fits the schema.

    Core's parser would raise a ValueError, or make an empty object if no key is required.
    """
    found = find_answer(text, schema)
    if found is None or not matches_schema(found, schema, schema):
        name = str(schema.get("title") or "object")
        raise _no_object(name, "no object that fits its schema", [metadata])


def record_prediction(metadata: Mapping[str, Any]) -> None:
    """Remember what an answer cost, for the error if it is not the object."""
    predictions = _predictions.get()
    if predictions is not None:
        predictions.append(metadata)


@contextmanager
def _recorded_predictions() -> Iterator[list[Mapping[str, Any]]]:
    """Collect the metadata of answers; nested blocks share the list."""
    outer = _predictions.get()
    if outer is not None:
        yield outer
        return
    predictions: list[Mapping[str, Any]] = []
    token = _predictions.set(predictions)
    try:
        yield predictions
    finally:
        _predictions.reset(token)


@contextmanager
def _object_or_error(wanted: type) -> Iterator[None]:
    """Raise an error of ours where core raises a ValueError or TypeError."""
    try:
        with _recorded_predictions() as predictions:
            yield
    except (TypeError, ValueError) as failure:
        if not predictions:
            message = (
                f"Cannot ask for a {wanted.__name__}: {failure} Nothing was sent. Pass a"
                " PromptTemplate, and pydantic_program_mode 'default' or 'llm'."
            )
            raise ConfigurationError(message) from failure
        reason = type(failure).__name__
    else:
        return
    # Outside the handler, because core's error quotes the answer.
    raise _no_object(wanted.__name__, reason, predictions)


def _check_outcome(
    outcome: "AgentChatResponse",
    given: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
) -> None:
    """Raise if the class of an object refused the arguments; core's ValueError lacks the cost."""
    for output in outcome.sources if asks_for_object(given) else ():
        if output.is_error:
            reason = type(output.exception or output.raw_output).__name__
            raise _no_object(output.tool_name, reason, predictions)


def _no_object(name: str, reason: str, predictions: Sequence[Mapping[str, Any]]) -> NoToolCallError:
    return no_tool_call_error(
        f"The answer holds no {name} ({reason}).",
        predictions,
        advice="Ask more precisely, raise max_new_tokens=, or set is_function_calling_model=True.",
    )
