"""What an import loads, and how much memory an image takes. Times belong to the benchmarks."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from random import Random
from types import FrameType
from typing import Any, cast

import httpx
import pybase64
import pytest
from langchain_core.messages import HumanMessage
from PIL import Image

from fault_server import prediction
from fresh_python import in_fresh_python
from langchain_phospho import ChatPhospho
from phospho_multimodal import PhosphoClient

OURS = {"langchain_phospho", "llama_index_phospho", "phospho_multimodal"}
URL = "https://example.com/receipt.jpg"


class AnsweringServer:
    """Answers everything. It reads into one buffer, so that tracemalloc counts no copy of its."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[AnsweringServer]:
        """Serve for the length of a `with` block."""
        accepting = threading.Thread(target=self._accept, daemon=True)
        accepting.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            accepting.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        buffer = bytearray(65536)
        body = prediction("A receipt.")
        response = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        with client:
            client.settimeout(20)
            while self._read_request(client, buffer):
                client.sendall(response)

    @staticmethod
    def _read_request(client: socket.socket, buffer: bytearray) -> bool:
        filled = 0
        while (end := buffer.find(b"\r\n\r\n", 0, filled)) < 0:
            read = client.recv_into(memoryview(buffer)[filled:])
            if not read:
                return False
            filled += read
        length = buffer[:end].lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        missing = int(length) - (filled - end - 4)
        while missing > 0:
            missing -= client.recv_into(buffer, min(missing, len(buffer)))
        return True


@pytest.fixture
def server() -> Iterator[AnsweringServer]:
    with AnsweringServer().running() as running:
        yield running


def peak(ask: Callable[[], Any]) -> int:
    """Measure by how many bytes Python's memory grows at most."""
    tracemalloc.start()
    try:
        begin, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        ask()
        return tracemalloc.get_traced_memory()[1] - begin
    finally:
        tracemalloc.stop()


def langchain_message(image: str) -> HumanMessage:
    block = {"type": "image_url", "image_url": {"url": image}}
    return HumanMessage([{"type": "text", "text": "What is the total?"}, block])


# A model of LangChain's own and httpx, and LlamaIndex's classes and httpx: the least that there is.
FLOORS = {
    "langchain_phospho": """
import httpx
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
""",
    "llama_index_phospho": """
import httpx
import llama_index.core.llms
import llama_index.core.multi_modal_llms
""",
}


@pytest.mark.long
@pytest.mark.parametrize("package", FLOORS)
def test_an_import_loads_only_the_framework_and_httpx_and_modules_of_ours(package: str) -> None:
    ran = in_fresh_python(
        f"import json, sys\n{FLOORS[package]}\nfloor = set(sys.modules)\nimport {package}\n"
        "print(json.dumps(sorted(set(sys.modules) - floor)))"
    )
    assert ran.returncode == 0, ran.stderr
    more = json.loads(ran.stdout)
    # Plain imports, but neither Pillow, SQLite, httpx clients nor agents.
    libraries = {
        "anyio",
        "langchain_core",
        "llama_index",
        "orjson",
        "pybase64",
        "pydantic",
        "sniffio",
    }
    assert {name.partition(".")[0] for name in more} <= OURS | libraries
    assert len(more) <= 80


def noise(size: int) -> bytes:
    """Draw a picture of about so many bytes that is sent as it is: nothing compresses noise."""
    side = int((size / 1.88) ** 0.5)
    file = BytesIO()
    dots = Random(0).randbytes(3 * side * side)  # noqa: S311 - the same in every run, is the point
    drawn = Image.frombytes("RGB", (side, side), dots)
    drawn.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def test_a_large_picture_is_held_as_its_base64_and_little_more(server: AnsweringServer) -> None:
    """Its base64 alone, where the bytes were there; those and the base64, where they were not."""
    picture = noise(9_600_000)
    base64 = pybase64.b64encode_as_string(picture)
    assert len(picture) > 5_000_000
    message = langchain_message(f"data:image/jpeg;base64,{base64}")
    more: Any = {"base_url": server.base_url, "max_image_side": 4096}
    model = ChatPhospho(**more)
    with PhosphoClient(**more) as client:
        ways: dict[str, Callable[[], Any]] = {
            "describe": lambda: client.describe(picture),
            "describe base64": lambda: client.describe(base64),
            "invoke": lambda: model.invoke([message]),
        }
        ratios = {}
        for name, ask in ways.items():
            ask()
            ratios[name] = peak(ask) / len(base64)
    model.close()
    most = {"describe": 1.2, "describe base64": 2.0, "invoke": 2.0}
    assert {name: ratio for name, ratio in ratios.items() if ratio > most[name]} == {}


