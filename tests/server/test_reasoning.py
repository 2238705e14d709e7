"""The reasoning of a model is not part of its answer, and an answer about markers stays whole."""

from __future__ import annotations

import pytest

from gateway import ask, gateway
from phospho_multimodal.server.engines.reasoning import without_reasoning
from scripted_upstream import completion, scripted

THOUGHT = "\nThe user wants a description. It may be a cat,\n\nor a dog.\n"

DELIMITED = {
    "think": ("<think>", "</think>"),
    "upper case": ("<THINK>", "</THINK>"),
    "spaces": ("< think >", "</ think >"),
    "attribute": ('<think type="long">', "</think>"),
    "thinking": ("<thinking>", "</thinking>"),
    "thought": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "seed": ("<seed:think>", "</seed:think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "kimi": ("◁think▷", "◁/think▷"),
    "open thoughts": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "gemma 4": ("<|channel>thought", "<channel|>"),
    "medgemma": ("<unused94>thought", "<unused95>"),
}


@pytest.mark.parametrize(("opening", "closing"), DELIMITED.values(), ids=list(DELIMITED))
class TestEveryKindOfMarkers:
    @pytest.mark.parametrize(
        "answer",
        [
            "{o}{t}{c}\n\nA cat.",
            "\n {o}{t}{c}A cat.\n",
            "{o}{c}\n\nA cat.",
            "{o}a{c}\n{o}b{c}\nA cat.",
            "{o}a {o}b{c} c{c}\nA cat.",
            "{t}{c}\n\nA cat.",
            "It is a cat. {c} A cat.",
            "{o}a{c}A cat.\n{o}Is it?{c}",
            "{o}a{c}A cat.\n{o}Is it",
        ],
    )
    def test_what_they_delimit_is_removed(self, opening, closing, answer):
        assert without_reasoning(answer.format(o=opening, c=closing, t=THOUGHT)) == "A cat."

    @pytest.mark.parametrize("answer", ["{o}{t}", "{o}{t}{c}\n", "{t}{c}", "{o}{t}{c}{o}more"])
    def test_reasoning_only_leaves_nothing(self, opening, closing, answer):
        assert without_reasoning(answer.format(o=opening, c=closing, t=THOUGHT)) == ""

    @pytest.mark.parametrize(
        "answer",
        [
            "The screenshot shows a {o} tag and its text.",
            "The screenshot shows a {c} tag and its text.",
            "The sign says {o}yes{c} in red.",
            "The code is `{o}` and `{c}`, on one line.",
            "The page ends with '{c}'.",
            "It reads:\n```html\n{o}yes\n{c}\n```\nNothing else.",
            "Two lines:\n{o}\nyes",
        ],
    )
    def test_an_answer_that_mentions_them_keeps_every_word(self, opening, closing, answer):
        answer = answer.format(o=opening, c=closing)
        assert without_reasoning(answer) == answer

    def test_an_answer_after_reasoning_keeps_what_it_mentions(self, opening, closing):
        answer = f"The tags are `{opening}` and {closing} here.\n```\n{opening}x{closing}\n```"
        assert without_reasoning(f"{opening}Hm.{closing}\n{answer}") == answer


ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|>"


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("<think/>A cat.", "A cat."),
        ("<think>Is <think> a tag?</think>A cat.", "A cat."),
        ("<think>I must not write </think> yet.</think>A cat.", "A cat."),
        ("<think>a</think><answer>A cat.</answer>", "A cat."),
        ("<answer>A cat.", "A cat."),
        ("<|begin_of_box|>A cat.<|end_of_box|>", "A cat."),
        ("<think>a</think>It says <|begin_of_box|>6.00<|end_of_box|>.", "It says 6.00."),
        (ANALYSIS, ""),
        ("<|channel|>analysis<|message|>Hm", ""),
        (f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|>A cat.<|return|>", "A cat."),
        ("<|start|>assistant<|channel|>final <|constrain|>text<|message|>A cat.", "A cat."),
        ("analysisThe user wants a description.assistantfinalA cat.", "A cat."),
        ("A cat.<|im_end|>\n", "A cat."),
        ("", ""),
    ],
)
def test_other_formats(answer, rest):
    assert without_reasoning(answer) == rest


@pytest.mark.parametrize(
    "answer",
    [
        "A cat.",
        "Analysis of the final assistant report.",
        "The formula is a < b > c.",
        "Thinking: a man sits on a bench.",
        "<html><body>An OCR of a page.</body></html>",
    ],
)
def test_an_answer_without_reasoning_stays_as_it_is(answer):
    assert without_reasoning(answer) == answer


def test_many_markers_take_no_quadratic_time():
    without_reasoning("<think>" * 3000 + "A cat.")
    without_reasoning("<think>a</think>" + "\n<think>b</think>x" * 1000)
    without_reasoning("a </think> b" * 2000)


class TestThroughTheServer:
    def test_the_description_has_no_reasoning(self):
        answer = f"<think>{THOUGHT}</think>\n\nA cat."
        with scripted("vllm", answer) as upstream, gateway(upstream.url) as client:
            assert ask(client).json() == {"predictions": [{"description": "A cat."}]}

    @pytest.mark.parametrize("reason", ["length", "stop"])
    def test_reasoning_only_is_a_500_and_the_log_says_so(self, reason, caplog):
        body = completion("<think>Okay, let me look at")
        body["choices"][0]["finish_reason"] = reason
        with scripted("vllm", (200, body, {})) as upstream, gateway(upstream.url) as client:
            assert ask(client).status_code == 500
        assert f"reasoning only (finish_reason: {reason})" in caplog.text
        assert "let me look" not in caplog.text
