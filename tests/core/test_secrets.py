"""Key, prompt and image appear in nothing that is printed, logged, pickled or raised."""

from __future__ import annotations

import io
import json
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pybase64
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from drivers import DRIVERS, Driver
from fault_server import Connection, FaultServer, Received
from phospho_multimodal import PhosphoClient, Spending, prepare_image
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.images.prepare import prepare_source
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.conversation import ImagePolicy, Turn, plan_conversation
from phospho_multimodal.settings import Settings
from pictures import encoded

# A key as keys are; a prompt of words, quotes and other scripts; nothing shorter than a fragment.
key_letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
keys = st.text(key_letters, min_size=16).map("sk-{}".format)  # never the name of a class
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=6, max_size=12)
prompts = st.lists(words, min_size=4, max_size=12).map(" ".join)


def echoes() -> list[tuple[int, Callable[[Received], bytes]]]:
    """Servers that repeat what they were sent, in every place where they can."""

    def in_detail(request: Received) -> bytes:
        return json.dumps({"detail": f"Bad: {request.item}"}, ensure_ascii=False).encode()

    def in_input(request: Received) -> bytes:
        item = {"loc": ["body", 0], "msg": request.item["text"], "type": "t", "input": request.item}
        return json.dumps({"detail": [item]}).encode()

    def key(request: Received) -> bytes:
        return json.dumps({"detail": request.headers["authorization"]}).encode()

    def raw(request: Received) -> bytes:
        return b"<html>" + request.body + request.headers["authorization"].encode()

    bodies = [in_detail, in_input, key, raw]
    return [(code, body) for code in (200, 400, 401, 422, 500, 502) for body in bodies]


@pytest.mark.parametrize("driver", DRIVERS)
@given(key=keys, prompt=prompts, colour=st.integers(0, 2**24 - 1))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_error_tells_no_secret_whatever_the_server_repeats(
    driver: Driver, key: str, prompt: str, colour: int
):
    picture = encoded(Image.effect_noise((40, 40), colour % 97 + 3), "PNG")
    server = FaultServer()
    with _logs() as logged, server.running():
        for code, body in echoes():
            server.script = [_echo(code, body)]
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                (error,) = driver.run(
                    {"base_url": server.base_url, "api_key": key, "max_retries": 1},
                    (picture, prompt),
                )
            told = [
                str(error),
                repr(error),
                repr(vars(error)),
                "".join(traceback.format_exception(error)),
                pickle.dumps(error).decode("latin-1"),
                *[str(warning.message) for warning in warned],
            ]
            _no_secret(told, key, prompt, picture)
    _no_secret([logged.getvalue()], key, prompt, picture)


def _echo(code: int, body: Callable[[Received], bytes]) -> Callable[[Connection, Received], None]:
    def behave(connection: Connection, request: Received) -> None:
        connection.reply(code, body(request), billed=False)

    return behave


class _logs:  # noqa: N801 - reads as a verb: with _logs() as …
    """Collects what our loggers say at every level."""

    def __enter__(self) -> io.StringIO:
        self.text = io.StringIO()
        self.handler = logging.StreamHandler(self.text)
        self.logger = logging.getLogger("phospho_multimodal")
        self.logger.addHandler(self.handler)
        self.level = self.logger.level
        self.logger.setLevel(logging.DEBUG)
        return self.text

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self.handler)
        self.logger.setLevel(self.level)


def _no_secret(told: Iterable[str], key: str, prompt: str, picture: bytes) -> None:
    encoded_picture = pybase64.b64encode_as_string(picture)
    fragments = [key, prompt, encoded_picture[:48], encoded_picture[60:108]]
    for text in told:
        for fragment in fragments:
            assert fragment not in text
            assert repr(fragment)[1:-1] not in text
            assert json.dumps(fragment)[1:-1] not in text


KEY = "sk-live-0123456789abcdef"
PROMPT = "Where does the agent meet the courier?"


def _objects() -> dict[str, Any]:
    source = image_source(encoded())
    turn = Turn("user", (PROMPT, source))
    shown = Settings.resolve(
        api_key=KEY, proxy=f"http://u:{KEY}@127.0.0.1:1", default_headers={"x-key": KEY}
    )
    return {
        "client": PhosphoClient(api_key=KEY),
        "settings": shown,
        "shared": ClientState.of(shown, Spending()),
        "source": source,
        "data URL": image_source(
            "data:image/png;base64," + pybase64.b64encode_as_string(encoded())
        ),
        "link": prepare_source(image_source(f"https://x.example/a.png?sig={KEY}")),
        "prepared": prepare_image(encoded()),
        "turn": turn,
        "plan": plan_conversation([turn], ImagePolicy(default_prompt=PROMPT)),
        "policy": ImagePolicy(default_prompt=PROMPT, default_image=source),
    }


@pytest.mark.parametrize("name", _objects())
def test_no_object_shows_a_secret(name: str):
    thing = _objects()[name]

    for text in (repr(thing), str(thing), f"{thing}", f"{[thing]}"):
        _no_secret([text], KEY, PROMPT, encoded())
        assert len(text) < 2000
