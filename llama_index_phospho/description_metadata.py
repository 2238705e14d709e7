"""The metadata keys of a description, and its place in the text of a node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode

from llama_index_phospho.description_cache import Description

__all__ = ["DESCRIPTION_KEY", "DescriptionMetadata", "hide"]

DESCRIPTION_KEY = "image_description"


@dataclass(frozen=True, slots=True)
class DescriptionMetadata:
    """The metadata keys of one extractor.

    Attributes:
        description: The key of the description, with which the other keys begin.
    """

    description: str

    @property
    def error(self) -> str:
        """The key of what went wrong."""
        return f"{self.description}_error"

    @property
    def key(self) -> str:
        """The key of the digest of all that decides about the description."""
        return f"{self.description}_key"

    @property
    def sha256(self) -> str:
        """The key of the digest of the image that was sent."""
        is_usual = self.description == DESCRIPTION_KEY
        return "image_sha256" if is_usual else f"{self.description}_sha256"

    @property
    def hidden(self) -> tuple[str, ...]:
        """The keys that embeddings and prompts do not see."""
        names = (f"{self.description}_prompt", f"{self.description}_model")
        return (*names, self.sha256, self.key, self.error)

    def of(self, description: Description, *, prompt: str, key: str) -> dict[str, Any]:
        """Write a description down as metadata."""
        told = {
            self.description: description.text,
            f"{self.description}_prompt": prompt,
            f"{self.description}_model": description.model,
            self.sha256: description.image_sha256,
            self.key: key,
        }
        return {name: value for name, value in told.items() if value is not None}

    def write(self, node: BaseNode, told: Mapping[str, Any], *, into_text: bool) -> None:
        """Write new metadata into a node, and remove the metadata of an earlier run."""
        earlier = node.metadata.get(self.description)
        if told:
            for name in (self.description, *self.hidden):
                node.metadata.pop(name, None)
        node.metadata.update(told)
        if into_text:
            _write_into(node, node.metadata.get(self.description), earlier)
            hide(node, [self.description])  # it would be there twice
        hide(node, self.hidden)


def hide(node: BaseNode, names: Sequence[str]) -> None:
    """Keep metadata out of embeddings and prompts."""
    for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
        keys.extend(name for name in names if name in node.metadata and name not in keys)


def _write_into(node: BaseNode, description: str | None, earlier: str | None) -> None:
    """End a node's text with a description, and remove an earlier description."""
    before = text = node.get_content(MetadataMode.NONE)
    if earlier and earlier != description:
        text = text.replace(earlier, "", 1).strip()
    if description is not None and description not in text:
        text = f"{text}\n\n{description}" if text else description
    if text != before:
        node.set_content(text)
