"""A text-only LLM of LlamaIndex that answers by a script, and keeps what it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic import Field
from typing_extensions import override

__all__ = ["Call", "ScriptedText", "text_of"]


class Call(dict[str, Any]):
    """A tool call as an answer: a name, and arguments."""

    def __init__(self, name: str, /, **arguments: Any) -> None:
        super().__init__(arguments)
        self.name = name


def text_of(messages: Sequence[ChatMessage]) -> str:
    """All that an LLM reads of a conversation."""
    return "\n".join(message.content or "" for message in messages)


class ScriptedText(FunctionCallingLLM):
    """Gives the answers in their order, the last one for all further requests.

    An answer is a text, a `Call`, or a function of the messages that gives one of them.
    """

    answers: list[Any] = Field(default_factory=lambda: ["It is text."])
    calls_functions: bool = True
    read: list[list[ChatMessage]] = Field(default_factory=list)
    given: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            model_name="scripted-text",
            context_window=100_000,
            is_chat_model=True,
            is_function_calling_model=self.calls_functions,
        )

    def _answer(self, messages: Sequence[ChatMessage], given: dict[str, Any]) -> ChatResponse:
        assert all(block.block_type != "image" for m in messages for block in m.blocks)
        answers = self.answers
        answer = answers[min(len(self.read), len(answers) - 1)]
        self.read.append(list(messages))
        self.given.append(given)
        if isinstance(answer, Callable):  # type: ignore[arg-type]
            answer = answer(messages)
        if isinstance(answer, Call):
            block: Any = ToolCallBlock(
                tool_call_id="1", tool_name=answer.name, tool_kwargs=dict(answer)
            )
        else:
            block = TextBlock(text=answer)
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[block])
        return ChatResponse(message=message, raw={"usage": 7}, delta=message.content)

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._answer(messages, kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._answer(messages, kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return iter([self._answer(messages, kwargs)])  # type: ignore[return-value]

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        async def chunks() -> ChatResponseAsyncGen:
            yield self._answer(messages, kwargs)

        return chunks()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        response = self._answer([ChatMessage(prompt)], {**kwargs, "formatted": formatted})
        text = response.message.content or ""
        return CompletionResponse(text=text, raw=response.raw, delta=text)

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        return self.complete(prompt, formatted, **kwargs)

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        return iter([self.complete(prompt, formatted, **kwargs)])  # type: ignore[return-value]

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        async def chunks() -> CompletionResponseAsyncGen:
            yield self.complete(prompt, formatted, **kwargs)

        return chunks()

    @override
    def _prepare_chat_with_tools(
        self,
        tools: Any,
        user_msg: Any = None,
        chat_history: Any = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or ())
        if user_msg is not None:
            messages.append(ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages, "tools": [t.metadata.get_name() for t in tools], **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        return [
            ToolSelection(tool_id="1", tool_name=block.tool_name, tool_kwargs=block.tool_kwargs)
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock) and isinstance(block.tool_kwargs, dict)
        ]
