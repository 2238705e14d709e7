"""From the core's answer to LangChain's results."""

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from phospho_multimodal import Prediction

__all__ = ["chat_chunk", "chat_result"]


def chat_result(prediction: Prediction) -> ChatResult:
    """Make the result of a call.

    Args:
        prediction: The core's answer.

    Returns:
        One message; its `response_metadata` tells what was sent and what it cost.
    """
    message = AIMessage(
        content=prediction.description, response_metadata=_response_metadata(prediction)
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def chat_chunk(prediction: Prediction) -> ChatGenerationChunk:
    """Make the only chunk of a stream: the endpoint sends an answer whole.

    Args:
        prediction: The core's answer.

    Returns:
        The whole answer, marked as the last chunk.
    """
    message = AIMessageChunk(
        content=prediction.description,
        response_metadata=_response_metadata(prediction),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def _response_metadata(prediction: Prediction) -> dict[str, Any]:
    # The endpoint does not tell whether an answer was cut at max_new_tokens: "length" would be a
    # guess. Nor does it count tokens, so there is no usage_metadata.
    return {**prediction.metadata, "finish_reason": "stop"}
