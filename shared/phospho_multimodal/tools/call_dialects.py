"""Read which tool an object calls, in the dialects that models use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from phospho_multimodal.tools.json_objects import FoundObject, find_json_objects
from phospho_multimodal.tools.prompt import Tool, ToolProtocol

__all__ = ["Intent", "are_arguments", "read_intents", "read_unknown_call"]

# Models do not only use the form that they see, but also OpenAI's, Anthropic's, Llama's, ReAct's.
_NAMES: Final = ("name", "tool", "tool_name", "function", "function_name", "action")
_ARGUMENTS: Final = (
    "arguments",
    "args",
    "parameters",
    "params",
    "input",
    "tool_input",
    "tool_arguments",
    "tool_args",
    "tool_parameters",
    "function_arguments",
    "function_args",
    "function_parameters",
    "action_input",
    "kwargs",
)
_WRAPPERS: Final = ("tool_calls", "tool_call", "function_calls", "function_call", "function")
_OF_A_MESSAGE: Final = {"id", "index", "type", "role", "content", *_WRAPPERS}
_MAX_NAME: Final = 40  # characters in a message
_CALL_TYPES: Final = {"function", "function_call", "tool", "tool_call", "tool_use"}
_SCHEMA_WORDS: Final = frozenset(
    {"type", "properties", "required", "title", "description", "additionalProperties", "$defs"}
)


@dataclass(frozen=True, slots=True)
class Intent:
    """A call as a model wrote it: with an empty name or without arguments if they are unreadable.

    Attributes:
        problem: The reason why the call cannot be run.
        can_be_repeated: Whether an agent may report the problem, so that the model tries again.
            Each try bills an image, so this is false if the object may not be a call.
    """

    name: str
    arguments: Mapping[str, Any] | None
    problem: str | None = None
    can_be_repeated: bool = True


def read_intents(found: FoundObject, protocol: ToolProtocol, *, is_alone: bool) -> list[Intent]:
    """Read the calls that an object is or contains; an answer or a repeated definition has none.

    If the object `is_alone` in the answer, a name without arguments can be a call.
    """
    intents = list(_read(found.value, found, protocol, is_alone=is_alone))
    if not intents and found.in_call_tag and not found.whole:
        return [Intent("", None, f"its call {_fault(found)}", can_be_repeated=False)]
    return intents


def read_unknown_call(found: FoundObject, protocol: ToolProtocol) -> Intent | None:
    """Read an object that has the form of a call of a tool that does not exist."""
    value = found.value
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    held = next((value[key] for key in _ARGUMENTS if isinstance(value.get(key), Mapping)), None)
    if not found.whole or name is None or held is None or protocol.tool(name) is not None:
        return None
    short = repr(name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…")
    return Intent(name, held, f"it called {short}, which is none of the tools")


def _read(
    value: Any, found: FoundObject, protocol: ToolProtocol, *, is_alone: bool
) -> Iterator[Intent]:
    if not isinstance(value, Mapping):
        return
    named = {key: tool for key in _NAMES if (tool := _tool(value.get(key), protocol)) is not None}
    keyed = [_tool(key, protocol) for key in value]
    if named:
        key, tool = next(iter(named.items()))
        if _is_definition(value, tool):
            return
        fault = _fault(found, tool)
        names = sorted({tool.name for tool in named.values()})
        if fault is not None:
            yield Intent(tool.name, None, f"its call of {tool.name} {fault}")
        elif len(names) > 1:
            yield Intent(tool.name, None, f"it called {' and '.join(names)} in one object")
        else:
            yield _read_named(value, key, tool, is_alone=is_alone)
    elif keyed and all(keyed):
        yield from _read_keyed(value, [tool for tool in keyed if tool is not None], found)
    else:
        for wrapper in _WRAPPERS:
            held = value.get(wrapper)
            if isinstance(held, Mapping):
                # The arguments of a wrapped call can be next to the wrapper.
                held = {**_beside(value, held, wrapper), **held}
            for inner in held if isinstance(held, list) else [held]:
                yield from _read(inner, found, protocol, is_alone=is_alone)


def _beside(value: Mapping[str, Any], inner: Mapping[str, Any], wrapper: str) -> Mapping[str, Any]:
    """Find the keys next to a wrapped call, which may be its arguments."""
    outer = {key: held for key, held in value.items() if key not in {wrapper, *_OF_A_MESSAGE}}
    return {f"outer {key}" if key in inner else key: held for key, held in outer.items()}


def _tool(name: object, protocol: ToolProtocol) -> Tool | None:
    return protocol.tool(name) if isinstance(name, str) else None


def _fault(found: FoundObject, tool: Tool | None = None) -> str | None:
    if found.cut_off:
        return "is cut off (max_new_tokens=250 allows the longest answer)"
    # Only an escaped underscore in the tool's name shows that the model escapes all of them.
    is_escaped = found.markdown and (tool is None or "_" not in tool.name)
    return "is not valid JSON" if is_escaped or not found.whole else None


def _read_named(value: Mapping[str, Any], name_key: str, tool: Tool, *, is_alone: bool) -> Intent:
    """Read a call with the name of its tool; its arguments have a key or are next to the name."""
    read = {
        key: _read_arguments(value[key]) for key in _ARGUMENTS if key in value and key != name_key
    }
    # The `input` of a tool that takes an `input` can be an argument itself.
    holders = {
        key: held
        for key, held in read.items()
        if key not in tool.properties or (held is not None and held.keys() <= tool.properties)
    }
    about = {name_key} | ({"type"} if value.get("type") in _CALL_TYPES else set())
    if holders:
        about.add("id")
    about |= {key for key in _NAMES if value.get(key) == tool.name}
    others = {key: held for key, held in value.items() if key not in about | holders.keys()}
    beside = {key: held for key, held in others.items() if key in tool.properties}
    strange = sorted(others.keys() - beside.keys())
    if not holders and (strange or not (beside or is_alone)):
        # A button of a screenshot has a name, a type and an id, too.
        what = f"has no arguments, but {', '.join(strange)}" if strange else "has no arguments"
        problem = f"its call of {tool.name} {what}"
        return Intent(tool.name, None, problem, can_be_repeated=False)
    arguments: dict[str, Any] = {}
    for part in (*holders.values(), beside):
        if part is None:
            problem = f"the arguments of its call of {tool.name} are not a JSON object"
            return Intent(tool.name, None, problem)
        for key, held in part.items():
            if key in arguments and arguments[key] != held:
                return Intent(tool.name, None, f"its call of {tool.name} gives {key} twice")
            arguments[key] = held
    return Intent(tool.name, arguments)


def _read_keyed(
    value: Mapping[str, Any], tools: list[Tool], found: FoundObject
) -> Iterator[Intent]:
    """Read `{"get_weather": {"city": "Paris"}}`, if the tool has these arguments."""
    calls = list(zip(tools, map(_read_arguments, value.values()), strict=True))
    fault = _fault(found, tools[0])
    if fault is not None and isinstance(next(iter(value.values())), Mapping):
        yield Intent(tools[0].name, None, f"its call of {tools[0].name} {fault}")
    elif fault is None and all(
        given is not None and are_arguments(given, tool) for tool, given in calls
    ):
        yield from (Intent(tool.name, given) for tool, given in calls)


def are_arguments(value: Mapping[str, Any], tool: Tool) -> bool:
    """Check whether an object has exactly the arguments of a tool, and is not their schema."""
    is_empty = not value and bool(tool.properties)
    are_its_own = tool.required <= value.keys() <= tool.properties
    return are_its_own and not is_empty and not _is_schema(value, tool)


def _read_arguments(written: Any) -> Mapping[str, Any] | None:
    if written is None or written == "":
        return {}
    if isinstance(written, str):
        found = find_json_objects(written)
        is_one = len(found) == 1 and found[0].whole
        is_all = written.strip()[:1] + written.strip()[-1:] == "{}"
        return found[0].value if is_one and is_all else None
    return written if isinstance(written, Mapping) else None


def _is_definition(value: Mapping[str, Any], tool: Tool) -> bool:
    """Check whether an object repeats the definition of a tool, whole or in part."""
    if value.keys() >= {"description", "parameters"}:
        return True
    if "description" in value and "description" not in tool.properties:
        return " ".join(str(value["description"]).split()) == " ".join(tool.description.split())
    held = [value[key] for key in (*_ARGUMENTS, "input_schema") if key in value]
    return any(_is_schema(part, tool) for part in held if isinstance(part, Mapping))


def _is_schema(value: Mapping[str, Any], tool: Tool) -> bool:
    properties = tool.parameters.get("properties") or {}
    if any(_is_part(held, properties.get(name)) for name, held in value.items()):
        return True
    says_so = value.get("type") == "object" or isinstance(value.get("properties"), Mapping)
    is_object = says_so or isinstance(value.get("required"), list)
    return is_object and value.keys() <= _SCHEMA_WORDS and not value.keys() <= tool.properties


def _is_part(held: object, schema: object) -> bool:
    """Check whether a value only repeats or describes its schema."""
    if not isinstance(schema, Mapping) or not isinstance(held, Mapping):
        return False
    repeated = {key for key, part in held.items() if key in schema and schema[key] == part}
    return bool(repeated) and held.keys() <= {*repeated, "title", "description"}
