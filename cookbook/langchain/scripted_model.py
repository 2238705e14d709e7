"""An agent model that needs no account: it follows a script and answers from what it reads.

The notebooks use it unless `PHOSPHO_COOKBOOK_MODEL` names a real model. Its answers are right only
if the descriptions of the images are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

__all__ = ["ScriptedModel"]

_ITEM = re.compile(r"^\W*(\d+) (.+?) (\d+\.\d\d)$", re.MULTILINE)
_TOTAL = re.compile(r"total\D*(\d+\.\d\d)", re.IGNORECASE)


class ScriptedModel(BaseChatModel):
    """A chat model with a script for each notebook."""

    script: str

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        """Accept any tools: the script knows which ones it calls."""
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        message = _SCRIPTS[self.script](messages)
        return ChatResult(generations=[ChatGeneration(message=message)])


def structured_extraction(messages: list[BaseMessage]) -> AIMessage:
    """Fill in the receipt."""
    text = messages[-1].text
    items = [
        {"quantity": int(quantity), "name": name, "price": price}
        for quantity, name, price in _ITEM.findall(text)
    ]
    shop = re.search(r"reading order:\n(.+)", text)
    return _call("Receipt", shop=shop and shop[1], items=items, total=_total(text))


def agent_with_tool(messages: list[BaseMessage]) -> AIMessage:
    """Look at each of two images, then add up."""
    results = [message for message in messages if isinstance(message, ToolMessage)]
    if len(results) < 2:
        return _call("describe_image", image=len(results) + 1, question="What is the total?")
    totals = [_total(message.text) for message in results]
    return AIMessage(f"{' + '.join(totals)} = {sum(map(float, totals)):.2f}")


def text_only_agent(messages: list[BaseMessage]) -> AIMessage:
    """Answer from the description, and look again for what it does not say."""
    everything = "\n".join(message.text for message in messages)
    prompt = next(message.text for message in reversed(messages) if message.type == "human")
    if "color" not in prompt.splitlines()[0]:
        return AIMessage(f"The total is {_total(everything)}.")
    if not isinstance(messages[-1], ToolMessage):
        return _call("look_again", image=1, question="What color is the paper?")
    color = re.search(r"Dominant colou?rs: (\w+)", messages[-1].text)
    return AIMessage(f"The paper is {color[1]}." if color else "The description does not say.")


def _call(tool: str, **arguments: Any) -> AIMessage:
    call = {"name": tool, "args": arguments, "id": f"call-{tool}", "type": "tool_call"}
    return AIMessage("", tool_calls=[call])


def _total(text: str) -> str:
    found = _TOTAL.search(text)
    return found[1] if found else "unknown"


_SCRIPTS = {
    "agent_with_tool": agent_with_tool,
    "structured_extraction": structured_extraction,
    "text_only_agent": text_only_agent,
}
