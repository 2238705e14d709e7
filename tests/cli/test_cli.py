"""The four commands, against real servers on the loopback."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from fault_server import Connection, FaultServer, Received, answer
from fresh_python import in_fresh_python
from live_server import serve
from phospho_multimodal import __version__
from phospho_multimodal.cli.main import app
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import InputImage, Question, discovery
from phospho_multimodal.server.engines.echo import EchoEngine
from phospho_multimodal.server.engines.openai import UPSTREAM_VARIABLE

CLI = [sys.executable, "-c", "from phospho_multimodal.cli.main import main; main()"]


class PaletteEngine:
    """Answers with a picture's first pixel; fails for black."""

    name = "palette"

    def __init__(self, answer: str = "{pixel}") -> None:
        self._answer = answer
        self.asked: list[str] = []

    def describe(self, picture: InputImage, question: Question) -> str:
        self.asked.append(question.text)
        pixel = picture.pixels.getpixel((0, 0))
        if pixel == (0, 0, 0):
            raise ValueError
        return self._answer.format(pixel=pixel)


@pytest.fixture(autouse=True)
def no_model_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine runs, the tests without one find none."""
    monkeypatch.setattr(discovery, "LOCAL_SERVERS", {})
    monkeypatch.delenv(UPSTREAM_VARIABLE, raising=False)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, str]:
    """Make files to ask about: name → path."""
    paths = {}
    for colour in ("red", "blue", "black"):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", (8, 8), colour).save(path)
        paths[colour] = str(path)
    text = tmp_path / "text.png"
    text.write_text("this is text")
    return {**paths, "text": str(text), "missing": str(tmp_path / "missing.png")}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def words(result: Result) -> str:
    """Read what was printed without the table's lines and the terminal's line breaks."""
    return " ".join(re.sub(r"[─-╿]", " ", result.output).split())


def cells(result: Result, column: int) -> str:
    """Read a column of the table below its heading, all on one line."""
    lines = [line.split("│") for line in result.output.splitlines() if line.startswith("│")]
    return " ".join(line[column].strip() for line in lines)


LONG_URL = f"https://shop.example.com/order/2026/confirm?token={'9f8e7d6c5b4a' * 7}&lang=de"
CHINESE = "这是一张收据。上海第一百货公司。牛奶十二元五角。面包八元。合计三十六元三角。" * 3


class TestDescribe:
    def test_it_prints_picture_answer_cost_and_the_total(self, pictures):
        engine = PaletteEngine()
        with serve(create_app(engine)) as base_url:
            result = run("describe", pictures["red"], "--base-url", base_url, "--prompt", "Hm?")
        assert result.exit_code == 0, result.output
        assert engine.asked == ["Hm?"]
        assert "(255, 0, 0)" in words(result)
        assert "$0.01" in words(result)
        assert "List price: $0.01" in words(result)

    def test_several_pictures_keep_their_order(self, pictures):
        with serve(create_app(PaletteEngine())) as base_url:
            paths = [pictures["red"], pictures["blue"]] * 3
            result = run("describe", *paths, "--base-url", base_url)
        assert result.exit_code == 0, result.output
        answers = re.findall(r"\(\d+, \d+, \d+\)", words(result))
        assert answers == ["(255, 0, 0)", "(0, 0, 255)"] * 3
        assert "List price: $0.06" in words(result)

    def test_a_picture_that_fails_is_a_row_and_stops_no_other(self, pictures):
        with serve(create_app(PaletteEngine())) as base_url:
            names = ("text", "missing", "black", "red")
            result = run("describe", *(pictures[n] for n in names), "--base-url", base_url)
        assert result.exit_code == 1
        answers = cells(result, 2)
        assert "This is text" in answers
        assert "cannot be read" in answers
        assert "An error occurred while generating predictions" in answers
        assert "(255, 0, 0)" in answers
        assert "List price: $0.01" in words(result)

    @pytest.mark.parametrize(
        ("server", "message"),
        [
            pytest.param({"api_key": "the right one"}, "Invalid token", id="401"),
            pytest.param({"billing": False}, "payment method", id="402"),
        ],
    )
    def test_what_would_fail_for_all_stops_the_rest(self, pictures, server, message):
        engine = PaletteEngine()
        with serve(create_app(engine, **server)) as base_url:
            arguments = ("--base-url", base_url, "--api-key", "a wrong one")
            result = run("describe", *[pictures["red"]] * 12, *arguments)
        assert result.exit_code == 1
        assert message in words(result)
        assert "Not sent." in words(result)
        assert engine.asked == []

    def test_a_server_that_is_something_else_stops_the_rest(self, pictures):
        async def elsewhere(scope, receive, send):
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"nothing here"})

        with serve(elsewhere, lifespan="off") as base_url:
            result = run("describe", *[pictures["red"]] * 12, "--base-url", base_url)
        assert result.exit_code == 1
        assert "Not sent." in words(result)

    def test_the_cap_stops_it_before_more_is_spent(self, pictures):
        engine = PaletteEngine()
        with serve(create_app(engine)) as base_url:
            arguments = ("--base-url", base_url, "--max-usd", "0.02")
            result = run("describe", *[pictures["red"]] * 12, *arguments)
        assert result.exit_code == 1
        assert len(engine.asked) == 2
        assert "A server on localhost bills nothing. List price: $0.02." in words(result)
        assert "cap of $0.02" in words(result)

    def test_an_image_can_be_a_url(self):
        with FaultServer(answer("A cat.")).running() as server:
            result = run("describe", "https://example.com/cat.jpg", "--base-url", server.base_url)
        assert "A cat." in words(result)
        assert server.requests[0].item["image_url"] == "https://example.com/cat.jpg"

    def test_without_a_key_for_an_endpoint_elsewhere_it_says_so(self, pictures):
        result = run("describe", pictures["red"], "--base-url", "https://phospho.example")
        assert result.exit_code == 1
        assert "PHOSPHO_API_KEY" in words(result)

    def test_an_answer_cannot_command_the_terminal(self, pictures):
        engine = PaletteEngine("[bold]plain[/bold] \x1b[2Jcleared \x07")
        with serve(create_app(engine)) as base_url:
            result = run("describe", pictures["red"], "--base-url", base_url)
        assert "[bold]plain[/bold]" in words(result)
        assert "\x1b" not in result.output
        assert "\x07" not in result.output

    @pytest.mark.parametrize(
        "answer", [pytest.param(LONG_URL, id="a URL"), pytest.param(CHINESE, id="Chinese")]
    )
    def test_what_has_no_blank_to_break_at_is_shown_whole(self, pictures, answer):
        with serve(create_app(PaletteEngine(answer))) as base_url:
            result = run("describe", pictures["red"], "--base-url", base_url)
        assert result.exit_code == 0, result.output
        shown = [cells(result, column).replace(" ", "") for column in (1, 2, 3)]
        assert shown == [pictures["red"].replace(" ", ""), answer, "$0.01"]

    @pytest.mark.long
    def test_after_ctrl_c_what_was_paid_for_is_shown(self, pictures):
        def slowly(connection: Connection, request: Received) -> None:
            time.sleep(3)
            answer("A late answer.")(connection, request)

        with FaultServer(answer("An answer."), answer("An answer."), slowly).running() as server:
            command = [*CLI, "describe", *[pictures["red"]] * 20, "--base-url", server.base_url]
            with subprocess.Popen(  # noqa: S603 - our own command
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                server.wait_for_requests(6)  # two are answered, four wait
                process.send_signal(signal.SIGINT)
                shown, told = process.communicate(timeout=60)
            assert process.returncode == 130, told
            assert server.billed == 6
        assert shown.count("An answer.") == 2
        assert shown.count("A late answer.") == 4
        assert shown.count("Not sent.") == 14
        assert "List price: $0.06" in shown
        assert "waiting for the requests in progress" in told
        assert "Traceback" not in told


class TestCheck:
    def test_a_good_key_is_accepted_and_nothing_is_asked(self):
        engine = PaletteEngine()
        with serve(create_app(engine, api_key="right")) as base_url:
            result = run("check", "--base-url", base_url, "--api-key", "right")
        assert result.exit_code == 0, result.output
        assert "Key accepted" in words(result)
        assert "Models phospho-multimodal" in words(result)
        assert "$10 per 1,000" in words(result)
        assert base_url in words(result)
        assert engine.asked == []

    def test_a_check_without_a_key_says_that_none_was_sent(self):
        with serve(create_app(EchoEngine())) as base_url:
            result = run("check", "--base-url", base_url)
        assert "Key none sent, and none needed" in words(result)

    def test_a_base_url_that_ends_in_a_version_is_named(self):
        with serve(create_app(EchoEngine())) as base_url:
            result = run("check", "--base-url", f"{base_url}/v1")
        assert "Set the base URL without /v1." in words(result)

    def test_a_bad_key_is_told_and_is_not_shown(self):
        with serve(create_app(EchoEngine(), api_key="right")) as base_url:
            result = run("check", "--base-url", base_url, "--api-key", "wrong-and-secret")
        assert result.exit_code == 1
        assert "Key not accepted" in words(result)
        assert "wrong-and-secret" not in result.output

    def test_nobody_there_is_told(self):
        with serve(create_app(EchoEngine())) as base_url:
            pass
        result = run("check", "--base-url", base_url)
        assert result.exit_code == 1
        assert "Reachable no" in words(result)

    def test_a_long_address_is_shown_whole(self):
        with serve(create_app(EchoEngine())) as base_url:
            pass
        address = f"{base_url}/{'behind-a-gateway/' * 8}v1"
        result = run("check", "--base-url", address)
        assert f"Endpoint{address}" in "".join(result.output.split())


class TestServe:
    @pytest.mark.long
    def test_it_serves_until_it_is_interrupted(self, tmp_path):
        command = [*CLI, "serve", "--port", "0", "--engine", "echo"]
        with subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                greeting = process.stdout.readline()
                base_url = re.search(r"http://127\.0\.0\.1:\d+", greeting)[0]
                health = httpx.get(base_url + "/health", timeout=30)
            finally:
                process.send_signal(signal.SIGINT)
                rest, _ = process.communicate(timeout=30)
        assert health.json() == {"status": "ok", "engine": "echo"}
        assert "asking for no key" in greeting
        assert process.returncode == 0, rest
        assert "Traceback" not in rest

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            pytest.param(["--host", "0.0.0.0"], "needs a key", id="open to all"),  # noqa: S104
            pytest.param(["--engine", "llava"], "echo, ocr", id="an unknown engine"),
        ],
    )
    def test_what_cannot_be_served_is_one_sentence(self, arguments, message):
        result = run("serve", "--engine", "echo", "--port", "0", *arguments)
        assert result.exit_code == 1
        assert message in words(result)

    def test_a_taken_port_is_one_sentence(self):
        with serve(create_app(EchoEngine())) as base_url:
            result = run("serve", "--engine", "echo", "--port", base_url.rpartition(":")[2])
        assert result.exit_code == 1
        assert "Choose another with --port" in words(result)

    def test_an_empty_key_in_the_environment_is_none(self, monkeypatch):
        monkeypatch.setenv("PHOSPHO_SERVER_API_KEY", "")
        result = run("serve", "--engine", "echo", "--host", "192.0.2.1")
        assert result.exit_code == 1
        assert "needs a key" in words(result)


class TestDemo:
    def test_it_reads_its_picture_through_both_frameworks(self):
        result = run("demo")
        assert result.exit_code == 0, result.output
        text = "CORNER BAKERY 12 March 2026 2 Croissant 3.20 1 Coffee 2.80 Total 6.00 Thank you"
        assert words(result).count(text) == 2
        assert words(result).count('"images_billed": 1') == 2
        assert "LangChain: ChatPhospho" in words(result)
        assert "LlamaIndex: PhosphoMultiModal" in words(result)
        assert "No vision model was found" in words(result)
        assert "ollama pull" in words(result)

    @pytest.mark.long
    def test_it_takes_a_picture_of_ones_own(self, pictures):
        result = run("demo", "--image", pictures["blue"])
        assert result.exit_code == 0, result.output
        assert words(result).count("blue (100 %)") == 2

    def test_a_picture_that_is_not_there_is_told(self, pictures):
        result = run("demo", "--image", pictures["missing"])
        assert result.exit_code == 2
        assert "does not exist" in words(result)


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_extra_the_command_names_it(package):
    result = in_fresh_python(
        f"import sys; sys.modules[{package!r}] = None; import phospho_multimodal.cli.main"
    )
    assert result.returncode == 1
    assert "phospho-multimodal[cli]" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.long
def test_the_client_commands_need_no_server():
    result = in_fresh_python(
        "import sys, phospho_multimodal.cli.main\n"
        "print({'fastapi', 'uvicorn', 'numpy', 'langchain_core', 'llama_index'} & set(sys.modules))"
    )
    assert result.stdout == "set()\n", result.stderr


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["serve"], ["describe"], ["batch"], ["check"], ["demo"]])
def test_every_help_text_shows_its_options_and_defaults(command, flag):
    result = run(*command, flag)
    assert result.exit_code == 0, result.output
    group = typer.main.get_command(app)
    parameters = (group.commands[command[0]] if command else group).params
    shown = "".join(result.output.split())
    for parameter in parameters:
        if parameter.param_type_name == "option" and not parameter.hidden:
            assert max(parameter.opts, key=len)[:24] in shown
            assert parameter.help, parameter.name
        if parameter.envvar:
            assert f"[envvar:{parameter.envvar}]" in shown.replace("│", "")


def test_the_version_is_printed():
    assert run("--version").output.strip() == f"phospho-multimodal {__version__}"
