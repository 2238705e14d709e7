"""What a reply means under a tool protocol: a call, an answer of the form wanted, or plain text."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from phospho_multimodal.errors import NoToolCallError, quote
from phospho_multimodal.messages.conversation import ToolCall, Turn
from phospho_multimodal.tools.answer_objects import select_answer
from phospho_multimodal.tools.call_dialects import (
    Intent,
    are_arguments,
    read_intents,
    read_unknown_call,
)
from phospho_multimodal.tools.json_objects import FoundObject, find_json_objects, to_compact_json
from phospho_multimodal.tools.prompt import MAX_REASKS, Tool, ToolProtocol

if TYPE_CHECKING:
    from phospho_multimodal.exchange.prediction import Prediction

__all__ = ["Answer", "read_answer"]

logger = logging.getLogger("phospho_multimodal")

_MOST_PROSE = 40
"""Characters of prose before a call. Of 8,114 right calls of 15 models 8 have more before them."""

_CALLED_NONE = "it called none"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was read.

    Attributes:
        text: What it says; empty where it is a call.
        metadata: Those of the prediction. Under a protocol also `raw_reply`, the model's own
            words; `tool_call_problem` where a call cannot be run as it is; and
            `tool_calls_omitted`, how many further calls were left out.
        call: The call.
        invalid_tool_name: The tool whose call is invalid and not passed on, empty if its name
            cannot be read either. The text is then the model's own words.
    """

    text: str = field(repr=False)
    metadata: Mapping[str, Any]
    call: ToolCall | None = None
    invalid_tool_name: str | None = None


def read_answer(prediction: Prediction, protocol: ToolProtocol, turns: Sequence[Turn]) -> Answer:
    """Read an answer.

    An unusable call is passed on, so that the agent shows the problem to the model and the model
    tries again. Each repetition is an image billed, so at most `max_reasks` in a row are passed on.
    A call is never passed on if the tool would run on arguments that the model did not give.

    Args:
        prediction: What the model answered.
        protocol: What the model was told.
        turns: What the model was asked.

    Returns:
        The answer.

    Raises:
        NoToolCallError: A call was forced, and there is none that can be passed on.
    """
    raw = prediction.description
    if not protocol:
        return Answer(raw, prediction.metadata)
    metadata = {**prediction.metadata, "raw_reply": raw}
    found = find_json_objects(raw)
    if any(item.prose_before > _MOST_PROSE for item in found):
        found = find_json_objects(raw, known=_told_words(protocol))
    intents = _find_intents(found, protocol)
    if not intents:
        if protocol.forced and not protocol.return_invalid_calls:
            raise _no_call(_CALLED_NONE, prediction, turns)
        return Answer(_answer_text(raw, found, protocol), metadata)
    intent = intents[0]
    if len(intents) > 1:
        metadata["tool_calls_omitted"] = len(intents) - 1
        logger.warning("The model made %d calls in one answer: the first is taken.", len(intents))
    problem = _problem(intent, protocol, turns)
    if problem is not None:
        metadata["tool_call_problem"] = problem
        if not _is_passed_on(intent, protocol, turns):
            if protocol.forced and not protocol.return_invalid_calls:
                raise _no_call(problem, prediction, turns)
            return Answer(raw, metadata, invalid_tool_name=intent.name)
    tool = protocol.tool(intent.name)
    arguments = (tool or Tool(intent.name, "", {})).coerce(intent.arguments or {})
    call = ToolCall(intent.name, arguments, f"call_{uuid.uuid4().hex}")
    return Answer("", metadata, call)


def _told_words(protocol: ToolProtocol) -> list[str]:
    """List the prose of the instructions, which a model may repeat before its call."""
    lines = (line.partition("{")[0].strip() for line in protocol.instructions().splitlines())
    return [line for line in lines if line]


def _find_intents(found: Sequence[FoundObject], protocol: ToolProtocol) -> list[Intent]:
    """Find the calls of an answer, or the plain object that stands for one."""
    if not protocol.tools:
        return []
    intents: list[Intent] = []
    is_hidden = False  # by an object before it that could not be read
    for item in found:
        is_alone = len(found) == 1 and not item.in_list
        for intent in read_intents(item, protocol, is_alone=is_alone):
            if not _is_meant(intent, item, protocol):
                continue
            if is_hidden and item.whole:
                problem = f"what comes before its call of {intent.name} is not valid JSON"
                intents.append(Intent(intent.name, None, problem))
            else:
                intents.append(_checked(intent, protocol))
        is_hidden = is_hidden or not item.whole
    intents = (
        intents
        or _bare_answer(found, protocol)
        or _bare_arguments(found, protocol)
        or _unknown_calls(found, protocol)
    )
    return intents[:1] if intents and intents[0].problem else intents


def _is_meant(intent: Intent, item: FoundObject, protocol: ToolProtocol) -> bool:
    """Check that a call is not an example, a text of the image, or the form that the model saw."""
    form = protocol.form()
    if intent.arguments and intent.name == form["name"] and intent.arguments == form["arguments"]:
        return False
    schema = protocol.answer_schema
    if not intent.can_be_repeated and schema and select_answer([item.value], schema):
        return False
    return intent.name in protocol.answer_tools or _is_in_place(item)


