"""`ChatPhospho`: the endpoint as a LangChain chat model."""

import hashlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

from langchain_phospho.batching import Batches
from langchain_phospho.errors import langchain_errors
from langchain_phospho.fields import PARAMETERS, PhosphoConfiguration
from langchain_phospho.token_counts import TokenCounts
from phospho_multimodal import ConfigurationError
from phospho_multimodal.contract import CONTEXT_WINDOW, DEFAULT_MODEL, MAX_NEW_TOKENS
from phospho_multimodal.on_demand import ModuleOnDemand

if TYPE_CHECKING:
    from langchain_core import tools as langchain_tools

    from langchain_phospho import results, structured_output, tool_calls
    from phospho_multimodal.tools import parsing as tool_replies
    from phospho_multimodal.tools.parsing import Answer
    from phospho_multimodal.tools.prompt import ToolProtocol
else:
    # For a hint alone: `with_fallbacks` has LangChain resolve those of the method that is called,
    # so that all they name has to be found at run time.
    langchain_tools = ModuleOnDemand("langchain_core.tools")
    results = ModuleOnDemand("langchain_phospho.results")
    structured_output = ModuleOnDemand("langchain_phospho.structured_output")
    tool_calls = ModuleOnDemand("langchain_phospho.tool_calls")
    tool_replies = ModuleOnDemand("phospho_multimodal.tools.parsing")

__all__ = ["ChatPhospho"]

_Method = TypeVar("_Method", bound=Callable[..., Any])

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
    # Middleware reads it for triggers such as ("fraction", 0.8).
    "max_input_tokens": CONTEXT_WINDOW,
    "max_output_tokens": MAX_NEW_TOKENS,
    "text_outputs": True,
    "image_outputs": False,
    "audio_outputs": False,
    "video_outputs": False,
    "reasoning_output": False,
    # Both by prompt: the endpoint itself knows no tools.
    "tool_calling": True,
    "tool_choice": True,
    # True would have `create_agent` take the first prose for a failed answer.
    "structured_output": False,
    "temperature": True,
}


@lru_cache(maxsize=4)  # asked for at every call, and a megabyte takes half a millisecond
def _digest(image: str) -> str:
    return hashlib.sha256(image.encode()).hexdigest()


def _with_signature(method: _Method) -> _Method:
    """Keep a method's signature with it: LangChain inspects it anew for each call."""
    cast("Any", method).__signature__ = inspect.signature(method)
    return method


