"""`Phospho`: the endpoint as an LLM of LlamaIndex."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

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

from llama_index_phospho.configuration import NO_TOOLS, PARAMETERS, PhosphoConfiguration
from llama_index_phospho.content import message_turns, prompt_turns
from llama_index_phospho.results import chat_response, completion_response
from phospho_multimodal import ConfigurationError
from phospho_multimodal.conversation import ImagePolicy
from phospho_multimodal.images.source import image_source

if TYPE_CHECKING:
    from llama_index.core.llms.llm import ToolSelection
    from llama_index.core.tools.types import BaseTool

__all__ = ["Phospho"]

_OF_A_CALL = (
    "model",
    "stop",
    *PARAMETERS,
    "multi_image",
    "max_images",
    "default_image",
    "default_prompt",
)

_USUAL_OUTPUT = 200
"""Tokens of an answer where `max_new_tokens` is not set: the server's default."""


class Phospho(PhosphoConfiguration):
    """The phospho multimodal endpoint as an LLM of LlamaIndex: one image, one question, one answer.

    It goes wherever an LLM goes, `Settings.llm` for one. A call without any image raises
    `MissingImageError` before anything is sent, unless `default_image` is set. What each answer
    cost is in `response.raw`. Each call also takes the parameters of the answer as keywords, which
    win over the model's.

    Example:
        ```python
        llm = Phospho(base_url="http://127.0.0.1:8000")
        question = TextBlock(text="What is the total?")
        message = ChatMessage(blocks=[question, ImageBlock(path="receipt.png")])
        print(llm.chat([message]).message.content)
        ```
    """

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
        return chat_response(
            self._clients().sync.converse(message_turns(messages), **self._asked(kwargs))
        )

    @llm_completion_callback()
    def complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponse:
        """Ask one question about an image; the second argument may be the images as well."""
        turns = prompt_turns(prompt, formatted, image_documents)
        return completion_response(self._clients().sync.converse(turns, **self._asked(kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Do as `chat`, with the whole answer as the one chunk of a stream."""
        turns, asked = message_turns(messages), self._asked(kwargs)

        def answer() -> ChatResponseGen:
            yield chat_response(self._clients().sync.converse(turns, **asked), streamed=True)

        return answer()

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponseGen:
        """Do as `complete`, with the whole answer as the one chunk of a stream."""
        turns = prompt_turns(prompt, formatted, image_documents)
        asked = self._asked(kwargs)

        def answer() -> CompletionResponseGen:
            yield completion_response(self._clients().sync.converse(turns, **asked), streamed=True)

        return answer()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Do as `chat`, with await."""
        turns, asked = message_turns(messages), self._asked(kwargs)
        return chat_response(await self._clients().asynchronous.converse(turns, **asked))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponse:
        """Do as `complete`, with await."""
        turns = prompt_turns(prompt, formatted, image_documents)
        asked = self._asked(kwargs)
        return completion_response(await self._clients().asynchronous.converse(turns, **asked))

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Do as `stream_chat`, with await."""
        turns, asked = message_turns(messages), self._asked(kwargs)

        async def answer() -> ChatResponseAsyncGen:
            yield chat_response(
                await self._clients().asynchronous.converse(turns, **asked), streamed=True
            )

        return answer()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, image_documents: Any = None, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Do as `stream_complete`, with await."""
        turns = prompt_turns(prompt, formatted, image_documents)
        asked = self._asked(kwargs)

        async def answer() -> CompletionResponseAsyncGen:
            prediction = await self._clients().asynchronous.converse(turns, **asked)
            yield completion_response(prediction, streamed=True)

        return answer()

    def _asked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Put together what a client is asked with: this call's values over the model's.

        Args:
            given: The keywords of a call; `None` means not given.

        Returns:
            The keywords of `converse`.

        Raises:
            ConfigurationError: A keyword is unknown, or a value out of range.
        """
        values = {name: getattr(self, name) for name in _OF_A_CALL}
        for name, value in given.items():
            field = "max_new_tokens" if name == "max_tokens" else name
            if field not in values:
                message = (
                    f"A call does not take {name!r}. Nothing was sent. It takes:"
                    f" {', '.join(sorted([*_OF_A_CALL, 'max_tokens']))}."
                )
                raise ConfigurationError(message)
            if value is not None:
                values[field] = value
        default_image = values["default_image"]
        return {
            "policy": ImagePolicy(
                multi_image=values["multi_image"],
                max_images=values["max_images"],
                default_image=None if default_image is None else image_source(default_image),
                default_prompt=values["default_prompt"],
            ),
            "model": values["model"],
            "stop": self._listed(values["stop"]),
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
    ) -> NoReturn:
        raise ConfigurationError(NO_TOOLS)

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list["ToolSelection"]:
        """Refuse: there are no tool calls yet."""
        raise ConfigurationError(NO_TOOLS)
