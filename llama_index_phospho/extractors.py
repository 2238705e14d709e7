"""`ImageDescriptionExtractor`: images get their descriptions when they are ingested."""

import asyncio
import copy
import hashlib
import json
import logging
import pickle
import secrets
import time
from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from llama_index.core.extractors import BaseExtractor
from llama_index.core.schema import BaseNode
from llama_index.core.settings import Settings
from llama_index.core.utils import get_tqdm_iterable
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from typing_extensions import Self, override

from llama_index_phospho.description_cache import DescriptionStore
from llama_index_phospho.description_metadata import DESCRIPTION_KEY, DescriptionMetadata, hide
from llama_index_phospho.image_nodes import (
    READ_AS_TEXT,
    as_image_node,
    has_image,
    is_image_read_as_text,
)
from llama_index_phospho.llms import Phospho
from llama_index_phospho.paid_once import PaidOnce, Steps, arun_all, run_all
from llama_index_phospho.pipeline_cache import nodes_of_lookup
from phospho_multimodal import ConfigurationError, PhosphoError
from phospho_multimodal.errors import FATAL_ERRORS

__all__ = ["DESCRIPTION_PROMPT", "ImageDescriptionExtractor"]

logger = logging.getLogger("phospho_multimodal")

DESCRIPTION_PROMPT = "Describe this image in detail, and write down the text that it shows."

_CACHE_KEY = "cache_key"


def _llm_of_the_settings() -> Phospho:
    try:
        llm: object = Settings.llm
    except (ImportError, ValueError) as failure:  # core's default is one of OpenAI
        llm = failure
    if isinstance(llm, Phospho):
        return llm
    message = (
        "ImageDescriptionExtractor needs a Phospho, and Settings.llm is"
        f" {'not set' if isinstance(llm, Exception) else f'a {type(llm).__name__}'}."
        " Pass llm=, or set Settings.llm to one."
    )
    raise ConfigurationError(message)


