"""The fields of `ChatPhospho`, and what LangChain needs to copy, dump and load them."""

import logging
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from langchain_core.language_models import BaseChatModel
from pydantic import AliasChoices, ConfigDict, Field, SecretStr, field_validator

from langchain_phospho.errors import langchain_errors
from phospho_multimodal import __version__
from phospho_multimodal.client.model_fields import PARAMETERS, ModelFields
from phospho_multimodal.contract import DEFAULT_MODEL
from phospho_multimodal.images.source import image_source
from phospho_multimodal.messages.image_policy import ImagePolicy
from phospho_multimodal.settings import Timeouts

__all__ = ["PARAMETERS", "PhosphoConfiguration"]

logger = logging.getLogger("phospho_multimodal")

_LOST_SPENDING = "a Spending, which is not serialized"


class PhosphoConfiguration(ModelFields, BaseChatModel):
    """The fields of `ChatPhospho`, checked when it is made."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # an error about a misspelled api_key= would print its value
        defer_build=True,
    )

    # Type checkers read `alias`, because they do not know `AliasChoices`.
    model_name: str = Field(
        default=DEFAULT_MODEL, alias="model", validation_alias=AliasChoices("model", "model_name")
    )
    """Any name that begins with `phospho-multimodal`."""
    phospho_api_key: SecretStr | None = Field(
        default=None, alias="api_key", validation_alias=AliasChoices("api_key", "phospho_api_key")
    )
    """The API key. By default `PHOSPHO_API_KEY`. A server on localhost needs no key."""
    max_new_tokens: int | None = Field(
        default=None,
        alias="max_tokens",
        validation_alias=AliasChoices("max_tokens", "max_new_tokens"),
    )
    """Longest answer, in tokens: 1 to 250."""
    request_timeout: float | Timeouts | None = Field(
        default=None, alias="timeout", validation_alias=AliasChoices("timeout", "request_timeout")
    )
    """Seconds to wait for an answer (75), or an `httpx.Timeout`."""
    # LangChain takes False, once it was passed as an argument, for a choice against `stream`.
    # Copies that `configurable_fields` makes pass all fields as arguments.
    streaming: bool | None = None
    """Let `invoke` call `stream`. The answer is the same, because the endpoint does not stream."""

    _field_names: ClassVar = {
        "api_key": "phospho_api_key",
        "model": "model_name",
        "timeout": "request_timeout",
    }
    _not_copied: ClassVar = (
        "http_client",
        "http_async_client",
        "verify",
        "cache",
        "callbacks",
        "rate_limiter",
    )

    @field_validator("spending", mode="before")
    @classmethod
    def _warn_of_lost_spending(cls, spending: object) -> object:
        if spending != _LOST_SPENDING:
            return spending
        logger.warning(
            "This model had a Spending when it was serialized. Its spending limit is gone."
            " Set model.spending to limit it again."
        )
        return None

    def _check_settings(self) -> None:
        super()._check_settings()
        self._add_version("phospho-multimodal", __version__)

    def _keep_api_key(self, api_key: str | None) -> None:
        self.phospho_api_key = None if api_key is None else SecretStr(api_key)

    def _framework_errors(self) -> AbstractContextManager[None]:
        return langchain_errors()

    def _client_options(self) -> dict[str, Any]:
        key = self.phospho_api_key
        api_key = None if key is None else key.get_secret_value()
        return {**super()._client_options(), "api_key": api_key}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain can dump and load this model, without its key."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Where the key comes from when a dumped model is loaded."""
        return {"phospho_api_key": "PHOSPHO_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Mark that there was a `Spending`, so that loading can report that its limit is gone."""
        return {} if self.spending is None else {"spending": _LOST_SPENDING}

    def _policy(self, *, one_answer: bool = False) -> ImagePolicy:
        image = self.default_image
        return ImagePolicy(
            multi_image=self.multi_image,
            max_images=self.max_images,
            default_image=None if image is None else image_source(image),
            default_prompt=self.default_prompt,
            one_answer=one_answer,
        )
