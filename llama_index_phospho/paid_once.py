"""Asking about many pictures, about each distinct one once."""

import asyncio
import hashlib
import json
from dataclasses import dataclass, field

from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.schema import BaseNode

from llama_index_phospho.configuration import PARAMETERS
from llama_index_phospho.content import prompt_turns
from llama_index_phospho.description_store import Description, DescriptionStore
from llama_index_phospho.llms import Phospho
from phospho_multimodal import PhosphoError, UnexpectedReplyError
from phospho_multimodal.images.fetch import fetch_image
from phospho_multimodal.images.prepare import LinkedImage, SendableImage, prepare_source
from phospho_multimodal.settings import checked_parameters

__all__ = ["PaidOnce"]

_LOOK_AGAIN = 0.05  # seconds, while somebody else pays for the description that is wanted


@dataclass(slots=True)
class PaidOnce:
    """One pass over some pictures.

    Attributes:
        llm: Who describes.
        prompt: What is asked about each.
        store: Where descriptions are kept.
        stopped_by: What ended the pass; set it, and nothing more is sent.
    """

    llm: Phospho
    prompt: str
    store: DescriptionStore
    stopped_by: Exception | None = None
    _failures: dict[str, PhosphoError] = field(default_factory=dict)

    async def identify(self, node: BaseNode) -> tuple[SendableImage, str]:
        """Make of a node's picture what is sent, by which two of them are the same or not.

        Args:
            node: A node with a picture.

        Returns:
            The picture, and the key under which its description is kept: a digest of all that
            decides about it.

        Raises:
            PhosphoError: There is no picture to be had.
        """
        picture = await asyncio.to_thread(self._ready, node)
        return picture, self._key(picture)

    async def describe(self, picture: SendableImage, key: str) -> Description | None:
        """Find a description, or wait for the one that is under way, or pay for it.

        Args:
            picture: What is sent.
            key: Its key.

        Returns:
            The description; `None` if the pass has been stopped.

        Raises:
            PhosphoError: There is no description to be had.
        """
        # Without await: who is cancelled on the way would leave a claim that nobody gives up.
        while not self.store.claim(key):
            description = self.store.find(key)
            if description is not None or self.stopped_by is not None:
                return description
            await asyncio.sleep(_LOOK_AGAIN)
        try:
            if key in self._failures:  # the same picture in another node
                raise self._failures[key]
            if self.stopped_by is not None:
                return None
            description = await self._ask(picture)
            self.store.keep(key, description)  # at once, and without await: it is paid for
        except PhosphoError as error:
            self._failures[key] = error
            raise
        finally:
            self.store.release(key)
        return description

    def _ready(self, node: BaseNode) -> SendableImage:
        (turn,) = prompt_turns("", formatted=None, image_documents=[node])
        (source,) = turn.images
        fetched = None
        if source.url is not None and self.llm.url_mode == "fetch":
            fetched = fetch_image(source.url, given_up=lambda: self.stopped_by is not None)
        return prepare_source(
            source,
            max_image_side=self.llm.max_image_side,
            # The model makes tiles itself, of all the pixels that there are.
            prepare=self.llm.prepare and self.llm.detail == "auto",
            fetched=fetched,
        )

    def _key(self, picture: SendableImage) -> str:
        llm = self.llm
        told = {
            "picture": picture.to_wire() if isinstance(picture, LinkedImage) else picture.sha256,
            "prompt": self.prompt,
            "model": llm.model,
            "base_url": llm.base_url,
            "parameters": checked_parameters({name: getattr(llm, name) for name in PARAMETERS}),
            "stop": llm.stop,
            **({} if llm.detail == "auto" else {"max_tiles": llm.max_tiles}),
        }
        # A digest, since a URL or a prompt can hold a secret.
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    async def _ask(self, picture: SendableImage) -> Description:
        # What is prepared goes through the llm's own preparation as it is. A block or a string,
        # since core's events hold the arguments, and have to be written down by who reads them.
        image = picture.url if isinstance(picture, LinkedImage) else ImageBlock(image=picture.data)
        response = await self.llm.acomplete(self.prompt, image_documents=[image])
        if not response.text.strip():
            message = "The description is empty; it was billed. Ask another prompt, or ask again."
            raise UnexpectedReplyError(message)
        (shown,) = response.raw["images"]
        return Description(response.text, response.raw["model_name"], shown.get("sha256"))
