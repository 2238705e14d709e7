"""What to send if a turn has several images, no image, or no text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from phospho_multimodal.errors import ConfigurationError

if TYPE_CHECKING:
    from phospho_multimodal.images.source import ImageSource

__all__ = ["DEFAULT_PROMPT", "ImagePolicy", "MultiImage"]

DEFAULT_PROMPT = "Describe this image."

MultiImage: TypeAlias = Literal["montage", "each", "auto", "last", "error"]


_MULTI_IMAGE = get_args(MultiImage)


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What to send if a turn has several images, no image, or no text.

    Attributes:
        multi_image: `"montage"` (one labelled montage), `"each"` (a request for each image),
            `"auto"` (a montage if its tiles are large enough to read, else a request for each
            image if the spending limit allows it), `"last"` or `"error"`.
        max_images: If one turn has more images, `UnsupportedContentError` is raised.
        default_image: Sent if a conversation has no image. With `None`, that is an error.
        default_prompt: Sent if a conversation has no text.
        one_answer: Whether a program reads the answer. Then `"each"` is an error for several
            images, because it makes several answers.
    """

    multi_image: MultiImage = "montage"
    max_images: int = 16
    default_image: ImageSource | None = None
    default_prompt: str = field(default=DEFAULT_PROMPT, repr=False)
    one_answer: bool = False

    def __post_init__(self) -> None:
        if self.multi_image not in _MULTI_IMAGE:
            choices = ", ".join(map(repr, _MULTI_IMAGE))
            message = f"multi_image must be one of {choices}, got {self.multi_image!r}."
            raise ConfigurationError(message)
        if self.max_images < 1:
            message = f"max_images must be 1 or greater, got {self.max_images}."
            raise ConfigurationError(message)
