"""The matrix: what LlamaIndex sends to an LLM, for each place that takes one.

One row is one consumer, with none, one, two and five pictures; `test_consumers` runs every cell.
`python tests/consumer_matrix.py` prints the table for the README, which a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.evaluation.multi_modal import (
    MultiModalFaithfulnessEvaluator,
    MultiModalRelevancyEvaluator,
)

from consumers import (
    PROSE,
    Animal,
    Ask,
    Sentence,
    agent,
    asked,
    chat_engine,
    citation,
    code_act,
    evaluator,
    function,
    index_engine,
    of_the_settings,
    predict,
    program,
    query_engine,
    react,
    simple,
    structured,
    structured_engine,
    workflow,
)

__all__ = ["CONSUMERS", "PICTURES", "Consumer", "table"]

PICTURES = (0, 1, 2, 5)


@dataclass(frozen=True)
class Consumer:
    """One place of LlamaIndex that takes an LLM.

    Attributes:
        name: What the table calls it.
        ways: The ways to ask it, which all come to the same.
        cells: For each number of pictures the requests, in their order: the number of pictures on
            it, or `d` for the default image. Without one, a call ends at its first `d`, in a
            `MissingImageError`.
        replies: What the model answers, the last one for all further requests.
        ends: What comes out where something was asked; the last reply if not given.
        note: The text among the nodes: `short`, `long` or none.
        at_once: Whether core's asynchronous ways start several requests at once, which arrive in
            any order unless the model sends one at a time.
        options: Further options of the model.
    """

    name: str
    ways: dict[str, Ask]
    cells: tuple[str, str, str, str]
    replies: tuple[str, ...] = (PROSE,)
    ends: str | None = None
    note: str | None = None
    at_once: bool = False
    options: dict[str, Any] = field(default_factory=dict)


EACH = ("", "1", "11", "11111")
EACH_WITH_TEXT = ("d", "1", "11", "11111")
EACH_AFTER_TEXT = ("d", "d1", "d11", "d11111")
TOGETHER = ("d", "1", "2", "5")
TWICE = ("dd", "11", "22", "55")
TWO_OF_THEM = ("d", "1", "2", "2")  # the index retrieves two
NEVER = ("", "", "", "")
DEFAULT = ("d", "d", "d", "d")

JSON = (json.dumps({"name": "cat"}),)
REACT = (
    'Thought: I look it up.\nAction: look_up\nAction Input: {"word": "cat"}',
    f"Thought: I can answer.\nAnswer: {PROSE}",
)
TOOLS = {"is_function_calling_model": True}
BY_TOOL = (json.dumps({"name": "Animal", "arguments": {"name": "cat"}}),)
CALLED = (json.dumps({"name": "look_up", "arguments": {"word": "cat"}}), PROSE)
CODE = ("I count.\n<execute>print(1)</execute>", PROSE)

_WITH = {None: "", "short": ", a short text among them", "long": ", a long text among them"}


def _modes() -> Iterator[Consumer]:
    """The response modes of a query engine, by what has been retrieved."""
    cells: dict[str, dict[str | None, tuple[str, str, str, str]]] = {
        "compact": {None: EACH, "short": EACH_WITH_TEXT, "long": EACH_AFTER_TEXT},
        "compact_accumulate": {
            None: ("", "1", "2", "221"),
            "short": ("d", "1", "2", "221"),
            "long": ("d", "1", "11", "122"),
        },
        "refine": {None: EACH, "short": EACH_AFTER_TEXT},
        "accumulate": {None: EACH, "short": EACH_AFTER_TEXT},
        "tree_summarize": {
            None: ("", "1", "2", "221d"),
            "short": ("d", "1", "2", "221d"),
            "long": ("d", "1", "11d", "122d"),
        },
        "simple_summarize": {
            None: ("", "1", "2", "2"),  # the others are left out
            "short": ("d", "1", "2", "2"),
            "long": ("d", "1", "1", "1"),
        },
    }
    for mode, by_note in cells.items():
        at_once = mode in {"accumulate", "compact_accumulate", "tree_summarize"}
        for note, requests in by_note.items():
            name = f"`{mode}`{_WITH[note]}"
            yield Consumer(name, query_engine(mode), requests, note=note, at_once=at_once)
    yield Consumer("`generation`", query_engine("generation"), DEFAULT, note="short")
    for mode in ("no_text", "context_only"):  # core has no way to tell these two the model
        yield Consumer(f"`{mode}`", of_the_settings(mode), NEVER, note="short")


CONSUMERS = [
    *_modes(),
    Consumer(
        "`compact` with `output_cls`",
        structured_engine(Animal),
        EACH,
        JSON,
        '{"name":"cat"}',
    ),
    Consumer(
        "`compact` with `output_cls` that has an `answer`",
        structured_engine(Sentence),
        EACH,
        (json.dumps({"answer": PROSE}),),
        PROSE,
    ),
    Consumer("`Settings.llm`", of_the_settings("compact"), EACH),
    Consumer("`CitationQueryEngine`", asked(citation, streams=True), EACH),
    Consumer("`SimpleMultiModalQueryEngine`", asked(simple, streams=False), TOGETHER),
    Consumer(
        "`MultiModalVectorStoreIndex.as_query_engine`",
        asked(index_engine, streams=False),
        TWO_OF_THEM,
    ),
    Consumer("`as_chat_engine(CONTEXT)`", chat_engine(ChatMode.CONTEXT), TWO_OF_THEM),
    Consumer(
        "`as_chat_engine(CONTEXT)`, two turns",
        chat_engine(ChatMode.CONTEXT, turns=2),
        ("dd", "11", "22", "22"),
    ),
    Consumer(
        "`as_chat_engine(CONDENSE_PLUS_CONTEXT)`",
        chat_engine(ChatMode.CONDENSE_PLUS_CONTEXT),
        TWO_OF_THEM,
    ),
    Consumer(
        "`as_chat_engine(CONDENSE_PLUS_CONTEXT)`, two turns",
        chat_engine(ChatMode.CONDENSE_PLUS_CONTEXT, turns=2),
        ("ddd", "1d1", "2d2", "2d2"),
    ),
    Consumer("`as_chat_engine(BEST)`", chat_engine(ChatMode.BEST), DEFAULT, note="short"),
    Consumer("`as_structured_llm`", structured(), TOGETHER, JSON, "cat"),
    Consumer(
        "`as_structured_llm`, tools by prompt",
        structured(),
        TOGETHER,
        BY_TOOL,
        "cat",
        options=TOOLS,
    ),
    Consumer("`structured_predict`", predict(), TOGETHER, JSON, "cat"),
    Consumer(
        "`structured_predict`, tools by prompt", predict(), TOGETHER, BY_TOOL, "cat", options=TOOLS
    ),
    Consumer("`MultiModalLLMCompletionProgram`", {"call": program}, TOGETHER, JSON, "cat"),
    Consumer(
        "`MultiModalFaithfulnessEvaluator`",
        evaluator(MultiModalFaithfulnessEvaluator),
        TOGETHER,
        ("YES",),
        "True",
    ),
    Consumer(
        "`MultiModalRelevancyEvaluator`",
        evaluator(MultiModalRelevancyEvaluator),
        TOGETHER,
        ("YES",),
        "True",
    ),
    Consumer("`ReActAgent`, two steps", agent(react), TWICE, REACT, PROSE),
    Consumer("`FunctionAgent`, two steps", agent(function), TWICE, CALLED, PROSE, options=TOOLS),
    Consumer("`AgentWorkflow`, two steps", agent(workflow), TWICE, REACT, PROSE),
    Consumer(
        "`AgentWorkflow`, tools by prompt, two steps",
        agent(workflow),
        TWICE,
        CALLED,
        PROSE,
        options=TOOLS,
    ),
    Consumer("`CodeActAgent`, two steps", agent(code_act), TWICE, CODE, PROSE),
]


def table() -> str:
    """The matrix in Markdown."""
    rows = [
        "| pictures: | 0 | 1 | 2 | 5 |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {consumer.name} | {' | '.join(' '.join(cell) or 'none' for cell in consumer.cells)} |"
        for consumer in CONSUMERS
    ]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
