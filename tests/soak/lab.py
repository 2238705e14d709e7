"""The soak's server: one fault in five, chosen by chance with a fixed seed; it counts its bills.

Prints its base URL, answers `GET /count`, and stops when its standard input ends.
"""

from __future__ import annotations

import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from fault_server import Connection, FaultServer, Received, answer, raw, reset, status

FAULTS = [
    status(503),
    status(429, headers={"retry-after": "0"}),
    status(500),
    status(502, b"<html>Bad Gateway</html>"),
    status(504),
    status(400),
    reset(),
    raw(b"", billed=True),
    raw(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{", billed=True),
    raw(b"not HTTP at all\r\n\r\n", billed=True),
    lambda connection, _: connection.reply(200, b'{"predictions": []}', billed=True),
]
GOOD = answer()
RANDOM = random.Random(2026)  # noqa: S311 - which faults, not which secrets


def behave(connection: Connection, request: Received) -> None:
    """Answer well four times out of five."""
    server = connection.server
    if request.method == "GET":
        counts = {"requests": len(server.requests), "billed": server.billed}
        connection.reply(200, json.dumps(counts).encode(), billed=False)
        return
    behaviour = RANDOM.choice(FAULTS) if RANDOM.random() < 0.2 else GOOD
    behaviour(connection, request)
    # Only their number is asked for: a soak's bodies would fill the memory.
    object.__setattr__(request, "body", b"")


if __name__ == "__main__":
    with FaultServer(behave).running() as lab:
        print(lab.base_url, flush=True)
        sys.stdin.read()
