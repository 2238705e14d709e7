"""`ChatPhospho`: the endpoint as a LangChain chat model."""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict

from langchain_phospho.batching import Batches
from langchain_phospho.content import read_messages
from langchain_phospho.errors import langchain_errors
from langchain_phospho.fields import PARAMETERS, PhosphoConfiguration
from langchain_phospho.results import chat_chunk, chat_result
from langchain_phospho.structured_output import Method, StructuredOutput
from langchain_phospho.tool_calls import PROTOCOL_KEYWORDS, bound_tools, take_protocol
from phospho_multimodal import ConfigurationError
from phospho_multimodal.contract import CONTEXT_WINDOW, DEFAULT_MODEL, MAX_NEW_TOKENS
from phospho_multimodal.tools.parsing import Answer, read_answer
from phospho_multimodal.tools.prompt import ToolProtocol

__all__ = ["ChatPhospho"]

_KEYWORDS = frozenset({"model", "max_tokens", *PARAMETERS})


_PROFILE: ModelProfile = {
    "name": DEFAULT_MODEL,
    "text_inputs": True,
    "image_inputs": True,
    "image_url_inputs": True,
    "image_tool_message": True,
    "pdf_inputs": False,
    "pdf_tool_message": False,
    "audio_inputs": False,
    "video_inputs": False,
    # LangChain's middleware compares conversations with it, such as with ("fraction", 0.8).
    "max_input_tokens": CONTEXT_WINDOW,
    "max_output_tokens": MAX_NEW_TOKENS,
    "text_outputs": True,
    "image_outputs": False,
    "audio_outputs": False,
    "video_outputs": False,
    "reasoning_output": False,
    # Both are prompt-based: the endpoint itself knows no tools.
    "tool_calling": True,
    "tool_choice": True,
    # With True, `create_agent` would take the first text answer for a failed one.
    "structured_output": False,
    "temperature": True,
}


@lru_cache(maxsize=4)  # every call needs it, and hashing a megabyte takes half a millisecond
def _digest(image: str) -> str:
    return hashlib.sha256(image.encode()).hexdigest()


