"""The command `phospho-multimodal serve`."""

import contextlib
import functools
import socket
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from phospho_multimodal.cli.console import output, plain

__all__ = ["run_server"]


def run_server(
    *,
    host: Annotated[str, typer.Option(help="The address to bind to.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes any free one.")
    ] = 8000,
    engine: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="What answers: ocr, openai, transformers, echo. Default: a vision model that"
            " another server on localhost or at PHOSPHO_UPSTREAM runs, else ocr.",
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="For openai: the URL of the OpenAI-compatible server that is asked. Its key, if it"
            " wants one, is read from PHOSPHO_UPSTREAM_API_KEY. Default: PHOSPHO_UPSTREAM.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="For openai: the model's name there. For transformers: a model's folder, or its"
            " name on the model hub.",
        ),
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="For openai: vllm, sglang, llama.cpp, lmstudio, ollama, generic."
            " Default: found out.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            show_default=False,
            help="For openai: seconds that the upstream may take for an answer. The clients wait 75"
            " unless they are configured otherwise. Default: 55.",
        ),
    ] = None,
    max_image_side: Annotated[
        int | None,
        typer.Option(
            show_default=False,
            min=1,
            help="For openai: the longest side of an image in pixels; a larger image is shrunk."
            " Default: what fits into the context that the upstream reports, else 2048.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(show_default=False, help="For transformers: auto, cpu, cuda. Default: auto."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="For transformers: auto, float32, bfloat16, float16. Default: auto.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            show_default=False,
            help="For transformers: questions answered in one go. Default: 8.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="PHOSPHO_SERVER_API_KEY",
            show_default=False,
            help="The key to ask for; off the loopback there has to be one.",
        ),
    ] = None,
    no_billing: Annotated[
        bool, typer.Option("--no-billing", help="Answer 402, as without a billing method.")
    ] = False,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Open image URLs, with safeguards.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes behind the one address, each with its engine.")
    ] = 1,
    at_once: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests that a process answers at once. Default: the engine's.",
            show_default=False,
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; the next is a 503.")
    ] = 16,
    max_megapixels: Annotated[int, typer.Option(min=1, help="The largest picture.")] = 100,
    access_log: Annotated[
        Literal["plain", "json", "none"],
        typer.Option(help="How requests are logged: never a prompt, a picture or a key."),
    ] = "plain",
) -> None:
    """Serve the contract of phospho's endpoint from this machine."""
    # Here, because the server is an extra of its own that the other commands do without.
    from phospho_multimodal.server.run import base_url, bind, run  # noqa: PLC0415
    from phospho_multimodal.server.workers import application, run_workers  # noqa: PLC0415

    key = api_key or None  # an empty variable means none
    listener = bind(host, port, api_key=key)
    with contextlib.closing(listener):
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
        engine, engine_options, notice = _chosen_engine(engine, engine_options, listener)
        make = functools.partial(
            application,
            engine,
            engine_options,
            api_key=key,
            billing=not no_billing,
            allow_urls=allow_urls,
            workers=at_once,
            max_queue=queue,
            max_megapixels=max_megapixels,
            access_log=access_log == "json",
            notice=notice,
        )
        app_alone = make() if workers == 1 else None  # before it is said to serve
        asks = "asking for its key" if key else "asking for no key"
        output.print(
            Text(f"Serving {base_url(listener)} with the engine {engine!r}, {asks}."),
            soft_wrap=True,
        )
        for line in notice:
            output.print(plain(line), soft_wrap=True)
        logs_requests = access_log == "plain"
        if app_alone is not None:
            run(app_alone, listener, access_log=logs_requests)
        else:
            run_workers(make, listener, count=workers, access_log=logs_requests)


def _chosen_engine(
    engine: str | None, options: dict[str, Any], listener: socket.socket
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Choose the engine unless the user did; of the model servers on localhost, not this one."""
    from phospho_multimodal.server.engines.discovery import choose_engine  # noqa: PLC0415

    if engine is not None:
        return engine, options, ()
    port = listener.getsockname()[1]
    choice = choose_engine(upstream=options["upstream"], model=options["model"], skip_port=port)
    return choice.engine, {**options, **choice.options}, choice.notice
