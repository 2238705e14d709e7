"""Objects that core's programs ask for: by text with a schema, or by a tool."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.output_parsers.pydantic import PYDANTIC_FORMAT_TMPL

from phospho_multimodal import ConfigurationError, NoToolCallError, Prediction
from phospho_multimodal.tools.answer_objects import find_answer
from phospho_multimodal.tools.schema_text import inline_references

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse

__all__ = [
    "check_object",
    "check_outcome",
    "no_object",
    "object_or_error",
    "record_prediction",
    "recorded_predictions",
    "take_schema",
]

_BEFORE, _, _AFTER = PYDANTIC_FORMAT_TMPL.partition("{schema}")

_predictions: ContextVar[list[Mapping[str, Any]] | None] = ContextVar("predictions", default=None)


def take_schema(
    messages: Sequence[ChatMessage],
) -> tuple[list[ChatMessage], dict[str, Any] | None]:
    """Take out of a chat the schema that core's parser wrote into it.

    Core doubles its braces for a template that it does not fill in any more.

    Args:
        messages: The chat.

    Returns:
        The chat without the schema and the sentence around it, and the schema; `None` if there
        is none.
    """
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
    return list(messages), None


def _read_schema(written: str) -> dict[str, Any] | None:
    if written.startswith("{{"):
        written = written.replace("{{", "{").replace("}}", "}")
    try:
        schema = json.loads(written)
    except ValueError:
        return None
    return inline_references(schema) if isinstance(schema, dict) else None


def check_object(text: str, schema: Mapping[str, Any], prediction: Prediction) -> None:
    """Refuse an answer without the object that a schema describes.

    Core's parser would make an empty object of another one, if no key is required.

    Args:
        text: The answer.
        schema: The schema.
        prediction: What the answer was read from.

    Raises:
        NoToolCallError: There is no such object in the answer.
    """
    if find_answer(text, schema) is None:
        name = str(schema.get("title") or "object")
        raise no_object(name, "no object with a key of its schema", [prediction.metadata])


def record_prediction(metadata: Mapping[str, Any]) -> None:
    """Remember the cost of an answer, for the error if it is not the wanted object.

    Args:
        metadata: The metadata of the answer.
    """
    predictions = _predictions.get()
    if predictions is not None:
        predictions.append(metadata)


@contextmanager
def recorded_predictions() -> Iterator[list[Mapping[str, Any]]]:
    """Collect what answers cost.

    Yields:
        The metadata of each answer, once it is there. Nested blocks share the list.
    """
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
def object_or_error(wanted: type) -> Iterator[None]:
    """Raise NoToolCallError where core raises ValueError for an answer without the wanted object.

    Args:
        wanted: The object's class.

    Yields:
        Nothing; use it in a `with` statement.

    Raises:
        NoToolCallError: There is no such object in the answer.
        ConfigurationError: Core failed before anything was sent.
    """
    try:
        with recorded_predictions() as predictions:
            yield
    except (TypeError, ValueError) as failure:
        if not predictions:
            message = (
                f"A {wanted.__name__} cannot be asked for: {failure} Nothing was sent. Give a"
                " PromptTemplate, and pydantic_program_mode 'default' or 'llm'."
            )
            raise ConfigurationError(message) from failure
        reason = type(failure).__name__
    else:
        return
    # Outside the handler: core's error quotes the answer, and that is not ours to repeat.
    raise no_object(wanted.__name__, reason, predictions)


def check_outcome(outcome: "AgentChatResponse", predictions: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a call whose arguments the class of the object did not take.

    Core would raise a ValueError that does not say what the answer cost.

    Args:
        outcome: What `predict_and_call` returned.
        predictions: The metadata of all answers.

    Raises:
        NoToolCallError: The class did not take them.
    """
    for output in outcome.sources:
        if output.is_error:
            reason = type(output.exception or output.raw_output).__name__
            raise no_object(output.tool_name, reason, predictions)


def no_object(name: str, reason: str, predictions: Iterable[Mapping[str, Any]]) -> NoToolCallError:
    """Make the error for an answer that is not the wanted object.

    Args:
        name: The name of the object.
        reason: Why there is no object.
        predictions: The metadata of all answers.

    Returns:
        The error, with the images billed and the attempts.
    """
    spent = list(predictions)
    billed = sum(metadata["images_billed"] for metadata in spent)
    error = NoToolCallError(
        f"The answer holds no {name} ({reason}). Images billed: {billed}. Ask more plainly, raise"
        " max_new_tokens=, or set is_function_calling_model=True."
    )
    error.attempts = sum(metadata["attempts"] for metadata in spent)
    error.images_in_doubt = sum(metadata["images_in_doubt"] for metadata in spent)
    return error
