"""Where core's response synthesizers would end in an "Empty Response" that was paid for.

They take a ValueError of core's own parser, and an object without the one field that they read, for
nothing found. What they ask for is known by its form alone: core does not say who asks.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers.refine import StructuredRefineResponse
from pydantic import BaseModel

from llama_index_phospho.structured_output import no_object
from phospho_multimodal import ConfigurationError, NoToolCallError, Prediction

__all__ = [
    "check_filtered_answer",
    "check_streamed_answer",
    "check_streamed_object",
    "is_filter",
]

_STREAMED = "answer"
"""The one field of an object that core's synthesizers stream."""

# What they leave to each step, with the question filled in before.
_STEPS = ({"context_messages"}, {"context_str"}, {"context_msg"})


def is_filter(messages: Sequence[ChatMessage]) -> bool:
    """Tell whether `structured_answer_filtering` asks, by text.

    Args:
        messages: What is asked.

    Returns:
        Whether core will read the answer as an object, and take prose for nothing found.
    """
    forms = _filter_forms()
    texts = [message.content or "" for message in messages]
    return any(form in text for form in forms for text in texts)


def check_filtered_answer(text: str, prediction: Prediction) -> None:
    """Read an answer as core will.

    Args:
        text: The answer to what is a filter.
        prediction: What the answer was read from.

    Raises:
        NoToolCallError: Core would take it for nothing found.
    """
    try:
        PydanticOutputParser(StructuredRefineResponse).parse(text)
    except ValueError as failure:
        reason = type(failure).__name__
    else:
        return
    raise no_object(StructuredRefineResponse.__name__, reason, [prediction.metadata])


def check_streamed_object(
    wanted: type[BaseModel], prompt: BasePromptTemplate, given: Mapping[str, Any]
) -> None:
    """Refuse an object of which a synthesizer would stream nothing.

    Args:
        wanted: The object's class.
        prompt: What is asked.
        given: What is filled in there.

    Raises:
        ConfigurationError: A synthesizer asks, and would come to nothing.
    """
    if not _is_step(prompt, given):
        return
    field = wanted.model_fields.get(_STREAMED)
    kind = None if field is None else field.annotation
    # Of a union or a literal only the answer will tell: `check_streamed_answer`.
    if field is not None and (not isinstance(kind, type) or issubclass(kind, str)):
        return
    message = (
        f"A query engine that streams an object hands on its field {_STREAMED!r}, a text, and"
        f" nothing else. Nothing was sent. Use streaming=False, or give {wanted.__name__} that"
        " field."
    )
    raise ConfigurationError(message)


def check_streamed_answer(
    made: BaseModel, prompt: BasePromptTemplate, given: Mapping[str, Any]
) -> None:
    """Refuse an object of which a synthesizer streams nothing, once it is there.

    Args:
        made: The object.
        prompt: What was asked.
        given: What was filled in there.

    Raises:
        NoToolCallError: A synthesizer asked, and the object has no text for it.
    """
    answer = getattr(made, _STREAMED, None)
    if isinstance(answer, str) or not _is_step(prompt, given):
        return
    message = (
        f"The field {_STREAMED!r} of the {type(made).__name__} is of type {type(answer).__name__},"
        " and a query engine that streams an object hands on a text alone; what was asked was"
        " billed. Use streaming=False, or make the field a str."
    )
    raise NoToolCallError(message)


def _is_step(prompt: BasePromptTemplate, given: Mapping[str, Any]) -> bool:
    """Tell whether a synthesizer asks; anybody else can read all of an object."""
    return "query_str" in prompt.kwargs and given.keys() in _STEPS


@cache
def _filter_forms() -> list[str]:
    # Core doubles the braces for a template that it does not always fill in.
    parser = PydanticOutputParser(StructuredRefineResponse)
    return [parser.get_format_string(escape_json=escaped).strip() for escaped in (True, False)]
