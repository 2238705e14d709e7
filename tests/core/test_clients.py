"""What a user of the two clients sees: what is sent, what comes back, what it cost."""

from __future__ import annotations

import asyncio
import hashlib
import io
import pathlib
import threading
from typing import Any

import httpx
import numpy as np
import pybase64
import pytest

from drivers import Driver
from fault_server import answer, prediction, raw, status
from phospho_multimodal import (
    AsyncPhosphoClient,
    ConfigurationError,
    EndpointGoneError,
    ImageError,
    InvalidRequestError,
    MissingKeyError,
    PhosphoClient,
    Spending,
    UnexpectedReplyError,
    UnsupportedContentError,
)
from pictures import draw, encoded, png_header

PICTURE = encoded()


def _base64(path: pathlib.Path) -> str:
    return pybase64.b64encode_as_string(path.read_bytes())


def _half_read(path: pathlib.Path) -> io.BytesIO:
    file = io.BytesIO(path.read_bytes())
    file.read()
    return file


def _whole(text: str) -> bytes:
    body = prediction(text)
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def test_an_answer_tells_what_was_sent_and_what_it_cost(driver: Driver, lab):
    server = lab(answer("A teal square.", headers={"x-request-id": "r-1"}))

    prediction = driver.describe(PICTURE, "What is this?", base_url=server.base_url)

    assert prediction.description == "A teal square."
    assert prediction.metadata == {
        "model_name": "phospho-multimodal",
        "model_provider": "phospho",
        "images": [
            {
                "sha256": hashlib.sha256(PICTURE).hexdigest(),
                "width": 60,
                "height": 40,
                "format": "JPEG",
                "bytes": len(PICTURE),
                "source": "bytes",
                "changes": [],
            }
        ],
        "images_billed": 1,
        "images_in_doubt": 0,
        "cost_usd": 0.01,
        "attempts": 1,
        "image_policy": "single",
        "images_omitted": 0,
        "request_id": "r-1",
    }


def test_only_what_was_set_is_sent_and_inside_the_input(driver: Driver, lab):
    server = lab()

    driver.describe(PICTURE, "Où?", base_url=server.base_url, api_key="k-1", temperature=0, top_p=1)

    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v2/predict")
    assert request.headers["authorization"] == "Bearer k-1"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert request.item == {
        "text": "Où?",
        "image_url": pybase64.b64encode_as_string(PICTURE),
        "temperature": 0.1,  # the endpoint's floor, for the 0 that frameworks write
        "top_p": 1,
    }


@pytest.mark.parametrize(
    ("make", "form"),
    [
        pytest.param(lambda path: path, "path", id="path"),
        pytest.param(lambda path: path.read_bytes(), "bytes", id="bytes"),
        pytest.param(lambda path: bytearray(path.read_bytes()), "bytes", id="bytearray"),
        pytest.param(lambda path: memoryview(path.read_bytes()), "bytes", id="memoryview"),
        pytest.param(lambda path: io.BytesIO(path.read_bytes()), "file", id="file"),
        pytest.param(_half_read, "file", id="file read to its end"),
        pytest.param(_base64, "base64", id="base64"),
        pytest.param(lambda path: _base64(path) + "\n", "base64", id="base64 and a line break"),
        pytest.param(lambda path: _base64(path).rstrip("="), "base64", id="unpadded base64"),
        pytest.param(
            lambda path: _base64(path).replace("+", "-").replace("/", "_"),
            "base64",
            id="URL-safe base64",
        ),
        pytest.param(
            lambda path: "data:image/png;base64," + _base64(path), "data_url", id="data URL"
        ),
        pytest.param(lambda path: "DATA:;BASE64," + _base64(path), "data_url", id="bare data URL"),
    ],
)
def test_every_form_of_an_image_arrives_as_the_same_bytes(
    driver: Driver, lab, tmp_path: pathlib.Path, make, form: str
):
    server = lab()
    path = tmp_path / "picture.whatever"
    path.write_bytes(PICTURE)

    prediction = driver.describe(make(path), base_url=server.base_url)

    assert server.requests[0].image == PICTURE
    assert prediction.metadata["images"][0]["source"] == form


