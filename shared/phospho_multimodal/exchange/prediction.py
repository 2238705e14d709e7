"""From the plan of a conversation to its answer: images made ready, asked about, put together."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from phospho_multimodal.contract import request_body, request_pieces
from phospho_multimodal.errors import FATAL_ERRORS, PhosphoError, UnsupportedContentError
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
)
from phospho_multimodal.images.source import ImageSource
from phospho_multimodal.messages.conversation import ConversationPlan, cut_at_stop
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

__all__ = ["GenerationOptions", "Prediction", "build_request", "predict"]

# To look through so much, decode and hash it takes two milliseconds. A thread costs half of one,
# and much more where many threads wait for one interpreter.
_SMALL_IMAGE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Attributes:
        description: The answer's text.
        metadata: What was sent, how often, and what it cost; see the README.
    """

    description: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How something is asked.

    Attributes:
        model: The model's name.
        parameters: Generation parameters that were set and checked.
        stop: Strings at which an answer is cut.
    """

    model: str
    parameters: Mapping[str, Any]
    stop: Sequence[str] | None = None


def predict(
    shared: ClientState, plan: ConversationPlan, asking: GenerationOptions
) -> Generator[Step, Any, Prediction]:
    """Ask what a plan says, with everything that belongs to it.

    Args:
        shared: What the client's calls share.
        plan: The question and the images.
        asking: How it is asked.

    Yields:
        Steps for the client to do.

    Returns:
        The answer.

    Raises:
        PhosphoError: See `phospho_multimodal.errors`.
    """
    settings = shared.settings
    deadline = None if settings.deadline is None else shared.clock() + settings.deadline
    handed_over = yield from _fetch_all(plan, settings, deadline)
    if plan.policy == "auto":
        plan = yield from _decide(shared, plan, handed_over)
    if plan.policy == "each" or settings.detail == "tiles":
        parts = yield from _prepared_parts(plan, handed_over, settings)
        if len(parts) > 1 or plan.policy == "each":
            return (yield from _ask_each(shared, plan, parts, asking, deadline))

    clean: SendableImage | None = None
    if plan.policy != "montage" and _is_small(handed_over[0]):
        clean = _clean(handed_over[0], settings)

    # By arguments: what a function sees of this one would be cells, which everybody's garbage
    # collector looks through as long as the answer is waited for.
    make_ready = partial(_made_ready, plan, handed_over, clean, asking, settings, deadline=deadline)
    if clean is None and _have_bytes(handed_over):
        call, shown, warnings = yield RunInThread(make_ready, computes=True)
    else:
        call, shown, warnings = make_ready()
    del make_ready, clean  # or the image's bytes would wait for the answer, beside their base64
    description = yield from send_with_retries(shared, call)
    metadata = _metadata(shared, plan, asking, [call], shown, warnings=warnings)
    return Prediction(cut_at_stop(description, asking.stop), metadata)


def _prepared_parts(
    plan: ConversationPlan, passed: Sequence[Passed], settings: Settings
) -> Generator[Step, Any, list[Part]]:
    """Prepare what is asked about separately; URLs that are passed on need no thread."""
    prepare = partial(parts_of, plan, passed, settings)
    parts: list[Part] = (
        (yield RunInThread(prepare, computes=True)) if _have_bytes(passed) else prepare()
    )
    return parts


def _made_ready(
    plan: ConversationPlan,
    handed_over: Sequence[Passed],
    clean: SendableImage | None,
    asking: GenerationOptions,
    settings: Settings,
    *,
    deadline: float | None,
) -> tuple[RequestState, list[dict[str, Any]], list[str]]:
    """Put together the one question of a plan, and what its answer's metadata tells of images."""
    warnings: list[str] = []
    if plan.policy == "montage":
        image, sources, warnings = make_montage(handed_over, settings)
        text = f"{plan.text}\n{legend(len(sources))}"
    else:
        image = clean or ready(handed_over[0], settings)
        text, sources = plan.text, [image]
    shown = [source.to_metadata() for source in sources]
    return build_request(image, text, asking, settings, deadline), shown, warnings


def _ask_each(
    shared: ClientState,
    plan: ConversationPlan,
    parts: Sequence[Part],
    asking: GenerationOptions,
    deadline: float | None,
) -> Generator[Step, Any, Prediction]:
    """Ask about every part by itself, all at once; a failure is told in its place."""
    if plan.one_answer:
        message = (
            f"detail='tiles' would send {len(parts)} parts and get an answer about each, but with"
            " tools or a schema one answer is read. Nothing was sent. Choose detail='auto'."
        )
        raise UnsupportedContentError(message)
    make_calls = partial(_calls, plan, parts, asking, shared.settings, deadline)
    have_bytes = any(isinstance(part.image, PreparedImage) for part in parts)
    calls = (yield RunInThread(make_calls, computes=True)) if have_bytes else make_calls()
    # For all or for none: half an answer for half the money is not what was asked for.
    reservations = yield from reserve_budget(shared, len(calls))
    for call, reservation in zip(calls, reservations, strict=True):
        call.reservation = reservation
    refusals: list[PhosphoError] = []
    try:
        outcomes = yield Gather([_ask_one_of_several(shared, call, refusals) for call in calls])
    finally:
        for call in calls:  # what a call has taken it settles itself
            if call.reservation is not None:
                shared.spending.settle_later(call.reservation.release)
    failures = [outcome for outcome in outcomes if isinstance(outcome, PhosphoError)]
    if len(failures) == len(outcomes):
        first = refusals[0] if refusals else failures[0]
        first.attempts = sum(call.attempts for call in calls)
        first.images_in_doubt = sum(call.in_doubt for call in calls)
        raise first
    shown = [image.to_metadata() for part in parts for image in part.images]
    answers = [
        f"{part.name}:\n{_told(outcome, asking.stop)}"
        for part, outcome in zip(parts, outcomes, strict=True)
    ]
    metadata = _metadata(shared, plan, asking, calls, shown, failed=len(failures))
    return Prediction("\n\n".join(answers), metadata)


