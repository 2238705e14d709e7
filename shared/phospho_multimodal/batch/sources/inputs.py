"""The inputs of a job as its options describe them: the source, its prompts, its limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from phospho_multimodal.batch.sources.filters import Limited, LongerThan, check_number
from phospho_multimodal.batch.sources.prompts import PromptedSource, parse_prompts
from phospho_multimodal.batch.sources.remote import is_url
from phospho_multimodal.batch.sources.select import Source, open_source
from phospho_multimodal.batch.sources.shards import Shard, ShardedSource
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT

__all__ = ["Inputs"]

_READ_OPTIONS = ("column", "id_column", "root", "encoding", "storage_options")


class Inputs:
    """What a job describes; see `BatchOptions` for the options."""

    def __init__(
        self, source: Any, prompt: str | Sequence[str], options: Mapping[str, Any]
    ) -> None:
        """Check the options; the source is not opened yet."""
        column = options.get("prompt_column")
        keep = options.get("keep") or ()
        self._prompts = parse_prompts(prompt, column)
        message = ""
        if column is not None and prompt != DEFAULT_PROMPT:
            message = "prompt_column= is the whole prompt of each row. Leave prompt= out."
        elif isinstance(keep, str):
            message = "keep must be a list of columns, got a text."
        elif options.get("sidecar") and len(self._prompts) > 1:
            message = "sidecar= needs one description for each image, and so one prompt."
        if message:
            message += " Nothing was sent."
            raise ConfigurationError(message)
        for name in ("limit", "min_size"):
            check_number(name, options.get(name))
        self.keep = tuple(dict.fromkeys(keep))
        self.is_remote = isinstance(source, (str, os.PathLike)) and is_url(os.fspath(source))
        self._given = source
        self._options = options

    @property
    def prompt(self) -> str:
        """The prompt of all rows, or the first template."""
        first = self._prompts[0]
        return first.text if self.own_prompts else first.render({})

    @property
    def own_prompts(self) -> tuple[str, ...]:
        """The templates, if each row has its own prompt."""
        is_own = len(self._prompts) > 1 or any(prompt.fields for prompt in self._prompts)
        return tuple(prompt.text for prompt in self._prompts) if is_own else ()

    def open(self) -> tuple[Source, Source]:
        """Open the source."""
        options = self._options
        fields = [field for prompt in self._prompts for field in prompt.fields]
        opened: Source = open_source(
            self._given,
            recursive=options.get("recursive", True),
            exclude=options.get("exclude") or (),
            follow_links=options.get("follow_links", False),
            fields=tuple(dict.fromkeys((*fields, *self.keep))),
            **{name: options.get(name) for name in _READ_OPTIONS},
        )
        source = opened
        min_size, limit = options.get("min_size"), options.get("limit")
        if min_size is not None:
            source = LongerThan(source, min_size)
        shard = options.get("shard")
        if shard is not None:
            source = ShardedSource(source, Shard(shard))
        if self.own_prompts:
            source = PromptedSource(source, self._prompts)
        if limit is not None:
            source = Limited(source, limit)
        return opened, source
