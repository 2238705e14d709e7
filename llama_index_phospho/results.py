"""Answers of the core as responses and tool selections of LlamaIndex."""

from collections.abc import Mapping

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection

from llama_index_phospho.content import tool_calls
from phospho_multimodal import Prediction
from phospho_multimodal.messages.conversation import ToolCall
from phospho_multimodal.tools.json_objects import to_compact_json
from phospho_multimodal.tools.parsing import Answer, no_tool_call_error

__all__ = ["chat_response", "completion_response", "tool_selections"]


def chat_response(answer: Answer, *, streamed: bool = False) -> ChatResponse:
    """Make the response of a chat; if `streamed`, it is the only chunk of a stream."""
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=answer.text)])
    if answer.call is not None:
        message = _call_message(answer.call)
    return ChatResponse(
        message=message,
        raw=dict(answer.metadata),
        delta=answer.text if streamed else None,
    )


def completion_response(prediction: Prediction, *, streamed: bool = False) -> CompletionResponse:
    """Make the response of a completion; if `streamed`, it is the only chunk of a stream."""
    text = prediction.description
    return CompletionResponse(
        text=text, raw=dict(prediction.metadata), delta=text if streamed else None
    )


def tool_selections(response: ChatResponse, *, error_on_no_tool_call: bool) -> list[ToolSelection]:
    """Read the tool calls of a response, at most one.

    If `error_on_no_tool_call`, raise `NoToolCallError` without a call that can be run.
    """
    calls = tool_calls(response.message)
    if error_on_no_tool_call:
        raw = response.raw if isinstance(response.raw, Mapping) else {}
        problem = raw.get("tool_call_problem") or (None if calls else "it called none")
        if problem is not None:
            message = f"The model had to call a tool, and {problem}."
            advice = "Ask more precisely, or do not require a call."
            raise no_tool_call_error(message, [raw], advice=advice)
    return [
        ToolSelection(tool_id=call.id or "", tool_name=call.name, tool_kwargs=dict(call.arguments))
        for call in calls
    ]


def _call_message(call: ToolCall) -> ChatMessage:
    arguments = dict(call.arguments)
    function = {"name": call.name, "arguments": to_compact_json(arguments)}
    return ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments)],
        # Core's streams of structured output read the call only from this copy in OpenAI's form.
        additional_kwargs={
            "tool_calls": [{"id": call.id, "type": "function", "function": function}]
        },
    )
