"""The fields of a `Phospho`, their checks, copies and serialization."""

import logging
import pickle
import ssl
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    SkipValidation,
    WithJsonSchema,
    model_serializer,
)
from typing_extensions import Self, override

from phospho_multimodal import ConfigurationError
from phospho_multimodal.client.model_fields import PARAMETERS, ModelFields
from phospho_multimodal.contract import DEFAULT_MODEL, checked_parameters
from phospho_multimodal.messages.image_policy import ImagePolicy
from phospho_multimodal.settings import Timeouts, checked_model

__all__ = ["PARAMETERS", "PhosphoConfiguration"]

logger = logging.getLogger("phospho_multimodal")

_CALL_OPTIONS = (
    "model",
    "stop",
    *PARAMETERS,
    "multi_image",
    "max_images",
    "default_image",
    "default_prompt",
)
_CAPPED = "spending_was_capped"


class PhosphoConfiguration(ModelFields, FunctionCallingLLM):
    """The fields of `Phospho`, checked when it is made."""

    # pydantic's errors quote their input, and a misspelled `apikey=` is still a key.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    model: str = DEFAULT_MODEL
    """A name that begins with `phospho-multimodal`."""
    # A SecretStr would come out of a pickle as asterisks.
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    """The key. By default `PHOSPHO_API_KEY`. Not needed if the base URL is on localhost."""
    max_new_tokens: int | None = Field(
        default=None, validation_alias=AliasChoices("max_new_tokens", "max_tokens")
    )
    """Most tokens of an answer, from 1 to 250; by default the server's, 200. Also `max_tokens`."""
    text_llm: Annotated[LLM | None, SkipValidation, WithJsonSchema({})] = Field(
        default=None, exclude=True, repr=False
    )
    """Another LLM, which answers requests without an image, unchanged. They bill no image. Query
    engines, chat engines and agents condense, refine or merge with such requests. If `text_llm` and
    `default_image` are set, `text_llm` answers."""
    additional_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Keywords of every call, such as `temperature`. They override the fields of this model, and
    the keywords of a call override them."""

    context_window: int = 5000
    """Tokens of a request, as LlamaIndex counts them: an image is 2,125. With the default, the
    response mode `compact` puts one image and a page of metadata into each request. Chat memories
    hold three quarters of it, and do not count images."""
    is_function_calling_model: bool = False
    """Whether agents and programs pass tools, which the model calls by prompt. If False, agents
    reason in text, and structured output is read from text."""

    timeout: float | Timeouts | None = None
    """Seconds to wait for an answer, or an `httpx.Timeout`. By default 75."""
    verify: bool | str | ssl.SSLContext = Field(default=True, exclude=True)
    """`False`, the path of a CA file or folder, or an `ssl.SSLContext`. It is not serialized."""

    _not_copied: ClassVar[tuple[str, ...]] = (*ModelFields._not_copied, "text_llm")  # noqa: SLF001 - of the base class

    def __init__(self, model: str | None = None, /, **fields: Any) -> None:
        if model is not None:
            if "model" in fields:
                message = "The model was given twice: as the first argument and as model=."
                raise ConfigurationError(message)
            fields["model"] = model
        super().__init__(**fields)

    @override
    def _check_settings(self) -> None:
        super()._check_settings()
        values = self.call_values({})  # with `additional_kwargs`
        checked_model(values["model"])
        checked_parameters({name: values[name] for name in PARAMETERS})
        ImagePolicy(multi_image=values["multi_image"], max_images=values["max_images"])
        other: object = self.text_llm  # which pydantic did not check
        if other is not None and (
            not isinstance(other, LLM) or isinstance(other, PhosphoConfiguration)
        ):
            message = (
                f"text_llm= is a {type(other).__name__}. It must be a LlamaIndex LLM that answers"
                " text without an image."
            )
            raise ConfigurationError(message)

    @override
    def _keep_api_key(self, api_key: str | None) -> None:
        self.api_key = api_key

    def call_values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Merge the options of a call over `additional_kwargs` over the fields of this model.

        Args:
            given: The keywords of a call. `None` means not given.

        Returns:
            The values.

        Raises:
            ConfigurationError: A keyword is unknown.
        """
        values = {name: getattr(self, name) for name in _CALL_OPTIONS}
        for name, value in (*self.additional_kwargs.items(), *given.items()):
            field = "max_new_tokens" if name == "max_tokens" else name
            if field not in values:
                message = (
                    f"A call does not accept {name!r}. Nothing was sent. It accepts:"
                    f" {', '.join(sorted([*_CALL_OPTIONS, 'max_tokens']))}."
                )
                raise ConfigurationError(message)
            if value is not None:
                values[field] = value
        return values

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex silently leaves out what cannot be pickled, such as a spending limit. Pickling
        # these values here raises their own errors.
        for value in (self.spending, self.text_llm):
            if value is not None:
                pickle.dumps(value)
        return super().__getstate__()

    @model_serializer(mode="wrap")
    def custom_model_dump(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Serialize the fields, and whether there was a spending limit."""
        data = super().custom_model_dump(handler, info)
        spending = self.spending
        if spending is not None and (spending.max_usd, spending.max_images) != (None, None):
            data[_CAPPED] = True
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make a model from the result of `to_dict`.

        Args:
            data: The result of `to_dict`. It has no key, proxy, headers, certificates, clients,
                spending ledger or `text_llm`. The key comes from the environment, the others from
                keywords.
            **kwargs: Fields to set or to replace.

        Returns:
            The model. A warning in the log reports a lost spending limit.
        """
        fields = {**data, **kwargs}
        if fields.pop(_CAPPED, False) and fields.get("spending") is None:
            logger.warning(
                "The model has lost its spending limit, because a dict does not hold the ledger."
                " Pass spending= to from_dict."
            )
        return super().from_dict(fields)
