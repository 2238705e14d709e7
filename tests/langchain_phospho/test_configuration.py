"""What a model is told, what is kept of it, and what it gives away."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
import pickle
import ssl
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import ModelProfile
from langchain_core.load import dumpd, dumps, load
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run
from PIL import Image
from pydantic import BaseModel, ValidationError

from langchain_phospho import ChatPhospho
from langchain_phospho.errors import MissingImageError, PhosphoModelError
from phospho_multimodal import (
    ConfigurationError,
    ImageError,
    MissingKeyError,
    Spending,
    prepare_image,
)

NOWHERE = "http://127.0.0.1:9"
KEY = "sk-very-secret-key"


def question(red: Any) -> list[HumanMessage]:
    return [HumanMessage([{"type": "text", "text": "What?"}, red.block])]


def pickled(model: ChatPhospho) -> Any:
    return pickle.loads(pickle.dumps(model))  # noqa: S301 - our own


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://x"},
        {"base_url": "http://example.com", "api_key": KEY},
        {"model": "gpt-4"},
        {"api_key": "line\nbreak"},
        {"max_tokens": 251},
        {"max_new_tokens": 0},
        {"temperature": 1.1},
        {"temperature": 0.05},
        {"top_p": 1.1},
        {"repetition_penalty": 0},
        {"multi_image": "first"},
        {"max_images": 0},
        {"timeout": 0},
        {"max_retries": -1},
        {"deadline": -1},
        {"max_concurrency": 0},
        {"requests_per_second": 0},
        {"max_image_side": 0},
        {"url_mode": "open"},
        {"default_headers": {"authorization": "x"}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_setting_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        ChatPhospho(**{"base_url": NOWHERE, **wrong})
    assert isinstance(raised.value, PhosphoModelError)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("name", ["http_client", "http_async_client"])
def test_settings_that_a_borrowed_client_would_not_obey_are_refused_at_once(name: str) -> None:
    borrowed = httpx.Client() if name == "http_client" else httpx.AsyncClient()
    with pytest.raises(ConfigurationError, match="http client"):
        ChatPhospho(base_url=NOWHERE, proxy="http://127.0.0.1:8", **{name: borrowed})


def test_no_key_is_refused_at_once_and_says_what_to_set() -> None:
    with pytest.raises(MissingKeyError, match=r"PHOSPHO_API_KEY.*api_key="):
        ChatPhospho()


def test_a_misspelled_argument_is_refused_without_its_value() -> None:
    with pytest.raises(ValidationError, match="apikey") as raised:
        ChatPhospho(base_url=NOWHERE, apikey=KEY)
    assert KEY not in str(raised.value)


def test_arguments_go_by_both_of_their_names() -> None:
    short = ChatPhospho(model="phospho-multimodal-2", api_key=KEY, max_tokens=9, timeout=60)
    long = ChatPhospho(
        model_name="phospho-multimodal-2", phospho_api_key=KEY, max_new_tokens=9, request_timeout=60
    )
    assert short.model_dump() == long.model_dump()
    assert short.model == "phospho-multimodal-2"


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOSPHO_API_KEY", KEY)
    monkeypatch.setenv("PHOSPHO_BASE_URL", "https://one.example.com/")
    model = ChatPhospho()
    monkeypatch.setenv("PHOSPHO_API_KEY", "another")
    monkeypatch.setenv("PHOSPHO_BASE_URL", "https://two.example.com")
    options = model._client_options()
    assert (options["api_key"], options["base_url"]) == (KEY, "https://one.example.com")


def test_a_model_is_checked_once_and_not_for_each_model_it_is_put_into(red: Any) -> None:
    class Holder(BaseModel):
        held: ChatPhospho

    model = ChatPhospho(base_url=NOWHERE, default_image=red.data)
    client, image = model._clients().sync, model.default_image
    held = Holder(held=model).held
    assert held is model
    assert held._clients().sync is client
    assert held.default_image is image


def test_a_changed_field_counts_at_once(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(base_url=NOWHERE)
    model.base_url = endpoint.base_url
    model.temperature = 0.5
    driver.invoke(model, question(red))
    assert endpoint.received[0].parameters == {"temperature": 0.5}


@pytest.mark.parametrize("timeout", [(5, 60), "soon", [5]])
def test_a_timeout_of_another_kind_is_refused(timeout: Any) -> None:
    with pytest.raises(ValidationError):
        ChatPhospho(base_url=NOWHERE, timeout=timeout)


def test_a_timeout_of_httpx_is_understood(driver: Any, endpoint: Any, red: Any) -> None:
    timeout = httpx.Timeout(3, read=9)
    model = ChatPhospho(base_url=endpoint.base_url, timeout=timeout)
    twin = pickled(model)
    assert twin.model_dump() == model.model_dump()
    driver.invoke(twin, question(red))
    assert (
        model._clients().sync._settings.timeouts.read,
        model._clients().sync._settings.timeouts.connect,
    ) == (
        9,
        3,
    )


# The default image.


def test_a_default_image_is_taken_in_every_form(red: Any, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(red.data)
    images = [red.data, red.base64, red.data_url, file, io.BytesIO(red.data)]
    kept = {ChatPhospho(base_url=NOWHERE, default_image=image).default_image for image in images}
    assert kept == {red.base64}


def test_a_default_image_is_prepared_once(driver: Any, endpoint: Any) -> None:
    photo = Image.new("RGBA", (900, 300), "green")
    model = ChatPhospho(base_url=endpoint.base_url, default_image=photo, max_image_side=90)
    answer = driver.invoke(model, "Hello")
    assert endpoint.received[0].image_url == model.default_image
    assert endpoint.received[0].picture == prepare_image(photo, max_image_side=90).sha256
    assert answer.response_metadata["image_policy"] == "default_image"


def test_a_default_image_may_be_set_later(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(base_url=endpoint.base_url)
    model.default_image = Image.open(io.BytesIO(red.data))
    with pytest.raises(PhosphoModelError):
        model.default_image = b"not an image"
    driver.invoke(model, "Hello")
    assert endpoint.received[0].image_url == model.default_image
    assert len(model._identifying_params["default_image"]) == 64
    model.default_image = None
    with pytest.raises(MissingImageError):
        driver.invoke(model, "Hello")


def test_a_copy_reads_its_default_image(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(base_url=endpoint.base_url)
    for image in (red.data, io.BytesIO(red.data), red.data_url):
        twin = model.model_copy(update={"default_image": image, "temperature": 0.5})
        assert (twin.default_image, twin.temperature) == (red.base64, 0.5)
        driver.invoke(twin, "Hello")
    assert [request.image_url for request in endpoint.received] == [red.base64] * 3
    assert model.default_image is None
    with pytest.raises(PhosphoModelError):
        model.model_copy(update={"default_image": b"not an image"})


def test_a_default_image_may_be_a_url(driver: Any, endpoint: Any) -> None:
    url = "https://example.com/a.png"
    model = ChatPhospho(base_url=endpoint.base_url, default_image=url)
    driver.invoke(model, "Hello")
    assert endpoint.received[0].image_url == model.default_image == url


def test_an_unreadable_default_image_is_refused_at_once() -> None:
    for image in (b"", b"not an image", "/etc/passwd", 5):
        with pytest.raises(ImageError) as raised:
            ChatPhospho(base_url=NOWHERE, default_image=image)
        assert isinstance(raised.value, PhosphoModelError)


# Copies and pickles.


def test_copies_and_pickles_answer_as_the_model_does(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, api_key=KEY, temperature=0.5, stop=["?"])
    driver.invoke(model, question(red))  # with its clients made
    twins = [
        copy.copy(model),
        copy.deepcopy(model),
        pickled(model),
        model.model_copy(),
        ChatPhospho(**model.model_dump()),
    ]
    for twin in twins:
        assert driver.invoke(twin, question(red)).content == "You asked: What"
        assert twin._made_clients is not model._made_clients
    assert endpoint.received == [endpoint.received[0]] * 6
    assert endpoint.received[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_copy_with_another_address_asks_there(model: ChatPhospho, red: Any) -> None:
    model.invoke(question(red))
    elsewhere = model.model_copy(update={"base_url": NOWHERE, "max_retries": 0})
    with pytest.raises(PhosphoModelError, match=NOWHERE):
        elsewhere.invoke(question(red))


def test_a_ledger_is_shared_by_copies_and_refuses_a_pickle(
    driver: Any, endpoint: Any, red: Any
) -> None:
    ledger = Spending(max_images=3)
    model = ChatPhospho(base_url=endpoint.base_url, spending=ledger)
    for one in (model, copy.copy(model), copy.deepcopy(model)):
        assert one.spending is ledger
        driver.invoke(one, question(red))
    assert ledger.snapshot().images_billed == 3
    with pytest.raises(ConfigurationError, match="pickled"):
        pickle.dumps(model)


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_a_loaded_model_says_that_its_cap_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    model = ChatPhospho(base_url=NOWHERE, spending=Spending(max_usd=1))
    with caplog.at_level(logging.WARNING, "phospho_multimodal"):
        loaded = load(
            dumpd(model), allowed_objects=[ChatPhospho], valid_namespaces=["langchain_phospho"]
        )
    assert loaded.spending is None
    assert "Its spending limit is gone" in caplog.text


def test_what_holds_locks_is_shared_by_a_deep_copy() -> None:
    with httpx.Client() as client:
        model = ChatPhospho(
            base_url=NOWHERE,
            http_client=client,
            rate_limiter=InMemoryRateLimiter(),
            cache=InMemoryCache(),
        )
        held = {"first": model, "second": model}
        twins = copy.deepcopy(held)
    assert twins["first"] is twins["second"] is not model
    for name in ("http_client", "rate_limiter", "cache"):
        assert getattr(twins["first"], name) is getattr(model, name)
    context = ssl.create_default_context()
    model = ChatPhospho(base_url=NOWHERE, verify=context)
    assert copy.deepcopy(model).verify is context
    with pytest.raises(ConfigurationError, match="CA file"):
        pickle.dumps(model)


def test_a_borrowed_client_stays_behind_and_says_so(
    endpoint: Any, red: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with httpx.Client(headers={"x-mine": "yes"}) as client:
        model = ChatPhospho(base_url=endpoint.base_url, http_client=client)
        model.invoke(question(red))
        assert endpoint.received[0].headers["x-mine"] == "yes"
        twin = pickled(model)
        assert "leaves its http_client behind" in caplog.text
        assert (twin.http_client, model.http_client) == (None, client)
    twin.invoke(question(red))
    assert "x-mine" not in endpoint.received[1].headers


def test_an_asynchronous_client_of_ones_own_is_used(endpoint: Any, red: Any) -> None:
    async def use() -> None:
        async with httpx.AsyncClient(headers={"x-mine": "yes"}) as client:
            model = ChatPhospho(base_url=endpoint.base_url, http_async_client=client)
            await model.ainvoke(question(red))
            await model.aclose()
            assert not client.is_closed

    asyncio.run(use())
    assert endpoint.received[0].headers["x-mine"] == "yes"


def test_a_closed_model_opens_new_connections_when_asked_again(
    driver: Any, model: ChatPhospho, red: Any
) -> None:
    model.close()  # nothing is open yet
    driver.invoke(model, question(red))
    model.close()
    driver.invoke(model, question(red))
    asyncio.run(model.aclose())
    driver.invoke(model, question(red))


def test_the_connections_of_a_loop_are_closed_on_it(model: ChatPhospho, red: Any) -> None:
    async def use() -> None:
        await model.ainvoke(question(red))
        await model.aclose()

    model.invoke(question(red))
    asyncio.run(use())


# Secrets.


class Recorder(BaseTracer):
    """Keeps everything that a trace would carry."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


