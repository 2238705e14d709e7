"""Messages and prompts: which text is sent with which picture."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.schema import ImageDocument

from fault_server import FaultServer
from pictures import draw, encoded

PICTURE = encoded()
BASE64 = base64.b64encode(PICTURE).decode()


def test_a_picture_of_additional_kwargs_counts_once(llm: Any, server: FaultServer) -> None:
    """Core appends it to the blocks with each validation, so with each event."""
    other = encoded(draw(colour="red"))
    message = ChatMessage(
        content="What?",
        additional_kwargs={"images": [ImageDocument(image=BASE64)]},
    )
    for _ in range(3):
        response = llm.chat([message], multi_image="error")
        assert (response.raw["image_policy"], response.raw["images_omitted"]) == ("single", 0)
    assert len(message.blocks) > 2
    message.blocks.insert(0, ImageBlock(image=other))
    response = llm.chat([message], multi_image="last")
    assert response.raw["images_omitted"] == 1
    assert [request.image for request in server.requests] == [PICTURE] * 4


def test_a_conversation_is_a_transcript(llm: Any, server: FaultServer) -> None:
    picture = ImageBlock(image=PICTURE)
    older = ImageBlock(image=encoded(draw(colour="red")))
    call = {"tool_call_id": "call_1"}
    messages = [
        ChatMessage("Hello", role=MessageRole.USER),
        ChatMessage("Be brief.", role=MessageRole.SYSTEM),
        ChatMessage("Be kind.", role=MessageRole.DEVELOPER),
        ChatMessage(role="user", blocks=[TextBlock(text="This one?"), older]),
        ChatMessage("A cat.", role=MessageRole.ASSISTANT),
        ChatMessage("A dog.", role=MessageRole.CHATBOT),
        ChatMessage("A cow.", role=MessageRole.MODEL),
        ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="crop")]),
        ChatMessage("done", role=MessageRole.TOOL, additional_kwargs={"name": "crop", **call}),
        ChatMessage("done again", role=MessageRole.FUNCTION, additional_kwargs=call),
        ChatMessage("nameless", role=MessageRole.TOOL),
        ChatMessage(role="user", blocks=[picture, TextBlock(text="And this?")]),
        ChatMessage("Well?", role=MessageRole.USER),
    ]
    response = llm.chat(messages)
    assert server.requests[0].item["text"].splitlines() == [
        "Be brief.",
        "Be kind.",
        "User: Hello",
        "User: This one?",
        "[image]",
        "Assistant: A cat.",
        "Assistant: A dog.",
        "Assistant: A cow.",
        "Tool (crop): done",
        "Tool (call_1): done again",
        "Tool: nameless",
        "User: And this?",
        "User: Well?",
    ]
    assert server.requests[0].image == PICTURE
    assert response.raw["images_omitted"] == 1


def test_a_lone_question_is_sent_as_it_is(llm: Any, server: FaultServer) -> None:
    text = "  Is https://example.com/cat.png\n\nin {this} picture?  "
    llm.chat([ChatMessage(blocks=[TextBlock(text=text), ImageBlock(image=PICTURE)])])
    llm.complete(text, [PICTURE])
    assert [request.item["text"] for request in server.requests] == [text, text]


def test_without_text_the_default_prompt_is_asked(
    make: Callable[..., Any], server: FaultServer
) -> None:
    message = ChatMessage(blocks=[ImageBlock(image=PICTURE)])
    make().chat([message])
    make(default_prompt="Describe it.").chat([message])
    make().complete("", [PICTURE], default_prompt="Tell me.")
    texts = [request.item["text"] for request in server.requests]
    assert texts == ["Describe this image.", "Describe it.", "Tell me."]
