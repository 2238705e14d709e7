"""Images as `SimpleDirectoryReader` returns them, from the reader to the answer."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import (
    Settings,
    SimpleDirectoryReader,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from consumers import FixedRetriever
from describing import described
from fault_server import FaultServer, answer, status
from internet import Internet, picture
from llama_index_phospho import ImageDescriptionExtractor, Phospho
from phospho_multimodal import ConfigurationError
from pictures import draw

Extractor = Callable[..., ImageDescriptionExtractor]
Make = Callable[..., Any]


def read(paths: Sequence[Path], **options: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its ImageReader leaves files open
        reader = SimpleDirectoryReader(input_files=list(paths), filename_as_id=True, **options)
        return reader.load_data()


def text_of(path: Path) -> str:
    return described(path.read_bytes())


async def ingested(pipeline: IngestionPipeline, how: str, given: list[Any]) -> Any:
    if how == "run":
        return await asyncio.to_thread(pipeline.run, documents=given)
    nodes = await pipeline.arun(documents=given)
    for step in pipeline.transformations:
        if isinstance(step, ImageDescriptionExtractor):
            await step.llm.aclose()
    return nodes


@pytest.fixture(autouse=True)
def _loop() -> Iterator[None]:
    """Have the loop that core's synchronous methods take, and close it, which they do not."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(params=["run", "arun"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pictures(pictures: list[Path]) -> list[Path]:
    return pictures[:3]


def test_every_mode_of_get_content_has_the_description(
    extractor: Extractor, pictures: list[Path]
) -> None:
    for path, node in zip(pictures, extractor()(read(pictures)), strict=True):
        assert type(node) is ImageNode
        assert node.metadata["file_name"] == path.name
        for mode in MetadataMode:
            assert text_of(path) in node.get_content(mode), mode
            assert mode is MetadataMode.ALL or node.get_content(mode).count(text_of(path)) == 1


async def test_the_steps_that_follow_get_the_image_they_were_given(
    extractor: Extractor, server: FaultServer, pictures: list[Path], how: str
) -> None:
    pipeline = IngestionPipeline(transformations=[extractor(), MockEmbedding(3)])
    for _ in range(3):
        for path in pictures:
            (node,) = await ingested(pipeline, how, read([path]))
            assert node.metadata["file_name"] == path.name
            assert node.metadata["image_description"] == text_of(path)
            assert node.image_path == str(path)
            assert node.embedding
    assert server.billed == len(pictures)


async def test_the_cache_of_a_pipeline_stops_growing(
    extractor: Extractor, pictures: list[Path], how: str, tmp_path: Path
) -> None:
    """And it is of use: what was described is not even looked up any more."""
    pipeline = IngestionPipeline(
        transformations=[extractor(store=tmp_path / "captions.db"), MockEmbedding(3)]
    )
    sizes = []
    for _ in range(5):
        await ingested(pipeline, how, read(pictures))
        sizes.append(len(pipeline.cache.cache.get_all(collection=pipeline.cache.collection)))
    assert sizes[-1] == sizes[1]
    pipeline.persist(str(tmp_path / "pipeline"))
    another = IngestionPipeline(
        transformations=[extractor(store=tmp_path / "captions.db"), MockEmbedding(3)]
    )
    another.load(str(tmp_path / "pipeline"))
    await ingested(another, how, read(pictures))
    assert len(another.cache.cache.get_all(collection=another.cache.collection)) == sizes[-1]


