"""The scripted model that drives the cookbook's notebooks when the tests run them.

The notebooks take any `init_chat_model` string. This folder comes first on their path and this
module has the name of a provider's package, so that `upstage:agent_with_tool` is the script for
that notebook and the notebooks need no line for the tests. Each script answers from what it reads:
an answer that is right was in the descriptions.
"""

from __future__ import annotations

import re
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from pydantic import Field

from scripted_chat import ScriptedChat, calls

__all__ = ["ChatUpstage"]

_ITEM = re.compile(r"^\W*(\d+) (.+?) (\d+\.\d\d)$", re.MULTILINE)
_TOTAL = re.compile(r"total\D*(\d+\.\d\d)", re.IGNORECASE)


class ChatUpstage(ScriptedChat):
    """Answers as the script of a notebook says."""

    model: str
    replies: list[Any] = Field(default_factory=list)

    def model_post_init(self, context: Any) -> None:
        """Learn the script."""
        super().model_post_init(context)
        self.replies = [_SCRIPTS[self.model]]

    def _generate(self, messages: list[BaseMessage], *arguments: Any, **options: Any) -> Any:
        if self.model == "agent_with_tool":  # a model that is shown pictures and does not mind
            messages = [
                message.model_copy(update={"content": message.text}) for message in messages
            ]
        return super()._generate(messages, *arguments, **options)


def structured_extraction(messages: list[BaseMessage]) -> AIMessage:
    """Fill in the receipt."""
    text = messages[-1].text
    items = [
        {"quantity": int(quantity), "name": name, "price": price}
        for quantity, name, price in _ITEM.findall(text)
    ]
    shop = re.search(r"reading order:\n(.+)", text)
    return calls("Receipt", shop=shop and shop[1], items=items, total=_total(text))


def agent_with_tool(messages: list[BaseMessage]) -> AIMessage:
    """Look at each picture that was shown, one after another, then add up."""
    seen = [message for message in messages if isinstance(message, ToolMessage)]
    if len(seen) < 2:
        return _looking("describe_image", len(seen) + 1, "What is the total?")
    totals = [_total(message.text) for message in seen]
    return AIMessage(f"{' + '.join(totals)} = {sum(map(float, totals)):.2f}")


def text_only_agent(messages: list[BaseMessage]) -> AIMessage:
    """Answer from the description; look again for what it does not tell."""
    read = "\n".join(message.text for message in messages)
    asked = next(message.text for message in reversed(messages) if message.type == "human")
    if "colour" not in asked.splitlines()[0]:
        return AIMessage(f"The total is {_total(read)}.")
    if not isinstance(messages[-1], ToolMessage):
        return _looking("look_again", 1, "What colour is the paper?")
    colour = re.search(r"Dominant colours: (\w+)", messages[-1].text)
    return AIMessage(f"The paper is {colour[1]}." if colour else "That cannot be told.")


def _looking(tool: str, image: int, question: str) -> AIMessage:
    return calls(tool, image=image, question=question)


def _total(text: str) -> str:
    found = _TOTAL.search(text)
    return found[1] if found else "unknown"


_SCRIPTS = {
    "agent_with_tool": agent_with_tool,
    "integration_page": agent_with_tool,
    "structured_extraction": structured_extraction,
    "text_only_agent": text_only_agent,
}
