"""The extractor in pipelines, in pools of processes, and written down."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import (
    ImageNode,
    TextNode,
    TransformComponent,
)
from pydantic import ValidationError

from describing import described, nodes_of
from fault_server import FaultServer, answer, status
from llama_index_phospho import ImageDescriptionExtractor
from phospho_multimodal import (
    ConfigurationError,
    Spending,
)

KEY = "sk-secret-0123456789"
Extractor = Callable[..., ImageDescriptionExtractor]
Make = Callable[..., Any]


class Careless(TransformComponent):
    """Describes pictures, and leaves the cache of the pipeline to itself."""

    def __call__(self, nodes: Any, **kwargs: Any) -> Any:
        for node in nodes:
            node.metadata["image_description"] = described(Path(node.image_path).read_bytes())
        return nodes


def descriptions_by_pipeline(step: Any, pictures: list[Path]) -> list[str]:
    pipeline = IngestionPipeline(transformations=[step])
    return [
        node.metadata["image_description"]
        for path in pictures
        for node in pipeline.run(nodes=nodes_of([path]))
    ]


def test_the_cache_of_a_pipeline_mixes_pictures_up_and_never_ours(
    extractor: Extractor, server: FaultServer, pictures: list[Path]
) -> None:
    """Its key is made of texts and metadata, which are the same for these nodes."""
    right = [described(path.read_bytes()) for path in pictures[:2]]
    assert descriptions_by_pipeline(Careless(), pictures[:2]) == [right[0]] * 2
    assert descriptions_by_pipeline(extractor(), pictures[:2]) == right
    assert server.billed == 2


class Named(TransformComponent):
    """A costly step behind the extractor, whose results the cache of the pipeline keeps."""

    def __call__(self, nodes: Any, **kwargs: Any) -> Any:
        for node in nodes:
            node.metadata["url"] = node.image_url
        return nodes


@pytest.mark.parametrize("behaviour", [answer("a far picture"), status(422)])
def test_the_cache_does_not_mix_pictures_up_in_the_steps_that_follow(
    extractor: Extractor, server: FaultServer, behaviour: Any
) -> None:
    """Of URLs that are passed on nothing is known, and two can be described alike."""
    server.script = [behaviour]
    pipeline = IngestionPipeline(transformations=[extractor(), Named()])
    urls = [f"http://127.0.0.1:9/{name}.png" for name in "ab"]
    nodes = [pipeline.run(nodes=[ImageNode(image_url=url)])[0] for url in urls]
    assert [node.metadata["url"] for node in nodes] == urls


@pytest.mark.parametrize("how", ["run", "arun"])
def test_a_pipeline_that_is_run_again_pays_nothing(
    extractor: Extractor, server: FaultServer, pictures: list[Path], how: str
) -> None:
    describer = extractor()
    pipeline = IngestionPipeline(transformations=[describer])

    async def run() -> Any:
        nodes = await pipeline.arun(nodes=nodes_of(pictures))
        await describer.llm.aclose()
        return nodes

    for _ in range(2):
        nodes = asyncio.run(run()) if how == "arun" else pipeline.run(nodes=nodes_of(pictures))
        assert [node.metadata["image_description"] for node in nodes] == [
            described(path.read_bytes()) for path in pictures
        ]
    assert server.billed == len(pictures)


@pytest.mark.long
def test_a_pool_of_processes_shares_the_store_and_the_spending_limit(
    extractor: Extractor, make: Make, server: FaultServer, pictures: list[Path], tmp_path: Path
) -> None:
    """The processes receive the extractor in a pickle, with the key, the limit and the store."""
    llm = make(spending=Spending(max_images=len(pictures), path=tmp_path / "spending.db"))
    describer = extractor(llm, store=tmp_path / "captions.db")
    pipeline = IngestionPipeline(transformations=[describer])
    for _ in range(2):
        nodes = pipeline.run(nodes=nodes_of(pictures), num_workers=2)
        assert [node.metadata["image_description"] for node in nodes] == [
            described(path.read_bytes()) for path in pictures
        ]
    assert server.billed == llm.spending.snapshot().images_billed == len(pictures)
    authorizations = {request.headers["authorization"] for request in server.requests}
    assert authorizations == {f"Bearer {KEY}"}


def test_a_pool_of_processes_does_not_lose_the_cap(extractor: Extractor, make: Make) -> None:
    describer = extractor(make(spending=Spending(max_usd=1)))
    pipeline = IngestionPipeline(transformations=[describer])
    with pytest.raises(ConfigurationError, match="second cap"):
        pipeline.run(nodes=[TextNode(text="a"), TextNode(text="b")], num_workers=2)


async def test_it_works_inside_a_running_loop(
    extractor: Extractor, server: FaultServer, pictures: list[Path]
) -> None:
    """As in a notebook."""
    describer = extractor()
    describer(nodes_of(pictures))
    assert describer.extract(nodes_of(pictures))[0]["image_description"]
    assert server.billed == len(pictures)


_NOTEBOOK = """
    import asyncio, gc, os, sys, warnings
    import nest_asyncio

    nest_asyncio.apply()  # the first cell of many notebooks
    from describing import describe, nodes_of
    from fault_server import FaultServer
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index_phospho import ImageDescriptionExtractor, Phospho
    from pathlib import Path

    path = Path(sys.argv[1])

    def step(llm, number):
        return ImageDescriptionExtractor(llm=llm, prompt=str(number), show_progress=False)

    async def cells(llm):
        for number in range(20):
            if number == 5:
                gc.collect()
                before = len(os.listdir("/proc/self/fd"))
            if number % 2:
                step(llm, number)(nodes_of([path]))
            else:
                IngestionPipeline(transformations=[step(llm, number)]).run(nodes=nodes_of([path]))
        gc.collect()
        print("grown", len(os.listdir("/proc/self/fd")) - before)

    with FaultServer(describe).running() as server:
        llm = Phospho(base_url=server.base_url)
        asyncio.run(cells(llm))
        llm.close()
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_a_notebook_with_nest_asyncio_leaks_no_socket_and_prints_no_traceback(
    pictures: list[Path],
) -> None:
    ended = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", dedent(_NOTEBOOK), str(pictures[0])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[-1]) < 5
    assert ended.stderr == ""


