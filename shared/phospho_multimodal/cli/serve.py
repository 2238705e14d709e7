"""The command `phospho-multimodal serve`."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from phospho_multimodal.cli.console import output, plain

__all__ = ["run_server"]


def _option(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, show_default=False, **settings)


Host = Annotated[str, typer.Option(help="The address to bind to.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any free one.")]
EngineName = Annotated[
    str | None,
    _option(
        "What answers: ocr, openai, transformers, echo. Default: a vision model that another"
        " server on localhost or at PHOSPHO_UPSTREAM runs, else ocr."
    ),
]
Upstream = Annotated[
    str | None,
    _option(
        "For openai: the URL of the OpenAI-compatible server. Its key is read from"
        " PHOSPHO_UPSTREAM_API_KEY. Default: PHOSPHO_UPSTREAM."
    ),
]
Model = Annotated[
    str | None,
    _option(
        "For openai: the model's name on the upstream. For transformers: a model's folder, or its"
        " name on the model hub."
    ),
]
DialectName = Annotated[
    str | None,
    _option("For openai: vllm, sglang, llama.cpp, lmstudio, ollama, generic. Default: recognized."),
]
Timeout = Annotated[
    float | None,
    _option(
        "For openai: seconds that the upstream may take for an answer. The clients wait 75 unless"
        " they are configured otherwise. Default: 55."
    ),
]
MaxImageSide = Annotated[
    int | None,
    _option(
        "For openai: the longest side of an image in pixels; a larger image is shrunk. Default:"
        " what fits into the context that the upstream reports, else 2048.",
        min=1,
    ),
]
Device = Annotated[str | None, _option("For transformers: auto, cpu, cuda. Default: auto.")]
Dtype = Annotated[
    str | None, _option("For transformers: auto, float32, bfloat16, float16. Default: auto.")
]
MaxBatch = Annotated[
    int | None, _option("For transformers: prompts answered in one batch. Default: 8.")
]
ServerKey = Annotated[
    str | None,
    _option(
        "The key that clients must send. Required unless the address is on the loopback.",
        envvar="PHOSPHO_SERVER_API_KEY",
    ),
]
NoBilling = Annotated[
    bool, typer.Option("--no-billing", help="Answer 402, like an account that cannot pay.")
]
AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", help="Fetch images from public URLs, with safeguards.")
]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes behind the one address, each with its own engine.")
]
AtOnce = Annotated[
    int | None,
    _option("Requests that a process answers concurrently. Default: the engine's.", min=1),
]
Queue = Annotated[int, typer.Option(min=0, help="Requests that may wait; the next is a 503.")]
MaxMegapixels = Annotated[int, typer.Option(min=1, help="The largest image.")]
AccessLog = Annotated[
    Literal["plain", "json", "none"],
    typer.Option(help="How requests are logged: never a prompt, an image or a key."),
]


def run_server(
    *,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    engine: EngineName = None,
    upstream: Upstream = None,
    model: Model = None,
    dialect: DialectName = None,
    timeout: Timeout = None,
    max_image_side: MaxImageSide = None,
    device: Device = None,
    dtype: Dtype = None,
    max_batch: MaxBatch = None,
    api_key: ServerKey = None,
    no_billing: NoBilling = False,
    allow_urls: AllowUrls = False,
    workers: Workers = 1,
    at_once: AtOnce = None,
    queue: Queue = 16,
    max_megapixels: MaxMegapixels = 100,
    access_log: AccessLog = "plain",
) -> None:
    """Serve the phospho API on this machine."""
    from phospho_multimodal.server.run import bind  # noqa: PLC0415 - an extra of its own

    key = api_key or None  # an empty variable means no key
    engine_options = {
        "upstream": upstream,
        "model": model,
        "dialect": dialect,
        "timeout": timeout,
        "max_image_side": max_image_side,
        "device": device,
        "dtype": dtype,
        "max_batch": max_batch,
    }
    options: dict[str, Any] = {
        "api_key": key,
        "billing": not no_billing,
        "allow_urls": allow_urls,
        "workers": at_once,
        "max_queue": queue,
        "max_megapixels": max_megapixels,
        "access_log": access_log == "json",
    }
    with contextlib.closing(bind(host, port, api_key=key)) as listener:
        name, engine_options, notice = _choose_engine(engine, engine_options, listener)
        options["notice"] = notice
        log = access_log == "plain"
        _serve(name, engine_options, options, listener, workers=workers, access_log=log)


def _serve(
    engine: str,
    engine_options: Mapping[str, Any],
    options: Mapping[str, Any],
    listener: socket.socket,
    *,
    workers: int,
    access_log: bool,
) -> None:
    from phospho_multimodal.server import create_app  # noqa: PLC0415
    from phospho_multimodal.server.engines import load_engine  # noqa: PLC0415
    from phospho_multimodal.server.run import (  # noqa: PLC0415
        base_url,
        make_app,
        run,
        run_workers,
    )

    # Made first, also for several processes: what is wrong with it is reported before it serves.
    made = load_engine(engine, **engine_options)
    check = getattr(made, "check", None)
    if check is not None:
        asyncio.run(check())
    asks = "asking for its key" if options["api_key"] else "asking for no key"
    for line in (
        f"Serving {base_url(listener)} with the engine {engine!r}, {asks}.",
        *options["notice"],
    ):
        output.print(plain(line), soft_wrap=True)
    if workers == 1:
        run(create_app(made, **options), listener, access_log=access_log)
    else:
        del made  # each process makes its own
        make = functools.partial(make_app, engine, engine_options, **options)
        run_workers(make, listener, count=workers, access_log=access_log)


def _choose_engine(
    engine: str | None, options: dict[str, Any], listener: socket.socket
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Choose the engine unless the user did, without a look at this server's own port."""
    from phospho_multimodal.server.engines.discovery import choose_engine  # noqa: PLC0415

    if engine is not None:
        return engine, options, ()
    port = listener.getsockname()[1]
    choice = choose_engine(upstream=options["upstream"], model=options["model"], skip_port=port)
    return choice.engine, {**options, **choice.options}, choice.notice