def _checked(intent: Intent, protocol: ToolProtocol) -> Intent:
    """Take the object out of the call of a tool that only gives the answer its form."""
    tool = protocol.tool(intent.name) if intent.name in protocol.answer_tools else None
    if tool is None or intent.arguments is None or not tool.properties:
        return intent
    chosen = select_answer([intent.arguments], tool.parameters, tool.name)
    if chosen is None:
        problem = f"its call of {tool.name} gives no value for a key of the schema"
        return Intent(tool.name, None, problem)
    return Intent(tool.name, chosen)


def _is_in_place(item: FoundObject) -> bool:
    return item.prose_before <= _MOST_PROSE or (item.on_own_line and item.is_last)


def _bare_answer(found: Sequence[FoundObject], protocol: ToolProtocol) -> list[Intent]:
    """Read a plain object as the call of the tool that only gives the answer its form."""
    whole = [item.value for item in found if item.whole]
    for tool in protocol.offered():
        if tool.name in protocol.answer_tools:
            arguments = select_answer(whole, tool.parameters, tool.name)
            if arguments is not None and tool.required <= arguments.keys():
                return [Intent(tool.name, arguments)]
    return []


def _bare_arguments(found: Sequence[FoundObject], protocol: ToolProtocol) -> list[Intent]:
    """Read an object as the arguments of the one tool that had to be called."""
    offered = protocol.offered()
    if not protocol.forced or len(offered) != 1:
        return []
    tool = offered[0]
    for item in found:
        if not item.whole:
            break
        fits = bool(item.value) and are_arguments(item.value, tool)
        if fits and _is_in_place(item) and item.value != tool.placeholders():
            return [Intent(tool.name, item.value)]
    return []


def _unknown_calls(found: Sequence[FoundObject], protocol: ToolProtocol) -> list[Intent]:
    """Read the calls of tools that are not there, where the model had to call one.

    Where the model is free to answer, such an object is the answer.
    """
    if not protocol.forced:
        return []
    read = (read_unknown_call(item, protocol) for item in found if _is_in_place(item))
    return [intent for intent in read if intent is not None]


def _problem(intent: Intent, protocol: ToolProtocol, turns: Sequence[Turn]) -> str | None:
    """Tell why a call cannot be run as it is."""
    tool = protocol.tool(intent.name)
    if intent.name and protocol.only not in {None, intent.name}:
        return f"it called {intent.name!r:.42} instead of {protocol.only}"
    if tool is None or intent.arguments is None:
        return intent.problem
    missing = sorted(tool.required - intent.arguments.keys())
    if missing:
        return f"its call of {tool.name} lacks {', '.join(missing)}"
    shown = protocol.form()["arguments"]
    unfilled = sorted(name for name, held in shown.items() if intent.arguments.get(name) == held)
    if unfilled:
        return f"its call of {tool.name} does not fill in {', '.join(unfilled)}"
    # The tool itself reports what is wrong with a whole call, unless that does not help.
    looping = _in_vain(turns, protocol) >= MAX_REASKS
    wrong = tool.misfits(tool.coerce(intent.arguments)) if looping else ()
    what = f"gives a wrong type or value of {', '.join(wrong)}"
    return f"its call of {tool.name} {what}" if wrong else None


def _is_passed_on(intent: Intent, protocol: ToolProtocol, turns: Sequence[Turn]) -> bool:
    tool = protocol.tool(intent.name)
    if protocol.only not in {None, intent.name} or not intent.can_be_repeated:
        return False
    if tool is not None and not tool.required - (intent.arguments or {}).keys():
        return False  # It would run, on arguments that are not the model's.
    return _in_vain(turns, protocol) < protocol.max_reasks


def _in_vain(turns: Sequence[Turn], protocol: ToolProtocol) -> int:
    """Count the calls at the end of a conversation that could not be run."""
    count = 0
    for turn in reversed(turns):
        if turn.role == "user" or (turn.role == "assistant" and not turn.calls):
            break
        if turn.role == "assistant":
            if any(_runs(call, protocol.tool(call.name)) for call in turn.calls):
                break
            count += 1
    return count


def _runs(call: ToolCall, tool: Tool | None) -> bool:
    return (
        tool is not None
        and tool.required <= call.arguments.keys()
        and not tool.misfits(call.arguments)
    )


def _answer_text(raw: str, found: Sequence[FoundObject], protocol: ToolProtocol) -> str:
    """Free an answer that has to be JSON from what stands around it."""
    if protocol.answer_schema is None:
        return raw
    whole = [item.value for item in found if item.whole]
    chosen = select_answer(whole, protocol.answer_schema)
    return raw if chosen is None else to_compact_json(chosen)


def _no_call(why: str, prediction: Prediction, turns: Sequence[Turn]) -> NoToolCallError:
    asked = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    words = quote(prediction.description, hide=asked)
    billed = prediction.metadata["images_billed"]
    error = NoToolCallError(
        f"The model had to call a tool, and {why}. It answered: {words!r}. Images billed: {billed}."
        " Tool calling is prompted here, not guaranteed: ask differently, or do not force it."
    )
    error.attempts = prediction.metadata["attempts"]
    error.images_in_doubt = prediction.metadata["images_in_doubt"]
    return error
