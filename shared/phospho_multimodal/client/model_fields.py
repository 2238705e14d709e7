"""The fields that the models of both frameworks share, their checks, and their two clients."""

import logging
import ssl
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SkipValidation,
    WithJsonSchema,
    field_validator,
)
from typing_extensions import Self

from phospho_multimodal.contract import ParameterOptions, checked_parameters
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.messages.image_policy import DEFAULT_PROMPT, ImagePolicy, MultiImage
from phospho_multimodal.settings import (
    DEFAULT_IMAGE_SIDE,
    DEFAULT_MAX_TILES,
    ClientOptions,
    Detail,
    Settings,
    Timeouts,
    UrlMode,
)
from phospho_multimodal.spending.budget import Spending

if TYPE_CHECKING:
    from phospho_multimodal.client.model_clients import ModelClients

__all__ = ["PARAMETERS", "ModelFields"]

logger = logging.getLogger("phospho_multimodal")

PARAMETERS = tuple(ParameterOptions.__annotations__)
"""The fields that are sent with a prompt."""

_BORROWED = ("http_client", "http_async_client")

# One lock for all models: a lock in a model could not be copied or pickled with it.
_making_clients = threading.Lock()


class ModelFields(BaseModel):
    """A mixin that stands before a framework's own model class.

    The class that inherits from it has the fields for the key, the model's name and the timeout,
    which the frameworks name differently, and lists these names in `_field_names`.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        defer_build=True,  # only the frameworks' classes are ever instantiated
        use_attribute_docstrings=True,  # editors and JSON schemas show these descriptions
    )

    base_url: str | None = None
    """Base URL of the endpoint. By default `PHOSPHO_BASE_URL`, and else the vendor's."""

    temperature: float | None = None
    """Sampling temperature, from 0.1 to 1.0. 0 is sent as 0.1, the lowest that is accepted."""
    top_p: float | None = None
    """Nucleus sampling, from 0 to 1."""
    repetition_penalty: float | None = None
    """A value above 1 discourages repetition. Must be greater than 0."""
    stop: list[str] | None = None
    """Strings at which the client cuts the answer. The whole answer is billed."""

    # The core checks the choices, so that both frameworks report the same errors.
    multi_image: SkipValidation[MultiImage] = "montage"
    """How several images in one turn are sent: `montage`, `each`, `auto`, `last` or `error`."""
    max_images: int = 16
    """If one turn has more images, `UnsupportedContentError` is raised."""
    default_image: Any = Field(default=None, repr=False)
    """Sent if a conversation has no image. Takes any form of an image and keeps a URL or base64."""
    default_prompt: str = DEFAULT_PROMPT
    """Sent if a message has no text."""

    prepare: bool = True
    """Apply the EXIF orientation, remove metadata and shrink images. `False` only checks them."""
    max_image_side: int = DEFAULT_IMAGE_SIDE
    """Longest side of an image that is sent, in pixels."""
    detail: SkipValidation[Detail] = "auto"
    """`tiles` cuts a large image into tiles instead of shrinking it. Each tile is billed."""
    max_tiles: int = DEFAULT_MAX_TILES
    """Most tiles of one image, or most montages of several images. Each is billed."""
    url_mode: SkipValidation[UrlMode] = "pass"
    """`pass` sends http(s) URLs to the endpoint. `fetch` downloads them and sends the image."""

    max_retries: int = 2
    """Number of attempts after the first one."""
    retry_lost_replies: bool = False
    """Retry also if no response arrived, or after a 502 or 504. The image may be billed twice."""
    deadline: float | None = None
    """Seconds for a whole call, with all attempts and waiting."""
    max_concurrency: int = 16
    """Most concurrent requests of this model."""
    requests_per_second: float | None = None
    """Most requests per second of this model."""
    spending: Annotated[Spending | None, WithJsonSchema({})] = Field(default=None, exclude=True)
    """The spending ledger and its limit. Copies of this model share it. It is not serialized."""

    allow_insecure_http: bool = False
    """Send the key over plain http to a host other than localhost."""
    http_client: Any = Field(default=None, exclude=True, repr=False)
    """An `httpx.Client` that the model uses. The model does not close, copy or serialize it."""
    http_async_client: Any = Field(default=None, exclude=True, repr=False)
    """An `httpx.AsyncClient` that the model uses. The model does not close or serialize it."""
    proxy: str | None = Field(default=None, exclude=True, repr=False)
    """URL of a proxy. It is not serialized, because it can hold a password."""
    verify: bool | str | ssl.SSLContext = True
    """`False`, the path of a CA file or folder, or an `ssl.SSLContext`."""
    default_headers: dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    """Headers added to every request. They are not serialized, because they can hold secrets."""

    _made_clients: "ModelClients | None" = PrivateAttr(default=None)

    _field_names: ClassVar[Mapping[str, str]] = {}
    """Client options whose fields have another name in this framework."""
    _not_copied: ClassVar[tuple[str, ...]] = (*_BORROWED, "verify")
    """Fields whose values a deep copy shares, because they hold locks or connections."""

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: object) -> object:
        # pydantic would read a string as a list of its characters.
        return [stop] if isinstance(stop, str) else stop

    @field_validator("timeout", "request_timeout", mode="before", check_fields=False)
    @classmethod
    def _comparable(cls, timeout: Any) -> Any:
        """Replace an `httpx.Timeout` with a value that can be serialized and compared."""
        return Timeouts.of(timeout) if hasattr(timeout, "connect") else timeout

    def model_post_init(self, context: Any, /) -> None:
        """Check the settings once, when the model is made."""
        # An "after" validator would run again for each pydantic model that holds this model.
        super().model_post_init(context)
        with self._framework_errors():
            self._check_settings()

    def _check_settings(self) -> None:
        settings = Settings.resolve(**self._client_options())
        # Keep what the environment says now. A later value could send the key to another host.
        self.base_url = settings.base_url
        self._keep_api_key(settings.api_key)
        checked_parameters({name: getattr(self, name) for name in PARAMETERS})
        ImagePolicy(multi_image=self.multi_image, max_images=self.max_images)
        if self.default_image is not None:
            self.default_image = self.default_image  # `__setattr__` reads the image
        if self.http_client is not None or self.http_async_client is not None:
            self._clients()  # checks the borrowed clients; the first call makes other clients

    def _keep_api_key(self, api_key: str | None) -> None:
        raise NotImplementedError

    def _framework_errors(self) -> AbstractContextManager[None]:
        """Return a context that turns errors of the core into errors of the framework."""
        return nullcontext()

    @classmethod
    def _option_fields(cls) -> dict[str, str]:
        """Map each client option to the field that holds it."""
        return {name: cls._field_names.get(name, name) for name in ClientOptions.__annotations__}

    def _client_options(self) -> dict[str, Any]:
        return {option: getattr(self, name) for option, name in self._option_fields().items()}

    def _clients(self) -> "ModelClients":
        clients = self._made_clients
        return self._make_clients() if clients is None else clients

    def _make_clients(self) -> "ModelClients":
        from phospho_multimodal.client.model_clients import ModelClients  # noqa: PLC0415 - heavy

        with _making_clients:  # threads that make the first calls must share one pair
            if self._made_clients is None:
                self._made_clients = ModelClients.make(
                    Settings.resolve(**self._client_options()),
                    spending=self.spending,
                    http_client=self.http_client,
                    http_async_client=self.http_async_client,
                )
            return self._made_clients

    def close(self) -> None:
        """Close the connections of synchronous calls; a later call opens new ones."""
        clients, self._made_clients = self._made_clients, None
        if clients is not None:
            clients.sync.close()

    async def aclose(self) -> None:
        """Close all connections of this model on this event loop; a later call opens new ones."""
        clients, self._made_clients = self._made_clients, None
        if clients is not None:
            await clients.aclose()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "default_image" and value is not None:
            value = self._stored_image(value)
        super().__setattr__(name, value)
        if name in {*self._option_fields().values(), *_BORROWED, "spending"}:
            self._made_clients = None  # they were made with the old value

    def _stored_image(self, image: Any) -> str:
        from phospho_multimodal.images.prepare import image_to_string  # noqa: PLC0415 - heavy

        with self._framework_errors():
            return image_to_string(
                image,
                max_image_side=self.max_image_side,
                prepare=self.prepare and self.detail == "auto",
            )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy this model, with other values for some fields.

        Args:
            update: New values by field name. pydantic does not check them. A `default_image` is
                read and prepared.
            deep: Whether to copy the values of the fields, too.

        Returns:
            The copy, which makes its own clients.

        Raises:
            ImageError: The default image cannot be read.
        """
        twin = super().model_copy(update=update, deep=deep)
        if update and "default_image" in update:
            twin.default_image = update["default_image"]
        return twin

    def __copy__(self) -> Self:
        # `model_copy(update=…)` calls this: other settings need other clients.
        twin = super().__copy__()
        twin._made_clients = None  # noqa: SLF001 - of the same class
        return twin

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo.update((id(value), value) for value in map(self.__getattribute__, self._not_copied))
        return super(ModelFields, copy(self)).__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if isinstance(self.verify, ssl.SSLContext):
            message = (
                "verify= is an ssl.SSLContext, which cannot be pickled."
                " Pass the path of a CA file instead."
            )
            with self._framework_errors():
                raise ConfigurationError(message)
        twin = copy(self)
        borrowed = [name for name in _BORROWED if getattr(self, name) is not None]
        if borrowed:
            logger.warning(
                "A pickled model leaves its %s behind and makes its own.", " and ".join(borrowed)
            )
            twin.http_client = twin.http_async_client = None
        return super(ModelFields, twin).__getstate__()
