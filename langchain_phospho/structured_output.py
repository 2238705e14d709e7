"""Structured output: the prompt describes the object, and this module checks the answer."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import BaseModel, ValidationError

from langchain_phospho.batching import Batches
from langchain_phospho.errors import langchain_errors
from langchain_phospho.tool_calls import RETURN_INVALID_CALLS, openai_function
from phospho_multimodal import ConfigurationError
from phospho_multimodal.tools.answer_objects import find_answer, select_answer
from phospho_multimodal.tools.json_objects import find_json_objects, to_compact_json
from phospho_multimodal.tools.schema import find_properties

__all__ = ["Method", "StructuredOutput"]

Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]

_SUMS = ("images_billed", "images_in_doubt", "cost_usd", "attempts")
"""Metadata that are summed over an answer and its repairs."""

_REPAIR = "That is not what was asked for: {reason} Answer with the JSON object alone."


@dataclass(frozen=True)
class StructuredOutput:
    """The requested object, and how an answer becomes this object.

    Attributes:
        schema: A pydantic class (of version 1 or 2), a TypedDict, a JSON schema with a title, or
            an OpenAI tool. A class checks the whole answer. For other schemas only missing keys
            are errors, because nothing says how strictly they are meant.
        method: `"json_schema"` shows the schema to the model, `"function_calling"` shows it as a
            tool, `"json_mode"` requests any JSON object and leaves the rest to your prompt.
        include_raw: Return the message with the object, and return an error instead of raising it.
        max_repairs: How often the model gets the problem and is called again. Each repair is
            billed as one image.
    """

    schema: Any
    method: Method = "json_schema"
    include_raw: bool = False
    max_repairs: int = 0

    def __post_init__(self) -> None:
        """Check the schema and the options before anything is sent."""
        with langchain_errors():
            if self.method not in get_args(Method):
                known = ", ".join(map(repr, get_args(Method)))
                message = f"method must be one of {known}, got {self.method!r}."
                raise ConfigurationError(message)
            if self.max_repairs < 0:
                message = f"max_repairs must be 0 or greater, got {self.max_repairs}."
                raise ConfigurationError(message)
            held = self.schema.get("function") if isinstance(self.schema, Mapping) else None
            if isinstance(held, Mapping):  # an OpenAI tool
                object.__setattr__(self, "schema", held)
            # LangChain returns nothing for a schema without properties.
            if (self._parameters or {"type": None}).get("type", "object") != "object":
                message = (
                    "The schema does not describe an object with its own properties. Put the schema"
                    " into a property of an object."
                )
                raise ConfigurationError(message)

    def keywords(self) -> dict[str, Any]:
        """Make the keywords for `bind`."""
        function = self._function
        traced = {"kwargs": {"method": self.method}, "schema": self.schema}
        keywords: dict[str, Any] = {
            RETURN_INVALID_CALLS: True,
            "ls_structured_output_format": traced,
        }
        if self.method == "function_calling":
            tool = {"type": "function", "function": function}
            return {**keywords, "tools": [tool], "tool_choice": function["name"]}
        if self.method == "json_mode":
            return {**keywords, "response_format": {"type": "json_object"}}
        named = {"name": function["name"], "schema": self._described()}
        return {**keywords, "response_format": {"type": "json_schema", "json_schema": named}}

    def reading(
        self, model: Runnable[LanguageModelInput, AIMessage], max_concurrency: int
    ) -> Runnable[Any, Any]:
        """Make the runnable that calls a bound model and reads its answers."""
        return _Reader(_Caller(self, model), max_concurrency)

    def conversation(
        self, prompt: LanguageModelInput
    ) -> Generator[list[BaseMessage], AIMessage, Any]:
        """Yield messages for the model until its answer is right or no repair is left."""
        messages = _messages(prompt)
        cost = dict.fromkeys(_SUMS, 0)
        for repairs in range(self.max_repairs + 1):
            raw = yield messages
            cost = {name: cost[name] + raw.response_metadata[name] for name in _SUMS}
            metadata = {**raw.response_metadata, **cost, "repairs": repairs}
            raw = raw.model_copy(update={"response_metadata": metadata})
            words = raw.response_metadata["raw_reply"]
            value, reason = self._read(raw)
            if reason is None:
                return self._result(raw, value, None)
            messages = [*messages, AIMessage(words), HumanMessage(_REPAIR.format(reason=reason))]
        failure = OutputParserException(
            f"The answer does not match the schema: {reason} Images billed:"
            f" {cost['images_billed']}. The answer is: {words}",
            llm_output=words,
        )
        if self.include_raw:
            return self._result(raw, None, failure)
        raise failure

    def _result(self, raw: AIMessage, value: Any, failure: OutputParserException | None) -> Any:
        if not self.include_raw:
            return value
        return {"raw": raw, "parsed": value, "parsing_error": failure}

    def _read(self, raw: AIMessage) -> tuple[Any, str | None]:
        """Return the object, or the reason why there is none."""
        if raw.invalid_tool_calls:
            return None, f"{raw.invalid_tool_calls[0]['error']}."
        words = raw.response_metadata["raw_reply"]
        value: Any
        if raw.tool_calls:
            value = select_answer([raw.tool_calls[0]["args"]], self._parameters)
        else:
            value = find_answer(words, self._parameters, self._function["name"])
        if value is None:
            return None, self._why_not(words)
        parse = self._parser()
        if parse is None:
            return value, self._missing(value)
        try:
            return parse(value), None
        except ValidationError as error:
            # Without the input, which the answer shows already, and without links.
            reasons = error.errors(include_input=False, include_url=False, include_context=False)
            problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in reasons)
            return None, f"{'; '.join(problems)}."
        except ValueError as error:  # of pydantic version 1
            return None, f"{' '.join(str(error).split())}."

    def _why_not(self, words: str) -> str:
        if not any(found.whole for found in find_json_objects(words)):
            return "there is no whole JSON object in it."
        keys = ", ".join(find_properties(self._parameters, self._parameters))
        return f"no object in it gives values for the keys of the schema: {keys}."

    def _parser(self) -> Callable[[dict[str, Any]], Any] | None:
        kind = self.schema
        if not isinstance(kind, type) or isinstance(kind, Mapping):
            return None
        if issubclass(kind, BaseModel):
            # From JSON, because pydantic reads a date or a tuple from JSON in strict mode.
            return lambda value: kind.model_validate_json(to_compact_json(value))
        return cast("Callable[[dict[str, Any]], Any] | None", getattr(kind, "parse_obj", None))

    def _missing(self, value: Mapping[str, Any]) -> str | None:
        """Name the required keys that are missing in a dict."""
        missing = sorted(set(self._parameters.get("required") or ()) - value.keys())
        return f"it lacks {', '.join(missing)}." if missing else None

    @cached_property
    def _function(self) -> dict[str, Any]:
        return openai_function(self.schema)

    @property
    def _parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = self._function.get("parameters", {})
        return parameters

    def _described(self) -> dict[str, Any]:
        description = self._function.get("description")
        return {**({"description": description} if description else {}), **self._parameters}


@dataclass(frozen=True)
class _Caller:
    """Calls a bound model until its answer is the object or no repair is left; it pickles."""

    wanted: StructuredOutput
    model: Runnable[LanguageModelInput, AIMessage]

    def call(self, prompt: LanguageModelInput, config: RunnableConfig, **keywords: Any) -> Any:
        conversation = self.wanted.conversation(prompt)
        messages = next(conversation)
        try:
            while True:
                messages = conversation.send(self.model.invoke(messages, config, **keywords))
        except StopIteration as done:
            return done.value

    async def acall(
        self, prompt: LanguageModelInput, config: RunnableConfig, **keywords: Any
    ) -> Any:
        conversation = self.wanted.conversation(prompt)
        messages = next(conversation)
        try:
            while True:
                answer = await self.model.ainvoke(messages, config, **keywords)
                messages = conversation.send(answer)
        except StopIteration as done:
            return done.value


class _Reader(Batches[Any], RunnableLambda[LanguageModelInput, Any]):
    """Calls the model and reads its answers; a batch stops at the first error."""

    def __init__(self, caller: _Caller, max_concurrency: int) -> None:
        super().__init__(caller.call, caller.acall, name="with_structured_output")
        self.max_concurrency = max_concurrency


def _messages(prompt: LanguageModelInput) -> list[BaseMessage]:
    if isinstance(prompt, PromptValue):
        return prompt.to_messages()
    if isinstance(prompt, str):
        return [HumanMessage(prompt)]
    return convert_to_messages(prompt)
