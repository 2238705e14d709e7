"""A prompt for each row of a source: templates over fields, and several prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from phospho_multimodal.batch.sources.items import Item, Source, WrappedSource
from phospho_multimodal.contract import request_body
from phospho_multimodal.errors import ConfigurationError, ImageError, PhosphoError

__all__ = ["PromptTemplate", "PromptedSource", "parse_prompts"]

# `{name}` stands for a field, and `{{name}}` for itself. JSON in a prompt is neither.
_FIELD = re.compile(r"\{\{([^\W\d][\w .-]*)\}\}|\{([^\W\d][\w .-]*)\}")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt, or what prompts are made of.

    Attributes:
        text: The prompt, in which `{name}` stands for a field.
        column: The field that is the whole prompt, instead of the text.
    """

    text: str
    column: str | None = None

    @property
    def fields(self) -> list[str]:
        """The names of its fields."""
        if self.column is not None:
            return [self.column]
        return list(dict.fromkeys(found[2] for found in _FIELD.finditer(self.text) if found[2]))

    def render(self, fields: Mapping[str, object]) -> str:
        """Fill in the fields of a row; raise `ImageError` if the row lacks one."""
        if self.column is not None:
            prompt = _to_text(self.column, fields)
        else:
            prompt = _FIELD.sub(
                lambda found: f"{{{found[1]}}}" if found[1] else _to_text(found[2], fields),
                self.text,
            )
        if not prompt.strip():
            message = "The prompt of this row is empty. Nothing was sent for it."
            raise ImageError(message)
        return prompt


def parse_prompts(prompt: str | Sequence[str], column: str | None) -> list[PromptTemplate]:
    """Read which prompts a job has."""
    if column is not None:
        return [PromptTemplate(f"{{{column}}}", column)]
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts or len(set(texts)) != len(texts):
        message = "A job needs a prompt, or several different prompts. Nothing was sent."
        raise ConfigurationError(message)
    return [PromptTemplate(text) for text in texts]


class PromptedSource(WrappedSource):
    """Gives each input of another source its prompt; with several prompts, one input for each."""

    def __init__(self, source: Source, prompts: Sequence[PromptTemplate]) -> None:
        """Wrap a source."""
        several = f"{source.name}, with {len(prompts)} prompts"
        super().__init__(source, several if len(prompts) > 1 else None)
        self._prompts = prompts

    def __iter__(self) -> Iterator[Item]:
        for item in self._source:
            for number, template in enumerate(self._prompts, start=1):
                name = item.id if len(self._prompts) == 1 else f"{item.id}#prompt {number}"
                try:
                    prompt = template.render(item.fields)
                    request_body(model="", text=prompt, image_url="", parameters={})
                except PhosphoError as error:
                    yield replace(item, id=name, image=None, error=item.error or error)
                else:
                    yield replace(item, id=name, prompt=prompt)


def _to_text(name: str, fields: Mapping[str, object]) -> str:
    value = fields.get(name)
    # Not equal to itself: a data frame's NaN. An error: a cell that cannot be read.
    if value is None or value != value or isinstance(value, Exception):  # noqa: PLR0124
        message = f"The row has no {name!r} for its prompt. Nothing was sent for it."
        raise ImageError(message)
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, ensure_ascii=False, default=str)
