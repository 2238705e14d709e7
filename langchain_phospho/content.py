"""From LangChain messages to the core's turns.

Blocks are read as they stand in a message, by the core's one table: none of LangChain's own
helpers is called.
"""

from collections.abc import Mapping, Sequence

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
from phospho_multimodal.messages.conversation import Role, Turn, count_older_turns

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
    """Turn messages into turns.

    Args:
        messages: Oldest first.

    Returns:
        A turn for each, in the same order. In turns before the newest user turn, a mark replaces
        what cannot be sent.

    Raises:
        UnsupportedContentError: The newest turn holds something that cannot be sent.
        ImageError: The URL of an image in the newest turn cannot be used.
    """
    called = {
        call["id"]: call["name"]
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    roles = [_role(message) for message in messages]
    older = count_older_turns(roles)
    return [
        _read_message(message, role, called, is_older=index < older)
        for index, (message, role) in enumerate(zip(messages, roles, strict=True))
    ]


def _read_message(
    message: BaseMessage, role: Role, called: Mapping[str | None, str], *, is_older: bool
) -> Turn:
    # No content is no part.
    parts = read_content(message.content, is_older=is_older) if message.content else ()
    name = message.name
    if name is None and isinstance(message, ToolMessage):
        name = called.get(message.tool_call_id, message.tool_call_id)
    return make_turn(role, parts, name, is_older=is_older)


def _role(message: BaseMessage) -> Role:
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    name = message.role if isinstance(message, ChatMessage) else message.type
    known = _CHAT_ROLES.get(name.lower())
    if known is None:
        roles = ", ".join(_CHAT_ROLES)
        reason = (
            f"A message has the role {quote_name(name)}, which this model does not know."
            f" Nothing was sent. Use one of: {roles}."
        )
        raise UnsupportedContentError(reason)
    return known
