"""Removes a model's reasoning from its answer.

A model server without a reasoning parser returns the reasoning as part of the answer, where it is
not a description of the image. Models reason before they answer. Therefore only markers at the
start of an answer, or later markers of the same kind, delimit reasoning. An answer that mentions
`<think>` in a sentence or in code keeps every word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["without_reasoning"]


@dataclass(frozen=True)
class _Markers:
    """How one family of models delimits its reasoning."""

    opening: re.Pattern[str]
    either: re.Pattern[str]  # its group `opening` is set for an opening marker


def _markers(opening: str, closing: str) -> _Markers:
    either = f"(?P<opening>{opening})|{closing}"
    return _Markers(re.compile(opening, re.IGNORECASE), re.compile(either, re.IGNORECASE))


_NAMES = "(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)"

_REASONING = (
    # <think>, <thinking>, <seed:think>, < THINK >, <think type="long">
    _markers(rf"<\s*(?:\w+:)?{_NAMES}(?:\s[^<>]{{0,100}})?/?>", rf"<\s*/\s*(?:\w+:)?{_NAMES}\s*>"),
    _markers(r"\[\s*THINK\s*\]", r"\[\s*/\s*THINK\s*\]"),  # Mistral
    _markers(r"◁\s*think\s*▷", r"◁\s*/\s*think\s*▷"),  # Kimi-VL
    _markers(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    _markers(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Cohere
    _markers(r"<\|channel>\s*thought", r"<channel\|>"),  # Gemma 4
    _markers(r"<unused94>\s*thought", r"<unused95>"),  # MedGemma
)
"""Every kind of markers that delimits reasoning."""

_CHANNEL = re.compile(r"\A\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>", re.IGNORECASE)
_FINAL = re.compile(
    r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>", re.IGNORECASE
)
# gpt-oss, from a server that drops the special tokens and keeps the words between them
_BARE_CHANNELS = re.compile(r"\Aanalysis\S.*assistant\s*final", re.DOTALL)

_ANSWER = re.compile(
    r"<\|(?:begin|end)_of_(?:box|solution)\|>|<\|(?:START|END)_RESPONSE\|>", re.IGNORECASE
)
"""Markers around the answer itself (GLM, Cohere): the words between them stay."""

_ANSWER_TAGS = re.compile(r"\A\s*<answer>(.*?)(?:</answer>\s*)?\Z", re.DOTALL | re.IGNORECASE)
_END = re.compile(
    r"(?:\s*(?:<\|(?:end|return|im_end|eot_id|endoftext|end_of_text)\|>|</s>|<end_of_turn>))+\s*\Z"
)

_QUOTES = frozenset("`'\"\u2018\u2019\u201c\u201d\u00ab\u00bb")
_IN_A_SENTENCE = re.compile(r"[ \t](?=[a-z0-9,.;:!?)])|[,;:!?)]|\.(?=\s|\Z)")


def without_reasoning(answer: str) -> str:
    """Remove the reasoning from an answer; nothing remains of an answer that is reasoning only."""
    text = _END.sub("", _last_channel(answer))
    for markers in _REASONING:
        text = _after_reasoning(text, markers)
    text = _ANSWER.sub("", text)
    if tagged := _ANSWER_TAGS.match(text):
        text = tagged[1]
    return text.strip()


def _last_channel(text: str) -> str:
    """Keep the final channel of gpt-oss."""
    if _CHANNEL.match(text):
        finals = list(_FINAL.finditer(text))
        return text[finals[-1].end() :] if finals else ""
    bare = _BARE_CHANNELS.match(text)
    return text[bare.end() :] if bare else text


def _after_reasoning(text: str, markers: _Markers) -> str:
    found = False
    while opening := markers.opening.match(text.lstrip()):
        found = True
        rest = text.lstrip()[opening.end() :]
        if opening[0].rstrip(">").endswith("/"):  # <think/>
            text = rest
            continue
        end = _end_of_block(rest, markers)
        if end is None:
            return ""  # the token limit ended the reasoning
        text = rest[end:]
    # A chat template may have written the opening marker, so that the answer has only the other.
    while (end := _lone_end(text, markers)) is not None:
        found = True
        text = text[end:]
    return _without_later_blocks(text, markers) if found else text


def _end_of_block(rest: str, markers: _Markers) -> int | None:
    """Find the end of the reasoning, which can contain blocks or mention a marker."""
    depth, last_closing = 1, None
    for marker in markers.either.finditer(rest):
        if marker["opening"]:
            depth += 1
            continue
        depth, last_closing = depth - 1, marker.end()
        if depth == 0:
            break
    return last_closing  # with a depth left, a mention of the opening marker was counted


def _lone_end(text: str, markers: _Markers) -> int | None:
    """Find a closing marker without an opening one, except in a sentence or in code."""
    for marker in markers.either.finditer(text):
        if marker["opening"]:
            return None
        if not _is_mention(text, marker):
            return marker.end()
    return None


def _without_later_blocks(text: str, markers: _Markers) -> str:
    """Remove the blocks that begin a line, because this answer used their markers before."""
    position = 0
    while opening := markers.opening.search(text, position):
        before = text[: opening.start()]
        starts_line = not before.rpartition("\n")[2].strip()
        if not starts_line or _in_code(before):
            position = opening.end()
            continue
        end = _end_of_block(text[opening.end() :], markers)
        text = before + ("" if end is None else text[opening.end() + end :])
        position = len(before)
    return text


def _is_mention(text: str, marker: re.Match[str]) -> bool:
    """Check whether a sentence or code shows a marker instead of using it."""
    before, after = text[: marker.start()], text[marker.end() :]
    if _in_code(before) or before[-1:] in _QUOTES:
        return True
    within_line = before[-1:] in {" ", "\t"} and before.rstrip(" \t")[-1:] not in "\n.!?…"
    return within_line and _IN_A_SENTENCE.match(after) is not None


def _in_code(before: str) -> bool:
    return before.count("```") % 2 == 1 or before.rpartition("\n")[2].count("`") % 2 == 1
