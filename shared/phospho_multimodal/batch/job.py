"""The prompt and parameters of a batch, and the id that they give the job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.sources.signed_urls import without_signature
from phospho_multimodal.contract import checked_parameters, request_body
from phospho_multimodal.exchange.prediction import GenerationOptions
from phospho_multimodal.images.prepare import LinkedImage, SendableImage
from phospho_multimodal.settings import Settings, checked_stop

__all__ = ["DIGEST_BYTES", "Job", "digest_prompt", "image_digest", "picture_key"]

DIGEST_BYTES = 32
"""The length of the key of an image. Keys of URLs and of tiled images are longer."""

_PROMPT_BYTES = 16
_NAME_LENGTH = 12  # hexadecimal digits: enough for the prompts of one folder


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt about any number of images.

    Attributes:
        prompt: The prompt.
        asking: Model, parameters and stop strings.
        max_image_side: The longest side of what is sent, in pixels; `None` for files as they are.
        max_tiles: The most tiles of one image; `None` for one request for each image.
        prompts: The templates of a job whose rows have prompts of their own.
    """

    prompt: str
    asking: GenerationOptions
    max_image_side: int | None
    max_tiles: int | None = None
    prompts: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        prompt: str,
        settings: Settings,
        parameters: Mapping[str, Any],
        stop: Sequence[str] | None = None,
        prompts: Sequence[str] = (),
    ) -> Job:
        """Check the prompt and the parameters.

        Raises:
            ConfigurationError: The endpoint would reject a parameter.
            UnsupportedContentError: The prompt or a stop string cannot be encoded.
        """
        asking = GenerationOptions(
            settings.model, checked_parameters(parameters), checked_stop(stop)
        )
        for text in (prompt, *prompts, *(asking.stop or ())):
            request_body(model=asking.model, text=text, image_url="", parameters={})
        side = settings.max_image_side if settings.prepare else None
        tiles = settings.max_tiles if settings.detail == "tiles" else None
        return cls(prompt, asking, side, tiles, tuple(prompts))

    @property
    def prompt_id(self) -> str:
        """The id of the job: another prompt, model, parameter or size is another job."""
        told = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:_NAME_LENGTH]

    def folder(self, out: Path) -> Path:
        """Return the folder of this job inside `out`."""
        return out / f"job-{self.prompt_id}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides about an answer, except the image."""
        stop = None if self.asking.stop is None else list(self.asking.stop)
        return {
            "prompt": list(self.prompts) if len(self.prompts) > 1 else self.prompt,
            "model": self.asking.model,
            "parameters": dict(self.asking.parameters),
            "stop": stop,
            "max_image_side": self.max_image_side,
            **({} if self.max_tiles is None else {"max_tiles": self.max_tiles}),
        }


def picture_key(image: SendableImage, prompt: str | None = None) -> bytes:
    """Return the key of an image: the digest of the sent bytes.

    The key of a URL that is passed on is the digest of the URL without its signature, with a mark.
    A prompt of the row's own adds its digest.
    """
    if isinstance(image, LinkedImage):
        key = b"url:" + hashlib.sha256(without_signature(image.url).encode()).digest()
    else:
        key = bytes.fromhex(image.sha256)
    return key if prompt is None else key + digest_prompt(prompt)


def digest_prompt(prompt: str) -> bytes:
    """Digest the prompt of a row, in 16 bytes."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:_PROMPT_BYTES]


def image_digest(key: bytes) -> str | None:
    """Return the SHA-256 of the one image that was sent, from its key."""
    is_image = len(key) in (DIGEST_BYTES, DIGEST_BYTES + _PROMPT_BYTES)
    return key[:DIGEST_BYTES].hex() if is_image else None
