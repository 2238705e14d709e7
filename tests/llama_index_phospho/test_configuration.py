"""Making a model: what is checked, what never leaks, what becomes of the default image."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from pydantic import ValidationError

from fault_server import FaultServer
from llama_index_phospho import Phospho, PhosphoMultiModal
from phospho_multimodal import (
    ConfigurationError,
    ImageError,
    MissingImageError,
    MissingKeyError,
)
from phospho_multimodal.contract import ParameterOptions
from phospho_multimodal.settings import ClientOptions
from pictures import draw, encoded

KEY = "sk-secret-0123456789"
LOCAL = "http://127.0.0.1:9"


def test_every_keyword_of_the_clients_is_a_field() -> None:
    keywords = {*ClientOptions.__annotations__, *ParameterOptions.__annotations__}
    keywords |= {"spending", "http_client"}
    assert keywords <= Phospho.model_fields.keys()
    assert Phospho.model_fields.keys() == PhosphoMultiModal.model_fields.keys()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 251}, "max_new_tokens"),
        ({"top_p": -0.1}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"model": "gpt-4o"}, "gpt-4o"),
        ({"multi_image": "all"}, "multi_image must be one of"),
        ({"max_images": 0}, "max_images"),
        ({"url_mode": "open"}, "url_mode"),
        ({"max_retries": -1}, "max_retries"),
        ({"timeout": 0}, "timeout"),
        ({"base_url": "phospho.example.com"}, "base_url"),
        ({"base_url": "http://phospho.example.com", "api_key": KEY}, "plain http"),
        ({"default_headers": {"authorization": "no"}}, "authorization"),
        ({"http_client": httpx.Client(), "verify": False}, "verify="),
        ({"http_async_client": httpx.AsyncClient(), "proxy": "http://proxy:3128"}, "proxy="),
    ],
)
def test_a_wrong_setting_is_told_when_the_model_is_made(
    kind: type[Phospho], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        kind(**{"base_url": LOCAL, **options})


def test_without_a_key_only_this_machine_is_reached(
    kind: type[Phospho], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingKeyError, match="PHOSPHO_API_KEY"):
        kind()
    assert kind(base_url=LOCAL).api_key is None
    monkeypatch.setenv("PHOSPHO_API_KEY", KEY)
    monkeypatch.setenv("PHOSPHO_BASE_URL", LOCAL)
    llm = kind()
    assert (llm.api_key, llm.base_url) == (KEY, LOCAL)


def test_a_temperature_of_zero_is_accepted(kind: type[Phospho]) -> None:
    assert kind(base_url=LOCAL, temperature=0).temperature == 0


def test_max_tokens_is_another_name(kind: type[Phospho]) -> None:
    llm = kind(base_url=LOCAL, max_tokens=7)
    assert (llm.max_new_tokens, llm.metadata.num_output) == (7, 7)
    with pytest.raises(ValidationError):
        kind(base_url=LOCAL, max_tokens=7, max_new_tokens=8)


def test_an_unknown_keyword_is_refused_and_not_quoted(kind: type[Phospho]) -> None:
    with pytest.raises(ValidationError, match="apikey") as refused:
        kind(base_url=LOCAL, apikey=KEY)
    assert KEY not in str(refused.value)


def test_the_models_name_may_come_first(kind: type[Phospho]) -> None:
    llm = kind("phospho-multimodal-7b", base_url=LOCAL)
    assert (llm.model, llm.metadata.model_name) == ("phospho-multimodal-7b",) * 2
    with pytest.raises(ConfigurationError, match="given twice"):
        kind("phospho-multimodal", model="phospho-multimodal", base_url=LOCAL)
    with pytest.raises(ConfigurationError, match="gpt-4o"):
        kind("gpt-4o", base_url=LOCAL)


def test_additional_kwargs_go_with_every_call(
    ask: Callable[..., Any], make: Callable[..., Any], server: FaultServer, picture: bytes
) -> None:
    llm = make(temperature=0.5, additional_kwargs={"temperature": 0.7, "max_tokens": 9})
    ask(llm, "What?", picture)
    ask(llm, "What?", picture, temperature=0.2)
    sent = [(r.item["temperature"], r.item["max_new_tokens"]) for r in server.requests]
    assert sent == [(0.7, 9), (0.2, 9)]


@pytest.mark.parametrize(
    ("additional", "says"),
    [
        ({"seed": 1}, "'seed'"),
        ({"apikey": KEY}, "'apikey'"),
        ({"temperature": 7}, "temperature"),
        ({"multi_image": "all"}, "multi_image must be one of"),
        ({"max_images": 0}, "max_images"),
        ({"model": "gpt-4o"}, "gpt-4o"),
    ],
)
def test_wrong_additional_kwargs_are_told_before_anything_is_sent(
    kind: type[Phospho], additional: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as refused:
        kind(base_url=LOCAL, additional_kwargs=additional)
    assert KEY not in str(refused.value)
    llm = kind(base_url=LOCAL)
    llm.additional_kwargs = additional  # as core's models allow it
    with pytest.raises(ConfigurationError, match=says):
        llm.complete("What?", [encoded()])


# What is not written down


SECRETS = [KEY, "hunter2", "tenant-secret"]


def test_no_secret_leaks(make: Callable[..., Any], picture: bytes, events: Any) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = make(
        default_headers={"x-tenant": "tenant-secret"},
        callback_manager=CallbackManager([debug]),
    )
    llm.complete("What?", image_documents=[ImageBlock(image=picture)])
    asyncio.run(llm.achat([ChatMessage(blocks=[ImageBlock(image=picture)])]))
    llm.proxy = "http://user:hunter2@proxy.example.com"
    told = {
        "repr": repr(llm),
        "str": str(llm),
        "to_dict": repr(llm.to_dict()),
        "to_json": llm.to_json(),
        "model_dump": repr(llm.model_dump()),
        "model_dump, asked for": repr(llm.model_dump(include={"api_key", "proxy"})),
        "model_dump_json": llm.model_dump_json(),
        "to_payload": repr(llm.to_payload()),
        "json schema": json.dumps(type(llm).model_json_schema()),
        "events": "".join(event.model_dump_json() for event in events.seen),
        "callbacks": repr([event.payload for event in debug.get_events()]),
        "clients": repr((llm._clients(),)),
    }
    leaks = [
        (where, secret) for where, text in told.items() for secret in SECRETS if secret in text
    ]
    assert leaks == []
    assert len(events.seen) == 4
    assert len(debug.get_events()) >= 4


# The default image


@pytest.mark.parametrize("form", ["bytes", "path", "PIL", "data URL", "base64"])
def test_a_default_image_is_read_when_the_model_is_made(
    make: Callable[..., Any], server: FaultServer, tmp_path: Path, form: str
) -> None:
    picture = encoded(draw(), "PNG")
    path = tmp_path / "default.png"
    path.write_bytes(picture)
    text = base64.b64encode(picture).decode()
    image = {
        "bytes": picture,
        "path": path,
        "PIL": draw(),
        "data URL": f"data:image/png;base64,{text}",
        "base64": text,
    }[form]
    llm = make(default_image=image)
    path.unlink()
    response = llm.complete("What?")
    assert response.raw["image_policy"] == "default_image"
    if form != "PIL":
        assert server.requests[0].image == picture
        assert llm.default_image == text
    assert isinstance(llm.to_dict()["default_image"], str)
    assert llm.to_dict()["default_image"] not in repr(llm)
    twin = type(llm).from_dict(llm.to_dict())
    assert twin.default_image == llm.default_image


def test_a_default_image_may_be_set_later(make: Callable[..., Any], server: FaultServer) -> None:
    llm = make()
    llm.default_image = draw()
    with pytest.raises(ImageError):
        llm.default_image = b"no image at all"
    assert llm.complete("What?").raw["image_policy"] == "default_image"
    assert server.requests[0].item["image_url"] == llm.default_image
    llm.default_image = None
    with pytest.raises(MissingImageError):
        llm.complete("What?")


def test_a_copy_reads_its_default_image(make: Callable[..., Any], server: FaultServer) -> None:
    llm = make()
    twin = llm.model_copy(update={"default_image": draw()})
    assert isinstance(twin.default_image, str)
    assert twin.complete("What?").raw["image_policy"] == "default_image"
    assert server.requests[0].item["image_url"] == twin.default_image
    assert llm.default_image is None
    with pytest.raises(ImageError):
        llm.model_copy(update={"default_image": b"no image at all"})


def test_a_default_url_stays_one(make: Callable[..., Any], server: FaultServer) -> None:
    url = "http://127.0.0.1:9/picture.png"
    llm = make(default_image=url)
    assert llm.default_image == url
    llm.chat([ChatMessage("What?")])
    assert server.requests[0].item["image_url"] == url


def test_a_default_image_of_a_call_wins(
    make: Callable[..., Any], server: FaultServer, picture: bytes, tmp_path: Path
) -> None:
    llm = make()
    path = tmp_path / "picture.jpg"
    path.write_bytes(picture)
    assert llm.complete("What?", default_image=path).raw["image_policy"] == "default_image"
    assert server.requests[0].image == picture
    with pytest.raises(MissingImageError):
        llm.complete("What?")


def test_an_unreadable_default_image_is_told_when_the_model_is_made(kind: type[Phospho]) -> None:
    with pytest.raises(ImageError):
        kind(base_url=LOCAL, default_image=b"no image at all")
