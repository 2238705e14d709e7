"""What a batch asks about every picture, and the name that it gets by that."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phospho_multimodal.batch.sources.signed_urls import without_signature
from phospho_multimodal.contract import request_body
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.exchange.prediction import GenerationOptions
from phospho_multimodal.images.prepare import LinkedImage, SendableImage
from phospho_multimodal.settings import Settings, checked_parameters, checked_stop

__all__ = ["DIGEST_BYTES", "Job", "picture_key"]

DIGEST_BYTES = 32
"""How long the key of a picture is; that of a URL which is passed on is longer."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]")  # a path has one of two slashes left
_NAME_LENGTH = 12  # hexadecimal digits: enough to tell the prompts of one folder apart


@dataclass(frozen=True, slots=True)
class Job:
    """One question, about any number of pictures.

    Attributes:
        prompt: The question.
        asking: Model, parameters and stop strings.
        max_image_side: Longest side of what is sent, in pixels; `None` for files as they are.
        max_tiles: The most tiles of one image; `None` for one request for each image.
    """

    prompt: str
    asking: GenerationOptions
    max_image_side: int | None
    max_tiles: int | None = None

    @classmethod
    def of(
        cls,
        prompt: str,
        settings: Settings,
        parameters: Mapping[str, Any],
        stop: Sequence[str] | None = None,
    ) -> Job:
        """Check what is to be asked.

        Args:
            prompt: The question.
            settings: Of the client: its model, and how pictures are made ready.
            parameters: Generation parameters; `None` means not set.
            stop: Strings at which an answer is cut.

        Returns:
            The job.

        Raises:
            ConfigurationError: The endpoint would refuse a parameter.
            UnsupportedContentError: The prompt or a stop string is a text that cannot be written.
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
        """Names what is asked: another prompt, model, parameter or size is another job."""
        told = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:_NAME_LENGTH]

    def folder(self, out: Path) -> Path:
        """Name the folder in which this job keeps everything.

        Args:
            out: The folder for results.

        Returns:
            Its place inside that folder.

        Raises:
            ConfigurationError: `out` is a URL, or what is left of one in a path.
        """
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
        """All that decides about an answer but the picture."""
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
    """Tell two pictures apart by what is sent.

    Args:
        image: A picture, ready to be sent.

    Returns:
        The digest of its bytes; for a URL that is passed on, of what it is without its signature,
        with a mark before it.
    """
    if isinstance(image, LinkedImage):
        return b"url:" + hashlib.sha256(without_signature(image.url).encode()).digest()
    return bytes.fromhex(image.sha256)
