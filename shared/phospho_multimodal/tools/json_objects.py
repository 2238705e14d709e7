"""Find the JSON objects of a model's answer, and where they stand in it.

Thinking blocks are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from phospho_multimodal.tools.json_reader import ReadObject, read_object

__all__ = ["MAX_PARSED_LENGTH", "FoundObject", "find_json_objects", "to_compact_json"]

MAX_PARSED_LENGTH: Final = 8192
"""Characters of the longest answer that is parsed. 250 tokens have about a thousand."""

_MAX_OBJECTS: Final = 100  # further objects of an answer are not read

_THOUGHT: Final = (
    r"(?:[\w:.-]{0,20}(?:think|thought|reason)\w{0,12}|reflect\w{0,8}|scratch[_-]?pad|analysis"
    r"|\w{0,12}monologue|deliberat\w{0,8}|rationale|plan|planning|internal|details|examples?)"
)
_BRACKETED: Final = "(?:think|thinking|thought|reasoning)"
# <think>, <|begin_of_thought|>, <think type="…">, [THINK], ◁think▷; <think/> is empty.
_OPENING: Final = (
    rf"(?:<|&lt;)\|?\s?(?:begin_of_|start_)?{_THOUGHT}(?:\s[^<>&]{{0,200}})?(?<!/)\|?(?:>|&gt;)"
    rf"|\[{_BRACKETED}\]|◁{_THOUGHT}▷"
)
_CLOSING: Final = (
    rf"(?:<|&lt;)\|?\s?(?:/|end_of_|end_)\s?{_THOUGHT}\s?\|?(?:>|&gt;)"
    rf"|\[/{_BRACKETED}\]|◁/{_THOUGHT}▷"
)
# Channels and comments end with marks that elsewhere end a turn, or are only an arrow.
_CHANNEL: Final = r"<\|?channel\|?>\s?(?:analysis|thought|thinking)|<unused94>|<!--"
_CHANNEL_END: Final = r"<\|?channel\|?>|<\|end\|>|<\|start\|>|<unused95>|-->"
_TAG_PATTERN: Final = (
    f"(?P<channel>{_CHANNEL})|(?P<channel_end>{_CHANNEL_END})"
    f"|(?P<closing>{_CLOSING})|(?P<opening>{_OPENING})"
)
_TAG: Final = re.compile(_TAG_PATTERN, re.IGNORECASE)
_TAG_OR_BRACE: Final = re.compile(rf"(?P<brace>\{{)|{_TAG_PATTERN}", re.IGNORECASE)

# Tags, fences and the marks around list items do not count as prose.
_NO_PROSE: Final = re.compile(
    r"<[/|]?[\w|:.-]{1,40}(?:\s[\w-]{1,40}=[^<>\s]{0,80}){0,4}\s?[/|]?>"
    r"|\[/?[A-Z_]{3,40}\]|◁/?\w{1,40}▷|```\w*|[\[\](),;`]"
)
_CALL_TAG: Final = re.compile(
    r"(?:<\|?tool_?calls?\|?>|\[TOOL_CALLS\])[\s\[`]*(?:json)?\s*\Z", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One object of an answer; the first four fields are those of `ReadObject`."""

    value: Mapping[str, Any]
    whole: bool
    cut_off: bool = False
    markdown: bool = False
    prose_before: int = 0  # in characters
    on_own_line: bool = True  # it starts a line
    is_last: bool = True  # no prose follows
    in_call_tag: bool = False  # it follows `<tool_call>` or a similar tag
    in_list: bool = False


def find_json_objects(text: str, *, known: Iterable[str] = ()) -> list[FoundObject]:
    """Find the outermost JSON objects of an answer, outside of its thinking blocks, in their order.

    Objects inside of objects are not returned, even if the outer object is unreadable, because a
    part of an argument can look like a call. `known` lists texts that do not count as prose.
    """
    if len(text) > MAX_PARSED_LENGTH:
        return []
    scan = _Scan(text)
    scan.run()
    return scan.found(list(known))


def to_compact_json(value: object) -> str:
    """Write JSON on one line, without escapes for non-ASCII letters."""
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass(slots=True)
class _Scan:
    """One pass over an answer."""

    text: str
    objects: list[ReadObject] = field(default_factory=list)
    prose: list[str] = field(default_factory=lambda: [""])  # before each object, and after the last

    def run(self) -> None:
        position, level, in_channel = 0, 0, False
        while True:
            thinks = level > 0 or in_channel
            pattern = _TAG if thinks or len(self.objects) == _MAX_OBJECTS else _TAG_OR_BRACE
            match = pattern.search(self.text, position)
            if not thinks:
                self.prose[-1] += self.text[position : match.start() if match else None]
            if match is None:
                return
            position = match.end()
            if match.lastgroup == "brace":
                position = self._read(match.start())
            elif match.lastgroup == "opening":
                level += 1
            elif match.lastgroup == "channel":
                in_channel = True
            elif match.lastgroup == "channel_end":
                in_channel = False
            elif level:
                level -= 1
            else:  # Only the end of a block is there: everything before it belongs to the block.
                self.objects, self.prose, in_channel = [], [""], False

    def _read(self, begin: int) -> int:
        """Read an object and return its end, which is the end of the answer if it is cut off."""
        item = read_object(self.text, begin)
        if item.value or item.whole:
            self.objects.append(item)
            self.prose.append("")
        else:
            self.prose[-1] += self.text[begin : item.end]
        return item.end

    def found(self, known: list[str]) -> list[FoundObject]:
        """Describe the place of each object in the answer."""
        prose = [_without_tags(piece, known) for piece in self.prose]
        words_at = [number for number, piece in enumerate(prose) if re.search(r"\w", piece)]
        last = max(words_at, default=0)
        found: list[FoundObject] = []
        length = 0
        starts_line = True
        for number, item in enumerate(self.objects):
            between = self.prose[number] if number else ""
            if between.count("}") > between.count("{"):
                # The object before is a part of another one, whose beginning was not found.
                found.append(FoundObject({}, whole=False))
            words = " ".join(prose[number].split())
            length += len(words)
            line_begin = prose[number].rpartition("\n")
            starts_line = not line_begin[2].strip() and (bool(line_begin[1]) or starts_line)
            found.append(
                FoundObject(
                    item.value,
                    item.whole,
                    item.cut_off,
                    item.markdown,
                    prose_before=length,
                    on_own_line=starts_line,
                    is_last=number >= last,
                    in_list=self.prose[number].rstrip().endswith(("[", ",")),
                    in_call_tag=bool(_CALL_TAG.search(self.prose[number][-40:])),
                )
            )
        return found


def _without_tags(text: str, known: list[str]) -> str:
    for words in known:
        text = text.replace(words, "")
    return _NO_PROSE.sub("", text)
