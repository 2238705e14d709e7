"""Measures what the server costs: its rate with bodies of 1 MB beside FastAPI's, in one run.

    .venv/bin/python tests/server/load_gateway.py [ROUNDS [SECONDS]]

Three servers run in processes of their own with the same uvicorn settings: this server with the
engine echo, FastAPI with the same form and an empty handler, and a handler that only reads the
bytes. They take turns, so that other work of the machine affects all of them. The exit status is 1
if this server keeps less than 0.7 of bare FastAPI's rate.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import orjson
from PIL import Image

BODY_BYTES = 1_000_000
CONNECTIONS = 4
TARGET = 0.7

DOOR = """
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.echo import EchoEngine
app = create_app(EchoEngine())
"""
BARE = """
from fastapi import FastAPI
from phospho_multimodal.contract import PredictRequest, PredictResponse
app = FastAPI()
@app.post("/v2/predict")
async def predict(body: PredictRequest) -> PredictResponse:
    return PredictResponse.model_validate({"predictions": [{"description": "nothing"}]})
"""
BYTES = """
from fastapi import FastAPI, Request
app = FastAPI()
@app.post("/v2/predict")
async def predict(request: Request):
    await request.body()
    return {"predictions": [{"description": "nothing"}]}
"""
SERVING = """
import uvicorn
from phospho_multimodal.server.run import TimeoutProtocol
from phospho_multimodal.server.run import base_url, bind
listener = bind("127.0.0.1", 0, api_key=None)
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(app, http=TimeoutProtocol, access_log=False, log_level="error", ws="none")
uvicorn.Server(config).run(sockets=[listener])
"""
SERVERS = {"this server": DOOR, "bare FastAPI": BARE, "only the bytes": BYTES}


def request_of_a_photo() -> bytes:
    """A whole request whose body is 1 MB: a JPEG of noise, as dense as a photo, in base64."""
    room = BODY_BYTES * 3 // 4 - 200
    side = 800
    while True:
        file = _jpeg(side)
        if len(file) > room:
            break
        side = side * 11 // 10
    while len(file) > room:
        side -= 8
        file = _jpeg(side)
    item = {"text": "What is this?", "image_url": base64.b64encode(file).decode()}
    body = orjson.dumps({"model": "phospho-multimodal", "inputs": [item]})
    head = (
        "POST /v2/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    # Noise is as dense as a photo is.
    noise = Image.effect_noise((side, side), 60).convert("RGB")
    noise.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextlib.contextmanager
def served(app: str) -> Iterator[int]:
    process = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", app + SERVING], stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(30)


def rate(port: int, request: bytes, seconds: float) -> float:
    """Answers per second, over a few connections that never wait for one another."""
    counts: list[int] = []
    end = time.perf_counter() + seconds

    def ask() -> None:
        count = 0
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            while time.perf_counter() < end:
                connection.sendall(request)
                read_answer(connection)
                count += 1
        counts.append(count)

    started = time.perf_counter()
    threads = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) != CONNECTIONS:
        message = "A connection failed; its traceback stands above."
        raise RuntimeError(message)
    return sum(counts) / (time.perf_counter() - started)


def read_answer(connection: socket.socket) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head[:100]
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    request = request_of_a_photo()
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(served(app)) for name, app in SERVERS.items()}
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for port in ports.values():
            rate(port, request, 0.5)  # imports, caches and pools are warm before it counts
        for turn in range(rounds):
            names = list(ports) if turn % 2 else list(reversed(ports))
            for name in names:
                rates[name].append(rate(ports[name], request, seconds))
    bare = rates["bare FastAPI"]
    print(f"{len(request):,} bytes a request, {CONNECTIONS} connections, {os.cpu_count()} cores,")
    print(f"{rounds} rounds of {seconds:g} s each")
    for name, found in rates.items():
        share = statistics.median(one / other for one, other in zip(found, bare, strict=True))
        middle = statistics.median(found)
        spread = f"{min(found):.0f} to {max(found):.0f}"
        print(f"{name:16} {middle:6.0f} requests/s ({spread}), {share:.2f} of bare FastAPI")
        if name == "this server":
            kept = share
    sys.exit(kept < TARGET)


if __name__ == "__main__":
    main()
