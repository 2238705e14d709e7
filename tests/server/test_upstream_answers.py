"""What the gateway sends to model servers, and how it reads their answers."""

from __future__ import annotations

import codecs
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway import PROMPT, ask, gateway
from phospho_multimodal.server.engines.chat import plain_text
from phospho_multimodal.server.engines.concurrency import LearnedConcurrency
from phospho_multimodal.server.engines.upstream import Upstream
from scripted_upstream import completion, refused, scripted


def message(**fields):
    reason = fields.pop("finish_reason", "stop")
    choice = {"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": reason}
    return {"choices": [choice]}


A_CAT = completion("A cat.")
WITH_BOM = codecs.BOM_UTF8 + json.dumps(A_CAT).encode()
EVENTS = b'data: {"choices": [{"delta": {"content": "A cat."}}]}\n\ndata: [DONE]\n\n'


class TestAnAnswerInAnotherForm:
    @pytest.mark.parametrize(
        "body",
        [
            completion([{"type": "text", "text": "A cat."}]),
            completion([{"type": "text", "text": "A "}, {"type": "text", "text": "cat."}]),
            completion(
                [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A cat."}]
            ),
            completion([{"type": "output_text", "text": "A cat.", "annotations": []}]),
            completion([{"text": "A cat."}]),
            completion(["A cat."]),
            completion([{"type": "text", "text": {"value": "A cat."}}]),
            WITH_BOM,
            json.dumps(A_CAT).encode("utf-16"),
            json.dumps({**A_CAT, "usage": float("nan")}).encode(),
        ],
    )
    def test_it_is_an_answer(self, body):
        with scripted("generic", (200, body, {})) as up, gateway(up.url) as client:
            assert ask(client).json() == {"predictions": [{"description": "A cat."}]}

    def test_half_an_emoji_is_replaced(self):
        body = json.dumps(completion("A cat \ud83d")).encode()
        with scripted("generic", (200, body, {})) as up, gateway(up.url) as client:
            assert ask(client).json() == {"predictions": [{"description": "A cat \ufffd"}]}

    def test_an_answer_with_status_201_is_an_answer(self):
        with scripted("generic", (201, A_CAT, {})) as up, gateway(up.url) as client:
            assert ask(client).status_code == 200

    def test_an_answer_in_the_form_of_another_api_is_not_in_the_log(self, caplog):
        body = {"message": {"role": "assistant", "content": "A cat."}, "done": True}
        with scripted("ollama", (200, body, {})) as up, gateway(up.url) as client:
            assert ask(client).status_code == 500
        assert "has no choices[0].message.content" in caplog.text
        assert "A cat" not in caplog.text

    @pytest.mark.parametrize(
        ("body", "kind", "reason"),
        [
            ({"error": {"message": "model crashed"}}, "", "holds an error: model crashed"),
            ({"error": "model crashed"}, "", "holds an error: model crashed"),
            ({"detail": "model crashed"}, "", "holds an error: model crashed"),
            ({"object": "error", "message": "model crashed"}, "", "holds an error: model crashed"),
            (
                {"choices": [{"error": {"message": "model crashed", "code": 400}, "message": {}}]},
                "",
                "holds an error: model crashed",
            ),
            ({"choices": [], "error": {"code": "x"}}, "", "holds an error"),
            (message(content=None, tool_calls=[{"id": "1"}]), "", "called a tool"),
            (message(content="", finish_reason="tool_calls"), "", "called a tool"),
            (message(content=None, function_call={"name": "f"}), "", "called a tool"),
            (message(content=None, refusal="I can't help."), "", "refused to answer"),
            (message(content="", finish_reason="content_filter"), "", "content filter"),
            (EVENTS, "text/event-stream", "event stream (SSE)"),
            (EVENTS, "", "event stream (SSE)"),
            (b": ping\n\n" + EVENTS, "", "event stream (SSE)"),
            (codecs.BOM_UTF8 + b"no", "", "not JSON"),
            (b"<html>Welcome to nginx!</html>", "text/html", "HTML page"),
            (b"", "", "empty"),
            (message(content=[{"type": "thinking", "thinking": "Hm."}]), "", "empty"),
            (message(content={"text": "A cat."}), "", "empty"),
            (message(), "", "empty"),
        ],
    )
    def test_without_an_answer_it_is_a_500_and_the_log_has_the_reason(
        self, body, kind, reason, caplog
    ):
        headers = {"content-type": kind} if kind else {}
        with scripted("generic", (200, body, headers)) as up, gateway(up.url) as client:
            assert ask(client).status_code == 500
        assert reason in caplog.text
        assert 'File "' not in caplog.text
        assert PROMPT not in caplog.text

    def test_the_log_repeats_no_prompt_from_an_error_inside_a_200(self, caplog):
        body = {"error": {"message": f"cannot answer {PROMPT}"}}
        with scripted("generic", (200, body, {})) as up, gateway(up.url) as client:
            assert ask(client).status_code == 500
        assert "cannot answer" in caplog.text
        assert "third line" not in caplog.text

    @pytest.mark.parametrize("code", [429, "503", 529])
    def test_an_error_inside_a_200_that_passes_is_a_503(self, code):
        body = {"error": {"message": "overloaded", "code": code}}
        with scripted("generic", (200, body, {})) as up, gateway(up.url) as client:
            assert ask(client).status_code == 503


def test_a_status_that_passes_by_itself_is_a_503():
    statuses = [408, 425, 429, 502, 503, 504, *range(520, 530)]
    left = list(statuses)
    with (
        scripted("vllm", lambda _: refused(left.pop(0), retry_after="7")) as up,
        gateway(up.url) as client,
    ):
        answers = [ask(client) for _ in statuses]
    assert {(a.status_code, a.headers["retry-after"]) for a in answers} == {(503, "7")}


class TestParametersThatAModelRejects:
    @pytest.mark.parametrize(
        ("rejected", "error"),
        [
            ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."),
            ("top_p", "Unsupported parameter: 'top_p' is not supported with this model."),
            ("temperature", "Unsupported value: 'temperature' does not support 0.5."),
            ("top_p", "`temperature` and `top_p` cannot both be specified for this model."),
            ("top_p", "top_p: Extra inputs are not permitted"),
            ("temperature", "temperature is deprecated for this model"),
        ],
    )
    def test_it_is_sent_without_them_from_then_on(self, rejected, error, caplog):
        status = 422 if "Extra inputs" in error else 400

        def answer(asked):
            return refused(status, error) if rejected in asked.body else "A cat."

        with scripted("generic", answer) as up, gateway(up.url) as client:
            for _ in range(2):
                given = {"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 7}
                assert ask(client, **given).status_code == 200
            bodies = [asked.body for asked in up.asked]
        assert [rejected in body for body in bodies] == [True, False, False]
        assert 7 in (bodies[-1].get("max_tokens"), bodies[-1].get("max_completion_tokens"))
        assert caplog.text.count(f"rejects {rejected}") == 1

    def test_several_are_found_one_after_another(self):
        def answer(asked):
            for name in ("max_tokens", "temperature", "top_p"):
                if name in asked.body:
                    return refused(400, f"Unrecognized request argument supplied: {name}")
            return "A cat."

        with scripted("generic", answer) as up, gateway(up.url) as client:
            assert ask(client, temperature=0.5, top_p=0.9).status_code == 200

    @pytest.mark.parametrize(
        "error",
        [
            "This model's maximum context length is 2048 tokens. Reduce max_tokens.",
            "At most 0 image(s) may be provided in one prompt.",
            "Unsupported parameter: 'stream'.",
            "max_completion_tokens is not supported",
        ],
    )
    def test_another_error_is_not_tried_again(self, error):
        with scripted("generic", refused(400, error)) as up, gateway(up.url) as client:
            assert ask(client).status_code == 500
            assert len(up.asked) == 1

    def test_an_unknown_server_gets_only_what_was_set(self):
        with scripted("generic") as up, gateway(up.url) as client:
            ask(client, temperature=0.5)
            ask(client, top_p=0.5)
            first, second = up.asked
        assert first.body.keys() == {"model", "stream", "messages", "max_tokens", "temperature"}
        assert second.body.keys() == {"model", "stream", "messages", "max_tokens", "top_p"}


class TestMarkersInAPrompt:
    @pytest.mark.parametrize(
        "marker",
        [
            "<image>",
            "</image>",
            "<IMAGE>",
            "<img>",
            "<image_1>",
            "<|image_1|>",
            "<|image|>",
            "<|image_pad|>",
            "<|vision_start|>",
            "<__media__>",
            "<video>",
            "<image_soft_token>",
            "<start_of_image>",
            "<IMG_CONTEXT>",
            "[IMG]",
            "[INST]",
            "<|im_start|>",
            "<|eot_id|>",
            "<start_of_turn>",
        ],
    )
    def test_a_server_does_not_take_them_for_an_image_or_a_turn(self, marker):
        prompt = f"What does {marker} mean? {marker}{marker}"
        sent = plain_text(prompt)
        assert marker not in sent
        assert sent.replace(" ", "") == prompt.replace(" ", "")

    def test_the_server_gets_the_prompt_without_them(self):
        with scripted("vllm") as up, gateway(up.url) as client:
            assert ask(client, text="What does <image> mean?").status_code == 200
            (asked,) = up.asked
        assert asked.text == "What does < image> mean?"

    @pytest.mark.parametrize(
        "prompt",
        [
            "Is a < b | c > d?",
            '<img src="a.png"> is on the page',
            "<b>image</b>",
            "[x] image",
            "a <- image -> b",
            "| image | price |\n|---|---|",
        ],
    )
    def test_other_prompts_stay_as_they_are(self, prompt):
        assert plain_text(prompt) == prompt


class TestAddresses:
    @pytest.mark.parametrize(
        ("given", "root", "base"),
        [
            ("http://h:8000", "http://h:8000", "http://h:8000/v1"),
            ("http://h:8000/v1/", "http://h:8000", "http://h:8000/v1"),
            ("http://h:8000/v3", "http://h:8000", "http://h:8000/v3"),
            ("https://h/api/v3", "https://h/api", "https://h/api/v3"),
            ("https://h/v1beta/openai/", "https://h", "https://h/v1beta/openai"),
            ("https://h/api/paas/v4", "https://h/api/paas", "https://h/api/paas/v4"),
            ("https://h/v1/account/gateway/openai", "https://h", "https://h/v1/account/gateway/openai"),
            ("https://h/compatible-mode/v1", "https://h/compatible-mode", "https://h/compatible-mode/v1"),
            ("https://h/openai/v1/chat/completions", "https://h/openai", "https://h/openai/v1"),
            ("https://h/v1/models", "https://h", "https://h/v1"),
            ("https://h/api/v1.1", "https://h/api", "https://h/api/v1.1"),
            ("https://h/v100-gpu", "https://h/v100-gpu", "https://h/v100-gpu/v1"),
            ("https://v1.example/vision", "https://v1.example/vision", "https://v1.example/vision/v1"),
            ("https://h/v1models", "https://h/v1models", "https://h/v1models/v1"),
        ],
    )  # fmt: skip
    def test_one_that_has_its_version_gets_no_second_one(self, given, root, base):
        upstream = Upstream(given, api_key=None)
        assert (upstream.root, upstream.base) == (root, base)


class TestConcurrentRequests:
    @pytest.mark.parametrize(("dialect", "most"), [("llama.cpp", 3), ("ollama", 1), ("vllm", 8)])
    def test_a_server_gets_as_many_as_it_reports_or_is_known_to_take(self, dialect, most):
        free, all_there = threading.Semaphore(0), threading.Barrier(most)
        together = 0

        def answer(_):
            nonlocal together
            together = max(together, up.server.in_flight)
            if not free.acquire(blocking=False):
                all_there.wait(20)
                free.release(100)
            return "A cat."

        with (
            scripted(dialect, answer) as up,
            gateway(up.url) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            answers = list(pool.map(lambda _: ask(client).status_code, range(8)))
        assert answers == [200] * 8
        assert together <= most

    def test_timeouts_halve_it_and_answers_let_it_grow(self):
        learned = LearnedConcurrency(8, grows=True)
        for expected in (4, 2, 1, 1):
            learned.overloaded()
            assert learned.limit == expected
        learned.answered(1)
        assert learned.limit == 2
        for _ in range(5000):
            learned.answered(64)
        assert learned.limit == 64

    def test_it_grows_only_while_all_of_it_is_used(self):
        learned = LearnedConcurrency(8, grows=True)
        for _ in range(100):
            learned.answered(3)
        assert learned.limit == 8
