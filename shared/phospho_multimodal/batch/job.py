"""The prompt and parameters of a batch, and the id that they give the job."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.sources.signed_urls import without_signature
from phospho_multimodal.contract import checked_parameters, request_body
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.exchange.prediction import GenerationOptions
from phospho_multimodal.images.prepare import LinkedImage, SendableImage
from phospho_multimodal.settings import Settings, checked_stop

__all__ = ["DIGEST_BYTES", "Job", "picture_key"]

DIGEST_BYTES = 32
"""The length of the key of an image. Keys of URLs and of tiled images are longer."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]")  # a path has one of two slashes left
_NAME_LENGTH = 12  # hexadecimal digits: enough to tell the prompts of one folder apart


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt about any number of images."""

    prompt: str  # the prompt
    asking: GenerationOptions  # model, parameters and stop strings
    # the longest side of what is sent, in pixels; `None` for files as they are
    max_image_side: int | None
    # the most tiles of one image; `None` for one request for each image
    max_tiles: int | None = None

    @classmethod
    def of(
        cls,
        prompt: str,
        settings: Settings,
        parameters: Mapping[str, Any],
        stop: Sequence[str] | None = None,
    ) -> Job:
        """Check the prompt and the parameters.

        Raises:
            ConfigurationError: The endpoint would reject a parameter.
            UnsupportedContentError: The prompt or a stop string cannot be encoded.
        """
        asking = GenerationOptions(
            settings.model, checked_parameters(parameters), checked_stop(stop)
        )
        for text in (prompt, *(asking.stop or ())):
            request_body(model=asking.model, text=text, image_url="", parameters={})
        side = settings.max_image_side if settings.prepare else None
        return cls(prompt, asking, side, settings.max_tiles if settings.detail == "tiles" else None)

    @property
    def prompt_id(self) -> str:
        """The id of the job: another prompt, model, parameter or size is another job."""
        told = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:_NAME_LENGTH]

    def folder(self, out: Path) -> Path:
        """Return the folder of this job inside `out`, or reject `out` if it is a URL."""
        url = _URL.match(str(out))
        if url is not None:
            message = (
                f"The results go to a folder on this machine, and {str(out)!r} names a place in"
                f" {url[1]!r}. Nothing was sent. Choose a local folder, and copy it when the job is"
                " done."
            )
            raise ConfigurationError(message)
        return out / f"job-{self.prompt_id}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides about an answer, except the image."""
        stop = None if self.asking.stop is None else list(self.asking.stop)
        return {
            "prompt": self.prompt,
            "model": self.asking.model,
            "parameters": dict(self.asking.parameters),
            "stop": stop,
            "max_image_side": self.max_image_side,
            **({} if self.max_tiles is None else {"max_tiles": self.max_tiles}),
        }


def picture_key(image: SendableImage) -> bytes:
    """Return the key of an image: the digest of what is sent.

    The key of a URL that is passed on is the digest of the URL without its signature, with a mark.
    """
    if isinstance(image, LinkedImage):
        return b"url:" + hashlib.sha256(without_signature(image.url).encode()).digest()
    return bytes.fromhex(image.sha256)
