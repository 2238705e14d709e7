"""LlamaIndex's tools and tool calls, and the core's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from llama_index_phospho.content import message_turns
from phospho_multimodal import NoToolCallError
from phospho_multimodal.messages.conversation import ToolCall, Turn
from phospho_multimodal.tools.prompt import ToolProtocol
from phospho_multimodal.tools.schema_text import inline_references

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

__all__ = [
    "asks_for_object",
    "called_message_turns",
    "chat_with_tools_keywords",
    "selected_tools",
    "take_protocol",
]

_REQUIRED = "tool_required"
_GIVES_ANSWER = "gives_answer"


def chat_with_tools_keywords(
    tools: Sequence["BaseTool"],
    conversation: Sequence[ChatMessage],
    *,
    required: bool,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Make the keywords of a chat with tools.

    Args:
        tools: What can be called.
        conversation: Oldest first.
        required: Whether a tool has to be called.
        given: Further keywords, `tool_choice` among them.

    Returns:
        The keywords.
    """
    keywords: dict[str, Any] = {**given, "messages": list(conversation)}
    if not tools and not required:
        return keywords
    # Streams of core's programs forget that a tool is required, and would make an empty object of
    # prose.
    is_program = asks_for_object(given)
    keywords["tools"] = [_definition(tool) for tool in tools]
    keywords[_REQUIRED] = required or is_program
    keywords[_GIVES_ANSWER] = is_program
    return keywords


def asks_for_object(given: Mapping[str, Any]) -> bool:
    """Tell whether one of core's programs asks: only they pass a `tool_choice` of None.

    Args:
        given: The keywords of a call with tools.

    Returns:
        Whether the tool stands for the class of an object.
    """
    return "tool_choice" in given and given["tool_choice"] is None


def take_protocol(given: dict[str, Any]) -> ToolProtocol:
    """Take out of a chat's keywords what it says about tools.

    Args:
        given: The keywords; those about tools are removed.

    Returns:
        The protocol.

    Raises:
        ConfigurationError: Something has no known form, or a tool is not there.
    """
    tools, choice = given.pop("tools", None), given.pop("tool_choice", None)
    gives_answer = given.pop(_GIVES_ANSWER, False)
    if not given.pop(_REQUIRED, False):
        return ToolProtocol.of(tools, tool_choice=choice)
    # Who requires a call takes its arguments at once: there is no agent to ask again.
    protocol = replace(ToolProtocol.of(tools, tool_choice=choice or "any"), max_reasks=0)
    if not gives_answer:
        return protocol
    return replace(protocol, answer_tools=frozenset(tool.name for tool in protocol.tools))


def called_message_turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Turn messages into turns that know their tool calls.

    Args:
        messages: Oldest first.

    Returns:
        A turn for each; no image was opened.

    Raises:
        UnsupportedContentError: A message holds what this endpoint cannot be sent.
        ImageError: A block for an image holds none.
    """
    turns = zip(messages, message_turns(messages), strict=True)
    return [replace(turn, calls=_calls(message)) for message, turn in turns]


def selected_tools(response: ChatResponse, *, error_on_no_tool_call: bool) -> list[ToolSelection]:
    """Read the calls out of a response.

    Args:
        response: Of a chat with tools.
        error_on_no_tool_call: Whether there has to be one that can be run.

    Returns:
        One call at most.

    Raises:
        NoToolCallError: There is none, or it cannot be run as it is.
    """
    calls = _calls(response.message)
    if error_on_no_tool_call:
        raw = response.raw if isinstance(response.raw, Mapping) else {}
        problem = raw.get("tool_call_problem") or (None if calls else "it called none")
        if problem is not None:
            message = (
                f"The model had to call a tool, and {problem}. Images billed:"
                f" {raw.get('images_billed', 0)}. Ask more plainly, or do not require a call."
            )
            error = NoToolCallError(message)
            error.attempts = raw.get("attempts", 0)
            error.images_in_doubt = raw.get("images_in_doubt", 0)
            raise error
    return [
        ToolSelection(tool_id=call.id or "", tool_name=call.name, tool_kwargs=dict(call.arguments))
        for call in calls
    ]


def _definition(tool: "BaseTool") -> dict[str, Any]:
    # Not `to_openai_tool`: it spells names anew, and core does not find the tool by such a name.
    function = {
        "name": tool.metadata.get_name(),
        "description": tool.metadata.description,
        "parameters": _parameters(tool),
    }
    return {"type": "function", "function": function}


def _parameters(tool: "BaseTool") -> dict[str, Any]:
    """Describe a tool's arguments completely: core loses the root of a class that recurs."""
    kind = tool.metadata.fn_schema
    if kind is None:
        return tool.metadata.get_parameters_dict()
    schema = kind.model_json_schema()
    if "$ref" not in schema:
        return tool.metadata.get_parameters_dict()
    return inline_references(schema)


def _calls(message: ChatMessage) -> tuple[ToolCall, ...]:
    blocks = (block for block in message.blocks if isinstance(block, ToolCallBlock))
    return tuple(
        ToolCall(
            block.tool_name,
            block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {},
            block.tool_call_id,
        )
        for block in blocks
    )
