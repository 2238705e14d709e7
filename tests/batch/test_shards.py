"""A job that is divided into shards: each input is described by exactly one of them."""

from __future__ import annotations

import pytest

from describing_many import Batch, fill, read_rows
from phospho_multimodal import ConfigurationError, SpendingLimitError
from phospho_multimodal.batch.sources.shards import Shard


def test_the_shards_describe_each_input_once_and_their_rows_can_be_joined(
    endpoint, batch: Batch, tmp_path
):
    photos = fill(tmp_path / "photos", 30)
    server = endpoint()

    rows = []
    for number in (1, 2, 3):
        summary = batch(
            photos, tmp_path / "out", base_url=server.base_url, shard=f"{number}/3", max_images=33
        )
        assert summary.folder.name.endswith(f"-shard-{number}-of-3")
        assert summary.inputs > 0
        rows += read_rows(summary)

    assert sorted(row["id"] for row in rows) == sorted(path.name for path in photos.iterdir())
    assert len({row["prompt_id"] for row in rows}) == 1
    assert server.billed == 30


def test_each_shard_has_its_share_of_the_spending_limit(endpoint, tmp_path):
    photos = fill(tmp_path / "photos", 40)
    server = endpoint()
    send = Batch("sync", "jsonl")

    for number in (1, 2, 3):
        with pytest.raises(SpendingLimitError):
            send(
                photos,
                tmp_path / "out",
                base_url=server.base_url,
                shard=f"{number}/3",
                max_images=10,
            )

    assert server.billed == 10


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_shares_of_all_shards_are_the_whole(count: int):
    shards = [Shard(f"{number}/{count}") for number in range(1, count + 1)]
    assert sum(shard.share_of(100) for shard in shards) == 100
    for name in ("a.jpg", "ordner/ä.png", "\udce9.jpg"):
        assert sum(shard.holds(name) for shard in shards) == 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3 "])
def test_another_shard_is_rejected_with_the_form_it_must_have(text: str, tmp_path):
    with pytest.raises(ConfigurationError, match="'2/8'"):
        Batch("sync", "jsonl")(tmp_path, tmp_path / "out", base_url="http://x.example", shard=text)