class Weighing(httpx.BaseTransport):
    """Takes a body as a socket does, and then tells what Python's memory holds."""

    held = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in cast("httpx.SyncByteStream", request.stream):
            pass
        del _
        self.held = tracemalloc.get_traced_memory()[0]
        return httpx.Response(200, content=prediction("A receipt."))


@pytest.mark.parametrize("size", [1_000_000, 9_600_000])
def test_who_waits_for_an_answer_holds_the_base64_and_nothing_else(size: int) -> None:
    base64 = pybase64.b64encode_as_string(noise(size))
    weighing = Weighing()
    with httpx.Client(transport=weighing) as http_client:
        client = PhosphoClient(
            base_url="http://127.0.0.1:9", http_client=http_client, max_image_side=4096
        )
        client.describe(base64)
        tracemalloc.start()
        try:
            client.describe(base64)
        finally:
            tracemalloc.stop()
    assert weighing.held / len(base64) < 1.1


def test_an_image_that_is_sent_again_is_not_inspected_again(server: AnsweringServer) -> None:
    inspected: list[int] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        del argument
        if event == "call" and frame.f_code.co_name == "find_passthrough":
            inspected.append(1)

    image, another = noise(200_000), noise(300_000)
    with PhosphoClient(base_url=server.base_url) as client:
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            for given in (image, another, image, pybase64.b64encode_as_string(image)):
                client.describe(given)
        finally:
            sys.setprofile(before)
    assert len(inspected) == 2


_PROBE = """
import ssl

made = []
make = ssl.SSLContext.__new__

def count(cls, *args, **kwargs):
    made.append(cls)
    return make(cls, *args, **kwargs)

ssl.SSLContext.__new__ = count
from langchain_phospho import ChatPhospho
from llama_index_phospho import Phospho
from phospho_multimodal import PhosphoError

options = {"base_url": "https://127.0.0.1:1", "max_retries": 0}
models = [ChatPhospho(**options), ChatPhospho(**options)]
llms = [Phospho(**options)]
before = len(made)
for model in models:
    try:
        model.invoke([{"role": "user", "content": [{"type": "image_url", "image_url": URL}]}])
    except PhosphoError:
        pass
for llm in llms:
    try:
        llm.chat([ChatMessage(blocks=[ImageBlock(url=URL)])])
    except PhosphoError:
        pass
print(before, len(made))
"""


@pytest.mark.long
def test_one_tls_context_does_for_all_models_and_none_is_made_before_the_first_call() -> None:
    needed = "import langchain_core.language_models.chat_models\n"  # its tracing may make some
    needed += f"from llama_index.core.llms import ChatMessage, ImageBlock\nURL = {URL!r}\n"
    ran = in_fresh_python(needed + _PROBE)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["0", "1"]


def test_an_image_takes_a_short_path_from_its_block_to_the_wire(server: AnsweringServer) -> None:
    """Count the calls of our own functions: fewer layers are easier to follow."""
    model = ChatPhospho(base_url=server.base_url)
    messages = [langchain_message(URL)]
    model.invoke(messages)  # opens a connection
    called: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        model.invoke(messages)
    finally:
        sys.setprofile(before)
    model.close()
    block, wire = called.index("read_content"), called.index("handle_request")
    assert wire - block <= 100