def test_no_secret_is_given_away(driver: Any, endpoint: Any, red: Any) -> None:
    model = ChatPhospho(
        base_url=endpoint.base_url,
        api_key=KEY,
        default_headers={"x-gate": KEY},
        default_image=red.data,
    )
    recorder = Recorder()
    driver.invoke(model, question(red), config={"callbacks": [recorder]})
    assert len(recorder.runs) == 1
    told = [
        repr(model),
        str(model),
        dumps(model),
        str(model.model_dump()),
        model.model_dump_json(),
        str(model.asdict()),
        str(model._get_invocation_params()),
        model._get_llm_string(),
        str(recorder.runs[0].model_dump()),
    ]
    assert [text for text in told if KEY in text] == []
    assert endpoint.received[0].headers["x-gate"] == KEY
    assert red.base64 not in repr(model)


def test_a_proxy_and_its_password_are_not_serialized() -> None:
    model = ChatPhospho(base_url=NOWHERE, proxy=f"http://me:{KEY}@127.0.0.1:8")
    told = [repr(model), dumps(model), str(model.model_dump()), str(model.asdict())]
    assert [text for text in told if KEY in text] == []


# Caches.


def test_the_key_of_a_cache_has_everything_that_an_answer_depends_on(
    red: Any, blue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = {"base_url": NOWHERE}
    different: list[dict[str, Any]] = [
        {},
        {"base_url": "http://127.0.0.1:10"},
        {"model": "phospho-multimodal-2"},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"max_tokens": 5},
        {"repetition_penalty": 1.5},
        {"stop": ["."]},
        {"default_image": red.data},
        {"default_image": blue.data},
        {"default_prompt": "What?"},
        {"multi_image": "last"},
        {"prepare": False},
        {"max_image_side": 100},
    ]
    keys = [ChatPhospho(**{**alike, **options})._get_llm_string() for options in different]
    model = ChatPhospho(**alike)
    keys += [model._get_llm_string(temperature=0.6), model._get_llm_string(stop=["!"])]
    model.temperature = 0.7
    keys.append(model._get_llm_string())
    monkeypatch.setenv("PHOSPHO_BASE_URL", "http://127.0.0.1:11")
    keys.append(ChatPhospho()._get_llm_string())
    assert len(set(keys)) == len(keys)
    assert max(map(len, keys)) < 600
    irrelevant = {"timeout": 9, "max_retries": 0, "spending": Spending(), "api_key": KEY}
    assert ChatPhospho(**alike, **irrelevant)._get_llm_string() == keys[0]


