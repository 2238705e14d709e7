"""The exception tree: every failure has its class, and no error carries a secret."""

from __future__ import annotations

import copy
import pickle

import httpx
import pytest

import phospho_multimodal
from drivers import Driver
from fault_server import status
from phospho_multimodal import errors
from phospho_multimodal.errors import (
    APIStatusError,
    PhosphoError,
    ReplyLostError,
    quote,
    status_error,
)
from pictures import encoded

PICTURE = encoded()


def _subclasses(kind: type) -> list[type]:
    below = [kind]
    for child in kind.__subclasses__():
        below += _subclasses(child)
    return below


ALL_ERRORS = [kind for kind in _subclasses(PhosphoError) if kind.__module__ == errors.__name__]

STATUSES = [
    (301, "APIStatusError"),
    (307, "APIStatusError"),
    (400, "InvalidRequestError"),
    (401, "AuthenticationError"),
    (402, "PaymentRequiredError"),
    (403, "PermissionDeniedError"),
    (404, "EndpointGoneError"),
    (405, "EndpointGoneError"),
    (408, "APIStatusError"),
    (409, "APIStatusError"),
    (410, "EndpointGoneError"),
    (413, "InvalidRequestError"),
    (418, "APIStatusError"),
    (422, "InvalidRequestError"),
    (425, "APIStatusError"),
    (429, "RateLimitedError"),
    (500, "ServiceError"),
    (501, "ServiceError"),
    (502, "ServiceError"),
    (503, "ServiceError"),
    (504, "ServiceError"),
    (529, "ServiceError"),
]


@pytest.mark.parametrize(("code", "name"), STATUSES)
def test_every_status_is_the_error_of_its_own(driver: Driver, lab, code: int, name: str):
    server = lab(status(code, "The reason."))

    with pytest.raises(APIStatusError, match=r"The reason\.") as caught:
        driver.describe(PICTURE, base_url=server.base_url, max_retries=0)

    assert type(caught.value).__name__ == name
    assert caught.value.status_code == code
    assert caught.value.detail == "The reason."


@pytest.mark.parametrize("kind", _subclasses(httpx.RequestError), ids=lambda kind: kind.__name__)
def test_no_httpx_error_reaches_the_user_nor_hangs_on_ours(kind: type[httpx.RequestError]):
    def fail(request: httpx.Request) -> httpx.Response:
        reason = "it broke"
        raise kind(reason, request=request)

    with httpx.Client(transport=httpx.MockTransport(fail)) as http_client:
        client = phospho_multimodal.PhosphoClient(
            base_url="http://127.0.0.1:1", api_key="k", http_client=http_client, max_retries=0
        )
        # This transport reads the whole body first, so the failure's class says nothing.
        with pytest.raises(ReplyLostError, match=kind.__name__) as caught:
            client.describe(PICTURE)

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # httpx's error holds the request, and so the key


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_pickles_and_copies_whole(kind: type[PhosphoError]):
    if issubclass(kind, APIStatusError):
        error: PhosphoError = kind(
            "words", status_code=500, detail="said", retry_after=2.5, request_id="r"
        )
    else:
        error = kind("words")
    error.attempts = 3
    error.images_in_doubt = 1

    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(twin) is kind
        assert str(twin) == "words"
        assert vars(twin) == vars(error)


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_no_error_is_one_that_llama_index_swallows(kind: type[PhosphoError]):
    assert not issubclass(kind, (ValueError, TypeError))


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = [
        line.strip(" │├└─").split()[0]
        for line in (errors.__doc__ or "").splitlines()
        if "Error" in line and line.startswith("    ")
    ]

    assert sorted(drawn) == sorted(kind.__name__ for kind in ALL_ERRORS)
    assert sorted(drawn) == sorted(errors.__all__)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        pytest.param({"detail": "Plain words."}, "Plain words.", id="the contract's"),
        pytest.param(
            {"detail": [{"loc": ["body", "inputs", 0], "msg": "Bad", "type": "t", "input": "IN"}]},
            "body.inputs.0: Bad (t)",
            id="a 422",
        ),
        pytest.param(
            b"<html><head><title>T</title><style>p{}</style></head><body><h1>502 Bad Gateway</h1>"
            b"<p>nginx &amp; co</p></body></html>",
            "502 Bad Gateway nginx & co",
            id="HTML",
        ),
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"\xff\xfe", "\ufffd\ufffd", id="not UTF-8"),
        pytest.param({"error": {"code": 7}}, '{"error":{"code":7}}', id="another JSON"),
        pytest.param("x" * 5000, None, id="a long run without words"),
    ],
)
def test_the_servers_words_are_read_out_of_any_body(driver: Driver, lab, body, detail):
    content = body if isinstance(body, bytes) else _json(body)
    server = lab(lambda connection, _: connection.reply(400, content, billed=False))

    with pytest.raises(APIStatusError) as caught:
        driver.describe(PICTURE, base_url=server.base_url)

    if detail is not None or body == b"":
        assert caught.value.detail == detail
    else:
        assert len(caught.value.detail or "") <= 300
    assert "IN" not in str(caught.value)


def _json(value: object) -> bytes:
    return httpx.Response(200, json=value).content if not isinstance(value, str) else value.encode()


SECRETS = {
    "key": "sk-live-4f9a8b7c6d5e",
    "prompt": "Where does the agent meet the courier tonight, and what does he carry?",
    "short prompt": "Who?",
    "image": "iVBORw0KGgoAAAANSUhEUgAAADwAAAAoCAIAAAAt2Q6oAAAAUElEQVR4nO3OAQ0AAAwCIN",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
@pytest.mark.parametrize(
    "around", ["{}", "got '{}' instead", '{{"text": "{}"}}', "a {} b {} c", "{}\n\n{}"]
)
def test_a_quotation_repeats_nothing_that_was_sent(secret: str, around: str):
    quoted = quote(around.replace("{}", secret), hide=[secret])

    assert secret not in quoted
    assert "[cut]" in quoted


def test_a_quotation_repeats_no_part_of_a_prompt_either():
    prompt = SECRETS["prompt"]

    quoted = quote(f"bad value: {prompt[10:40]}...", hide=[prompt])

    assert quoted == "bad value:[cut]..."


def test_a_short_prompt_does_not_cut_words_apart():
    assert quote("Something is wrong", hide=["is"]) == "Something [cut] wrong"


def test_a_status_error_says_what_happened_what_was_said_and_what_to_do():
    error = status_error(429, base_url="https://x.example", detail="Slow down", retry_after=90)

    assert str(error) == (
        "https://x.example answered 429: Slow down. The server asks to wait 90 s."
        " Lower max_concurrency=, or set requests_per_second=. Nothing was billed."
    )
