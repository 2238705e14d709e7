"""OpenAI-compatible servers on a real socket, each with the quirks that its users run into."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from dialect_cases import CASES
from fault_server import Connection, FaultServer, Received

__all__ = ["CHAT", "Asked", "ScriptedUpstream", "refused", "scripted"]

CHAT = "/v1/chat/completions"

_DATA_URL = re.compile(r"data:image/(\w+);base64,(.+)", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """One chat request."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def parts(self) -> dict[str, Any]:
        (message,) = self.body["messages"]
        assert message["role"] == "user"
        return {part["type"]: part[part["type"]] for part in message["content"]}

    @property
    def is_question(self) -> bool:
        """Whether it has an image; a request that only has the model loaded has none."""
        return any(not isinstance(m["content"], str) for m in self.body.get("messages", []))

    @property
    def text(self) -> str:
        return self.parts["text"]

    @property
    def kind(self) -> str:
        return _DATA_URL.fullmatch(self.parts["image_url"]["url"])[1]

    @property
    def image(self) -> bytes:
        url = self.parts["image_url"]["url"]
        return base64.b64decode(_DATA_URL.fullmatch(url)[2], validate=True)


Answer: TypeAlias = "str | tuple[int, Any, dict[str, str]]"


def refused(status: int, message: str = "no", **headers: str) -> Answer:
    """An error as all of them word it."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"error": {"message": message, "code": status}}, fields


def completion(text: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@dataclass
class ScriptedUpstream:
    """Answers as its dialect does; `answer` decides what a good request gets."""

    dialect: str
    answer: Callable[[Asked], Answer]
    server: FaultServer
    models: tuple[str, ...] = ("a-model",)
    projector: bool = True
    loading: bool = False
    vision: bool = True

    @property
    def url(self) -> str:
        return self.server.base_url

    @property
    def asked(self) -> list[Asked]:
        chats = [r for r in self.server.requests if r.path == CHAT]
        asked = [Asked(json.loads(r.body), dict(r.headers)) for r in chats]
        return [each for each in asked if each.is_question]

    def behave(self, connection: Connection, request: Received) -> None:
        answer = self._route(request)
        if isinstance(answer, str):
            answer = (200, completion(answer), {})
        status, body, headers = answer
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.reply(status, data, headers, billed=False)

    def _route(self, request: Received) -> Answer:
        case = CASES[self.dialect]
        if self.loading:
            return refused(503, "Loading model")
        if (request.method, request.path) == ("GET", "/v1/models"):
            own = {"owned_by": case.owner, **case.entry}
            return 200, {"object": "list", "data": [{"id": m, **own} for m in self.models]}, {}
        reports = case.vision if self.vision else {**case.vision, **case.text_only}
        if request.path in reports:
            return 200, reports[request.path], {}
        if (request.method, request.path) != ("POST", CHAT):
            return refused(404)
        asked = Asked(json.loads(request.body), dict(request.headers))
        if not asked.is_question:
            return "Hello."
        return self._complaint(asked) or self.answer(asked)

    def _complaint(self, asked: Asked) -> Answer | None:
        url = asked.parts["image_url"]["url"]
        taken = r"data:image/(jpeg|jpg|png|webp);base64,"
        if self.dialect == "ollama" and not re.match(taken, url):
            return refused(400, "invalid image input")
        if self.dialect == "llama.cpp" and not self.projector:
            hint = "you may need to provide the mmproj"
            return refused(500, f"image input is not supported - hint: {hint}")
        if self.dialect == "vllm" and not 0 < asked.body.get("top_p", 1) <= 1:
            return refused(400, "top_p must be in (0, 1]")
        if self.dialect == "vllm" and asked.body["model"] not in self.models:
            return refused(404, f"The model `{asked.body['model']}` does not exist.")
        return None


@contextlib.contextmanager
def scripted(
    dialect: str = "generic", answer: Callable[[Asked], Answer] | Answer = "A cat.", **options: Any
) -> Iterator[ScriptedUpstream]:
    """Run one for the length of a `with` block."""
    decide = answer if callable(answer) else lambda _: answer
    server = FaultServer()
    upstream = ScriptedUpstream(dialect, decide, server, **options)
    server.script = [upstream.behave]
    with server.running():
        yield upstream