@pytest.mark.parametrize("url_mode", ["pass", "fetch"])
def test_nor_does_it_grow_by_urls_and_by_what_is_no_image(
    extractor: Extractor,
    make: Make,
    *,
    server: FaultServer,
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    url_mode: str,
) -> None:
    server.script = [answer("seen")]
    (tmp_path / "notes.png").write_text("no image")
    paths = [str(tmp_path / "notes.png"), str(tmp_path / "nowhere.png"), str(pictures[0])]
    pipeline = IngestionPipeline(transformations=[extractor(make(url_mode=url_mode))])
    sizes = []
    with FaultServer(picture(pictures[1].read_bytes())).running() as web:
        Internet(web).install(monkeypatch)
        for _ in range(4):
            nodes: list[BaseNode] = [ImageNode(image_path=path) for path in paths]
            nodes.append(ImageNode(image_url="http://pictures.example/a.png"))
            made = pipeline.run(nodes=nodes)
            assert ["image_description" in node.metadata for node in made] == [0, 0, 1, 1]
            sizes.append(len(pipeline.cache.cache.get_all(collection=pipeline.cache.collection)))
    assert sizes[-1] == sizes[1]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: draw(colour="olive").save(path), id="another image"),
        pytest.param(lambda path: path.rename(path.with_name("new.png")), id="another name"),
    ],
)
def test_the_cache_of_a_pipeline_sees_what_changed(
    extractor: Extractor, pictures: list[Path], change: Callable[[Path], Any]
) -> None:
    pipeline = IngestionPipeline(transformations=[extractor(), MockEmbedding(3)])
    for _ in range(3):
        pipeline.run(documents=read(pictures[:1]))
    path = change(pictures[0]) or pictures[0]
    (node,) = pipeline.run(documents=read([path]))
    assert node.metadata["image_description"] == text_of(path)
    assert node.metadata["file_name"] == path.name


def test_a_failure_is_not_kept_by_the_cache_of_a_pipeline(
    extractor: Extractor, server: FaultServer, pictures: list[Path]
) -> None:
    working = server.script
    server.script = [status(422)]
    pipeline = IngestionPipeline(transformations=[extractor()])
    for _ in range(2):
        (node,) = pipeline.run(documents=read(pictures[:1]))
        assert "image_description_error" in node.metadata
    server.script = working
    (node,) = pipeline.run(documents=read(pictures[:1]))
    assert node.metadata["image_description"] == text_of(pictures[0])


# Stores


STORED = [
    pytest.param(lambda path: read([path])[0], id="SimpleDirectoryReader"),
    pytest.param(
        lambda path: ImageDocument(image=base64.b64encode(path.read_bytes()).decode()),
        id="base64",
    ),
    pytest.param(
        lambda path: Node(image_resource=MediaResource(data=path.read_bytes())), id="bytes"
    ),
    pytest.param(
        lambda path: ImageDocument(
            image=f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        ),
        id="a data URL",
    ),
    pytest.param(lambda path: ImageNode(image_path=str(path)), id="ImageNode"),
]


@pytest.mark.parametrize("into_text", [True, False])
@pytest.mark.parametrize("remove_text", [True, False])
@pytest.mark.parametrize("form", STORED)
def test_the_image_comes_back_from_a_store_that_keeps_the_text(
    extractor: Extractor,
    make: Make,
    *,
    server: FaultServer,
    pictures: list[Path],
    form: Callable[[Path], BaseNode],
    into_text: bool,
    remove_text: bool,
) -> None:
    """As Chroma, Qdrant, Postgres and BM25 do it: flat metadata, and the node as JSON."""
    (node,) = extractor(into_text=into_text)([form(pictures[0])])
    kept = node_to_metadata_dict(node, remove_text=remove_text, flat_metadata=True)
    text = node.get_content(MetadataMode.NONE) if remove_text else None
    back = metadata_dict_to_node(json.loads(json.dumps(kept)), text=text)
    assert isinstance(back, ImageNode)
    assert back.get_content(MetadataMode.EMBED) == node.get_content(MetadataMode.EMBED)
    engine = RetrieverQueryEngine.from_args(FixedRetriever([back]), llm=make(), multimodal=True)
    assert str(engine.query("What is it?")) == text_of(pictures[0])
    assert server.requests[-1].image == pictures[0].read_bytes()


