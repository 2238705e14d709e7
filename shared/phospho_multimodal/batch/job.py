"""What a batch asks about every picture, and the name that it gets by that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phospho_multimodal.images.prepare import LinkedImage, SendableImage
from phospho_multimodal.prediction import Asking
from phospho_multimodal.settings import checked_model, checked_parameters

__all__ = ["DIGEST_BYTES", "Job", "picture_key"]

DIGEST_BYTES = 32
"""How long the key of a picture is; that of a URL which is passed on is longer."""

_NAME_LENGTH = 12  # hexadecimal digits: enough to tell the prompts of one folder apart


@dataclass(frozen=True, slots=True)
class Job:
    """One question, about any number of pictures.

    Attributes:
        prompt: The question.
        asking: Model, parameters and stop strings.
    """

    prompt: str
    asking: Asking

    @classmethod
    def of(
        cls,
        prompt: str,
        model: str,
        parameters: Mapping[str, Any],
        stop: Sequence[str] | None = None,
    ) -> Job:
        """Check what is to be asked.

        Args:
            prompt: The question.
            model: The model's name.
            parameters: Generation parameters; `None` means not set.
            stop: Strings at which an answer is cut.

        Returns:
            The job.

        Raises:
            ConfigurationError: The endpoint would refuse the model or a parameter.
        """
        stops = tuple(stop) if stop else None
        return cls(prompt, Asking(checked_model(model), checked_parameters(parameters), stops))

    @property
    def prompt_id(self) -> str:
        """Names what is asked: another prompt, model or parameter is another job."""
        told = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:_NAME_LENGTH]

    def folder(self, out: Path) -> Path:
        """Where this job keeps everything, inside the folder for results."""
        return out / f"job-{self.prompt_id}"

    def to_dict(self) -> dict[str, Any]:
        """All that decides about an answer but the picture."""
        stop = None if self.asking.stop is None else list(self.asking.stop)
        return {
            "prompt": self.prompt,
            "model": self.asking.model,
            "parameters": dict(self.asking.parameters),
            "stop": stop,
        }


def picture_key(image: SendableImage) -> bytes:
    """Tell two pictures apart by what is sent.

    Args:
        image: A picture, ready to be sent.

    Returns:
        The digest of its bytes; for a URL that is passed on, of its string, with a mark before it.
    """
    if isinstance(image, LinkedImage):
        return b"url:" + hashlib.sha256(image.url.encode()).digest()
    return bytes.fromhex(image.sha256)
