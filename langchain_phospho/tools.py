"""`DescribeImageTool`: an agent looks at the images of its conversation."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from langchain.agents.middleware.internal_call_transformer import internal_call_metadata
from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ArgsSchema, BaseTool, ToolException
from langgraph.constants import TAG_NOSTREAM
from langgraph.prebuilt import InjectedState
from pydantic import BaseModel, Field, SkipValidation

from langchain_phospho.chat_models import ChatPhospho
from langchain_phospho.errors import PhosphoModelError, langchain_errors
from langchain_phospho.image_describer import NOT_FOR_AGENTS
from langchain_phospho.message_images import message_about, opened, prepared, shown_images
from phospho_multimodal import ConfigurationError, PhosphoError
from phospho_multimodal.images.allowed_hosts import is_allowed
from phospho_multimodal.images.source import ImageSource, image_source
from phospho_multimodal.messages.untrusted_text import wrap_untrusted

__all__ = [
    "INTERNAL_CALL",
    "DescribeImageInput",
    "DescribeImageTool",
    "PhosphoToolError",
    "image_number",
]

INTERNAL_CALL: RunnableConfig = {
    "tags": [TAG_NOSTREAM],
    "metadata": {"lc_source": "image_description", **internal_call_metadata()},
}
"""Marks a call as LangChain's own middleware does: a description is not the agent's answer."""

_NUMBER = re.compile(r"\s*(?:image)?\s*#?\s*(\d{1,6})\s*", re.IGNORECASE)


class DescribeImageInput(BaseModel):
    """What an agent says, and what is put beside it without its knowing."""

    image: int | str | None = Field(
        default=None,
        description="The number of an image in the conversation: the first one is 1."
        " Leave it out for the newest one.",
    )
    question: str | None = Field(
        default=None,
        description="What to find out about the image. Leave it out for a description.",
    )
    # Put in by the graph, which strips what a model forges here. It is the whole state: the key of
    # its messages is the graph's to choose (`ToolNode(messages_key=…)`).
    state: Annotated[Any, InjectedState()] = None


class PhosphoToolError(PhosphoModelError, ToolException):
    """A tool of this project failed; `__cause__` is the error of the request.

    LangChain passes a `ToolException` to the agent as the tool's result. Where a tool is set to
    raise it instead, retry middleware reads `is_retryable` and does not send the request again.
    """


class DescribeImageTool(BaseTool):
    """Lets an agent ask about a picture of its conversation.

    The picture is named by its number and read from the agent's state, whatever the key of its
    messages (`ToolNode(messages_key=…)`). No model ever writes base64, and a URL is taken only from
    `allowed_hosts`, since one that a model writes can carry data out.
    The description comes in a fence, marked as untrusted; the artifact is the description alone
    with the answer's metadata. What goes wrong is told to the agent, except for what it can do
    nothing about: configuration, key, billing and the spending limit raise.

    Example:
        ```python
        model = ChatPhospho(base_url="http://127.0.0.1:8000")
        agent = create_agent(driver, tools=[DescribeImageTool(model=model)])
        ```
    """

    name: str = "describe_image"
    description: str = (
        "Look at an image of the conversation: describes it, or answers a question about it."
        " Ask about one image at a time."
    )
    args_schema: Annotated[ArgsSchema | None, SkipValidation()] = DescribeImageInput
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True

    model: ChatPhospho
    """The model that describes images."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts whose URLs may be named: `"example.com"`, or `"example.com:8443"` for that port."""

    def _run(
        self,
        image: int | str | None = None,
        question: str | None = None,
        run_manager: CallbackManagerForToolRun | None = None,
        state: Any = None,
    ) -> tuple[str, dict[str, Any]]:
        with _told_to_the_agent():
            title, picture = self._find(image, state)
            config = _below(run_manager)
            answer = self._ask(picture, question or self.model.default_prompt, config)
        return _result(title, answer)

    async def _arun(
        self,
        image: int | str | None = None,
        question: str | None = None,
        run_manager: AsyncCallbackManagerForToolRun | None = None,
        state: Any = None,
    ) -> tuple[str, dict[str, Any]]:
        with _told_to_the_agent():
            title, picture = await asyncio.to_thread(self._find, image, state)
            config = _below(run_manager)
            answer = await self._aask(picture, question or self.model.default_prompt, config)
        return _result(title, answer)

    def _find(self, image: int | str | None, state: Any) -> tuple[str, Any]:
        """Find what an agent names.

        Args:
            image: As it came from the agent.
            state: The state of the graph; `None` without a graph.

        Returns:
            What to call the picture, and what `_ask` takes for it.
        """
        number = image_number(image)
        if isinstance(number, str):
            return self._linked(number)
        shown = [
            picture
            for message in self._conversation(state)
            for picture in shown_images(opened(message))
        ]
        if not shown:
            message = "There is no image in the conversation."
            raise ToolException(message)
        number = len(shown) if number is None else number
        if not 1 <= number <= len(shown):
            message = f"There is no image {number}: the conversation has 1 to {len(shown)}."
            raise ToolException(message)
        picture = shown[number - 1]
        if isinstance(picture, PhosphoError):
            with langchain_errors():
                raise picture
        return f"Image {number}", picture

    def _conversation(self, state: Any) -> list[BaseMessage]:
        """Find the messages of a state: those in which this tool is being called."""
        if state is None:
            return []
        fields = state if isinstance(state, Mapping) else vars(state)  # a dataclass, or pydantic's
        calling = [value for value in fields.values() if _is_called_in(value, self.name)]
        if len(calling) == 1:
            return convert_to_messages(calling[0])
        if "messages" not in fields:
            message = (
                f"{self.name} reads images from the messages of the state, and"
                f" {len(calling) or 'none'} of its keys hold messages that call this tool."
                " Nothing was sent. Keep the messages under the key 'messages'."
            )
            with langchain_errors():
                raise ConfigurationError(message)
        return convert_to_messages(fields["messages"] or ())

    def _ask(self, picture: Any, question: str, config: RunnableConfig) -> AIMessage:
        return self.model.invoke([message_about(prepared(picture, self.model), question)], config)

    async def _aask(self, picture: Any, question: str, config: RunnableConfig) -> AIMessage:
        image = await asyncio.to_thread(prepared, picture, self.model)
        return await self.model.ainvoke([message_about(image, question)], config)

    def _linked(self, url: str) -> tuple[str, ImageSource]:
        if not is_allowed(url, self.allowed_hosts):
            hosts = ", ".join(self.allowed_hosts)
            allowed = f"Allowed hosts: {hosts}." if hosts else "No URL is allowed here."
            message = f"A URL of this host cannot be looked at. {allowed} Name an image by number."
            raise ToolException(message)
        with langchain_errors():
            picture = image_source(url)
        return f"The image at {picture.url_origin}", picture