def test_a_cached_answer_is_not_asked_for_again(driver: Any, endpoint: Any, red: Any) -> None:
    cache, ledger = InMemoryCache(), Spending()
    model = ChatPhospho(base_url=endpoint.base_url, cache=cache, spending=ledger)
    first, second = (driver.invoke(model, question(red)) for _ in range(2))
    assert first.content == second.content
    assert len(endpoint.received) == ledger.snapshot().images_billed == 1
    driver.invoke(model, question(red), temperature=0.5)
    driver.invoke(model.model_copy(update={"temperature": 0.6}), question(red))
    assert len(endpoint.received) == 3


def test_the_identifying_params_are_plain_data(red: Any) -> None:
    params = ChatPhospho(base_url=f"{NOWHERE}/", default_image=red.data)._identifying_params
    assert params["base_url"] == NOWHERE
    assert len(params["default_image"]) == 64
    json.dumps(dict(params))


def test_every_key_of_the_profile_is_one_that_langchain_knows() -> None:
    profile = ChatPhospho(base_url=NOWHERE).profile
    assert profile is not None
    assert profile.keys() <= get_type_hints(ModelProfile).keys()


def test_a_profile_of_ones_own_is_checked_by_langchain() -> None:
    unknown: Any = {"sees_ghosts": True}
    with pytest.warns(UserWarning, match="sees_ghosts"):
        ChatPhospho(base_url=NOWHERE, profile=unknown)