class ChatPhospho(Batches[AIMessage], PhosphoConfiguration):
    """A chat model that answers a prompt about the newest image of a conversation.

    The `response_metadata` of an answer say what was sent and what it cost. An error is both an
    error of `phospho_multimodal.errors` and LangChain's `ModelError`. Tools and structured output
    are prompt-based, and each step of an agent is billed as one image.

    `batch` and `abatch` of the model stop at the first error, such as a 402. After
    `model.with_retry()` or `model.with_fallbacks()`, LangChain's own `batch` continues after such
    an error. For many prompts, call `batch` of the model itself and set `max_retries`.

    A conversation is sent as a transcript that names the speakers (`message.name`). Content that
    cannot be sent is an error in the newest turn. Before the newest user message, a mark in the
    text replaces it, and `content_omitted` in the metadata counts it.

    Setup:
        Install `phospho-multimodal[langchain]`, and set the environment variables.

        ```sh
        export PHOSPHO_BASE_URL=http://127.0.0.1:8000
        export PHOSPHO_API_KEY=your-key  # not needed on localhost
        ```

    Key init args:
        base_url, api_key: The endpoint and its key.
        max_new_tokens, temperature: Parameters of the answer.
        multi_image: What is sent for several images.
        spending: The spending limit.
        timeout, max_retries: How long to wait, and how often to retry.

    Instantiate:
        ```python
        model = ChatPhospho(max_new_tokens=200, spending=Spending(max_usd=5))
        ```

    Invoke:
        ```python
        image = {"type": "image", "base64": data, "mime_type": "image/png"}
        prompt = {"type": "text", "text": "What does the receipt say?"}
        print(model.invoke([HumanMessage([prompt, image])]).text)
        ```

    Structured output:
        ```python
        receipt = model.with_structured_output(Receipt).invoke([HumanMessage([prompt, image])])
        ```
    """

    model_config = ConfigDict(defer_build=False)

    @property
    def model(self) -> str:
        """The model's name, under the name of its argument."""
        return self.model_name

    @property
    def _llm_type(self) -> str:
        return "phospho-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """All settings that an answer depends on."""
        return {
            "model": self.model_name,
            "base_url": self.base_url,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "repetition_penalty": self.repetition_penalty,
            "top_p": self.top_p,
            "stop": self.stop,
            "multi_image": self.multi_image,
            "default_image": None if self.default_image is None else _digest(self.default_image),
            "default_prompt": self.default_prompt,
            "prepare": self.prepare,
            "max_image_side": self.max_image_side,
            "detail": self.detail,
            "max_tiles": self.max_tiles,
            "url_mode": self.url_mode,
        }

    def bind_tools(
        self,
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model in the prompt, because the endpoint knows no tools.

        An answer has at most one call. If a call cannot be run, the agent gets it and calls the
        model again, at most twice in a row. Each repetition is billed as one image.

        Args:
            tools: Anything that LangChain can turn into a tool.
            tool_choice: `None` or `"auto"`, `"none"`, `"any"` or `"required"` or `True`, a tool's
                name, or another provider's mapping for one of these. If a forced call does not
                come, `NoToolCallError` is raised after one image was billed.
            **kwargs: `response_format` for answers without a call, and the keywords of any call.
                `strict` and `parallel_tool_calls` have no effect.

        Returns:
            The model with the tools.

        Raises:
            ConfigurationError: A tool is not a function, or `tool_choice` names no tool.
        """
        with langchain_errors():
            return self.bind(**bound_tools(tools, tool_choice), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        max_repairs: int = 0,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Request an object as the answer. It is prompt-based, so the model can fail to give one.

        Args:
            schema: A pydantic class, a TypedDict, a JSON schema with a title, or an OpenAI tool.
            method: `"json_schema"` shows the schema to the model, `"function_calling"` shows it as
                a tool, `"json_mode"` requests JSON and leaves the form to your prompt.
            include_raw: Return a dict of `raw` (the message), `parsed` and `parsing_error`.
            strict: Has no effect. A pydantic class always checks the whole answer. For another
                schema, the required keys must be there.
            max_repairs: How often a wrong answer is sent back to the model to be corrected. Each
                repair is billed as one image. The metadata of `raw` have the sum.
            **kwargs: Keywords of any call.

        Returns:
            A runnable that returns the object. If an answer has no such object, it raises
            LangChain's `OutputParserException`, whose `llm_output` is the text.

        Raises:
            ConfigurationError: The method is unknown, or the schema does not describe an object.
        """
        del strict
        wanted = StructuredOutput(schema, method, include_raw, max_repairs)
        bound = self.bind(**wanted.keywords(), **kwargs)
        return wanted.reading(bound, self.max_concurrency)

    def get_token_ids(self, text: str) -> list[int]:
        """Encode a text with `custom_get_token_ids`; the endpoint's tokens are unknown."""
        if self.custom_get_token_ids is None:
            with langchain_errors():
                message = "The tokens of the endpoint are not known. Set custom_get_token_ids=."
                raise ConfigurationError(message)
        return super().get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """Estimate one token for four characters, or use `custom_get_token_ids`.

        LangChain's own method would download a tokenizer.
        """
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens(text)
        return -(-len(text) // 4)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Estimate the tokens of the texts of messages, without images and tools."""
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
    ) -> Answer:
        with langchain_errors():
            protocol, call = self._call(stop, overrides)
            turns = read_messages(messages)
            prediction = self._clients().sync.converse(protocol.turns(turns), **call)
            return read_answer(prediction, protocol, turns)

    async def _apredict(
        self, messages: list[BaseMessage], stop: list[str] | None, overrides: Mapping[str, Any]
    ) -> Answer:
        with langchain_errors():
            protocol, call = self._call(stop, overrides)
            turns = read_messages(messages)
            client = self._clients().asynchronous
            prediction = await client.converse(protocol.turns(turns), **call)
            return read_answer(prediction, protocol, turns)

    def _call(
        self, stop: list[str] | None, overrides: Mapping[str, Any]
    ) -> tuple[ToolProtocol, dict[str, Any]]:
        """Merge the keywords of one call, which come first, with the model's fields."""
        given = {name: value for name, value in overrides.items() if value is not None}
        given.pop("stream", None)  # LangChain's own: whether `invoke` calls `stream`
        protocol = take_protocol(given)
        unknown = given.keys() - _KEYWORDS
        if unknown or {"max_tokens", "max_new_tokens"} <= given.keys():
            # Without the values, because one could be a key.
            names = ", ".join(sorted(unknown)) or "both max_tokens and max_new_tokens"
            known = ", ".join(sorted(_KEYWORDS | PROTOCOL_KEYWORDS))
            message = (
                f"A call of ChatPhospho does not take {names}. Nothing was sent."
                f" It takes: {known} and stop."
            )
            raise ConfigurationError(message)
        if "max_tokens" in given:
            given["max_new_tokens"] = given.pop("max_tokens")
        parameters = {name: given.get(name, getattr(self, name)) for name in PARAMETERS}
        has_protocol = bool(protocol)
        return protocol, {
            "policy": self._policy(one_answer=has_protocol),
            "model": given.get("model", self.model_name),
            "stop": self.stop if stop is None else stop,
            "parameters": protocol.parameters(parameters) if has_protocol else parameters,
        }

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        stop = self.stop if stop is None else stop
        return super()._get_invocation_params(stop=stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Make the cache key from what an answer depends on.

        LangChain's own key is made once per model, so that it would miss fields that change later.
        It also holds the whole default image.
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
        return {**_PROFILE, "name": self.model_name}
