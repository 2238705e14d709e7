"""What a `Phospho` is made of: its fields and their checks, its clients, its copies."""

import logging
import pickle
import ssl
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Annotated, Any

from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    SkipValidation,
    WithJsonSchema,
    field_validator,
    model_serializer,
)
from typing_extensions import Self

from phospho_multimodal import ConfigurationError, Spending
from phospho_multimodal.contract import DEFAULT_MODEL
from phospho_multimodal.messages.image_policy import (
    DEFAULT_PROMPT,
    CopiedWithDefaultImage,
    ImagePolicy,
    MultiImage,
)
from phospho_multimodal.on_demand import LockOfProcess, ModuleOnDemand
from phospho_multimodal.settings import (
    DEFAULT_IMAGE_SIDE,
    DEFAULT_MAX_TILES,
    ClientOptions,
    Detail,
    ParameterOptions,
    Settings,
    Timeouts,
    UrlMode,
    checked_model,
    checked_parameters,
)

if TYPE_CHECKING:
    from phospho_multimodal.client import model_clients
    from phospho_multimodal.client.model_clients import ModelClients
    from phospho_multimodal.images import prepare
else:
    model_clients = ModuleOnDemand("phospho_multimodal.client.model_clients")
    prepare = ModuleOnDemand("phospho_multimodal.images.prepare")

__all__ = ["PARAMETERS", "PhosphoConfiguration"]

logger = logging.getLogger("phospho_multimodal")

PARAMETERS = tuple(ParameterOptions.__annotations__)
"""The fields that are sent along with the question."""

_OF_A_CALL = (
    "model",
    "stop",
    *PARAMETERS,
    "multi_image",
    "max_images",
    "default_image",
    "default_prompt",
)

_CAPPED = "spending_was_capped"
_CLIENT_OPTIONS = tuple(ClientOptions.__annotations__)
_OF_THE_CLIENTS = frozenset({*_CLIENT_OPTIONS, "spending", "http_client", "http_async_client"})

# Making clients is quick and opens nothing, so that one lock does for all models; one of its own
# could neither be pickled nor copied with the model.
_making = LockOfProcess()


