"""What is asked about several images, and what where there is none, or no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from phospho_multimodal.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from typing_extensions import Self

    from phospho_multimodal.images.source import ImageSource
else:
    BaseModel = object  # a class of pydantic's more would make every model slower to make

__all__ = ["DEFAULT_PROMPT", "CopiedWithDefaultImage", "ImagePolicy", "MultiImage"]

DEFAULT_PROMPT = "Describe this image."

MultiImage: TypeAlias = Literal["montage", "each", "auto", "last", "error"]


_MULTI_IMAGE = get_args(MultiImage)


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What to do with several images, and with none.

    Attributes:
        multi_image: `"montage"` (one labelled sheet), `"each"` (a request for each), `"auto"` (a
            montage while its tiles can be read, else a request for each if the spending limit
            allows it), `"last"` or `"error"`.
        max_images: More images than this in one turn are an error.
        default_image: Sent where a conversation has no image; `None` makes that an error.
        default_prompt: Asked where a conversation has no text.
        one_answer: Whether the answer has to be one whole, since it is read by a program: then
            `"each"` is an error for several images.
    """

    multi_image: MultiImage = "montage"
    max_images: int = 16
    default_image: ImageSource | None = None
    default_prompt: str = field(default=DEFAULT_PROMPT, repr=False)
    one_answer: bool = False

    def __post_init__(self) -> None:
        if self.multi_image not in _MULTI_IMAGE:
            choices = ", ".join(_MULTI_IMAGE)
            message = f"multi_image is {self.multi_image!r}; it is one of: {choices}."
            raise ConfigurationError(message)
        if self.max_images < 1:
            message = f"max_images is {self.max_images}; it is 1 or more."
            raise ConfigurationError(message)


class CopiedWithDefaultImage(BaseModel):
    """Put before a framework's model, which reads a `default_image` when it is set."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy this model, with other values for some fields.

        Args:
            update: Names and values, which pydantic does not check; a `default_image` is read.
            deep: Copy what the fields hold, too.

        Returns:
            The copy, which makes clients of its own.

        Raises:
            ImageError: The default image cannot be read.
        """
        twin = super().model_copy(update=update, deep=deep)
        if update and "default_image" in update:
            twin.__setattr__("default_image", update["default_image"])  # not a field of this class
        return twin
