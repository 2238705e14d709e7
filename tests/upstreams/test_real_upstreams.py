"""The local server in front of real model servers: llama.cpp, litellm, `transformers serve`."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ImageBlock
from typer.testing import CliRunner

from gateway import ask, gateway, until
from langchain_phospho import ChatPhospho
from llama_index_phospho import PhosphoMultiModal
from phospho_multimodal.batch import describe_many
from phospho_multimodal.cli.main import app
from phospho_multimodal.server.engines import discovery
from phospho_multimodal.server.engines.discovery import choose_engine
from pictures import draw, encoded

# A server that imports PyTorch loads for minutes where other work keeps the cores busy.
pytestmark = pytest.mark.timeout(600)
LOADED = 400.0  # seconds; only a fault lets a model load for longer

# The models answer nonsense, so they get few tokens.
FEW = {"max_new_tokens": 8}


def image(number: int = 0) -> bytes:
    return encoded(draw(60 + number, 40), kind="PNG")


@pytest.fixture
def client(upstream):
    with gateway(upstream.url, model=upstream.model) as connected:
        until(lambda: connected.get("/health").status_code == 200, LOADED)
        yield connected


class TestEveryServer:
    def test_curl_gets_a_description(self, client, tmp_path):
        item = {"text": "What is this?", "image_url": base64.b64encode(image()).decode(), **FEW}
        body = tmp_path / "body.json"
        body.write_text(json.dumps({"model": "phospho-multimodal", "inputs": [item]}))
        url = f"{client.base_url}/v2/predict"
        command = ["curl", "-sS", "--fail", url, "-H", "Content-Type: application/json"]
        answer = subprocess.run([*command, "-d", f"@{body}"], capture_output=True, check=True)  # noqa: S603
        assert json.loads(answer.stdout)["predictions"][0]["description"]

    def test_chat_phospho_gets_an_answer(self, client):
        model = ChatPhospho(base_url=str(client.base_url), **FEW)
        url = f"data:image/png;base64,{base64.b64encode(image()).decode()}"
        block = {"type": "image_url", "image_url": {"url": url}}
        question = HumanMessage([{"type": "text", "text": "What is this?"}, block])
        answer = model.invoke([question])
        assert answer.content
        assert answer.response_metadata["images_billed"] == 1

    def test_phospho_multi_modal_gets_an_answer(self, client):
        llm = PhosphoMultiModal(base_url=str(client.base_url), **FEW)
        assert llm.complete("What is this?", image_documents=[ImageBlock(image=image())]).text

    def test_the_batch_describes_a_folder(self, client, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        for number in range(4):
            (folder / f"{number}.png").write_bytes(image(number))
        options = {"base_url": str(client.base_url), **FEW}
        summary = describe_many(folder, tmp_path / "out", "What is this?", **options)
        assert summary.described == 4

    def test_eight_at_a_time(self, client):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: ask(client, image(n), **FEW), range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8

    def test_all_parameters_are_accepted(self, client):
        given = {**FEW, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.1}
        assert ask(client, image(), **given).status_code == 200

    def test_a_prompt_with_an_image_marker_is_a_prompt(self, client):
        assert ask(client, image(), text="What does <image> mean?", **FEW).status_code == 200

    def test_a_large_image_is_shrunk(self, client):
        assert ask(client, encoded(draw(5000, 4000)), **FEW).status_code == 200


class TestLlamaCpp:
    def test_a_server_that_loads_its_model_is_waited_for(self, start_llama):
        server = start_llama()
        with gateway(server.url, model=server.model) as client:
            assert ask(client, image()).status_code == 503
            until(lambda: client.get("/health").status_code == 200, LOADED)
            assert ask(client, image(), **FEW).status_code == 200
        server.kill()

    def test_a_killed_server_is_noticed_and_so_is_its_return(self, start_llama):
        server = start_llama().wait()
        port = int(server.url.rpartition(":")[2])
        with gateway(server.url, model=server.model) as client:
            until(lambda: client.get("/health").status_code == 200, LOADED)
            server.kill()
            killed = time.monotonic()
            until(lambda: client.get("/health").status_code == 503)
            assert time.monotonic() - killed < 10
            assert ask(client, image()).status_code == 503
            again = start_llama(port=port)
            until(lambda: client.get("/health").status_code == 200, LOADED)
            assert ask(client, image(), **FEW).status_code == 200
        again.kill()

    def test_a_context_that_overflows_is_a_500_and_the_log_says_so(self, llama, caplog):
        with gateway(llama.url, model=llama.model) as client:
            until(lambda: client.get("/health").status_code == 200, LOADED)
            answer = ask(client, image(), text="one two three four five " * 1000, **FEW)
        assert answer.status_code == 500
        assert "context" in caplog.text

    def test_a_model_without_its_projector_is_refused(self, start_llama):
        server = start_llama(images=False).wait()
        arguments = ["--engine", "openai", "--upstream", server.url, "--model", server.model]
        result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
        assert result.exit_code == 1
        assert "--mmproj" in " ".join(result.output.split())
        server.kill()

    def test_demo_finds_it_and_says_so(self, llama, monkeypatch):
        port = int(llama.url.rpartition(":")[2])
        monkeypatch.setattr(discovery, "LOCAL_SERVERS", {"llama.cpp": port})
        result = CliRunner().invoke(app, ["demo"])
        words = " ".join(result.output.split())
        assert result.exit_code == 0, words
        assert "Found the vision model smol on llama.cpp" in words
        assert "LlamaIndex: PhosphoMultiModal" in words


def test_every_server_is_found(upstream):
    choice = choose_engine(upstream=upstream.url)
    assert (choice.engine, choice.options["model"]) == ("openai", upstream.model)
