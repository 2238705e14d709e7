"""Who speaks in a message; what its blocks become is in the table, `tests/shapes.py`."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_phospho.content import read_messages
from phospho_multimodal import UnsupportedContentError


@pytest.mark.parametrize(
    ("message", "role", "name"),
    [
        (HumanMessage("x"), "user", None),
        (HumanMessage("x", name="Ada"), "user", "Ada"),
        (AIMessage("x"), "assistant", None),
        (AIMessageChunk("x"), "assistant", None),
        (SystemMessage("x"), "system", None),
        (ToolMessage("x", tool_call_id="call-1"), "tool", "call-1"),
        (ToolMessage("x", tool_call_id="call-1", name="search"), "tool", "search"),
        (FunctionMessage("x", name="search"), "tool", "search"),
        (ChatMessage("x", role="Developer"), "system", None),
        (ChatMessage("x", role="model"), "assistant", None),
    ],
)
def test_a_message_becomes_a_turn(message: Any, role: str, name: str | None) -> None:
    (turn,) = read_messages([message])
    assert (turn.role, turn.parts, turn.name) == (role, ("x",), name)


@pytest.mark.parametrize("message", [ChatMessage("x", role="critic"), RemoveMessage(id="1")])
def test_a_role_nobody_knows_is_refused(message: Any) -> None:
    with pytest.raises(UnsupportedContentError, match="role"):
        read_messages([message])


def test_a_result_that_tells_its_call_alone_is_the_tools_that_was_called() -> None:
    calls = [{"name": name, "args": {}, "id": f"call-{name}"} for name in ("search", "crop")]
    turns = read_messages(
        [
            AIMessage("", tool_calls=calls),
            ToolMessage("x", tool_call_id="call-crop"),
            ToolMessage("x", tool_call_id="call-search", name="its own"),
            ToolMessage("x", tool_call_id="call-nobody"),
        ]
    )
    assert [turn.name for turn in turns] == [None, "crop", "its own", "call-nobody"]


@pytest.mark.parametrize("message", [HumanMessage(""), HumanMessage([]), AIMessage("")])
def test_no_content_is_no_part(message: Any) -> None:
    (turn,) = read_messages([message])
    assert turn.parts == ()