class PhosphoConfiguration(CopiedWithDefaultImage, FunctionCallingLLM):
    """The fields of `Phospho`, checked when it is made."""

    # Input is hidden: pydantic's errors quote it, and a mistyped `apikey=` is still a key.
    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,  # editors and schemas show the descriptions
        defer_build=True,  # its schema is never used: only that of `Phospho` is
    )

    model: str = DEFAULT_MODEL
    """Any name that begins with `phospho-multimodal`."""
    # A SecretStr would come out of a pickle as asterisks.
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    """The key; else `PHOSPHO_API_KEY`. Needed unless the base URL is on the loopback."""
    base_url: str | None = None
    """Where the endpoint is; else `PHOSPHO_BASE_URL`, else the vendor's."""

    max_new_tokens: int | None = Field(
        default=None, validation_alias=AliasChoices("max_new_tokens", "max_tokens")
    )
    """Longest answer, in tokens: 1 to 250; the server's default is 200. Also `max_tokens`."""
    temperature: float | None = None
    """Sampling temperature: 0.1 to 1.0; 0 is sent as 0.1."""
    top_p: float | None = None
    """Nucleus sampling: 0.0 to 1.0."""
    repetition_penalty: float | None = None
    """Above 1 discourages repetition."""
    stop: list[str] | None = None
    """Strings at which the answer is cut, here: the whole of it was billed."""

    # Not pydantic's to judge: the core says in its own words what can be chosen.
    multi_image: SkipValidation[MultiImage] = "montage"
    """What to do with several images in one turn."""
    max_images: int = 16
    """More images than this in one turn are an error."""
    default_image: Any = Field(default=None, repr=False)
    """Sent where a conversation has no image; kept as a URL or as base64."""
    default_prompt: str = DEFAULT_PROMPT
    """Asked where a message has no text."""
    text_llm: Annotated[LLM | None, SkipValidation, WithJsonSchema({})] = Field(
        default=None, exclude=True, repr=False
    )
    """Another LLM, for requests without an image: it gets them unchanged, and no image is billed.
    Query engines, chat engines and agents have such steps, which condense, refine or merge. It is
    preferred to `default_image`."""
    additional_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Keywords of every call, such as `temperature`. They win over the fields of this model, and
    the keywords of a call win over them."""

    context_window: int = 5000
    """Tokens of one request, as core counts them: an image is 2,125. With a window of this size,
    the response mode `compact` packs one image with a page of metadata into each request. Chat
    memories hold three quarters of it, without counting images."""
    is_function_calling_model: bool = False
    """Whether core may hand over tools; they are called by prompt, since the endpoint knows none.
    False leaves agents to reason in text, and structured output to be read from text."""

    timeout: float | Timeouts | None = None
    """Seconds to wait for an answer, or an `httpx.Timeout`."""
    max_retries: int = 2
    """Attempts after the first one."""
    retry_lost_replies: bool = False
    """Retry a lost reply, a 502 and a 504, although the image may then be billed twice."""
    deadline: float | None = None
    """Seconds for the whole call, all attempts and waiting included."""
    max_concurrency: int = 16
    """Requests in flight at once."""
    requests_per_second: float | None = None
    """Rate, at most one second's worth at once."""
    prepare: bool = True
    """Turn, clean and shrink images; `False` checks type and limits alone."""
    max_image_side: int = DEFAULT_IMAGE_SIDE
    """Longest side of what is sent, in pixels."""
    detail: SkipValidation[Detail] = "auto"
    """`tiles` sends an image that would have to be shrunk as tiles, each of them billed."""
    max_tiles: int = DEFAULT_MAX_TILES
    """The most tiles of one image, or the most montages of several images; each is billed."""
    url_mode: SkipValidation[UrlMode] = "pass"
    """`"pass"` hands URLs on unopened; `"fetch"` opens them here."""
    allow_insecure_http: bool = False
    """Send the key over plain http beyond the loopback."""

    # Never written down: they hold secrets, or are objects of this process.
    spending: Annotated[Spending | None, WithJsonSchema({})] = Field(default=None, exclude=True)
    """The ledger and its cap; several models may share one."""
    http_client: Any = Field(default=None, exclude=True, repr=False)
    """An `httpx.Client` of your own; it is not closed with this model."""
    http_async_client: Any = Field(default=None, exclude=True, repr=False)
    """An `httpx.AsyncClient` of your own; it is not closed with this model."""
    proxy: str | None = Field(default=None, exclude=True, repr=False)
    """URL of a proxy; else the environment's."""
    verify: bool | str | ssl.SSLContext = Field(default=True, exclude=True)
    """`False`, a CA file or folder, or an `ssl.SSLContext`."""
    default_headers: dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    """Further headers of every request."""

    _made_clients: "ModelClients | None" = PrivateAttr(default=None)

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        # A string is a sequence too: of characters, each of which would cut the answer.
        return [stop] if isinstance(stop, str) else stop

    @field_validator("timeout", mode="before")
    @classmethod
    def _storable(cls, timeout: Any) -> Any:
        """Keep an `httpx.Timeout` as what can be written down and read back."""
        return Timeouts.of(timeout) if hasattr(timeout, "connect") else timeout

    def __init__(self, model: str | None = None, /, **fields: Any) -> None:
        if model is not None:
            if "model" in fields:
                message = "The model's name was given twice: as the first argument and as model=."
                raise ConfigurationError(message)
            fields["model"] = model
        super().__init__(**fields)

    def model_post_init(self, context: Any, /) -> None:
        """Find now what would be wrong at the first call."""
        # Here and not in an "after" validator: pydantic runs those again for each model that a
        # model is put into, an agent or an event.
        super().model_post_init(context)
        settings = Settings.resolve(**self._client_options())
        # What the environment says at this moment belongs to the model: it travels in a pickle,
        # and two endpoints do not look alike to a cache.
        self.api_key = settings.api_key
        self.base_url = settings.base_url
        values = self.call_values({})
        checked_model(values["model"])
        checked_parameters({name: values[name] for name in PARAMETERS})
        other: object = self.text_llm  # whatever the annotation says
        if other is not None and (
            not isinstance(other, LLM) or isinstance(other, PhosphoConfiguration)
        ):
            message = (
                f"text_llm= is a {type(other).__name__}. It has to be an LLM of LlamaIndex"
                " that answers text without an image."
            )
            raise ConfigurationError(message)
        image = self.default_image
        if image is not None:
            self.default_image = image  # which reads it
        ImagePolicy(multi_image=values["multi_image"], max_images=values["max_images"])
        if self.http_client is not None or self.http_async_client is not None:
            self._clients(settings)  # which judges them; any others are made by the first call

    def call_values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Put together what decides about one call.

        Args:
            given: The keywords of a call; `None` means not given.

        Returns:
            The keywords of the call, over `additional_kwargs`, over the fields of this model.

        Raises:
            ConfigurationError: A keyword is unknown.
        """
        values = {name: getattr(self, name) for name in _OF_A_CALL}
        for name, value in (*self.additional_kwargs.items(), *given.items()):
            field = "max_new_tokens" if name == "max_tokens" else name
            if field not in values:
                message = (
                    f"A call does not take {name!r}. Nothing was sent. It takes:"
                    f" {', '.join(sorted([*_OF_A_CALL, 'max_tokens']))}."
                )
                raise ConfigurationError(message)
            if value is not None:
                values[field] = value
        return values

    def _client_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _CLIENT_OPTIONS}

    def _clients(self, settings: Settings | None = None) -> "ModelClients":
        with _making.held:
            if self._made_clients is None:
                self._made_clients = model_clients.ModelClients.make(
                    settings or Settings.resolve(**self._client_options()),
                    spending=self.spending,
                    http_client=self.http_client,
                    http_async_client=self.http_async_client,
                )
            return self._made_clients

    def close(self) -> None:
        """Close the connections of synchronous calls; a later call opens new ones."""
        with _making.held:
            clients, self._made_clients = self._made_clients, None
        if clients is not None:
            clients.sync.close()

    async def aclose(self) -> None:
        """Close all connections of this model on this event loop; a later call opens new ones."""
        with _making.held:
            clients, self._made_clients = self._made_clients, None
        if clients is not None:
            await clients.aclose()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "default_image" and value is not None:
            value = prepare.image_to_string(
                value,
                max_image_side=self.max_image_side,
                prepare=self.prepare and self.detail == "auto",
            )
        super().__setattr__(name, value)
        if name in _OF_THE_CLIENTS:  # those made with the old value are of no more use
            self._made_clients = None

    def __copy__(self) -> Self:
        twin = super().__copy__()
        twin._made_clients = None  # noqa: SLF001 - of the same class
        return twin

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for shared in (self.http_client, self.http_async_client, self.verify, self.text_llm):
            memo[id(shared)] = shared  # borrowed, and not to be copied
        return super(PhosphoConfiguration, copy(self)).__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        # Core leaves out what does not pickle, with a line in the log: a cap would be gone, or
        # other certificates believed. These say so themselves.
        for kept in (self.spending, self.text_llm):
            if kept is not None:
                pickle.dumps(kept)
        if isinstance(self.verify, ssl.SSLContext):
            message = (
                "An ssl.SSLContext cannot be pickled. Pass verify= the path of a CA file instead."
            )
            raise ConfigurationError(message)
        # A copy, since core also takes it out of the very object that is being pickled.
        twin = copy(self)
        if twin.http_client is not None or twin.http_async_client is not None:
            logger.warning("A pickled model leaves its http clients behind and makes its own.")
            twin.http_client = twin.http_async_client = None
        return super(PhosphoConfiguration, twin).__getstate__()

    @model_serializer(mode="wrap")
    def custom_model_dump(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Write down the fields that can be, and whether there was a cap."""
        data = super().custom_model_dump(handler, info)
        spending = self.spending
        if spending is not None and (spending.max_usd, spending.max_images) != (None, None):
            data[_CAPPED] = True
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make a model of what `to_dict` wrote down.

        Args:
            data: What `to_dict` gave. Key, proxy, headers, certificates, clients, the ledger and
                `text_llm` are not in it: the key comes from the environment, the others from
                keywords.
            **kwargs: Fields to set or to replace.

        Returns:
            The model. The log says if it has lost a spending cap.
        """
        fields = {**data, **kwargs}
        if fields.pop(_CAPPED, False) and fields.get("spending") is None:
            logger.warning(
                "The spending cap of this model is gone: a dict does not hold the ledger."
                " Pass spending= to from_dict."
            )
        return super().from_dict(fields)
