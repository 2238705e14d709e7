"""Models that do nothing: what each framework costs before a plugin has done anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index.core.multi_modal_llms import MultiModalLLM

from stub import ANSWER

__all__ = ["NullChatModel", "NullLLM", "NullMultiModal"]


class NullChatModel(BaseChatModel):
    """Of LangChain."""

    @property
    def _llm_type(self) -> str:
        return "null"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(ANSWER))])

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        return self._generate(messages)


class NullLLM(LLM):
    """Of LlamaIndex."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="null", is_chat_model=True)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(ANSWER, role="assistant"))

    @llm_completion_callback()
    def complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponse:
        return CompletionResponse(text=ANSWER)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(ANSWER, role="assistant"))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponse:
        return CompletionResponse(text=ANSWER)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        raise NotImplementedError

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        raise NotImplementedError

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


class NullMultiModal(NullLLM, MultiModalLLM):
    """Of LlamaIndex, for images beside a prompt."""
