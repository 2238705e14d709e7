"""The engine that asks an OpenAI-compatible server, against one of each dialect on a socket."""

from __future__ import annotations

import base64
import io
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from dialect_cases import CASES
from fault_server import Behaviour, Connection, FaultServer, Received, hang, reset
from gateway import PROMPT, ask, gateway
from internet import Internet
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server.engines import load_engine, monitor, openai
from phospho_multimodal.server.engines.openai import OpenAIEngine
from phospho_multimodal.server.engines.upstream import KEY_VARIABLE, Upstream
from pictures import draw, encoded
from scripted_upstream import CHAT, ScriptedUpstream, refused, scripted

KEY = "sk-upstream-3141592653589793"

PENALTY = {name: case.penalty for name, case in CASES.items()}


def asked_once(upstream: ScriptedUpstream, image: bytes | str | None = None, **parameters):
    """Send a request through a new gateway, and return the request that the upstream got."""
    with gateway(upstream.url, allow_urls=True) as client:
        response = ask(client, image, **parameters)
    assert response.status_code == 200, response.text
    assert response.json() == {"predictions": [{"description": "A cat."}]}
    (asked,) = upstream.asked
    return asked


def listing(behaviour: Behaviour) -> Behaviour:
    """Answer the list of models, and behave as told with a question."""

    def behave(connection: Connection, request: Received) -> None:
        if request.path == CHAT:
            behaviour(connection, request)
        else:
            connection.reply(200, b'{"data": [{"id": "a-model"}]}', billed=False)

    return behave


@pytest.mark.parametrize("dialect", list(CASES))
class TestInEveryDialect:
    def test_the_four_parameters_arrive_under_their_names_there(self, dialect):
        given = {"max_new_tokens": 7, "temperature": 0.3, "top_p": 0.5, "repetition_penalty": 1.4}
        with scripted(dialect) as upstream:
            body = asked_once(upstream, **given).body
        del body["messages"]
        expected = {"max_tokens": 7, "temperature": 0.3, "top_p": 0.5}
        if PENALTY[dialect] is not None:
            expected[PENALTY[dialect]] = 1.4
        assert body == {"model": "a-model", "stream": False, **expected}

    def test_what_was_not_set_is_the_contracts_default(self, dialect):
        with scripted(dialect) as upstream:
            body = asked_once(upstream).body
        # An unknown server may be one whose models reject a parameter.
        assert body["max_tokens"] == 200
        assert body.get("top_p") == (None if dialect == "generic" else 1.0)
        assert "temperature" not in body
        assert [body.get(PENALTY[dialect])] == [PENALTY[dialect] and 1.15]

    def test_a_top_p_of_zero_is_one_that_every_server_takes(self, dialect):
        with scripted(dialect) as upstream:
            assert 0 < asked_once(upstream, top_p=0.0).body["top_p"] <= 0.01

    def test_a_url_that_the_server_may_open_goes_as_data(self, dialect, monkeypatch):
        picture = encoded(kind="PNG")
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(picture)}\r\n\r\n".encode()

        def file(connection, request):
            connection.send(head + picture)

        with FaultServer(file).running() as web, scripted(dialect) as upstream:
            Internet(web).install(monkeypatch)
            asked = asked_once(upstream, "https://pictures.example/a.png")
        assert (asked.kind, asked.image) == ("png", picture)

    def test_a_missing_penalty_is_said_at_the_start(self, dialect, caplog):
        with scripted(dialect) as upstream, gateway(upstream.url):
            pass
        assert ("takes no repetition_penalty" in caplog.text) is (PENALTY[dialect] is None)

    def test_a_dialect_that_is_named_is_not_replaced_by_what_the_list_says(self, dialect):
        with scripted("generic") as upstream:
            with gateway(upstream.url, dialect=dialect) as client:
                assert client.get("/health").json() == {"status": "ok", "engine": "openai"}
                assert ask(client).status_code == 200
            assert (PENALTY[dialect] or "stream") in upstream.asked[0].body


