"""From the turns of a conversation to the one text and the image that the endpoint takes.

Both adapters turn their messages into these turns, so that the same messages are the same request
in either framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

from phospho_multimodal.errors import MissingImageError, UnsupportedContentError
from phospho_multimodal.images.source import ImageSource
from phospho_multimodal.messages.image_policy import DEFAULT_PROMPT, ImagePolicy, MultiImage
from phospho_multimodal.messages.untrusted_text import to_label

__all__ = [
    "DEFAULT_PROMPT",
    "ConversationPlan",
    "ImagePolicy",
    "MultiImage",
    "OmittedPart",
    "Part",
    "Role",
    "ToolCall",
    "Turn",
    "count_older_turns",
    "cut_at_stop",
    "mark_unreadable",
    "omitted_part",
    "plan_conversation",
]

IMAGE_MARK = "[image]"
"""Stands in the text for every image that is not sent."""

UNREADABLE_IMAGE_MARK = "[image: cannot be read]"
"""Stands in the text for an image of an older turn that cannot be sent."""


@dataclass(frozen=True, slots=True)
class OmittedPart:
    """A part of an older turn that the endpoint cannot take, such as a PDF.

    Attributes:
        mark: The words that replace the part in the text.
        is_image: Whether the part is an image.
        reason: Why the part cannot be sent: the message of the error.
    """

    mark: str = UNREADABLE_IMAGE_MARK
    is_image: bool = True
    reason: str = field(default="", compare=False)


Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Part: TypeAlias = str | ImageSource | OmittedPart

_MEDIA_TYPE = re.compile(r"[a-z]{1,20}/[a-z0-9.+-]{1,80}")

_LABELS: dict[Role, str] = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool, made or asked for.

    Attributes:
        name: The tool's name as the model wrote it.
        arguments: By name.
        id: What the tool's answer refers to.
    """

    name: str
    arguments: Mapping[str, Any] = field(repr=False)
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: who speaks, and texts and images in their order.

    Attributes:
        role: Who speaks.
        parts: Texts, images, and marks of what is omitted.
        name: The name of the tool or the speaker.
        calls: Of the assistant: the tools it called. They are no part of the text; the tool
            protocol shows them where there are tools.
        images: The images among the parts, in their order.
    """

    role: Role
    parts: tuple[Part, ...] = field(repr=False)
    name: str | None = None
    calls: tuple[ToolCall, ...] = ()
    images: tuple[ImageSource, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        images: list[ImageSource] = []
        for part in cast("tuple[object, ...]", self.parts):
            if isinstance(part, ImageSource):
                images.append(part)
            elif not isinstance(part, (str, OmittedPart)):
                message = f"A prompt is text, and this is a {type(part).__name__}."
                raise UnsupportedContentError(message)
        # Picked out once: every step of a question asks for them.
        object.__setattr__(self, "images", tuple(images))


@dataclass(frozen=True, slots=True)
class ConversationPlan:
    """What will be asked.

    Attributes:
        text: The one text.
        images: What it is asked about.
        policy: `"single"`, `"default_image"`, or the `multi_image` value that decided.
        images_omitted: How many images of the conversation are not sent.
        content_omitted: How many other parts (PDF, audio, …) of older turns are not sent.
        is_about_older_turn: Whether the images are from a turn before the newest user turn.
        one_answer: Whether a program reads the answer, so that there can be only one.
    """

    text: str = field(repr=False)
    images: tuple[ImageSource, ...]
    policy: str
    images_omitted: int
    content_omitted: int = 0
    is_about_older_turn: bool = False
    one_answer: bool = False


def plan_conversation(turns: Sequence[Turn], policy: ImagePolicy) -> ConversationPlan:
    """Decide what is asked about which image.

    The newest turn with an image decides, whatever its role. A lone user turn is its own text,
    unchanged; anything longer becomes a transcript.

    Args:
        turns: Oldest first.
        policy: What to do with several images, and with none.

    Returns:
        The plan.

    Raises:
        MissingImageError: There is no image, and no `default_image`.
        UnsupportedContentError: There are more images than the policy allows.
    """
    omitted = [part for turn in turns for part in turn.parts if isinstance(part, OmittedPart)]
    unreadable = [part for part in omitted if part.is_image]
    other = len(omitted) - len(unreadable)
    deciding = next((turn for turn in reversed(turns) if turn.images), None)
    if deciding is None:
        if policy.default_image is None:
            raise _missing_image(unreadable)
        text = _text(turns, policy, deciding=None, sent=())
        images = (policy.default_image,)
        return ConversationPlan(
            text, images, "default_image", len(unreadable), other, one_answer=policy.one_answer
        )
    chosen, name = _choose(deciding.images, policy)
    total = len(unreadable) + sum(len(turn.images) for turn in turns)
    text = _text(turns, policy, deciding=deciding, sent=chosen)
    older = turns[: count_older_turns(turn.role for turn in turns)]
    is_older = any(turn is deciding for turn in older)
    return ConversationPlan(
        text,
        chosen,
        name,
        total - len(chosen),
        other,
        is_older,
        one_answer=policy.one_answer,
    )


def count_older_turns(roles: Iterable[Role]) -> int:
    """Count the turns before the newest user turn.

    What they hold must not be an error: a thread that is stored keeps it forever.

    Args:
        roles: The roles of all turns, oldest first.

    Returns:
        The index of the newest user turn; 0 without a user turn.
    """
    return max((index for index, role in enumerate(roles) if role == "user"), default=0)


def omitted_part(
    kind: str = "", media_type: str | None = None, *, reason: object = ""
) -> OmittedPart:
    """Make the mark that replaces a part of an older turn that cannot be sent.

    Args:
        kind: `"image"`, `"file"`, or what the part is called in its framework.
        media_type: The MIME type, if the part has one.
        reason: The error that the part is in the newest turn.

    Returns:
        A mark such as `[file: application/pdf, not sent]`.
    """
    declared = (media_type or "").lower()
    what, kind = declared.partition("/")[0], kind.lower()
    if "image" in {what, kind}:
        return OmittedPart(reason=str(reason))
    for word in ("audio", "video"):
        if what == word or word in kind:
            return OmittedPart(f"[{word}, not sent]", is_image=False)
    if not declared and kind != "file":
        return OmittedPart("[content of an unknown type, not sent]", is_image=False)
    # The words of a message: only a plain MIME type is repeated.
    more = f": {declared}" if _MEDIA_TYPE.fullmatch(declared) else ""
    return OmittedPart(f"[file{more}, not sent]", is_image=False)


def mark_unreadable(turns: Sequence[Turn], reasons: Mapping[int, str]) -> list[Turn]:
    """Replace images that cannot be read with a mark in the text.

    Args:
        turns: The conversation.
        reasons: Why an image cannot be read, by the `id()` of the image.

    Returns:
        The conversation without these images.
    """

    def marked(part: Part) -> Part:
        reason = reasons.get(id(part))
        return part if reason is None else OmittedPart(reason=reason)

    return [replace(turn, parts=tuple(map(marked, turn.parts))) for turn in turns]


def cut_at_stop(text: str, stop: Iterable[str] | None) -> str:
    """Cut an answer at the first stop string; the endpoint knows none, so it is done here.

    Args:
        text: The whole answer, which was paid for.
        stop: Strings that end it; empty ones are ignored.

    Returns:
        What stands before the first of them.
    """
    positions = [text.find(mark) for mark in stop or () if mark]
    return text[: min((p for p in positions if p >= 0), default=len(text))]


def _missing_image(unreadable: Sequence[OmittedPart]) -> MissingImageError:
    there_is = "There is no image in the conversation"
    if unreadable:
        there_is = f"The newest image cannot be read. {unreadable[-1].reason} There is no other one"
    message = (
        f"{there_is}, and this endpoint answers about an image only. Nothing was sent. Add one to a"
        " message, or set default_image= for the steps of a chain or an agent that have none."
    )
    return MissingImageError(message)


def _choose(
    images: tuple[ImageSource, ...], policy: ImagePolicy
) -> tuple[tuple[ImageSource, ...], str]:
    if len(images) == 1:
        return images, "single"
    if policy.multi_image == "last":
        return images[-1:], "last"
    if policy.multi_image == "error":
        message = (
            f"The turn has {len(images)} images, the endpoint takes one, and multi_image='error'."
            " Nothing was sent. Send one, or choose multi_image='last'."
        )
        raise UnsupportedContentError(message)
    if len(images) > policy.max_images:
        message = (
            f"The turn has {len(images)} images and max_images is {policy.max_images}."
            " Nothing was sent. Send fewer, or raise max_images=."
        )
        raise UnsupportedContentError(message)
    if policy.multi_image == "each" and policy.one_answer:
        message = (
            f"The turn has {len(images)} images and multi_image='each' makes an answer for each,"
            " but with tools or a schema one answer is read. Nothing was sent. Send one image, or"
            " choose multi_image='montage' or 'last'."
        )
        raise UnsupportedContentError(message)
    return images, policy.multi_image


def _text(
    turns: Sequence[Turn],
    policy: ImagePolicy,
    *,
    deciding: Turn | None,
    sent: tuple[ImageSource, ...],
) -> str:
    if len(turns) == 1 and turns[0].role == "user":
        return _turn_text(turns[0], policy, sent=sent, asks=True)
    system = [_turn_text(turn, policy) for turn in turns if turn.role == "system"]
    lines = [text for text in system if text]
    for turn in turns:
        if turn.role == "system":
            continue
        decides = turn is deciding
        text = _turn_text(
            turn, policy, sent=sent if decides else (), asks=decides and turn.role == "user"
        )
        if text or decides:
            name = to_label(turn.name or "")
            label = f"{_LABELS[turn.role]} ({name})" if name else _LABELS[turn.role]
            lines.append(f"{label}: {text}".rstrip())
    return "\n".join(lines) or policy.default_prompt


def _turn_text(
    turn: Turn, policy: ImagePolicy, *, sent: tuple[ImageSource, ...] = (), asks: bool = False
) -> str:
    """Join a turn's texts; of its images, those that are not sent leave a mark."""
    unsent = len(turn.images) - len(sent)  # what is sent is always the end of the turn's images
    pieces: list[str] = []
    for part in turn.parts:
        if isinstance(part, str):
            pieces.append(part)
        elif isinstance(part, OmittedPart):
            pieces.append(part.mark)
        elif unsent:
            unsent -= 1
            pieces.append(IMAGE_MARK)
    if asks and not any(part.strip() for part in turn.parts if isinstance(part, str)):
        pieces = [piece for piece in pieces if piece.strip()]  # marks
        pieces.append(policy.default_prompt)
    return "\n".join(pieces)
