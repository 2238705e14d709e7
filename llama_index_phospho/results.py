"""Answers of the core as responses of LlamaIndex."""

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
)

from phospho_multimodal import Prediction

__all__ = ["chat_response", "completion_response"]


def chat_response(prediction: Prediction, *, streamed: bool = False) -> ChatResponse:
    """Make the response of a chat.

    Args:
        prediction: The answer.
        streamed: Whether it is the one chunk of a stream, which is all new text.

    Returns:
        The response; what the answer tells about itself is in `raw`.
    """
    text = prediction.description
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text)]),
        raw=dict(prediction.metadata),
        delta=text if streamed else None,
    )


def completion_response(prediction: Prediction, *, streamed: bool = False) -> CompletionResponse:
    """Make the response of a completion.

    Args:
        prediction: The answer.
        streamed: Whether it is the one chunk of a stream, which is all new text.

    Returns:
        The response; what the answer tells about itself is in `raw`.
    """
    text = prediction.description
    return CompletionResponse(
        text=text, raw=dict(prediction.metadata), delta=text if streamed else None
    )
