"""Objects that are asked for through core's programs, with errors that say what they cost."""

from collections.abc import AsyncGenerator, Generator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.prompts.base import PromptTemplate
from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from llama_index_phospho.text_llm import WithTextLLM
from phospho_multimodal.on_demand import ModuleOnDemand

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.tools.types import BaseTool

    from llama_index_phospho import structured_output, synthesizers, tool_calls
else:
    structured_output = ModuleOnDemand("llama_index_phospho.structured_output")
    synthesizers = ModuleOnDemand("llama_index_phospho.synthesizers")
    tool_calls = ModuleOnDemand("llama_index_phospho.tool_calls")

__all__ = ["WithPrograms"]

_Object = TypeVar("_Object", bound=BaseModel)


class WithPrograms(WithTextLLM):
    """The part of `Phospho` that asks for objects."""

    model_config = ConfigDict(defer_build=True)

    @override
    def structured_predict(
        self,
        output_cls: type[_Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> _Object:
        """Ask for an object; see `LLM.structured_predict`.

        Raises:
            NoToolCallError: The answer holds no such object. Core says so by a ValueError, which
                its own response synthesizers take for an empty response.
        """
        with structured_output.object_or_error(output_cls):
            # Core leaves the parser of this object in the prompt that it is given.
            answer: _Object = super().structured_predict(
                output_cls, copy(prompt), llm_kwargs, **prompt_args
            )
        return answer

    @override
    async def astructured_predict(
        self,
        output_cls: type[_Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> _Object:
        """Do as `structured_predict`, with await."""
        with structured_output.object_or_error(output_cls):
            answer: _Object = await super().astructured_predict(
                output_cls, copy(prompt), llm_kwargs, **prompt_args
            )
        return answer

    @override
    def stream_structured_predict(
        self,
        output_cls: type[_Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[_Object, None, None]:
        """Do as `structured_predict`, as a stream of one object: the endpoint has no other.

        Core's own would make an empty object of prose, which was paid for.

        Raises:
            NoToolCallError: The answer holds no such object, or a query engine asks and would
                stream nothing of this one.
            ConfigurationError: A query engine asks, which would stream nothing of it.
        """
        synthesizers.check_streamed_object(output_cls, prompt, prompt_args)
        made = self.structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        synthesizers.check_streamed_answer(made, prompt, prompt_args)
        yield made

    @override
    async def astream_structured_predict(
        self,
        output_cls: type[_Object],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[_Object, None]:
        """Do as `stream_structured_predict`, with await."""
        synthesizers.check_streamed_object(output_cls, prompt, prompt_args)

        async def answer() -> AsyncGenerator[_Object, None]:
            made = await self.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            synthesizers.check_streamed_answer(made, prompt, prompt_args)
            yield made

        return answer()

    @override
    def predict_and_call(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> "AgentChatResponse":
        """Call the tool that the model chose; see `LLM.predict_and_call`.

        Raises:
            NoToolCallError: No call came that can be run, or a program asks, and its class does
                not take what the model gave.
        """
        with structured_output.recorded_predictions() as predictions:
            outcome = super().predict_and_call(tools, *args, **kwargs)
        if tool_calls.asks_for_object(kwargs):
            structured_output.check_outcome(outcome, predictions)
        return outcome

    @override
    async def apredict_and_call(
        self, tools: Sequence["BaseTool"], *args: Any, **kwargs: Any
    ) -> "AgentChatResponse":
        """Do as `predict_and_call`, with await."""
        with structured_output.recorded_predictions() as predictions:
            outcome = await super().apredict_and_call(tools, *args, **kwargs)
        if tool_calls.asks_for_object(kwargs):
            structured_output.check_outcome(outcome, predictions)
        return outcome
