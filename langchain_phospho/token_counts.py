"""How long a text is, for what trims conversations: a guess, since the endpoint tells nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage

from langchain_phospho.errors import langchain_errors
from phospho_multimodal import ConfigurationError

if TYPE_CHECKING:
    from langchain_phospho.fields import PhosphoConfiguration as _Model
else:
    _Model = object  # pydantic takes two milliseconds for each class of its own

__all__ = ["TokenCounts"]


class TokenCounts(_Model):
    """Counts tokens without a tokenizer; LangChain's own way would download one."""

    def get_token_ids(self, text: str) -> list[int]:
        """Encode with `custom_get_token_ids`; the endpoint tells nothing of its tokens.

        Args:
            text: What to encode.

        Returns:
            Token ids.

        Raises:
            ConfigurationError: There is no `custom_get_token_ids`.
        """
        if self.custom_get_token_ids is None:
            with langchain_errors():
                message = "The endpoint's tokens are not known. Set custom_get_token_ids=."
                raise ConfigurationError(message)
        return super().get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """Guess the tokens of a text: one for four characters, without a tokenizer.

        Args:
            text: What to count.

        Returns:
            A rough number; `custom_get_token_ids` makes it exact.
        """
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens(text)
        return -(-len(text) // 4)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Guess the tokens of the texts of messages; images and tools are not counted.

        Args:
            messages: What to count.
            tools: Ignored.

        Returns:
            A rough number.
        """
        del tools
        return sum(self.get_num_tokens(message.text) for message in messages)
