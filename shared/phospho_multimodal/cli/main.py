"""The command line: `phospho-multimodal serve | describe | batch | check | demo`."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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

from phospho_multimodal.cli.batch import INTERRUPTED, run_batch
from phospho_multimodal.cli.console import errors, output, plain
from phospho_multimodal.cli.serve import run_server
from phospho_multimodal.client.client import PhosphoClient
from phospho_multimodal.errors import FATAL_ERRORS, PhosphoError
from phospho_multimodal.messages.conversation import DEFAULT_PROMPT
from phospho_multimodal.spending.budget import USD_PER_IMAGE, Spending

__all__ = ["app", "main"]

app = typer.Typer(
    help="Ask about pictures, or serve the endpoint's contract on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks can show local variables: keys, prompts
)

_AT_ONCE = 4  # pictures under way together


BaseUrl = Annotated[
    str | None,
    typer.Option(help="Where the endpoint is. Default: PHOSPHO_BASE_URL, else phospho's own."),
]
ApiKey = Annotated[
    str | None, typer.Option(help="The key. Default: PHOSPHO_API_KEY.", show_default=False)
]


def main() -> None:
    """Run the command line."""
    app()


@app.command("serve")
@functools.wraps(run_server)
def serve(**options: Any) -> None:
    with _failures_told():
        run_server(**options)


@app.command()
def describe(
    *,
    pictures: Annotated[
        list[Path], typer.Argument(help="Image files.", metavar="PATH...", show_default=False)
    ],
    prompt: Annotated[str, typer.Option(help="The question.")] = DEFAULT_PROMPT,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    max_usd: Annotated[
        float | None, typer.Option(help="Stop before more than this is spent.", show_default=False)
    ] = None,
) -> None:
    """Ask about pictures, one request each; exit with 1 if any of them failed."""
    with _failures_told():
        spending = Spending(max_usd=max_usd)
        with PhosphoClient(api_key=api_key, base_url=base_url, spending=spending) as client:
            batch = _Batch(client, prompt)
            rows = batch.run(pictures)
    columns = [_whole(heading) for heading in ("Picture", "Answer", "Cost")]
    table = Table(*columns, title=plain(prompt), show_lines=True)
    for picture, row in zip(pictures, rows, strict=True):
        answer = plain(row.text)
        if row.failed:
            answer.stylize("red")
        table.add_row(plain(str(picture)), answer, row.cost)
    output.print(table)
    output.print(plain(str(spending.snapshot())))
    if batch.fatal is not None:
        errors.print(plain(str(batch.fatal)), style="red")
    if batch.interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(row.failed for row in rows):
        raise typer.Exit(1)


@app.command("batch")
@functools.wraps(run_batch)
def batch(*args: Any, **options: Any) -> None:
    with _failures_told():
        run_batch(*args, **options)


@app.command()
def check(*, base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Ask whether the endpoint is there and the key is good; it costs nothing.

    The key is tried with a model name that the contract refuses after it has looked at the key:
    no prediction is made, so none is billed.
    """
    with _failures_told(), PhosphoClient(api_key=api_key, base_url=base_url) as client:
        status = client.check()
    key = {True: "accepted", False: "not accepted", None: "not known"}[status.key_accepted]
    facts = Table.grid(_whole(), _whole(), padding=(0, 2))
    facts.add_row("Endpoint", plain(status.base_url))
    facts.add_row("There", "yes" if status.healthy else "no")
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
def demo(
    *,
    image: Annotated[
        Path | None,
        typer.Option(help="Your own picture.", show_default=False, exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Serve on this machine, ask through LangChain and through LlamaIndex, and stop."""
    with _failures_told():
        from phospho_multimodal.cli import demo as show  # noqa: PLC0415 - it needs every extra

        show.run(image, output)


@dataclass(frozen=True)
class _Row:
    """What became of one picture."""

    text: str
    cost: str = ""
    failed: bool = True


class _Batch:
    """Asks the same about many pictures, a few at once; stops at what would fail for them all."""

    def __init__(self, client: PhosphoClient, prompt: str) -> None:
        self.fatal: PhosphoError | None = None
        self.interrupted = False
        self._client = client
        self._prompt = prompt

    def run(self, pictures: Sequence[Path]) -> list[_Row]:
        """Ask about each, until Ctrl-C: then what is under way, and billed, is still waited for.

        Args:
            pictures: Image files.

        Returns:
            A row for each, in their order.
        """
        several = len(pictures) > 1
        with (
            Progress(console=errors, transient=True, disable=not several) as progress,
            ThreadPoolExecutor(max_workers=_AT_ONCE) as threads,
        ):
            asking = [threads.submit(self._ask, picture) for picture in pictures]
            try:
                for one in progress.track(asking, description="Asking"):
                    one.result()
            except KeyboardInterrupt:
                self.interrupted = True
                errors.print("Interrupted; waiting for the answers under way.", style="red")
            return [one.result() for one in asking]

    def _ask(self, picture: Path) -> _Row:
        if self.interrupted or self.fatal is not None:
            return _Row("Not sent.")
        try:
            prediction = self._client.describe(picture, self._prompt)
        except PhosphoError as failure:
            if isinstance(failure, FATAL_ERRORS):
                self.fatal = failure
            return _Row(str(failure))
        cost = f"${prediction.metadata['cost_usd']:.2f}"
        return _Row(prediction.description, cost, failed=False)


def _whole(heading: str = "") -> Column:
    """Make a column that cuts nothing off; rich's own do what has no blank: URLs, Chinese."""
    return Column(heading, overflow="fold")


@contextlib.contextmanager
def _failures_told() -> Iterator[None]:
    """Turn what a user can act on into its message and exit code 1."""
    try:
        yield
    except (PhosphoError, ImportError) as failure:
        errors.print(plain(str(failure)), style="red")
        raise typer.Exit(1) from failure
