"""Find the images of messages, ask about them, and replace them with words."""

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
"""An image of a message, or the reason why it cannot be described."""

_Visitor: TypeAlias = Callable[[ShownImage], str | None]

_TYPES = ("mime_type", "media_type", "mimeType", "mediaType")


def opened(message: BaseMessage) -> BaseMessage:
    """Return a message in which each image that a tool wrote into its text is a block.

    The search takes time in megabytes of text, so call this on a thread, not on an event loop.
    """
    if not isinstance(message, ToolMessage):
        return message
    content: Any = message.content
    blocks = content if isinstance(content, list) else [content]
    content = [part for block in blocks for part in _split_text(block)]
    return message if content == blocks else message.model_copy(update={"content": content})


def shown_images(message: BaseMessage) -> list[ShownImage]:
    """Return the images of a message in any form that `ChatPhospho` reads, in their order."""
    images: list[ShownImage] = []
    # A visitor that returns None leaves the image where it is.
    _walk(message.content, images.append)
    return images


def with_words(message: BaseMessage, words: Iterator[str]) -> BaseMessage:
    """Return a copy of a message with words in place of its images.

    Content that has only text then becomes one string, because some text models take no list. The
    content of an assistant stays a list, because its `output_version` can require blocks.
    """
    content = _walk(message.content, lambda _: next(words))
    if not isinstance(message, AIMessage) and all(map(_is_plain, content)):
        content = "\n".join(
            block if isinstance(block, str) else str(block["text"]) for block in content
        )
    return message.model_copy(update={"content": content})


def require_chat_phospho(model: object, owner: str) -> ChatPhospho:
    """Return the model, or raise `PhosphoConfigurationError` if it is wrapped or another one."""
    if isinstance(model, ChatPhospho):
        return model
    message = (
        f"{owner} takes a ChatPhospho, got {type(model).__name__}. Pass the model itself, not the"
        " result of bind, with_retry or with_fallbacks."
    )
    with langchain_errors():
        raise ConfigurationError(message)


def prepared(source: ImageSource, model: ChatPhospho) -> SendableImage:
    """Prepare an image as a model would send it, or raise a `PhosphoModelError`."""
    with langchain_errors():
        # For tiles, the model itself needs all pixels.
        whole = model.prepare and model.detail == "auto"
        return prepare_source(source, max_image_side=model.max_image_side, prepare=whole)


def message_about(image: SendableImage, prompt: str) -> HumanMessage:
    """Make the message that asks about an image, with a block that LangChain can trace.

    A trace keeps the image as it is sent, which is small and without metadata.
    """
    if isinstance(image, LinkedImage):
        block = {"type": "image", "url": image.url}
    else:
        kind = f"image/{image.format.lower()}"
        block = {"type": "image", "base64": image.to_wire(), "mime_type": kind}
    return HumanMessage([{"type": "text", "text": prompt}, block])


def _split_text(block: Any) -> Iterator[Any]:
    text = block.get("text") if isinstance(block, Mapping) and _kind(block) == "text" else block
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
    if isinstance(result, Mapping):  # a block of Bedrock, which has no type
        return {**block, "toolResult": _walk_holder(result, visit)}
    if _kind(block) == "blocks":
        return _walk_holder(block, visit)
    inner = block.get("value")
    if _kind(block) == "wrapper" and isinstance(inner, Mapping):
        walked = _walk_block(inner, visit)
        return block if walked is inner else walked
    parts = _parts(block)
    if all(isinstance(part, str) for part in parts):
        return block
    # The result of a provider's own tool can hold several images, with texts between them.
    words = [part if isinstance(part, str) else visit(part) for part in parts]
    known = [word for word in words if word is not None]
    return {"type": "text", "text": "\n".join(known)} if len(known) == len(words) else block


def _walk_holder(holder: Block, visit: _Visitor) -> Block:
    held = {key: _walk(holder[key], visit) for key in ("content", "output") if holder.get(key)}
    return {**holder, **held}


def _parts(block: Block) -> list[str | ShownImage]:
    """Read the texts and images of a block, with an error in place of an unusable image."""
    try:
        return cast("list[str | ShownImage]", read_content(block))
    except ImageError as error:
        return [error]
    except UnsupportedContentError as error:
        # The agent's model decides about a PDF or audio.
        return [error] if _claims_to_be_an_image(block) else []


def _kind(block: Block) -> str | None:
    kind = block.get("type")
    return BLOCK_KINDS.get(kind) if isinstance(kind, str) else None


def _claims_to_be_an_image(block: Block) -> bool:
    if _kind(block) == "image" or any(BLOCK_KINDS.get(key) == "image" for key in block):
        return True
    holders = [block, *(held for held in block.values() if isinstance(held, Mapping))]
    return any(
        str(holder.get(key)).lower().startswith("image/") for holder in holders for key in _TYPES
    )


def _is_plain(block: Any) -> bool:
    return isinstance(block, str) or (
        cast("dict[str, Any]", block).keys() == {"type", "text"} and block["type"] == "text"
    )
