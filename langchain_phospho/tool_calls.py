"""Describe LangChain's tools and schemas to the core's prompt-based tool protocol."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import (
    convert_to_openai_function,
    convert_to_openai_tool,
)
from pydantic import BaseModel
from pydantic.v1 import BaseModel as BaseModelV1

from phospho_multimodal import ConfigurationError
from phospho_multimodal.tools.prompt import ToolProtocol
from phospho_multimodal.tools.schema import inline_references

__all__ = [
    "PROTOCOL_KEYWORDS",
    "RETURN_INVALID_CALLS",
    "bound_tools",
    "openai_function",
    "take_protocol",
]

PROTOCOL_KEYWORDS = frozenset(
    {"tools", "tool_choice", "response_format", "strict", "parallel_tool_calls"}
)
"""Keywords of a call about tools. The last two have no effect; other providers know them."""

RETURN_INVALID_CALLS = "return_invalid_calls"
"""A keyword of `with_structured_output`, which reads the message and needs no error."""

_ANSWER_TOOLS = "answer_tools"
"""A keyword with the names of tools that run nothing and only give the answer its form."""

_NO_PROTOCOL = ToolProtocol()


def bound_tools(
    tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool], tool_choice: Any
) -> dict[str, Any]:
    """Make the keywords that bind tools, and check the tools and the choice."""
    definitions = [_definition(tool) for tool in tools] or None
    ToolProtocol.of(definitions, tool_choice=tool_choice)
    names = [
        tool.name
        for tool in tools
        # `create_agent` makes a tool that runs nothing of a response format.
        if isinstance(tool, StructuredTool) and not (tool.func or tool.coroutine)
    ]
    keywords = {"tools": definitions, "tool_choice": tool_choice, _ANSWER_TOOLS: names or None}
    return {name: value for name, value in keywords.items() if value is not None}


def openai_function(
    schema: Mapping[str, Any] | type | Callable[..., Any] | BaseTool,
) -> dict[str, Any]:
    """Describe a tool or a schema in OpenAI's form, as `name`, `description` and `parameters`.

    LangChain's own conversion loses recursive parts, and refers to definitions that it left out.
    """
    try:
        function: dict[str, Any] = dict(convert_to_openai_function(schema))
        whole = _json_schema(schema)
    except Exception as error:  # noqa: BLE001 - its class depends on the schema
        message = (
            f"LangChain cannot read the schema: {type(error).__name__}:"
            f" {' '.join(str(error).split())} Nothing was sent."
        )
        raise ConfigurationError(message) from None
    if whole is not None and (whole.get("$defs") or whole.get("definitions")):
        whole = inline_references(whole)
        function["parameters"] = {
            key: value for key, value in whole.items() if key not in {"title", "description"}
        }
    return function


def take_protocol(given: dict[str, Any]) -> ToolProtocol:
    """Remove the keywords about tools from those of a call, and read them."""
    if not given:
        return _NO_PROTOCOL
    wanted = {name: given.pop(name, None) for name in PROTOCOL_KEYWORDS}
    protocol = ToolProtocol.of(
        wanted["tools"],
        tool_choice=wanted["tool_choice"],
        response_format=wanted["response_format"],
    )
    answer_tools = frozenset(given.pop(_ANSWER_TOOLS, None) or ())
    if given.pop(RETURN_INVALID_CALLS, False):
        every = frozenset(tool.name for tool in protocol.tools)
        return replace(protocol, return_invalid_calls=True, max_reasks=0, answer_tools=every)
    return replace(protocol, answer_tools=answer_tools) if answer_tools else protocol


def _definition(tool: Any) -> dict[str, Any]:
    if isinstance(tool, Mapping) and "type" in tool and "properties" not in tool:
        return dict(convert_to_openai_tool(tool))  # the protocol refuses a provider's own tools
    return {"type": "function", "function": openai_function(tool)}


def _json_schema(schema: Any) -> dict[str, Any] | None:
    """Return the JSON schema of a class or a tool, with its definitions."""
    kind = schema if isinstance(schema, type) else getattr(schema, "tool_call_schema", None)
    if isinstance(kind, Mapping):
        return dict(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_json_schema()
    if isinstance(kind, type) and issubclass(kind, BaseModelV1):
        return kind.schema()
    return None
