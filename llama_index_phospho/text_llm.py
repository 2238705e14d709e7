"""Requests without an image go to another LLM, if there is one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from pydantic import BaseModel, ConfigDict
from typing_extensions import Self, override

from llama_index_phospho.fields import PhosphoConfiguration
from phospho_multimodal import MissingImageError
from phospho_multimodal.on_demand import ModuleOnDemand

if TYPE_CHECKING:
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool

    from llama_index_phospho import content, results, structured_output, tool_calls
    from phospho_multimodal.exchange import prediction
    from phospho_multimodal.messages import conversation
    from phospho_multimodal.messages.conversation import Turn
    from phospho_multimodal.tools import parsing as tool_replies
    from phospho_multimodal.tools.prompt import ToolProtocol
else:
    content = ModuleOnDemand("llama_index_phospho.content")
    results = ModuleOnDemand("llama_index_phospho.results")
    structured_output = ModuleOnDemand("llama_index_phospho.structured_output")
    tool_calls = ModuleOnDemand("llama_index_phospho.tool_calls")
    conversation = ModuleOnDemand("phospho_multimodal.messages.conversation")
    prediction = ModuleOnDemand("phospho_multimodal.exchange.prediction")
    tool_replies = ModuleOnDemand("phospho_multimodal.tools.parsing")

__all__ = ["TextLLM", "WithTextLLM", "check_for_image"]

_POLICY = "text_llm"
"""The `image_policy` in the metadata of an answer of the other LLM."""

_NO_IMAGE = (
    "There is no image in the conversation, and this endpoint answers about an image only. Nothing"
    " was sent. A memory that is full drops the oldest messages and their image: give it an"
    " ImageMemoryBlock, or raise its token_limit= or context_window=. A query engine needs"
    " multimodal=True, and a context_window= that holds an image with its metadata. For steps"
    " without an image, set text_llm=, or default_image=, which is billed."
)

_OF_IMAGES = frozenset({"multi_image", "max_images", "default_image", "default_prompt"})

_Response = TypeVar("_Response", ChatResponse, CompletionResponse)


def check_for_image(turns: "Sequence[Turn]") -> None:
    """Refuse turns without an image.

    Args:
        turns: What is asked.

    Raises:
        MissingImageError: There is none.
    """
    parts = (part for turn in turns for part in turn.parts)
    omitted = conversation.OmittedPart  # of an image that cannot be read, the core says why
    if not any(turn.images for turn in turns) and not any(
        isinstance(part, omitted) and part.is_image for part in parts
    ):
        raise MissingImageError(_NO_IMAGE)


class TextLLM:
    """Another LLM, whose answers say that no image was billed."""

    def __init__(self, llm: LLM) -> None:
        """Send nothing yet.

        Args:
            llm: The model that answers.
        """
        self._llm = llm

    @property
    def calls_functions(self) -> bool:
        """Whether it takes tools by itself; others are asked for calls by prompt."""
        return (
            isinstance(self._llm, FunctionCallingLLM)
            and self._llm.metadata.is_function_calling_model
        )

    def chat(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> ChatResponse:
        """Pass a chat on."""
        asked = _Asked.of(messages, given)
        return asked.read(self._marked(self._llm.chat(asked.messages, **asked.given)))

    def stream_chat(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> ChatResponseGen:
        """Pass a chat on, as a stream; of one chunk, if a call has to be read out of it."""
        asked = _Asked.of(messages, given)
        if asked.protocol:
            whole = self._llm.chat(asked.messages, **asked.given)
            return (asked.read(self._marked(one), streamed=True) for one in [whole])
        chunks = self._llm.stream_chat(asked.messages, **asked.given)
        return (self._marked(chunk) for chunk in chunks)

    async def achat(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> ChatResponse:
        """Pass a chat on, with await."""
        asked = _Asked.of(messages, given)
        return asked.read(self._marked(await self._llm.achat(asked.messages, **asked.given)))

    async def astream_chat(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> ChatResponseAsyncGen:
        """Do as `stream_chat`, with await."""
        asked = _Asked.of(messages, given)
        if asked.protocol:

            async def answer() -> ChatResponseAsyncGen:
                whole = await self._llm.achat(asked.messages, **asked.given)
                yield asked.read(self._marked(whole), streamed=True)

            return answer()
        chunks = await self._llm.astream_chat(asked.messages, **asked.given)
        return (self._marked(chunk) async for chunk in chunks)

    def complete(
        self, prompt: str, formatted: object, given: Mapping[str, Any]
    ) -> CompletionResponse:
        """Pass a completion on."""
        return self._marked(
            self._llm.complete(prompt, formatted=formatted is True, **_for_text(given))
        )

    def stream_complete(
        self, prompt: str, formatted: object, given: Mapping[str, Any]
    ) -> CompletionResponseGen:
        """Pass a completion on, as a stream."""
        chunks = self._llm.stream_complete(prompt, formatted=formatted is True, **_for_text(given))
        return (self._marked(chunk) for chunk in chunks)

    async def acomplete(
        self, prompt: str, formatted: object, given: Mapping[str, Any]
    ) -> CompletionResponse:
        """Pass a completion on, with await."""
        return self._marked(
            await self._llm.acomplete(prompt, formatted=formatted is True, **_for_text(given))
        )

    async def astream_complete(
        self, prompt: str, formatted: object, given: Mapping[str, Any]
    ) -> CompletionResponseAsyncGen:
        """Pass a completion on, as a stream, with await."""
        chunks = await self._llm.astream_complete(
            prompt, formatted=formatted is True, **_for_text(given)
        )
        return (self._marked(chunk) async for chunk in chunks)

    def chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **given: Any
    ) -> ChatResponse:
        """Pass a chat with tools on."""
        return self._marked(self._with_tools().chat_with_tools(tools, *args, **given))

    def stream_chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **given: Any
    ) -> ChatResponseGen:
        """Pass a chat with tools on, as a stream."""
        chunks = self._with_tools().stream_chat_with_tools(tools, *args, **given)
        return (self._marked(chunk) for chunk in chunks)

    async def achat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **given: Any
    ) -> ChatResponse:
        """Pass a chat with tools on, with await."""
        return self._marked(await self._with_tools().achat_with_tools(tools, *args, **given))

    async def astream_chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **given: Any
    ) -> ChatResponseAsyncGen:
        """Pass a chat with tools on, as a stream, with await."""
        chunks = await self._with_tools().astream_chat_with_tools(tools, *args, **given)
        return (self._marked(chunk) async for chunk in chunks)

    def get_tool_calls_from_response(
        self, response: ChatResponse, **given: Any
    ) -> list["ToolSelection"]:
        """Read the tool calls out of a response of the other LLM."""
        return self._with_tools().get_tool_calls_from_response(response, **given)

    def _with_tools(self) -> FunctionCallingLLM:
        return cast("FunctionCallingLLM", self._llm)

    def _marked(self, response: _Response) -> _Response:
        """Say in the metadata who answered, beside what that LLM says itself."""
        raw = response.raw
        if isinstance(raw, BaseModel):
            raw = raw.model_dump()
        told = dict(raw) if isinstance(raw, Mapping) else {} if raw is None else {"raw": raw}
        told |= {
            "model_name": self._llm.metadata.model_name,
            "image_policy": _POLICY,
            "images": [],
            "images_billed": 0,
            "images_in_doubt": 0,
            "images_omitted": 0,
            "cost_usd": 0.0,
            "attempts": 0,
        }
        structured_output.record_prediction(told)
        return response.model_copy(update={"raw": told})


def _for_text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is about images; another LLM would refuse it, or pass it on."""
    return {name: value for name, value in given.items() if name not in _OF_IMAGES}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A chat as the other LLM gets it: unchanged, or with tools in its text."""

    messages: Sequence[ChatMessage]
    given: dict[str, Any]
    protocol: "ToolProtocol | None" = None
    turns: "Sequence[Turn]" = ()

    @classmethod
    def of(cls, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Self:
        rest = _for_text(given)
        if not rest.get("tools"):
            return cls(messages, rest)
        protocol = tool_calls.take_protocol(rest)
        turns = tool_calls.called_message_turns(messages)
        *told, instructions = protocol.turns(turns)
        return cls([_message(turn) for turn in (instructions, *told)], rest, protocol, turns)

    def read(self, response: ChatResponse, *, streamed: bool = False) -> ChatResponse:
        if self.protocol is None:
            return response
        answered = prediction.Prediction(response.message.content or "", cast("Any", response.raw))
        answer = tool_replies.read_answer(answered, self.protocol, self.turns)
        return results.chat_response(answer, streamed=streamed)


def _message(turn: "Turn") -> ChatMessage:
    text = "\n".join(part for part in turn.parts if isinstance(part, str))
    if turn.role == "tool":  # which an LLM without tools does not know
        return ChatMessage(role="user", content=f"Tool ({turn.name}): {text}")
    return ChatMessage(role=turn.role, content=text)


class WithTextLLM(PhosphoConfiguration):
    """The part of `Phospho` that decides which LLM answers."""

    model_config = ConfigDict(defer_build=True)

    def _text_llm_for(self, messages: Sequence[ChatMessage]) -> TextLLM | None:
        if self.text_llm is None or content.has_image(messages):
            return None
        return TextLLM(self.text_llm)

    def _text_llm_for_turns(self, turns: "Sequence[Turn]") -> TextLLM | None:
        if self.text_llm is None or any(turn.images for turn in turns):
            return None
        return TextLLM(self.text_llm)

    def _text_llm_of(self, response: ChatResponse) -> TextLLM | None:
        raw = response.raw
        if self.text_llm is None or not isinstance(raw, Mapping):
            return None
        other = TextLLM(self.text_llm)
        return other if raw.get("image_policy") == _POLICY and other.calls_functions else None

    def _text_llm_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None,
        history: Sequence[ChatMessage] | None,
    ) -> TextLLM | None:
        messages = list(history or ())
        if isinstance(user_msg, ChatMessage):
            messages.append(user_msg)
        other = self._text_llm_for(messages) if tools else None
        return other if other is not None and other.calls_functions else None

    @override
    def chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponse:
        """Chat with tools; the text LLM does it where there is no image."""
        if other := self._text_llm_with_tools(tools, user_msg, chat_history):
            return other.chat_with_tools(tools, user_msg, chat_history, *args, **kwargs)
        return super().chat_with_tools(tools, user_msg, chat_history, *args, **kwargs)

    @override
    def stream_chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponseGen:
        """Do as `chat_with_tools`, as a stream."""
        if other := self._text_llm_with_tools(tools, user_msg, chat_history):
            return other.stream_chat_with_tools(tools, user_msg, chat_history, *args, **kwargs)
        return super().stream_chat_with_tools(tools, user_msg, chat_history, *args, **kwargs)

    @override
    async def achat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponse:
        """Do as `chat_with_tools`, with await."""
        if other := self._text_llm_with_tools(tools, user_msg, chat_history):
            return await other.achat_with_tools(tools, user_msg, chat_history, *args, **kwargs)
        return await super().achat_with_tools(tools, user_msg, chat_history, *args, **kwargs)

    @override
    async def astream_chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponseAsyncGen:
        """Do as `chat_with_tools`, as a stream, with await."""
        if other := self._text_llm_with_tools(tools, user_msg, chat_history):
            return await other.astream_chat_with_tools(
                tools, user_msg, chat_history, *args, **kwargs
            )
        return await super().astream_chat_with_tools(tools, user_msg, chat_history, *args, **kwargs)
