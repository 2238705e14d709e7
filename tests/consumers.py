"""The places of LlamaIndex that take an LLM, and the ways to ask each; see `consumer_matrix`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llama_index.core import ChatPromptTemplate, Settings
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.indices.multi_modal import MultiModalVectorStoreIndex
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.program import MultiModalLLMCompletionProgram
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RetrieverQueryEngine,
    SimpleMultiModalQueryEngine,
)
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import BaseNode, ImageNode, NodeWithScore, QueryBundle, TextNode
from pydantic import BaseModel

QUESTION = "What is in the pictures?"
NOTES = {"short": "Cats are nice.", "long": "Cats are nice, and they sleep a lot. " * 250}
"""The long one has 2,500 tokens, too many for a request that also has a picture."""
PROSE = "It is a cat."


class Animal(BaseModel):
    """What is asked for where the answer is an object."""

    name: str


class Sentence(BaseModel):
    """An object that a query engine can stream: core hands on its field `answer` alone."""

    answer: str


@dataclass(frozen=True)
class Material:
    """What a consumer is given.

    Attributes:
        paths: Files of distinct pictures.
        note: The text among the nodes: `short`, `long` or none.
    """

    paths: Sequence[Path]
    note: str | None = None

    @property
    def nodes(self) -> list[BaseNode]:
        """The note, and a node for each picture."""
        images = [
            ImageNode(image_path=str(path), metadata={"file_name": path.name})
            for path in self.paths
        ]
        return [*([TextNode(text=NOTES[self.note])] if self.note else []), *images]

    @property
    def blocks(self) -> list[ImageBlock]:
        """A block for each picture."""
        return [ImageBlock(path=path) for path in self.paths]

    @property
    def message(self) -> ChatMessage:
        """The question and the pictures in one message."""
        return ChatMessage(blocks=[TextBlock(text=QUESTION), *self.blocks])


Outcome: TypeAlias = "str | Coroutine[Any, Any, str]"
Ask: TypeAlias = Callable[[Any, Material], Outcome]


class FixedRetriever(BaseRetriever):
    """Finds the same nodes for every query."""

    def __init__(self, nodes: Sequence[BaseNode]) -> None:
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=node, score=1.0) for node in self.nodes]


# Query engines


def query_engine(mode: str) -> dict[str, Ask]:
    def engine(llm: Any, material: Material, **options: Any) -> Any:
        retriever = FixedRetriever(material.nodes)
        return RetrieverQueryEngine.from_args(
            retriever, llm=llm, multimodal=True, response_mode=mode, **options
        )

    return asked(engine, streams=mode not in {"accumulate", "compact_accumulate"})


def asked(engine: Callable[..., Any], *, streams: bool) -> dict[str, Ask]:
    def query(llm: Any, material: Material) -> str:
        return str(engine(llm, material).query(QUESTION))

    async def aquery(llm: Any, material: Material) -> str:
        return str(await engine(llm, material).aquery(QUESTION))

    def stream(llm: Any, material: Material) -> str:
        response = engine(llm, material, streaming=True).query(QUESTION)
        return "".join(response.response_gen)

    async def astream(llm: Any, material: Material) -> str:
        response = await engine(llm, material, streaming=True).aquery(QUESTION)
        return "".join([text async for text in response.async_response_gen()])

    streaming: dict[str, Ask] = {"stream": stream, "astream": astream}
    return {"query": query, "aquery": aquery, **(streaming if streams else {})}


def citation(llm: Any, material: Material, **options: Any) -> Any:
    retriever = FixedRetriever(material.nodes)
    return CitationQueryEngine.from_args(
        None, retriever=retriever, llm=llm, multimodal=True, **options
    )


def structured_engine(output_cls: type[BaseModel]) -> dict[str, Ask]:
    def engine(llm: Any, material: Material, **options: Any) -> Any:
        return RetrieverQueryEngine.from_args(
            FixedRetriever(material.nodes),
            llm=llm,
            multimodal=True,
            response_mode="compact",
            output_cls=output_cls,
            **options,
        )

    return asked(engine, streams="answer" in output_cls.model_fields)


def simple(llm: Any, material: Material, **_: Any) -> Any:
    return SimpleMultiModalQueryEngine(FixedRetriever(material.nodes), multi_modal_llm=llm)


def _index(material: Material) -> MultiModalVectorStoreIndex:
    return MultiModalVectorStoreIndex(
        material.nodes,
        embed_model=MockEmbedding(embed_dim=3),
        image_embed_model=MockMultiModalEmbedding(embed_dim=3),
    )


def index_engine(llm: Any, material: Material, **_: Any) -> Any:
    return _index(material).as_query_engine(llm=llm)


def chat_engine(mode: ChatMode, *, turns: int = 1) -> dict[str, Ask]:
    def engine(llm: Any, material: Material) -> Any:
        # Core's default memory is a database that is never closed, which is a warning, and so an
        # error here.
        memory = ChatMemoryBuffer.from_defaults(llm=llm)
        return _index(material).as_chat_engine(mode, llm=llm, memory=memory)

    def chat(llm: Any, material: Material) -> str:
        asked = engine(llm, material)
        return [str(asked.chat(QUESTION)) for _ in range(turns)][-1]

    async def achat(llm: Any, material: Material) -> str:
        asked = engine(llm, material)
        return [str(await asked.achat(QUESTION)) for _ in range(turns)][-1]

    def stream(llm: Any, material: Material) -> str:
        asked = engine(llm, material)
        return ["".join(asked.stream_chat(QUESTION).response_gen) for _ in range(turns)][-1]

    async def astream(llm: Any, material: Material) -> str:
        asked = engine(llm, material)
        for _ in range(turns):
            response = await asked.astream_chat(QUESTION)
            text = "".join([piece async for piece in response.async_response_gen()])
        return text

    return {"chat": chat, "achat": achat, "stream": stream, "astream": astream}


def of_the_settings(mode: str) -> dict[str, Ask]:
    """Leave the model to `Settings.llm`, as core's own default."""

    def engine(llm: Any, material: Material, **options: Any) -> Any:
        Settings.llm = llm
        return RetrieverQueryEngine.from_args(
            FixedRetriever(material.nodes), multimodal=True, response_mode=mode, **options
        )

    return asked(engine, streams=mode == "compact")


