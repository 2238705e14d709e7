"""Who is measured: each from what a user holds (a URL, or a file's bytes) to the answer's text."""

from __future__ import annotations

import base64
import importlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock

from floors import NullChatModel, NullLLM, NullMultiModal
from langchain_phospho import ChatPhospho
from llama_index_phospho import Phospho, PhosphoMultiModal

__all__ = ["QUESTION", "Contestant", "Payload", "contestants", "langchain_message", "peer"]

QUESTION = "What is the total?"
_KEY = "not-a-key"


@dataclass(frozen=True)
class Payload:
    """What a user asks about: a URL, or the bytes of a JPEG."""

    name: str
    image: str | bytes


@dataclass(frozen=True)
class Contestant:
    """One way to ask.

    Attributes:
        name: As the table tells it.
        ask: Ask once, and give the answer's text.
        ask_async: The same with await.
        floor: The contestant that does nothing in the same framework.
        sends: Whether a request goes out.
    """

    name: str
    ask: Callable[[], str]
    ask_async: Callable[[], Awaitable[str]]
    floor: str | None = None
    sends: bool = True


def contestants(base_url: str, payload: Payload) -> list[Contestant]:
    """Put together everybody who can be asked about a payload here."""
    return [
        *_bare(base_url, payload),
        *_langchain(base_url, payload),
        *_llama_index(base_url, payload),
        *_peers(base_url, payload),
    ]


def _body(payload: Payload) -> dict[str, Any]:
    image = payload.image
    on_wire = image if isinstance(image, str) else base64.b64encode(image).decode()
    return {"model": "phospho-multimodal", "inputs": [{"text": QUESTION, "image_url": on_wire}]}


def _bare(base_url: str, payload: Payload) -> list[Contestant]:
    url = f"{base_url}/v2/predict"
    client, async_client = httpx.Client(), httpx.AsyncClient()
    ready = json.dumps(_body(payload)).encode()
    as_json = {"Content-Type": "application/json"}

    def answer(response: httpx.Response) -> str:
        text: str = response.json()["predictions"][0]["description"]
        return text

    async def with_json() -> str:
        return answer(await async_client.post(url, json=_body(payload)))

    async def with_bytes() -> str:
        return answer(await async_client.post(url, content=ready, headers=as_json))

    return [
        Contestant("httpx json=", lambda: answer(client.post(url, json=_body(payload))), with_json),
        Contestant(
            "httpx content=",
            lambda: answer(client.post(url, content=ready, headers=as_json)),
            with_bytes,
        ),
    ]


def langchain_message(payload: Payload) -> HumanMessage:
    """The message of a LangChain user, with base64 made by the standard library."""
    url = payload.image
    if isinstance(url, bytes):
        url = f"data:image/jpeg;base64,{base64.b64encode(url).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    return HumanMessage([{"type": "text", "text": QUESTION}, image])


def _chat_model(name: str, model: Any, payload: Payload, **more: Any) -> Contestant:
    async def ask_async() -> str:
        text: str = (await model.ainvoke([langchain_message(payload)])).text
        return text

    def ask() -> str:
        text: str = model.invoke([langchain_message(payload)]).text
        return text

    return Contestant(name, ask, ask_async, **more)


def _langchain(base_url: str, payload: Payload) -> list[Contestant]:
    floor = _chat_model("LangChain floor", NullChatModel(), payload, sends=False)
    model = ChatPhospho(base_url=base_url)
    return [floor, _chat_model("ChatPhospho", model, payload, floor=floor.name)]


def _image_block(payload: Payload) -> ImageBlock:
    """Take the quick way in: of bytes LlamaIndex makes base64 and back several times."""
    image = payload.image
    return ImageBlock(url=image) if isinstance(image, str) else ImageBlock(image=BytesIO(image))


def _block_of_bytes(payload: Payload) -> ImageBlock:
    """Take the only way that LlamaIndex's OpenAI knows for a picture in memory."""
    image = payload.image
    return ImageBlock(url=image) if isinstance(image, str) else ImageBlock(image=image)


def _chat(
    name: str,
    llm: Any,
    payload: Payload,
    block: Callable[[Payload], ImageBlock] = _image_block,
    **more: Any,
) -> Contestant:
    def message() -> ChatMessage:
        return ChatMessage(role="user", blocks=[TextBlock(text=QUESTION), block(payload)])

    async def ask_async() -> str:
        return (await llm.achat([message()])).message.content or ""

    return Contestant(name, lambda: llm.chat([message()]).message.content or "", ask_async, **more)


def _complete(name: str, llm: Any, payload: Payload, **more: Any) -> Contestant:
    async def ask_async() -> str:
        text: str = (await llm.acomplete(QUESTION, image_documents=[_image_block(payload)])).text
        return text

    def ask() -> str:
        text: str = llm.complete(QUESTION, image_documents=[_image_block(payload)]).text
        return text

    return Contestant(name, ask, ask_async, **more)


def _llama_index(base_url: str, payload: Payload) -> list[Contestant]:
    chat = _chat("LlamaIndex floor, chat", NullLLM(), payload, sends=False)
    complete = _complete("LlamaIndex floor, complete", NullMultiModal(), payload, sends=False)
    return [
        chat,
        _chat("Phospho.chat", Phospho(base_url=base_url), payload, floor=chat.name),
        complete,
        _complete(
            "PhosphoMultiModal.complete",
            PhosphoMultiModal(base_url=base_url),
            payload,
            floor=complete.name,
        ),
    ]


def peer(name: str, base_url: str) -> Any:
    """Make another provider's model that speaks to the stub; `None` where it is not installed."""
    makers: dict[str, tuple[str, str, dict[str, Any]]] = {
        "ChatOpenAI": (
            "langchain_openai",
            "ChatOpenAI",
            {"model": "gpt-4o", "base_url": f"{base_url}/v1"},
        ),
        "ChatAnthropic": (
            "langchain_anthropic",
            "ChatAnthropic",
            {"model": "claude-sonnet-4-5", "base_url": base_url},
        ),
        "LlamaIndex OpenAI": (
            "llama_index.llms.openai",
            "OpenAI",
            {"model": "gpt-4o", "api_base": f"{base_url}/v1"},
        ),
    }
    module, kind, arguments = makers[name]
    try:
        maker = getattr(importlib.import_module(module), kind)
    except ImportError:
        return None
    # Their clients, once collected, close themselves on the loop that runs, which is not theirs.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return maker(api_key=_KEY, max_retries=0, **arguments)


def _peers(base_url: str, payload: Payload) -> list[Contestant]:
    found: list[Contestant] = []
    for name in ("ChatOpenAI", "ChatAnthropic"):
        model = peer(name, base_url)
        if model is not None:
            found.append(_chat_model(name, model, payload, floor="LangChain floor"))
    llm = peer("LlamaIndex OpenAI", base_url)
    if llm is not None:
        floor = _chat("LlamaIndex floor, bytes", NullLLM(), payload, _block_of_bytes, sends=False)
        openai = _chat("LlamaIndex OpenAI", llm, payload, _block_of_bytes, floor=floor.name)
        found += [floor, openai]
    return found


def raw_request(base_url: str, payload: Payload) -> bytes:
    """One whole request as bytes: what a client costs that does nothing but send it."""
    body = json.dumps(_body(payload)).encode()
    head = (
        f"POST /v2/predict HTTP/1.1\r\nHost: {base_url.partition('://')[2]}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