def test_progress_counts_pictures(
    extractor: Extractor, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    extractor(show_progress=True)([*nodes_of(pictures), TextNode(text="a note")])
    shown = capsys.readouterr().err
    assert "Describing images: 100%" in shown
    assert f"{len(pictures)}/{len(pictures)}" in shown


# What is written down


def test_nothing_that_is_written_down_holds_the_llm_or_its_key(
    extractor: Extractor, *, pictures: list[Path], tmp_path: Path, events: Any
) -> None:
    describer = extractor(store=tmp_path / "captions.db")
    nodes = describer(nodes_of(pictures[:1]))
    pipeline = IngestionPipeline(transformations=[describer])
    assert "llm" not in describer.to_dict()
    places = {
        "repr": repr(describer),
        "str": str(describer),
        "to_dict": repr(describer.to_dict()),
        "to_json": describer.to_json(),
        "model_dump": repr(describer.model_dump()),
        "model_dump, asked for": repr(describer.model_dump(include={"llm"})),
        "json schema": json.dumps(type(describer).model_json_schema()),
        "pipeline": repr(pipeline) + repr(pipeline.model_dump()),
        "events": "".join(event.model_dump_json() for event in events.seen),
        "nodes": repr([node.to_dict() for node in nodes]),
    }
    assert [place for place, text in places.items() if KEY in text] == []
    assert len(events.seen) == 2


def test_it_comes_back_from_its_dict(extractor: Extractor, make: Make, tmp_path: Path) -> None:
    describer = extractor(prompt="Which?", store=tmp_path / "c.db", into_text=True, num_workers=2)
    data = describer.to_dict()
    before = dict(data)
    twin = ImageDescriptionExtractor.from_dict(data, llm=make())
    assert data == before
    assert twin.model_dump() == describer.model_dump()
    assert ImageDescriptionExtractor.from_json(describer.to_json(), llm=make()).prompt == "Which?"
    with pytest.raises(ConfigurationError, match="llm="):
        ImageDescriptionExtractor.from_dict(data)


@pytest.mark.parametrize("stored", [True, False], ids=["in a file", "in memory"])
def test_copies_share_what_was_paid_for(
    extractor: Extractor, *, server: FaultServer, pictures: list[Path], tmp_path: Path, stored: bool
) -> None:
    describer = extractor(store=tmp_path / "captions.db" if stored else None)
    describer(nodes_of(pictures[:1]))
    twins = [copy.copy(describer), copy.deepcopy(describer)]
    if stored:
        twins.append(pickle.loads(pickle.dumps(describer)))  # noqa: S301 - our own
    for twin in twins:
        assert twin.llm.api_key == KEY
        twin(nodes_of(pictures[:1]))
    assert server.billed == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_workers": 0}, ConfigurationError),
        ({"promt": "Which?"}, ValidationError),
        ({"llm": KEY}, ValidationError),
    ],
    ids=str,
)
def test_a_wrong_setting_is_told_when_it_is_made(
    extractor: Extractor, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as refused:
        extractor(**options)
    assert KEY not in str(refused.value)