def test_a_pil_image_is_sent_as_a_file(driver: Driver, lab):
    server = lab()

    prediction = driver.describe(draw(), base_url=server.base_url)

    assert server.requests[0].image.startswith(b"\x89PNG")
    assert prediction.metadata["images"][0]["source"] == "pil"


def test_a_url_is_sent_exactly_as_given_and_not_told_in_full(driver: Driver, lab):
    server = lab()
    url = "https://user:secret@cdn.example.com:8443/w_640,h_480/a%20b.png?X-Sig=A%2Fb#top"

    prediction = driver.describe(url, base_url=server.base_url)

    assert server.requests[0].item["image_url"] == url
    assert prediction.metadata["images"] == [
        {"source": "url", "origin": "https://cdn.example.com:8443"}
    ]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        pytest.param("photo.jpg", "never a path", id="a path in a string"),
        pytest.param("/etc/passwd", "never a path", id="an absolute path in a string"),
        pytest.param("file:///etc/passwd", "file: URL", id="a file URL"),
        pytest.param("https://", "no host", id="a URL without a host"),
        pytest.param("https://a b/c.png", "white space", id="a URL with white space"),
        pytest.param(b"", "empty", id="empty bytes"),
        pytest.param(io.BytesIO(b""), "empty", id="an empty file"),
        pytest.param(io.StringIO("text"), "mode 'rb'", id="a text file object"),
        pytest.param(b"hello, I am a PNG", "text", id="text"),
        pytest.param(b"%PDF-1.7 ...", "PDF", id="a PDF"),
        pytest.param(b"<svg xmlns='...'/>", "SVG", id="an SVG"),
        pytest.param(PICTURE[:300], "broken or cut off", id="a cut-off JPEG"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "PNG", id="a PNG of eight bytes"),
        pytest.param("data:image/png;base64", "no comma", id="a data URL without data"),
        pytest.param(pathlib.Path("no/such/file.png"), "No such file", id="a missing file"),
        pytest.param(pathlib.Path("/dev/zero"), "not a file", id="a device"),
        pytest.param(42, "A int is not an image", id="a number"),
        pytest.param(None, "A NoneType is not an image", id="nothing"),
    ],
)
def test_what_is_no_image_is_an_error_before_anything_is_sent(
    driver: Driver, lab, image: object, words: str
):
    server = lab()

    with pytest.raises(ImageError, match=words):
        driver.describe(image, base_url=server.base_url)

    assert server.requests == []


def test_a_200_megapixel_header_is_refused_before_decoding(driver: Driver, lab):
    server = lab()

    with pytest.raises(ImageError, match="20000 × 10000 pixels"):
        driver.describe(png_header(20_000, 10_000), base_url=server.base_url)

    assert server.requests == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>Welcome</html>", id="HTML"),
        pytest.param(b"{}", id="no predictions"),
        pytest.param(b'{"predictions": []}', id="an empty list"),
        pytest.param(b'{"predictions": [{"description":"a"},{"description":"b"}]}', id="two"),
        pytest.param(b'{"predictions": [{"description": null}]}', id="a null description"),
        pytest.param(b'{"predictions": [{"description": 7}]}', id="a number"),
        pytest.param(b'{"predictions": {"description": "a"}}', id="an object"),
        pytest.param(b'["predictions"]', id="a list"),
        pytest.param(b'{"predictions": [{"description": "cut o', id="half a reply"),
        pytest.param(b"\xff\xfe\x00", id="not UTF-8"),
        pytest.param(b'\xef\xbb\xbf{"predictions": []}', id="an empty list, nearly right"),
        pytest.param(b'{"predictions": [{"description": NaN}]}', id="a description that is NaN"),
        pytest.param(b'{"predictions": [{"description": "a"}], "n": NaN} x', id="more after it"),
        pytest.param(b"[" * 100_000, id="a deep nest"),
        pytest.param(b'{"n": 1' + b"0" * 5000 + b"NaN}", id="a number without an end"),
    ],
)
def test_a_200_outside_the_contract_is_in_doubt_and_not_asked_again(
    driver: Driver, lab, body: bytes
):
    server = lab(lambda connection, _: connection.reply(200, body, billed=True))

    with pytest.raises(UnexpectedReplyError, match="may have been billed") as caught:
        driver.describe(PICTURE, base_url=server.base_url)

    assert len(server.requests) == caught.value.attempts == caught.value.images_in_doubt == 1


