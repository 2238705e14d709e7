"""`Phospho`: the endpoint as an LLM of LlamaIndex."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

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
from typing_extensions import override

from llama_index_phospho.content import has_image, message_turns, prompt_turns
from llama_index_phospho.fields import PARAMETERS
from llama_index_phospho.requests import (
    EndpointRequest,
    TextRequest,
    calls_functions,
    is_from_text_llm,
    text_chat,
    text_options,
)
from llama_index_phospho.results import chat_response, completion_response, tool_selections
from llama_index_phospho.structured_output import (
    StructuredPrediction,
    asks_for_object,
    record_prediction,
    require_object,
    take_schema,
)
from phospho_multimodal import ConfigurationError, MissingImageError, Prediction
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import OmittedPart, Turn
from phospho_multimodal.messages.image_policy import ImagePolicy
from phospho_multimodal.tools.parsing import read_answer
from phospho_multimodal.tools.prompt import ToolProtocol
from phospho_multimodal.tools.schema import inline_references

if TYPE_CHECKING:
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool

__all__ = ["Phospho"]

_DEFAULT_OUTPUT = 200
"""Tokens of an answer if `max_new_tokens` is not set: the server's default."""

_NO_TOOLS = (
    "This model has is_function_calling_model=False, so it accepts no tools. Nothing was sent. Set"
    " it to True for prompt-based tool calls, or use an agent that reasons in text: ReActAgent."
)
_NO_IMAGE = (
    "There is no image in the conversation, and this endpoint only answers about an image. Nothing"
    " was sent. A memory that is full drops the oldest messages with their image: give it an"
    " ImageMemoryBlock, or raise its token_limit= or context_window=. A query engine needs"
    " multimodal=True, and a context_window= with room for an image and its metadata. For steps"
    " without an image, set text_llm=, or default_image=, which is billed."
)
_REQUIRED = "tool_required"
_GIVES_ANSWER = "gives_answer"

_Response = TypeVar("_Response", ChatResponse, CompletionResponse)

_Request: TypeAlias = EndpointRequest[_Response] | TextRequest[_Response]


