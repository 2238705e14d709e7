"""The gateway knows within seconds whether its upstream is available, and its dialect."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import socket
import threading

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image

from dialect_cases import CASES, CONTEXT
from gateway import ask, gateway, until
from live_server import serve
from phospho_multimodal.server.engines import monitor
from phospho_multimodal.server.engines.model_facts import facts, image_side
from pictures import draw, encoded
from scripted_upstream import completion, refused, scripted


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(monitor, "_INTERVAL", 0.05)


def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def is_ok(client) -> bool:
    return client.get("/health").status_code == 200


@pytest.mark.parametrize("dialect", [None, *CASES])
class TestHealth:
    def test_it_says_loading_where_nothing_listens(self, dialect):
        with gateway(nobody(), dialect=dialect) as client:
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "loading")
            assert ask(client).status_code == 503

    def test_it_follows_an_upstream_that_fails_and_comes_back(self, dialect):
        with scripted(dialect or "vllm") as up, gateway(up.url, dialect=dialect) as client:
            assert is_ok(client)
            up.loading = True
            until(lambda: not is_ok(client))
            up.loading = False
            until(lambda: is_ok(client))
            assert ask(client).status_code == 200

    def test_it_notices_an_upstream_that_was_stopped(self, dialect):
        with contextlib.ExitStack() as running:
            up = running.enter_context(scripted(dialect or "vllm"))
            with gateway(up.url, dialect=dialect) as client:
                assert is_ok(client)
                running.close()
                until(lambda: not is_ok(client))


class TestAServerThatRefusesAtFirst:
    @pytest.mark.parametrize(
        "response",
        [
            JSONResponse({"detail": "Path '/v1/models' not found."}, 404),
            JSONResponse({"detail": "Method Not Allowed"}, 405),
            JSONResponse({"error": "starting"}, 500),
            JSONResponse({"error": "who are you?"}, 401),
            JSONResponse({"error": "slow down"}, 429),
            JSONResponse({"error": "starting"}, 529),
            PlainTextResponse("<html>starting</html>", 200, media_type="text/html"),
            JSONResponse({"object": "list", "data": []}, 200),
        ],
        ids=lambda response: f"{response.status_code}-{response.body[:12]!r}",
    )
    def test_the_dialect_is_found_when_it_answers(self, response):
        app, there, bodies = FastAPI(), threading.Event(), []

        @app.middleware("http")
        async def gate(request, call_next):
            return await call_next(request) if there.is_set() else response

        @app.get("/v1/models")
        def models():
            return {"data": [{"id": "a-model", "owned_by": "vllm"}]}

        @app.post("/v1/chat/completions")
        async def chat(body: dict):
            bodies.append(body)
            return completion("A cat.")

        with serve(app) as url, gateway(url) as client:
            there.set()

            def knows_the_penalty() -> bool:
                answer = ask(client, repetition_penalty=1.9)
                return answer.status_code == 200 and bodies[-1].get("repetition_penalty") == 1.9

            until(knows_the_penalty)

    def test_a_404_to_everything_is_loading(self):
        with scripted("generic", refused(404)) as up:
            up.models = ()
            up.server.script = [lambda connection, _: connection.reply(404, b"{}", billed=False)]
            with gateway(up.url) as client:
                assert client.get("/health").status_code == 503

    def test_a_server_without_a_list_of_models_answers(self):
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(body: dict):
            return completion("A cat.") if body else JSONResponse({"error": "no messages"}, 400)

        with serve(app) as url, gateway(url) as client:
            assert is_ok(client)
            assert ask(client).status_code == 200


class TestTheLog:
    def test_a_wait_is_one_line(self, caplog):
        looks = []

        def loading(connection, request):
            looks.append(request)
            connection.reply(503, b"{}", billed=False)

        with scripted() as up:
            up.server.script = [loading]
            with caplog.at_level(logging.WARNING), gateway(up.url):
                until(lambda: len(looks) > 5)
        assert len([r for r in caplog.records if "did not answer" in r.getMessage()]) == 1

    def test_a_model_that_is_not_listed_is_one_line(self, caplog):
        with scripted("vllm", models=("one",)) as up, gateway(up.url, dialect="vllm"):
            until(lambda: len(up.server.requests) > 5)
        assert caplog.text.count("does not list the model a-model, but: one.") == 1


def loading_model(seconds: float, owner: str = "library", *, generate: bool = True):
    """A server that stops to load its model when the client that asked for it disconnects."""
    app, state = FastAPI(), {"loaded": False, "given up": 0}

    async def load(request: Request):
        for _ in range(int(seconds / 0.05)):
            if await request.is_disconnected():
                state["given up"] += 1
                return
            await asyncio.sleep(0.05)
        state["loaded"] = True

    @app.get("/v1/models")
    def models():
        return {"data": [{"id": "a-model", "owned_by": owner}]}

    @app.post("/api/generate" if generate else "/api/unused")
    @app.post("/v1/chat/completions")
    async def answer(request: Request):
        await request.body()
        if not state["loaded"]:
            await load(request)
        return completion("A cat.")

    return app, state


class TestAColdModel:
    def test_it_is_loaded_at_the_start_and_health_says_loading_meanwhile(self, monkeypatch):
        monkeypatch.setattr(monitor, "_START_SECONDS", 0.1)
        app, state = loading_model(0.6)
        with serve(app) as url, gateway(url, timeout=0.2) as client:
            assert client.get("/health").json()["status"] == "loading"
            assert ask(client).status_code == 503
            until(lambda: is_ok(client))
            assert ask(client).status_code == 200
        assert state["given up"] == 0

    @pytest.mark.parametrize("owner", ["library", "organization_owner", "somebody"])
    def test_a_server_without_a_route_for_it_gets_a_request_that_nobody_breaks_off(self, owner):
        app, state = loading_model(0.5, owner, generate=False)
        with serve(app) as url, gateway(url, timeout=0.2) as client:
            until(lambda: ask(client).status_code == 200)
        assert state["loaded"]

    def test_a_model_that_was_unloaded_is_loaded_whoever_leaves(self, monkeypatch):
        app, state = loading_model(0.5)
        with serve(app) as url, gateway(url, timeout=0.2) as client:
            until(lambda: is_ok(client))
            monkeypatch.setattr(monitor, "_STAYS_LOADED", 0.0)
            state["loaded"] = False
            assert ask(client).status_code == 503
            until(lambda: ask(client).status_code == 200)
        assert state["given up"] == 0

    @pytest.mark.parametrize("status", [404, 500])
    def test_a_model_that_cannot_be_loaded_is_told_and_questions_say_why(self, status, caplog):
        app = FastAPI()

        @app.get("/v1/models")
        def models():
            return {"data": [{"id": "a-model", "owned_by": "library"}]}

        @app.post("/{path:path}")
        def fail(path: str):
            return JSONResponse({"error": "model requires more system memory"}, status)

        with serve(app) as url, gateway(url) as client:
            assert is_ok(client)
            assert ask(client).status_code == 500
        assert "was not loaded" in caplog.text
        assert "more system memory" in caplog.text


class TestWhatAServerReports:
    @pytest.mark.parametrize("dialect", [n for n, case in CASES.items() if case.text_only])
    def test_a_model_without_images_is_told_and_never_asked(self, dialect, caplog):
        with scripted(dialect, vision=False) as up, gateway(up.url) as client:
            assert ask(client).status_code == 500
            assert up.asked == []
        assert "takes no images" in caplog.text
        assert ("--mmproj" in caplog.text) is (dialect == "llama.cpp")

    @pytest.mark.parametrize("dialect", list(CASES))
    def test_an_image_fits_into_the_context(self, dialect):
        with scripted(dialect) as up, gateway(up.url) as client:
            assert ask(client, encoded(draw(5000, 40))).status_code == 200
            (asked,) = up.asked
        side = image_side(CONTEXT) if CASES[dialect].reports_context else image_side(None)
        assert longest_side(asked.image) == side

    def test_the_option_decides_where_it_is_given(self):
        with scripted("vllm") as up, gateway(up.url, max_image_side=640) as client:
            ask(client, encoded(draw(700, 40)))
            (asked,) = up.asked
        assert longest_side(asked.image) == 640

    @pytest.mark.parametrize("context", [1500, 2048, 4096, 8192, 20480, 131072])
    def test_image_prompt_and_answer_fit_into_the_context(self, context):
        side = image_side(context)
        assert (side / 28) ** 2 + 250 + 100 <= context
        assert side <= 4096

    @pytest.mark.parametrize(
        ("document", "images", "context"),
        [
            ({"data": [{"id": "m", "max_model_len": 512}]}, None, 512),
            ({"data": [{"id": "m", "meta": {"n_ctx": 256}}]}, None, 256),
            ({"data": [{"id": "m", "architecture": {"input_modalities": ["text"]}}]}, False, None),
            ({"data": [{"id": "m", "input_modalities": ["text", "image"]}]}, True, None),
            ({"data": [{"id": "m", "capabilities": {"vision": True}}]}, True, None),
            ({"data": [{"id": "m", "capabilities": ["chat"]}]}, None, None),
            ({"data": [{"id": "m", "type": "model"}, {"id": "n", "type": "vlm"}]}, None, None),
            (
                {"data": [{"model_name": "m", "model_info": {"supports_vision": True}}]},
                True,
                None,
            ),
            ({"models": [{"name": "m", "capabilities": ["completion"]}]}, False, None),
            ({"data": [{"id": "m", "max_model_len": "many", "capabilities": 3}]}, None, None),
            ({"data": [{"id": "m", "max_model_len": True, "type": ["vlm"]}]}, None, None),
            ([], None, None),
            (None, None, None),
        ],
    )
    def test_every_place_is_read(self, document, images, context):
        found = facts([document], "m")
        assert (found.takes_images, found.context) == (images, context)


def longest_side(image: bytes) -> int:
    return max(Image.open(io.BytesIO(image)).size)