@pytest.mark.parametrize(
    ("body", "description"),
    [
        pytest.param(
            b'\xef\xbb\xbf{"predictions": [{"description": "a"}]}', "a", id="a byte order mark"
        ),
        pytest.param(
            b'{"predictions": [{"description": "a\\ud83d b\\ud83d\\ude00"}]}',
            "a\ufffd b\U0001f600",
            id="half a surrogate pair",
        ),
        pytest.param(
            b'{"predictions": [{"description": "a", "note": "\\udc00"}], "\\udc00": 1}',
            "a",
            id="half a surrogate pair elsewhere",
        ),
        pytest.param(
            b'{"predictions": [{"description": "a", "score": NaN}], "least": -Infinity}',
            "a",
            id="numbers that JSON does not have",
        ),
        pytest.param(
            b'{"predictions": [{"description": "a\n\tb\x00"}]}', "a\n\tb\0", id="raw white space"
        ),
        pytest.param(
            b'{"predictions": [{"description": "caf\xe9"}]}', "caf\ufffd", id="a byte of Latin-1"
        ),
        pytest.param(
            b'\xef\xbb\xbf{"predictions": [{"description": "a\n\\ud800\xff"}], "n": Infinity}',
            "a\n\ufffd\ufffd",
            id="all of it",
        ),
    ],
)
def test_an_answer_in_json_that_is_nearly_right_is_read(
    driver: Driver, lab, body: bytes, description: str
):
    server = lab(lambda connection, _: connection.reply(200, body, billed=True))
    spending = Spending()

    prediction = driver.describe(PICTURE, base_url=server.base_url, spending=spending)

    assert prediction.description == description
    assert prediction.description.encode()
    assert spending.snapshot().images_billed == 1


def test_an_unexpected_reply_repeats_at_most_64_characters(driver: Driver, lab):
    server = lab(lambda connection, _: connection.reply(200, b"<p>" + b"x y " * 900, billed=True))

    with pytest.raises(UnexpectedReplyError) as caught:
        driver.describe(PICTURE, base_url=server.base_url)

    quoted = str(caught.value).split("It begins: ")[1].split("'")[1]
    assert len(quoted) == 64


def test_a_404_names_the_base_url_and_the_local_server(driver: Driver, lab):
    server = lab(status(404, "Not Found"))

    with pytest.raises(EndpointGoneError) as caught:
        driver.describe(PICTURE, base_url=server.base_url)

    assert server.base_url in str(caught.value)
    assert "phospho-multimodal serve" in str(caught.value)


def test_no_key_beyond_the_loopback_is_a_configuration_error(driver: Driver):
    with pytest.raises(MissingKeyError, match=r"PHOSPHO_API_KEY.*api_key=") as caught:
        driver.describe(PICTURE)

    assert isinstance(caught.value, ConfigurationError)


def test_key_and_base_url_come_from_the_environment(
    driver: Driver, lab, monkeypatch: pytest.MonkeyPatch
):
    server = lab()
    monkeypatch.setenv("PHOSPHO_BASE_URL", server.base_url + "/")
    monkeypatch.setenv("PHOSPHO_API_KEY", "from-environment")

    driver.describe(PICTURE)
    driver.describe(PICTURE, api_key="argument")

    assert [r.headers["authorization"] for r in server.requests] == [
        "Bearer from-environment",
        "Bearer argument",
    ]


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (["three", " two", ""], "one"),
        ("three", "one two "),
        ("", "one two three two"),
        ([], "one two three two"),
    ],
)
def test_a_stop_string_cuts_the_answer_here(driver: Driver, lab, stop: Any, left: str):
    server = lab(answer("one two three two"))

    prediction = driver.describe(PICTURE, base_url=server.base_url, stop=stop)

    assert prediction.description == left


