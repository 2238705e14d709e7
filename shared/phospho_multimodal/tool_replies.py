"""What a reply means under a tool protocol: a call, an answer of the form wanted, or plain text."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from phospho_multimodal.conversation import ToolCall, Turn
from phospho_multimodal.errors import NoToolCallError, quote
from phospho_multimodal.loose_json import FoundObject, found_objects, json_text
from phospho_multimodal.tool_protocol import RE_ASKS, Tool, ToolProtocol

if TYPE_CHECKING:
    from phospho_multimodal.prediction import Prediction

__all__ = ["Answer", "read_answer"]

logger = logging.getLogger("phospho_multimodal")

# How models write a call, whatever form they were told: OpenAI's, Anthropic's, Llama's, ReAct's.
_NAMES = ("name", "tool", "tool_name", "function", "function_name", "action")
_ARGUMENTS = ("arguments", "args", "parameters", "input", "tool_input", "action_input")
_WRAPPERS = ("tool_calls", "tool_call", "function_call", "function")
_BESIDES = frozenset({"id", "type", *_NAMES})
_DEFINITION = frozenset({"description", "parameters"})
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
        broken: The tool whose call could not be read and is not handed on; the text is then the
            model's own words.
    """

    text: str = field(repr=False)
    metadata: Mapping[str, Any]
    call: ToolCall | None = None
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class _Intent:
    """A call as it was written; arguments that could not be read are `None`."""

    name: str
    arguments: Mapping[str, Any] | None


def read_answer(prediction: Prediction, protocol: ToolProtocol, turns: Sequence[Turn]) -> Answer:
    """Read an answer.

    A call of an unknown tool, or one whose arguments cannot be read, is handed on as it was read:
    an agent then tells the model what is wrong, and it can do better. Not so where a tool would run
    on arguments that are not the model's, nor more than `re_asks` times in a row, since each time
    is an image billed.

    Args:
        prediction: What the model answered.
        protocol: What it was told.
        turns: What it was asked.

    Returns:
        The answer.

    Raises:
        NoToolCallError: A call was forced, and there is none that can be handed on.
    """
    raw = prediction.description
    if not protocol:
        return Answer(raw, prediction.metadata)
    metadata = {**prediction.metadata, "raw_reply": raw}
    found = list(found_objects(raw))
    intents = list(_intents(found, protocol))
    if not intents:
        if protocol.forced and not protocol.tells:
            raise _no_call(_CALLED_NONE, prediction, turns)
        return Answer(_answer_text(raw, found, protocol), metadata)
    intent = intents[0]
    if len(intents) > 1:
        metadata["tool_calls_omitted"] = len(intents) - 1
        logger.warning("The model made %d calls at once: the first is taken.", len(intents))
    problem = _problem(intent, protocol, turns)
    if problem is not None:
        metadata["tool_call_problem"] = problem
        if not _is_handed_on(intent, protocol, turns):
            if protocol.forced and not protocol.tells:
                raise _no_call(problem, prediction, turns)
            return Answer(raw, metadata, broken=intent.name)
    tool = protocol.tool(intent.name)
    arguments = intent.arguments or {}
    arguments = arguments if tool is None else tool.fitted(arguments)
    call = ToolCall(intent.name, arguments, f"call_{uuid.uuid4().hex}")
    return Answer("", metadata, call)


def _intents(found: Sequence[FoundObject], protocol: ToolProtocol) -> Iterator[_Intent]:
    if not protocol.tools:
        return
    for item in found:
        yield from _calls(item.value, protocol, whole=item.whole)


def _calls(value: Any, protocol: ToolProtocol, *, whole: bool) -> Iterator[_Intent]:
    """Read the calls that an object is or holds."""
    if not isinstance(value, Mapping) or value.keys() >= _DEFINITION:
        return  # nothing, or what the model was told, repeated
    names = [value[key] for key in _NAMES if isinstance(value.get(key), str)]
    name = next(filter(protocol.tool, names), names[0] if names else None)
    key = next((key for key in _ARGUMENTS if key in value), None)
    known = name is not None and protocol.tool(name) is not None
    if name is not None and known:
        stray = value.keys() - _BESIDES if key is None else ()
        readable = whole and not stray
        yield _Intent(name, _arguments(value.get(key or "")) if readable else None)
    elif whole and _fits_alone(value, protocol):
        yield _Intent(protocol.only or protocol.tools[0].name, value)
    elif whole and protocol.answer_schema is not None and _fits(value, protocol.answer_schema):
        return
    elif name is not None and key not in {None, "input"}:  # an "input" can be of anything else
        yield _Intent(name, _arguments(value.get(key or "")) if whole else None)
    else:
        for held in map(value.get, _WRAPPERS):
            for inner in held if isinstance(held, list) else [held]:
                yield from _calls(inner, protocol, whole=whole)


def _arguments(written: Any) -> Mapping[str, Any] | None:
    if written is None or written == "":
        return {}
    if isinstance(written, str):
        found = list(found_objects(written))
        is_one = len(found) == 1 and found[0].whole
        is_all = written.strip()[:1] + written.strip()[-1:] == "{}"
        return found[0].value if is_one and is_all else None
    return written if isinstance(written, Mapping) else None


def _fits_alone(value: Mapping[str, Any], protocol: ToolProtocol) -> bool:
    """Tell whether an object is the arguments of the one tool that had to be called."""
    if not protocol.forced:
        return False
    meant = [tool for tool in protocol.tools if protocol.only in {None, tool.name}]
    tool = meant[0]
    return len(meant) == 1 and bool(value) and tool.required <= value.keys() <= tool.properties


def _fits(value: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    return value.keys() >= set(schema.get("required") or ())


def _problem(intent: _Intent, protocol: ToolProtocol, turns: Sequence[Turn]) -> str | None:
    """Tell why a call cannot be run as it is."""
    tool = protocol.tool(intent.name)
    if protocol.only not in {None, intent.name}:
        return f"it called {_short(intent.name)} instead of {protocol.only}"
    if tool is None:
        return f"it called {_short(intent.name)}, which is none of the tools"
    if intent.arguments is None:
        return (
            f"the arguments of its call of {tool.name} are cut off or no JSON (max_new_tokens=250"
            " allows the longest answer)"
        )
    missing = sorted(tool.required - intent.arguments.keys())
    if missing:
        return f"its call of {tool.name} lacks {', '.join(missing)}"
    # Of a whole call the tool tells what is wrong with it, unless that does not help.
    looping = _in_vain(turns, protocol) >= RE_ASKS
    wrong = tool.misfits(tool.fitted(intent.arguments)) if looping else ()
    what = f"gives a wrong type or value of {', '.join(wrong)}"
    return f"its call of {tool.name} {what}" if wrong else None


def _is_handed_on(intent: _Intent, protocol: ToolProtocol, turns: Sequence[Turn]) -> bool:
    tool = protocol.tool(intent.name)
    if protocol.only not in {None, intent.name}:
        return False
    if tool is not None and not tool.required:
        return False  # broken, and yet it would run
    return _in_vain(turns, protocol) < protocol.re_asks


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
    fitting = [value for value in whole if _fits(value, protocol.answer_schema)]
    return json_text((fitting or whole)[0]) if whole else raw


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


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:40] + "…")  # noqa: PLR2004 - of a message
