"""Real model servers, each in a process of its own, with the Python of `make test-upstreams`."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from phospho_multimodal.server.engines.upstream import KEY_VARIABLE

HERE = Path(__file__).parent
PYTHON = os.environ.get("UPSTREAMS_PYTHON", sys.executable)
PATIENCE = 400.0  # seconds for a server that imports PyTorch on a busy machine

KEY = "sk-a-key-of-the-tests"
"""What litellm asks for; the other servers ask for no key, and do not mind one."""

LITELLM = """\
model_list:
  - model_name: smol
    litellm_params: {{model: openai/smol, api_base: "{url}/v1", api_key: none}}
"""


class Server:
    """One process, and where it listens."""

    def __init__(
        self, process: subprocess.Popen[bytes] | None, url: str, model: str, log: Path
    ) -> None:
        self.process = process
        self.url = url
        self.model = model
        self._log = log

    def wait(self) -> Server:
        """Wait until it lists its models."""
        deadline = time.monotonic() + PATIENCE
        while not self._lists():
            ended = self.process is not None and self.process.poll() is not None
            assert not ended, self._log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)
        return self

    def _lists(self) -> bool:
        headers = {"Authorization": f"Bearer {KEY}"}
        try:
            answer = httpx.get(f"{self.url}/v1/models", headers=headers, timeout=5)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and self.model in answer.text

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """Choose a port below those that the system gives to others: a server binds it much later."""
    while True:
        port = random.randrange(20000, 30000)  # noqa: S311 - no secret
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server from its command, in which `{port}` stands for its port."""
    folder = tmp_path_factory.mktemp("servers")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": KEY,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "engines")]),
    }
    with contextlib.ExitStack() as stack:

        def run(*command: object, model: str, port: int | None = None) -> Server:
            port = port or free_port()
            log = folder / f"{port}-{time.monotonic_ns()}.log"
            words = [str(word).format(port=port) for word in command]
            output = stack.enter_context(log.open("wb"))
            process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)  # noqa: S603
            server = Server(process, f"http://127.0.0.1:{port}", model, log)
            stack.callback(server.kill)
            return server

        yield run


@pytest.fixture(scope="session")
def start_llama(start, tmp_path_factory) -> Callable[..., Server]:
    """Start llama.cpp with SmolLM2, and a projector unless the test says otherwise."""

    def run(
        *, context: int = 2048, slots: int = 2, images: bool = True, port: int | None = None
    ) -> Server:
        projector = tmp_path_factory.mktemp("projector") / "mmproj.gguf"
        options = ["--port", "{port}", "--context", context, "--slots", slots]
        options += ["--projector", projector] if images else []
        return start(PYTHON, HERE / "llama_server.py", *options, model="smol", port=port)

    return run


STARTED_HERE = ["llama", "litellm", "transformers_serve"]


@pytest.fixture(scope="session")
def servers(start, start_llama, tmp_path_factory) -> dict[str, Server]:
    """Start all servers at the same time, because each of them loads for long."""
    if "UPSTREAM_URL" in os.environ:  # a server that was started before, as `with_vllm.sh` does
        url, model = os.environ["UPSTREAM_URL"], os.environ["UPSTREAM_MODEL"]
        return {"started_before": Server(None, url, model, Path(os.devnull))}
    llava = tmp_path_factory.mktemp("llava")
    llama = start_llama()
    config = tmp_path_factory.mktemp("litellm") / "config.yaml"
    config.write_text(LITELLM.format(url=llama.url))
    proxy = [Path(PYTHON).with_name("litellm"), "--config", config, "--host", "127.0.0.1"]
    serve = [PYTHON, HERE / "transformers_server.py", llava, "{port}"]
    started = [llama, start(*proxy, "--port", "{port}", model="smol")]
    return dict(zip(STARTED_HERE, [*started, start(*serve, model=str(llava))], strict=True))


@pytest.fixture(scope="session")
def llama(servers: dict[str, Server]) -> Server:
    return servers["llama"].wait()


@pytest.fixture(params=["started_before"] if "UPSTREAM_URL" in os.environ else STARTED_HERE)
def upstream(
    request: pytest.FixtureRequest, servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> Server:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return servers[request.param].wait()
