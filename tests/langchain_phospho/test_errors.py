"""Every error is one of the core's and one of LangChain's, and costs nothing more by itself."""

from __future__ import annotations

import inspect
import pickle
import traceback
from typing import Any

import pytest
from langchain_core import exceptions as langchain
from langchain_core.messages import HumanMessage

from langchain_phospho import ChatPhospho
from langchain_phospho.errors import PhosphoModelError, langchain_errors
from phospho_multimodal import Spending, errors

KEY = "sk-very-secret-key"
PROMPT = "The prompt that no error may repeat."

EXPECTED = {
    errors.PhosphoError: langchain.ModelError,
    errors.ConfigurationError: langchain.ModelInvalidRequestError,
    errors.MissingKeyError: langchain.ModelAuthenticationError,
    errors.UnsupportedContentError: langchain.ModelInvalidRequestError,
    errors.MissingImageError: langchain.ModelInvalidRequestError,
    errors.ImageError: langchain.ModelInvalidRequestError,
    errors.SpendingLimitError: langchain.ModelInvalidRequestError,
    errors.ConnectionFailedError: langchain.ModelConnectionError,
    errors.ReplyLostError: langchain.ModelTimeoutError,
    errors.APIStatusError: langchain.ModelAPIError,
    errors.InvalidRequestError: langchain.ModelInvalidRequestError,
    errors.AuthenticationError: langchain.ModelAuthenticationError,
    errors.PermissionDeniedError: langchain.ModelPermissionDeniedError,
    errors.PaymentRequiredError: langchain.ModelAuthenticationError,
    errors.EndpointGoneError: langchain.ModelNotFoundError,
    errors.RateLimitedError: langchain.ModelRateLimitError,
    errors.ServiceError: langchain.ModelAPIError,
    errors.UnexpectedReplyError: langchain.ModelAPIError,
    errors.NoToolCallError: langchain.ModelAPIError,
}


def test_no_error_of_the_core_is_forgotten() -> None:
    assert {getattr(errors, name) for name in errors.__all__} == set(EXPECTED)


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_an_error_is_in_both_trees_and_survives_a_pickle(kind: type[errors.PhosphoError]) -> None:
    details = {"status_code": 418} if issubclass(kind, errors.APIStatusError) else {}
    original = kind("what happened", **details)
    original.attempts = 3
    with pytest.raises(kind) as raised, langchain_errors():
        raise original
    error = raised.value
    assert error.__cause__ is original
    revived = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    for held in (error, revived):
        assert isinstance(held, EXPECTED[kind])
        assert isinstance(held, PhosphoModelError)
        assert isinstance(held, RuntimeError)  # LangGraph's default RetryPolicy leaves it alone
        assert not isinstance(held, (TypeError, ValueError))
        assert held.is_retryable is False
        assert (str(held), held.attempts) == ("what happened", 3)
        assert getattr(held, "status_code", None) == details.get("status_code")


def test_a_class_is_as_retryable_as_its_errors() -> None:
    found = vars(inspect.getmodule(PhosphoModelError)).values()
    ours = [kind for kind in found if isinstance(kind, type) and kind in kind.__mro__]
    ours = [kind for kind in ours if issubclass(kind, PhosphoModelError)]
    assert len(ours) == len(EXPECTED) + 1  # an overflow is told by the words of the server
    assert not any(kind.is_retryable for kind in ours)


def test_what_is_not_ours_passes_unchanged() -> None:
    with pytest.raises(KeyError), langchain_errors():
        raise KeyError


def ask(red: Any) -> list[HumanMessage]:
    return [HumanMessage([{"type": "text", "text": PROMPT}, red.block])]


