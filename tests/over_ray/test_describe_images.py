"""`DescribeImages` on a real cluster of three nodes, against a server that counts what it bills."""

from __future__ import annotations

import io
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
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
    prepare_image,
)
from phospho_multimodal.batch import describe_many
from phospho_multimodal.ray import Accounts, DescribeImages, open_accounts
from phospho_multimodal.ray.describe_images import ADDED

pytestmark = pytest.mark.usefixtures("ray_cluster")

Serve = Callable[..., str]

GUIDE = (Path(__file__).parents[2] / "cookbook/guides/batch.md").read_text(encoding="utf-8")


def png(number: int, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    image = Image.new("RGB", size, (number % 256, number // 256, 7))
    image.convert(mode).save(file, "PNG")
    return file.getvalue()


def rows_of(distinct: int, *, twice: int = 0, broken: int = 0) -> list[dict[str, Any]]:
    data = [png(number) for number in range(distinct)]
    data += data[:twice] + [b"\x89PNG\r\n\x1a\n broken"] * broken
    return [{"n": number, "bytes": one} for number, one in enumerate(data)]


def dataset(rows: list[dict[str, Any]], blocks: int = 10) -> ray.data.Dataset:
    return ray.data.from_items(rows, override_num_blocks=blocks)


def describe(rows: list[dict[str, Any]], accounts: Accounts, **options: Any) -> list[Any]:
    given = {"column": "bytes", "workers": 2, "concurrency": 4, "batch_size": 8, **options}
    return DescribeImages.on(dataset(rows), accounts, **given).take_all()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, serve_shared: Serve) -> Iterator[Accounts]:
    """One job for the tests that only look at rows: its coordinator takes seconds to start."""
    out = tmp_path_factory.mktemp("shared")
    with open_accounts(out, "What?", base_url=serve_shared()) as accounts:
        yield accounts


def here(batch: Any, accounts: Accounts, **options: Any) -> Any:
    """Describe a batch in this process."""
    return DescribeImages(accounts, **options)(batch)


# --- pipelines ------------------------------------------------------------------------------------


def test_rays_defaults_describe_every_row_once_and_two_prompts_fit_into_one_pipeline(
    serve: Serve, out: Path
):
    base_url = serve(seconds=0.2)
    rows = rows_of(80, twice=40, broken=3)
    with (
        open_accounts(out, "What?", base_url=base_url, requests_per_second=20) as what,
        open_accounts(out, "Where?", base_url=base_url) as where,
    ):
        given: dict[str, Any] = {"column": "bytes", "concurrency": 8}
        found = (
            dataset(rows)
            .map_batches(
                DescribeImages,
                fn_constructor_kwargs={**given, "accounts": what},
                concurrency=1,
                num_cpus=0,
            )
            .map_batches(
                DescribeImages,
                fn_constructor_kwargs={**given, "accounts": where, "prefix": "where_"},
                concurrency=2,
                num_cpus=0,
                batch_format="pandas",
                runtime_env={"env_vars": {"SOME": "thing"}},
            )
            .take_all()
        )
        money = what.snapshot().money
    assert sorted(row["n"] for row in found) == list(range(123))
    for prefix in ("", "where_"):
        assert Counter(row[f"{prefix}status"] for row in found) == {"described": 120, "failed": 3}
        assert sum(row[f"{prefix}cost_usd"] for row in found) == pytest.approx(0.80)
        assert sum(row[f"{prefix}attempts"] for row in found) == 80
    failed = {row["error_class"] for row in found if row["status"] == "failed"}
    assert failed == {"ImageError"}
    by_sha = {row["sha256"]: row["description"] for row in found if row["sha256"]}
    assert all(text.endswith(sha[:16] + ".") for sha, text in by_sha.items())
    assert set(counts(base_url).values()) == {2}, "once for each prompt"
    assert (money.images_billed, money.images_in_doubt, money.images_reserved) == (80, 0, 0)
    times = look(base_url, "times")
    assert max(times) - min(times) >= 2, "twenty at once, and then twenty in a second"


def test_a_fatal_error_ends_the_job_as_itself_after_the_requests_in_progress(
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

    def kill_a_node() -> None:
        wait_for(base_url, 40)
        ray_cluster.remove_node(next(iter(ray_cluster.worker_nodes)), allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    try:
        with open_accounts(out, base_url=base_url) as accounts:
            found = describe(rows, accounts)
            money = accounts.snapshot().money
    finally:
        killer.join()
        add_node(ray_cluster)
    assert sorted(row["n"] for row in found) == list(range(224)), "every row once"
    check_money(base_url, money, 160)
    with open_accounts(out, base_url=base_url, retry_in_doubt=True) as accounts:
        again = here(pa.Table.from_pylist(rows), accounts, column="bytes").to_pylist()
        settled = accounts.snapshot().money
    assert Counter(row["status"] for row in again) == {"described": 220, "failed": 4}
    assert settled.images_billed == 160
    twice = sum(times - 1 for times in counts(base_url).values())
    assert twice <= settled.images_in_doubt == money.images_in_doubt


def test_a_worker_is_killed_in_the_middle(serve: Serve, out: Path):
    base_url = serve(seconds=0.2)
    killer = threading.Thread(target=kill_a_worker, args=(base_url, 30))
    killer.start()
    try:
        with open_accounts(out, base_url=base_url) as accounts:
            found = describe(rows_of(120, twice=20), accounts)
            money = accounts.snapshot().money
    finally:
        killer.join()
    assert sorted(row["n"] for row in found) == list(range(140)), "Ray made its batch again"
    assert {row["status"] for row in found} <= {"described", "in_doubt"}
    check_money(base_url, money, 120)
    assert money.images_in_doubt <= 8, "the requests in progress"


def test_the_coordinator_is_killed_and_the_same_call_resumes(serve: Serve, out: Path):
    base_url = serve(seconds=0.2)
    rows = rows_of(120)
    with open_accounts(out, base_url=base_url) as accounts:

        def kill() -> None:
            wait_for(base_url, 30)
            ray.kill(accounts.actor)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ConfigurationError, match="continues from there"):
            describe(rows, accounts)
        killer.join()
    with open_accounts(out, base_url=base_url) as accounts:
        again = here(pa.Table.from_pylist(rows), accounts, column="bytes").to_pylist()
        money = accounts.snapshot().money
    assert {row["status"] for row in again} <= {"described", "in_doubt"}
    check_money(base_url, money, 120)


def check_money(base_url: str, money: Any, images: int) -> None:
    """Hold the coordinator's sums against the server's own count."""
    billed = counts(base_url)
    assert max(billed.values()) == 1, "nothing was paid twice"
    assert money.images_billed <= sum(billed.values())
    assert sum(billed.values()) <= money.images_billed + money.images_in_doubt
    assert money.images_billed + money.images_in_doubt == images
    assert money.images_reserved == 0


def wait_for(base_url: str, answers: int) -> None:
    while sum(counts(base_url).values()) < answers:
        time.sleep(0.05)


def kill_a_worker(base_url: str, after: int) -> None:
    wait_for(base_url, after)
    kill_process("ray::MapWorker")


def test_the_example_of_the_guide_writes_captions_and_no_pixels(
    serve: Serve, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
):
    blocks = re.findall(r"^```py\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "open_accounts" in block)
    block = block.replace("/mnt/", f"{tmp_path}/")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHOSPHO_BASE_URL", serve())
    exec(compile(block, "batch.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    assert "4 images billed" in capfd.readouterr().out
    table = pq.read_table(tmp_path / "rows")
    assert table.num_rows == 4
    assert set(table.column_names) == {"path", *ADDED}


# --- images, columns and prompts ------------------------------------------------------------------


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


def test_the_columns_and_their_types_are_there_whatever_the_rows_are(shared: Accounts):
    batch = pa.Table.from_pylist(rows_of(0, broken=3))
    table = here(batch, shared, column="bytes")
    assert {name: table.schema.field(name).type for name in ADDED} == ADDED
    frame = here(batch.to_pandas(), shared, column="bytes")
    assert {name: pa.Table.from_pandas(frame).schema.field(name).type for name in ADDED} == ADDED


@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "pyarrow"])
@pytest.mark.parametrize("mode", ["RGB", None])
def test_decoded_images_of_one_size_or_of_many(
    shared: Accounts, folder: Path, tmp_path: Path, batch_format: str, mode: str | None
):
    if mode is not None:  # one size, so Ray makes one tensor of them
        folder = tmp_path / "same"
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.png").write_bytes(png(number))
    images = ray.data.read_images(str(folder), mode=mode, include_paths=True)
    batch = images.take_batch(batch_format=batch_format)
    found = here(batch, shared)
    assert type(found) is type(batch)
    rows = as_rows(found)
    assert {row["status"] for row in rows} == {"described"}
    if mode is not None:
        assert {row["sha256"] for row in rows} == sent_of(folder), "as if the files were sent"
    sizes = {(one.width, one.height) for one in map(prepare_image, folder.iterdir())}
    assert {(row["width"], row["height"]) for row in rows} == sizes


def as_rows(batch: Any) -> list[dict[str, Any]]:
    names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
    cells = {
        name: batch[name].to_pylist() if isinstance(batch, pa.Table) else list(batch[name])
        for name in names
        if name != "image"
    }
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def test_decoded_images_that_a_batch_has_described_cost_nothing(serve: Serve, tmp_path: Path):
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(3):
        noise = Image.effect_noise((64, 48), 40 + number).convert("RGB")
        noise.save(source / f"{number}.jpg")
    base_url = serve()
    described = describe_many(source, tmp_path / "out", "Q", base_url=base_url, results="jsonl")
    with open_accounts(tmp_path / "out", "Q", base_url=base_url) as accounts:
        images = ray.data.read_images(str(source), mode="RGB")
        rows = DescribeImages.on(images, accounts, workers=1).take_all()
    assert {row["status"] for row in rows} == {"described"}
    assert {row["sha256"] for row in rows} == sent_of(source)
    assert look(base_url, "count")["requests"] == described.images_billed == 3


def test_bytes_paths_urls_structs_and_nothing(shared: Accounts, folder: Path):
    url = "http://example.com/cat.png"
    texts = [str(folder / "0.png"), url, str(folder / "missing.png"), "ftp://example.com/x", None]
    for batch in ({"image": np.array(texts, object)}, pd.DataFrame({"image": texts})):
        rows = as_rows(here(batch, shared))
        assert [row["status"] for row in rows] == ["described"] * 2 + ["failed"] * 3
        assert {row["error_class"] for row in rows[2:]} == {"ImageError"}
        assert rows[1]["description"].startswith("A picture")
    structs = [
        {"image": {"bytes": png(7), "path": "seven.png"}},
        {"image": {"bytes": None, "path": str(folder / "3.png")}},
    ]
    rows = here(pa.Table.from_pylist(structs), shared).to_pylist()
    assert [row["status"] for row in rows] == ["described"] * 2


def test_the_columns_of_img2dataset_keep_their_names(shared: Accounts):
    given = {"image": png(1), "caption": "c", "status": "success", "width": 12, "sha256": "s"}
    (row,) = here(pa.Table.from_pylist([given]), shared).to_pylist()
    assert {name: row[name] for name in given} == given
    assert (row["phospho_status"], row["phospho_width"]) == ("described", 16)
    assert row["description"]


def test_a_prompt_column_asks_each_pair_of_image_and_prompt_once(serve: Serve, out: Path):
    base_url = serve()
    prompts = ["What?", "Where?", "Where?", None, "", "Who?"]
    rows = [{"image": png(1), "prompt": prompt} for prompt in prompts]
    with open_accounts(out, "What?", base_url=base_url) as accounts:
        found = here(pa.Table.from_pylist(rows), accounts, prompt_column="prompt").to_pylist()
        assert accounts.snapshot().money.images_billed == 3
        again = here(
            {"image": [png(1)] * 2, "prompt": ["Who?", 7]}, accounts, prompt_column="prompt"
        )
    assert {row["status"] for row in found} == {"described"}
    assert len({row["prompt_id"] for row in found}) == 3
    assert len({row["sha256"] for row in found}) == 1
    assert sum(counts(base_url).values()) == 3
    assert list(again["status"]) == ["described", "failed"]
    assert list(again["error_class"]) == [None, "ConfigurationError"]


def test_a_wrong_dataset_is_rejected_before_anything_is_sent(serve: Serve, out: Path):
    base_url = serve()
    batch = pa.Table.from_pylist([{"bytes": png(1), "status": "mine"}])
    with open_accounts(out, base_url=base_url) as accounts:
        for options, words in (
            ({"column": "bytes", "prefix": ""}, "'status'"),
            ({}, "no column 'image'"),
            ({"column": "bytes", "prompt_column": "ask"}, "no column 'ask'"),
            ({"column": "bytes", "concurrency": 0}, "concurrency"),
        ):
            with pytest.raises(ConfigurationError, match=words):
                here(batch, accounts, **options)
        with pytest.raises(ConfigurationError, match="workers"):
            DescribeImages.on(dataset(rows_of(1), 1), accounts, workers=(2, 1))
    assert look(base_url, "count")["requests"] == 0


def test_wrong_settings_are_rejected_on_the_driver(out: Path):
    with pytest.raises(ConfigurationError, match="PHOSPHO_API_KEY"):
        open_accounts(out)
    local: dict[str, Any] = {"base_url": "http://127.0.0.1:9"}
    for options, words in (
        ({"temperature": 7.0}, "temperature"),
        ({"max_usd": "much"}, "max_usd"),
        ({"max_outage": -1}, "max_outage"),
        ({"max_concurrency": 7}, "concurrency"),
        ({"detail": "tiles"}, "detail"),
        ({"verify": ssl.create_default_context()}, "verify"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            open_accounts(out, **options, **local)
    with (
        open_accounts(out, **local),
        pytest.raises(ConfigurationError, match="at this job"),
    ):
        open_accounts(out, **local)
