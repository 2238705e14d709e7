"""A chat request to a model server, and the answer in its response."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from phospho_multimodal.server.engines import EngineBusy, EngineFailed
from phospho_multimodal.server.engines.reasoning import without_reasoning
from phospho_multimodal.server.engines.upstream import PASSING, HttpResponse, read_json

__all__ = ["chat_body", "plain_text", "read_answer"]

_MARK = b"{image}"
_IMAGE_PART = {"type": "image_url", "image_url": {"url": _MARK.decode()}}

_REASONS = ("stop", "length", "content_filter", "tool_calls")  # not a set: a value may be a list
_TEXT_PARTS = ("text", "output_text")
_RETRY_AFTER = 2  # seconds

_PLACEHOLDER = re.compile(
    r"(?<=<)(?=\|[^<>|\n]{1,40}\|>)"  # <|image_pad|>, <|im_start|>
    r"|(?<=<)(?=[/_]{0,2}(?:image|img|media|vision|picture|video|audio)(?:[ _]?\w{1,40})?_{0,2}>)"
    r"|(?<=<)(?=(?:start|end)_of_(?:image|img|turn)>)"
    r"|(?<=\[)(?=/?(?:IMG|IMAGE|IMG_BREAK|IMG_END|INST)\])",
    re.IGNORECASE,
)


def chat_body(fields: dict[str, Any], mime: str, image: bytes, text: str) -> tuple[bytes, ...]:
    """Write a chat request in pieces, so that the image is not copied.

    The image comes before the prompt, as in the models' training. So the first mark in the JSON
    is the image's, whatever the prompt contains.
    """
    content = [_IMAGE_PART, {"type": "text", "text": plain_text(text)}]
    messages = {"messages": [{"role": "user", "content": content}]}
    before, after = orjson.dumps(messages | fields).split(_MARK, 1)
    return before, f"data:{mime};base64,".encode(), image, after


def plain_text(prompt: str) -> str:
    """Put a space into every marker that a chat template would read as an image or a turn.

    A server counts `<image>` in a prompt as a second image, and fails because it got only one.
    """
    return _PLACEHOLDER.sub(" ", prompt)


def read_answer(reply: HttpResponse, quoted: Callable[[str], str]) -> str:
    """Read the answer from a chat completion, without the model's reasoning.

    Args:
        reply: The 200.
        quoted: Shortens a server's text, and removes what the log must not repeat.

    Raises:
        EngineBusy: The 200 contains an error that passes by itself.
        EngineFailed: It contains no answer. The message has the reason.
    """
    completion = read_json(reply)
    if completion is None:
        raise EngineFailed(_not_json(reply))
    choice = _choice(completion, quoted)
    message = choice["message"]
    text = _text(message.get("content"))
    if not text.strip():
        raise EngineFailed(_why_empty(message, choice.get("finish_reason")))
    # A token limit can cut an emoji into half, which no UTF-8 can encode.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    answer = without_reasoning(whole)
    if not answer:
        reason = _known(choice.get("finish_reason"))
        text = f"The upstream's answer is reasoning only (finish_reason: {reason}). {_THINKS}"
        raise EngineFailed(text)
    return answer


_NO_CONTENT = "The upstream's 200 has no choices[0].message.content"
_ERROR = "The upstream's 200 holds an error"
_THINKS = (
    "A model that reasons first can use up max_new_tokens on that: serve an instruct model, or turn"
    " the reasoning off where the model is served."
)


def _not_json(reply: HttpResponse) -> str:
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    start = reply.body[:64].lstrip(b"\xef\xbb\xbf \r\n\t")
    if kind == "text/event-stream" or start.startswith((b"data:", b"event:", b"id:", b": ")):
        return (
            "The upstream's 200 is an event stream (SSE), although the request said stream: false."
            " Turn off forced streaming there."
        )
    if not start:
        return f"{_NO_CONTENT}: its body is empty."
    if kind == "text/html" or start[:1] == b"<":
        return f"{_NO_CONTENT}: it is an HTML page. Is --upstream the model server's address?"
    return f"{_NO_CONTENT}: it is not JSON."


def _choice(completion: Any, quoted: Callable[[str], str]) -> Mapping[str, Any]:
    choices = completion.get("choices") if isinstance(completion, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, Mapping) and isinstance(choice.get("message"), Mapping):
        if not isinstance(choice.get("error"), (str, Mapping)):
            return choice
        completion = choice
    words, code = _error(completion)
    if code in PASSING:
        raise EngineBusy(_RETRY_AFTER)
    problem = f"{_NO_CONTENT}." if words is None else f"{_ERROR}: {quoted(words)}"
    raise EngineFailed(problem)


def _error(body: Any) -> tuple[str | None, int | None]:
    """Read the text and the code of an error, in any of the forms that servers write."""
    if not isinstance(body, Mapping):
        return None, None
    error = body.get("error") or next(
        # An object under another name than `error` may be the answer, in another API's form.
        (body[k] for k in ("detail", "message", "msg") if isinstance(body.get(k), str)),
        None,
    )
    holder = error if isinstance(error, Mapping) else body
    codes = (holder.get(name) for name in ("code", "status", "status_code"))
    code = next((c for c in codes if isinstance(c, int) or str(c).isdecimal()), None)
    if isinstance(error, Mapping):
        error = next(
            (error[k] for k in ("message", "detail", "msg", "type") if error.get(k)), error
        )
    if error is None:
        return None, None
    words = error if isinstance(error, str) else orjson.dumps(error, default=str).decode()
    return words, None if code is None else int(code)


def _text(content: object) -> str:
    """Join the text of a message, whose content is a string or a list of parts."""
    if isinstance(content, str):
        return content
    parts: Iterable[object] = content if isinstance(content, list) else ()
    return "".join(_part_text(part) for part in parts)


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") not in _TEXT_PARTS:
        return ""  # parts of other types are reasoning or tool calls
    text = part.get("text")
    if isinstance(text, Mapping):  # OpenAI's assistants
        text = text.get("value")
    return text if isinstance(text, str) else ""


def _why_empty(message: Mapping[str, Any], reason: object) -> str:
    known = _known(reason)
    if message.get("refusal"):
        return f"The model refused to answer (message.refusal; finish_reason: {known})."
    if message.get("tool_calls") or message.get("function_call") or known == "tool_calls":
        return (
            f"The model called a tool instead of answering (finish_reason: {known}). Serve it"
            " without tools."
        )
    if known == "content_filter":
        return "The upstream's content filter removed the answer (finish_reason: content_filter)."
    return f"The upstream's answer is empty (finish_reason: {known}). {_THINKS}"


def _known(reason: object) -> str:
    # Another value could repeat the prompt.
    return str(reason) if reason in _REASONS else "unknown"
