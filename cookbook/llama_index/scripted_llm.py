"""An agent's LLM that needs no account: it follows a script and answers from what it reads.

The notebook uses it unless `PHOSPHO_COOKBOOK_LLM` names a real LLM. Its answer is right only if the
descriptions of the images are.
"""

from __future__ import annotations

import re
from typing import Any

from llama_index.core.llms import (
    CompletionResponse,
    CompletionResponseGen,
    CustomLLM,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_completion_callback

__all__ = ["ScriptedLLM"]

MILLS = ("windmill", "watermill")

ACTION = """\
Thought: I have to see the price list of the {mill}.
Action: ask_about_image
Action Input: {{"image": "{mill}", "question": "What does wheat cost?"}}"""

ANSWER = """\
Thought: I can answer without using any more tools.
Answer: The {cheap}: its wheat costs {low}, and that of the {dear} {high}."""


class ScriptedLLM(CustomLLM):
    """Looks at one price list after the other, then compares."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="scripted")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        # The instructions contain an example of an observation. It has no price.
        prices = re.findall(r"^\| Wheat (\d\.\d\d)$", prompt, re.MULTILINE)
        if len(prices) < len(MILLS):
            return CompletionResponse(text=ACTION.format(mill=MILLS[len(prices)]))
        (low, cheap), (high, dear) = sorted(zip(prices, MILLS, strict=True))
        return CompletionResponse(text=ANSWER.format(cheap=cheap, low=low, dear=dear, high=high))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        whole = self.complete(prompt, formatted, **kwargs).text
        yield CompletionResponse(text=whole, delta=whole)
