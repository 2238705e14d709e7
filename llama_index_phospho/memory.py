"""`ImageMemoryBlock`: keep the newest image of a conversation when a memory is full."""

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemoryBlock
from pydantic import Field
from typing_extensions import override

from llama_index_phospho.content import has_image

__all__ = ["ImageMemoryBlock"]

_SESSION = "session_id"


class ImageMemoryBlock(BaseMemoryBlock[list[ChatMessage]]):
    """Keep the newest message with an image when a `Memory` drops its oldest messages.

    Without this block, a long chat about an image in its first message ends in a
    `MissingImageError`. The block adds the message to the conversation again only if no other
    message has an image. One block can serve the memories of many sessions.

    Example:
        ```python
        memory = Memory.from_defaults(session_id="s", memory_blocks=[ImageMemoryBlock()])
        answer = await agent.run("And the date?", memory=memory)
        ```
    """

    name: str = "image"
    """The name of the block."""
    priority: int = 0
    """0: the memory never truncates it."""
    kept: dict[str, ChatMessage] = Field(default_factory=dict, repr=False)
    """The message of each session."""

    @override
    async def _aget(
        self, messages: list[ChatMessage] | None = None, **block_kwargs: Any
    ) -> list[ChatMessage]:
        kept = self.kept.get(str(block_kwargs.get(_SESSION)))
        return [] if kept is None or has_image(messages or ()) else [kept]

    @override
    async def _aput(self, messages: list[ChatMessage]) -> None:
        for message in messages:
            if has_image([message]):
                rest = dict(message.additional_kwargs)
                session = str(rest.pop(_SESSION, None))
                self.kept[session] = message.model_copy(update={"additional_kwargs": rest})
