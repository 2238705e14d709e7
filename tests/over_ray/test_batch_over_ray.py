"""`batch --ray` and `describe_many(ray=…)`: the same job over a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_soak import counts, draw_pictures, look
from clusters import add_node
from PIL import Image

from describing_many import Endpoint, described, fill
from fault_server import status
from phospho_multimodal import (
    ConfigurationError,
    PaymentRequiredError,
    RateLimitedError,
    SpendingLimitError,
)
from phospho_multimodal.batch import Progress, Summary, describe_many

Serve = Callable[..., str]

COMMAND = "from phospho_multimodal.cli.main import main; main()"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw_pictures(tmp_path / "photos", 200)  # 196 pictures, of which 132 are distinct
    return tmp_path / "photos"


def over_ray(cluster: Any, source: Any, out: Path, base_url: str, **options: Any) -> Summary:
    told = {"concurrency": 4, "results": "jsonl", **options}
    return describe_many(source, out, base_url=base_url, ray=cluster.address, **told)


def rows_of(summary: Summary) -> list[dict[str, Any]]:
    return [json.loads(line) for part in summary.parts for line in part.read_text().splitlines()]


def digest(summary: Summary) -> str:
    told: str = summary.manifest["results"]["digest"]
    return told


def test_it_is_the_same_job_as_without_ray(
    ray_cluster: Any, serve: Serve, photos: Path, tmp_path: Path
):
    base_url = serve()
    progress: list[Progress] = []
    there = over_ray(ray_cluster, photos, tmp_path / "there", base_url, on_progress=progress.append)
    assert (there.described, there.failed, there.in_doubt, there.pending) == (196, 4, 0, 0)
    assert there.images_billed == sum(counts(base_url).values()) == len(counts(base_url))
    assert there.manifest["runs"] == 1
    here = describe_many(photos, tmp_path / "here", base_url=base_url, results="jsonl")
    assert digest(there) == digest(here)
    same = ("id", "source", "status", "duplicate_of", "cost_usd", "attempts", "images_in_doubt")
    assert [[row[name] for name in same] for row in rows_of(there)] == [
        [row[name] for name in same] for row in rows_of(here)
    ]
    last = progress[-1]
    assert (last.done, last.described, last.duplicates) == (200, 196, 66 - 2)
    assert float(last.usd_spent) == there.images_billed / 100
    requests = look(base_url, "count")["requests"]
    again = over_ray(ray_cluster, photos, tmp_path / "here", base_url)
    assert digest(again) == digest(here)
    assert again.manifest["runs"] == 2
    assert look(base_url, "count")["requests"] == requests, "it had its rows already"


def test_every_kind_of_image_and_prompt_reaches_the_workers(
    ray_cluster: Any, serve: Serve, tmp_path: Path
):
    base_url = serve()
    Image.new("RGB", (9, 9), "green").save(tmp_path / "green.png")
    data = (tmp_path / "green.png").read_bytes()
    source = [
        ("path", str(tmp_path / "green.png")),
        ("bytes", data),
        ("pil", Image.new("RGBA", (7, 7), "red")),
        ("url", "http://example.com/green.png"),
        ("broken", b"nothing"),
        ("nothing", ""),
    ]
    rows = [{"id": name, "image": image, "prompt": "What?"} for name, image in source]
    rows.append({"id": "own prompt", "image": data, "prompt": "Where?"})
    columns: dict[str, Any] = {"column": "image", "id_column": "id", "prompt_column": "prompt"}
    there = over_ray(ray_cluster, rows, tmp_path / "there", base_url, **columns)
    here = describe_many(rows, tmp_path / "here", base_url=base_url, results="jsonl", **columns)
    assert digest(there) == digest(here)
    found = {row["id"]: row for row in rows_of(there)}
    assert found["bytes"]["duplicate_of"] == "path"
    assert found["own prompt"]["duplicate_of"] is None
    assert (there.described, there.failed) == (5, 2)


def test_a_node_is_killed_and_the_cap_holds(
    ray_cluster: Any, serve: Serve, photos: Path, out: Path
):
    base_url = serve(seconds=0.2)

    def kill() -> None:
        while sum(counts(base_url).values()) < 30:
            time.sleep(0.05)
        ray_cluster.remove_node(next(iter(ray_cluster.worker_nodes)), allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(SpendingLimitError):
            over_ray(ray_cluster, photos, out, base_url, max_images=100)
    finally:
        killer.join()
        add_node(ray_cluster)
    summary = Summary.read(next(out.iterdir()))
    billed = sum(counts(base_url).values())
    assert summary.images_billed + summary.images_in_doubt == 100
    assert summary.images_billed <= billed <= 100
    assert max(counts(base_url).values()) == 1
    rest = describe_many(photos, out, base_url=base_url, results="jsonl", retry_in_doubt=True)
    assert (rest.described, rest.failed, rest.in_doubt, rest.pending) == (196, 4, 0, 0)
    twice = sum(times - 1 for times in counts(base_url).values())
    assert twice <= rest.images_in_doubt == summary.images_in_doubt


def test_a_fatal_error_ends_it_with_what_was_done(
    ray_cluster: Any, serve: Serve, photos: Path, out: Path
):
    base_url = serve(refuse_after=20)
    with pytest.raises(PaymentRequiredError):
        over_ray(ray_cluster, photos, out, base_url)
    summary = Summary.read(next(out.iterdir()))
    assert summary.images_billed == sum(counts(base_url).values()) == 20
    assert summary.pending > 0
    assert summary.images_in_doubt == 0


def test_an_endpoint_that_limits_the_rate_or_is_away_costs_no_row(
    ray_cluster: Any, tmp_path: Path, out: Path
):
    refusals = [status(429, headers={"retry-after": "1"})] * 4 + [status(503)] * 4
    endpoint = Endpoint(*[described()] * 5, *refusals, described())
    fill(tmp_path / "photos", range(20))
    progress: list[Progress] = []
    with endpoint.running():
        summary = over_ray(
            ray_cluster,
            tmp_path / "photos",
            out,
            endpoint.base_url,
            max_retries=0,
            on_progress=progress.append,
        )
    assert (summary.described, summary.failed, summary.pending) == (20, 0, 0)
    assert endpoint.billed == summary.images_billed == 20
    assert any(one.waits_for for one in progress), "it says that it waits"


def test_an_outage_that_is_too_long_ends_the_job_and_leaves_the_rows_pending(
    ray_cluster: Any, tmp_path: Path, out: Path
):
    endpoint = Endpoint(*[described()] * 5, status(429, headers={"retry-after": "30"}))
    fill(tmp_path / "photos", range(20))
    with endpoint.running(), pytest.raises(RateLimitedError, match="max_outage"):
        over_ray(
            ray_cluster,
            tmp_path / "photos",
            out,
            endpoint.base_url,
            max_retries=0,
            max_outage=5,
        )
    summary = Summary.read(next(out.iterdir()))
    assert (summary.described, summary.failed, summary.pending) == (5, 0, 15)
    assert summary.images_in_doubt == 0


def command_of(nodes: Any, source: Path, out: Path, base_url: str) -> list[str]:
    command = [sys.executable, "-c", COMMAND, "batch", str(source), "--out", str(out), "--yes"]
    command += ["--base-url", base_url, "--ray", nodes.address, "--concurrency", "4"]
    return [*command, "--format", "jsonl"]


def wait_for(process: subprocess.Popen[bytes], base_url: str, answers: int) -> None:
    while sum(counts(base_url).values()) < answers:
        assert process.poll() is None
        time.sleep(0.05)


def test_ctrl_c_finishes_what_is_under_way(nodes: Any, serve: Serve, photos: Path, out: Path):
    base_url = serve(seconds=0.3)
    command = command_of(nodes, photos, out, base_url)
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603
    wait_for(job, base_url, 20)
    job.send_signal(signal.SIGINT)
    _, told = job.communicate(timeout=30)
    assert job.returncode == 130
    assert b"The same command continues" in told
    assert b"Traceback" not in told
    assert b"SIGTERM" not in told
    summary = Summary.read(next(out.iterdir()))
    assert summary.images_billed == sum(counts(base_url).values())
    assert summary.images_in_doubt == 0
    assert summary.pending > 0


def test_the_driver_is_killed_and_the_same_job_resumes(
    nodes: Any, serve: Serve, photos: Path, out: Path
):
    base_url = serve(seconds=0.2)
    command = command_of(nodes, photos, out, base_url)
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603
    wait_for(first, base_url, 40)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    summary = describe_many(photos, out, base_url=base_url, results="jsonl")  # without Ray
    assert (summary.failed, summary.pending) == (4, 0)
    assert summary.described + summary.in_doubt == 196
    billed = counts(base_url)
    assert max(billed.values()) == 1
    assert summary.images_billed <= sum(billed.values())
    assert sum(billed.values()) <= summary.images_billed + summary.images_in_doubt
    assert summary.manifest["runs"] == 2


def test_what_cannot_go_over_ray_is_told(ray_cluster: Any, serve: Serve, photos: Path, out: Path):
    from phospho_multimodal import Spending  # noqa: PLC0415

    with pytest.raises(ConfigurationError, match="spending="):
        over_ray(ray_cluster, photos, out, serve(), spending=Spending())


def test_no_cluster_there_is_told(serve: Serve, photos: Path, out: Path):
    script = (
        "from phospho_multimodal.batch import describe_many\n"
        f"describe_many({str(photos)!r}, {str(out)!r}, base_url={serve()!r}, ray='127.0.0.1:9')"
    )
    environment = {**os.environ, "RAY_gcs_rpc_server_connect_timeout_s": "1"}
    ended = subprocess.run(  # noqa: S603
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert "ConfigurationError: There is no Ray cluster at '127.0.0.1:9'" in ended.stderr