def test_an_index_keeps_every_image_and_gives_it_back(
    extractor: Extractor, pictures: list[Path], tmp_path: Path
) -> None:
    embedding = MockEmbedding(3)
    index = VectorStoreIndex(extractor()(read(pictures)), embed_model=embedding)
    index.storage_context.persist(str(tmp_path / "index"))
    storage = StorageContext.from_defaults(persist_dir=str(tmp_path / "index"))
    loaded = load_index_from_storage(storage, embed_model=embedding)
    found = loaded.as_retriever(similarity_top_k=9).retrieve("Which?")
    assert {one.node.image_path for one in found} == {str(path) for path in pictures}


def test_a_document_can_be_deleted_from_an_index(
    extractor: Extractor, pictures: list[Path]
) -> None:
    documents = read(pictures)
    index = VectorStoreIndex.from_documents(
        documents, transformations=[extractor()], embed_model=MockEmbedding(3)
    )
    index.delete_ref_doc(documents[0].id_, delete_from_docstore=True)
    found = index.as_retriever(similarity_top_k=9).retrieve("Which?")
    assert {one.node.image_path for one in found} == {str(path) for path in pictures[1:]}
    assert index.refresh_ref_docs(read(pictures)) == [True, False, False]


@pytest.mark.parametrize("documents", [True, False], ids=["documents", "nodes"])
async def test_upserts_skip_what_did_not_change_and_replace_what_did(
    extractor: Extractor, server: FaultServer, *, pictures: list[Path], how: str, documents: bool
) -> None:
    store = SimpleVectorStore()
    pipeline = IngestionPipeline(
        transformations=[extractor(), MockEmbedding(3)],
        docstore=SimpleDocumentStore(),
        vector_store=store,
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )

    def given(paths: list[Path]) -> list[Any]:
        if documents:
            return read(paths)
        return [
            ImageNode(id_=path.name, image=base64.b64encode(path.read_bytes()).decode())
            for path in paths
        ]

    assert len(await ingested(pipeline, how, given(pictures))) == 3
    assert len(await ingested(pipeline, how, given(pictures))) == 0
    draw(colour="olive", width=99).save(pictures[0])
    (node,) = await ingested(pipeline, how, given(pictures))
    assert node.metadata["image_description"] == text_of(pictures[0])
    assert server.billed == 4
    if documents:  # what core deletes in a vector store, it finds by the source
        assert len(store.data.embedding_dict) == 3
        await ingested(pipeline, how, given(pictures[1:]))
        assert len(store.data.embedding_dict) == 2


def test_a_splitter_before_and_ids_and_relations_stay(
    extractor: Extractor, pictures: list[Path]
) -> None:
    documents = read(pictures[:1])
    nodes = SentenceSplitter()(documents)
    (node,) = extractor()(nodes)
    assert (node.node_id, node.ref_doc_id) == (nodes[0].node_id, documents[0].id_)
    relations = {NodeRelationship.PARENT: RelatedNodeInfo(node_id="page-1")}
    (node,) = extractor()(
        [Node(id_="a", image_resource=MediaResource(path=pictures[0]), relationships=relations)]
    )
    assert (node.node_id, node.relationships) == ("a", relations)
    (node,) = extractor()(documents)
    assert node.ref_doc_id == documents[0].id_
    assert node.excluded_llm_metadata_keys[:2] == documents[0].excluded_llm_metadata_keys[:2]


# What is told


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("a.bmp", {}),
        ("a.tiff", {}),
        ("a.png", {"file_type": "image/png"}),
        ("a.webp", {"file_type": "image/webp", "page": 1}),
    ],
)
def test_an_image_that_was_read_as_text_is_reported(
    extractor: Extractor,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    name: str,
    metadata: dict[str, Any],
) -> None:
    """For png and webp that is so where llama-index-readers-file is not installed."""
    path = tmp_path / name
    draw().save(path)
    if metadata:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        documents = [Document(text=text, metadata={"file_name": name, **metadata})]
    else:
        documents = read([path])
    before = documents[0].hash
    with caplog.at_level(logging.WARNING):
        (node,) = extractor()(documents)
    assert "llama-index-readers-file" in node.metadata["image_description_error"]
    assert "llama-index-readers-file" in caplog.text
    assert documents[0].hash == before
    assert "error" not in node.get_content(MetadataMode.EMBED)