class TestThePicture:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_it_goes_as_it_came_with_the_type_of_its_bytes(self, kind):
        picture = encoded(kind=kind)
        with scripted("ollama") as upstream:
            asked = asked_once(upstream, picture)
        assert (asked.kind, asked.image) == (kind.lower(), picture)
        assert asked.text == PROMPT

    @pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", "GIF"])
    def test_a_type_that_not_every_server_knows_becomes_one_that_they_do(self, kind):
        with scripted("llama.cpp") as upstream:
            asked = asked_once(upstream, encoded(kind=kind))
        assert asked.kind in {"jpeg", "png"}
        assert Image.open(io.BytesIO(asked.image)).size == (60, 40)

    def test_it_lies_upright_since_no_server_minds_its_orientation(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        with scripted("vllm") as upstream:
            asked = asked_once(upstream, encoded(draw(60, 40), exif=exif))
        sent = Image.open(io.BytesIO(asked.image))
        assert sent.size == (40, 60)
        assert not sent.getexif()

    def test_a_prompt_that_looks_like_the_request_stays_a_prompt(self):
        with scripted() as upstream, gateway(upstream.url) as client:
            text = '{picture} "}}]}]} \x00 é 🐈'
            item = {"text": text, "image_url": base64.b64encode(encoded()).decode()}
            body = {"model": "phospho-multimodal", "inputs": [item]}
            assert client.post("/v2/predict", json=body).status_code == 200
            assert (upstream.asked[0].text, upstream.asked[0].image) == (text, encoded())


class TestWhatTheUpstreamRefuses:
    def failed(self, upstream, caplog, **options) -> str:
        """Send a request, expect the 500, and return the log."""
        with gateway(upstream.url, **options) as client:
            response = ask(client)
        assert response.status_code == 500
        assert response.json() == {"detail": "An error occurred while generating predictions."}
        assert PROMPT not in caplog.text
        assert 'File "' not in caplog.text  # foreseen: no places in our code
        return caplog.text

    def test_llama_cpp_without_a_projector_is_a_500_whose_log_names_it(self, caplog):
        with scripted("llama.cpp", projector=False) as upstream:
            assert "you may need to provide the mmproj" in self.failed(upstream, caplog)

    def test_vllms_limits_are_a_500_whose_log_repeats_them(self, caplog):
        limit = refused(400, "At most 0 image(s) may be provided in one prompt.")
        with scripted("vllm", limit) as upstream:
            assert "At most 0 image(s)" in self.failed(upstream, caplog)

    def test_a_model_that_is_not_there_is_told_at_the_start_and_is_a_500(self, caplog):
        with scripted("vllm", models=("one", "two")) as upstream:
            log = self.failed(upstream, caplog, model="three")
        assert "does not list the model three, but: one, two." in log

    def test_ollamas_tag_may_be_left_out(self, caplog):
        with scripted("ollama", models=("a-model:latest",)) as upstream:
            asked_once(upstream)
        assert "does not list" not in caplog.text

    @pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 422, 500, 501])
    def test_what_will_not_pass_is_the_contracts_500(self, status, caplog):
        with scripted("generic", refused(status)) as upstream:
            assert f"answered {status}" in self.failed(upstream, caplog)

    def test_the_prompt_is_cut_out_of_what_is_logged(self, caplog):
        quoting = refused(400, f"cannot answer {PROMPT!r} about {'QUJD' * 50}")
        with scripted("generic", quoting) as upstream:
            log = self.failed(upstream, caplog)
        assert "cannot answer" in log
        assert "third line" not in log
        assert "QUJDQUJD" not in log

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"[]",
            {},
            {"choices": []},
            {"choices": [{}]},
            {"choices": [{"message": {"content": None}, "finish_reason": "length"}]},
            {"choices": [{"message": {"content": " \n"}, "finish_reason": ["a", "list"]}]},
            {"error": {"message": "rate limited by the provider"}},
        ],
    )
    def test_a_200_without_an_answer_is_the_contracts_500(self, body, caplog):
        with scripted("generic", (200, body, {})) as upstream:
            self.failed(upstream, caplog)

    def test_a_model_that_only_thought_is_told_so_in_the_log(self, caplog):
        choice = {"message": {"content": "", "reasoning": "Hm."}, "finish_reason": "length"}
        with scripted("ollama", (200, {"choices": [choice]}, {})) as upstream:
            assert "finish_reason: length" in self.failed(upstream, caplog)


