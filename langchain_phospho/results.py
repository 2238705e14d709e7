"""Turn an answer of the core into LangChain's results."""

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from phospho_multimodal.tools.json_objects import to_compact_json
from phospho_multimodal.tools.parsing import Answer

__all__ = ["chat_chunk", "chat_result"]


def chat_result(answer: Answer) -> ChatResult:
    """Make the result of a call: one message, whose metadata say what was sent and billed."""
    call = answer.call
    calls = [] if call is None else [tool_call(name=call.name, args=_arguments(answer), id=call.id)]
    message = AIMessage(
        content=answer.text,
        tool_calls=calls,
        invalid_tool_calls=_invalid(answer),
        response_metadata=_response_metadata(answer),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def chat_chunk(answer: Answer) -> ChatGenerationChunk:
    """Make the only and last chunk of a stream, because the endpoint sends whole answers."""
    call = answer.call
    written = to_compact_json(_arguments(answer))
    chunks = (
        [] if call is None else [tool_call_chunk(name=call.name, args=written, id=call.id, index=0)]
    )
    message = AIMessageChunk(
        content=answer.text,
        tool_call_chunks=chunks,
        invalid_tool_calls=_invalid(answer),
        response_metadata=_response_metadata(answer),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def _arguments(answer: Answer) -> dict[str, Any]:
    return {} if answer.call is None else dict(answer.call.arguments)


def _invalid(answer: Answer) -> list[Any]:
    if answer.invalid_tool_name is None:
        return []
    # A JSON string, because LangChain completes truncated JSON when it adds chunks. It would make a
    # call that runs on a part of its arguments.
    return [
        invalid_tool_call(
            name=answer.invalid_tool_name or None,
            args=to_compact_json(answer.text),
            id=None,
            error=answer.metadata["tool_call_problem"],
        )
    ]


def _response_metadata(answer: Answer) -> dict[str, Any]:
    # The endpoint reports neither a truncated answer (finish_reason "length") nor token counts
    # (usage_metadata).
    reason = "stop" if answer.call is None else "tool_calls"
    return {**answer.metadata, "finish_reason": reason}
