"""What a `ChatPhospho` is made of: its fields and their checks, its clients, its copies."""

import logging
import ssl
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd
from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    SecretStr,
    SkipValidation,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from langchain_phospho.errors import langchain_errors
from phospho_multimodal import ConfigurationError, Spending, __version__
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
    checked_parameters,
)

if TYPE_CHECKING:
    from phospho_multimodal.client import model_clients
    from phospho_multimodal.client.model_clients import ModelClients
    from phospho_multimodal.images import prepare, source
else:
    model_clients = ModuleOnDemand("phospho_multimodal.client.model_clients")
    prepare = ModuleOnDemand("phospho_multimodal.images.prepare")
    source = ModuleOnDemand("phospho_multimodal.images.source")

__all__ = ["PARAMETERS", "PhosphoConfiguration"]

logger = logging.getLogger("phospho_multimodal")

PARAMETERS = tuple(ParameterOptions.__annotations__)
"""The fields that are sent along with the question."""

_FIELDS = {"api_key": "phospho_api_key", "model": "model_name", "timeout": "request_timeout"}
_OPTIONS = {name: _FIELDS.get(name, name) for name in ClientOptions.__annotations__}
"""The options of the clients, and the fields that hold them."""

_BORROWED = ("http_client", "http_async_client")
_OF_THE_CLIENTS = frozenset({*_OPTIONS.values(), *_BORROWED, "spending"})
_SHARED = (*_BORROWED, "verify", "cache", "callbacks", "rate_limiter")
_NOTHING_MADE = {"_made_clients": None, "_made_serialized": None}
_STAYED_BEHIND = "a Spending, which is not serialized"

# Making clients is quick and opens nothing, so that one lock does for all models; one of its own
# could neither be pickled nor copied with the model.
_making = LockOfProcess()