@pytest.mark.parametrize(
    ("text", "name"),
    [("Total 8.20", "receipt.png"), ("<svg/>", "a.svg"), ("\x00binary", "a.exe")],
)
def test_a_text_is_not_taken_for_an_image(
    extractor: Extractor, caplog: pytest.LogCaptureFixture, text: str, name: str
) -> None:
    document = Document(text=text, metadata={"file_name": name})
    with caplog.at_level(logging.WARNING):
        (node,) = extractor()([document])
    assert node is document
    assert not caplog.records


@pytest.mark.parametrize("into_text", [True, False])
def test_two_extractors_keep_out_of_each_others_way(
    extractor: Extractor, server: FaultServer, pictures: list[Path], *, into_text: bool
) -> None:
    server.script = [answer("a receipt"), answer("8.20")]
    first = extractor(into_text=into_text)
    second = extractor(prompt="The total?", metadata_key="total", into_text=into_text)
    pipeline = IngestionPipeline(transformations=[first, second])
    for _ in range(3):
        (node,) = pipeline.run(documents=read(pictures[:1]))
        assert (node.metadata["image_description"], node.metadata["total"]) == ("a receipt", "8.20")
        assert node.metadata["image_description_prompt"] != node.metadata["total_prompt"]
        for said in ("a receipt", "8.20"):
            assert node.get_content(MetadataMode.EMBED).count(said) == 1
    assert server.billed == 2


@pytest.mark.parametrize(
    "sign",
    [
        "X-Amz-Credential=k&X-Amz-Date={0}&X-Amz-Expires=60&X-Amz-Signature={0}",
        "X-Goog-Algorithm=a&X-Goog-Date={0}&X-Goog-Signature={0}",
        "sv=2024&se={0}&sr=b&sp=r&sig={0}",
        "Expires={0}&Signature={0}&Key-Pair-Id=K1",
    ],
)
def test_a_url_that_is_signed_again_is_the_same_image(
    extractor: Extractor, server: FaultServer, sign: str
) -> None:
    server.script = [answer("far away")]
    describer = extractor()
    for signature in ("1", "2"):
        url = f"https://bucket.example.com/a.png?{sign.format(signature)}"
        (node,) = describer([ImageNode(image_url=url)])
        assert (node.image_url, node.text) == (url, "far away")
    describer([ImageNode(image_url="https://bucket.example.com/b.png")])
    assert len(server.requests) == 2


def test_the_llm_of_the_settings_is_used(
    make: Make, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_llm", make())
    (node,) = ImageDescriptionExtractor(show_progress=False)(read(pictures[:1]))
    assert node.text == text_of(pictures[0])
    given: Any = None  # as core's extractors take it
    assert isinstance(ImageDescriptionExtractor(llm=given).llm, Phospho)
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    with pytest.raises(ConfigurationError, match=r"llm=.*Settings\.llm"):
        ImageDescriptionExtractor()
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="not set"):
        ImageDescriptionExtractor()


def test_a_metadata_key_is_not_empty(extractor: Extractor) -> None:
    with pytest.raises(ConfigurationError, match="metadata_key"):
        extractor(metadata_key=" ")


@pytest.mark.parametrize("how", ["sync", "async"])
def test_errors_are_retried_or_passed_over_as_core_has_it(
    extractor: Extractor, make: Make, *, server: FaultServer, pictures: list[Path], how: str
) -> None:
    def call(describer: ImageDescriptionExtractor) -> Any:
        if how == "sync":
            return describer(read(pictures[:1]))

        async def run() -> Any:
            nodes = await describer.acall(read(pictures[:1]))
            await describer.llm.aclose()
            return nodes

        return asyncio.run(run())

    working = server.script
    server.script = [status(404), *working]
    (node,) = call(extractor(make(max_retries=0), max_retries=1, retry_backoff=0))
    assert node.text == text_of(pictures[0])
    server.script = [status(404)]
    (node,) = call(extractor(make(max_retries=0), raise_on_error=False))
    assert "image_description" not in node.metadata
