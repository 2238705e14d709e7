"""`Phospho`: the endpoint as an LLM of LlamaIndex."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import ConfigDict
from typing_extensions import override

from llama_index_phospho.fields import PARAMETERS
from llama_index_phospho.programs import WithPrograms
from llama_index_phospho.text_llm import check_for_image
from phospho_multimodal import ConfigurationError
from phospho_multimodal.messages.image_policy import ImagePolicy
from phospho_multimodal.on_demand import ModuleOnDemand

if TYPE_CHECKING:
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool

    from llama_index_phospho import (
        content,
        results,
        structured_output,
        synthesizers,
        tool_calls,
    )
    from phospho_multimodal import Prediction
    from phospho_multimodal.images import source
    from phospho_multimodal.messages.conversation import Turn
    from phospho_multimodal.tools import parsing as tool_replies
    from phospho_multimodal.tools.prompt import ToolProtocol
else:
    content = ModuleOnDemand("llama_index_phospho.content")
    results = ModuleOnDemand("llama_index_phospho.results")
    source = ModuleOnDemand("phospho_multimodal.images.source")
    structured_output = ModuleOnDemand("llama_index_phospho.structured_output")
    synthesizers = ModuleOnDemand("llama_index_phospho.synthesizers")
    tool_calls = ModuleOnDemand("llama_index_phospho.tool_calls")
    tool_replies = ModuleOnDemand("phospho_multimodal.tools.parsing")

__all__ = ["Phospho"]

_USUAL_OUTPUT = 200
"""Tokens of an answer where `max_new_tokens` is not set: the server's default."""

_NO_TOOLS = (
    "This model has is_function_calling_model=False and takes no tools. Nothing was sent. Set it to"
    " True to have them called by prompt, or use what reasons in text, a ReActAgent for one."
)


@dataclass(frozen=True, slots=True)
class _Chat:
    """One chat: what is asked, with what, and how the answer is read."""

    turns: "list[Turn]"
    protocol: "ToolProtocol"
    asked: dict[str, Any]
    filters: bool

    @property
    def shown(self) -> "list[Turn]":
        return self.protocol.turns(self.turns)

    def response(self, prediction: "Prediction", *, streamed: bool = False) -> ChatResponse:
        structured_output.record_prediction(prediction.metadata)
        answer = tool_replies.read_answer(prediction, self.protocol, self.turns)
        if self.filters:
            synthesizers.check_filtered_answer(answer.text, prediction)
        elif self.protocol.answer_schema is not None:
            structured_output.check_object(answer.text, self.protocol.answer_schema, prediction)
        return results.chat_response(answer, streamed=streamed)


