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
    """The arguments that an agent writes, and the state that the graph adds."""

    image: int | str | None = Field(
        default=None,
        description="The number of an image in the conversation: the first one is 1."
        " Leave it out for the newest one.",
    )
    question: str | None = Field(
        default=None,
        description="What to find out about the image. Leave it out for a description.",
    )
    # The graph sets this to its whole state, because `ToolNode(messages_key=…)` chooses the key of
    # the messages. It removes a value that the model wrote.
    state: Annotated[Any, InjectedState()] = None


class PhosphoToolError(PhosphoModelError, ToolException):
    """A tool of this project failed; `__cause__` is the error of the request.

    LangChain passes a `ToolException` to the agent as the tool's result. If a tool is set to raise
    it instead, retry middleware reads `is_retryable` and does not send the request again.
    """


class DescribeImageTool(BaseTool):
    """Lets an agent ask about an image of its conversation.

    The agent names the image by its number, and the tool reads it from the agent's state, under
    any key of the messages (`ToolNode(messages_key=…)`). An agent never writes base64. It can only
    write URLs of `allowed_hosts`, because a URL can carry data out.
    The description is delimited and marked as untrusted. The artifact is the plain description
    with the answer's metadata. Errors become the tool's result. Errors of configuration, key,
    billing and the spending limit are raised, because the agent cannot solve them.

    Example:
        ```python
        model = ChatPhospho(base_url="http://127.0.0.1:8000")
        agent = create_agent(agent_model, tools=[DescribeImageTool(model=model)])
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
        with _errors_for_the_agent():
            title, found = self._find(image, state)
            config = _child_config(run_manager)
            answer = self._ask(found, question or self.model.default_prompt, config)
        return _result(title, answer)

    async def _arun(
        self,
        image: int | str | None = None,
        question: str | None = None,
        run_manager: AsyncCallbackManagerForToolRun | None = None,
        state: Any = None,
    ) -> tuple[str, dict[str, Any]]:
        with _errors_for_the_agent():
            title, found = await asyncio.to_thread(self._find, image, state)
            config = _child_config(run_manager)
            answer = await self._aask(found, question or self.model.default_prompt, config)
        return _result(title, answer)

    def _find(self, image: int | str | None, state: Any) -> tuple[str, Any]:
        """Return the title of the image that an agent named, and what `_ask` takes for it."""
        number = image_number(image)
        if isinstance(number, str):
            return self._linked(number)
        shown = [
            shown
            for message in self._conversation(state)
            for shown in shown_images(opened(message))
        ]
        if not shown:
            message = "There is no image in the conversation."
            raise ToolException(message)
        number = len(shown) if number is None else number
        if not 1 <= number <= len(shown):
            message = f"There is no image {number}: the conversation has 1 to {len(shown)}."
            raise ToolException(message)
        found = shown[number - 1]
        if isinstance(found, PhosphoError):
            with langchain_errors():
                raise found
        return f"Image {number}", found

    def _conversation(self, state: Any) -> list[BaseMessage]:
        """Return the messages of a state: the list of messages that calls this tool."""
        if state is None:
            return []
        fields = state if isinstance(state, Mapping) else vars(state)  # a dataclass or a model
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

    def _ask(self, image: Any, prompt: str, config: RunnableConfig) -> AIMessage:
        return self.model.invoke([message_about(prepared(image, self.model), prompt)], config)

    async def _aask(self, image: Any, prompt: str, config: RunnableConfig) -> AIMessage:
        sendable = await asyncio.to_thread(prepared, image, self.model)
        return await self.model.ainvoke([message_about(sendable, prompt)], config)

    def _linked(self, url: str) -> tuple[str, ImageSource]:
        if not is_allowed(url, self.allowed_hosts):
            hosts = ", ".join(self.allowed_hosts)
            allowed = f"Allowed hosts: {hosts}." if hosts else "No URL is allowed here."
            message = f"A URL of this host cannot be looked at. {allowed} Name an image by number."
            raise ToolException(message)
        with langchain_errors():
            image = image_source(url)
        return f"The image at {image.url_origin}", image


def _is_called_in(value: object, tool: str) -> bool:
    """Return whether a value is a list of messages, the newest of which calls a tool."""
    if not isinstance(value, list):
        return False
    newest = next((each for each in reversed(value) if isinstance(each, AIMessage)), None)
    return newest is not None and any(call["name"] == tool for call in newest.tool_calls)


def image_number(image: int | str | None) -> int | str | None:
    """Read an agent's name for an image: a number, `None` for the newest one, or an http(s) URL."""
    if not isinstance(image, str):
        return image
    if not image.strip():
        return None
    number = _NUMBER.fullmatch(image)
    if number is not None:
        return int(number[1])
    if image[:8].lower().startswith(("http://", "https://")):
        return image
    # Without the value, which can be a megabyte of base64.
    message = (
        "That names no image. Base64, data: URLs and paths are not accepted, because images are"
        " read from the conversation. Pass the number of an image, or leave it out for the newest."
    )
    raise ToolException(message)


@contextmanager
def _errors_for_the_agent() -> Iterator[None]:
    try:
        yield
    except NOT_FOR_AGENTS:
        raise
    except PhosphoError as error:
        raised = PhosphoToolError(str(error))
        raised.attempts, raised.images_in_doubt = error.attempts, error.images_in_doubt
        raise raised from error


def _child_config(
    run_manager: CallbackManagerForToolRun | AsyncCallbackManagerForToolRun | None,
) -> RunnableConfig:
    # Python 3.10 does not pass the context of the call to tasks.
    if run_manager is None:
        return INTERNAL_CALL
    return {**INTERNAL_CALL, "callbacks": run_manager.get_child()}


def _result(title: str, answer: AIMessage) -> tuple[str, dict[str, Any]]:
    artifact = {"description": answer.text, **answer.response_metadata}
    return wrap_untrusted(answer.text, title=title), artifact
