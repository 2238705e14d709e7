"""The server of the batch's soak: it counts what it bills, by picture, and fails once in a while.

    python tests/soak/batch_lab.py --faults 0.1 --seconds 0.05

Prints its base URL and stops when its standard input ends. `GET /count` tells how many predictions
it billed, `GET /counts` how many for each picture (by the digest of what was sent), `GET /times`
when requests came. The answer to a picture is always the same. `--refuse-after 20` answers 402 from
the 21st on.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import hashlib
import json
import random
import socket
import sys
import threading
import time
from collections import Counter

__all__ = ["Lab", "answer_to"]

_HTML = b"<html>Bad Gateway</html>"


def answer_to(sha256: str) -> str:
    """What is answered about a picture."""
    return f"A picture whose digest begins with {sha256[:16]}."


class Lab:
    """The server's counts and its ways to fail."""

    def __init__(
        self, faults: float, seconds: float, seed: int, refuse_after: int | None = None
    ) -> None:
        self.billed: Counter[str] = Counter()
        self.requests = 0
        self.times: list[float] = []
        self._faults = faults
        self._seconds = seconds
        self._refuse_after = refuse_after
        self._random = random.Random(seed)  # noqa: S311 - which faults, not which secrets

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests."""
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # nobody asks for the outcome of this task
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        method, path, _ = head.split(b" ", 2)
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
        body = await reader.readexactly(int(length or 0))
        if method == b"GET":
            self._reply(writer, 200, self._look(path.decode()))
            return True
        asked = json.loads(body)
        if not asked["model"].startswith("phospho-multimodal"):
            self._reply(writer, 400, {"detail": "Model not supported."})
            return True
        self.requests += 1
        self.times.append(time.time())
        if self._refuse_after is not None and self.requests > self._refuse_after:
            self._reply(writer, 402, {"detail": "No billing method."})
            return True
        url = asked["inputs"][0]["image_url"]
        picture = url.encode() if url.startswith("http") else base64.b64decode(url)
        sha256 = hashlib.sha256(picture).hexdigest()
        await asyncio.sleep(self._seconds)
        if self._random.random() < self._faults:
            return self._fail(writer, sha256)
        self.billed[sha256] += 1
        self._reply(writer, 200, {"predictions": [{"description": answer_to(sha256)}]})
        return True

    def _look(self, path: str) -> object:
        if path == "/count":
            return {"billed": self.billed.total(), "requests": self.requests}
        if path == "/counts":
            return self.billed
        if path == "/times":
            return self.times
        return {"status": "ok"} if path == "/health" else {"models": ["phospho-multimodal"]}

    def _fail(self, writer: asyncio.StreamWriter, sha256: str) -> bool:
        kind = self._random.choice(["429", "500", "503", "502", "504", "reset", "half"])
        if kind in {"502", "504", "reset", "half"}:  # the prediction was made, and is billed
            self.billed[sha256] += 1
        if kind == "reset":
            transport = writer.transport
            transport.abort()
            return False
        if kind == "half":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{")
            return False
        self._reply(writer, int(kind), {"detail": "Not now."}, retry_after="0")
        return True

    @staticmethod
    def _reply(
        writer: asyncio.StreamWriter, status: int, told: object, *, retry_after: str | None = None
    ) -> None:
        body = json.dumps(told).encode()
        fields = f"content-length: {len(body)}\r\n"
        if retry_after is not None and status in {429, 503}:
            fields += f"retry-after: {retry_after}\r\n"
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode() + body)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--refuse-after", type=int)
    options = parser.parse_args()
    lab = Lab(options.faults, options.seconds, options.seed, options.refuse_after)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = await asyncio.start_server(lab.serve, sock=listener, limit=1 << 20)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait, daemon=True).start()
    gc.freeze()
    await over.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(_main())
