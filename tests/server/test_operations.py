"""What whoever runs the server sees: counts, a log of requests, several processes."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from live_server import serve
from phospho_multimodal.contract import PREDICT_PATH
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.echo import EchoEngine

PATIENCE = 40.0
START = "from phospho_multimodal.cli.main import main; main()"


def counted(page: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


@contextlib.contextmanager
def command(*options: str):
    """The server as its command starts it: its address and its process."""
    with subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", START, "serve", "--port", "0", "--engine", "echo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
            yield url, process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=PATIENCE)


class TestMetrics:
    def test_requests_seconds_and_images_are_counted(self, echo_client, picture):
        for _ in range(3):
            echo_client.post(PREDICT_PATH, json=picture.request())
        echo_client.post(PREDICT_PATH, json={})
        echo_client.get("/a prompt in an address")
        page = echo_client.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=")
        requests = 'phospho_requests_total{path="%s",status="%s"}'
        assert counted(page.text, requests % (PREDICT_PATH, 200)) == 3
        assert counted(page.text, requests % (PREDICT_PATH, 422)) == 1
        assert counted(page.text, requests % ("other", 404)) == 1
        assert counted(page.text, "phospho_images_answered_total") == 3
        seconds = f'phospho_request_seconds_count{{path="{PREDICT_PATH}"}}'
        assert counted(page.text, seconds) == 4
        assert "prompt" not in page.text

    def test_who_is_answered_and_who_waits_is_seen(self, gated, picture):
        with serve(create_app(gated, workers=1)) as url, contextlib.ExitStack() as opened:
            threads = opened.enter_context(ThreadPoolExecutor(3))
            for _ in range(3):
                threads.submit(httpx.post, url + PREDICT_PATH, json=picture.request(), timeout=30)
            deadline = time.monotonic() + PATIENCE
            found = ()
            while found != (1, 2) and time.monotonic() < deadline:
                page = httpx.get(f"{url}/metrics").text
                found = counted(page, "phospho_in_flight "), counted(page, "phospho_in_queue ")
            assert found == (1, 2)
            gated.gate.set()
            threads.shutdown()
            page = httpx.get(f"{url}/metrics").text
            assert counted(page, "phospho_in_flight ") == counted(page, "phospho_in_queue ") == 0

    def test_where_a_key_is_asked_for_the_counts_need_it_too(self):
        with serve(create_app(EchoEngine(), api_key="k")) as url:
            assert httpx.get(f"{url}/metrics").status_code == 403
            headers = {"Authorization": "Bearer k"}
            assert httpx.get(f"{url}/metrics", headers=headers).status_code == 200


def test_the_json_log_has_a_line_a_request_and_nothing_that_was_in_it(picture, capsys):
    with serve(create_app(EchoEngine(), api_key="open-sesame", access_log=True)) as url:
        headers = {"Authorization": "Bearer open-sesame"}
        body = json.dumps(picture.request("a secret prompt")).encode()
        headers["Content-Type"] = "application/json"
        httpx.post(f"{url}{PREDICT_PATH}?q=secret", content=body, headers=headers)
        httpx.get(f"{url}/secret")
    log = capsys.readouterr().out
    answered, missed = map(json.loads, log.splitlines())
    assert (answered["method"], answered["path"], answered["status"]) == ("POST", PREDICT_PATH, 200)
    assert answered["bytes_received"] == len(body)
    assert answered["seconds"] > 0
    assert (missed["path"], missed["status"]) == ("other", 404)
    assert [word for word in ("secret", "sesame", picture.base64) if word in log] == []


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_several_processes_answer_add_up_their_counts_and_stop_in_order(picture):
    with command("--workers", "2", "--access-log", "json") as (url, process):
        for _ in range(20):  # each on a new connection, so that both processes get some
            answer = httpx.post(url + PREDICT_PATH, json=picture.request(), timeout=PATIENCE)
            assert answer.status_code == 200
        page = httpx.get(f"{url}/metrics", timeout=PATIENCE).text
        assert counted(page, "phospho_images_answered_total") == 20
        process.send_signal(signal.SIGTERM)
        log, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert len([line for line in log.splitlines() if line.startswith("{")]) == 21


@pytest.mark.long
def test_workers_that_cannot_start_end_the_command_with_their_reason():
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", START, "serve", "--port", "0", "--engine", "no", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "There is no engine 'no'" in done.stderr