class Phospho(WithPrograms):
    """The phospho multimodal endpoint as an LLM of LlamaIndex: one image, one question, one answer.

    It goes wherever an LLM goes, `Settings.llm` for one. A call without any image is answered by
    `text_llm`, another LLM, or else goes out with `default_image`; if neither is set, it raises
    `MissingImageError` before anything is sent. What each answer cost is in `response.raw`. Each
    call also takes the parameters of the answer as keywords, which win over the model's.
    `is_function_calling_model=True` has core's agents and programs hand over tools, which are
    called by prompt: the endpoint itself knows none.

    Example:
        ```python
        llm = Phospho(base_url="http://127.0.0.1:8000")
        question = TextBlock(text="What is the total?")
        message = ChatMessage(blocks=[question, ImageBlock(path="receipt.png")])
        print(llm.chat([message]).message.content)
        ```
    """

    model_config = ConfigDict(defer_build=False)

    @classmethod
    def class_name(cls) -> str:
        """Name the class in what is written down."""
        return "phospho"

    @property
    def metadata(self) -> LLMMetadata:
        """What core plans its requests with."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_new_tokens or _USUAL_OUTPUT,
            is_chat_model=True,
            is_function_calling_model=self.is_function_calling_model,
            model_name=self.model,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Ask what a conversation asks about its newest image."""
        if other := self._text_llm_for(messages):
            return other.chat(messages, kwargs)
        chat = self._chat(messages, kwargs)
        return chat.response(self._clients().sync.converse(chat.shown, **chat.asked))

    @llm_completion_callback()
    def complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponse:
        """Ask one question about an image; the second argument may be the images as well."""
        turns = content.prompt_turns(prompt, formatted, image_documents)
        if other := self._text_llm_for_turns(turns):
            return other.complete(prompt, formatted, kwargs)
        return results.completion_response(
            self._clients().sync.converse(turns, **self._asked(kwargs, turns))
        )

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Do as `chat`, with the whole answer as the one chunk of a stream."""
        if other := self._text_llm_for(messages):
            return other.stream_chat(messages, kwargs)
        chat = self._chat(messages, kwargs)

        def answer() -> ChatResponseGen:
            prediction = self._clients().sync.converse(chat.shown, **chat.asked)
            yield chat.response(prediction, streamed=True)

        return answer()

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponseGen:
        """Do as `complete`, with the whole answer as the one chunk of a stream."""
        turns = content.prompt_turns(prompt, formatted, image_documents)
        if other := self._text_llm_for_turns(turns):
            return other.stream_complete(prompt, formatted, kwargs)
        asked = self._asked(kwargs, turns)

        def answer() -> CompletionResponseGen:
            yield results.completion_response(
                self._clients().sync.converse(turns, **asked), streamed=True
            )

        return answer()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Do as `chat`, with await."""
        if other := self._text_llm_for(messages):
            return await other.achat(messages, kwargs)
        chat = self._chat(messages, kwargs)
        client = self._clients().asynchronous
        return chat.response(await client.converse(chat.shown, **chat.asked))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponse:
        """Do as `complete`, with await."""
        turns = content.prompt_turns(prompt, formatted, image_documents)
        if other := self._text_llm_for_turns(turns):
            return await other.acomplete(prompt, formatted, kwargs)
        asked = self._asked(kwargs, turns)
        return results.completion_response(
            await self._clients().asynchronous.converse(turns, **asked)
        )

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Do as `stream_chat`, with await."""
        if other := self._text_llm_for(messages):
            return await other.astream_chat(messages, kwargs)
        chat = self._chat(messages, kwargs)

        async def answer() -> ChatResponseAsyncGen:
            client = self._clients().asynchronous
            prediction = await client.converse(chat.shown, **chat.asked)
            yield chat.response(prediction, streamed=True)

        return answer()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Do as `stream_complete`, with await."""
        turns = content.prompt_turns(prompt, formatted, image_documents)
        if other := self._text_llm_for_turns(turns):
            return await other.astream_complete(prompt, formatted, kwargs)
        asked = self._asked(kwargs, turns)

        async def answer() -> CompletionResponseAsyncGen:
            prediction = await self._clients().asynchronous.converse(turns, **asked)
            yield results.completion_response(prediction, streamed=True)

        return answer()

    def _chat(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> _Chat:
        rest = dict(given)
        protocol = tool_calls.take_protocol(rest)
        if protocol and not self.is_function_calling_model:
            raise ConfigurationError(_NO_TOOLS)
        shown, schema = structured_output.take_schema(messages)
        if schema is not None and not protocol:
            protocol = replace(protocol, answer_schema=schema)
        turns = tool_calls.called_message_turns(shown)
        asked = self._asked(rest, turns)
        asked["policy"] = replace(asked["policy"], one_answer=bool(protocol))
        asked["parameters"] = protocol.parameters(asked["parameters"])
        return _Chat(turns, protocol, asked, synthesizers.is_filter(messages))

    def _asked(self, given: Mapping[str, Any], turns: "Sequence[Turn]") -> dict[str, Any]:
        """Put together what a client is asked with: this call's values over the model's.

        Args:
            given: The keywords of a call; `None` means not given.
            turns: What is asked.

        Returns:
            The keywords of `converse`.

        Raises:
            ConfigurationError: A keyword is unknown, or a value out of range.
            MissingImageError: There is no image, and no default image.
        """
        values = self.call_values(given)
        default_image = values["default_image"]
        if default_image is None:
            check_for_image(turns)
        return {
            "policy": ImagePolicy(
                multi_image=values["multi_image"],
                max_images=values["max_images"],
                default_image=None if default_image is None else source.image_source(default_image),
                default_prompt=values["default_prompt"],
            ),
            "model": values["model"],
            "stop": values["stop"],
            "parameters": {name: values[name] for name in PARAMETERS},
        }

    @override
    def _prepare_chat_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if not self.is_function_calling_model:
            raise ConfigurationError(_NO_TOOLS)
        messages = list(chat_history or ())
        if user_msg is not None:
            messages.append(ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg)
        return tool_calls.chat_with_tools_keywords(
            tools, messages, required=tool_required, given=kwargs
        )

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list["ToolSelection"]:
        """Read the tool call out of a response: there is one at most, but for the text LLM's."""
        if other := self._text_llm_of(response):
            return other.get_tool_calls_from_response(
                response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
            )
        return tool_calls.selected_tools(response, error_on_no_tool_call=error_on_no_tool_call)
