"""`ImageDescriptionExtractor`: pictures get their descriptions when they are ingested."""

import asyncio
import contextvars
import pickle
import secrets
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from llama_index.core.extractors import BaseExtractor
from llama_index.core.schema import BaseNode, ImageDocument, ImageNode, MetadataMode, Node
from llama_index.core.utils import get_tqdm_iterable
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from typing_extensions import Self, override

from llama_index_phospho.description_store import DescriptionStore
from llama_index_phospho.llms import Phospho
from llama_index_phospho.paid_once import PaidOnce
from phospho_multimodal import ConfigurationError, PhosphoError
from phospho_multimodal.errors import FATAL_ERRORS

__all__ = ["DESCRIPTION_PROMPT", "ImageDescriptionExtractor"]

DESCRIPTION_PROMPT = "Describe this image in detail, and write down the text that it shows."

T = TypeVar("T")

_DESCRIPTION = "image_description"
_PROMPT = "image_description_prompt"
_MODEL = "image_description_model"
_SHA256 = "image_sha256"
_KEY = "image_description_key"
_ERROR = "image_description_error"
_BOOKKEEPING = (_PROMPT, _MODEL, _SHA256, _KEY, _ERROR)

_NEVER_THE_SAME = "never_the_same"


class ImageDescriptionExtractor(BaseExtractor):
    """Describes the pictures among the nodes, and writes it into their metadata.

    Pictures are `ImageNode`, `ImageDocument`, and any node with an `image_resource`; other nodes
    are left as they are. Each distinct picture is paid for once, however many nodes have it. What
    has been paid for is kept at once: a run that was stopped, or killed, goes on where it was.

    Metadata gets `image_description`, and beside it `image_description_prompt`,
    `image_description_model`, `image_sha256` and `image_description_key`, which embeddings and
    prompts do not see. The digest is of the picture as it was sent, and a URL that is passed on has
    none; the key is of all that decides about a description, so that the cache of a pipeline does
    not take two pictures for one in the steps that follow. A picture that fails, or whose
    description is empty, gets `image_description_error` and does not stop the others. What would
    fail for all of them stops the run: a wrong setting, a spending cap, 401, 402, 403, 404, 405 and
    410.

    Example:
        ```python
        spending = Spending(max_usd=5)
        extractor = ImageDescriptionExtractor(llm=Phospho(spending=spending), store="captions.db")
        nodes = IngestionPipeline(transformations=[extractor]).run(documents=documents)
        ```
    """

    # Input is hidden: pydantic's errors quote it, and it could hold a key.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    llm: Phospho = Field(exclude=True, repr=False)
    """Who describes; its `spending` is the cap."""
    prompt: str = DESCRIPTION_PROMPT
    """What is asked about each picture."""
    store: str | None = None
    """A file to keep descriptions in, for the next run and for other processes; without one they
    are kept as long as this extractor is. A description is found again for the same picture, prompt
    and parameters, at the same model and base URL."""
    into_text: bool = False
    """Add the description to the node's text, too, where it is searched and shown instead."""

    is_text_node_only: bool = False
    disable_template_rewrite: bool = True
    """Core's extractors give every text node another template; this one leaves them alone."""

    _store: DescriptionStore = PrivateAttr()

    @classmethod
    def class_name(cls) -> str:
        """Name the class in what is written down."""
        return "ImageDescriptionExtractor"

    @field_validator("store", mode="before")
    @classmethod
    def _one_file_from_everywhere(cls, store: str | PathLike[str] | None) -> str | None:
        return None if store is None else str(Path(fspath(store)).absolute())

    def model_post_init(self, context: Any, /) -> None:
        """Open the store."""
        super().model_post_init(context)
        if self.num_workers < 1:
            message = f"num_workers is {self.num_workers}; it is 1 or more."
            raise ConfigurationError(message)
        self._store = DescriptionStore(None if self.store is None else Path(self.store))

    @override
    async def aextract(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        """Describe the pictures among some nodes.

        Args:
            nodes: Any nodes.

        Returns:
            New metadata for each node, empty for what is no picture.

        Raises:
            PhosphoError: All pictures would fail of it. What was paid for before is in the store.
        """
        run = PaidOnce(self.llm, self.prompt, self._store)
        found: list[dict[str, Any]] = [{} for _ in nodes]
        slots = asyncio.Semaphore(self.num_workers)

        async def describe(place: int, node: BaseNode) -> None:
            async with slots:
                if run.stopped_by is not None:
                    return
                try:
                    found[place] = await self._metadata_of(node, run)
                except Exception as error:  # noqa: BLE001 - raised when those under way have ended
                    if run.stopped_by is None:
                        run.stopped_by = error

        # Core's run_jobs would leave them running, and paying, when this is cancelled.
        tasks = [
            asyncio.create_task(describe(place, node))
            for place, node in enumerate(nodes)
            if _is_picture(node)
        ]
        try:
            for ended in get_tqdm_iterable(
                asyncio.as_completed(tasks), self.show_progress, "Describing images", len(tasks)
            ):
                await ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if run.stopped_by is not None:
            raise run.stopped_by
        return found

    @override
    def extract(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        """Do as `aextract`, without await."""
        return _finished(self.aextract(nodes))

    @override
    async def aprocess_nodes(
        self,
        nodes: Sequence[BaseNode],
        excluded_embed_metadata_keys: list[str] | None = None,
        excluded_llm_metadata_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Describe the pictures among some nodes; see `BaseExtractor`."""
        described = [node.metadata.get(_DESCRIPTION) for node in nodes]
        processed = await super().aprocess_nodes(
            nodes, excluded_embed_metadata_keys, excluded_llm_metadata_keys, **kwargs
        )
        for node, earlier in zip(processed, described, strict=True):
            if _is_picture(node):
                self._finish(node, earlier)
        return processed

    @override
    def process_nodes(
        self,
        nodes: Sequence[BaseNode],
        excluded_embed_metadata_keys: list[str] | None = None,
        excluded_llm_metadata_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Do as `aprocess_nodes`, without await."""
        return _finished(
            self.aprocess_nodes(
                nodes, excluded_embed_metadata_keys, excluded_llm_metadata_keys, **kwargs
            )
        )

    async def _metadata_of(self, node: BaseNode, run: PaidOnce) -> dict[str, Any]:
        node.metadata.pop(_ERROR, None)  # of an earlier run
        key = node.node_id  # where there is no picture, nothing else tells two failures apart
        try:
            picture, key = await run.identify(node)
            description = await run.describe(picture, key)
        except FATAL_ERRORS:
            raise
        except PhosphoError as error:
            return {_ERROR: f"{type(error).__name__}: {error}", _KEY: key}
        if description is None:
            return {}
        told = {
            _DESCRIPTION: description.text,
            _PROMPT: self.prompt,
            _MODEL: description.model,
            _SHA256: description.image_sha256,
            _KEY: key,
        }
        return {name: value for name, value in told.items() if value is not None}

    def _finish(self, node: BaseNode, earlier: str | None) -> None:
        """Keep what is bookkeeping out of embeddings and prompts; fill in the text.

        Args:
            node: A picture with its new metadata.
            earlier: How it was described in an earlier run.
        """
        if _ERROR in node.metadata:  # of this run: what an earlier one said is not true of it
            for name in (_DESCRIPTION, _PROMPT, _MODEL, _SHA256):
                node.metadata.pop(name, None)
        description = node.metadata.get(_DESCRIPTION)
        hidden = [*_BOOKKEEPING]
        if self.into_text:
            hidden.append(_DESCRIPTION)  # it would be there twice
            _write_into(node, description, earlier)
        for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
            keys.extend(key for key in hidden if key in node.metadata and key not in keys)

    @override
    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Write down the fields, and something that is never the same.

        The cache of an `IngestionPipeline` finds a result again by the texts and metadata of the
        nodes and by this dict. It cannot see a picture, and would give one the description of
        another; the store can, and is asked instead.

        Args:
            **kwargs: As pydantic's `model_dump`.

        Returns:
            The fields but the llm.
        """
        return {**super().to_dict(**kwargs), _NEVER_THE_SAME: secrets.token_hex(16)}

    @override
    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make an extractor of what `to_dict` wrote down.

        Args:
            data: What `to_dict` gave.
            **kwargs: Fields to set or to replace; the llm has to be among them.

        Returns:
            The extractor.

        Raises:
            ConfigurationError: There is no llm.
        """
        fields = {**data, **kwargs}
        if fields.get("llm") is None:
            message = "A dict does not hold the llm: pass from_dict(…, llm=…)."
            raise ConfigurationError(message)
        return cls(**{k: v for k, v in fields.items() if k not in {"class_name", _NEVER_THE_SAME}})

    def __getstate__(self) -> dict[str, Any]:
        # Core leaves out what does not pickle, with a line in the log: there would be no llm.
        pickle.dumps(self.llm)
        return super().__getstate__()


def _write_into(node: BaseNode, description: str | None, earlier: str | None) -> None:
    """End a node's text with a description, in place of an earlier one."""
    before = text = node.get_content(MetadataMode.NONE)
    if earlier and earlier != description:
        text = text.removesuffix(earlier).rstrip()
    if description is not None and description not in text:
        text = f"{text}\n\n{description}" if text else description
    if text != before:
        node.set_content(text)


def _is_picture(node: BaseNode) -> bool:
    if isinstance(node, (ImageNode, ImageDocument)):
        return True
    return isinstance(node, Node) and node.image_resource is not None


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on a loop of its own, which closes its connections; in a notebook, too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, asyncio.run, work).result()
