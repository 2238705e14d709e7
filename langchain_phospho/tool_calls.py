"""LangChain's tools and tool calls, and the core's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.utils.function_calling import (
    convert_to_openai_function,
    convert_to_openai_tool,
)
from pydantic import BaseModel
from pydantic.v1 import BaseModel as BaseModelV1

from langchain_phospho.content import read_messages
from phospho_multimodal import ConfigurationError
from phospho_multimodal.messages.conversation import ToolCall, Turn
from phospho_multimodal.tools.prompt import ToolProtocol
from phospho_multimodal.tools.schema import inline_references

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = [
    "PROTOCOL_KEYWORDS",
    "RETURN_INVALID_CALLS",
    "bound_tools",
    "openai_function",
    "read_called_messages",
    "take_protocol",
]

PROTOCOL_KEYWORDS = frozenset(
    {"tools", "tool_choice", "response_format", "strict", "parallel_tool_calls"}
)
"""What a call may say about tools; the last two are other providers' and change nothing here."""

RETURN_INVALID_CALLS = "return_invalid_calls"
"""The keyword of `with_structured_output`, which reads the message and needs no error."""

_ANSWER_TOOLS = "answer_tools"
"""The keyword that names the tools which run nothing and only give an answer its form."""


def bound_tools(
    tools: "Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool]", tool_choice: Any
) -> dict[str, Any]:
    """Make the keywords that bind tools.

    Args:
        tools: Whatever LangChain can turn into a tool.
        tool_choice: What has to be called.

    Returns:
        The keywords; none for what was not given.

    Raises:
        ConfigurationError: A tool is no function, or the choice is none of them.
    """
    definitions = [_definition(tool) for tool in tools] or None
    ToolProtocol.of(definitions, tool_choice=tool_choice)
    names = [name for tool in tools if (name := _answer_name(tool)) is not None]
    keywords = {
        "tools": definitions,
        "tool_choice": tool_choice,
        _ANSWER_TOOLS: names or None,
    }
    return {name: value for name, value in keywords.items() if value is not None}


def openai_function(
    schema: "Mapping[str, Any] | type | Callable[..., Any] | BaseTool",
) -> dict[str, Any]:
    """Describe a tool or a schema in OpenAI's form, completely.

    LangChain's own form loses what recurs, and names definitions that it left out.

    Args:
        schema: Whatever LangChain can turn into a function.

    Returns:
        `name`, `description` and `parameters`.

    Raises:
        ConfigurationError: LangChain cannot read it.
    """
    try:
        function: dict[str, Any] = dict(convert_to_openai_function(schema))
        whole = _json_schema(schema)
    except Exception as error:  # noqa: BLE001 - its kind depends on the schema
        message = (
            f"The schema cannot be read: {type(error).__name__}: {' '.join(str(error).split())}"
            " Nothing was sent."
        )
        raise ConfigurationError(message) from None
    if whole is not None and (whole.get("$defs") or whole.get("definitions")):
        whole = inline_references(whole)
        function["parameters"] = {
            key: value for key, value in whole.items() if key not in {"title", "description"}
        }
    return function


def take_protocol(given: dict[str, Any]) -> ToolProtocol:
    """Take out of a call's keywords what it says about tools.

    Args:
        given: The keywords; those about tools are removed.

    Returns:
        The protocol.

    Raises:
        ConfigurationError: Something has no known form, or a tool is not there.
    """
    wanted = {name: given.pop(name, None) for name in PROTOCOL_KEYWORDS}
    protocol = ToolProtocol.of(
        wanted["tools"],
        tool_choice=wanted["tool_choice"],
        response_format=wanted["response_format"],
    )
    answer_tools = frozenset(given.pop(_ANSWER_TOOLS, None) or ())
    if given.pop(RETURN_INVALID_CALLS, False):
        every = frozenset(tool.name for tool in protocol.tools)
        return replace(protocol, return_invalid_calls=True, max_reasks=0, answer_tools=every)
    return replace(protocol, answer_tools=answer_tools) if answer_tools else protocol


def read_called_messages(messages: Sequence[BaseMessage]) -> list[Turn]:
    """Turn messages into turns that know their tool calls.

    Args:
        messages: Oldest first.

    Returns:
        A turn for each, in the same order.

    Raises:
        UnsupportedContentError: A message holds something that cannot be sent.
        ImageError: An image's URL cannot be used.
    """
    turns = zip(messages, read_messages(messages), strict=True)
    return [
        replace(turn, calls=calls) if (calls := _calls(message)) else turn
        for message, turn in turns
    ]


def _calls(message: BaseMessage) -> tuple[ToolCall, ...]:
    if not isinstance(message, AIMessage):
        return ()
    return tuple(ToolCall(call["name"], call["args"], call["id"]) for call in message.tool_calls)


def _definition(tool: Any) -> dict[str, Any]:
    if isinstance(tool, Mapping) and "type" in tool and "properties" not in tool:
        return dict(convert_to_openai_tool(tool))  # a provider's own tool, refused by its form
    return {"type": "function", "function": openai_function(tool)}


def _json_schema(schema: Any) -> dict[str, Any] | None:
    """Find the JSON schema behind a class or a tool, with its definitions."""
    kind = schema if isinstance(schema, type) else getattr(schema, "tool_call_schema", None)
    if isinstance(kind, Mapping):
        return dict(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_json_schema()
    if isinstance(kind, type) and issubclass(kind, BaseModelV1):
        return kind.schema()
    return None


def _answer_name(tool: Any) -> str | None:
    """Name a tool that runs nothing: `create_agent` makes one of a response format."""
    from langchain_core.tools import StructuredTool  # noqa: PLC0415 - only where tools are bound

    runs = not isinstance(tool, StructuredTool) or tool.func or tool.coroutine
    return None if runs else tool.name
