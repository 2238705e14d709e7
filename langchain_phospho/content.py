"""Turn LangChain messages into turns of the core.

The core's table of block kinds reads the blocks as they are in a message. LangChain's own helpers
leave out forms that occur in practice.
"""

from collections.abc import Sequence

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from phospho_multimodal import UnsupportedContentError
from phospho_multimodal.messages.content_blocks import make_turn, quote_name, read_content
from phospho_multimodal.messages.conversation import Role, ToolCall, Turn, count_older_turns

__all__ = ["read_messages"]

_ROLES: tuple[tuple[type[BaseMessage], Role], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)
_CHAT_ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}


def read_messages(messages: Sequence[BaseMessage]) -> list[Turn]:
    """Make a turn of each message, oldest first.

    Args:
        messages: Oldest first.

    Returns:
        The turns. Before the newest user turn, a mark replaces content that cannot be sent.

    Raises:
        UnsupportedContentError: The newest turn holds content that cannot be sent.
        ImageError: The URL of an image in the newest turn cannot be used.
    """
    roles = [_role(message) for message in messages]
    older = count_older_turns(roles)
    called: dict[str | None, str] = {}
    turns: list[Turn] = []
    for index, (message, role) in enumerate(zip(messages, roles, strict=True)):
        calls: tuple[ToolCall, ...] = ()
        if isinstance(message, AIMessage) and message.tool_calls:
            calls = tuple(
                ToolCall(call["name"], call["args"], call["id"]) for call in message.tool_calls
            )
            called.update((call.id, call.name) for call in calls)
        name = message.name
        if name is None and isinstance(message, ToolMessage):
            name = called.get(message.tool_call_id, message.tool_call_id)
        is_older = index < older
        parts = read_content(message.content, is_older=is_older) if message.content else ()
        turns.append(make_turn(role, parts, name, calls, is_older=is_older))
    return turns


def _role(message: BaseMessage) -> Role:
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    name = message.role if isinstance(message, ChatMessage) else message.type
    known = _CHAT_ROLES.get(name.lower())
    if known is None:
        reason = (
            f"The role of a message is {quote_name(name)}, which this model does not know."
            f" Nothing was sent. Use one of: {', '.join(_CHAT_ROLES)}."
        )
        raise UnsupportedContentError(reason)
    return known
