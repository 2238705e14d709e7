"""The fault lab's table: what a server can do to a request, and what becomes of it.

One row is one fault, once for each client. `python tests/core/faults.py` prints the table for the
README, which a test compares.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from fault_server import (
    Behaviour,
    Connection,
    answer,
    close_after,
    drip,
    hang,
    prediction,
    raw,
    reset,
    status,
)

__all__ = ["FAULTS", "Fault", "table"]

BODY = prediction("A good answer.")
WITH_NAN = BODY.removesuffix(b"}") + b', "score": NaN}'
HTML = b"<html><head><title>502</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: What the server does.
        script: How it does it; empty for a server that is not there.
        ends: The class of the error, or `an answer`.
        requests: How many requests the server gets.
        billed: Images the ledger has as billed.
        in_doubt: Images the ledger has as in doubt.
        before_body: What it does when the head has come, instead of reading on; the picture sent
            is then one that does not fit into the socket's buffers.
        options: Further options of the client.
    """

    name: str
    script: tuple[Behaviour, ...]
    ends: str
    requests: int = 1
    billed: int = 0
    in_doubt: int = 0
    before_body: Callable[[Connection], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _head(*fields: str, code: int = 200) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} X", *fields, "", ""]).encode()


def _length(body: bytes) -> str:
    return f"content-length: {len(body)}"


def _chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def _flood(connection: Any, request: Any) -> None:
    connection.server.count_billed()
    connection.send(_head("content-length: 999999999"))
    for _ in range(400):
        connection.send(b" " * 100_000)


def _refuse_before_reading(connection: Any) -> None:
    connection.send(_head("content-length: 22", "connection: close", code=413))
    connection.send(b'{"detail":"Too large"}')
    while connection.socket.recv(1 << 20):  # or the client's system would throw the answer away
        pass


LOST = "ReplyLostError"
UNEXPECTED = "UnexpectedReplyError"
FAILED = "ConnectionFailedError"
ANSWER = "an answer"

