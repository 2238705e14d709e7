"""LangChain's tools and tool calls, and the core's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_phospho.content import read_messages
from phospho_multimodal.conversation import ToolCall, Turn
from phospho_multimodal.tool_protocol import ToolProtocol

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = ["PROTOCOL_KEYWORDS", "TELLS", "bound_tools", "read_called_messages", "take_protocol"]

PROTOCOL_KEYWORDS = frozenset(
    {"tools", "tool_choice", "response_format", "strict", "parallel_tool_calls"}
)
"""What a call may say about tools; the last two are other providers' and change nothing here."""

TELLS = "tells_of_missing_calls"
"""The keyword of `with_structured_output`, which reads the message and needs no error."""


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
    definitions = [convert_to_openai_tool(tool) for tool in tools] or None
    ToolProtocol.of(definitions, tool_choice=tool_choice)
    keywords = {"tools": definitions, "tool_choice": tool_choice}
    return {name: value for name, value in keywords.items() if value is not None}


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
    return replace(protocol, tells=True, re_asks=0) if given.pop(TELLS, False) else protocol


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
