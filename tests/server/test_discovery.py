"""Without `--engine`, the server finds a vision model that another server already runs."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from typer.testing import CliRunner

from dialect_cases import CASES
from fault_server import FaultServer, hang
from gateway import until
from live_server import serve
from phospho_multimodal.cli.main import app
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import create_app
from phospho_multimodal.server import run as serving
from phospho_multimodal.server.engines import discovery, load_engine, state
from phospho_multimodal.server.engines.dialects import DIALECTS
from phospho_multimodal.server.engines.discovery import choose_engine
from phospho_multimodal.server.engines.echo import EchoEngine
from phospho_multimodal.server.engines.openai import UPSTREAM_VARIABLE
from phospho_multimodal.server.engines.upstream import KEY_VARIABLE
from scripted_upstream import refused, scripted

KEY = "sk-upstream-2718281828"


def port_of(url: str) -> int:
    return urlsplit(url).port


@pytest.fixture
def local(monkeypatch):
    """Say which port each server has on localhost; nothing else is looked at."""

    def set_ports(**ports: str) -> None:
        servers = {name.replace("_", "."): port_of(url) for name, url in ports.items()}
        monkeypatch.setattr(discovery, "LOCAL_SERVERS", servers)

    monkeypatch.delenv(UPSTREAM_VARIABLE, raising=False)
    set_ports()
    return set_ports


def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_the_table_has_the_usual_ports():
    ports = {"ollama": 11434, "lmstudio": 1234, "llama.cpp": 8080, "vllm": 8000, "sglang": 30000}
    assert ports == discovery.LOCAL_SERVERS


def test_every_dialect_has_a_row_of_tests():
    assert CASES.keys() == DIALECTS.keys()


@pytest.mark.parametrize("dialect", list(CASES))
def test_a_vision_model_is_found_on_every_kind_of_server(dialect, local):
    with scripted(dialect) as up:
        local(vllm=up.url)
        choice = choose_engine()
    assert choice.engine == "openai"
    assert (choice.options["upstream"], choice.options["model"]) == (f"{up.url}/v1", "a-model")
    assert f"Found the vision model a-model on {DIALECTS[dialect].title}" in choice.notice[0]


@pytest.mark.parametrize("dialect", [name for name, case in CASES.items() if case.text_only])
def test_a_model_that_takes_no_images_is_not_chosen(dialect, local):
    with scripted(dialect, vision=False) as up:
        local(vllm=up.url)
        choice = choose_engine()
        assert up.asked == []
    assert choice.engine == "ocr"
    assert "has no model that takes images" in choice.notice[1]


def test_a_server_that_does_not_report_it_is_asked_for_one_token_about_an_image(local):
    refusing = refused(400, "At most 0 image(s) may be provided in one prompt.")
    with scripted("vllm", refusing) as text_only, scripted("vllm") as vision:
        local(vllm=text_only.url, sglang=vision.url)
        choice = choose_engine()
        assert [asked.body["max_tokens"] for asked in text_only.asked + vision.asked] == [1, 1]
    assert choice.options["upstream"] == f"{vision.url}/v1"


def test_the_first_server_of_the_table_is_chosen(local):
    with scripted("ollama") as first, scripted("llama.cpp") as second:
        local(ollama=first.url, llama_cpp=second.url)
        assert choose_engine().options["upstream"] == f"{first.url}/v1"


class TestWhereThereIsNone:
    def reason(self, local, **ports) -> str:
        local(**ports)
        choice = choose_engine()
        assert (choice.engine, choice.options) == ("ocr", {})
        assert discovery.PULL in choice.notice[2]
        return choice.notice[1]

    def test_nothing_listens(self, local):
        assert "Ollama at http://127.0.0.1:" in (said := self.reason(local, ollama=nobody()))
        assert "(nothing answers)" in said

    def test_the_local_server_itself_is_no_model_server(self, local):
        with serve(create_app(EchoEngine())) as url:
            assert "(lists no models)" in self.reason(local, vllm=url)

    def test_a_server_that_wants_a_key(self, local):
        def unauthorized(connection, request):
            connection.reply(401, b"{}", billed=False)

        with FaultServer(unauthorized).running() as server:
            assert "wants a key" in self.reason(local, vllm=server.base_url)

    def test_a_server_that_loads_its_model(self, local):
        with scripted("llama.cpp", loading=True) as up:
            assert "loading its model" in self.reason(local, llama_cpp=up.url)

    def test_a_server_that_says_nothing(self, local, monkeypatch):
        monkeypatch.setattr(discovery, "_LOOK_SECONDS", 0.2)
        with FaultServer(hang()).running() as server:
            assert "does not answer in time" in self.reason(local, vllm=server.base_url)

    def test_the_own_port_is_not_looked_at(self, local):
        listener = serving.bind("127.0.0.1", 0, api_key=None)
        with contextlib.closing(listener):  # bound, and nobody accepts: a look would hang
            port = listener.getsockname()[1]
            local(vllm=f"http://127.0.0.1:{port}")
            assert str(port) not in choose_engine(skip_port=port).notice[1]


class TestANamedServer:
    def test_the_environment_names_one_that_is_looked_at_first(self, local, monkeypatch):
        with scripted("ollama") as here, scripted("vllm", models=("far",)) as far:
            local(ollama=here.url)
            monkeypatch.setenv(UPSTREAM_VARIABLE, far.url)
            assert choose_engine().options["model"] == "far"

    def test_localhost_is_looked_at_where_it_has_none(self, local, monkeypatch):
        with scripted("ollama") as here:
            local(ollama=here.url)
            monkeypatch.setenv(UPSTREAM_VARIABLE, nobody())
            assert choose_engine().options["upstream"] == f"{here.url}/v1"

    def test_one_on_the_command_line_is_the_only_one_and_has_to_have_it(self, local):
        with scripted("ollama") as here:
            local(ollama=here.url)
            with pytest.raises(ConfigurationError, match="No vision model was found"):
                choose_engine(upstream=nobody())

    def test_a_named_model_has_to_be_there(self, local):
        with scripted("ollama", models=("one", "two")) as up:
            local(ollama=up.url)
            assert choose_engine(model="two").options["model"] == "two"
            with pytest.raises(ConfigurationError, match=r"'three' was not found.*not list it"):
                choose_engine(model="three")

    def test_only_a_named_server_gets_the_key(self, local, monkeypatch):
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        with scripted("llama.cpp") as here, scripted("vllm") as named:
            local(llama_cpp=here.url)
            found = choose_engine()
            load_engine(found.engine, **found.options)
            choose_engine(upstream=named.url)
        assert [r for r in here.server.requests if "authorization" in r.headers] == []
        assert {r.headers["authorization"] for r in named.server.requests} == {f"Bearer {KEY}"}
        assert found.options["use_key"] is False


class TestTheCommands:
    def test_demo_describes_a_photograph_with_the_model_that_was_found(self, local):
        with scripted("llama.cpp") as up:
            local(llama_cpp=up.url)
            result = CliRunner().invoke(app, ["demo"])
            prompts = {asked.text for asked in up.asked}
        assert result.exit_code == 0, result.output
        words = " ".join(result.output.split())
        assert "Found the vision model a-model on llama.cpp" in words
        assert words.count("A cat.") == 2
        assert prompts == {"Describe this photograph in two sentences."}

    def test_a_model_without_images_is_refused_before_the_server_starts(self):
        with scripted("llama.cpp", vision=False) as up:
            arguments = ["--engine", "openai", "--upstream", up.url, "--model", "a-model"]
            result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
        assert result.exit_code == 1
        assert "takes no images. Start llama-server with --mmproj" in " ".join(
            result.output.split()
        )

    def test_the_page_says_what_was_found_and_what_to_do(self, local, client_of):
        choice = choose_engine()
        app_ = create_app(EchoEngine(), notice=choice.notice)
        lines = client_of(app_).get("/playground/about").json()["lines"]
        assert lines == [*choice.notice, "Answers come from the engine echo."]

    def test_the_page_names_the_model_of_the_upstream(self, client_of):
        with scripted("vllm") as up:
            engine = load_engine("openai", upstream=up.url, model="a-model")
            client = client_of(create_app(engine))
            until(lambda: state(engine) == "ok")
            (line,) = client.get("/playground/about").json()["lines"]
        assert line == f"Answers come from the model a-model on vLLM ({up.url})."


@pytest.fixture
def client_of():
    with contextlib.ExitStack() as running:

        def start(application) -> httpx.Client:
            url = running.enter_context(serve(application))
            return running.enter_context(httpx.Client(base_url=url))

        yield start
