"""Images and results in stores: a real S3 server on the loopback, web servers, missing drivers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from describing_many import (
    answer_to,
    check_books,
    described,
    fill,
    numbered,
    read_rows,
    slow,
    statuses,
)
from fault_server import Connection, Received
from phospho_multimodal.batch import describe_many
from phospho_multimodal.batch.sources.select import open_source
from phospho_multimodal.errors import ConfigurationError

CLI = [sys.executable, "-c", "from phospho_multimodal.cli.main import main; main()", "batch"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server; its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its file system, with the credentials where every program of AWS looks for them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    return s3fs.S3FileSystem(use_listings_cache=False)


@pytest.fixture
def bucket(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of the test's own, and a folder for state of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    name = f"bucket-{uuid4().hex[:12]}"
    s3.mkdir(name)
    return name


def put(s3: Any, bucket: str, numbers: int, folder: str = "photos") -> str:
    """Put numbered images into a bucket; the URL of their folder."""
    for number in range(numbers):
        s3.pipe_file(f"{bucket}/{folder}/{number // 3}/{number:05d}.png", numbered(number))
    return f"s3://{bucket}/{folder}"


def tar_of(*numbers: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in numbers:
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(numbered(number))
            archive.addfile(member, io.BytesIO(numbered(number)))
    return file.getvalue()


def parquet_of(*numbers: int, column: str = "image") -> bytes:
    file = io.BytesIO()
    rows = [{column: {"bytes": numbered(number), "path": f"{number}.png"}} for number in numbers]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def rows_in(s3: Any, url: str) -> list[dict[str, Any]]:
    """The rows of the one job in a folder of the store."""
    lines = [s3.cat_file(path) for path in sorted(s3.glob(f"{url}/job-*/part-*.jsonl"))]
    return [json.loads(line) for line in b"".join(lines).splitlines()]


SOURCES = {
    "a folder": ("", {}),
    "a pattern": ("/**/0000[0-9].png", {}),
    "a folder of archives": ("/tars", {}),
    "archives with braces": ("/tars/s-{0..1}.tar", {}),
    "one archive": ("/tars/all.tar", {}),
    "shards of Parquet": ("/parquet", {}),
    "a table of relative paths": ("/0/t.csv", {}),
    "a table of URLs": ("/urls.jsonl", {}),
}


@pytest.mark.parametrize("what", SOURCES)
def test_images_in_a_store_are_described(endpoint, tmp_path, s3, bucket, what):
    url = put(s3, bucket, 3)
    s3.pipe_file(f"{url}/.thumbs/a.png", numbered(99))
    s3.pipe_file(f"{url}/@eaDir/a.png", numbered(98))
    urls = "".join(json.dumps({"url": f"{url}/0/{n:05d}.png"}) + "\n" for n in range(3))
    if "archive" in what:
        s3.rm(f"{url}", recursive=True)
        shards = {"all": [0, 1, 2]} if what == "one archive" else {"s-0": [0, 1], "s-1": [2]}
        for name, numbers in shards.items():
            s3.pipe_file(f"{url}/tars/{name}.tar", tar_of(*numbers))
    s3.pipe_file(f"{url}/0/t.csv", b"image\n00000.png\n00001.png\n00002.png\n")
    s3.pipe_file(f"{url}/urls.jsonl", urls.encode())
    s3.pipe_file(f"{url}/parquet/train-0.parquet", parquet_of(0, 1))
    s3.pipe_file(f"{url}/parquet/train-1.parquet", parquet_of(2))
    suffix, options = SOURCES[what]
    server = endpoint()
    for _ in range(2):
        summary = describe_many(url + suffix, tmp_path / "out", base_url=server.base_url, **options)
        assert (summary.described, summary.inputs) == (3, 3), read_rows(tmp_path / "out")
    assert dict(server.asked) == {0: 1, 1: 1, 2: 1}
    check_books(server, tmp_path / "out")


def test_an_object_that_changes_is_asked_about_again_and_the_others_are_not(
    endpoint, batch, tmp_path, s3, bucket
):
    url, server = put(s3, bucket, 3), endpoint()
    batch(url, tmp_path / "out", base_url=server.base_url)
    s3.pipe_file(f"{url}/0/00001.png", numbered(77))
    s3.pipe_file(f"{url}/0/broken.png", b"no image")
    summary = batch(url, tmp_path / "out", base_url=server.base_url)
    assert (summary.described, summary.failed) == (3, 1)
    assert dict(server.asked) == {0: 1, 1: 1, 2: 1, 77: 1}


@pytest.mark.parametrize(
    "url", ["s3://no-such-bucket-of-anyone/photos", "s3://{bucket}/empty", "s3://{bucket}/x.csv"]
)
def test_a_source_that_is_not_there_is_rejected(endpoint, batch, tmp_path, bucket, url):
    server = endpoint()
    with pytest.raises(ConfigurationError, match=r"s3://.*cannot be read|There is no"):
        batch(url.format(bucket=bucket), tmp_path / "out", base_url=server.base_url)
    assert server.questions == []


def test_results_go_to_a_store_and_the_next_run_pays_nothing(endpoint, batch, tmp_path, s3, bucket):
    server, photos, out = endpoint(), fill(tmp_path / "photos", 5), f"s3://{bucket}/out"
    for _ in range(2):
        summary = batch(photos, out, base_url=server.base_url)
        assert summary.described == 5
    assert server.billed == 5
    assert summary.url is not None
    assert summary.url.startswith(f"{out}/job-")
    assert summary.url in str(summary)
    copies = {path.rpartition("/")[2]: s3.cat_file(path) for path in s3.ls(summary.url)}
    for part in summary.parts:
        assert copies[part.name] == part.read_bytes()
    assert json.loads(copies["_manifest.json"]) == dict(summary.manifest)
    check_books(server, summary)
    # Whoever removes a copy gets it again; whoever renames the local folder finds another owner.
    s3.rm_file(f"{summary.url}/{summary.parts[0].name}")
    batch(photos, out, base_url=server.base_url)
    assert s3.exists(f"{summary.url}/{summary.parts[0].name}")
    with pytest.raises(ConfigurationError, match=r"whose journal is on .*Nothing was sent"):
        batch(photos, out, base_url=server.base_url, journal=tmp_path / "elsewhere")
    assert server.billed == 5


@pytest.mark.long
def test_a_job_that_is_killed_goes_on_and_its_results_are_whole_in_the_store(
    endpoint, tmp_path, s3, bucket
):
    server = endpoint(slow(0.02))
    source, out = put(s3, bucket, 30), f"s3://{bucket}/out"
    told = [*CLI, source, "--out", out, "--journal", str(tmp_path / "journal"), "--yes"]
    told += ["--base-url", server.base_url, "--format", "jsonl", "--concurrency", "4"]
    with subprocess.Popen(  # noqa: S603 - our own command
        told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as killed:
        server.wait_for_requests(14)
        killed.send_signal(signal.SIGKILL)
    done = subprocess.run(  # noqa: S603 - our own command
        [*told, "--retry-in-doubt"], capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Results in {out}/job-" in done.stdout
    rows = rows_in(s3, out)
    assert [row["description"] for row in rows] == [answer_to(number) for number in range(30)]
    assert all(times <= 2 for times in server.asked.values())
    doubted = sum(row["images_in_doubt"] for row in rows)
    assert sum(times - 1 for times in server.asked.values()) <= doubted <= 4


@pytest.mark.parametrize(
    "out",
    ["s3://no-such-bucket-of-anyone/out", "https://127.0.0.1:1/out", "nostore://bucket/out"],
)
def test_an_output_that_cannot_be_written_is_rejected_before_anything_is_paid(
    endpoint, batch, bucket, out
):
    server = endpoint()
    with pytest.raises(ConfigurationError, match=r"cannot be (opened|written).*Nothing was sent"):
        batch([numbered(1)], out, base_url=server.base_url)
    assert server.questions == []


@pytest.mark.parametrize(
    "driver", [("gs", "gcsfs"), ("hf", "huggingface_hub"), ("az", "adlfs")], ids=lambda d: d[0]
)
@pytest.mark.parametrize("place", ["source", "output", "cell"])
def test_a_missing_driver_is_named(endpoint, tmp_path, monkeypatch, driver, place):
    protocol, package = driver
    for name in (package, "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    server, url = endpoint(), f"{protocol}://bucket/a"
    options: Any = {"base_url": server.base_url, "results": "jsonl"}
    if place == "cell":
        describe_many([f"{url}.png"], tmp_path / "out", **options)
        (row,) = read_rows(tmp_path / "out")
        assert f"nstall {package}" in row["error"]
    else:
        source, out = (url, tmp_path / "out") if place == "source" else ([numbered(1)], url)
        with pytest.raises(ImportError, match=f"nstall {package}.*Nothing was sent"):
            describe_many(source, out, **options)
    assert server.questions == []


@pytest.mark.parametrize("source", ["folder", "s3://bucket/a"])
def test_a_missing_extra_is_named(endpoint, tmp_path, monkeypatch, source):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    photos, server = fill(tmp_path / "photos", 1), endpoint()
    with pytest.raises(ImportError, match=r'needs .fsspec.*pip install "phospho-multimodal\[batch'):
        describe_many(
            photos if source == "folder" else source, tmp_path / "out", base_url=server.base_url
        )
    assert server.requests == []


def test_storage_options_are_passed_to_the_store(endpoint, tmp_path, s3_server, bucket, s3):
    url, server = put(s3, bucket, 2), endpoint()
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.pop(name)  # the fixture puts them back
    keys = {"key": "key", "secret": "secret", "endpoint_url": s3_server}
    summary = describe_many(
        url,
        f"s3://{bucket}/out",
        base_url=server.base_url,
        storage_options={"s3": keys},
        results="jsonl",
    )
    assert summary.described == 2
    assert "secret" not in json.dumps(dict(summary.manifest))
    wrong = {"s3": {**keys, "no_such_option": 1}}
    with pytest.raises(ConfigurationError, match=r"cannot be (opened|read)"):
        describe_many(url, tmp_path / "out", base_url=server.base_url, storage_options=wrong)


def test_a_failure_while_copying_ends_with_all_results_at_hand(endpoint, tmp_path, s3, bucket):
    def remove_bucket(connection: Connection, request: Received) -> None:
        if s3.exists(bucket):
            s3.rm(bucket, recursive=True)
        described()(connection, request)

    server, photos, out = endpoint(remove_bucket), fill(tmp_path / "photos", 3), f"s3://{bucket}/o"
    options: Any = {"base_url": server.base_url, "results": "jsonl", "concurrency": 1}
    with pytest.raises(ConfigurationError, match=r"copying them to s3://.*pays nothing again"):
        describe_many(photos, out, **options)
    s3.mkdir(bucket)
    assert describe_many(photos, out, **options).described == 3
    assert server.billed == 3
    assert len(rows_in(s3, out)) == 3


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL under which a web server lists it."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_listing_of_a_web_server_is_a_source(endpoint, batch, tmp_path, web):
    folder, url = web
    fill(folder / "photos" / "2024 a", 2)
    fill(folder / "photos", [7])
    fill(folder / "others", [8])
    server = endpoint()
    for _ in range(2):
        summary = batch(f"{url}/photos/", tmp_path / "out", base_url=server.base_url)
        assert summary.described == 3
    assert dict(server.asked) == {0: 1, 1: 1, 7: 1}
    assert set(statuses(read_rows(summary)).values()) == {"described"}


@pytest.mark.parametrize("name", ["t.csv", "x.tar", "p.parquet", "a.png", "a.png?width=9/8"])
def test_a_file_of_a_web_server_is_a_source(web, name):
    folder, url = web
    (folder / "t.csv").write_text("image\na.png\n")
    (folder / "a.png").write_bytes(numbered(1))
    (folder / "x.tar").write_bytes(tar_of(1))
    (folder / "p.parquet").write_bytes(parquet_of(1))
    (item,) = open_source(f"{url}/{name}")
    assert item.error is None
    image: Any = item.image
    assert (image if isinstance(image, bytes) else image.read()) == numbered(1)


def test_the_secrets_of_a_url_are_in_no_message(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        open_source("nostore://user:pass@host/x?token=secret")
    assert "pass" not in str(caught.value)
    assert "secret" not in str(caught.value)