class ChatPhospho(Batches[AIMessage], TokenCounts, PhosphoConfiguration):
    """Answers a question about the newest image of a conversation.

    Every answer's `response_metadata` tells what was sent and what it cost. Errors are those of
    `phospho_multimodal.errors` and LangChain's `ModelError` at once. Tools and structured output
    are prompted: the endpoint knows neither, and each step of an agent is an image billed.

    `batch` and `abatch` of the model stop at the first error, such as a 402. Those of
    `model.with_retry()` and `model.with_fallbacks()` are LangChain's own, and they ask all other
    questions after such an error. For many questions, call `batch` of the model itself, and set
    `max_retries`.

    The transcript of a conversation names the speakers (`message.name`). Only the newest turn
    raises for content that cannot be sent: in the turns before the newest user message, a mark in
    the text replaces it, and `content_omitted` in the metadata counts it.

    Example:
        ```python
        model = ChatPhospho(base_url="http://127.0.0.1:8000")
        image = {"type": "image", "base64": picture, "mime_type": "image/png"}
        question = {"type": "text", "text": "What does the receipt say?"}
        print(model.invoke([HumanMessage([question, image])]).text)
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
            "detail": self.detail,
            "max_tiles": self.max_tiles,
            "url_mode": self.url_mode,
        }

    def bind_tools(
        self,
        tools: "Sequence[Mapping[str, Any] | type | Callable[..., Any] | langchain_tools.BaseTool]",
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model, by prompt: the endpoint itself knows none.

        One call at most comes of an answer. One that cannot be run is handed on as it was read, so
        that an agent asks again, at most twice in a row: each time is an image billed.

        Args:
            tools: Whatever LangChain can turn into a tool.
            tool_choice: `None` or `"auto"`, `"none"`, `"any"` or `"required"` or `True`, a tool's
                name, or another provider's mapping for one of these. A forced call that does not
                come is a `NoToolCallError`, after one image.
            **kwargs: `response_format`, for an answer that is no call, and the keywords of any
                call. `strict` and `parallel_tool_calls` are accepted and change nothing.

        Returns:
            The model with the tools.

        Raises:
            ConfigurationError: A tool is no function, or the choice is none of them.
        """
        with langchain_errors():
            return self.bind(**tool_calls.bound_tools(tools, tool_choice), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: "structured_output.Method" = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        max_repairs: int = 0,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Have the model answer with an object, by prompt: nothing makes it.

        Args:
            schema: A pydantic class, a TypedDict, a JSON schema with a title, or an OpenAI tool.
            method: `"json_schema"` shows the model the schema, `"function_calling"` shows it as a
                tool, `"json_mode"` asks for JSON and leaves the form to your prompt.
            include_raw: Give a dict of `raw` (the message), `parsed` and `parsing_error`.
            strict: Accepted, and changes nothing: a pydantic class always checks all of an answer,
                and of another schema what it requires has to be there.
            max_repairs: How often a wrong answer is shown to the model to do better. Each is an
                image billed; the metadata of `raw` tells the sum.
            **kwargs: Keywords of any call.

        Returns:
            It gives the object. An answer that is none raises LangChain's `OutputParserException`,
            whose `llm_output` is the text.

        Raises:
            ConfigurationError: The method is unknown, or the schema not that of an object.
        """
        del strict
        wanted = structured_output.StructuredOutput(schema, method, include_raw, max_repairs)
        bound = self.bind(**wanted.keywords(), **kwargs)
        return wanted.reading(bound, self.max_concurrency)

    @_with_signature
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        return results.chat_result(self._predict(messages, stop, kwargs))

    @_with_signature
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        return results.chat_result(await self._apredict(messages, stop, kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunk = results.chat_chunk(self._predict(messages, stop, kwargs))
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
        chunk = results.chat_chunk(await self._apredict(messages, stop, kwargs))
        if run_manager is not None:
            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk

    def _predict(
        self, messages: list[BaseMessage], stop: list[str] | None, overrides: Mapping[str, Any]
    ) -> "Answer":
        with langchain_errors():
            protocol, call = self._call(stop, overrides)
            turns = tool_calls.read_called_messages(messages)
            prediction = self._clients().sync.converse(protocol.turns(turns), **call)
            return tool_replies.read_answer(prediction, protocol, turns)

    async def _apredict(
        self, messages: list[BaseMessage], stop: list[str] | None, overrides: Mapping[str, Any]
    ) -> "Answer":
        with langchain_errors():
            protocol, call = self._call(stop, overrides)
            turns = tool_calls.read_called_messages(messages)
            client = self._clients().asynchronous
            prediction = await client.converse(protocol.turns(turns), **call)
            return tool_replies.read_answer(prediction, protocol, turns)

    def _call(
        self, stop: list[str] | None, overrides: Mapping[str, Any]
    ) -> "tuple[ToolProtocol, dict[str, Any]]":
        """Put together what one call differs in: its own keywords before the model's fields."""
        given = {name: value for name, value in overrides.items() if value is not None}
        given.pop("stream", None)  # LangChain's own: whether `invoke` goes through `stream`
        protocol = tool_calls.take_protocol(given)
        unknown = given.keys() - _KEYWORDS
        if unknown or {"max_tokens", "max_new_tokens"} <= given.keys():
            # Names alone: a value could be a key.
            names = ", ".join(sorted(unknown)) or "max_tokens beside max_new_tokens"
            known = ", ".join(sorted(_KEYWORDS | tool_calls.PROTOCOL_KEYWORDS))
            message = f"A call of ChatPhospho cannot take {names}. It takes: {known} and stop."
            raise ConfigurationError(message)
        if "max_tokens" in given:
            given["max_new_tokens"] = given.pop("max_tokens")
        return protocol, {
            "policy": self._policy(one_answer=bool(protocol)),
            "model": given.pop("model", self.model_name),
            "stop": self.stop if stop is None else stop,
            "parameters": protocol.parameters(
                {name: given.get(name, getattr(self, name)) for name in PARAMETERS}
            ),
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

    @model_validator(mode="after")
    def _check_profile_keys(self) -> Self:
        """Have LangChain check a profile's keys, if it has others than the one below.

        It evaluates the annotations of all keys for each model made; those of ours are tested.
        """
        if isinstance(self.profile, dict) and self.profile.keys() <= _PROFILE.keys():
            return self
        check: Callable[[], Self] | None = getattr(super(), "_check_profile_keys", None)
        return self if check is None else check()

    def _resolve_model_profile(self) -> ModelProfile | None:
        return {**_PROFILE, "name": self.model_name}