@pytest.mark.parametrize("stop", [7, [7], ["END", None]])
def test_what_cannot_cut_an_answer_is_refused_before_it_is_paid_for(driver: Driver, lab, stop: Any):
    server = lab(answer())

    with pytest.raises(ConfigurationError, match="a list of strings"):
        driver.describe(PICTURE, base_url=server.base_url, stop=stop)

    assert not server.requests


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1.5},
        {"temperature": 0.05},
        {"temperature": float("nan")},
        {"max_new_tokens": 251},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"top_p": -0.1},
        {"repetition_penalty": 0},
    ],
    ids=str,
)
def test_a_parameter_out_of_range_is_an_error_before_paying(
    driver: Driver, lab, parameters: dict[str, float]
):
    server = lab()

    with pytest.raises(ConfigurationError, match=next(iter(parameters))):
        driver.describe(PICTURE, base_url=server.base_url, **parameters)

    assert server.requests == []


def test_half_a_surrogate_pair_cannot_be_sent_and_says_where(driver: Driver, lab):
    server = lab()

    with pytest.raises(Exception, match="at character 5") as caught:
        driver.describe(PICTURE, "caf\u00e9 \ud83d", base_url=server.base_url)

    assert type(caught.value).__name__ == "UnsupportedContentError"
    assert server.requests == []


def test_an_unknown_keyword_is_refused(driver: Driver):
    with pytest.raises(TypeError, match="temprature"):
        driver.describe(PICTURE, base_url="http://127.0.0.1:1", temprature=1)


def test_a_borrowed_http_client_sends_and_stays_open(lab):
    server = lab()
    with httpx.Client(headers={"x-gateway": "g"}, follow_redirects=True) as http_client:
        with PhosphoClient(base_url=server.base_url, http_client=http_client) as client:
            client.describe(PICTURE)
        assert not http_client.is_closed
    assert server.requests[0].headers["x-gateway"] == "g"


async def test_a_borrowed_async_http_client_sends_and_stays_open(lab):
    server = lab()
    async with httpx.AsyncClient(headers={"x-gateway": "g"}) as http_client:
        async with AsyncPhosphoClient(base_url=server.base_url, http_client=http_client) as client:
            await client.describe(PICTURE)
        assert not http_client.is_closed
    assert server.requests[0].headers["x-gateway"] == "g"


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
def test_a_redirect_is_never_followed(lab, borrowed: bool):
    elsewhere = lab()
    server = lab(status(307, "moved", headers={"location": elsewhere.base_url + "/v2/predict"}))
    http_client = httpx.Client(follow_redirects=True) if borrowed else None
    client = PhosphoClient(base_url=server.base_url, api_key="k", http_client=http_client)

    with pytest.raises(Exception, match="do not follow redirects") as caught:
        client.describe(PICTURE)

    assert caught.value.status_code == 307
    assert elsewhere.requests == []
    client.close()
    if http_client:
        http_client.close()


def test_one_client_serves_many_threads_within_its_limit(lab):
    server = lab(_slowly(answer()))
    with PhosphoClient(base_url=server.base_url, max_concurrency=4) as client:
        results: dict[int, str] = {}

        def ask(number: int) -> None:
            results[number] = client.describe(PICTURE, f"Question {number}").description

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert results == {n: f"You asked: Question {n}" for n in range(24)}
    assert server.most_in_flight == 4
    assert server.connections <= 4


def test_one_async_client_serves_one_loop_after_another_within_its_limit(lab):
    server = lab(_slowly(answer()))
    client = AsyncPhosphoClient(base_url=server.base_url, max_concurrency=4)

    async def ask_all() -> list[str]:
        asked = (client.describe(PICTURE, f"Question {n}") for n in range(12))
        return [prediction.description for prediction in await asyncio.gather(*asked)]

    for _ in range(3):
        assert asyncio.run(ask_all()) == [f"You asked: Question {n}" for n in range(12)]
        server.wait_until_idle()  # a loop that ends leaves no connection behind

    assert server.most_in_flight == 4
    assert server.connections <= 12


def _slowly(behaviour):
    def behave(connection, request):
        connection.server.stopping.wait(0.01)
        behaviour(connection, request)

    return behave


def test_connections_are_kept_and_used_again(driver: Driver, lab):
    server = lab()

    results = driver.run({"base_url": server.base_url}, *[(PICTURE, str(n)) for n in range(5)])

    assert [r.description for r in results] == [f"You asked: {n}" for n in range(5)]
    assert server.connections == 1


