"""`VisionMiddleware`: image descriptions for an agent whose model takes only text."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, cast

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ContextT,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    PrivateStateAttr,
    ResponseT,
)
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ArgsSchema, ToolException
from langgraph.types import Command
from pydantic import Field, SkipValidation
from typing_extensions import NotRequired, TypedDict

from langchain_phospho.chat_models import ChatPhospho
from langchain_phospho.image_describer import (
    NOT_FOR_AGENTS,
    ImageDescriber,
    ImageQuestion,
    RecognizedImage,
    answered,
)
from langchain_phospho.message_images import (
    opened,
    require_chat_phospho,
    shown_images,
    with_words,
)
from langchain_phospho.tools import (
    INTERNAL_CALL,
    DescribeImageInput,
    DescribeImageTool,
    image_number,
)
from phospho_multimodal import PhosphoError
from phospho_multimodal.messages.untrusted_text import to_single_line, wrap_untrusted

__all__ = ["SeenImage", "VisionMiddleware", "VisionState"]

_PROMPT = "Describe this image. It is looked at because of this request:\n{request}"
_LONGEST_REQUEST = 2000
"""Characters of the user's request in a prompt."""


class SeenImage(TypedDict):
    """An image that an agent has seen: its permanent number, and its description if it has one."""

    number: int
    description: str | None


def _merged(old: dict[str, SeenImage], new: dict[str, SeenImage]) -> dict[str, SeenImage]:
    return {**old, **new}


class VisionState(AgentState[Any]):
    """The state of an agent, with a private key for the images that it has seen."""

    phospho_images: NotRequired[Annotated[dict[str, SeenImage], PrivateStateAttr, _merged]]


class LookAgainInput(DescribeImageInput):
    """The arguments of `look_again`, and the state of the graph."""

    image: int | str | None = Field(
        default=None,
        description="The number of the image, as its description tells it."
        " Leave it out for the newest one.",
    )
    question: str = Field(description="What to find out about the image.")


@dataclass(frozen=True, slots=True)
class _StoredDescription:
    """The description of an image that is no longer in the conversation."""

    text: str


class LookAgainTool(DescribeImageTool):
    """Answers a new prompt about an image that an agent knows by its description.

    If the image is no longer in the conversation, such as after a summary, the tool answers with
    the stored description.
    """

    name: str = "look_again"
    description: str = (
        "Look again at an image of the conversation, to find out what its description does not"
        " tell. Ask one question about one image. For an image that was removed from the"
        " conversation, this returns its description again."
    )
    args_schema: Annotated[ArgsSchema | None, SkipValidation()] = LookAgainInput
    describer: Any = Field(exclude=True, repr=False)
    """The `ImageDescriber` of the middleware."""

    def _find(
        self, image: int | str | None, state: Any
    ) -> tuple[str, RecognizedImage | _StoredDescription]:
        wanted = image_number(image)
        if isinstance(wanted, str):
            return super()._find(image, state)
        seen: dict[str, SeenImage] = (state or {}).get("phospho_images") or {}
        shown = (
            self.describer.recognize(image)
            for message in reversed(self._conversation(state))
            for image in reversed(shown_images(opened(message)))
        )
        for found in chain(shown, reversed(self.describer.kept())):
            if isinstance(found, PhosphoError):
                if wanted is None:
                    raise found
            elif found.key in seen and wanted in {None, seen[found.key]["number"]}:
                return f"Image {seen[found.key]['number']}", found
        stored = {entry["number"]: entry["description"] for entry in seen.values()}
        described = [number for number, text in stored.items() if text is not None]
        number = max(described, default=0) if wanted is None else wanted
        description = stored.get(number)
        if description is not None:
            title = f"Image {number}, which is no longer in the conversation, as described before"
            return title, _StoredDescription(description)
        known = ", ".join(map(str, sorted(stored))) or "none"
        which = "image" if wanted is None else f"image {wanted}"
        message = f"There is no {which} to look at in the conversation. Described so far: {known}."
        raise ToolException(message)

    def _ask(
        self, image: RecognizedImage | _StoredDescription, prompt: str, config: RunnableConfig
    ) -> AIMessage:
        del config  # several callers can share one request, which runs with the first one's config
        if isinstance(image, _StoredDescription):
            return AIMessage(image.text)
        (outcome,) = self.describer.describe([ImageQuestion(image, prompt)])
        return answered(outcome)

    async def _aask(
        self, image: RecognizedImage | _StoredDescription, prompt: str, config: RunnableConfig
    ) -> AIMessage:
        del config
        if isinstance(image, _StoredDescription):
            return AIMessage(image.text)
        (outcome,) = await self.describer.adescribe([ImageQuestion(image, prompt)])
        return answered(outcome)