@pytest.mark.parametrize(
    ("status", "kinds", "requests"),
    [
        (302, (errors.APIStatusError, langchain.ModelAPIError), 1),
        (400, (errors.InvalidRequestError, langchain.ModelInvalidRequestError), 1),
        (401, (errors.AuthenticationError, langchain.ModelAuthenticationError), 1),
        (402, (errors.PaymentRequiredError, langchain.ModelAuthenticationError), 1),
        (403, (errors.AuthenticationError, langchain.ModelPermissionDeniedError), 1),
        (404, (errors.EndpointGoneError, langchain.ModelNotFoundError), 1),
        (405, (errors.EndpointGoneError, langchain.ModelNotFoundError), 1),
        (410, (errors.EndpointGoneError, langchain.ModelNotFoundError), 1),
        (413, (errors.InvalidRequestError, langchain.ModelInvalidRequestError), 1),
        (418, (errors.APIStatusError, langchain.ModelAPIError), 1),
        (422, (errors.InvalidRequestError, langchain.ModelInvalidRequestError), 1),
        (429, (errors.RateLimitedError, langchain.ModelRateLimitError), 2),
        (500, (errors.ServiceError, langchain.ModelAPIError), 2),
        (503, (errors.ServiceError, langchain.ModelAPIError), 2),
        (599, (errors.ServiceError, langchain.ModelAPIError), 1),
    ],
)
def test_a_status_is_an_error_in_both_trees(  # noqa: PLR0917 - the columns of the table
    status: int, kinds: tuple[type[Any], ...], requests: int, driver: Any, endpoint: Any, red: Any
) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, api_key=KEY, max_retries=1)
    for _ in range(3):
        detail = f"No, {KEY} asked: {PROMPT} about {red.base64}"
        endpoint.reply({"detail": detail}, status=status, retry_after="0", x_request_id="r-1")
    with pytest.raises(kinds[0]) as raised:
        driver.invoke(model, ask(red))
    error = raised.value
    assert isinstance(error, kinds[1])
    assert (error.status_code, error.request_id) == (status, "r-1")
    assert error.attempts == len(endpoint.received) == requests
    assert error.is_retryable is False
    printed = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert [secret for secret in (KEY, PROMPT, red.base64) if secret in printed] == []


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (413, "Request Entity Too Large"),
        (413, "<html>nginx</html>"),
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000"),
        (400, "context_length_exceeded"),
        (400, "the request exceeds the available context size, try increasing it"),
        (400, "Input length (5000 tokens) exceeds the maximum allowed length (4096 tokens)."),
        (422, "prompt is too long: 5000 tokens > 4096 maximum"),
        (422, "Too many input tokens"),
        (
            422,
            [
                {
                    "loc": ["body", "inputs", 0, "text"],
                    "msg": "String should have at most 8000 characters",
                    "type": "string_too_long",
                }
            ],
        ),
    ],
)
def test_a_prompt_over_a_limit_is_langchains_context_overflow(
    *, status: int, detail: Any, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    endpoint.reply({"detail": detail}, status=status)
    with pytest.raises(langchain.ContextOverflowError) as raised:
        driver.invoke(model, ask(red))
    error = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own
    assert isinstance(error, (errors.InvalidRequestError, PhosphoModelError))
    assert isinstance(error, langchain.ModelInvalidRequestError)
    assert (error.status_code, error.is_retryable, len(endpoint.received)) == (status, False, 1)


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (400, "Model not supported or you don't have access to it."),
        (422, "max_new_tokens is 300; it is at most 250"),
        (
            422,
            [
                {
                    "loc": ["body", "inputs", 0, "max_new_tokens"],
                    "msg": "Input should be less than or equal to 250",
                    "type": "less_than_equal",
                }
            ],
        ),
        (422, "The image has no known format."),
        (
            422,
            [
                {
                    "loc": ["body", "inputs", 0, "image_url"],
                    "msg": "String should have at most 8000 characters",
                    "type": "string_too_long",
                }
            ],
        ),
        (429, "token limit reached: too many tokens this minute"),
        (500, "maximum context length"),
    ],
)
def test_another_refusal_is_no_context_overflow(
    *, status: int, detail: Any, driver: Any, endpoint: Any, red: Any
) -> None:
    endpoint.reply({"detail": detail}, status=status)
    model = ChatPhospho(base_url=endpoint.base_url, max_retries=0)
    with pytest.raises(errors.APIStatusError) as raised:
        driver.invoke(model, ask(red))
    assert not isinstance(raised.value, langchain.ContextOverflowError)


@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_nothing_hangs_on_an_error_of_the_network(how: str, driver: Any, red: Any) -> None:
    model = ChatPhospho(base_url="http://127.0.0.1:9", api_key=KEY, max_retries=0)
    with pytest.raises(errors.ConnectionFailedError) as raised:
        getattr(driver, how)(model, ask(red))
    assert isinstance(raised.value, langchain.ModelConnectionError)
    cause = raised.value.__cause__
    assert isinstance(cause, errors.ConnectionFailedError)
    assert (cause.__context__, cause.__cause__) == (None, None)


@pytest.mark.parametrize("body", ["<html>", {"predictions": []}, {"predictions": [{}, {}]}])
def test_a_200_that_is_not_the_contract_is_an_api_error(
    body: Any, driver: Any, model: ChatPhospho, endpoint: Any, red: Any
) -> None:
    endpoint.reply(body)
    with pytest.raises(errors.UnexpectedReplyError) as raised:
        driver.invoke(model, ask(red))
    assert isinstance(raised.value, langchain.ModelAPIError)


def test_a_cap_is_an_invalid_request_and_sends_nothing(
    driver: Any, endpoint: Any, red: Any
) -> None:
    model = ChatPhospho(base_url=endpoint.base_url, spending=Spending(max_usd=0))
    with pytest.raises(errors.SpendingLimitError) as raised:
        driver.invoke(model, ask(red))
    assert isinstance(raised.value, langchain.ModelInvalidRequestError)
    assert endpoint.received == []


def test_what_cannot_be_read_is_refused_before_sending(
    driver: Any, model: ChatPhospho, endpoint: Any
) -> None:
    for block, kind in (
        ({"type": "image", "file_id": "file-1"}, errors.UnsupportedContentError),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, errors.ImageError),
        ({"type": "image", "base64": "AAAA", "mime_type": "image/png"}, errors.ImageError),
    ):
        with pytest.raises(kind) as raised:
            driver.invoke(model, [HumanMessage([block])])
        assert isinstance(raised.value, langchain.ModelInvalidRequestError)
    assert endpoint.received == []