class TestWhatWillPass:
    def refused(self, client: httpx.Client) -> int:
        """Ask, expect a 503, and give its Retry-After."""
        response = ask(client)
        assert response.status_code == 503, response.text
        assert "cannot answer now" in response.json()["detail"]
        return int(response.headers["retry-after"])

    @pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
    def test_what_may_pass_is_a_503_with_the_upstreams_retry_after(self, status):
        busy = refused(status, retry_after="7")
        with scripted("vllm", busy) as up, gateway(up.url, dialect="vllm") as client:
            assert self.refused(client) == 7

    @pytest.mark.parametrize(
        ("header", "seconds"), [("0", 1), ("1.5", 2), ("3600", 60), ("soon", 2), (None, 2)]
    )
    def test_the_retry_after_is_bounded(self, header, seconds):
        busy = refused(503) if header is None else refused(503, retry_after=header)
        with scripted("vllm", busy) as up, gateway(up.url, dialect="vllm") as client:
            assert self.refused(client) == seconds

    def test_an_upstream_that_is_not_there_is_a_503(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with gateway(f"http://127.0.0.1:{port}", dialect="vllm") as client:
            assert self.refused(client) == 1

    @pytest.mark.parametrize("behaviour", [hang(), reset()])
    def test_an_answer_that_does_not_come_is_a_503_in_time(self, behaviour):
        with FaultServer(listing(behaviour)).running() as server:
            with gateway(server.base_url, dialect="vllm", timeout=0.3) as client:
                begun = time.monotonic()
                assert self.refused(client) == 2
                assert time.monotonic() - begun < 5
            server.wait_until_idle()

    def test_the_gateway_gives_up_before_the_contracts_minute_is_over(self):
        assert openai.ANSWER_SECONDS < 60

    def test_a_gateway_that_is_up_first_says_loading_and_waits(self, monkeypatch):
        monkeypatch.setattr(monitor, "_INTERVAL", 0.05)
        with scripted("llama.cpp", loading=True) as upstream, gateway(upstream.url) as client:
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "loading")
            assert self.refused(client) == 1
            assert upstream.asked == []
            upstream.loading = False
            deadline = time.monotonic() + 20
            while client.get("/health").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert ask(client).status_code == 200
            assert "repeat_penalty" in upstream.asked[0].body

    def test_a_gateway_whose_upstream_never_came_can_be_closed(self, monkeypatch):
        monkeypatch.setattr(monitor, "_INTERVAL", 0.01)
        with scripted(loading=True) as upstream, gateway(upstream.url) as client:
            assert client.get("/health").status_code == 503


class TestTheKey:
    @pytest.fixture(autouse=True)
    def key(self, monkeypatch) -> None:
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        monkeypatch.setenv("PHOSPHO_API_KEY", "another-key-of-another-place")

    def test_it_goes_to_the_upstream_and_no_other_key_does(self):
        with scripted("vllm") as upstream:
            asked_once(upstream)
        assert {r.headers["authorization"] for r in upstream.server.requests} == {f"Bearer {KEY}"}

    def test_without_one_no_authorization_is_sent(self, monkeypatch):
        monkeypatch.delenv(KEY_VARIABLE)
        with scripted("vllm") as upstream:
            asked_once(upstream)
        assert all("authorization" not in r.headers for r in upstream.server.requests)

    @pytest.mark.parametrize("status", [401, 429, 500])
    def test_it_is_in_no_log_and_no_answer_even_if_the_upstream_says_it(self, status, caplog):
        caplog.set_level(logging.DEBUG)
        telling = refused(status, f"Incorrect API key provided: {KEY}")
        with scripted("vllm", telling) as upstream, gateway(upstream.url) as client:
            response = ask(client)
        assert KEY not in response.text + str(response.headers)
        assert KEY not in "".join(r.getMessage() for r in caplog.records if "http" not in r.name)
        assert KEY not in caplog.text

    def test_it_is_in_no_repr_and_in_no_error_about_it(self, monkeypatch):
        engine = OpenAIEngine(upstream="http://127.0.0.1:1", model="a-model")
        assert KEY not in repr(engine) + repr(engine._upstream) + repr(engine._upstream._settings)
        monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n{KEY}")
        with pytest.raises(ConfigurationError, match=KEY_VARIABLE) as refusal:
            OpenAIEngine(upstream="http://127.0.0.1:1", model="a-model")
        assert KEY not in str(refusal.value)

    def test_a_wrong_one_is_told_at_the_start(self, caplog):
        def unauthorized(connection, request):
            connection.reply(401, b'{"error": "who are you?"}', billed=False)

        with FaultServer(unauthorized).running() as server, gateway(server.base_url):
            assert f"Set its key in {KEY_VARIABLE}" in caplog.text

    def test_plain_http_to_another_machine_is_told(self, caplog):
        Upstream("http://gpu.example:8000", api_key=KEY)
        assert "http://gpu.example:8000 is sent over plain http" in caplog.text


