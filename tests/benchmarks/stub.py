"""A server with the three endpoints of the contestants, which takes almost no CPU.

It runs in its own process, reads each body into the same buffer, and answers with prepared bytes.
With `--check`, it keeps the body and answers with its content.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import hashlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

__all__ = ["ANSWER", "running_stub", "seen"]

ANSWER = "A receipt of a bakery: the total is 7.30."

_BUFFER = 1024 * 1024
_END = b"\r\n\r\n"


def seen(text: str, image: str | bytes) -> str:
    """What the checking server answers to a question about an image: bytes, or a URL."""
    content = image if isinstance(image, bytes) else image.encode()
    return f"{hashlib.sha256(content).hexdigest()} {text}"


def phospho_answer(text: str) -> dict[str, Any]:
    return {"predictions": [{"description": text}]}


def openai_answer(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
    }


def anthropic_answer(text: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 12},
    }


ENDPOINTS = {
    "/v2/predict": phospho_answer,
    "/v1/chat/completions": openai_answer,
    "/v1/messages": anthropic_answer,
}


def _strings(value: Any) -> Iterator[str]:
    """Every string of a body, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _what_arrived(body: bytes) -> str:
    """Find question and image in a body of any of the three forms."""
    strings = list(_strings(json.loads(body)))
    text = next(string for string in strings if string.endswith("?"))
    urls = [string for string in strings if string.startswith("http")]
    if urls:
        return seen(text, urls[0])
    return seen(text, base64.b64decode(max(strings, key=len).rpartition(",")[2], validate=True))


def _response(path: str, text: str) -> bytes:
    body = json.dumps(ENDPOINTS[path](text)).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.BufferedProtocol):
    """One connection: requests one after the other, each with a Content-Length."""

    ready: ClassVar = {path: _response(path, ANSWER) for path in ENDPOINTS}

    def __init__(self, *, delay: float, check: bool) -> None:
        self._delay = delay
        self._check = check
        self._buffer = memoryview(bytearray(_BUFFER))
        self._begin()

    def _begin(self) -> None:
        self._head = b""
        self._path = ""
        self._left = 0
        self._kept: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._path:
            rest = nbytes
            if self._check:
                self._kept.append(bytes(self._buffer[:nbytes]))
        else:
            self._head += self._buffer[:nbytes]
            head, end, body = self._head.partition(_END)
            if not end:
                return
            lines = head.decode("latin-1").lower().split("\r\n")
            self._path = lines[0].split(" ")[1]
            fields = dict(line.split(": ", 1) for line in lines[1:])
            self._left = int(fields["content-length"])
            self._kept = [body]
            rest = len(body)
        self._left -= rest
        if self._left <= 0:
            self._answer()

    def _answer(self) -> None:
        response = self.ready[self._path]
        if self._check:
            response = _response(self._path, _what_arrived(b"".join(self._kept)))
        self._begin()
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, response)
        else:
            self._transport.write(response)


async def _serve(*, delay: float, check: bool, certificate: str | None) -> None:
    loop = asyncio.get_running_loop()
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await loop.create_server(
        lambda: Connection(delay=delay, check=check), "127.0.0.1", 0, backlog=256, ssl=context
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    # Whoever started this holds the other end: it ends with them, however they end.
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def running_stub(
    certificate: str | Path | None = None, *, delay: float = 0.0, check: bool = False
) -> Iterator[str]:
    """Run a server in its own process, with TLS if there is a certificate. Yield its base URL."""
    command = [sys.executable, __file__, f"--delay={delay}", *(["--check"] if check else [])]
    if certificate is not None:
        command.append(f"--certificate={certificate}")
    scheme = "http" if certificate is None else "https"
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"{scheme}://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.stdin.close()
            process.wait(timeout=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--certificate")
    options = parser.parse_args()
    gc.disable()
    if hasattr(os, "sched_setaffinity"):  # the clients are on the first core
        os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    asyncio.run(_serve(delay=options.delay, check=options.check, certificate=options.certificate))


if __name__ == "__main__":
    main()
