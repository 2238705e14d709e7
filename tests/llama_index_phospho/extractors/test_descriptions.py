"""Describing pictures: which nodes, where it is written, and each picture once."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    TextNode,
)
from pydantic import AnyUrl

from describing import WRITES, describe, described, nodes_of, told
from fault_server import Connection, FaultServer, Received, answer, status
from internet import Internet, picture
from llama_index_phospho import ImageDescriptionExtractor
from llama_index_phospho.extractors import DESCRIPTION_PROMPT
from phospho_multimodal import (
    prepare_image,
)
from pictures import draw, encoded

Extractor = Callable[..., ImageDescriptionExtractor]
Make = Callable[..., Any]


def test_a_picture_gets_its_description(extractor: Extractor, pictures: list[Path]) -> None:
    (node,) = extractor()(nodes_of(pictures[:1]))
    data = pictures[0].read_bytes()
    assert re.fullmatch("[0-9a-f]{64}", node.metadata.pop("image_description_key"))
    assert told(node) == {
        "image_description": described(data),
        "image_description_prompt": DESCRIPTION_PROMPT,
        "image_description_model": "phospho-multimodal",
        "image_sha256": hashlib.sha256(data).hexdigest(),
    }
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert node.get_metadata_str(mode) == ""
        assert node.get_content(mode) == described(data)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda path: ImageNode(image_path=str(path)), id="an ImageNode"),
        pytest.param(lambda path: ImageDocument(image_path=str(path)), id="an ImageDocument"),
        pytest.param(
            lambda path: Node(image_resource=MediaResource(path=path)), id="a Node with a path"
        ),
        pytest.param(
            lambda path: Document(image_resource=MediaResource(data=path.read_bytes())),
            id="a Document with bytes",
        ),
    ],
)
@pytest.mark.parametrize("into_text", [False, True])
def test_every_kind_of_node_with_a_picture(
    extractor: Extractor, pictures: list[Path], form: Callable[[Path], Any], into_text: bool
) -> None:
    (node,) = extractor(into_text=into_text)([form(pictures[0])])
    text = described(pictures[0].read_bytes())
    assert node.metadata["image_description"] == text
    assert node.get_content(MetadataMode.NONE) == (text if into_text else "")


def test_other_nodes_are_left_as_they_are(extractor: Extractor, server: FaultServer) -> None:
    nodes = [TextNode(text="a note"), Document(text="a paper"), Node()]
    before = [node.model_dump() for node in nodes]
    assert [node.model_dump() for node in extractor()(nodes)] == before
    assert extractor().extract(nodes) == [{}, {}, {}]
    assert server.requests == []


def test_into_text_keeps_what_is_there_and_says_it_once(
    extractor: Extractor, pictures: list[Path]
) -> None:
    node = ImageNode(image_path=str(pictures[0]), text="Figure 3")
    describer = extractor()
    for _ in range(2):
        (node,) = describer([node])
    text = described(pictures[0].read_bytes())
    assert node.get_content(MetadataMode.EMBED) == f"Figure 3\n\n{text}"
    assert len(node.excluded_llm_metadata_keys) == len(set(node.excluded_llm_metadata_keys))


def test_another_description_takes_the_place_of_an_earlier_one(
    extractor: Extractor, make: Make, server: FaultServer, pictures: list[Path]
) -> None:
    node = ImageNode(image_path=str(pictures[0]), text="Figure 3")
    for prompt, text in (("What?", "a cat"), ("Which colour?", "grey")):
        server.script = [answer(text)]
        (node,) = extractor(prompt=prompt)([node])
        assert node.get_content(MetadataMode.NONE) == f"Figure 3\n\n{text}"
    server.script = [status(422)]
    (node,) = extractor(make(max_retries=0), prompt="Where?")([node])
    assert told(node).keys() == {"image_description_error", "image_description_key"}
    assert node.get_content(MetadataMode.NONE) == "Figure 3"


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("form", [ImageNode, ImageDocument])
def test_the_nodes_that_are_passed_are_not_changed(
    extractor: Extractor, pictures: list[Path], form: Any, *, in_place: bool
) -> None:
    """Document stores recognize what did not change by its hash."""
    original = form(image_path=str(pictures[0]), metadata={"page": 1}, text="Figure 3")
    before = original.model_dump()
    (node,) = extractor(in_place=in_place)([original])
    assert original.model_dump() == before
    assert (node.metadata["page"], node.text.startswith("Figure 3\n\n")) == (1, True)


def test_the_prompt_and_the_parameters_are_sent(
    extractor: Extractor, make: Make, server: FaultServer, pictures: list[Path]
) -> None:
    extractor(make(max_tokens=40, temperature=0), prompt="Which colour?")(nodes_of(pictures[:1]))
    item = dict(server.requests[0].item)
    del item["image_url"]
    assert item == {"text": "Which colour?", "max_new_tokens": 40, "temperature": 0.1}


def test_a_url_is_passed_on_and_has_no_digest(
    extractor: Extractor, make: Make, server: FaultServer
) -> None:
    server.script = [answer("a far picture")]
    url = "http://127.0.0.1:9/a.png?sig=secret"
    nodes = [ImageNode(image_url=url), Node(image_resource=MediaResource(url=AnyUrl(url)))]
    nodes = extractor(num_workers=1)(nodes)
    assert [node.metadata["image_description"] for node in nodes] == ["a far picture"] * 2
    assert "image_sha256" not in nodes[0].metadata
    assert [request.item["image_url"] for request in server.requests] == [url]


# Once


def test_each_distinct_picture_is_paid_for_once(
    extractor: Extractor, server: FaultServer, pictures: list[Path]
) -> None:
    nodes = extractor(num_workers=4)(nodes_of(pictures * 5))
    assert [node.metadata["image_description"] for node in nodes] == [
        described(path.read_bytes()) for path in pictures
    ] * 5
    assert server.billed == len(pictures)


def test_two_files_of_which_the_same_would_be_sent_are_one_picture(
    extractor: Extractor, server: FaultServer, tmp_path: Path
) -> None:
    path = tmp_path / "picture.tiff"
    draw().save(path, tiffinfo={315: "somebody"})
    sent = base64.b64encode(prepare_image(path).data).decode()
    nodes = [*nodes_of([path]), ImageNode(image=sent)]
    nodes = extractor()(nodes)
    assert nodes[0].metadata["image_sha256"] == nodes[1].metadata["image_sha256"]
    assert server.billed == 1


def test_no_more_than_num_workers_are_asked_about_at_once(
    extractor: Extractor, server: FaultServer, pictures: list[Path]
) -> None:
    def slowly(connection: Connection, request: Received) -> None:
        time.sleep(0.05)
        describe(connection, request)

    server.script = [slowly]
    extractor(num_workers=3)(nodes_of(pictures))
    assert server.most_in_flight == 3


@pytest.mark.parametrize("stored", [True, False], ids=["in a file", "in memory"])
def test_a_second_run_pays_nothing(
    extractor: Extractor, *, server: FaultServer, pictures: list[Path], tmp_path: Path, stored: bool
) -> None:
    path = tmp_path / "captions.db" if stored else None
    first = extractor(store=path)
    first(nodes_of(pictures))
    again = extractor(store=path) if stored else first
    nodes = again(nodes_of(pictures))
    assert all(told(node).keys() == WRITES for node in nodes)
    assert server.billed == len(pictures)


@pytest.mark.parametrize(
    ("options", "of_the_llm"),
    [
        ({"prompt": "Another?"}, {}),
        ({}, {"max_tokens": 9}),
        ({}, {"temperature": 0.7}),
        ({}, {"top_p": 0.5}),
        ({}, {"repetition_penalty": 2}),
        ({}, {"stop": "."}),
        ({}, {"model": "phospho-multimodal-7b"}),
        ({}, {"base_url": "http://localhost:{port}"}),
        ({}, {"max_image_side": 10}),
    ],
    ids=str,
)
def test_another_way_of_asking_is_asked_anew(
    extractor: Extractor,
    make: Make,
    *,
    server: FaultServer,
    pictures: list[Path],
    tmp_path: Path,
    options: dict[str, Any],
    of_the_llm: dict[str, Any],
) -> None:
    store = tmp_path / "captions.db"
    extractor(store=store)(nodes_of(pictures[:1]))
    if "base_url" in of_the_llm:
        of_the_llm = {"base_url": of_the_llm["base_url"].format(port=server.port)}
    extractor(make(**of_the_llm), store=store, **options)(nodes_of(pictures[:1]))
    assert server.billed == 2


def test_zero_and_the_endpoints_floor_are_one_temperature(
    extractor: Extractor, make: Make, server: FaultServer, pictures: list[Path], tmp_path: Path
) -> None:
    for temperature in (0, 0.1):
        extractor(make(temperature=temperature), store=tmp_path / "captions.db")(
            nodes_of(pictures[:1])
        )
    assert server.billed == 1


def test_urls_that_are_fetched_are_one_picture_if_the_same_is_behind_them(
    extractor: Extractor, make: Make, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded()
    names = ["a.jpg?key=hunter2", "b.jpg"]
    nodes = [ImageNode(image_url=f"http://pictures.example/{name}") for name in names]
    with FaultServer(picture(data)).running() as web:
        internet = Internet(web).install(monkeypatch)
        nodes = extractor(make(url_mode="fetch"))(nodes)
    assert len(internet.requests) == 2
    assert [request.image for request in server.requests] == [data]
    assert {node.metadata["image_sha256"] for node in nodes} == {hashlib.sha256(data).hexdigest()}
    assert "hunter2" not in repr([told(node) for node in nodes])


def test_a_url_inside_is_marked_and_not_opened(
    extractor: Extractor, make: Make, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    internet = Internet().install(monkeypatch)
    (node,) = extractor(make(url_mode="fetch"))([ImageNode(image_url="http://10.0.0.1/a.png")])
    assert node.metadata["image_description_error"].startswith("ImageError: ")
    assert internet.dialled == server.requests == []
