"""The command line: `phospho-multimodal serve | describe | batch | check | demo`."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.progress import Progress
    from rich.table import Column, Table
except ModuleNotFoundError as missing:
    _message = (
        f"The command line needs {missing.name!r}, which is not installed:"
        ' pip install "phospho-multimodal[cli]"'
    )
    raise SystemExit(_message) from missing

from phospho_multimodal._version import __version__
from phospho_multimodal.cli.batch import INTERRUPTED, run_batch
from phospho_multimodal.cli.console import errors, output, plain
from phospho_multimodal.cli.serve import run_server
from phospho_multimodal.client.client import PhosphoClient
from phospho_multimodal.errors import FATAL_ERRORS, PhosphoError
from phospho_multimodal.exchange.attempts import ClientState
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT
from phospho_multimodal.settings import Settings, is_loopback
from phospho_multimodal.spending.budget import USD_PER_IMAGE, Spending

__all__ = ["app", "main"]

app = typer.Typer(
    help="Describe images, or serve the phospho API on this machine.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # its tracebacks can show local variables: keys, prompts
)

_CONCURRENCY = 4  # images in progress at the same time


BaseUrl = Annotated[
    str | None,
    typer.Option(help="The endpoint. Default: PHOSPHO_BASE_URL, else phospho's own."),
]
ApiKey = Annotated[
    str | None, typer.Option(help="The key. Default: PHOSPHO_API_KEY.", show_default=False)
]


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        output.print(f"phospho-multimodal {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@contextlib.contextmanager
def _report_errors() -> Iterator[None]:
    """Turn an error that a user can act on into its message and exit code 1."""
    try:
        yield
    except (PhosphoError, ImportError) as failure:
        errors.print(plain(str(failure)), style="red")
        raise typer.Exit(1) from failure


app.command("serve")(_report_errors()(run_server))
app.command("batch")(_report_errors()(run_batch))


@app.command()
@_report_errors()
def describe(
    *,
    images: Annotated[
        list[str],
        typer.Argument(help="Image files or URLs.", metavar="IMAGE...", show_default=False),
    ],
    prompt: Annotated[str, typer.Option(help="The prompt.")] = DEFAULT_PROMPT,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    max_usd: Annotated[
        float | None, typer.Option(help="The spending limit in USD.", show_default=False)
    ] = None,
) -> None:
    """Describe images, one request each; exit with 1 if any of them failed."""
    spending = Spending(max_usd=max_usd)
    settings = Settings.resolve(api_key=api_key, base_url=base_url)
    with PhosphoClient.sharing(ClientState.of(settings, spending)) as client:
        describer = _Describer(client, prompt)
        rows = describer.run(images)
    columns = [_wrapped(heading) for heading in ("Image", "Answer", "Cost")]
    table = Table(*columns, title=plain(prompt), show_lines=True)
    for image, row in zip(images, rows, strict=True):
        answer = plain(row.text)
        if row.failed:
            answer.stylize("red")
        table.add_row(plain(image), answer, row.cost)
    output.print(table)
    snapshot = spending.snapshot()
    if is_loopback(settings.host):
        output.print(f"A server on localhost bills nothing. List price: ${snapshot.usd_billed}.")
    else:
        output.print(plain(str(snapshot)))
    if describer.fatal is not None:
        errors.print(plain(str(describer.fatal)), style="red")
    if describer.interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(row.failed for row in rows):
        raise typer.Exit(1)


@app.command()
@_report_errors()
def check(*, base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Check the endpoint and the key, at no cost.

    The check sends a model name that the endpoint rejects after it has checked the key. No
    prediction is made, so nothing is billed.
    """
    settings = Settings.resolve(api_key=api_key, base_url=base_url)
    with PhosphoClient.sharing(ClientState.of(settings, None)) as client:
        status = client.check()
    key = {True: "accepted", False: "not accepted", None: "not known"}[status.key_accepted]
    if settings.api_key is None:
        key = "none sent, and none needed" if status.key_accepted else "none sent"
    facts = Table.grid(_wrapped(), _wrapped(), padding=(0, 2))
    facts.add_row("Endpoint", plain(status.base_url))
    facts.add_row("Reachable", "yes" if status.healthy else "no")
    facts.add_row("Key", key)
    facts.add_row("Models", plain(", ".join(status.models) or "not listed"))
    facts.add_row(
        "Price",
        f"${USD_PER_IMAGE} per answered image ($10 per 1,000), invoiced in steps of $1;"
        " a server of your own bills nothing. This check cost nothing.",
    )
    if status.detail:
        facts.add_row("Detail", plain(status.detail))
    output.print(facts)
    if not status.healthy or status.key_accepted is False:
        raise typer.Exit(1)


@app.command()
@_report_errors()
def demo(
    *,
    image: Annotated[
        Path | None,
        typer.Option(help="Your own image.", show_default=False, exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Start a local server, send a prompt through LangChain and through LlamaIndex, and stop."""
    from phospho_multimodal.cli.demo import run  # noqa: PLC0415 - it needs every extra

    run(image, output)


@dataclass(frozen=True)
class _Row:
    """The result of one image."""

    text: str
    cost: str = ""
    failed: bool = True


class _Describer:
    """Sends the same prompt about many images; stops at an error that would hit all of them."""

    def __init__(self, client: PhosphoClient, prompt: str) -> None:
        self.fatal: PhosphoError | None = None
        self.interrupted = False
        self._client = client
        self._prompt = prompt

    def run(self, images: Sequence[str]) -> list[_Row]:
        """Describe each image; after Ctrl-C, wait for the requests in progress, which are billed.

        Returns:
            A row for each image, in their order.
        """
        several = len(images) > 1
        with (
            Progress(console=errors, transient=True, disable=not several) as progress,
            ThreadPoolExecutor(max_workers=_CONCURRENCY) as threads,
        ):
            requests = [threads.submit(self._describe, image) for image in images]
            try:
                for request in progress.track(requests, description="Describing"):
                    request.result()
            except KeyboardInterrupt:
                self.interrupted = True
                errors.print("Interrupted; waiting for the requests in progress.", style="red")
            return [request.result() for request in requests]

    def _describe(self, image: str) -> _Row:
        if self.interrupted or self.fatal is not None:
            return _Row("Not sent.")
        try:
            is_url = image.startswith(("http://", "https://"))
            prediction = self._client.describe(image if is_url else Path(image), self._prompt)
        except PhosphoError as failure:
            if isinstance(failure, FATAL_ERRORS):
                self.fatal = failure
            return _Row(str(failure))
        cost = f"${prediction.metadata['cost_usd']:.2f}"
        return _Row(prediction.description, cost, failed=False)


def _wrapped(heading: str = "") -> Column:
    """Make a column that wraps text without spaces (URLs, Chinese), which rich would cut off."""
    return Column(heading, overflow="fold")
