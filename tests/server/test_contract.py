"""The server speaks the contract to the letter, on a real socket."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import httpx
import pytest

from contract_cases import CONTRACT_KEY, contract_cases
from fresh_python import in_fresh_python
from live_server import serve
from phospho_multimodal.contract import PREDICT_PATH
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import InputImage, Question
from phospho_multimodal.server.engines.echo import EchoEngine


def sent(base_url: str, request: dict[str, Any]) -> httpx.Response:
    content = request["content"] if "content" in request else json.dumps(request["body"])
    headers = {"Content-Type": "application/json", **request["headers"]}
    # trust_env: a proxy or a .netrc of the developer's is none of the contract's.
    with httpx.Client(trust_env=False) as client:
        return client.post(base_url + PREDICT_PATH, headers=headers, content=content)


@pytest.fixture(scope="module")
def billed_server():
    with serve(create_app(EchoEngine(), api_key=CONTRACT_KEY)) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def unbilled_server():
    with serve(create_app(EchoEngine(), api_key=CONTRACT_KEY, billing=False)) as base_url:
        yield base_url


@pytest.mark.parametrize("case", contract_cases())
def test_the_server_answers_as_the_contract_says(case, billed_server, unbilled_server):
    billing = case.get("server", {}).get("billing", True)
    response = sent(billed_server if billing else unbilled_server, case["request"])

    expected = case["response"]
    assert response.status_code == expected["status"], response.text
    if response.status_code == 422:
        # The words are partly pydantic's and may change with it; place and type may not.
        assert [(item["loc"], item["type"]) for item in response.json()["detail"]] == [
            (item["loc"], item["type"]) for item in expected["body"]["detail"]
        ]
    else:
        assert response.json() == expected["body"]


@pytest.mark.parametrize(
    "case", [case for case in contract_cases() if case.values[0]["response"]["status"] == 422]
)
def test_a_422_repeats_nothing_of_the_request(case, billed_server):
    items = sent(billed_server, case["request"]).json()["detail"]
    assert all(set(item) == {"loc", "msg", "type"} for item in items)
    assert all(item["msg"] for item in items)
    text = json.dumps(items)
    for value in _texts(case["request"].get("body")):
        assert len(value) < 12 or value not in text


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, item in value.items() if key != "model" for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def test_a_body_of_many_mistakes_gets_a_short_answer(echo_client):
    body = {"model": "phospho-multimodal", "inputs": [{}] * 32}
    response = echo_client.post(PREDICT_PATH, json=body)
    assert response.status_code == 422
    assert len(response.json()["detail"]) == 20


def test_without_a_key_no_authorization_is_asked_for(echo_client, picture):
    assert echo_client.post(PREDICT_PATH, json=picture.request()).status_code == 200
    assert echo_client.get("/v2/models").status_code == 200


def test_health_asks_for_no_key_and_the_models_do(billed_server):
    with httpx.Client(base_url=billed_server, trust_env=False) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok", "engine": "echo"})
        assert client.get("/v2/models").status_code == 403
        models = client.get("/v2/models", headers={"Authorization": f"Bearer {CONTRACT_KEY}"})
    assert models.json()["object"] == "list"
    assert [model["id"] for model in models.json()["data"]] == ["phospho-multimodal"]


def test_a_key_outside_ascii_is_compared_as_it_was_sent(picture):
    with serve(create_app(EchoEngine(), api_key="clé")) as base_url:
        answers = [
            httpx.post(
                base_url + PREDICT_PATH,
                json=picture.request(),
                headers={"Authorization": f"Bearer {key}".encode()},
            )
            for key in ("clé", "cle")
        ]
    assert [answer.status_code for answer in answers] == [200, 401]


def test_the_documentation_shows_the_request(echo_client):
    document = echo_client.get("/openapi.json").json()
    body = document["paths"][PREDICT_PATH]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"inputs", "model"}
    assert "image_url" in schema["properties"]["inputs"]["items"]["properties"]
    assert "$ref" not in json.dumps(schema)


def test_the_image_arrives_byte_for_byte(echo_client, picture):
    response = echo_client.post(PREDICT_PATH, json=picture.request())
    description = json.loads(response.json()["predictions"][0]["description"])
    assert description["image_sha256"] == hashlib.sha256(picture.data).hexdigest()


class BrokenEngine:
    """Fails, and quotes the prompt in its error."""

    name = "broken"

    def describe(self, picture: InputImage, question: Question) -> str:
        try:
            return {}[question.text]
        except KeyError as cause:
            message = f"cannot answer {question.text!r} about {picture.data!r}"
            raise ValueError(message) from cause


class TalkativeEngine:
    """Answers with a value that is not a string."""

    name = "talkative"

    def describe(self, picture: InputImage, question: Question) -> str:
        return 42  # type: ignore[return-value]


@pytest.mark.parametrize("engine", [BrokenEngine(), TalkativeEngine()])
def test_an_engine_that_fails_is_the_contracts_500(engine, picture):
    with serve(create_app(engine)) as base_url:
        response = httpx.post(base_url + PREDICT_PATH, json=picture.request())
    assert response.status_code == 500
    assert response.json() == {"detail": "An error occurred while generating predictions."}


def test_the_log_tells_where_an_engine_failed_and_nothing_of_the_request(picture, caplog):
    caplog.set_level(logging.DEBUG)
    prompt = "what is on my medical report"
    with serve(create_app(BrokenEngine(), api_key=CONTRACT_KEY), access_log=True) as base_url:
        httpx.post(
            base_url + PREDICT_PATH,
            json=picture.request(prompt),
            headers={"Authorization": f"Bearer {CONTRACT_KEY}"},
        )
    ours = [record for record in caplog.records if record.name.startswith("phospho_multimodal")]
    assert "KeyError" in ours[0].getMessage()
    assert "test_contract.py" in ours[0].getMessage()
    assert prompt not in caplog.text
    assert CONTRACT_KEY not in caplog.text
    assert picture.base64 not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"workers": 0}, "workers must be 1 or greater, got 0", id="nobody to answer"),
        pytest.param(
            {"max_queue": -1}, "max_queue must be 0 or greater, got -1", id="a negative queue"
        ),
        pytest.param({"api_key": " "}, "empty", id="an empty key"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_start(options, message):
    with pytest.raises(ConfigurationError, match=message):
        create_app(EchoEngine(), **options)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_its_extra_the_server_names_it(package):
    result = in_fresh_python(
        f"import sys; sys.modules[{package!r}] = None; import phospho_multimodal.server"
    )
    assert result.returncode == 1
    assert "ImportError: The local server needs" in result.stderr
    assert "phospho-multimodal[server]" in result.stderr