def _body() -> dict:
    item = {"text": PROMPT, "image_url": base64.b64encode(encoded()).decode()}
    return {"model": "phospho-multimodal", "inputs": [item]}


class TestConnections:
    def test_one_after_another_share_one(self):
        with scripted("vllm") as upstream:
            with gateway(upstream.url) as client:
                for _ in range(10):
                    assert ask(client).status_code == 200
                assert upstream.server.connections == 1
            upstream.server.wait_until_idle()

    def test_many_at_once_are_asked_at_once(self):
        def slow(asked):
            time.sleep(0.5)
            return "A cat."

        with scripted("vllm", slow) as upstream, gateway(upstream.url) as client:
            with ThreadPoolExecutor(20) as pool:
                answers = list(pool.map(lambda _: ask(client).status_code, range(20)))
            assert answers == [200] * 20
            assert upstream.server.most_in_flight > 4

    def test_a_client_that_leaves_ends_the_question_upstream(self):
        left = threading.Event()

        def wait_for_the_end(connection, request):
            if connection.socket.recv(1) == b"":
                left.set()

        with (
            FaultServer(listing(wait_for_the_end)).running() as server,
            gateway(server.base_url, dialect="vllm") as client,
        ):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v2/predict", json=_body(), timeout=1)
            assert left.wait(10)


class TestOptions:
    @pytest.mark.parametrize("options", [{}, {"upstream": "http://127.0.0.1:1"}, {"model": "a"}])
    def test_both_address_and_model_are_needed(self, options):
        with pytest.raises(ConfigurationError, match=r"--upstream.*--model"):
            load_engine("openai", **options)

    @pytest.mark.parametrize(
        "url",
        [
            "gpu:8000",
            "ftp://gpu",
            "http://",
            "http://a:b@gpu",
            "http://gpu/v1?key=a",
            "http://[::1",
        ],
    )
    def test_an_address_that_is_none_is_refused_without_repeating_it(self, url):
        with pytest.raises(ConfigurationError, match="--upstream") as refusal:
            load_engine("openai", upstream=url, model="a")
        assert "a:b" not in str(refusal.value)

    @pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
    def test_the_address_may_end_in_v1(self, end):
        upstream = Upstream(f"https://gpu.example/api{end}", api_key=None)
        assert (upstream.root, upstream.base) == (
            "https://gpu.example/api",
            "https://gpu.example/api/v1",
        )

    def test_an_unknown_dialect_is_refused_with_the_ones_there_are(self):
        with pytest.raises(ConfigurationError, match=r"'tgi'.*vllm, sglang, llama\.cpp"):
            load_engine("openai", upstream="http://127.0.0.1:1", model="a", dialect="tgi")

    def test_another_engine_has_no_use_for_them(self):
        with pytest.raises(ConfigurationError, match=r"'echo' does not use --model, --upstream"):
            load_engine("echo", upstream="http://127.0.0.1:1", model="a", dialect=None)
