"""`ImageDescriptionExtractor`: describe images when they are ingested."""

import asyncio
import copy
import hashlib
import inspect
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
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.utils import get_tqdm_iterable
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from typing_extensions import Self, override

from llama_index_phospho.description_cache import DescriptionStore
from llama_index_phospho.image_describer import ImageDescriber, Steps, arun_all, run_all
from llama_index_phospho.image_nodes import (
    DESCRIPTION_KEY,
    READ_AS_TEXT,
    DescriptionMetadata,
    as_image_node,
    has_image,
    hide,
    is_image_read_as_text,
)
from llama_index_phospho.llms import Phospho
from phospho_multimodal import ConfigurationError, PhosphoError
from phospho_multimodal.errors import FATAL_ERRORS

__all__ = ["DESCRIPTION_PROMPT", "ImageDescriptionExtractor"]

logger = logging.getLogger("phospho_multimodal")

DESCRIPTION_PROMPT = "Describe this image in detail, and write down the text that it shows."

_CACHE_KEY = "cache_key"


def _llm_from_settings() -> Phospho:
    try:
        llm: object = Settings.llm
    except (ImportError, ValueError) as failure:  # LlamaIndex's default is OpenAI
        llm = failure
    if isinstance(llm, Phospho):
        return llm
    message = (
        "ImageDescriptionExtractor needs a Phospho, and Settings.llm is"
        f" {'not set' if isinstance(llm, Exception) else f'a {type(llm).__name__}'}."
        " Pass llm=, or set Settings.llm to a Phospho."
    )
    raise ConfigurationError(message)


