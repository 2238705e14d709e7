"""Answers as objects: the form is asked for in the prompt, and what comes back is checked here."""

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
"""What an answer cost, of which a repaired one tells the sum."""

_AGAIN = "That is not what was asked for: {reason} Answer with the JSON object alone."


@dataclass(frozen=True)
class StructuredOutput:
    """What is asked for, and how an answer becomes it.

    Attributes:
        schema: A pydantic class (of version 1 or 2), a TypedDict, a JSON schema with a title, or
            a tool as OpenAI writes it. Of a class an answer is made, with all its checks; of the
            others only what is missing is told, since nothing says how strictly they are meant.
        method: `"json_schema"` shows the model the schema, `"function_calling"` shows it as a
            tool, `"json_mode"` asks for any JSON object and leaves the rest to your prompt.
        include_raw: Give the message beside the object, and an error instead of raising it.
        max_repairs: How often the model is shown what is wrong and asked again: each time is an
            image billed.
    """

    schema: Any
    method: Method = "json_schema"
    include_raw: bool = False
    max_repairs: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked before paying."""
        with langchain_errors():
            if self.method not in get_args(Method):
                message = f"method is {self.method!r}; it is one of: {', '.join(get_args(Method))}."
                raise ConfigurationError(message)
            if self.max_repairs < 0:
                message = f"max_repairs is {self.max_repairs}; it is 0 or more."
                raise ConfigurationError(message)
            held = self.schema.get("function") if isinstance(self.schema, Mapping) else None
            if isinstance(held, Mapping):  # LangChain takes a tool as OpenAI writes it, too
                object.__setattr__(self, "schema", held)
            # LangChain leaves nothing over of a schema without properties.
            if (self._parameters or {"type": None}).get("type", "object") != "object":
                message = (
                    "The schema is not that of an object with properties of its own. Put what it"
                    " describes into a property of one."
                )
                raise ConfigurationError(message)

    def keywords(self) -> dict[str, Any]:
        """Make the keywords that a model is bound to."""
        function = self._function
        told = {"kwargs": {"method": self.method}, "schema": self.schema}
        keywords: dict[str, Any] = {RETURN_INVALID_CALLS: True, "ls_structured_output_format": told}
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
        """Make what asks a bound model and reads its answers.

        Args:
            model: Bound to `keywords()`.
            max_concurrency: How many requests it has under way at most.

        Returns:
            It gives the object, or with `include_raw` a dict of `raw`, `parsed` and
            `parsing_error`.
        """
        return _Reading(_Asker(self, model), max_concurrency)

    def asking(self, question: LanguageModelInput) -> Generator[list[BaseMessage], AIMessage, Any]:
        """Ask, and ask again; both `ask` and `ask_async` do what it yields."""
        messages = _messages(question)
        cost = dict.fromkeys(_SUMS, 0)
        for repairs in range(self.max_repairs + 1):
            raw = yield messages
            cost = {name: cost[name] + raw.response_metadata[name] for name in _SUMS}
            metadata = {**raw.response_metadata, **cost, "repairs": repairs}
            raw = raw.model_copy(update={"response_metadata": metadata})
            words = raw.response_metadata["raw_reply"]
            value, reason = self._read(raw)
            if reason is None:
                return self._told(raw, value, None)
            messages = [*messages, AIMessage(words), HumanMessage(_AGAIN.format(reason=reason))]
        failure = OutputParserException(
            f"The model did not answer as the schema wants: {reason} Images billed:"
            f" {cost['images_billed']}. It answered: {words}",
            llm_output=words,
        )
        if self.include_raw:
            return self._told(raw, None, failure)
        raise failure

    def _told(self, raw: AIMessage, value: Any, failure: OutputParserException | None) -> Any:
        if not self.include_raw:
            return value
        return {"raw": raw, "parsed": value, "parsing_error": failure}

    def _read(self, raw: AIMessage) -> tuple[Any, str | None]:
        """Make the object; or tell why it cannot be made."""
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
            # Without what the model wrote, which stands in the words already, and without links.
            reasons = error.errors(include_input=False, include_url=False, include_context=False)
            told = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in reasons)
            return None, f"{'; '.join(told)}."
        except ValueError as error:  # pydantic's version 1 raises one of its own
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
            # From text: what JSON cannot hold, a date or a tuple, is then read as JSON writes it.
            return lambda value: kind.model_validate_json(to_compact_json(value))
        return cast("Callable[[dict[str, Any]], Any] | None", getattr(kind, "parse_obj", None))

    def _missing(self, value: Mapping[str, Any]) -> str | None:
        """Tell what a dict lacks, which nobody else would look at."""
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
class _Asker:
    """Asks a bound model until its answer is the object, or the repairs end; it can be pickled."""

    wanted: StructuredOutput
    model: Runnable[LanguageModelInput, AIMessage]

    def ask(self, question: LanguageModelInput, config: RunnableConfig, **keywords: Any) -> Any:
        asking = self.wanted.asking(question)
        messages = next(asking)
        try:
            while True:
                messages = asking.send(self.model.invoke(messages, config, **keywords))
        except StopIteration as done:
            return done.value

    async def ask_async(
        self, question: LanguageModelInput, config: RunnableConfig, **keywords: Any
    ) -> Any:
        asking = self.wanted.asking(question)
        messages = next(asking)
        try:
            while True:
                messages = asking.send(await self.model.ainvoke(messages, config, **keywords))
        except StopIteration as done:
            return done.value


class _Reading(Batches[Any], RunnableLambda[LanguageModelInput, Any]):
    """Asks and reads; its batches end with their first error, like the batches of the model."""

    def __init__(self, asker: _Asker, max_concurrency: int) -> None:
        super().__init__(asker.ask, asker.ask_async, name="with_structured_output")
        self.max_concurrency = max_concurrency


def _messages(question: LanguageModelInput) -> list[BaseMessage]:
    if isinstance(question, PromptValue):
        return question.to_messages()
    if isinstance(question, str):
        return [HumanMessage(question)]
    return convert_to_messages(question)
