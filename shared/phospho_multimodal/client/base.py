"""What both clients have in common."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import httpx

from phospho_multimodal.contract import checked_parameters
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.exchange.prediction import GenerationOptions, Prediction, answer_turns
from phospho_multimodal.exchange.steps import Step
from phospho_multimodal.messages.conversation import ImagePolicy, Turn
from phospho_multimodal.settings import checked_model, checked_stop
from phospho_multimodal.spending.budget import Spending
from phospho_multimodal.transport.requests import check_borrowed

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BaseClient"]

HttpClientT = TypeVar("HttpClientT", httpx.Client, httpx.AsyncClient)


class BaseClient(Generic[HttpClientT]):
    """The state and the arguments of a client. The subclasses do the steps of an exchange."""

    _http_client_class: ClassVar[type[httpx.Client | httpx.AsyncClient]]

    @classmethod
    def sharing(cls, shared: ClientState, http_client: HttpClientT | None = None) -> Self:
        """Make a client that shares settings, ledger and rate limit with others.

        Args:
            shared: What they share.
            http_client: A client of your own to send with.

        Returns:
            The client.

        Raises:
            ConfigurationError: `http_client` is of the wrong class, or contradicts a setting.
        """
        client = cls.__new__(cls)
        client._set_up(shared, http_client)  # noqa: SLF001 - of the same class
        return client

    def _set_up(self, shared: ClientState, http_client: HttpClientT | None) -> None:
        check_borrowed(shared.settings, http_client, self._http_client_class)
        self._shared = shared
        self._settings = shared.settings
        self._http_client: HttpClientT | None = http_client
        self._closed = False

    @property
    def spending(self) -> Spending:
        """The ledger: what was billed, and what is in doubt."""
        return self._shared.spending

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.base_url} {self._settings.model}>"

    def _converse(
        self,
        turns: Sequence[Turn],
        policy: ImagePolicy | None,
        model: str | None,
        stop: Sequence[str] | None,
        parameters: Mapping[str, Any] | None,
    ) -> Generator[Step, Any, Prediction]:
        """Check the arguments of a call, and return its exchange."""
        options = GenerationOptions(
            checked_model(model or self._settings.model),
            checked_parameters(parameters or {}),
            checked_stop(stop),
        )
        return answer_turns(self._shared, turns, policy or ImagePolicy(), options)

    def _check_open(self) -> None:
        if self._closed:
            message = "This client is closed. Make a new one."
            raise ConfigurationError(message)
