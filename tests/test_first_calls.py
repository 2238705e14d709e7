"""The first calls of a process, several at once: what they load on demand is loaded whole."""

from __future__ import annotations

from textwrap import dedent

import pytest

from fault_server import FaultServer
from fresh_python import in_fresh_python
from pictures import encoded

pytestmark = pytest.mark.long

AT_ONCE = 16

LANGCHAIN = """
    import base64
    from langchain_core.messages import HumanMessage
    from langchain_phospho import ChatPhospho
    KIND = "image/jpeg"
    model = ChatPhospho(base_url=BASE_URL, timeout=PATIENT)
    block = {"type": "image", "base64": base64.b64encode(PICTURE).decode(), "mime_type": KIND}
    asked = [HumanMessage([{"type": "text", "text": "What?"}, block])]
"""
LLAMA_INDEX = """
    from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
    from llama_index_phospho import Phospho
    model = Phospho(base_url=BASE_URL, timeout=PATIENT)
    asked = [ChatMessage(blocks=[TextBlock(text="What?"), ImageBlock(image=PICTURE)])]
"""
CALLS = {
    "LangChain, threads": (LANGCHAIN, "on_threads(lambda _: model.invoke(asked).text)"),
    "LangChain, batch": (
        LANGCHAIN,
        "[str(answer.text) for answer in model.batch([asked] * AT_ONCE)]",
    ),
    "LlamaIndex, threads": (
        LLAMA_INDEX,
        "on_threads(lambda _: model.chat(asked).message.content)",
    ),
}

SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
import httpx
PATIENT = httpx.Timeout(60)  # sixteen threads that interrupt each other are slow
sys.setswitchinterval(1e-5)  # whoever loads is interrupted
def on_threads(call):
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(call, range(AT_ONCE)))
"""


@pytest.mark.parametrize(("model", "calls"), CALLS.values(), ids=CALLS)
def test_all_of_the_first_calls_have_their_answer(model: str, calls: str) -> None:
    with FaultServer().running() as server:
        known = (
            f"AT_ONCE, BASE_URL, PICTURE = {AT_ONCE}, {server.base_url!r}, {encoded()!r}\n{SCRIPT}"
        )
        ran = in_fresh_python(f"{known}{dedent(model)}\nprint(len(set({calls})))")
    assert (ran.stdout, ran.stderr) == ("1\n", "")
    assert server.billed == AT_ONCE