@pytest.mark.parametrize(
    "after",
    [_whole("GHOST"), b"\r\n", b"junkjunk", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["a second answer", "a line", "junk", "an interim answer"],
)
def test_what_follows_an_answer_is_never_taken_for_the_next_one(driver: Driver, lab, after: bytes):
    server = lab(raw(_whole("first") + after, then="keep"), answer())

    first, second = driver.run({"base_url": server.base_url}, (PICTURE, "one"), (PICTURE, "two"))

    assert (first.description, second.description) == ("first", "You asked: two")
    assert (len(server.requests), server.connections) == (2, 2)


def test_a_forgotten_client_closes_its_connections(lab):
    server = lab()
    client = PhosphoClient(base_url=server.base_url)
    client.describe(PICTURE)

    del client

    server.wait_until_idle()


def test_a_closed_client_says_so(driver: Driver, lab):
    server = lab()
    client = PhosphoClient(base_url=server.base_url)
    client.close()

    with pytest.raises(ConfigurationError, match="closed"):
        client.describe(PICTURE)


def test_check_tells_a_good_key_from_a_bad_one_without_paying(driver: Driver, lab):
    good = lab(_model_list(), _model_list(), status(400, "Model not supported"))
    bad = lab(_model_list(), _model_list(), status(401, "Invalid token"))

    accepted = driver.check(base_url=good.base_url, api_key="k")
    refused = driver.check(base_url=bad.base_url, api_key="k")

    assert (accepted.healthy, accepted.key_accepted, accepted.models) == (True, True, ["m-1"])
    assert (refused.healthy, refused.key_accepted) == (True, False)
    assert "Invalid token" in refused.detail
    assert good.billed == bad.billed == 0


def test_check_of_nothing_is_a_finding(driver: Driver):
    found = driver.check(base_url="http://127.0.0.1:9")

    assert (found.healthy, found.key_accepted) == (False, None)
    assert "ConnectError" in found.detail


def _model_list():
    return raw(_get_reply(b'{"data": [{"id": "m-1"}]}'), then="keep")


def _get_reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def test_check_tells_a_server_that_answers_anything(driver: Driver, lab):
    server = lab(_model_list(), _model_list(), answer("Anything."))

    found = driver.check(base_url=server.base_url)

    assert (found.healthy, found.key_accepted) == (True, None)
    assert "not a phospho endpoint" in found.detail


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": (5, 60)}, "timeout must be a number of seconds"),
        ({"timeout": 0}, "timeout must be .*got 0"),
        ({"deadline": -1}, "deadline must be .*got -1"),
        ({"max_retries": -1}, "max_retries must be .*got -1"),
        ({"max_concurrency": 0}, "max_concurrency must be .*got 0"),
        ({"requests_per_second": float("nan")}, "requests_per_second must be .*got nan"),
        ({"max_image_side": 0}, "max_image_side must be .*got 0"),
        ({"url_mode": "open"}, "url_mode must be .*got 'open'"),
        ({"model": "gpt"}, "name must begin with"),
        ({"api_key": "a\nb"}, "no HTTP header"),
        ({"base_url": "ftp://127.0.0.1"}, "must begin with https://"),
        ({"base_url": "http://user:secret@127.0.0.1"}, "must not contain credentials"),
        ({"base_url": "http://127.0.0.1?a=b"}, "neither a query"),
        ({"base_url": "http://127.0.0.1:99999"}, "out of range"),
        ({"base_url": "http://10.0.0.1", "api_key": "k"}, "allow_insecure_http=True"),
        ({"default_headers": {"Authorization": "x"}}, "must not set 'Authorization'"),
        ({"default_headers": {"x-a": "b\r\nc: d"}}, "characters HTTP cannot carry"),
        pytest.param({"http_client": object()}, "has to be an httpx.", id="another client"),
        ({"verify": "/no/such/file.pem"}, "not a readable CA file or folder"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused(driver: Driver, options, words: str):
    with pytest.raises(ConfigurationError, match=words) as caught:
        driver.describe(PICTURE, **{"base_url": "http://127.0.0.1:9", **options})

    assert "secret" not in str(caught.value)


def test_an_unknown_parameter_is_named_without_its_value():
    with (
        PhosphoClient(base_url="http://127.0.0.1:9") as client,
        pytest.raises(ConfigurationError, match="api_key cannot be sent") as caught,
    ):
        client.describe(PICTURE, api_key="sk-secret")

    assert "sk-secret" not in str(caught.value)


def test_the_loopback_is_never_reached_through_a_proxy(
    driver: Driver, lab, monkeypatch: pytest.MonkeyPatch
):
    server = lab()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")

    driver.describe(PICTURE, base_url=server.base_url, proxy="http://127.0.0.1:9")

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({"HTTP_PROXY": "{proxy}"}, {}),
        ({"ALL_PROXY": "{proxy}"}, {}),
        ({}, {"proxy": "{proxy}"}),
        ({"NO_PROXY": "*"}, {"proxy": "{proxy}"}),
    ],
    ids=str,
)
def test_a_proxy_is_used_beyond_the_loopback(
    driver: Driver, lab, monkeypatch: pytest.MonkeyPatch, environment, options
):
    proxy = lab()
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(proxy=proxy.base_url))

    driver.describe(
        PICTURE,
        base_url="http://phospho.example",
        api_key="k",
        allow_insecure_http=True,
        **{name: value.format(proxy=proxy.base_url) for name, value in options.items()},
    )

    assert proxy.requests[0].path == "http://phospho.example/v2/predict"


