"""LlamaIndex's tools and tool calls, and the core's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from llama_index_phospho.content import message_turns
from phospho_multimodal import NoToolCallError
from phospho_multimodal.conversation import ToolCall, Turn
from phospho_multimodal.tool_protocol import ToolProtocol

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

__all__ = [
    "called_message_turns",
    "chat_with_tools_keywords",
    "object_or_error",
    "selected_tools",
    "take_protocol",
]

_REQUIRED = "tool_required"


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
    # Core's programs alone pass a `tool_choice` of None. Their streams forget that a tool is
    # required, and would make an empty object of prose.
    required = required or ("tool_choice" in given and given["tool_choice"] is None)
    keywords["tools"] = [_definition(tool) for tool in tools]
    keywords[_REQUIRED] = required
    return keywords


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
    if not given.pop(_REQUIRED, False):
        return ToolProtocol.of(tools, tool_choice=choice)
    # Who requires a call takes its arguments at once: there is no agent to ask again.
    return replace(ToolProtocol.of(tools, tool_choice=choice or "any"), re_asks=0)


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
            message = f"The model had to call a tool, and {problem}. The answer was billed."
            raise NoToolCallError(message)
    return [
        ToolSelection(tool_id=call.id or "", tool_name=call.name, tool_kwargs=dict(call.arguments))
        for call in calls
    ]


def _definition(tool: "BaseTool") -> dict[str, Any]:
    # Not `to_openai_tool`: it spells names anew, and core does not find the tool by such a name.
    function = {
        "name": tool.metadata.get_name(),
        "description": tool.metadata.description,
        "parameters": tool.metadata.get_parameters_dict(),
    }
    return {"type": "function", "function": function}


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


@contextmanager
def object_or_error(wanted: type) -> Iterator[None]:
    """Turn core's ValueError for an answer without the wanted object into an error of ours.

    Args:
        wanted: The object's class.

    Yields:
        Nothing; use it in a `with` statement.

    Raises:
        NoToolCallError: There is no such object in the answer.
    """
    try:
        yield
    except (TypeError, ValueError) as failure:
        reason = type(failure).__name__
    else:
        return
    # Outside the handler: core's error quotes the answer, and that is not ours to repeat.
    message = (
        f"The answer holds no {wanted.__name__} ({reason}); what was asked was billed. Ask more"
        " plainly, raise max_new_tokens=, or set is_function_calling_model=True."
    )
    raise NoToolCallError(message)
