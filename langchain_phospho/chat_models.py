"""`ChatPhospho`: the endpoint as a LangChain chat model."""

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, ModelProfile
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_phospho.configuration import PARAMETERS, PhosphoConfiguration
from langchain_phospho.content import read_messages
from langchain_phospho.errors import langchain_errors
from langchain_phospho.results import chat_chunk, chat_result
from phospho_multimodal import ConfigurationError, Prediction
from phospho_multimodal.wire import MAX_NEW_TOKENS

__all__ = ["ChatPhospho"]

_KEYWORDS = frozenset({"model", "max_tokens", *PARAMETERS})


@lru_cache(maxsize=4)  # asked for at every call, and a megabyte takes half a millisecond
def _digest(image: str) -> str:
    return hashlib.sha256(image.encode()).hexdigest()


class ChatPhospho(PhosphoConfiguration):
    """Answers a question about the newest image of a conversation.

    Every answer's `response_metadata` tells what was sent and what it cost. Errors are those of
    `phospho_multimodal.errors` and LangChain's `ModelError` at once.

    Example:
        ```python
        model = ChatPhospho(base_url="http://127.0.0.1:8000")
        image = {"type": "image", "base64": picture, "mime_type": "image/png"}
        question = {"type": "text", "text": "What does the receipt say?"}
        print(model.invoke([HumanMessage([question, image])]).text)
        ```
    """

    @property
    def model(self) -> str:
        """The model's name, under the name of its argument."""
        return self.model_name

    @property
    def _llm_type(self) -> str:
        return "phospho-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """Everything that an answer depends on."""
        return {
            "model": self.model_name,
            "base_url": self.base_url,
            **{name: getattr(self, name) for name in PARAMETERS},
            "stop": self.stop,
            "multi_image": self.multi_image,
            "default_image": None if self.default_image is None else _digest(self.default_image),
            "default_prompt": self.default_prompt,
            "prepare": self.prepare,
            "max_image_side": self.max_image_side,
            "url_mode": self.url_mode,
        }

    def get_token_ids(self, text: str) -> list[int]:
        """Encode with `custom_get_token_ids`; the endpoint tells nothing of its tokens.

        Args:
            text: What to encode.

        Returns:
            Token ids.

        Raises:
            ConfigurationError: There is no `custom_get_token_ids`.
        """
        if self.custom_get_token_ids is None:
            with langchain_errors():
                message = "The endpoint's tokens are not known. Set custom_get_token_ids=."
                raise ConfigurationError(message)
        return super().get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """Guess the tokens of a text: one for four characters, without a tokenizer.

        Args:
            text: What to count.

        Returns:
            A rough number; `custom_get_token_ids` makes it exact.
        """
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens(text)
        return -(-len(text) // 4)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Guess the tokens of the texts of messages; images and tools are not counted.

        Args:
            messages: What to count.
            tools: Ignored.

        Returns:
            A rough number.
        """
        del tools
        return sum(self.get_num_tokens(message.text) for message in messages)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        return chat_result(self._predict(messages, stop, kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        return chat_result(await self._apredict(messages, stop, kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunk = chat_chunk(self._predict(messages, stop, kwargs))
        if run_manager is not None:
            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunk = chat_chunk(await self._apredict(messages, stop, kwargs))
        if run_manager is not None:
            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk

    def _predict(
        self, messages: list[BaseMessage], stop: list[str] | None, overrides: Mapping[str, Any]
    ) -> Prediction:
        with langchain_errors():
            call = self._call(stop, overrides)
            return self._clients().sync.converse(read_messages(messages), self._policy(), **call)

    async def _apredict(
        self, messages: list[BaseMessage], stop: list[str] | None, overrides: Mapping[str, Any]
    ) -> Prediction:
        with langchain_errors():
            call = self._call(stop, overrides)
            client = self._clients().asynchronous
            return await client.converse(read_messages(messages), self._policy(), **call)

    def _call(self, stop: list[str] | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Put together what one call differs in: its own keywords before the model's fields."""
        given = {name: value for name, value in overrides.items() if value is not None}
        given.pop("stream", None)  # LangChain's own: whether `invoke` goes through `stream`
        unknown = given.keys() - _KEYWORDS
        if unknown or {"max_tokens", "max_new_tokens"} <= given.keys():
            # Names alone: a value could be a key.
            names = ", ".join(sorted(unknown)) or "max_tokens beside max_new_tokens"
            known = ", ".join(sorted(_KEYWORDS))
            message = f"A call of ChatPhospho cannot take {names}. It takes: {known} and stop."
            raise ConfigurationError(message)
        if "max_tokens" in given:
            given["max_new_tokens"] = given.pop("max_tokens")
        return {
            "model": given.pop("model", self.model_name),
            "stop": self._listed(self.stop if stop is None else stop),
            "parameters": {name: given.get(name, getattr(self, name)) for name in PARAMETERS},
        }

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        stop = self.stop if stop is None else stop
        return super()._get_invocation_params(stop=stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Make the key of a cache from what an answer depends on, as the fields are now.

        LangChain makes it of the serialized model: once for each model, so that a field that was
        set later would not count, and with the whole default image in it.
        """
        return str(sorted(self._get_invocation_params(stop=stop, **kwargs).items()))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        params["ls_provider"] = "phospho"
        limit = kwargs.get("max_tokens") or kwargs.get("max_new_tokens") or self.max_new_tokens
        if limit is not None:
            params["ls_max_tokens"] = limit
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        return {
            "name": self.model_name,
            "text_inputs": True,
            "image_inputs": True,
            "image_url_inputs": True,
            "image_tool_message": True,
            "pdf_inputs": False,
            "pdf_tool_message": False,
            "audio_inputs": False,
            "video_inputs": False,
            "max_output_tokens": MAX_NEW_TOKENS,
            "text_outputs": True,
            "image_outputs": False,
            "audio_outputs": False,
            "video_outputs": False,
            "reasoning_output": False,
            "tool_calling": False,
            "tool_choice": False,
            "structured_output": False,
            "temperature": True,
        }