FAULTS = [
    Fault("nothing listens", (), FAILED, requests=0),
    Fault(
        "speaks no TLS where https is asked",
        (answer(),),
        FAILED,
        requests=0,
        options={"scheme": "https", "timeout": httpx.Timeout(0.2)},
    ),
    Fault(
        "resets while the request is being sent",
        (),
        FAILED,
        requests=0,
        before_body=lambda connection: connection.abort(),
    ),
    Fault(
        "answers 413 before the picture is sent",
        (),
        "InvalidRequestError",
        requests=0,
        before_body=_refuse_before_reading,
    ),
    Fault("resets after the request", (reset(),), LOST, in_doubt=1),
    Fault("closes after the request", (raw(b"", billed=True),), LOST, in_doubt=1),
    Fault(
        "resets in the middle of the headers",
        (raw(b"HTTP/1.1 200 OK\r\ncontent-le", billed=True, then="reset"),),
        LOST,
        in_doubt=1,
    ),
    Fault(
        "resets in the middle of the body",
        (raw(_head(_length(BODY)) + BODY[:20], billed=True, then="reset"),),
        LOST,
        in_doubt=1,
    ),
    Fault(
        "closes in the middle of the body",
        (raw(_head(_length(BODY)) + BODY[:20], billed=True),),
        LOST,
        in_doubt=1,
    ),
    Fault("says nothing", (hang(),), LOST, in_doubt=1, options={"timeout": 0.2}),
    Fault(
        "says nothing until the deadline", (hang(),), LOST, in_doubt=1, options={"deadline": 0.2}
    ),
    Fault(
        "drips its headers past the deadline",
        (drip(_head(_length(BODY)) + BODY),),
        LOST,
        in_doubt=1,
        options={"deadline": 0.3},
    ),
    Fault(
        "drips its body past the deadline",
        (
            lambda connection, request: (
                connection.send(_head(_length(BODY))),
                drip(BODY)(connection, request),
            )[-1],
        ),
        LOST,
        in_doubt=1,
        options={"deadline": 0.3},
    ),
    Fault("answers garbage instead of HTTP", (raw(b"\x00\xff" * 500, billed=True),), LOST, 1, 0, 1),
    Fault(
        "tells two lengths",
        (raw(_head("content-length: 5", "content-length: 6") + BODY, billed=True),),
        LOST,
        in_doubt=1,
    ),
    Fault(
        "tells too great a length",
        (raw(_head(f"content-length: {len(BODY) + 9}") + BODY, billed=True),),
        LOST,
        in_doubt=1,
    ),
    Fault(
        "tells too small a length",
        (raw(_head("content-length: 10") + BODY, billed=True),),
        UNEXPECTED,
        in_doubt=1,
    ),
    Fault(
        "breaks off a chunked body",
        (raw(_head("transfer-encoding: chunked") + _chunked(BODY), billed=True),),
        LOST,
        in_doubt=1,
    ),
    Fault(
        "sends broken chunks",
        (raw(_head("transfer-encoding: chunked") + b"zz\r\n", billed=True),),
        LOST,
        in_doubt=1,
    ),
    Fault(
        "compresses without being asked",
        (
            raw(
                _head("content-encoding: gzip", _length(gzip.compress(BODY, mtime=0)))
                + gzip.compress(BODY, mtime=0),
                billed=True,
            ),
        ),
        ANSWER,
        billed=1,
    ),
    Fault(
        "says gzip and is not",
        (raw(_head("content-encoding: gzip", _length(BODY)) + BODY, billed=True),),
        LOST,
        in_doubt=1,
    ),
    Fault("floods with 40 MB", (_flood,), UNEXPECTED, in_doubt=1),
    Fault(
        "answers HTML with a 200",
        (raw(_head(_length(HTML)) + HTML, billed=True),),
        UNEXPECTED,
        in_doubt=1,
    ),
    Fault(
        "answers HTML with a 502",
        (status(502, HTML, headers={"content-type": "text/html"}),),
        "ServiceError",
        in_doubt=1,
    ),
    Fault(
        "answers well behind a byte order mark",
        (raw(_head(_length(b"\xef\xbb\xbf" + BODY)) + b"\xef\xbb\xbf" + BODY, billed=True),),
        ANSWER,
        billed=1,
    ),
    Fault(
        "answers well beside a number that JSON does not have",
        (raw(_head(_length(WITH_NAN)) + WITH_NAN, billed=True),),
        ANSWER,
        billed=1,
    ),
    Fault(
        "answers well with a wrong content type",
        (answer(headers={"content-type": "image/png"}),),
        ANSWER,
        billed=1,
    ),
    Fault(
        "answers well after 100 and 103",
        (raw(_head(code=100) + _head(code=103) + _head(_length(BODY)) + BODY, billed=True),),
        ANSWER,
        billed=1,
    ),
    Fault(
        "answers well in chunks",
        (
            raw(
                _head("transfer-encoding: chunked") + _chunked(BODY[:5], BODY[5:]) + b"0\r\n\r\n",
                billed=True,
            ),
        ),
        ANSWER,
        billed=1,
    ),
    Fault(
        "answers well as HTTP/1.0",
        (raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY, billed=True),),
        ANSWER,
        billed=1,
    ),
    Fault(
        "closes kept-alive connections after each answer",
        (close_after(answer()),),
        ANSWER,
        requests=3,
        billed=3,
        options={"calls": 3, "pause": 0.05},  # or the request may cross the goodbye
    ),
    Fault("storms with 429", (status(429),), "RateLimitedError", 3),
    Fault("storms with 429, then answers", (status(429), status(429), answer()), ANSWER, 3, 1),
    Fault(
        "redirects elsewhere",
        (status(307, headers={"location": "http://127.0.0.1:9/"}),),
        "APIStatusError",
    ),
    Fault("switches protocols", (raw(_head(code=101), billed=True),), LOST, in_doubt=1),
]


def table() -> str:
    """The lab's table in Markdown."""
    rows = [
        "| The server … | The call ends in | requests | billed | in doubt |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {fault.name} | {_code(fault.ends)} | {fault.requests} | {fault.billed}"
        f" | {fault.in_doubt} |"
        for fault in FAULTS
    ]
    return "\n".join(rows) + "\n"


def _code(ends: str) -> str:
    return ends if ends == ANSWER else f"`{ends}`"


if __name__ == "__main__":
    print(table(), end="")
