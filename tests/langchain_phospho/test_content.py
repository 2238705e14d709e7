"""Every form in which a message can hold an image or a text, and what becomes of it."""

from __future__ import annotations

import base64
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

from langchain_phospho import ChatPhospho
from langchain_phospho.content import read_block, read_messages
from phospho_multimodal import ImageError, UnsupportedContentError
from phospho_multimodal.conversation import Part
from phospho_multimodal.images.source import ImageSource

DATA = b"\x89PNG not really"
BASE64 = base64.b64encode(DATA).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
URL = "https://example.com/a.png?signature=a%2Fb"

IMAGES = [
    ("openai", {"type": "image_url", "image_url": {"url": "IMAGE"}}),
    ("openai_detail", {"type": "image_url", "image_url": {"url": "IMAGE", "detail": "low"}}),
    ("openai_string", {"type": "image_url", "image_url": "IMAGE"}),
    (
        "openai_extra_key",
        {"type": "image_url", "image_url": {"url": "IMAGE"}, "cache_control": {"type": "x"}},
    ),
    ("openai_without_type", {"image_url": {"url": "IMAGE"}}),
    ("openai_responses", {"type": "input_image", "image_url": "IMAGE", "detail": "auto"}),
    ("v1_url", {"type": "image", "url": "IMAGE"}),
    ("v1_base64", {"type": "image", "base64": "IMAGE", "mime_type": "image/png"}),
    ("v1_mime_type_is_ignored", {"type": "image", "base64": "IMAGE", "mime_type": "text/csv"}),
    ("v1_with_id", {"type": "image", "url": "IMAGE", "id": "lc_1", "extras": {"detail": "low"}}),
    ("v1_file", {"type": "file", "base64": "IMAGE", "mime_type": "image/png"}),
    ("v1_file_url", {"type": "file", "url": "IMAGE", "mime_type": "IMAGE/PNG"}),
    ("v0_url", {"type": "image", "source_type": "url", "url": "IMAGE"}),
    (
        "v0_base64",
        {"type": "image", "source_type": "base64", "data": "IMAGE", "mime_type": "image/png"},
    ),
    ("anthropic_url", {"type": "image", "source": {"type": "url", "url": "IMAGE"}}),
    (
        "anthropic_base64",
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "IMAGE"}},
    ),
    ("google_media", {"type": "media", "mime_type": "image/png", "data": "IMAGE"}),
    ("google_inline_data", {"inline_data": {"mime_type": "image/png", "data": "IMAGE"}}),
    ("google_inlineData", {"inlineData": {"mimeType": "image/png", "data": "IMAGE"}}),
    ("bedrock", {"image": {"format": "png", "source": {"bytes": "IMAGE"}}}),
    (
        "bedrock_with_type",
        {"type": "image", "image": {"format": "png", "source": {"bytes": "IMAGE"}}},
    ),
    (
        "openai_file",
        {"type": "file", "file": {"file_data": "IMAGE", "mime_type": "image/png"}},
    ),
    ("non_standard", {"type": "non_standard", "value": {"type": "image", "url": "IMAGE"}}),
]


def filled(block: Any, image: object) -> Any:
    if isinstance(block, dict):
        return {key: filled(value, image) for key, value in block.items()}
    return image if block == "IMAGE" else block


@pytest.mark.parametrize("block", [pytest.param(block, id=name) for name, block in IMAGES])
@pytest.mark.parametrize(
    ("image", "form"),
    [(URL, "url"), (DATA_URL, "data_url"), (BASE64, "base64"), (DATA, "bytes")],
    ids=["url", "data_url", "base64", "bytes"],
)
def test_an_image_is_read_from_every_block(block: Any, image: Any, form: str) -> None:
    part = read_block(filled(block, image))
    assert isinstance(part, ImageSource)
    assert (part.form, part.value) == (form, image)
    assert part.value is image or isinstance(image, bytes)  # no copy of a megabyte


def test_base64_without_a_mime_type_is_refused_by_langchain_and_not_here(
    driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    block = {"type": "image", "base64": red.base64}
    assert isinstance(read_block(block), ImageSource)
    with pytest.raises(ValueError, match="mime_type key is required"):  # from its own tracing
        driver.invoke(model, [HumanMessage([block])])
    assert endpoint.received == []


def test_the_type_in_a_data_url_makes_a_file_an_image() -> None:
    part = read_block({"type": "input_file", "file_data": DATA_URL, "filename": "a"})
    assert isinstance(part, ImageSource)


@pytest.mark.parametrize("block", [pytest.param(block, id=name) for name, block in IMAGES])
def test_an_image_arrives_whole_through_the_framework(
    block: Any, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    image = red.data if "image" in block else red.base64
    driver.invoke(model, [HumanMessage([{"type": "text", "text": "What?"}, filled(block, image)])])
    (request,) = endpoint.received
    assert (request.text, request.picture) == ("What?", red.sha256)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "text", "text": "hello"}, "hello"),
        ({"type": "text", "text": ""}, ""),
        ({"type": "text", "text": "hello", "cache_control": {}, "index": 0}, "hello"),
        ({"text": "hello"}, "hello"),
        ({"type": "input_text", "text": "hello"}, "hello"),
        ({"type": "output_text", "text": "hello", "annotations": []}, "hello"),
        ({"type": "refusal", "refusal": "I will not."}, "I will not."),
        ({"type": "text-plain", "text": "a file", "mime_type": "text/plain"}, "a file"),
        ({"type": "file", "source_type": "text", "text": "a file"}, "a file"),
        ({"type": "document", "source": {"type": "text", "data": "a file"}}, "a file"),
        ({"json": {"sum": 7, "of": ["ü"]}}, '{"sum": 7, "of": ["ü"]}'),
        ({"type": "non_standard", "value": {"text": "hello"}}, "hello"),
        ({"type": "text", "index": 0}, None),
        ({"type": "reasoning", "reasoning": "hm"}, None),
        ({"type": "thinking", "thinking": "hm", "signature": "x"}, None),
        ({"type": "redacted_thinking", "data": BASE64}, None),
        ({"type": "reasoning_content", "reasoning_content": {"text": "hm"}}, None),
        ({"type": "tool_use", "id": "1", "name": "f", "input": {}}, None),
        ({"type": "tool_call", "id": "1", "name": "f", "args": {}}, None),
        ({"type": "server_tool_call", "id": "1", "name": "f", "args": {}}, None),
        ({"cachePoint": {"type": "default"}}, None),
    ],
)
def test_a_text_is_read_and_a_thought_is_passed_over(block: Any, text: Part | None) -> None:
    assert read_block(block) == text


