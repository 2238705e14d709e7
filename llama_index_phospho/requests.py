"""The requests of a model: to the endpoint, or without an image to its `text_llm`."""

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from pydantic import BaseModel
from typing_extensions import TypeIs

from llama_index_phospho.content import message_turns
from llama_index_phospho.results import chat_response
from llama_index_phospho.structured_output import record_prediction
from phospho_multimodal import Prediction
from phospho_multimodal.client.model_clients import ModelClients
from phospho_multimodal.messages.conversation import Turn
from phospho_multimodal.tools.parsing import read_answer
from phospho_multimodal.tools.prompt import ToolProtocol

__all__ = [
    "EndpointRequest",
    "TextRequest",
    "calls_functions",
    "is_from_text_llm",
    "text_chat",
    "text_options",
]

_POLICY = "text_llm"
"""The `image_policy` in the metadata of a response of the text LLM."""
_IMAGE_OPTIONS = frozenset({"multi_image", "max_images", "default_image", "default_prompt"})

_Response = TypeVar("_Response", ChatResponse, CompletionResponse)


@dataclass(frozen=True, slots=True)
class EndpointRequest(Generic[_Response]):
    """A request to the endpoint, and how to read its answer. A stream has one chunk."""

    clients: Callable[[], ModelClients]
    turns: Sequence[Turn]
    options: dict[str, Any]
    read: Callable[[Prediction, bool], _Response]

    def send(self, *, streamed: bool = False) -> _Response:
        """Return the response."""
        return self.read(self.clients().sync.converse(self.turns, **self.options), streamed)

    async def asend(self, *, streamed: bool = False) -> _Response:
        """Return the response."""
        client = self.clients().asynchronous
        return self.read(await client.converse(self.turns, **self.options), streamed)

    def stream(self) -> Generator[_Response, None, None]:
        """Yield the response."""
        yield self.send(streamed=True)

    async def astream(self) -> AsyncGenerator[_Response, None]:
        """Yield the response."""
        yield await self.asend(streamed=True)


@dataclass(frozen=True, slots=True)
class TextRequest(Generic[_Response]):
    """A call of the text LLM. The metadata of its responses say that no image was billed."""

    llm: LLM
    method: Literal["chat", "complete", "chat_with_tools"]
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    # Reads the tool call in a whole answer of an LLM that cannot call functions.
    read: Callable[[_Response, bool], _Response] | None = None

    def send(self, *, streamed: bool = False) -> _Response:
        """Return the response."""
        return self._finish(self._call(), streamed)

    async def asend(self, *, streamed: bool = False) -> _Response:
        """Return the response."""
        return self._finish(await self._call("a"), streamed)

    def stream(self) -> Generator[_Response, None, None]:
        """Yield the chunks, or the whole response as one chunk if it must be read as a whole."""
        if self.read is not None:
            yield self.send(streamed=True)
            return
        for chunk in self._call("stream_"):
            yield self._finish(chunk)

    async def astream(self) -> AsyncGenerator[_Response, None]:
        """Yield the chunks, or the whole response as one chunk if it must be read as a whole."""
        if self.read is not None:
            yield await self.asend(streamed=True)
            return
        async for chunk in await self._call("astream_"):
            yield self._finish(chunk)

    def _call(self, prefix: str = "") -> Any:
        return getattr(self.llm, f"{prefix}{self.method}")(*self.args, **self.options)

    def _finish(self, response: _Response, streamed: bool = False) -> _Response:
        marked = _mark(response, self.llm)
        return marked if self.read is None else self.read(marked, streamed)


def text_chat(
    llm: LLM, messages: Sequence[ChatMessage], given: Mapping[str, Any], protocol: ToolProtocol
) -> TextRequest[ChatResponse]:
    """Make the request of a chat: unchanged, or with the tools in its text."""
    if not protocol:
        return TextRequest(llm, "chat", (messages,), text_options(given))
    turns = message_turns(messages)

    def read(response: ChatResponse, streamed: bool) -> ChatResponse:
        prediction = Prediction(response.message.content or "", cast("Any", response.raw))
        return chat_response(read_answer(prediction, protocol, turns), streamed=streamed)

    *conversation, instructions = map(_message, protocol.turns(turns))
    return TextRequest(llm, "chat", ([instructions, *conversation],), text_options(given), read)


def text_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the options about images, which another LLM would refuse or pass on."""
    return {name: value for name, value in given.items() if name not in _IMAGE_OPTIONS}


def calls_functions(llm: LLM | None) -> TypeIs[FunctionCallingLLM]:
    """Check whether an LLM accepts tools itself; others are prompted for calls."""
    return isinstance(llm, FunctionCallingLLM) and llm.metadata.is_function_calling_model


def is_from_text_llm(response: ChatResponse) -> bool:
    """Check whether the text LLM gave a response."""
    return isinstance(response.raw, Mapping) and response.raw.get("image_policy") == _POLICY


def _mark(response: _Response, llm: LLM) -> _Response:
    """Add our metadata to the metadata of the text LLM."""
    raw = response.raw
    if isinstance(raw, BaseModel):
        raw = raw.model_dump()
    metadata = dict(raw) if isinstance(raw, Mapping) else {} if raw is None else {"raw": raw}
    metadata |= {
        "model_name": llm.metadata.model_name,
        "image_policy": _POLICY,
        "images": [],
        "images_billed": 0,
        "images_in_doubt": 0,
        "images_omitted": 0,
        "cost_usd": 0.0,
        "attempts": 0,
    }
    record_prediction(metadata)
    return response.model_copy(update={"raw": metadata})


def _message(turn: Turn) -> ChatMessage:
    text = "\n".join(part for part in turn.parts if isinstance(part, str))
    if turn.role == "tool":  # an LLM without tools does not know this role
        return ChatMessage(role="user", content=f"Tool ({turn.name}): {text}")
    return ChatMessage(role=turn.role, content=text)