# Structured output


def structured() -> dict[str, Ask]:
    def model(llm: Any) -> Any:
        return llm.as_structured_llm(Animal)

    def chat(llm: Any, material: Material) -> str:
        return _name(model(llm).chat([material.message]).raw)

    async def achat(llm: Any, material: Material) -> str:
        return _name((await model(llm).achat([material.message])).raw)

    def stream(llm: Any, material: Material) -> str:
        return _name([chunk.raw for chunk in model(llm).stream_chat([material.message])][-1])

    async def astream(llm: Any, material: Material) -> str:
        chunks = await model(llm).astream_chat([material.message])
        return _name([chunk.raw async for chunk in chunks][-1])

    return {"chat": chat, "achat": achat, "stream": stream, "astream": astream}


def predict() -> dict[str, Ask]:
    def of(material: Material) -> ChatPromptTemplate:
        return ChatPromptTemplate([material.message])

    def predict(llm: Any, material: Material) -> str:
        return _name(llm.structured_predict(Animal, of(material)))

    async def apredict(llm: Any, material: Material) -> str:
        return _name(await llm.astructured_predict(Animal, of(material)))

    def stream(llm: Any, material: Material) -> str:
        return _name(list(llm.stream_structured_predict(Animal, of(material)))[-1])

    async def astream(llm: Any, material: Material) -> str:
        objects = await llm.astream_structured_predict(Animal, of(material))
        return _name([item async for item in objects][-1])

    return {"predict": predict, "apredict": apredict, "stream": stream, "astream": astream}


def program(llm: Any, material: Material) -> str:
    program = MultiModalLLMCompletionProgram.from_defaults(
        output_cls=Animal,
        prompt_template_str=QUESTION,
        multi_modal_llm=llm,
        image_documents=material.blocks,
    )
    return _name(program())


def _name(animal: Any) -> str:
    assert isinstance(animal, Animal)
    return animal.name


# Evaluators and agents


def evaluator(kind: Any) -> dict[str, Ask]:
    def given(material: Material) -> dict[str, Any]:
        paths = [str(path) for path in material.paths]
        texts = {"query": QUESTION, "response": PROSE, "contexts": [NOTES["short"]]}
        return {**texts, "image_paths": paths}

    def evaluate(llm: Any, material: Material) -> str:
        return str(kind(multi_modal_llm=llm).evaluate(**given(material)).passing)

    async def aevaluate(llm: Any, material: Material) -> str:
        return str((await kind(multi_modal_llm=llm).aevaluate(**given(material))).passing)

    return {"evaluate": evaluate, "aevaluate": aevaluate}


def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word} is a word"


def execute(code: str) -> str:
    """Run code."""
    return f"ran {len(code)} characters"


def agent(make: Callable[..., Any]) -> dict[str, Ask]:
    def ask(*, streaming: bool) -> Ask:
        async def run(llm: Any, material: Material) -> str:
            return str(await make(llm, streaming=streaming).run(user_msg=material.message))

        return run

    return {"run": ask(streaming=False), "stream": ask(streaming=True)}


def react(llm: Any, **options: Any) -> Any:
    return ReActAgent(llm=llm, tools=[look_up], **options)


def function(llm: Any, **options: Any) -> Any:
    return FunctionAgent(llm=llm, tools=[look_up], **options)


def code_act(llm: Any, **options: Any) -> Any:
    return CodeActAgent(execute, llm=llm, tools=[look_up], **options)


def workflow(llm: Any, **_: Any) -> Any:
    return AgentWorkflow.from_tools_or_functions([look_up], llm=llm)