class PhosphoConfiguration(CopiedWithDefaultImage, BaseChatModel):
    """The fields of `ChatPhospho`, checked when it is made."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,  # editors and schemas show the descriptions
        hide_input_in_errors=True,  # a misspelled api_key= would be printed with its value
        defer_build=True,  # its schema is never used: only that of `ChatPhospho` is
    )

    # Two names each: `alias` is for type checkers, which know no `AliasChoices`.
    model_name: str = Field(
        default=DEFAULT_MODEL, alias="model", validation_alias=AliasChoices("model", "model_name")
    )
    """Any name that begins with `phospho-multimodal`."""
    phospho_api_key: SecretStr | None = Field(
        default=None, alias="api_key", validation_alias=AliasChoices("api_key", "phospho_api_key")
    )
    """The key; else `PHOSPHO_API_KEY`. Not needed where the base URL is on this machine."""
    base_url: str | None = None
    """Where the endpoint is; else `PHOSPHO_BASE_URL`, else the vendor's. Resolved once made."""

    max_new_tokens: int | None = Field(
        default=None,
        alias="max_tokens",
        validation_alias=AliasChoices("max_tokens", "max_new_tokens"),
    )
    """Longest answer, in tokens: 1 to 250."""
    temperature: float | None = None
    """0.1 to 1.0; 0 is sent as 0.1, the endpoint's floor."""
    top_p: float | None = None
    """0 to 1."""
    repetition_penalty: float | None = None
    """Above 0."""
    stop: list[str] | None = None
    """Strings at which an answer is cut, here: it was made and billed whole."""
    # Not False: to LangChain that is a choice against `stream`, once it was passed as an argument,
    # and so it is for every copy that `configurable_fields` makes.
    streaming: bool | None = None
    """Have `invoke` go through `stream`; the endpoint has no stream, so the answer is the same."""

    # Not pydantic's to judge: the core says in its own words what can be chosen.
    multi_image: SkipValidation[MultiImage] = "montage"
    """What to do with several images in one turn: `montage`, `each`, `auto`, `last` or `error`."""
    max_images: int = 16
    """More images in one turn are an error."""
    default_image: Any = Field(default=None, repr=False)
    """Sent where a conversation has no image: any form of one. A URL or base64 once it is set."""
    default_prompt: str = DEFAULT_PROMPT
    """Asked where a message has no text."""
    prepare: bool = True
    """Turn, clean and shrink images; `False` checks type and limits alone."""
    max_image_side: int = DEFAULT_IMAGE_SIDE
    """Longest side of what is sent, in pixels."""
    detail: SkipValidation[Detail] = "auto"
    """`tiles` sends an image that would have to be shrunk as tiles, each of them billed."""
    max_tiles: int = DEFAULT_MAX_TILES
    """The most tiles of one image, or the most montages of several images; each is billed."""
    url_mode: SkipValidation[UrlMode] = "pass"
    """`pass` hands http(s) URLs on unopened; `fetch` opens them here."""

    request_timeout: float | Timeouts | None = Field(
        default=None, alias="timeout", validation_alias=AliasChoices("timeout", "request_timeout")
    )
    """Seconds to wait for an answer (75), or an `httpx.Timeout`."""
    max_retries: int = 2
    """Attempts after the first one."""
    retry_lost_replies: bool = False
    """Retry a lost reply, a 502 and a 504, although the image may then be billed twice."""
    deadline: float | None = None
    """Seconds for the whole call, all attempts and waiting included."""
    max_concurrency: int = 16
    """Requests in flight at once."""
    requests_per_second: float | None = None
    """At most one second's worth at once."""
    spending: Spending | None = Field(default=None, exclude=True)
    """The ledger and its cap, shared by copies of this model; it is not serialized."""

    allow_insecure_http: bool = False
    """Send the key over plain http beyond this machine."""
    http_client: Any = Field(default=None, exclude=True, repr=False)
    """An `httpx.Client` of your own; yours to close, and left out of pickles."""
    http_async_client: Any = Field(default=None, exclude=True, repr=False)
    """An `httpx.AsyncClient` of your own, likewise."""
    proxy: str | None = Field(default=None, exclude=True, repr=False)
    """URL of a proxy; not serialized, since it can hold a password."""
    verify: bool | str | ssl.SSLContext = True
    """`False`, a CA file or folder, or an `ssl.SSLContext`."""
    default_headers: dict[str, str] | None = Field(default=None, exclude=True, repr=False)
    """Further headers of every request; not serialized, since they can hold secrets."""

    # In the instance's `__dict__`, from the beginning: of the first calls of several threads, one
    # goes through it while another one makes these. Private attributes are set up anew for each
    # class of a model's line, and take a third of making it.
    _made_clients: ClassVar["ModelClients | None"] = None
    _made_serialized: ClassVar[dict[str, Any] | None] = None
    _checked: ClassVar[bool] = False

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: object) -> object:
        # A string is a sequence too: of characters, each of which would cut the answer.
        return [stop] if isinstance(stop, str) else stop

    @field_validator("request_timeout", mode="before")
    @classmethod
    def _comparable(cls, timeout: Any) -> Any:
        return Timeouts.of(timeout) if hasattr(timeout, "connect") else timeout

    @field_validator("spending", mode="before")
    @classmethod
    def _tell_of_a_lost_ledger(cls, spending: object) -> object:
        if spending != _STAYED_BEHIND:
            return spending
        logger.warning("This model had a Spending when it was serialized: its cap is gone.")
        return None

    @model_validator(mode="after")
    def _check_phospho_settings(self) -> Self:
        if self._checked:
            return self  # pydantic comes here again for each model that this one is put into
        self.__dict__.update(_NOTHING_MADE)
        with langchain_errors():
            options = self._client_options()
            settings = Settings.resolve(**options)
            # What the environment says at this moment belongs to the model: later it could send
            # the key elsewhere than was checked, and a cache would not see it.
            if self.base_url != settings.base_url:
                self.base_url = settings.base_url
            if options["api_key"] != settings.api_key:
                self.phospho_api_key = SecretStr(settings.api_key or "")
            checked_parameters({name: self.__dict__[name] for name in PARAMETERS})
            image = self.default_image
            if image is not None:
                self.default_image = image  # which reads it
            self._policy()
            if self.http_client is not None or self.http_async_client is not None:
                self._clients(settings)  # which judges them; any others are made by the first call
        self._add_version("phospho-multimodal", __version__)
        self.__dict__["_checked"] = True
        return self

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain can dump and load this model, without its key."""
        return True

    @property
    def _serialized(self) -> dict[str, Any]:
        # LangChain's own makes an entry in `__dict__`.
        made = self._made_serialized
        if made is None:
            self.__dict__["_made_serialized"] = made = dumpd(self)
        return made

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Where the key comes from when a dumped model is loaded."""
        return {"phospho_api_key": "PHOSPHO_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """A mark in place of the ledger, so that loading can tell that the cap is gone."""
        return {} if self.spending is None else {"spending": _STAYED_BEHIND}

    def close(self) -> None:
        """Close the connections of synchronous calls; a later call opens new ones."""
        with _making.held:
            clients = self._made_clients
            self.__dict__["_made_clients"] = None
        if clients is not None:
            clients.sync.close()

    async def aclose(self) -> None:
        """Close all connections of this model on this event loop; a later call opens new ones."""
        with _making.held:
            clients = self._made_clients
            self.__dict__["_made_clients"] = None
        if clients is not None:
            await clients.aclose()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "default_image" and value is not None:
            with langchain_errors():
                value = prepare.image_to_string(
                    value,
                    max_image_side=self.max_image_side,
                    prepare=self.prepare and self.detail == "auto",
                )
        super().__setattr__(name, value)
        if name in _OF_THE_CLIENTS:  # those made with the old value are of no more use
            self.__dict__["_made_clients"] = None

    def __copy__(self) -> Self:
        # `model_copy(update=…)` goes through here: other settings need other clients.
        twin = super().__copy__()
        twin.__dict__.update(_NOTHING_MADE)
        return twin

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        # What holds locks and connections stays the same object, as the ledger does.
        memo.update((id(item), item) for item in (getattr(self, name) for name in _SHARED))
        return super(PhosphoConfiguration, copy(self)).__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if isinstance(self.verify, ssl.SSLContext):
            message = (
                "An ssl.SSLContext cannot be pickled. Pass verify= the path of a CA file instead."
            )
            with langchain_errors():
                raise ConfigurationError(message)
        twin = copy(self)
        borrowed = [name for name in _BORROWED if getattr(self, name) is not None]
        if borrowed:
            logger.warning("A pickled model leaves its %s behind.", " and ".join(borrowed))
            twin.http_client = twin.http_async_client = None
        return super(PhosphoConfiguration, twin).__getstate__()

    def _policy(self, *, one_answer: bool = False) -> ImagePolicy:
        image = self.default_image
        return ImagePolicy(
            multi_image=self.multi_image,
            max_images=self.max_images,
            default_image=None if image is None else source.image_source(image),
            default_prompt=self.default_prompt,
            one_answer=one_answer,
        )

    def _clients(self, settings: Settings | None = None) -> "ModelClients":
        with _making.held:
            clients = self._made_clients
            if clients is None:
                self.__dict__["_made_clients"] = clients = model_clients.ModelClients.make(
                    settings or Settings.resolve(**self._client_options()),
                    spending=self.spending,
                    http_client=self.http_client,
                    http_async_client=self.http_async_client,
                )
            return clients

    def _client_options(self) -> dict[str, Any]:
        fields = self.__dict__
        options = {option: fields[name] for option, name in _OPTIONS.items()}
        key = self.phospho_api_key
        return {**options, "api_key": None if key is None else key.get_secret_value()}
