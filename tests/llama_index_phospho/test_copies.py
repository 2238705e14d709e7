"""Copying a model and writing it down: what travels, and what stays."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from fault_server import FaultServer
from llama_index_phospho import Phospho
from phospho_multimodal import (
    ConfigurationError,
    MissingKeyError,
    Spending,
    SpendingLimitError,
)
from pictures import encoded

KEY = "sk-secret-0123456789"
LOCAL = "http://127.0.0.1:9"


def test_a_model_comes_back_from_its_dict(
    kind: type[Phospho], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOSPHO_API_KEY", "sk-of-the-environment")
    llm = kind(
        base_url="https://phospho.example.com",
        api_key=KEY,
        temperature=0.5,
        max_tokens=9,
        stop="###",
        timeout=httpx.Timeout(7, connect=2),
        default_image=encoded(),
        multi_image="last",
        context_window=8192,
    )
    for twin in (kind.from_dict(llm.to_dict()), kind.from_json(llm.to_json())):
        assert twin.api_key == "sk-of-the-environment"
        assert twin.to_dict() == llm.to_dict()
        assert (twin.timeout.connect, twin.timeout.read) == (2, 7)
        assert twin.stop == ["###"]
    assert kind.from_dict(llm.to_dict(), temperature=0.9).temperature == 0.9
    monkeypatch.delenv("PHOSPHO_API_KEY")
    with pytest.raises(MissingKeyError):
        kind.from_dict(llm.to_dict())


@pytest.mark.parametrize(
    ("spending", "given", "warns"),
    [
        pytest.param(Spending(max_usd=1), {}, True, id="a limit in dollars"),
        pytest.param(Spending(max_images=5), {}, True, id="a limit in images"),
        pytest.param(Spending(max_usd=0), {}, True, id="a limit of 0"),
        pytest.param(Spending(max_usd=1), {"spending": Spending(max_usd=2)}, False, id="a new one"),
        pytest.param(Spending(), {}, False, id="no limit"),
        pytest.param(None, {}, False, id="no ledger"),
    ],
)
def test_a_lost_spending_limit_is_logged(
    kind: type[Phospho],
    spending: Spending | None,
    given: dict[str, Any],
    warns: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = kind(base_url=LOCAL, spending=spending).to_dict()
    before = dict(data)
    with caplog.at_level(logging.WARNING):
        kind.from_dict(data, **given)
    assert ["lost its spending limit" in line for line in caplog.messages] == [True] * warns
    assert data == before


# Copies


def revived(llm: Any) -> Any:
    return pickle.loads(pickle.dumps(llm))  # noqa: S301 - our own


@pytest.fixture
def used(llm: Any, picture: bytes) -> Any:
    """A model with open connections."""
    llm.complete("What?", [picture])
    asyncio.run(llm.acomplete("What?", [picture]))
    return llm


@pytest.mark.parametrize(
    "duplicate",
    [
        pytest.param(revived, id="pickle"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(copy.copy, id="copy"),
        pytest.param(lambda llm: llm.model_copy(update={"temperature": 0.2}), id="model_copy"),
    ],
)
def test_a_copy_has_the_key_and_its_own_connections(
    used: Any, server: FaultServer, picture: bytes, duplicate: Callable[[Any], Any]
) -> None:
    twin = duplicate(used)
    assert type(twin) is type(used)
    assert twin.api_key == used.api_key == KEY
    assert twin._clients() is not used._clients()
    used.close()
    assert twin.complete("And now?", [picture]).text == "You asked: And now?"
    assert asyncio.run(twin.acomplete("And now?", [picture])).text
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    twin.close()


def test_copies_share_one_spending_limit(make: Callable[..., Any], picture: bytes) -> None:
    llm = make(spending=Spending(max_images=1))
    twin = copy.deepcopy(llm)
    assert twin.spending is llm.spending is copy.copy(llm).spending
    twin.complete("What?", [picture])
    with pytest.raises(SpendingLimitError):
        asyncio.run(llm.acomplete("What?", [picture]))


def test_a_ledger_in_a_file_goes_along(
    make: Callable[..., Any], tmp_path: Path, picture: bytes
) -> None:
    llm = make(spending=Spending(max_images=1, path=tmp_path / "spending.db"))
    twin = revived(llm)
    twin.complete("What?", [picture])
    with pytest.raises(SpendingLimitError):
        llm.complete("What?", [picture])
    twin.close()


def test_a_pickle_does_not_lose_the_spending_limit(make: Callable[..., Any]) -> None:
    llm = make(spending=Spending(max_usd=1))
    with pytest.raises(ConfigurationError, match="second cap"):
        pickle.dumps(llm)
    assert llm.spending is not None


def test_borrowed_clients_are_shared_by_copies_and_left_behind_by_pickles(
    make: Callable[..., Any], picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with httpx.Client(headers={"x-mine": "1"}) as borrowed:
        llm = make(http_client=borrowed, http_async_client=httpx.AsyncClient())
        assert copy.deepcopy(llm).http_client is borrowed
        twin = revived(llm)
        assert (twin.http_client, twin.http_async_client) == (None, None)
        assert "leaves its http_client and http_async_client behind" in caplog.text
        assert llm.http_client is borrowed  # core would have taken it from the original
        assert llm.complete("What?", [picture]).text
        llm.close()
        assert not borrowed.is_closed
        assert twin.complete("What?", [picture]).text
        twin.close()
        asyncio.run(llm.http_async_client.aclose())


def test_certificates_are_not_lost_in_a_pickle(make: Callable[..., Any]) -> None:
    llm = make(verify=ssl.create_default_context())
    assert copy.deepcopy(llm).verify is llm.verify
    with pytest.raises(ConfigurationError, match="CA file"):
        pickle.dumps(llm)


def test_an_assignment_reaches_the_clients(
    make: Callable[..., Any], server: FaultServer, picture: bytes
) -> None:
    llm = make()
    llm.complete("What?", [picture])
    llm.api_key = "sk-another-key"
    llm.temperature = 0.4
    llm.complete("What?", [picture])
    assert server.requests[1].headers["authorization"] == "Bearer sk-another-key"
    assert server.requests[1].item["temperature"] == 0.4
    llm.base_url = "nonsense"
    with pytest.raises(ConfigurationError, match="base_url"):
        llm.complete("What?", [picture])


def test_a_model_inside_another_is_left_as_it_is(used: Any) -> None:
    class Holder(BaseModel):
        llm: Phospho

    client = used._made_clients
    held = Holder(llm=used).llm
    assert held is used
    assert used._made_clients is client is not None
