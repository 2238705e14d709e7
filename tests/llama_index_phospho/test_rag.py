"""A folder of pictures and notes: described when ingested, found by words, answered by looking."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SimpleKeywordTableIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, ImageNode, TextNode
from PIL import Image, ImageDraw, ImageFont

from consumers import FixedRetriever
from fault_server import FaultServer, answer
from live_server import serve
from llama_index_phospho import ImageDescriptionExtractor, Phospho
from phospho_multimodal import Spending
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import Engine, InputImage, Question, load_engine
from pictures import encoded

pytestmark = pytest.mark.long

WORDS = """
Kestrel Heron Osprey Falcon Magpie Pelican Sparrow Toucan Condor Penguin
Walnut Cherry Hazel Maple Willow Cedar Poplar Juniper Laurel Cypress
Granite Marble Basalt Quartz Copper Silver Cobalt Nickel Bronze Graphite
Lantern Anchor Compass Hammer Saddle Violin Trumpet Kettle Bucket Ladder
"""
FIRMS = WORDS.split()
TOTALS = {firm: f"{2013 + 97 * number}" for number, firm in enumerate(FIRMS)}
ASKED = FIRMS[::4]

# Each has a word of some question, or two: half of what the right picture has.
NOTES = [f"The {firm.lower()} was known long before that." for firm in FIRMS[:10]]
NOTES += [f"How a total is reckoned, part {number}: add it up." for number in range(10)]


@dataclass
class CountingEngine:
    """Counts what the server is asked about, which is what would be paid for."""

    inner: Engine
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.inner.name

    def describe(self, picture: InputImage, question: Question) -> str:
        with self.lock:
            self.seen[hashlib.sha256(picture.data).hexdigest()] += 1
        return self.inner.describe(picture, question)


@dataclass
class Archive:
    """What was ingested, with what it was ingested."""

    engine: CountingEngine
    llm: Phospho
    extractor: ImageDescriptionExtractor
    folder: Path
    nodes: Sequence[BaseNode] = ()


def receipt(firm: str) -> Image.Image:
    """A picture of a name and a number: small and square, since reading takes its time."""
    image = Image.new("RGB", (200, 200), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=32)
    pen.text((16, 40), firm, "black", font)
    pen.text((16, 110), f"Total {TOTALS[firm]}", "black", font)
    return image


def ingested(archive: Archive) -> Sequence[BaseNode]:
    pictures = [
        # Names that say nothing: what is in a picture is found by its description alone.
        ImageNode(image_path=str(path), metadata={"file_name": path.name})
        for path in sorted(archive.folder.glob("*.png"))
    ]
    notes = [TextNode(text=note) for note in NOTES]
    return IngestionPipeline(transformations=[archive.extractor]).run(nodes=[*notes, *pictures])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """40 pictures and 20 notes, ingested with the local server and its `ocr` engine."""
    folder = tmp_path_factory.mktemp("archive")
    for number, firm in enumerate(FIRMS):
        receipt(firm).save(folder / f"scan-{number:02}.png")
    engine = CountingEngine(load_engine("ocr"))
    with serve(create_app(engine)) as base_url:
        llm = Phospho(base_url=base_url, api_key="test-key", spending=Spending(max_images=50))
        extractor = ImageDescriptionExtractor(
            llm=llm, store=folder / "descriptions.db", show_progress=False
        )
        archive = Archive(engine, llm, extractor, folder)
        archive.nodes = ingested(archive)
        yield archive
        llm.close()


def test_ten_questions_are_answered_by_the_picture_that_knows(archive: Archive) -> None:
    assert len(archive.nodes) == len(FIRMS) + len(NOTES) == 60
    assert len(archive.engine.seen) == archive.engine.seen.total() == len(FIRMS)
    ingested(archive)  # once more, for nothing
    assert archive.engine.seen.total() == len(FIRMS)

    index = SimpleKeywordTableIndex(archive.nodes, llm=archive.llm, max_keywords_per_chunk=1000)
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(num_chunks_per_query=1), llm=archive.llm, multimodal=True
    )
    for asked, firm in enumerate(ASKED, start=1):
        before = archive.engine.seen.copy()
        response = engine.query(f"What is the total of {firm}?")
        (found,) = response.source_nodes
        assert found.node.metadata["file_name"] == f"scan-{FIRMS.index(firm):02}.png"
        assert TOTALS[firm] in str(response)
        # The answer looked at that very picture, and at no other.
        assert archive.engine.seen - before == Counter([found.node.metadata["image_sha256"]])
        assert archive.engine.seen.total() == len(FIRMS) + asked
    ledger = archive.llm.spending.snapshot()
    assert (ledger.images_billed, ledger.images_in_doubt) == (len(FIRMS) + len(ASKED), 0)


# Several pictures to one question: a model that merges is scripted, since `ocr` reads alone


@pytest.fixture
def three_pictures(tmp_path: Path) -> list[ImageNode]:
    nodes = []
    for firm in FIRMS[:3]:
        path = tmp_path / f"{firm}.png"
        receipt(firm).save(path)
        nodes.append(ImageNode(image_path=str(path), metadata={"file_name": path.name}))
    return nodes


def query(server: FaultServer, nodes: Sequence[BaseNode], mode: str, **options: Any) -> str:
    llm = Phospho(base_url=server.base_url, **options)
    engine = RetrieverQueryEngine.from_args(
        FixedRetriever(nodes), llm=llm, multimodal=True, response_mode=mode
    )
    text = str(engine.query("What is the sum of the totals?"))
    llm.close()
    return text


@pytest.mark.parametrize("mode", ["compact", "refine"])
def test_an_answer_goes_from_picture_to_picture(three_pictures: list[ImageNode], mode: str) -> None:
    answers = ["2013 so far", "4123 so far", "6330 in all"]
    with FaultServer(*map(answer, answers)).running() as server:
        assert query(server, three_pictures, mode) == answers[-1]
    texts = [request.item["text"] for request in server.requests]
    assert [[said in text for said in answers[:2]] for text in texts] == [
        [False, False],
        [True, False],
        [False, True],
    ]
    files = [Path(node.image_path).read_bytes() for node in three_pictures]
    assert [request.image for request in server.requests] == files
    assert all("What is the sum of the totals?" in text for text in texts)


def test_answers_are_put_together_in_the_end(three_pictures: list[ImageNode]) -> None:
    """The last request has no picture: it goes out with the default one."""
    default = encoded()
    answers = ["it says 2013", "it says 2110", "it says 2207", "6330 in all"]
    with FaultServer(*map(answer, answers)).running() as server:
        text = query(
            server, three_pictures, "tree_summarize", default_image=default, context_window=4096
        )
    assert text == answers[-1]
    assert all(said in server.requests[-1].item["text"] for said in answers[:3])
    assert [request.image == default for request in server.requests] == [False] * 3 + [True]


def test_one_sheet_shows_several_pictures_to_a_window_that_holds_them(
    three_pictures: list[ImageNode],
) -> None:
    with FaultServer(answer("6330 in all")).running() as server:
        text = query(server, three_pictures, "compact", context_window=128_000)
    assert text == "6330 in all"
    (request,) = server.requests
    assert "a montage of 3 images" in request.item["text"]
