"""A URL in a message is opened only if the model was told to, and then guarded."""

from __future__ import annotations

import asyncio
from contextlib import closing

from langchain_core.messages import HumanMessage

from fault_server import FaultServer
from internet import Internet, picture
from langchain_phospho import ChatPhospho
from phospho_multimodal import ImageError
from pictures import encoded

PICTURE = encoded()


def question(url: str) -> HumanMessage:
    return HumanMessage([{"type": "text", "text": "What is this?"}, {"type": "image", "url": url}])


def outcomes(model: ChatPhospho, url: str) -> list[object]:
    """Ask with and without waiting; errors are outcomes."""

    async def ask() -> object:
        return (await model.abatch([[question(url)]], return_exceptions=True))[0]

    return [*model.batch([[question(url)]], return_exceptions=True), asyncio.run(ask())]


def test_a_url_in_a_message_is_fetched_and_sent_as_bytes(monkeypatch):
    with FaultServer().running() as endpoint, FaultServer(picture(PICTURE)).running() as web:
        internet = Internet(web).install(monkeypatch)
        with closing(ChatPhospho(base_url=endpoint.base_url, url_mode="fetch")) as model:
            answers = outcomes(model, "http://pictures.example/a.jpg?key=fetch-secret")
    assert [request.image for request in endpoint.requests] == [PICTURE, PICTURE]
    assert internet.addresses == ["93.184.216.34"] * 2
    for told in answers:
        (image,) = told.response_metadata["images"]
        assert (image["source"], image["origin"]) == ("url", "http://pictures.example")
        assert "fetch-secret" not in str(told)


def test_a_url_inside_is_an_image_error_and_not_opened(monkeypatch):
    with (
        FaultServer().running() as endpoint,
        closing(ChatPhospho(base_url=endpoint.base_url, url_mode="fetch")) as model,
    ):
        internet = Internet().install(monkeypatch)
        refusals = outcomes(model, "http://169.254.169.254/latest/meta-data/")
    assert all(isinstance(refusal, ImageError) for refusal in refusals)
    assert internet.dialled == endpoint.requests == []