class ImageDescriptionExtractor(BaseExtractor):
    """Describe the images among the nodes, and return an `ImageNode` with its description for each.

    Nodes with an image are `ImageDocument`, which `SimpleDirectoryReader` returns, `ImageNode`, and
    any node with an `image_resource`. Other nodes are returned as they are. The nodes that are
    passed are never changed, since a document store recognizes unchanged documents by their hash.
    An `ImageNode` keeps its path, URL or bytes in every store. If a splitter is used, it has to
    stand before this extractor: core's splitters make text nodes of image nodes.

    Each distinct image is paid for once, however many nodes have it, and a URL that is signed again
    is the same image. Each description is stored as soon as it is received. A run that was stopped,
    or killed, continues where it ended.

    The description is written into the text of the node, so that indexes embed, search and show it.
    The metadata hold it as `image_description`, along with `image_description_prompt`,
    `image_description_model`, `image_sha256` and `image_description_key`, which embeddings and
    prompts do not see. `image_sha256` is the digest of the image that was sent; a URL that is
    passed on has none. The key is a digest of the image, the prompt, the model and its parameters.

    If an image fails, or its description is empty, the node gets `image_description_error`, and the
    other images are still described. So does a text node that holds the bytes of an image file,
    with a warning in the log. Errors that every image would raise stop the run: a wrong setting,
    the spending limit, 401, 402, 403, 404, 405 and 410.

    Example:
        ```python
        documents = SimpleDirectoryReader("photos").load_data()
        spending = Spending(max_usd=5)
        extractor = ImageDescriptionExtractor(llm=Phospho(spending=spending), store="captions.db")
        nodes = IngestionPipeline(transformations=[extractor]).run(documents=documents)
        ```
    """

    # Input is hidden: pydantic's errors quote it, and it could hold a key.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    llm: Phospho = Field(default_factory=_llm_of_the_settings, exclude=True, repr=False)
    """The model that describes, by default `Settings.llm`. Its `spending` is the limit."""
    prompt: str = DESCRIPTION_PROMPT
    """The prompt for each image."""
    metadata_key: str = DESCRIPTION_KEY
    """The metadata key of the description, and the beginning of the other keys. Two extractors with
    different prompts need two."""
    store: str | None = None
    """A file to keep descriptions in, for the next run and for other processes; without one they
    are kept as long as this extractor is. A description is found again for the same image, prompt
    and parameters, at the same model and base URL."""
    into_text: bool = True
    """Add the description to the node's text, where every mode of `get_content` has it. `False`
    leaves it in the metadata only, where embeddings and prompts see it."""

    is_text_node_only: bool = False
    disable_template_rewrite: bool = True
    """Core's extractors give every text node another template; this one leaves them alone."""

    _store: DescriptionStore = PrivateAttr()
    _keys: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        """Name the class in what is written down."""
        return "ImageDescriptionExtractor"

    @field_validator("llm", mode="before")
    @classmethod
    def _given_or_of_the_settings(cls, llm: object) -> object:
        return _llm_of_the_settings() if llm is None else llm

    @field_validator("store", mode="before")
    @classmethod
    def _one_file_from_everywhere(cls, store: str | PathLike[str] | None) -> str | None:
        return None if store is None else str(Path(fspath(store)).absolute())

    def model_post_init(self, context: Any, /) -> None:
        """Open the store."""
        super().model_post_init(context)
        if self.num_workers < 1:
            message = f"num_workers must be 1 or greater, got {self.num_workers}."
            raise ConfigurationError(message)
        if not self.metadata_key.strip():
            message = "metadata_key must not be empty."
            raise ConfigurationError(message)
        self._store = DescriptionStore(None if self.store is None else Path(self.store))

    @override
    def extract(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        """Describe the images among some nodes, in `num_workers` threads.

        Args:
            nodes: Any nodes.

        Returns:
            New metadata for each node, empty for a node without an image.

        Raises:
            PhosphoError: Every image would fail with it. The store has the earlier descriptions.
        """
        found: list[dict[str, Any]] = [{} for _ in nodes]
        run = PaidOnce(self.llm, self.prompt, self._store, self._keys)
        run_all(self._work(nodes, found, run), run, self.num_workers, self._progress)
        return found

    @override
    async def aextract(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        """Do as `extract`, with await, and `num_workers` images at the same time."""
        found: list[dict[str, Any]] = [{} for _ in nodes]
        run = PaidOnce(self.llm, self.prompt, self._store, self._keys)
        await arun_all(self._work(nodes, found, run), run, self.num_workers, self._progress)
        return found

    def _progress(self, tasks: Iterable[Any], count: int) -> Iterable[Any]:
        return get_tqdm_iterable(tasks, self.show_progress, "Describing images", count)

    def _work(
        self, nodes: Sequence[BaseNode], found: Sequence[dict[str, Any]], run: PaidOnce
    ) -> list[Steps[None]]:
        def describe(node: BaseNode, told: dict[str, Any]) -> Steps[None]:
            told.update((yield from self._metadata_of(node, run)))

        pairs = zip(nodes, found, strict=True)
        return [describe(node, told) for node, told in pairs if has_image(node)]

    @override
    def process_nodes(
        self,
        nodes: Sequence[BaseNode],
        excluded_embed_metadata_keys: list[str] | None = None,
        excluded_llm_metadata_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Describe the images among some nodes.

        Args:
            nodes: Any nodes; they are not changed.
            excluded_embed_metadata_keys: Keys that embeddings are not to see.
            excluded_llm_metadata_keys: Keys that prompts are not to see.
            **kwargs: Ignored, as in `BaseExtractor`.

        Returns:
            The nodes in their order, with an `ImageNode` for each that has an image.

        Raises:
            PhosphoError: Every image would fail with it.
        """
        made = self._made_of(nodes)
        for attempt in range(self.max_retries + 1):
            try:
                found = self.extract(made)
                break
            except Exception as error:  # noqa: BLE001 - it is raised, unless raise_on_error=False
                time.sleep(self._pause_after(error, attempt))
        else:
            found = [{} for _ in nodes]
        return self._finished(made, found, excluded_embed_metadata_keys, excluded_llm_metadata_keys)

    @override
    async def aprocess_nodes(
        self,
        nodes: Sequence[BaseNode],
        excluded_embed_metadata_keys: list[str] | None = None,
        excluded_llm_metadata_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Do as `process_nodes`, with await."""
        made = self._made_of(nodes)
        for attempt in range(self.max_retries + 1):
            try:
                found = await self.aextract(made)
                break
            except Exception as error:  # noqa: BLE001 - it is raised, unless raise_on_error=False
                await asyncio.sleep(self._pause_after(error, attempt))
        else:
            found = [{} for _ in nodes]
        return self._finished(made, found, excluded_embed_metadata_keys, excluded_llm_metadata_keys)

    def _pause_after(self, error: Exception, attempt: int) -> float:
        """Return the pause before the next attempt, or raise, as `BaseExtractor` does."""
        if attempt < self.max_retries:
            return float(self.retry_backoff * 2**attempt)
        if self.raise_on_error:
            raise error
        logger.warning("Images were not described, and raise_on_error is False: %s", error)
        return 0

    def _made_of(self, nodes: Sequence[BaseNode]) -> list[BaseNode]:
        """Make an image node of each node with an image; no given node is changed."""
        made: list[BaseNode] = []
        unread = 0
        for node in nodes:
            if has_image(node):
                made.append(as_image_node(node))
            elif is_image_read_as_text(node):
                unread += 1
                made.append(node.model_copy(deep=True))
                made[-1].metadata[self._metadata.error] = READ_AS_TEXT
                hide(made[-1], [self._metadata.error])
            else:
                made.append(node if self.in_place else copy.deepcopy(node))
        if unread:
            logger.warning("%s (%d nodes)", READ_AS_TEXT, unread)
        return made

    def _metadata_of(self, node: BaseNode, run: PaidOnce) -> Steps[dict[str, Any]]:
        key = node.node_id  # without a readable image, nothing else tells two failures apart
        try:
            key, image = yield lambda: run.identify(node)
            description = yield from run.describe(node, key, image)
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            return {
                self._metadata.error: f"{type(error).__name__}: {error}",
                self._metadata.key: key,
            }
        if description is None:
            return {}
        return self._metadata.of(description, prompt=self.prompt, key=key)

    def _finished(
        self,
        made: list[BaseNode],
        found: list[dict[str, Any]],
        hidden_from_embeddings: list[str] | None,
        hidden_from_prompts: list[str] | None,
    ) -> list[BaseNode]:
        for node, told in zip(made, found, strict=True):
            if has_image(node):
                self._metadata.write(node, told, into_text=self.into_text)
            node.excluded_embed_metadata_keys.extend(hidden_from_embeddings or ())
            node.excluded_llm_metadata_keys.extend(hidden_from_prompts or ())
        return made

    @property
    def _metadata(self) -> DescriptionMetadata:
        return DescriptionMetadata(self.metadata_key)

    @override
    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Write down the fields, and a key for the cache of an `IngestionPipeline`.

        That cache finds a result again by the texts and metadata of the nodes and by this dict. It
        cannot see an image, and would give one the description of another. The key tells images
        apart if the pipeline's cache asks about images that have all been described; otherwise it
        is a random number, and the cache finds nothing.

        Args:
            **kwargs: As pydantic's `model_dump`.

        Returns:
            All fields except the llm.
        """
        nodes = nodes_of_lookup(self)
        key = None if nodes is None else self._key_of(nodes)
        return {**super().to_dict(**kwargs), _CACHE_KEY: key or secrets.token_hex(16)}

    def _key_of(self, nodes: Sequence[BaseNode]) -> str | None:
        run = PaidOnce(self.llm, self.prompt, self._store, self._keys)
        told: list[str] = []
        for node in nodes:
            told.append(node.hash)
            if has_image(node):
                key = run.known(node)
                if key is None:
                    return None
                told.append(key)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @override
    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make an extractor of what `to_dict` wrote down.

        Args:
            data: What `to_dict` gave.
            **kwargs: Fields to set or to replace, such as the llm, which a dict does not hold.

        Returns:
            The extractor.

        Raises:
            ConfigurationError: No llm was passed, and `Settings.llm` is not a `Phospho`.
        """
        fields = {**data, **kwargs}
        return cls(**{k: v for k, v in fields.items() if k not in {"class_name", _CACHE_KEY}})

    def __getstate__(self) -> dict[str, Any]:
        # Core leaves out what does not pickle, with a line in the log: there would be no llm.
        pickle.dumps(self.llm)
        return super().__getstate__()