class Phospho(StructuredPrediction):
    """The phospho multimodal endpoint as an LLM of LlamaIndex: one image, one prompt, one answer.

    Use it wherever LlamaIndex takes an LLM, for example as `Settings.llm`. If a call has no image,
    `text_llm` answers it, or else `default_image` is sent. If neither is set, the call raises
    `MissingImageError` before anything is sent. The cost of each answer is in `response.raw`. Each
    call accepts the generation parameters as keywords, which override the model's. With
    `is_function_calling_model=True`, agents and programs pass tools, which the model calls by
    prompt: the endpoint has no tool calls of its own.

    Setup:
        Install `phospho-multimodal[llama-index]`. Set `PHOSPHO_BASE_URL`, and `PHOSPHO_API_KEY` if
        the endpoint is not on localhost.

    Instantiate:
        ```python
        llm = Phospho(max_new_tokens=200, spending=Spending(max_usd=5))
        ```

    Chat:
        ```python
        prompt = TextBlock(text="What is the total?")
        message = ChatMessage(blocks=[prompt, ImageBlock(path="receipt.png")])
        print(llm.chat([message]).message.content)
        ```
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class in serialized objects."""
        return "phospho"

    @property
    def metadata(self) -> LLMMetadata:
        """The metadata with which LlamaIndex plans its requests."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_new_tokens or _DEFAULT_OUTPUT,
            is_chat_model=True,
            is_function_calling_model=self.is_function_calling_model,
            model_name=self.model,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer the last message of a conversation about its newest image."""
        return self._chat(messages, kwargs).send()

    @llm_completion_callback()
    def complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a prompt about an image; the second argument may be the images instead."""
        return self._complete(prompt, formatted, image_documents, kwargs).send()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Do the same as `chat`, as a stream of one chunk."""
        return self._chat(messages, kwargs).stream()

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponseGen:
        """Do the same as `complete`, as a stream of one chunk."""
        return self._complete(prompt, formatted, image_documents, kwargs).stream()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Do the same as `chat`, async."""
        return await self._chat(messages, kwargs).asend()

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponse:
        """Do the same as `complete`, async."""
        return await self._complete(prompt, formatted, image_documents, kwargs).asend()

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Do the same as `stream_chat`, async."""
        return self._chat(messages, kwargs).astream()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Do the same as `stream_complete`, async."""
        return self._complete(prompt, formatted, image_documents, kwargs).astream()

    @override
    def chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> ChatResponse:
        """Chat with tools; see `FunctionCallingLLM`. Without an image, `text_llm` answers."""
        if request := self._text_llm_with_tools(tools, *args, **kwargs):
            return request.send()
        return super().chat_with_tools(tools, *args, **kwargs)

    @override
    def stream_chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> ChatResponseGen:
        """Do the same as `chat_with_tools`, as a stream."""
        if request := self._text_llm_with_tools(tools, *args, **kwargs):
            return request.stream()
        return super().stream_chat_with_tools(tools, *args, **kwargs)

    @override
    async def achat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> ChatResponse:
        """Do the same as `chat_with_tools`, async."""
        if request := self._text_llm_with_tools(tools, *args, **kwargs):
            return await request.asend()
        return await super().achat_with_tools(tools, *args, **kwargs)

    @override
    async def astream_chat_with_tools(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Do the same as `stream_chat_with_tools`, async."""
        if request := self._text_llm_with_tools(tools, *args, **kwargs):
            return request.astream()
        return await super().astream_chat_with_tools(tools, *args, **kwargs)

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list["ToolSelection"]:
        """Read the tool calls of a response: at most one, except in a response of `text_llm`."""
        if is_from_text_llm(response) and calls_functions(self.text_llm):
            return self.text_llm.get_tool_calls_from_response(
                response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
            )
        return tool_selections(response, error_on_no_tool_call=error_on_no_tool_call)

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
        keywords = {**kwargs, "messages": messages}
        if tools or tool_required:
            # Streams of programs do not require the tool, and would make an empty object of prose.
            keywords["tools"] = [_definition(tool) for tool in tools]
            keywords[_GIVES_ANSWER] = asks_for_object(kwargs)
            keywords[_REQUIRED] = tool_required or keywords[_GIVES_ANSWER]
        return keywords

    def _chat(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> _Request[ChatResponse]:
        given = dict(given)
        protocol = _take_protocol(given)
        if self.text_llm is not None and not has_image(messages):
            return text_chat(self.text_llm, messages, given, protocol)
        if protocol and not self.is_function_calling_model:
            raise ConfigurationError(_NO_TOOLS)
        messages, schema = take_schema(messages)
        if schema is not None and not protocol:
            protocol = replace(protocol, answer_schema=schema)
        turns = message_turns(messages)

        def read(prediction: Prediction, streamed: bool) -> ChatResponse:
            record_prediction(prediction.metadata)
            answer = read_answer(prediction, protocol, turns)
            if protocol.answer_schema is not None:
                require_object(answer.text, protocol.answer_schema, prediction.metadata)
            return chat_response(answer, streamed=streamed)

        options = self._options(given, turns, protocol)
        return EndpointRequest(self._clients, protocol.turns(turns), options, read)

    def _complete(
        self, prompt: str, formatted: object, image_documents: object, given: Mapping[str, Any]
    ) -> _Request[CompletionResponse]:
        turns = prompt_turns(prompt, formatted, image_documents)
        if self.text_llm is not None and not turns[0].images:
            options = {"formatted": formatted is True, **text_options(given)}
            return TextRequest(self.text_llm, "complete", (prompt,), options)

        def read(prediction: Prediction, streamed: bool) -> CompletionResponse:
            return completion_response(prediction, streamed=streamed)

        return EndpointRequest(self._clients, turns, self._options(given, turns), read)

    def _text_llm_with_tools(
        self,
        tools: Sequence["BaseTool"],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> TextRequest[ChatResponse] | None:
        messages = [*(chat_history or ())]
        if isinstance(user_msg, ChatMessage):
            messages.append(user_msg)
        if not tools or not calls_functions(self.text_llm) or has_image(messages):
            return None
        given = (tools, user_msg, chat_history, *args)
        return TextRequest(self.text_llm, "chat_with_tools", given, kwargs)

    def _options(
        self,
        given: Mapping[str, Any],
        turns: Sequence[Turn],
        protocol: ToolProtocol = ToolProtocol(),  # noqa: B008 - it is frozen
    ) -> dict[str, Any]:
        """Make the keywords of `converse`: the values of this call override the model's."""
        values = self.call_values(given)
        default_image = values["default_image"]
        if default_image is None and not _has_image(turns):
            raise MissingImageError(_NO_IMAGE)
        return {
            "policy": ImagePolicy(
                multi_image=values["multi_image"],
                max_images=values["max_images"],
                default_image=None if default_image is None else image_source(default_image),
                default_prompt=values["default_prompt"],
                one_answer=bool(protocol),
            ),
            "model": values["model"],
            "stop": values["stop"],
            "parameters": protocol.parameters({name: values[name] for name in PARAMETERS}),
        }


def _has_image(turns: Sequence[Turn]) -> bool:
    """Check for an image, or for one that cannot be read: the core says why it cannot."""
    return any(
        turn.images or any(isinstance(part, OmittedPart) and part.is_image for part in turn.parts)
        for turn in turns
    )


def _take_protocol(given: dict[str, Any]) -> ToolProtocol:
    """Remove the keywords about tools from those of a chat, and make the protocol of them."""
    tools, choice = given.pop("tools", None), given.pop("tool_choice", None)
    gives_answer = given.pop(_GIVES_ANSWER, False)
    if not given.pop(_REQUIRED, False):
        return ToolProtocol.of(tools, tool_choice=choice)
    # A program has no agent that could ask again.
    protocol = replace(ToolProtocol.of(tools, tool_choice=choice or "any"), max_reasks=0)
    names = frozenset(tool.name for tool in protocol.tools) if gives_answer else frozenset()
    return replace(protocol, answer_tools=names)


def _definition(tool: "BaseTool") -> dict[str, Any]:
    # Not `to_openai_tool`, which changes names, so that core does not find the tool.
    schema = (
        None if tool.metadata.fn_schema is None else tool.metadata.fn_schema.model_json_schema()
    )
    if schema is None or "$ref" not in schema:
        parameters = tool.metadata.get_parameters_dict()
    else:  # core loses the root of a class that contains itself
        parameters = inline_references(schema)
    function = {
        "name": tool.metadata.get_name(),
        "description": tool.metadata.description,
        "parameters": parameters,
    }
    return {"type": "function", "function": function}
