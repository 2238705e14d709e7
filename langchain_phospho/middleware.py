"""`VisionMiddleware`: eyes for an agent whose model has none."""

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

_WITH_A_QUESTION = "Describe this image. It is looked at because of this request:\n{request}"
_LONGEST_REQUEST = 2000
"""Characters of a request that are in view."""


class SeenImage(TypedDict):
    """What an agent knows of a picture: its number for good, and its description once there."""

    number: int
    description: str | None


def _merged(old: dict[str, SeenImage], new: dict[str, SeenImage]) -> dict[str, SeenImage]:
    return {**old, **new}


class VisionState(AgentState[Any]):
    """The state of an agent with eyes: what it has seen stays its own."""

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
    """What is left of an image that is no longer in the conversation."""

    text: str


class LookAgainTool(DescribeImageTool):
    """Answers a new question about a picture that an agent knows by its description.

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
            self.describer.recognize(picture)
            for message in reversed(self._conversation(state))
            for picture in reversed(shown_images(opened(message)))
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
        self, picture: RecognizedImage | _StoredDescription, question: str, config: RunnableConfig
    ) -> AIMessage:
        del config  # of the first who asks, if several do
        if isinstance(picture, _StoredDescription):
            return AIMessage(picture.text)
        (outcome,) = self.describer.describe([ImageQuestion(picture, question)])
        return answered(outcome)

    async def _aask(
        self, picture: RecognizedImage | _StoredDescription, question: str, config: RunnableConfig
    ) -> AIMessage:
        del config
        if isinstance(picture, _StoredDescription):
            return AIMessage(picture.text)
        (outcome,) = await self.describer.adescribe([ImageQuestion(picture, question)])
        return answered(outcome)


@dataclass(frozen=True, slots=True)
class _View:
    """What a model is about to see, and what has to be looked at first."""

    messages: list[BaseMessage]
    recognized: list[list[RecognizedImage | PhosphoError]]
    seen: dict[str, SeenImage]
    questions: list[ImageQuestion]


class VisionMiddleware(AgentMiddleware[VisionState, ContextT, ResponseT]):
    """Gives eyes to an agent of `create_agent`, whatever its model.

    In place of every picture that the model would see, from the user, from a tool (in its text,
    too), in the instructions or in the history, it reads a description that `ChatPhospho` made with
    the user's request in view, marked as untrusted and fenced. Each picture is described once: its
    description lives in the agent's private state, and a checkpointer keeps it. New questions go
    through the tool `look_again`. If the image is no longer in the conversation, such as after a
    summary, the tool answers with the stored description.
    The messages of the state keep their pictures, so that a model with eyes can take over.

    A failure leaves a note in the picture's place, and the next step tries again; configuration,
    key, billing and the spending limit raise. A description that may have been billed is not asked
    for again before the user's next turn, also if other middleware retries the step.

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
            look_again: Bring the tool; `False` for a driving model that calls no tools.

        Raises:
            ConfigurationError: The model is not a `ChatPhospho`, or it is a wrapped one.
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
        """Put descriptions in the place of pictures, then call the model.

        Args:
            request: What the model would see.
            handler: Calls it.

        Returns:
            Its answer, and what was seen for the first time.

        Raises:
            PhosphoModelError: Configuration, key, billing or the spending limit.
        """
        view = self._view(request)
        outcomes = self._describer.describe(view.questions)
        return self._noted(view, request, handler(self._told(view, outcomes, request)))

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Do the same as `wrap_model_call`.

        Args:
            request: What the model would see.
            handler: Calls it.

        Returns:
            Its answer, and what was seen for the first time.

        Raises:
            PhosphoModelError: Configuration, key, billing or the spending limit.
        """
        view = await asyncio.to_thread(self._view, request)
        outcomes = await self._describer.adescribe(view.questions)
        return self._noted(view, request, await handler(self._told(view, outcomes, request)))

    def _view(self, request: ModelRequest[ContextT]) -> _View:
        messages: list[BaseMessage] = list(map(opened, request.messages))
        if request.system_message is not None:
            messages.insert(0, request.system_message)
        recognized = [
            [self._describer.recognize(picture) for picture in shown_images(message)]
            for message in messages
        ]
        if request.system_message is not None:
            self._describer.keep(recognized[0])
        seen: dict[str, SeenImage] = dict(_remembered(request))
        next_number = 1 + max((entry["number"] for entry in seen.values()), default=0)
        questions: dict[str, ImageQuestion] = {}
        turn = _turn(messages)
        for index, row in enumerate(recognized):
            for image in row:
                if isinstance(image, PhosphoError):
                    continue
                if image.key not in seen:
                    seen[image.key] = {"number": next_number, "description": None}
                    next_number += 1
                if seen[image.key]["description"] is None and image.key not in questions:
                    question = _question(messages, index) or self.model.default_prompt
                    questions[image.key] = ImageQuestion(image, question, turn)
        return _View(messages, recognized, seen, list(questions.values()))

    def _told(
        self, view: _View, outcomes: Sequence[Any], request: ModelRequest[ContextT]
    ) -> ModelRequest[ContextT]:
        """Make the request that has words where pictures were; what was learnt goes into `view`."""
        failures: dict[str, PhosphoError] = {}
        for look, outcome in zip(view.questions, outcomes, strict=True):
            key = look.image.key
            if isinstance(outcome, PhosphoError) and not isinstance(outcome, NOT_FOR_AGENTS):
                failures[key] = outcome
            else:
                answer = answered(outcome)
                view.seen[key] = {**view.seen[key], "description": answer.text}
        messages = [
            with_words(message, _words(row, view.seen, failures)) if row else message
            for message, row in zip(view.messages, view.recognized, strict=True)
        ]
        if not any(view.recognized):
            return request
        if request.system_message is None:
            return request.override(messages=cast("Any", messages))
        system = cast("SystemMessage", messages[0])
        return request.override(messages=cast("Any", messages[1:]), system_message=system)

    def _noted(
        self, view: _View, request: ModelRequest[ContextT], response: ModelResponse[ResponseT]
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        before = _remembered(request)
        news = {key: entry for key, entry in view.seen.items() if before.get(key) != entry}
        if not news:
            return response
        return ExtendedModelResponse(response, Command(update={"phospho_images": news}))


def _remembered(request: ModelRequest[Any]) -> dict[str, SeenImage]:
    state = cast("dict[str, Any]", request.state)
    return cast("dict[str, SeenImage]", state.get("phospho_images") or {})


def _turn(messages: Sequence[BaseMessage]) -> str | None:
    """Name the turn of the user, by the id that LangGraph gave to its newest message."""
    asked = (message for message in reversed(messages) if isinstance(message, HumanMessage))
    newest: BaseMessage | None = next(asked, messages[-1] if messages else None)
    return None if newest is None else newest.id


def _question(messages: Sequence[BaseMessage], index: int) -> str:
    """Find the request in whose turn a message came: all that the user said in one go."""
    asked = [number for number in range(index + 1) if isinstance(messages[number], HumanMessage)]
    if not asked:
        return ""
    first = last = asked[-1]
    while first > 0 and isinstance(messages[first - 1], HumanMessage):
        first -= 1
    while last + 1 < len(messages) and isinstance(messages[last + 1], HumanMessage):
        last += 1
    texts = [message.text.strip() for message in messages[first : last + 1]]
    request = "\n".join(text for text in texts if text)
    if len(request) > _LONGEST_REQUEST:
        # The question stands at either end of a pasted document.
        half = _LONGEST_REQUEST // 2
        request = f"{request[:half]}\n[…]\n{request[-half:]}"
    return _WITH_A_QUESTION.format(request=request) if request else ""


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
