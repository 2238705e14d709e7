"""From the turns of a conversation to its answer."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from phospho_multimodal.contract import request_body, request_pieces
from phospho_multimodal.errors import (
    FATAL_ERRORS,
    ImageError,
    PhosphoError,
    UnsupportedContentError,
)
from phospho_multimodal.exchange.attempts import (
    ClientState,
    RequestState,
    reserve_budget,
    run_ledger_io,
    send_with_retries,
)
from phospho_multimodal.exchange.steps import Gather, RunInThread, Step
from phospho_multimodal.images.prepare import (
    LinkedImage,
    PreparedImage,
    SendableImage,
    passthrough_source,
    prepare_source,
)
from phospho_multimodal.images.source import ImageSource
from phospho_multimodal.messages.conversation import (
    ConversationPlan,
    ImagePolicy,
    Turn,
    cut_at_stop,
    mark_unreadable,
    plan_conversation,
)
from phospho_multimodal.messages.image_parts import (
    Part,
    Passed,
    legend,
    make_montage,
    montage_warnings,
    parts_of,
    ready,
)
from phospho_multimodal.settings import Settings

__all__ = ["GenerationOptions", "Prediction", "answer_turns", "build_request"]

_SMALL_IMAGE = 256 * 1024
"""To inspect so many bytes takes 2 ms at most. A thread costs 0.5 ms, and more under load."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Attributes:
        description: The text of the answer.
        metadata: What was sent, how often, and what it cost. The README lists the keys.
    """

    description: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """The options of a prediction, already checked.

    Attributes:
        model: The name of the model.
        parameters: The generation parameters that were set.
        stop: Strings at which an answer is cut.
    """

    model: str
    parameters: Mapping[str, Any]
    stop: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """What one prediction is made from.

    Attributes:
        conversation: The prompt and the images, and what to do with several images.
        images: The images, with the file of each URL that was fetched.
        options: The model and its parameters.
        settings: The settings of the client.
        deadline: The end of the call, on the clock of the client's state.
    """

    conversation: ConversationPlan
    images: Sequence[Passed]
    options: GenerationOptions
    settings: Settings
    deadline: float | None

    @property
    def needs_thread(self) -> bool:
        """Whether an image has to be prepared, which would block an event loop."""
        return any(image.source.url is None or image.fetched is not None for image in self.images)

    def request(self, image: SendableImage, text: str) -> RequestState:
        """Build the request about one image."""
        return build_request(image, text, self.options, self.settings, self.deadline)

    def single_request(self) -> tuple[RequestState, list[dict[str, Any]], list[str]]:
        """Build the only request, and return it with the metadata of its images and warnings."""
        text = self.conversation.text
        if self.conversation.policy != "montage":
            image = ready(self.images[0], self.settings)
            return self.request(image, text), [image.to_metadata()], []
        montage, sources, warnings = make_montage(self.images, self.settings)
        call = self.request(montage, f"{text}\n{legend(len(sources))}")
        return call, [source.to_metadata() for source in sources], warnings

    def small_request(self) -> tuple[RequestState, list[dict[str, Any]], list[str]] | None:
        """Build the only request without a thread, if its image is small and sent as it is."""
        source = self.images[0].source
        in_memory = source.form in {"bytes", "base64", "data_url"}
        is_small = in_memory and len(source.value) <= _SMALL_IMAGE
        if self.conversation.policy == "montage" or not is_small:
            return None
        image = passthrough_source(source, max_image_side=self.settings.max_image_side)
        if image is None:
            return None
        return self.request(image, self.conversation.text), [image.to_metadata()], []

    def part_requests(self, parts: Sequence[Part]) -> list[RequestState]:
        """Build one request for each part."""
        text = self.conversation.text
        return [self.request(part.image, f"{text}{part.note}") for part in parts]


def build_request(
    image: SendableImage,
    text: str,
    options: GenerationOptions,
    settings: Settings,
    deadline: float | None = None,
) -> RequestState:
    """Build the request about one image, which `send_with_retries` sends."""
    model, parameters = options.model, options.parameters
    body: tuple[bytes, ...]
    if isinstance(image, LinkedImage):
        on_wire: str | bytes = image.url
        body = (request_body(model=model, text=text, image_url=image.url, parameters=parameters),)
    else:
        on_wire = base64 = image.to_base64()
        body = request_pieces(model=model, text=text, base64=base64, parameters=parameters)
    return RequestState(body, (*settings.secrets(), text, on_wire), deadline)


def answer_turns(
    shared: ClientState, turns: Sequence[Turn], policy: ImagePolicy, options: GenerationOptions
) -> Generator[Step, Any, Prediction]:
    """Send a conversation, and return its answer.

    An unreadable image raises `ImageError` only in the newest turn. In an older turn, a mark
    replaces the image, and the plan is made again.
    """
    while True:
        plan = plan_conversation(turns, policy)
        try:
            return (yield from _predict(shared, plan, options))
        except ImageError:  # nothing was sent
            if not plan.is_about_older_turn:
                raise
            find = partial(_unreadable, plan.images, shared.settings)
            reasons = yield RunInThread(find, computes=True)
            if not reasons:
                raise
        turns = mark_unreadable(turns, reasons)


def _unreadable(images: Sequence[ImageSource], settings: Settings) -> dict[int, str]:
    """Map the `id()` of each unreadable image to the reason."""
    reasons: dict[int, str] = {}
    for image in images:
        try:
            prepare_source(image, max_image_side=settings.max_image_side, prepare=settings.prepare)
        except ImageError as error:  # noqa: PERF203 - a few images, none of them twice
            reasons[id(image)] = str(error)
    return reasons


def _predict(
    shared: ClientState, conversation: ConversationPlan, options: GenerationOptions
) -> Generator[Step, Any, Prediction]:
    settings = shared.settings
    deadline = None if settings.deadline is None else shared.clock() + settings.deadline
    images = yield from _fetch_all(conversation, settings, deadline)
    plan = PredictionPlan(conversation, images, options, settings, deadline)
    if conversation.policy == "auto":
        plan = replace(plan, conversation=(yield from _choose_policy(shared, plan)))
    one_by_one = plan.conversation.policy == "each"
    if one_by_one or settings.detail == "tiles":
        prepare = partial(parts_of, plan.conversation, images, settings)
        parts = (yield RunInThread(prepare, computes=True)) if plan.needs_thread else prepare()
        if len(parts) > 1 or one_by_one:
            return (yield from _send_parts(shared, plan, parts))
    built = plan.small_request()
    if built is None:
        build = plan.single_request
        built = (yield RunInThread(build, computes=True)) if plan.needs_thread else build()
        del build
    call, shown, warnings = built
    conversation = plan.conversation
    # The request holds the base64. Do not hold the file as well while the answer is awaited.
    del plan, images, built
    description = yield from send_with_retries(shared, call)
    metadata = _metadata(shared, conversation, options, [call], shown, warnings=warnings)
    return Prediction(cut_at_stop(description, options.stop), metadata)


def _send_parts(
    shared: ClientState, plan: PredictionPlan, parts: Sequence[Part]
) -> Generator[Step, Any, Prediction]:
    """Send a request for each part concurrently. An error takes the place of its answer."""
    if plan.conversation.one_answer:
        message = (
            f"detail='tiles' would send {len(parts)} parts and get an answer about each, but tools"
            " or a schema need one answer. Nothing was sent. Choose detail='auto'."
        )
        raise UnsupportedContentError(message)
    build = partial(plan.part_requests, parts)
    have_bytes = any(isinstance(part.image, PreparedImage) for part in parts)
    calls = (yield RunInThread(build, computes=True)) if have_bytes else build()
    # Reserve money for all parts or for none, because half an answer is of no use.
    reservations = yield from reserve_budget(shared, len(calls))
    for call, reservation in zip(calls, reservations, strict=True):
        call.reservation = reservation
    refusals: list[PhosphoError] = []
    try:
        outcomes = yield Gather([_send_part(shared, call, refusals) for call in calls])
    finally:
        for call in calls:  # a call that has taken its reservation settles it itself
            if call.reservation is not None:
                shared.spending.settle_later(call.reservation.release)
    failures = [outcome for outcome in outcomes if isinstance(outcome, PhosphoError)]
    if len(failures) == len(outcomes):
        first = refusals[0] if refusals else failures[0]
        first.attempts = sum(call.attempts for call in calls)
        first.images_in_doubt = sum(call.in_doubt for call in calls)
        raise first
    shown = [image.to_metadata() for part in parts for image in part.images]
    texts = [
        f"[no answer: {type(outcome).__name__}: {outcome}]"
        if isinstance(outcome, PhosphoError)
        else cut_at_stop(outcome, plan.options.stop)
        for outcome in outcomes
    ]
    answers = [f"{part.name}:\n{text}" for part, text in zip(parts, texts, strict=True)]
    failed = len(failures)
    metadata = _metadata(shared, plan.conversation, plan.options, calls, shown, failed=failed)
    return Prediction("\n\n".join(answers), metadata)


def _send_part(
    shared: ClientState, call: RequestState, refusals: list[PhosphoError]
) -> Generator[Step, Any, str]:
    """Send one part. The first fatal error stops the parts that were not sent yet."""
    call.abort_reason = lambda: refusals[0] if refusals else None
    try:
        return (yield from send_with_retries(shared, call))
    except FATAL_ERRORS as error:
        refusals.append(error)
        raise


def _choose_policy(
    shared: ClientState, plan: PredictionPlan
) -> Generator[Step, Any, ConversationPlan]:
    """Choose for `multi_image="auto"`: "each" if a montage is too small to read, else "montage"."""
    conversation = plan.conversation
    if conversation.one_answer or plan.settings.detail == "tiles":
        return replace(conversation, policy="montage")
    if any(image.source.url is not None and image.fetched is None for image in plan.images):
        return replace(conversation, policy="each")  # a montage needs the files
    find_warnings = partial(montage_warnings, plan.images, plan.settings)
    warnings = yield RunInThread(find_warnings, computes=True)
    snapshot = yield from run_ledger_io(shared, shared.spending.snapshot)
    affordable = snapshot.images_left is None or snapshot.images_left >= len(plan.images)
    return replace(conversation, policy="each" if warnings and affordable else "montage")


def _fetch_all(
    plan: ConversationPlan, settings: Settings, deadline: float | None
) -> Generator[Step, Any, Sequence[Passed]]:
    """Fetch the images that are URLs concurrently, if `url_mode="fetch"`."""
    if settings.url_mode == "pass" or all(source.url is None for source in plan.images):
        return [Passed(source) for source in plan.images]
    outcomes: list[Passed | PhosphoError]
    outcomes = yield Gather([_fetch(source, deadline) for source in plan.images])
    for outcome in outcomes:
        if isinstance(outcome, PhosphoError):
            raise outcome
    return cast("list[Passed]", outcomes)


def _fetch(source: ImageSource, deadline: float | None) -> Generator[Step, Any, Passed]:
    if source.url is None:
        return Passed(source)
    from phospho_multimodal.images.safe_fetch import fetch_image  # noqa: PLC0415 - loads httpcore

    abandoned = threading.Event()
    fetch = partial(fetch_image, source.url, deadline=deadline, given_up=abandoned.is_set)
    try:
        return Passed(source, (yield RunInThread(fetch, computes=False)))
    finally:
        abandoned.set()  # a cancelled task does not wait for its thread, so end the fetch


def _metadata(
    shared: ClientState,
    plan: ConversationPlan,
    options: GenerationOptions,
    calls: Sequence[RequestState],
    images: list[dict[str, Any]],
    *,
    failed: int = 0,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe what was sent for an answer, and what it cost."""
    billed = len(calls) - failed
    metadata: dict[str, Any] = {
        "model_name": options.model,
        "model_provider": "phospho",
        "images": images,
        "images_billed": billed,
        "images_in_doubt": sum(call.in_doubt for call in calls),
        "cost_usd": float(billed * shared.spending.usd_per_image),
        "attempts": sum(call.attempts for call in calls),
        "image_policy": plan.policy,
        "images_omitted": plan.images_omitted,
    }
    if warnings:
        metadata["warnings"] = list(warnings)
    if plan.content_omitted:
        metadata["content_omitted"] = plan.content_omitted
    if request_ids := [call.request_id for call in calls if call.request_id is not None]:
        metadata["request_id"] = ", ".join(request_ids)
    return metadata
