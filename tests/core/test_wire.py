"""The body that is written fast is the body that the model writes."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phospho_multimodal.contract import (
    GenerationParameters,
    PredictRequest,
    request_body,
    request_pieces,
)
from phospho_multimodal.errors import UnsupportedContentError
from phospho_multimodal.exchange.steps import RequestBody

parameters = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(1, 250),
        "temperature": st.floats(0.1, 1.0),
        "repetition_penalty": st.floats(0.01, 10, exclude_min=True),
        "top_p": st.floats(0.0, 1.0),
    },
)
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@given(text=any_text, image_url=any_text, given_parameters=parameters)
def test_the_body_parsed_is_the_dumped_model(
    text: str, image_url: str, given_parameters: dict[str, Any]
):
    body = request_body(
        model="phospho-multimodal", text=text, image_url=image_url, parameters=given_parameters
    )

    model = PredictRequest.model_validate_json(body)
    assert json.loads(body) == orjson.loads(body) == model.model_dump(exclude_none=True)
    assert model.inputs[0].text == text
    assert model.inputs[0].image_url == image_url
    assert GenerationParameters.model_validate(given_parameters).model_dump(
        exclude_none=True
    ) == model.inputs[0].model_dump(exclude_none=True, exclude={"text", "image_url"})


@given(before=any_text, after=any_text, half=st.characters(categories=["Cs"]))
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(before: str, after: str, half: str):
    with pytest.raises(UnsupportedContentError, match=f"at character {len(before)},"):
        request_body(
            model="phospho-multimodal",
            text=before + half + after,
            image_url="https://x.example/a.png",
            parameters={},
        )


@given(text=any_text, image=st.binary(), given_parameters=parameters)
def test_the_pieces_of_a_body_are_the_body(
    text: str, image: bytes, given_parameters: dict[str, Any]
):
    base64 = pybase64.b64encode(image)
    common: dict[str, Any] = {"model": "m", "text": text, "parameters": given_parameters}

    pieces = request_pieces(base64=base64, **common)

    assert b"".join(pieces) == request_body(image_url=base64.decode(), **common)


@given(
    sizes=st.lists(st.one_of(st.integers(0, 100), st.integers(0, 900_000)), max_size=5),
    padding=st.one_of(st.just(0), st.integers(0, 3_000_000)),
)
def test_a_body_goes_in_slices_and_its_last_byte_by_itself(sizes: list[int], padding: int):
    pieces = [bytes([number % 256]) * size for number, size in enumerate([padding, *sizes])]
    body = RequestBody(*pieces)

    handed_over = []
    for piece in body:
        assert isinstance(piece, bytes)
        assert body.fully_sent == (sum(map(len, handed_over)) + len(piece) == body.size)
        handed_over.append(piece)

    assert b"".join(handed_over) == b"".join(pieces)
    assert body.size == sum(map(len, pieces))
    assert body.fully_sent
    *slices, end = handed_over
    assert len(end) == bool(body.size)
    assert all(len(piece) == 256 * 1024 for piece in slices[:-1])
