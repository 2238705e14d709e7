"""Answers of the core as responses of LlamaIndex."""

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

from phospho_multimodal import Prediction
from phospho_multimodal.messages.conversation import ToolCall
from phospho_multimodal.tools.json_objects import to_compact_json
from phospho_multimodal.tools.parsing import Answer

__all__ = ["chat_response", "completion_response"]


def chat_response(answer: Answer, *, streamed: bool = False) -> ChatResponse:
    """Make the response of a chat.

    Args:
        answer: The answer.
        streamed: Whether it is the one chunk of a stream, which is all new text.

    Returns:
        The response; what the answer tells about itself is in `raw`.
    """
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=answer.text)])
    if answer.call is not None:
        message = _call_message(answer.call)
    return ChatResponse(
        message=message,
        raw=dict(answer.metadata),
        delta=answer.text if streamed else None,
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


def _call_message(call: ToolCall) -> ChatMessage:
    arguments = dict(call.arguments)
    function = {"name": call.name, "arguments": to_compact_json(arguments)}
    return ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments)],
        # The same in OpenAI's form: core's streams of structured output look nowhere else.
        additional_kwargs={
            "tool_calls": [{"id": call.id, "type": "function", "function": function}]
        },
    )
