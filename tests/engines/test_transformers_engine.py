"""The engine `transformers`, with a tiny LLaVA that the code loads like any other."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llava import save_tiny_llava
from transformers import LlavaForConditionalGeneration

from live_server import serve
from phospho_multimodal.contract import GenerationParameters
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import InputImage, Question, load_engine, running
from phospho_multimodal.server.engines.transformers import TransformersEngine
from phospho_multimodal.server.engines.vision_model import VisionModel
from pictures import draw, encoded

COLOURS = ["red", "green", "blue", "white", "black", "orange", "teal", "purple"]
# Of different lengths: in one batch, all but the longest are padded.
QUESTIONS = ["What is this ?" + " the total" * number for number in range(len(COLOURS))]


def request(text: str = "What is this ?", colour: str = "teal", **parameters: Any) -> dict:
    image = base64.b64encode(encoded(draw(colour=colour), "PNG")).decode()
    return {
        "model": "phospho-multimodal",
        "inputs": [{"text": text, "image_url": image, **parameters}],
    }


def ask(engine: TransformersEngine, text: str, colour: str = "teal", **parameters: Any):
    pixels = draw(colour=colour)
    question = Question(text, "phospho-multimodal", GenerationParameters(**parameters))
    return engine.describe(InputImage(b"", "PNG", *pixels.size, pixels), question)


@contextlib.asynccontextmanager
async def ready(engine: TransformersEngine) -> AsyncIterator[TransformersEngine]:
    async with running(engine):
        while engine.state == "loading":  # noqa: ASYNC110 - as whoever asks /health
            await asyncio.sleep(0.01)
        yield engine


def wait_until_ready(base_url: str) -> None:
    while httpx.get(f"{base_url}/health", timeout=60).json()["status"] == "loading":
        time.sleep(0.02)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the real `generate` was given, and, as `answer`, what it returned."""
    calls: list[dict[str, Any]] = []
    real = LlavaForConditionalGeneration.generate

    def generate(self, **options: Any) -> Any:
        calls.append(options)
        options["answer"] = real(self, **options)
        return options["answer"]

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", generate)
    return calls


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds up the loading of weights until it is opened."""
    gate, load = threading.Event(), VisionModel.load

    def held_up(self: VisionModel) -> Any:
        assert gate.wait(30)
        return load(self)

    monkeypatch.setattr(VisionModel, "load", held_up)
    yield gate
    gate.set()


async def test_batching_does_not_change_greedy_answers(tiny, generated):
    async with ready(TransformersEngine(model=str(tiny))) as engine:
        pairs = list(zip(QUESTIONS, COLOURS, strict=True))
        alone = [await ask(engine, text, colour, max_new_tokens=40) for text, colour in pairs]
        together = [ask(engine, text, colour, max_new_tokens=40) for text, colour in pairs]
        assert await asyncio.gather(*together) == alone
    assert len(set(alone)) == len(alone)
    assert [len(call["input_ids"]) for call in generated] == [1] * 8 + [8]


async def test_nor_does_it_where_padding_is_a_word_that_an_answer_would_say(tiny):
    # transformers leaves padding out of its repetition penalty, in the versions we ask for. If it
    # were counted, the padded question could not say its first word.
    texts, asked = [QUESTIONS[0], QUESTIONS[-1]], {"max_new_tokens": 20, "repetition_penalty": 30.0}
    engine = TransformersEngine(model=str(tiny))
    async with ready(engine):
        first = (await ask(engine, texts[0], **asked)).split()[0]
        engine._model._processor.tokenizer.pad_token = first
        alone = [await ask(engine, text, **asked) for text in texts]
        assert await asyncio.gather(*(ask(engine, text, **asked) for text in texts)) == alone


async def test_without_parameters_the_contracts_defaults_reach_generate(tiny, generated):
    async with ready(TransformersEngine(model=str(tiny))) as engine:
        await ask(engine, "What is this ?")
    (call,) = generated
    assert (call["max_new_tokens"], call["repetition_penalty"]) == (200, 1.15)
    assert call["do_sample"] is False
    assert call["answer"].shape[1] - call["input_ids"].shape[1] == 200


async def test_all_four_parameters_reach_generate(tiny, generated):
    asked = {"max_new_tokens": 7, "temperature": 0.3, "repetition_penalty": 1.4, "top_p": 0.8}
    async with ready(TransformersEngine(model=str(tiny))) as engine:
        await ask(engine, "What is this ?", **asked)
    (call,) = generated
    assert {name: call[name] for name in asked} == asked
    assert call["do_sample"] is True
    assert call["answer"].shape[1] - call["input_ids"].shape[1] == 7


@pytest.mark.parametrize("one", [{"temperature": 0.5}, {"top_p": 0.5}, {"top_p": 0.0}])
async def test_a_temperature_or_a_top_p_alone_samples(one, tiny, generated):
    async with ready(TransformersEngine(model=str(tiny))) as engine:
        await ask(engine, "What is this ?", max_new_tokens=3, **one)
    (call,) = generated
    assert call["do_sample"] is True
    assert {"temperature": call["temperature"], "top_p": call["top_p"]} == {
        "temperature": 1.0,
        "top_p": 1.0,
    } | one


async def test_no_answer_is_longer_than_the_cap(tiny, generated):
    async with ready(TransformersEngine(model=str(tiny))) as engine:
        answer = await ask(engine, "What is this ?", max_new_tokens=250)
    assert len(answer.split()) <= 250
    (call,) = generated
    assert call["answer"].shape[1] - call["input_ids"].shape[1] <= 250


async def test_the_image_changes_the_answer(tiny):
    async with ready(TransformersEngine(model=str(tiny))) as engine:
        answers = [await ask(engine, "What is this ?", colour) for colour in COLOURS]
    assert len(set(answers)) == len(COLOURS)


async def test_a_question_that_speaks_of_images_and_ends_brings_no_image_and_does_not_end(tiny):
    async with ready(TransformersEngine(model=str(tiny))) as engine:
        texts = ["<image> <image> What is </s> this ?", "What is this ?"]
        answers = await asyncio.gather(*(ask(engine, text, max_new_tokens=4) for text in texts))
    assert all(answers)


async def test_a_client_that_leaves_stops_the_model_at_its_next_token(tiny, generated):
    async with ready(TransformersEngine(model=str(tiny))) as engine:
        leaving = asyncio.create_task(ask(engine, "What is this ?", max_new_tokens=250))
        while not generated:  # noqa: ASYNC110 - it is another thread that begins
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert await ask(engine, "What is this ?", max_new_tokens=2)
    call = generated[0]
    assert call["answer"].shape[1] - call["input_ids"].shape[1] < 250


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
async def test_the_weights_have_the_type_that_is_asked_for(dtype, tiny, generated):
    async with ready(TransformersEngine(model=str(tiny), dtype=dtype, device="cpu")) as engine:
        assert await ask(engine, "What is this ?", max_new_tokens=3)
    assert generated[0]["pixel_values"].dtype == getattr(torch, dtype)


def test_requests_over_http_share_batches(tiny, generated):
    engine = TransformersEngine(model=str(tiny), max_batch=4)
    with (
        serve(create_app(engine)) as base_url,
        httpx.Client(base_url=base_url, timeout=60) as client,
    ):
        wait_until_ready(base_url)

        def post(colour: str) -> httpx.Response:
            return client.post("/v2/predict", json=request(colour=colour), timeout=60)

        with ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(post, COLOURS))
    assert [reply.status_code for reply in replies] == [200] * 8
    sizes = [len(call["input_ids"]) for call in generated]
    assert sum(sizes) == 8
    assert 1 < max(sizes) <= 4


def test_it_bears_the_name_it_is_chosen_by(tiny):
    assert load_engine("transformers", model=str(tiny)).name == "transformers"


def test_health_says_loading_until_it_is_ready_and_questions_are_told_to_come_again(tiny, gate):
    with serve(create_app(TransformersEngine(model=str(tiny)))) as base_url:
        health = httpx.get(f"{base_url}/health", timeout=60)
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        reply = httpx.post(f"{base_url}/v2/predict", json=request(), timeout=60)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        gate.set()
        wait_until_ready(base_url)
        assert httpx.post(f"{base_url}/v2/predict", json=request(), timeout=60).status_code == 200


def test_a_server_can_be_stopped_while_it_loads(tiny, gate):
    with serve(create_app(TransformersEngine(model=str(tiny)))) as base_url:
        assert httpx.get(f"{base_url}/health", timeout=60).json()["status"] == "loading"


def test_a_full_queue_is_a_503_that_says_when_to_come_again(tiny, monkeypatch):
    gate = threading.Event()
    real = LlavaForConditionalGeneration.generate

    def generate(self, **options: Any) -> Any:
        assert gate.wait(30)
        return real(self, **options)

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", generate)
    engine = TransformersEngine(model=str(tiny), max_batch=1)
    app = create_app(engine, max_queue=1)
    places = engine.at_once + 1
    with serve(app) as base_url, ThreadPoolExecutor(places + 1) as threads:
        wait_until_ready(base_url)

        def post(_: int) -> httpx.Response:
            return httpx.post(f"{base_url}/v2/predict", json=request(max_new_tokens=2), timeout=60)

        asked = [threads.submit(post, number) for number in range(places + 1)]
        # No other can be done: the model waits for its gate.
        refused = next(as_completed(asked, timeout=30)).result()
        gate.set()
        assert sorted(each.result().status_code for each in asked) == [200] * places + [503]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
async def test_memory_is_flat_over_500_requests(tiny):
    async with ready(TransformersEngine(model=str(tiny))) as engine:

        async def rounds(count: int) -> None:
            for number in range(count // 5):
                colours = (COLOURS[(number + i) % len(COLOURS)] for i in range(5))
                await asyncio.gather(
                    *(ask(engine, QUESTIONS[i], c, max_new_tokens=4) for i, c in enumerate(colours))
                )
            gc.collect()

        await rounds(200)
        before = resident()
        await rounds(500)
        assert resident() - before < 8_000_000  # of some 500 MB


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{"), "config"),
    "another kind of model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
        "'bert' is not a model that takes images and text",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "no weights in a *.safetensors file",
    ),
    "truncated weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 100_000),
        "its weights cannot be read",
    ),
    "a missing part": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'
        ),
        "model-00002-of-00002.safetensors",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be used"),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), "cannot be used"),
    "no chat template": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        "no chat template",
    ),
}


@pytest.mark.parametrize(("breaks", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_fails_before_the_server_starts(breaks, says, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    breaks(folder)
    with pytest.raises(ConfigurationError) as failure:
        load_engine("transformers", model=str(folder))
    assert says in str(failure.value)
    assert str(folder) in str(failure.value)
    assert "--model" in str(failure.value)


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(ConfigurationError, match="no such folder"):
        load_engine("transformers", model=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "--model"),
        ({"model": "x", "device": "tpu"}, "auto, cpu, cuda"),
        ({"model": "x", "dtype": "int3"}, "auto, float32, bfloat16, float16"),
        ({"model": "x", "max_batch": 0}, "max_batch must be 1 or greater"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(options, says):
    with pytest.raises(ConfigurationError, match=says):
        load_engine("transformers", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny):
    with pytest.raises(ConfigurationError, match="--device cpu"):
        load_engine("transformers", model=str(tiny), device="cuda")


def test_the_command_ends_with_a_text_if_weights_turn_out_to_be_missing(tmp_path):
    folder = save_tiny_llava(tmp_path)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.endswith("q_proj.weight"))
    kept = {name: value.clone() for name, value in weights.items() if name != lost}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    command = Path(sys.executable).with_name("phospho-multimodal")
    ended = subprocess.run(  # noqa: S603 - our own command
        [command, "serve", "--port", "0", "--engine", "transformers", "--model", folder],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 1
    # The last line, below what uvicorn writes about being cut short.
    assert "1 of its weights are missing from its files" in ended.stderr.splitlines()[-1]
