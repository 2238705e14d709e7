"""The pictures of a conversation: found in messages, asked about, replaced by words."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from langchain_phospho.chat_models import ChatPhospho
from langchain_phospho.errors import langchain_errors
from phospho_multimodal import (
    ConfigurationError,
    ImageError,
    PhosphoError,
    UnsupportedContentError,
)
from phospho_multimodal.images.prepare import LinkedImage, SendableImage, prepare_source
from phospho_multimodal.images.source import ImageSource
from phospho_multimodal.messages.content_blocks import BLOCK_KINDS, Block, read_content
from phospho_multimodal.messages.embedded_images import split_embedded_images

__all__ = [
    "ShownImage",
    "message_about",
    "opened",
    "prepared",
    "require_chat_phospho",
    "shown_images",
    "with_words",
]

ShownImage: TypeAlias = ImageSource | PhosphoError
"""A picture of a message, or the reason why it cannot be looked at."""

_Visitor: TypeAlias = Callable[[ShownImage], str | None]

_TYPES = ("mime_type", "media_type", "mimeType", "mediaType")


def opened(message: BaseMessage) -> BaseMessage:
    """Make a block of each picture that a tool wrote into its text.

    To look for them in megabytes takes its time: this does not belong on an event loop.

    Args:
        message: Of any role; it stays as it is.

    Returns:
        The message, or a copy with such blocks.
    """
    if not isinstance(message, ToolMessage):
        return message
    content: Any = message.content
    blocks = content if isinstance(content, list) else [content]
    apart = [part for block in blocks for part in _apart(block)]
    return message if apart == blocks else message.model_copy(update={"content": apart})


def shown_images(message: BaseMessage) -> list[ShownImage]:
    """Find the pictures of a message, in every form that `ChatPhospho` knows.

    Args:
        message: Of any role; that of a tool has been `opened`.

    Returns:
        The pictures in their order; what is no picture is none of our business.
    """
    pictures: list[ShownImage] = []
    # A visitor that has no words for a picture leaves it where it is.
    _walk(message.content, pictures.append)
    return pictures


def with_words(message: BaseMessage, words: Iterator[str]) -> BaseMessage:
    """Put words in the place of a message's pictures.

    Args:
        message: It stays as it is.
        words: For each of its pictures, in their order.

    Returns:
        A copy without pictures. What is text alone then becomes one string, the only content that
        some text models take; an assistant's stays blocks, as its version may demand.
    """
    content = _walk(message.content, lambda _: next(words))
    if not isinstance(message, AIMessage) and all(map(_is_plain, content)):
        content = "\n".join(
            block if isinstance(block, str) else str(block["text"]) for block in content
        )
    return message.model_copy(update={"content": content})


def require_chat_phospho(model: object, owner: str) -> ChatPhospho:
    """Refuse a model that is wrapped, or not a `ChatPhospho`.

    Args:
        model: The model that was passed.
        owner: The class that it was passed to.

    Returns:
        The model.

    Raises:
        PhosphoConfigurationError: The model is something else.
    """
    if isinstance(model, ChatPhospho):
        return model
    message = (
        f"{owner} takes a ChatPhospho, got {type(model).__name__}. Pass the model itself,"
        " without bind, with_retry or with_fallbacks around it."
    )
    with langchain_errors():
        raise ConfigurationError(message)


def prepared(source: ImageSource, model: ChatPhospho) -> SendableImage:
    """Make of a picture what a model sends.

    Args:
        source: The picture.
        model: Who will be asked; its settings decide.

    Returns:
        The picture, or the link.

    Raises:
        PhosphoModelError: It cannot be read, is of an unsupported type, or over a limit.
    """
    with langchain_errors():
        # The model makes tiles itself, of all the pixels that there are.
        whole = model.prepare and model.detail == "auto"
        return prepare_source(source, max_image_side=model.max_image_side, prepare=whole)


def message_about(image: SendableImage, question: str) -> HumanMessage:
    """Ask about a picture.

    Args:
        image: The picture as it is sent: small and without metadata, which a trace then keeps too.
        question: The question.

    Returns:
        The message, with the block that LangChain's own tracing understands.
    """
    if isinstance(image, LinkedImage):
        block = {"type": "image", "url": image.url}
    else:
        kind = f"image/{image.format.lower()}"
        block = {"type": "image", "base64": image.to_wire(), "mime_type": kind}
    return HumanMessage([{"type": "text", "text": question}, block])


def _apart(block: Any) -> Iterator[Any]:
    text = block.get("text") if isinstance(block, Mapping) and _reading(block) == "text" else block
    parts = split_embedded_images(text) if isinstance(text, str) else []
    if not any(isinstance(part, ImageSource) for part in parts):
        yield block
        return
    for part in parts:
        yield part if isinstance(part, str) else {"type": "image", part.form: part.value}


def _walk(content: Any, visit: _Visitor) -> Any:
    if isinstance(content, Mapping):
        return _walk_block(content, visit)
    return [_walk(each, visit) for each in content] if isinstance(content, list) else content


def _walk_block(block: Block, visit: _Visitor) -> Block:
    result = block.get("toolResult")
    if isinstance(result, Mapping):  # Bedrock's, which has no type
        return {**block, "toolResult": _walk_holder(result, visit)}
    if _reading(block) == "blocks":
        return _walk_holder(block, visit)
    inner = block.get("value")
    if _reading(block) == "wrapper" and isinstance(inner, Mapping):
        walked = _walk_block(inner, visit)
        return block if walked is inner else walked
    parts = _parts(block)
    if all(isinstance(part, str) for part in parts):
        return block
    # What a provider's own tool gave can hold several pictures, and texts between them.
    words = [part if isinstance(part, str) else visit(part) for part in parts]
    told = [word for word in words if word is not None]
    return {"type": "text", "text": "\n".join(told)} if len(told) == len(words) else block


def _walk_holder(holder: Block, visit: _Visitor) -> Block:
    held = {key: _walk(holder[key], visit) for key in ("content", "output") if holder.get(key)}
    return {**holder, **held}


def _parts(block: Block) -> list[str | ShownImage]:
    """Read the texts and pictures of a block; what cannot be looked at is an error."""
    try:
        return cast("list[str | ShownImage]", list(read_content(block)))
    except ImageError as error:
        return [error]
    except UnsupportedContentError as error:
        # A PDF or a sound is for the driving model to take or to refuse.
        return [error] if _claims_to_be_a_picture(block) else []


def _reading(block: Block) -> str | None:
    kind = block.get("type")
    return BLOCK_KINDS.get(kind) if isinstance(kind, str) else None


def _claims_to_be_a_picture(block: Block) -> bool:
    if _reading(block) == "image" or any(BLOCK_KINDS.get(key) == "image" for key in block):
        return True
    holders = [block, *(held for held in block.values() if isinstance(held, Mapping))]
    return any(
        str(holder.get(key)).lower().startswith("image/") for holder in holders for key in _TYPES
    )


def _is_plain(block: Any) -> bool:
    return isinstance(block, str) or (
        cast("dict[str, Any]", block).keys() == {"type", "text"} and block["type"] == "text"
    )
