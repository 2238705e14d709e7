"""A URL in a message is opened only if the model was told to, and then guarded."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock

from fault_server import FaultServer
from internet import Internet, picture
from phospho_multimodal import ImageError
from pictures import encoded

PICTURE = encoded()


def question(url: str) -> ChatMessage:
    return ChatMessage(blocks=[TextBlock(text="What is this?"), ImageBlock(url=url)])


@pytest.mark.parametrize("waiting", [True, False])
def test_a_url_in_a_message_is_fetched_and_sent_as_bytes(waiting, make, server, monkeypatch):
    model = make(url_mode="fetch")
    messages = [question("http://pictures.example/a.jpg?key=fetch-secret")]
    with FaultServer(picture(PICTURE)).running() as web:
        internet = Internet(web).install(monkeypatch)
        told = model.chat(messages) if waiting else asyncio.run(model.achat(messages))
    assert server.requests[0].image == PICTURE
    assert internet.addresses == ["93.184.216.34"]
    (image,) = told.raw["images"]
    assert (image["source"], image["origin"]) == ("url", "http://pictures.example")
    assert "fetch-secret" not in str(told)


@pytest.mark.parametrize("waiting", [True, False])
def test_a_url_inside_is_an_image_error_and_not_opened(waiting, make, server, monkeypatch):
    internet = Internet().install(monkeypatch)
    model = make(url_mode="fetch")
    messages = [question("http://169.254.169.254/latest/meta-data/")]
    with pytest.raises(ImageError, match="not public"):
        _ = model.chat(messages) if waiting else asyncio.run(model.achat(messages))
    assert internet.dialled == server.requests == []