def _is_called_in(value: object, tool: str) -> bool:
    """Tell whether a value is a list of messages, the newest of which calls a tool."""
    if not isinstance(value, list):
        return False
    newest = next((each for each in reversed(value) if isinstance(each, AIMessage)), None)
    return newest is not None and any(call["name"] == tool for call in newest.tool_calls)


def image_number(image: int | str | None) -> int | str | None:
    """Read how an agent names an image.

    Args:
        image: As it came from the agent.

    Returns:
        The number; `None` for the newest; a string is an http(s) URL.

    Raises:
        ToolException: It is something else.
    """
    if not isinstance(image, str):
        return image
    if not image.strip():
        return None
    number = _NUMBER.fullmatch(image)
    if number is not None:
        return int(number[1])
    if image[:8].lower().startswith(("http://", "https://")):
        return image
    # Not repeated: it can be a megabyte of base64.
    message = (
        "That names no image. Base64, data: URLs and paths are not taken as an argument: an image"
        " is read from the conversation. Name it by its number, or leave it out for the newest."
    )
    raise ToolException(message)


@contextmanager
def _told_to_the_agent() -> Iterator[None]:
    try:
        yield
    except NOT_FOR_AGENTS:
        raise
    except PhosphoError as error:
        raised = PhosphoToolError(str(error))
        raised.attempts, raised.images_in_doubt = error.attempts, error.images_in_doubt
        raise raised from error


def _below(
    run_manager: CallbackManagerForToolRun | AsyncCallbackManagerForToolRun | None,
) -> RunnableConfig:
    # Told rather than left to the context, which Python 3.10 does not hand on to tasks.
    if run_manager is None:
        return INTERNAL_CALL
    return {**INTERNAL_CALL, "callbacks": run_manager.get_child()}


def _result(title: str, answer: AIMessage) -> tuple[str, dict[str, Any]]:
    artifact = {"description": answer.text, **answer.response_metadata}
    return wrap_untrusted(answer.text, title=title), artifact