@dataclass(frozen=True, slots=True)
class _View:
    """The messages of a model call, with the images in them and the questions to ask first."""

    messages: list[BaseMessage]
    images: list[list[RecognizedImage | PhosphoError]]
    seen: dict[str, SeenImage]
    questions: list[ImageQuestion]


class VisionMiddleware(AgentMiddleware[VisionState, ContextT, ResponseT]):
    """Describes the images of a conversation to an agent of `create_agent`.

    The agent's model reads a description in place of each image of the user, of a tool (also in
    its text), of the instructions and of the history. `ChatPhospho` makes the description with the
    user's request in the prompt. It is delimited and marked as untrusted. Each image is described
    once. Its description is in the agent's private state, where a checkpointer keeps it. The tool
    `look_again` answers new prompts about an image. If the image is no longer in the conversation,
    such as after a summary, the tool answers with the stored description.
    The messages of the state keep their images, so that a vision model can continue later.

    After a failure, a note replaces the image, and the next step tries again. Errors of
    configuration, key, billing and the spending limit are raised. A description that may have been
    billed is not requested again before the user's next turn, also if other middleware retries the
    step.

    Example:
        ```python
        vision = VisionMiddleware(ChatPhospho(base_url="http://127.0.0.1:8000"))
        agent = create_agent("openai:some-text-model", middleware=[vision])
        ```
    """

    state_schema = VisionState

    def __init__(self, model: ChatPhospho, *, look_again: bool = True) -> None:
        """Open nothing yet.

        Args:
            model: The model that describes images.
            look_again: Add the tool. Pass `False` if the agent's model calls no tools.

        Raises:
            ConfigurationError: The model is not a `ChatPhospho`, or it is wrapped.
        """
        super().__init__()
        self.model = require_chat_phospho(model, "VisionMiddleware")
        self._describer = ImageDescriber(model, INTERNAL_CALL)
        self.tools = [LookAgainTool(model=model, describer=self._describer)] if look_again else []

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Replace images with descriptions, then call the model.

        Args:
            request: The model call.
            handler: Calls the model.

        Returns:
            The model's answer, with an update of the state if an image is new.

        Raises:
            PhosphoModelError: Configuration, key, billing or the spending limit.
        """
        view = self._view(request)
        outcomes = self._describer.describe(view.questions)
        return self._with_update(view, request, handler(self._described(view, outcomes, request)))

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Do the same as `wrap_model_call`."""
        view = await asyncio.to_thread(self._view, request)
        outcomes = await self._describer.adescribe(view.questions)
        return self._with_update(
            view, request, await handler(self._described(view, outcomes, request))
        )

    def _view(self, request: ModelRequest[ContextT]) -> _View:
        messages: list[BaseMessage] = list(map(opened, request.messages))
        if request.system_message is not None:
            messages.insert(0, request.system_message)
        images = [
            [self._describer.recognize(image) for image in shown_images(message)]
            for message in messages
        ]
        if request.system_message is not None:
            self._describer.keep(images[0])
        seen: dict[str, SeenImage] = dict(_remembered(request))
        next_number = 1 + max((entry["number"] for entry in seen.values()), default=0)
        questions: dict[str, ImageQuestion] = {}
        turn = _turn_id(messages)
        for index, row in enumerate(images):
            for image in row:
                if isinstance(image, PhosphoError):
                    continue
                if image.key not in seen:
                    seen[image.key] = {"number": next_number, "description": None}
                    next_number += 1
                if seen[image.key]["description"] is None and image.key not in questions:
                    prompt = _prompt(messages, index) or self.model.default_prompt
                    questions[image.key] = ImageQuestion(image, prompt, turn)
        return _View(messages, images, seen, list(questions.values()))

    def _described(
        self, view: _View, outcomes: Sequence[Any], request: ModelRequest[ContextT]
    ) -> ModelRequest[ContextT]:
        """Make the request with words in place of images, and add descriptions to `view.seen`."""
        failures: dict[str, PhosphoError] = {}
        for question, outcome in zip(view.questions, outcomes, strict=True):
            key = question.image.key
            if isinstance(outcome, PhosphoError) and not isinstance(outcome, NOT_FOR_AGENTS):
                failures[key] = outcome
            else:
                answer = answered(outcome)
                view.seen[key] = {**view.seen[key], "description": answer.text}
        messages = [
            with_words(message, _words(row, view.seen, failures)) if row else message
            for message, row in zip(view.messages, view.images, strict=True)
        ]
        if not any(view.images):
            return request
        if request.system_message is None:
            return request.override(messages=cast("Any", messages))
        system = cast("SystemMessage", messages[0])
        return request.override(messages=cast("Any", messages[1:]), system_message=system)

    def _with_update(
        self, view: _View, request: ModelRequest[ContextT], response: ModelResponse[ResponseT]
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        before = _remembered(request)
        new = {key: entry for key, entry in view.seen.items() if before.get(key) != entry}
        if not new:
            return response
        return ExtendedModelResponse(response, Command(update={"phospho_images": new}))


def _remembered(request: ModelRequest[Any]) -> dict[str, SeenImage]:
    state = cast("dict[str, Any]", request.state)
    return cast("dict[str, SeenImage]", state.get("phospho_images") or {})


def _turn_id(messages: Sequence[BaseMessage]) -> str | None:
    """Return the id that LangGraph gave to the user's newest message."""
    users = (message for message in reversed(messages) if isinstance(message, HumanMessage))
    newest: BaseMessage | None = next(users, messages[-1] if messages else None)
    return None if newest is None else newest.id


def _prompt(messages: Sequence[BaseMessage], index: int) -> str:
    """Make a prompt of the consecutive user messages to which a message belongs."""
    users = [number for number in range(index + 1) if isinstance(messages[number], HumanMessage)]
    if not users:
        return ""
    first = last = users[-1]
    while first > 0 and isinstance(messages[first - 1], HumanMessage):
        first -= 1
    while last + 1 < len(messages) and isinstance(messages[last + 1], HumanMessage):
        last += 1
    texts = [message.text.strip() for message in messages[first : last + 1]]
    request = "\n".join(text for text in texts if text)
    if len(request) > _LONGEST_REQUEST:
        half = _LONGEST_REQUEST // 2  # a pasted document has the request before or after it
        request = f"{request[:half]}\n[…]\n{request[-half:]}"
    return _PROMPT.format(request=request) if request else ""


def _words(
    row: Sequence[RecognizedImage | PhosphoError],
    seen: dict[str, SeenImage],
    failures: dict[str, PhosphoError],
) -> Iterator[str]:
    for image in row:
        if isinstance(image, PhosphoError):
            yield f"[An image that cannot be looked at: {to_single_line(str(image))}]"
            continue
        number, description = seen[image.key]["number"], seen[image.key]["description"]
        if description is None:
            reason = to_single_line(str(failures[image.key]))
            yield f"[Image {number} could not be described this time: {reason}]"
        else:
            yield wrap_untrusted(description, title=f"Image {number}")
