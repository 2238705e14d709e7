"""The endpoint of the batch soaks with interruptions: a quota, and times when it is away.

    python tests/soak/interrupted_lab.py --quota 20
    python tests/soak/interrupted_lab.py --away-after 500 --away-seconds 30

It prints its base URL and ends when its standard input ends. Over the quota it answers 429. To go
away, it answers the requests in progress, and then refuses connections. `GET /counts` returns what
it billed for each image, `GET /refused` how many requests were over the quota.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import socket
import sys
import threading
import time
from collections import Counter, deque

from batch_lab import answer_to

__all__ = ["InterruptedLab"]


class InterruptedLab:
    """Answers every image after a moment, except over its quota and while it is away."""

    def __init__(self, *, quota: int | None, away_after: int | None, away_seconds: float) -> None:
        self.billed: Counter[str] = Counter()
        self.refused = 0
        self._quota = quota
        self._away_after = away_after
        self._away_seconds = away_seconds
        self._leaving = asyncio.Event()
        self._recent: deque[float] = deque()
        self._writers: set[asyncio.StreamWriter] = set()
        self._answering = 0

    async def run(self, over: asyncio.Event) -> None:
        """Serve until `over` is set, on one port, which is closed while the endpoint is away."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        port = listener.getsockname()[1]
        print(f"http://127.0.0.1:{port}", flush=True)
        server = await asyncio.start_server(self._serve, sock=listener, limit=1 << 20)
        while not over.is_set():
            waits = [asyncio.ensure_future(one.wait()) for one in (over, self._leaving)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if over.is_set():
                break
            server.close()
            while self._answering:  # noqa: ASYNC110 - a script
                await asyncio.sleep(0.01)
            for writer in list(self._writers):
                writer.close()
            await asyncio.sleep(self._away_seconds)
            self._leaving.clear()
            server = await asyncio.start_server(
                self._serve, "127.0.0.1", port, limit=1 << 20, backlog=1024
            )
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length.strip() or 0))
                self._answering += 1
                try:
                    status, answer = await self._answer(head.split(b" ", 2), body)
                    self._reply(writer, status, answer)
                    await writer.drain()
                finally:
                    self._answering -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has closed the connection
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, head: list[bytes], body: bytes) -> tuple[int, object]:
        if head[0] == b"GET":
            looks = {"/counts": self.billed, "/refused": self.refused}
            return 200, looks.get(head[1].decode(), {"models": ["phospho-multimodal"]})
        asked = json.loads(body)
        if not asked["model"].startswith("phospho-multimodal"):
            return 400, {"detail": "Model not supported."}
        if self._is_over_quota():
            self.refused += 1
            return 429, {"detail": "Too many requests."}
        sha256 = hashlib.sha256(base64.b64decode(asked["inputs"][0]["image_url"])).hexdigest()
        await asyncio.sleep(0.02)
        self.billed[sha256] += 1
        if self._away_after is not None and self.billed.total() == self._away_after:
            self._leaving.set()
        return 200, {"predictions": [{"description": answer_to(sha256)}]}

    def _is_over_quota(self) -> bool:
        if self._quota is None:
            return False
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - 1.0:
            self._recent.popleft()
        if len(self._recent) >= self._quota:
            return True
        self._recent.append(now)
        return False

    def _reply(self, writer: asyncio.StreamWriter, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        fields = f"content-length: {len(body)}\r\n"
        if status == 429:
            fields += "retry-after: 1\r\n"
        if self._leaving.is_set():
            fields += "connection: close\r\n"
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode() + body)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quota", type=int)
    parser.add_argument("--away-after", type=int)
    parser.add_argument("--away-seconds", type=float, default=30.0)
    options = parser.parse_args()
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait, daemon=True).start()
    lab = InterruptedLab(
        quota=options.quota, away_after=options.away_after, away_seconds=options.away_seconds
    )
    await lab.run(over)


if __name__ == "__main__":
    asyncio.run(_main())
