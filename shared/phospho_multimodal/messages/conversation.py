"""Turn a conversation into the one prompt and the image that the endpoint takes.

Both adapters make the same turns of the same messages, so that both send the same request.
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
"""Replaces each image that is not sent in the text."""

UNREADABLE_IMAGE_MARK = "[image: cannot be read]"
"""Replaces an image of an older turn that cannot be sent."""


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
    """A tool call of the assistant.

    Attributes:
        name: The tool's name as the model wrote it.
        arguments: The arguments by name.
        id: The id that the tool's result refers to.
    """

    name: str
    arguments: Mapping[str, Any] = field(repr=False)
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: The speaker.
        parts: Texts, images, and marks of omitted parts, in their order.
        name: The name of the tool or the speaker.
        calls: The assistant's tool calls. They are not in the text. The tool protocol writes them
            into the prompt if there are tools.
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
                message = f"A prompt must be text, got {type(part).__name__}. Nothing was sent."
                raise UnsupportedContentError(message)
        object.__setattr__(self, "images", tuple(images))


@dataclass(frozen=True, slots=True)
class ConversationPlan:
    """The prompt and the images of one call.

    Attributes:
        text: The prompt.
        images: The images that are sent.
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
    """Decide what is asked about which images; the newest turn with an image decides.

    A single user turn is sent as its text, unchanged. A longer conversation becomes a transcript.
    """
    deciding, newest_user, images, content_omitted = -1, 0, 0, 0
    unreadable: list[OmittedPart] = []
    for index, turn in enumerate(turns):
        if turn.role == "user":
            newest_user = index
        if turn.images:
            deciding = index
            images += len(turn.images)
        for part in turn.parts:
            if isinstance(part, OmittedPart) and part.is_image:
                unreadable.append(part)
            elif isinstance(part, OmittedPart):
                content_omitted += 1
    if deciding >= 0:
        sent, name = _choose(turns[deciding].images, policy)
        images -= len(sent)
        text = _text(turns, policy, deciding, sent)
    elif policy.default_image is not None:
        sent, name = (policy.default_image,), "default_image"
        text = _text(turns, policy, deciding, ())
    else:
        raise _missing_image(unreadable)
    return ConversationPlan(
        text,
        sent,
        name,
        images_omitted=images + len(unreadable),
        content_omitted=content_omitted,
        is_about_older_turn=0 <= deciding < newest_user,
        one_answer=policy.one_answer,
    )


def count_older_turns(roles: Iterable[Role]) -> int:
    """Count the turns before the newest user turn.

    Their content must not raise errors, because a stored conversation keeps them forever.
    """
    older = 0
    for index, role in enumerate(roles):
        if role == "user":
            older = index
    return older


def omitted_part(
    kind: str = "", media_type: str | None = None, *, reason: object = ""
) -> OmittedPart:
    """Make the mark of an omitted part, such as `[file: application/pdf, not sent]`.

    `kind` is `"image"`, `"file"`, or the framework's name for the part.
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
    # A message declares this type, so only a well-formed MIME type is repeated.
    more = f": {declared}" if _MEDIA_TYPE.fullmatch(declared) else ""
    return OmittedPart(f"[file{more}, not sent]", is_image=False)


def mark_unreadable(turns: Sequence[Turn], reasons: Mapping[int, str]) -> list[Turn]:
    """Replace unreadable images with a mark; `reasons` has the reason by the image's `id()`."""

    def marked(part: Part) -> Part:
        reason = reasons.get(id(part))
        return part if reason is None else OmittedPart(reason=reason)

    return [replace(turn, parts=tuple(map(marked, turn.parts))) for turn in turns]


def cut_at_stop(text: str, stop: Iterable[str] | None) -> str:
    """Cut an answer at the first stop string, because the endpoint knows no stop strings."""
    end = len(text)
    for mark in stop or ():
        position = text.find(mark) if mark else -1
        if 0 <= position < end:
            end = position
    return text[:end]


def _missing_image(unreadable: Sequence[OmittedPart]) -> MissingImageError:
    missing = "There is no image in the conversation"
    if unreadable:
        reason = unreadable[-1].reason
        missing = f"The newest image cannot be read. {reason} There is no other image"
    message = (
        f"{missing}, and this endpoint only answers about an image. Nothing was sent. Add an"
        " image to a message, or set default_image= for calls without one, such as agent steps."
    )
    return MissingImageError(message)


def _choose(
    images: tuple[ImageSource, ...], policy: ImagePolicy
) -> tuple[tuple[ImageSource, ...], str]:
    """Choose the images that are sent, and name the rule that chose them."""
    if len(images) == 1:
        return images, "single"
    if policy.multi_image == "last":
        return images[-1:], "last"
    turn_has = f"The turn has {len(images)} images"
    if policy.multi_image == "error":
        message = (
            f"{turn_has}, the endpoint takes one, and multi_image='error'."
            " Nothing was sent. Send one image, or set multi_image='last'."
        )
        raise UnsupportedContentError(message)
    if len(images) > policy.max_images:
        message = (
            f"{turn_has} and max_images is {policy.max_images}."
            " Nothing was sent. Send fewer images, or increase max_images=."
        )
        raise UnsupportedContentError(message)
    if policy.multi_image == "each" and policy.one_answer:
        message = (
            f"{turn_has}, and multi_image='each' makes an answer for each image, but a call with"
            " tools or a schema reads one answer. Nothing was sent. Send one image, or set"
            " multi_image='montage' or 'last'."
        )
        raise UnsupportedContentError(message)
    return images, policy.multi_image


def _text(
    turns: Sequence[Turn], policy: ImagePolicy, deciding: int, sent: tuple[ImageSource, ...]
) -> str:
    if len(turns) == 1 and turns[0].role == "user":
        return _turn_text(turns[0], policy, len(sent), needs_prompt=True)
    system: list[str] = []
    lines: list[str] = []
    for index, turn in enumerate(turns):
        if turn.role == "system":
            if text := _turn_text(turn, policy):
                system.append(text)
            continue
        decides = index == deciding
        text = _turn_text(
            turn,
            policy,
            len(sent) if decides else 0,
            needs_prompt=decides and turn.role == "user",
        )
        if text or decides:
            name = to_label(turn.name or "")
            label = f"{_LABELS[turn.role]} ({name})" if name else _LABELS[turn.role]
            lines.append(f"{label}: {text}".rstrip())
    return "\n".join([*system, *lines]) or policy.default_prompt


def _turn_text(
    turn: Turn, policy: ImagePolicy, images_sent: int = 0, *, needs_prompt: bool = False
) -> str:
    """Join the texts of a turn, with a mark for each image that is not sent."""
    unsent = len(turn.images) - images_sent  # the images sent are the last ones of the turn
    pieces: list[str] = []
    has_text = False
    for part in turn.parts:
        if isinstance(part, str):
            pieces.append(part)
            has_text = has_text or bool(part.strip())
        elif isinstance(part, OmittedPart):
            pieces.append(part.mark)
        elif unsent:
            unsent -= 1
            pieces.append(IMAGE_MARK)
    if needs_prompt and not has_text:
        pieces = [piece for piece in pieces if piece.strip()]  # the marks
        pieces.append(policy.default_prompt)
    return "\n".join(pieces)
