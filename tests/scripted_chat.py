"""A driving chat model that reads nothing but text and says what it was told to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

__all__ = ["Noted", "ScriptedChat", "calls"]

Reply: TypeAlias = "str | AIMessage | Exception | Callable[[list[BaseMessage]], str | AIMessage]"


def calls(name: str, **arguments: Any) -> AIMessage:
    """What a model says to call a tool."""
    call = {"name": name, "args": arguments, "id": f"call-{name}", "type": "tool_call"}
    return AIMessage("", tool_calls=[call])


class Noted(BaseCallbackHandler):
    """Notes how each call of a model was begun."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **about: Any) -> None:
        self.started.append(about)


class ScriptedChat(BaseChatModel):
    """Says one reply after another, the last one for ever; a function reads the messages first."""

    replies: list[Any] = Field(default_factory=lambda: ["Yes."])
    heard: list[list[BaseMessage]] = Field(default_factory=list)
    tools: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def last(self) -> str:
        """All that the model read last."""
        return "\n".join(message.text for message in self.heard[-1])

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        self.tools[:] = [getattr(tool, "name", str(tool)) for tool in tools]
        return self

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        for message in messages:
            blocks = message.content if isinstance(message.content, list) else []
            for block in blocks:
                assert isinstance(block, str) or block["type"] in {"text", "tool_use"}, block
        self.heard.append(messages)
        reply: Any = self.replies[min(len(self.heard), len(self.replies)) - 1]
        if callable(reply):
            reply = reply(messages)
        if isinstance(reply, Exception):
            raise reply
        message = reply if isinstance(reply, AIMessage) else AIMessage(reply)
        # A copy: a graph gives what it gets an id, and a second reply would replace the first.
        return ChatResult(generations=[ChatGeneration(message=message.model_copy())])