class ImageDescriptionExtractor(BaseExtractor):
    """Describe the images among the nodes, and return an `ImageNode` with its description for each.

    Nodes with an image are `ImageDocument`, which `SimpleDirectoryReader` returns, `ImageNode`, and
    any node with an `image_resource`. Other nodes are returned as they are. The given nodes do not
    change, since a document store recognizes unchanged documents by their hash. Every store keeps
    the path, URL or bytes of an `ImageNode`. If you use a splitter, put it before this extractor:
    LlamaIndex's splitters turn image nodes into text nodes.

    Each distinct image is billed once, however many nodes have it. A URL with a new signature is
    the same image. Each description is stored as soon as it is received, so a run that was stopped
    or killed can be continued.

    The description is appended to the text of the node, so that indexes embed, search and show it.
    The metadata contain it as `image_description`, and also `image_description_prompt`,
    `image_description_model`, `image_sha256` and `image_description_key`, which embeddings and
    prompts do not see. `image_sha256` is the digest of the image that was sent. A URL that is
    passed to the endpoint has none. The key is a digest of the image, the prompt, the model and its
    parameters.

    If an image fails, or its description is empty, the node gets `image_description_error`, and the
    other images are still described. A text node that contains the bytes of an image file also gets
    this error, with a warning in the log. Errors that every image would raise stop the run: a wrong
    setting, the spending limit, and the statuses 401, 402, 403, 404, 405 and 410.

    Example:
        ```python
        documents = SimpleDirectoryReader("photos").load_data()
        spending = Spending(max_usd=5)
        extractor = ImageDescriptionExtractor(llm=Phospho(spending=spending), store="captions.db")
        nodes = IngestionPipeline(transformations=[extractor]).run(documents=documents)
        ```
    """

    # pydantic's errors quote their input, which could contain a key.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    llm: Phospho = Field(default_factory=_llm_from_settings, exclude=True, repr=False)
    """The model that describes, by default `Settings.llm`. Its `spending` is the limit."""
    prompt: str = DESCRIPTION_PROMPT
    """The prompt for each image."""
    metadata_key: str = DESCRIPTION_KEY
    """The metadata key of the description, with which the other keys begin. Two extractors with
    different prompts need two keys."""
    store: str | None = None
    """A file for descriptions, which later runs and other processes read. By default, they stay in
    memory. A description is used again for the same image, prompt, parameters, model and base URL.
    Two processes that describe the same image at the same time both pay for it."""
    into_text: bool = True
    """Append the description to the text of the node, which every mode of `get_content` returns.
    `False` leaves it in the metadata only, which embeddings and prompts also see."""

    is_text_node_only: bool = False
    disable_template_rewrite: bool = True
    """LlamaIndex's extractors replace the template of text nodes. This extractor does not."""

    _store: DescriptionStore = PrivateAttr()
    _keys: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class in serialized objects."""
        return "ImageDescriptionExtractor"

    @field_validator("llm", mode="before")
    @classmethod
    def _default_llm(cls, llm: object) -> object:
        return _llm_from_settings() if llm is None else llm

    @field_validator("store", mode="before")
    @classmethod
    def _absolute_path(cls, store: str | PathLike[str] | None) -> str | None:
        return None if store is None else str(Path(fspath(store)).absolute())

    def model_post_init(self, context: Any, /) -> None:
        """Check the fields and open the store."""
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
        """Return the new metadata of each node, empty for a node without an image.

        This describes the images in `num_workers` threads.
        """
        extracted: list[dict[str, Any]] = [{} for _ in nodes]
        run = self._new_run()
        run_all(self._work(nodes, extracted, run), run, self.num_workers, self._progress)
        return extracted

    @override
    async def aextract(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        """Do the same as `extract`, async, with `num_workers` concurrent images."""
        extracted: list[dict[str, Any]] = [{} for _ in nodes]
        run = self._new_run()
        await arun_all(self._work(nodes, extracted, run), run, self.num_workers, self._progress)
        return extracted

    def _new_run(self) -> ImageDescriber:
        return ImageDescriber(self.llm, self.prompt, self._store, self._keys)

    def _progress(self, tasks: Iterable[Any], count: int) -> Iterable[Any]:
        return get_tqdm_iterable(tasks, self.show_progress, "Describing images", count)

    def _work(
        self, nodes: Sequence[BaseNode], extracted: Sequence[dict[str, Any]], run: ImageDescriber
    ) -> list[Steps[None]]:
        def describe(node: BaseNode, metadata: dict[str, Any]) -> Steps[None]:
            metadata.update((yield from self._describe(node, run)))

        pairs = zip(nodes, extracted, strict=True)
        return [describe(node, metadata) for node, metadata in pairs if has_image(node)]

    def _describe(self, node: BaseNode, run: ImageDescriber) -> Steps[dict[str, Any]]:
        """Return the metadata of a description, or of an error."""
        key = node.node_id  # an unreadable image has no other key
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

    @override
    def process_nodes(
        self,
        nodes: Sequence[BaseNode],
        excluded_embed_metadata_keys: list[str] | None = None,
        excluded_llm_metadata_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Return the nodes in their order, with an `ImageNode` for each node with an image.

        Raises:
            PhosphoError: Every image would raise it. The store has the earlier descriptions.
        """
        made = self._image_nodes(nodes)
        for attempt in range(self.max_retries + 1):
            try:
                extracted = self.extract(made)
                break
            except Exception as error:  # noqa: BLE001 - raised unless raise_on_error=False
                time.sleep(self._pause_after(error, attempt))
        else:
            extracted = [{} for _ in nodes]
        return self._finish(
            made, extracted, excluded_embed_metadata_keys, excluded_llm_metadata_keys
        )

    @override
    async def aprocess_nodes(
        self,
        nodes: Sequence[BaseNode],
        excluded_embed_metadata_keys: list[str] | None = None,
        excluded_llm_metadata_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Do the same as `process_nodes`, async."""
        made = self._image_nodes(nodes)
        for attempt in range(self.max_retries + 1):
            try:
                extracted = await self.aextract(made)
                break
            except Exception as error:  # noqa: BLE001 - raised unless raise_on_error=False
                await asyncio.sleep(self._pause_after(error, attempt))
        else:
            extracted = [{} for _ in nodes]
        return self._finish(
            made, extracted, excluded_embed_metadata_keys, excluded_llm_metadata_keys
        )

    def _pause_after(self, error: Exception, attempt: int) -> float:
        """Return the pause before the next attempt, or raise, as `BaseExtractor` does."""
        if attempt < self.max_retries:
            return float(self.retry_backoff * 2**attempt)
        if self.raise_on_error:
            raise error
        logger.warning("Images were not described, and raise_on_error is False: %s", error)
        return 0

    def _image_nodes(self, nodes: Sequence[BaseNode]) -> list[BaseNode]:
        """Copy each node with an image as an image node."""
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

    def _finish(
        self,
        nodes: list[BaseNode],
        extracted: list[dict[str, Any]],
        hidden_from_embeddings: list[str] | None,
        hidden_from_prompts: list[str] | None,
    ) -> list[BaseNode]:
        for node, metadata in zip(nodes, extracted, strict=True):
            if has_image(node):
                self._metadata.write(node, metadata, into_text=self.into_text)
            node.excluded_embed_metadata_keys.extend(hidden_from_embeddings or ())
            node.excluded_llm_metadata_keys.extend(hidden_from_prompts or ())
        return nodes

    @property
    def _metadata(self) -> DescriptionMetadata:
        return DescriptionMetadata(self.metadata_key)

    @override
    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Serialize the fields except the llm, and a key for the cache of an `IngestionPipeline`.

        That cache finds a result by this dict and by the texts and metadata of the nodes. It cannot
        see images, and would return the description of another image. If all images of a lookup are
        described, the key identifies them. Otherwise it is random, and the cache finds nothing.
        """
        nodes = _looked_up_nodes(self)
        key = None if nodes is None else self._key_of(nodes)
        return {**super().to_dict(**kwargs), _CACHE_KEY: key or secrets.token_hex(16)}

    def _key_of(self, nodes: Sequence[BaseNode]) -> str | None:
        run = self._new_run()
        parts: list[str] = []
        for node in nodes:
            parts.append(node.hash)
            if has_image(node):
                key = run.find_key(node)
                if key is None:
                    return None
                parts.append(key)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @override
    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make an extractor from the result of `to_dict`.

        Args:
            data: The result of `to_dict`.
            **kwargs: Fields to set or to replace, such as `llm`, which a dict does not contain.
        """
        fields = {**data, **kwargs}
        return cls(**{k: v for k, v in fields.items() if k not in {"class_name", _CACHE_KEY}})

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex leaves out what cannot be pickled, with a line in the log, also the llm.
        pickle.dumps(self.llm)
        return super().__getstate__()


def _looked_up_nodes(step: TransformComponent) -> Sequence[BaseNode] | None:
    """Find the nodes of a lookup in the cache of a pipeline, if that calls `to_dict`.

    `get_transformation_hash(nodes, transformation)` of LlamaIndex calls `transformation.to_dict()`
    without the nodes, so this function reads the arguments in its frame.
    """
    frame = inspect.currentframe()
    to_dict = None if frame is None else frame.f_back
    caller = None if to_dict is None else to_dict.f_back
    if caller is None or caller.f_locals.get("transformation") is not step:
        return None
    nodes = caller.f_locals.get("nodes")
    return nodes if isinstance(nodes, Sequence) else None