def test_no_proxy_is_obeyed(driver: Driver, lab, monkeypatch: pytest.MonkeyPatch):
    proxy = lab()
    monkeypatch.setenv("HTTP_PROXY", proxy.base_url)
    monkeypatch.setenv("NO_PROXY", "phospho.invalid")

    with pytest.raises(Exception, match="did not reach"):
        driver.describe(
            PICTURE,
            base_url="http://phospho.invalid",
            api_key="k",
            allow_insecure_http=True,
            max_retries=0,
        )

    assert proxy.requests == []


@pytest.mark.parametrize("prompt", [b"What?", ["What?"], 7])
def test_a_prompt_that_is_no_text_is_an_error(driver: Driver, lab, prompt: Any):
    server = lab()

    with pytest.raises(UnsupportedContentError, match="A prompt must be text"):
        driver.describe(encoded(), prompt, base_url=server.base_url)

    assert server.requests == []


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ({"proxy": "ftp://p.example"}, "The proxy"),
        ({"proxy": "socks5://p.example"}, "httpx.socks."),
        ({"max_concurrency": "3"}, "whole number"),
        ({"max_retries": 1.5}, "whole number"),
        ({"deadline": "soon"}, "a number of seconds"),
    ],
    ids=str,
)
def test_a_setting_of_a_wrong_kind_is_named(driver: Driver, options: dict[str, Any], saying: str):
    with pytest.raises(ConfigurationError, match=saying):
        driver.describe(encoded(), base_url="https://a.example", api_key="k", **options)


def test_a_proxy_of_the_environment_that_cannot_be_used_is_named(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTPS_PROXY", "ftp://p.example")

    with pytest.raises(ConfigurationError, match="The proxy"):
        driver.describe(encoded(), base_url="https://a.example", api_key="k")


def test_numbers_of_other_libraries_are_numbers(driver: Driver, lab):
    server = lab()

    driver.describe(encoded(), base_url=server.base_url, temperature=np.float32(0.5))

    assert server.requests[0].item["temperature"] == 0.5


def test_a_file_object_that_fails_in_its_own_way_is_an_image_error(driver: Driver, lab):
    class Broken:
        def read(self, size: int = -1) -> bytes:
            raise RuntimeError("torn")  # noqa: EM101

    with pytest.raises(ImageError, match="RuntimeError: torn"):
        driver.describe(Broken(), base_url=lab().base_url)


def test_a_header_of_yours_is_not_repeated_in_an_error(driver: Driver, lab):
    server = lab(status(400, "bad gateway-secret-0815"))

    with pytest.raises(InvalidRequestError) as caught:
        driver.describe(
            encoded(), base_url=server.base_url, default_headers={"x-gate": "gateway-secret-0815"}
        )

    assert "0815" not in str(caught.value)