@pytest.mark.parametrize(
    ("block", "saying"),
    [
        ({"type": "image", "file_id": "file-1"}, "by its file_id"),
        ({"type": "image", "source_type": "id", "id": "file-1"}, "by its id"),
        ({"type": "image", "source": {"type": "file", "file_id": "file-1"}}, "by its file_id"),
        ({"type": "input_image", "file_id": "file-1"}, "by its file_id"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "by its file_id"),
        ({"type": "file", "file_id": "file-1", "mime_type": "image/png"}, "by its file_id"),
        (
            {"type": "media", "mime_type": "image/png", "file_uri": "gs://bucket/a.png"},
            "by its file_uri",
        ),
        (
            {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://b/a.png"}}}},
            "by its s3Location",
        ),
        ({"type": "image", "path": "/etc/passwd"}, "names a path"),
        ({"type": "image_url", "image_url": {"path": "/etc/passwd"}}, "names a path"),
        ({"type": "image_url", "image_url": {"url": ""}}, "holds no image"),
        ({"type": "image_url"}, "holds no image"),
        ({"type": "file", "base64": BASE64, "mime_type": "application/pdf"}, "'application/pdf'"),
        ({"type": "file", "base64": BASE64}, "does not tell its type"),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}},
            "'document' holds no image",
        ),
        ({"type": "media", "mime_type": "audio/wav", "data": BASE64}, "'audio/wav'"),
        ({"type": "audio", "base64": BASE64, "mime_type": "audio/wav"}, "'audio'"),
        ({"type": "input_audio", "input_audio": {"data": BASE64}}, "'input_audio'"),
        ({"type": "video", "url": "https://example.com/a.mp4"}, "'video'"),
        ({"type": "text-plain", "file_id": "file-1"}, "holds no text"),
        ({"type": "hologram", "x": 1}, r"'hologram' \(keys: 'type', 'x'\)"),
        ({"text": "a", "image_url": URL}, "type unknown"),
        ({}, "type unknown"),
        ({"type": "non_standard", "value": "x"}, "'non_standard'"),
        ({"type": "a" * 1_000_000}, r"a{40}…'"),
    ],
)
def test_what_cannot_be_served_is_named_with_what_to_do(block: Any, saying: str) -> None:
    with pytest.raises(UnsupportedContentError, match=saying) as raised:
        read_block(block)
    message = str(raised.value)
    assert "Nothing was sent." in message
    assert len(message) < 400
    assert BASE64 not in message


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/a.png", "http://"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ImageError):
        read_block({"type": "image_url", "image_url": {"url": url}})


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


def test_the_order_of_parts_stays_and_strings_in_a_list_are_text() -> None:
    (turn,) = read_messages(
        [HumanMessage(["one", {"type": "image", "url": URL}, {"type": "text", "text": "two"}])]
    )
    assert [part if isinstance(part, str) else part.url for part in turn.parts] == [
        "one",
        URL,
        "two",
    ]


@pytest.mark.parametrize(
    "result",
    [
        {"type": "tool_result", "content": [{"type": "image", "url": URL}, {"text": "seen"}]},
        {"toolResult": {"toolUseId": "1", "content": [{"image_url": URL}, {"text": "seen"}]}},
    ],
)
def test_what_a_tool_returned_inside_a_message_is_read_too(result: Any) -> None:
    (turn,) = read_messages([HumanMessage([result])])
    assert turn.images[0].url == URL
    assert turn.parts[1] == "seen"


@pytest.mark.parametrize(
    ("content", "parts"),
    [("seen", ("seen",)), ({"text": "seen"}, ("seen",)), (None, ()), ([], ())],
)
def test_a_tool_result_may_be_short(content: Any, parts: tuple[str, ...]) -> None:
    (turn,) = read_messages([HumanMessage([{"type": "tool_result", "content": content}])])
    assert turn.parts == parts


@pytest.mark.parametrize("content", [f"Look at {URL}", [f"Look at {URL}"], DATA_URL])
def test_no_url_is_picked_out_of_a_text(content: Any) -> None:
    (turn,) = read_messages([HumanMessage(content)])
    assert turn.images == ()
