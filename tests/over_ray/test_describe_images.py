"""`DescribeImages` on a real cluster of three nodes, against a server that counts what it bills."""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from batch_soak import counts, look
from clusters import add_node, kill_process
from PIL import Image

from phospho_multimodal import (
    ConfigurationError,
    PaymentRequiredError,
    SpendingLimitError,
    prepare_image,
)
from phospho_multimodal.ray import DescribeImages, open_accounts
from phospho_multimodal.ray.describe_images import ADDED

pytestmark = pytest.mark.usefixtures("ray_cluster")

Serve = Callable[..., str]

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def png(number: int, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    picture = Image.new("RGB", size, (number % 256, number // 256, 7))
    picture.convert(mode).save(file, "PNG")
    return file.getvalue()


def rows_of(distinct: int, *, twice: int = 0, broken: int = 0) -> list[dict[str, Any]]:
    data = [png(number) for number in range(distinct)]
    data += data[:twice] + [b"\x89PNG\r\n\x1a\n broken"] * broken
    return [{"n": number, "bytes": one} for number, one in enumerate(data)]


def dataset(rows: list[dict[str, Any]], blocks: int = 10) -> ray.data.Dataset:
    return ray.data.from_items(rows, override_num_blocks=blocks)


def describe(rows: list[dict[str, Any]], accounts: Any, **options: Any) -> list[dict[str, Any]]:
    told = {"column": "bytes", "workers": 2, "concurrency": 4, "batch_size": 8, **options}
    return DescribeImages.on(dataset(rows), accounts, **told).take_all()


def test_every_row_once_duplicates_paid_once_and_a_second_job_sends_nothing(
    serve: Serve, out: Path
):
    base_url = serve()
    rows = rows_of(80, twice=40, broken=3)
    with open_accounts(out, "What?", base_url=base_url) as accounts:
        found = describe(rows, accounts)
        money = accounts.snapshot().money
    assert sorted(row["n"] for row in found) == list(range(123))
    assert Counter(row["status"] for row in found) == {"described": 120, "failed": 3}
    assert {row["error_class"] for row in found if row["status"] == "failed"} == {"ImageError"}
    assert sum(row["cost_usd"] for row in found) == pytest.approx(0.80)
    assert sum(row["attempts"] for row in found) == 80
    by_sha = {row["sha256"]: row["description"] for row in found if row["sha256"]}
    assert all(told.endswith(sha[:16] + ".") for sha, told in by_sha.items())
    billed = counts(base_url)
    assert len(billed) == sum(billed.values()) == money.images_billed == 80
    assert (money.images_in_doubt, money.images_reserved) == (0, 0)
    with open_accounts(out, "What?", base_url=base_url) as accounts:
        again = describe(rows, accounts)
    assert Counter(row["status"] for row in again) == {"described": 120, "failed": 3}
    assert look(base_url, "count")["requests"] == 80


def test_the_columns_and_their_types_are_there_whatever_the_rows_are(serve: Serve, out: Path):
    with open_accounts(out, base_url=serve()) as accounts:
        described = DescribeImages.on(
            dataset(rows_of(0, broken=3), 1), accounts, column="bytes", workers=1
        )
        described.write_parquet(str(out / "rows"))
    table = pq.read_table(out / "rows")
    types = {name: str(table.schema.field(name).type) for name in ADDED}
    assert types == {name: {"float64": "double"}.get(kind, kind) for name, kind in ADDED.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (mode, size) in enumerate(
        [("RGB", (12, 9)), ("L", (9, 12)), ("RGBA", (11, 11)), ("RGB", (30, 20))]
    ):
        (folder / f"{number}.png").write_bytes(png(number, mode, size))
    return folder


def sent_of(folder: Path) -> set[str]:
    return {prepare_image(path).sha256 for path in folder.iterdir()}


def test_arrays_of_one_size(serve: Serve, out: Path, tmp_path: Path):
    folder = tmp_path / "same"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    with open_accounts(out, base_url=serve()) as accounts:
        pictures = ray.data.read_images(str(folder), mode="RGB", include_paths=True)
        rows = DescribeImages.on(pictures, accounts, workers=1).take_all()
    assert {row["status"] for row in rows} == {"described"}
    assert {(row["width"], row["height"]) for row in rows} == {(16, 16)}
    assert {row["sha256"] for row in rows} == sent_of(folder), "as if the files were sent"


def test_arrays_of_many_sizes_and_modes(serve: Serve, out: Path, folder: Path):
    with open_accounts(out, base_url=serve()) as accounts:
        pictures = ray.data.read_images(str(folder), include_paths=True)
        described = DescribeImages.on(pictures, accounts, workers=1)
        rows = {Path(row["path"]).name: row for row in described.take_all()}
    assert {row["status"] for row in rows.values()} == {"described"}, rows
    sizes = {name: (row["width"], row["height"]) for name, row in rows.items()}
    assert sizes == {"0.png": (12, 9), "1.png": (9, 12), "2.png": (11, 11), "3.png": (30, 20)}
    assert rows["1.png"]["image"].size == 9 * 12


def test_bytes_of_files_with_a_broken_one(serve: Serve, out: Path, folder: Path):
    sent = sent_of(folder)
    (folder / "broken.png").write_bytes(b"nothing")
    with open_accounts(out, base_url=serve()) as accounts:
        files = ray.data.read_binary_files(str(folder), include_paths=True)
        rows = DescribeImages.on(files, accounts, column="bytes", workers=1).take_all()
    assert {row["sha256"] for row in rows if row["status"] == "described"} == sent
    (broken,) = (row for row in rows if row["status"] == "failed")
    assert (Path(broken["path"]).name, broken["error_class"]) == ("broken.png", "ImageError")


def test_paths_urls_structs_and_nothing(serve: Serve, out: Path, folder: Path):
    base_url = serve()
    url = "http://example.com/cat.png"
    texts = [str(folder / "0.png"), url, str(folder / "missing.png"), "ftp://example.com/x", None]
    with open_accounts(out, base_url=base_url) as accounts:
        rows = DescribeImages.on(
            dataset([{"at": at, "where": text} for at, text in enumerate(texts)], 1),
            accounts,
            column="where",
            workers=1,
        ).take_all()
        structs = [
            {"image": {"bytes": png(7), "path": "seven.png"}},
            {"image": {"bytes": None, "path": str(folder / "3.png")}},
        ]
        more = DescribeImages.on(dataset(structs, 1), accounts, workers=1).take_all()
    rows.sort(key=lambda row: row["at"])
    assert [row["status"] for row in rows] == ["described"] * 2 + ["failed"] * 3
    assert {row["error_class"] for row in rows[2:]} == {"ImageError"}
    assert rows[1]["sha256"] is None, "a URL was passed on unopened"
    assert rows[1]["description"].startswith("A picture")
    assert [row["status"] for row in more] == ["described"] * 2
    assert sum(counts(base_url).values()) == 4


def test_what_is_wrong_with_the_dataset_is_told_before_anything_is_sent(serve: Serve, out: Path):
    base_url = serve()
    with open_accounts(out, base_url=base_url) as accounts:
        taken = [{"bytes": png(1), "status": "mine"}]
        with pytest.raises(ConfigurationError, match="'status'"):
            DescribeImages.on(dataset(taken, 1), accounts, column="bytes", workers=1).take_all()
        with pytest.raises(ConfigurationError, match="no column 'image'"):
            DescribeImages.on(dataset(rows_of(1), 1), accounts, workers=1).take_all()
        with pytest.raises(ConfigurationError, match="workers"):
            DescribeImages.on(dataset(rows_of(1), 1), accounts, workers=(2, 1))
        with pytest.raises(ConfigurationError, match="concurrency"):
            DescribeImages.on(dataset(rows_of(1), 1), accounts, concurrency=0)
    assert look(base_url, "count")["requests"] == 0


def test_what_is_wrong_with_the_settings_is_told_on_the_driver(out: Path):
    with pytest.raises(ConfigurationError, match="PHOSPHO_API_KEY"):
        open_accounts(out)
    local = {"base_url": "http://127.0.0.1:9"}
    with pytest.raises(ConfigurationError, match="temperature"):
        open_accounts(out, temperature=7.0, **local)
    with pytest.raises(ConfigurationError, match="max_usd"):
        open_accounts(out, max_usd="much", **local)
    with pytest.raises(ConfigurationError, match="concurrency"):
        open_accounts(out, max_concurrency=7, **local)
    with (
        open_accounts(out, **local),
        pytest.raises(ConfigurationError, match="at this job"),
    ):
        open_accounts(out, **local)


def test_the_cap_holds_to_the_image_over_all_workers_and_runs(serve: Serve, out: Path):
    base_url = serve(faults=0.1)
    rows = rows_of(100)
    with open_accounts(out, base_url=base_url, max_images=33) as accounts:
        with pytest.raises(SpendingLimitError):
            describe(rows, accounts)
        snapshot = accounts.snapshot()
    taken = snapshot.money.images_billed + snapshot.money.images_in_doubt
    assert taken == sum(counts(base_url).values()) == 33
    assert isinstance(snapshot.stopped_by, SpendingLimitError)
    with (
        open_accounts(out, base_url=base_url, max_images=50) as accounts,
        pytest.raises(SpendingLimitError),
    ):
        describe(rows, accounts)
    assert sum(counts(base_url).values()) == 50


def test_the_rate_is_that_of_all_workers_together(serve: Serve, out: Path):
    base_url = serve(seconds=0.2)
    with open_accounts(out, base_url=base_url, requests_per_second=20) as accounts:
        describe(rows_of(120), accounts)
    times = look(base_url, "times")
    assert len(times) == 120
    # Twenty at the same time, then five seconds. If each of two workers had the whole rate, it
    # would be two seconds. What lies between is for a busy machine, where the first one is late.
    assert max(times) - min(times) >= 3


def test_a_fatal_error_ends_the_job_as_itself_once_what_is_under_way_is_told(
    serve: Serve, out: Path
):
    base_url = serve(seconds=0.3, refuse_after=20)
    with open_accounts(out, base_url=base_url) as accounts:
        with pytest.raises(PaymentRequiredError) as refused:
            describe(rows_of(100), accounts)
        snapshot = accounts.snapshot()
    assert refused.value.status_code == 402
    assert isinstance(snapshot.stopped_by, PaymentRequiredError)
    assert sum(counts(base_url).values()) == snapshot.money.images_billed == 20
    assert (snapshot.money.images_in_doubt, snapshot.money.images_reserved) == (0, 0)


def test_a_node_is_killed_in_the_middle(ray_cluster: Any, serve: Serve, out: Path):
    base_url = serve(seconds=0.3)
    rows = rows_of(160, twice=60, broken=4)
    killed = threading.Thread(target=kill_a_node, args=(ray_cluster, base_url, 40))
    killed.start()
    try:
        with open_accounts(out, base_url=base_url) as accounts:
            found = describe(rows, accounts)
            money = accounts.snapshot().money
    finally:
        killed.join()
        add_node(ray_cluster)
    assert sorted(row["n"] for row in found) == list(range(224)), "every row once"
    billed = counts(base_url)
    assert max(billed.values()) == 1, "nothing was paid twice"
    assert money.images_billed <= sum(billed.values())
    assert sum(billed.values()) <= money.images_billed + money.images_in_doubt
    assert money.images_billed + money.images_in_doubt == 160
    assert money.images_reserved == 0
    with open_accounts(out, base_url=base_url, retry_in_doubt=True) as accounts:
        again = describe(rows, accounts)
        settled = accounts.snapshot().money
    assert Counter(row["status"] for row in again) == {"described": 220, "failed": 4}
    assert settled.images_billed == 160
    twice = sum(times - 1 for times in counts(base_url).values())
    assert twice <= settled.images_in_doubt == money.images_in_doubt


@pytest.mark.parametrize("name", ["ray::AccountsActor", "ray::MapWorker"])
def test_a_process_is_killed_in_the_middle(name: str, serve: Serve, out: Path):
    """The accounts go on from the journal, and a worker's batch is made again."""
    base_url = serve(seconds=0.2)
    killed = threading.Thread(target=kill_when, args=(name, base_url, 30))
    killed.start()
    try:
        with open_accounts(out, base_url=base_url) as accounts:
            found = describe(rows_of(120, twice=20), accounts)
            money = accounts.snapshot().money
    finally:
        killed.join()
    assert sorted(row["n"] for row in found) == list(range(140))
    assert {row["status"] for row in found} <= {"described", "in_doubt"}
    billed = counts(base_url)
    assert max(billed.values()) == 1, "nothing was paid twice"
    assert money.images_billed <= sum(billed.values())
    assert sum(billed.values()) <= money.images_billed + money.images_in_doubt
    assert money.images_billed + money.images_in_doubt == 120
    assert money.images_in_doubt <= 8, "what was under way, if the kill met any"
    assert money.images_reserved == 0


def kill_when(name: str, base_url: str, after: int) -> None:
    while sum(counts(base_url).values()) < after:
        time.sleep(0.05)
    kill_process(name)


def kill_a_node(nodes: Any, base_url: str, after: int) -> None:
    while sum(counts(base_url).values()) < after:
        time.sleep(0.05)
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)


def test_the_block_of_the_readme(
    serve: Serve, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
):
    (block,) = re.findall(r"^```py\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    block = block.replace("/mnt/", f"{tmp_path}/")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHOSPHO_BASE_URL", serve())
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    assert "4 images billed" in capfd.readouterr().out
    assert pq.read_table(tmp_path / "rows").num_rows == 4
