"""What was measured, as Markdown for the reference and as a plot beside it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from imports import FLOORS
from machine import versions
from overhead import Overhead
from targets import Verdict
from throughput import RAW

__all__ = ["print_report", "table_of_readme", "write_report"]

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "cookbook" / "reference" / "benchmarks.md"
_BEGIN, _END = "<!-- make bench WRITE=1 -->", "<!-- end of what it wrote -->"
_HEADING = (
    "CPU time of one call over https in µs. In brackets: the part that the plugin adds to its "
    "framework and to a bare request."
)
_INSTALLED = (
    "httpx",
    "langchain-core",
    "langchain-openai",
    "langchain-anthropic",
    "llama-index-core",
    "llama-index-llms-openai",
)


def print_report(results: dict[str, Any], verdicts: list[Verdict]) -> None:
    """Print the tables, the verdicts and the machine."""
    for table in results["overhead"]:
        print(f"\n{table.scheme}, {table.payload}, {table.mode}: CPU µs per call, O in µs")
        for name, cpu in table.cpu.items():
            added = f"{table.added(name):8.0f}" if name in table.floors else ""
            print(f"  {name:28}{cpu:8.0f}{added}")
    for scheme, rates in results["throughput"].items():
        print(f"\n{scheme}, 64 concurrent, 50 ms: requests per second of raw sockets, and shares")
        for name, rate in rates.items():
            print(f"  {name:32}{rate:8.{0 if name == RAW else 2}f}")
    for section in ("memory", "imports"):
        print(f"\n{section}")
        for name, row in results[section].items():
            cells = "".join(f"  {key} {value:.2f}" for key, value in row.items())
            print(f"  {name:28}{cells}")
    print("\npreparation")
    for name, value in results["preparation"].items():
        print(f"  {name:28}{value:8.1f}")
    print(f"\n{results['machine']}\n")
    for verdict in verdicts:
        sign = "≥" if verdict.at_least else "≤"
        word = "ok    " if verdict.met else "MISSED"
        print(f"{word} {verdict.what}: {verdict.measured:.2f} ({sign} {verdict.limit:g})")
    missed = sum(not verdict.met for verdict in verdicts)
    print(f"\n{len(verdicts) - missed} of {len(verdicts)} targets met")


def table_of_readme(results: dict[str, Any]) -> str:
    """Write the part of the reference that comes from a run."""
    lines = [
        _HEADING,
        "",
        "| | URL | URL, async | 1 MB | 1 MB, async |",
        "|---|---|---|---|---|",
    ]
    tables = [table for table in results["overhead"] if table.scheme == "https"]
    for name in tables[0].cpu:
        cells = []
        for table in tables:
            added = f" ({table.added(name):.0f})" if name in table.floors else ""
            cells.append(f"{table.cpu[name]:.0f}{added}")
        label = f"`{name}`" if name.startswith("httpx ") else name
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [
        "",
        "64 concurrent calls to a server that takes 50 ms, as a share of raw sockets:",
        "",
        "| | " + " | ".join(results["throughput"]) + " |",
        "|---|---|---|",
    ]
    columns = list(results["throughput"].values())
    for name in columns[0]:
        cells = [
            f"{rates[name]:.0f}/s" if name == RAW else f"{rates[name]:.2f}" for rates in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Growth of peak memory for 5 MB images, and the part that stays, in multiples of base64:",
        "",
        "| | 100 in a row | stays | 64 at once, each | stays of all |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["memory"].items():
        cells = [row[kind] for kind in ("in a row", "kept in a row", "at once", "kept at once")]
        lines.append(f"| {name} | {' | '.join(f'{max(0.0, cell):.1f}' for cell in cells)} |")
    imports, photo = results["imports"], results["preparation"]
    shares = [imports[ours]["over"] for ours in FLOORS]
    said = (
        f"Importing an adapter takes {shares[0]:.2f} (LangChain) and {shares[1]:.2f} (LlamaIndex)"
        " times what importing its framework and httpx takes. An image of 12 megapixels is"
        f" prepared in {photo['ours']:.0f} ms, {photo['ours'] / photo['usual']:.2f} of Pillow's"
        f" usual recipe, with a peak of {photo['ours peak']:.0f} MiB."
    )
    lines += ["", said, "", f"{results['machine']}; {versions(*_INSTALLED)}."]
    return "\n".join(lines) + "\n"


def write_report(results: dict[str, Any]) -> None:
    """Put the tables into the reference, and draw the plot beside them."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        message = f"cookbook/reference/benchmarks.md has no place for the tables: {_BEGIN} … {_END}"
        raise ValueError(message)
    text = f"{before}{begin}\n{table_of_readme(results)}{end}{after}"
    PAGE.write_text(text, encoding="utf-8")
    (PAGE.parent / "overhead.svg").write_text(
        _plot([table for table in results["overhead"] if table.scheme == "https"]), encoding="utf-8"
    )


def _plot(tables: list[Overhead]) -> str:
    """Draw bars by hand: five lines of SVG are less than a plotting library."""
    bars = []
    y = 34
    for table in tables:
        bars.append(f'<text x="8" y="{y}" class="title">{table.payload}, {table.mode}</text>')
        y += 10
        shown = {name: table.added(name) for name in table.floors}
        longest = max(shown.values())
        for name, value in shown.items():
            width = max(1.0, value / longest * 380)
            kind = "ours" if "Phospho" in name else "other"
            bars.append(
                f'<text x="196" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="204" y="{y}" width="{width:.1f}" height="15" class="{kind}"/>'
                f'<text x="{210 + width:.1f}" y="{y + 12}">{value:.0f} µs</text>'
            )
            y += 20
        y += 26
    style = (
        "svg{background:#fff}text{font:12px sans-serif;fill:#222}.title{font-weight:bold}"
        ".ours{fill:#0b6e4f}.other{fill:#b8b8b8}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {y - 10}" role="img">'
        "<title>CPU time that each plugin adds to its framework and a bare request</title>"
        f"<style>{style}</style>"
        '<text x="8" y="14">CPU time a plugin adds to its framework and a bare httpx request</text>'
        f"{''.join(bars)}</svg>\n"
    )