def _calls(
    plan: ConversationPlan,
    parts: Sequence[Part],
    asking: GenerationOptions,
    settings: Settings,
    deadline: float | None,
) -> list[RequestState]:
    return [
        build_request(part.image, f"{plan.text}{part.note}", asking, settings, deadline)
        for part in parts
    ]


def _ask_one_of_several(
    shared: ClientState, call: RequestState, refusals: list[PhosphoError]
) -> Generator[Step, Any, str]:
    """Ask about one image; the first that is refused for good stops those not yet sent."""
    call.abort_reason = lambda: refusals[0] if refusals else None
    try:
        return (yield from send_with_retries(shared, call))
    except FATAL_ERRORS as error:
        refusals.append(error)
        raise


def _decide(
    shared: ClientState, plan: ConversationPlan, passed: Sequence[Passed]
) -> Generator[Step, Any, ConversationPlan]:
    """Choose for `multi_image="auto"`: a montage, unless it cannot be read and each can be paid."""
    if plan.one_answer or shared.settings.detail == "tiles":
        return replace(plan, policy="montage")
    if any(image.source.url is not None and image.fetched is None for image in passed):
        return replace(plan, policy="each")  # a montage cannot be made of what is not opened
    warnings = yield RunInThread(partial(montage_warnings, passed, shared.settings), computes=True)
    snapshot = yield from run_ledger_io(shared, shared.spending.snapshot)
    left = snapshot.images_left
    affordable = left is None or left >= len(passed)
    return replace(plan, policy="each" if warnings and affordable else "montage")


def _told(outcome: str | PhosphoError, stop: Sequence[str] | None) -> str:
    if isinstance(outcome, PhosphoError):
        return f"[no answer: {type(outcome).__name__}: {outcome}]"
    return cut_at_stop(outcome, stop)


def _fetch_all(
    plan: ConversationPlan, settings: Settings, deadline: float | None
) -> Generator[Step, Any, Sequence[Passed]]:
    """Fetch the images that are URLs, if that is asked for: all at once, before money is spent."""
    if settings.url_mode == "pass" or all(source.url is None for source in plan.images):
        return [Passed(source) for source in plan.images]
    if len(plan.images) == 1:
        return [(yield from _fetched(plan.images[0], deadline))]
    outcomes: list[Passed | PhosphoError]
    outcomes = yield Gather([_fetched(source, deadline) for source in plan.images])
    images: list[Passed] = []
    for outcome in outcomes:
        if isinstance(outcome, PhosphoError):
            raise outcome
        images.append(outcome)
    return images


def _fetched(source: ImageSource, deadline: float | None) -> Generator[Step, Any, Passed]:
    if source.url is None:
        return Passed(source)
    from phospho_multimodal.images.safe_fetch import fetch_image  # noqa: PLC0415 - loads httpcore

    given_up = threading.Event()
    fetch = partial(fetch_image, source.url, deadline=deadline, given_up=given_up.is_set)
    try:
        return Passed(source, (yield RunInThread(fetch, computes=False)))
    finally:
        # A cancelled task does not wait for the thread that works for it: this ends the work.
        given_up.set()


def _have_bytes(images: Sequence[Passed]) -> bool:
    return any(image.source.url is None or image.fetched is not None for image in images)


def _is_small(image: Passed) -> bool:
    """Tell whether it costs less to look through an image at once than to have a thread do it."""
    source = image.source
    in_memory = source.form in {"bytes", "base64", "data_url"}
    return in_memory and len(source.value) <= _SMALL_IMAGE


def _clean(image: Passed, settings: Settings) -> PreparedImage | None:
    return passthrough_source(image.source, max_image_side=settings.max_image_side)


def build_request(
    image: SendableImage,
    text: str,
    asking: GenerationOptions,
    settings: Settings,
    deadline: float | None = None,
) -> RequestState:
    """Put one question about one picture, ready to be sent.

    Args:
        image: The picture.
        text: The question.
        asking: How it is asked.
        settings: Of the client.
        deadline: On the clock of the exchange.

    Returns:
        What `send_with_retries` takes.
    """
    model, parameters = asking.model, asking.parameters
    body: tuple[bytes, ...]
    if isinstance(image, LinkedImage):
        on_wire: str | bytes = image.url
        body = (request_body(model=model, text=text, image_url=image.url, parameters=parameters),)
    else:
        on_wire = base64 = image.to_base64()
        body = request_pieces(model=model, text=text, base64=base64, parameters=parameters)
    return RequestState(body, (*settings.secrets(), text, on_wire), deadline)


def _metadata(
    shared: ClientState,
    plan: ConversationPlan,
    asking: GenerationOptions,
    calls: Sequence[RequestState],
    images: list[dict[str, Any]],
    *,
    failed: int = 0,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Tell what an answer was made of, and what it cost."""
    billed = len(calls) - failed
    metadata: dict[str, Any] = {
        "model_name": asking.model,
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
    request_ids = [call.request_id for call in calls if call.request_id is not None]
    if request_ids:
        metadata["request_id"] = ", ".join(request_ids)
    return metadata
