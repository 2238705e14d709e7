"""Write the pages that come from the code: `cli.md` from the help texts, `api.md` from docstrings.

.venv/bin/python cookbook/reference/generate.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
import typer

from phospho_multimodal.cli.main import app

HERE = Path(__file__).parent
PACKAGES = [
    "phospho_multimodal",
    "langchain_phospho",
    "llama_index_phospho",
    "phospho_multimodal.batch",
    "phospho_multimodal.ray",
    "phospho_multimodal.server",
]


def commands() -> str:
    """Return one section for each subcommand."""
    pages = ["# Commands\n\n`generate.py` writes this page from the help texts.\n"]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        pages.append(f"## phospho-multimodal {name}\n\n{' '.join((command.help or '').split())}\n")
        rows = ["| option | meaning | default |", "|---|---|---|"]
        for parameter in command.params:
            names = [*parameter.opts, *parameter.secondary_opts]
            if parameter.param_type_name == "argument":
                names = [str(parameter.metavar or parameter.name).upper()]
            options = " ".join(f"`{text}`" for text in names)
            meaning = " ".join(str(getattr(parameter, "help", None) or "").split())
            rows.append(f"| {options} | {cell(meaning)} | {default_of(parameter)} |")
        pages.append("\n".join(rows) + "\n")
    return "\n".join(pages)


def default_of(parameter: Any) -> str:
    """Return the default of an option, and the environment variable that sets it."""
    parts = []
    if parameter.required:
        parts.append("required")
    elif parameter.default not in (None, False, (), []) and not callable(parameter.default):
        parts.append(f"`{parameter.default}`")
    if parameter.envvar:
        parts.append(f"environment variable `{parameter.envvar}`")
    return ", ".join(parts)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def api() -> str:
    """Return one section for each package, with its exported names."""
    pages = ["# Python API\n\n`generate.py` writes this page from the docstrings.\n"]
    loader = griffe.GriffeLoader(docstring_parser=griffe.Parser.google)
    for package in PACKAGES:
        loader.load(package.partition(".")[0])
    loader.resolve_aliases(external=False)
    for package in PACKAGES:
        module: Any = loader.modules_collection[package]
        pages.append(f"## {package}\n\n{first_paragraph(module)}\n")
        names = sorted(str(name) for name in module.exports or [])
        pages += [entry(package, name, module[name]) for name in names if name[0] != "_"]
    return "\n".join(pages)


def entry(package: str, name: str, item: Any) -> str:
    """Return the section of one exported name."""
    if item.is_alias and not item.resolved:
        item = item.target
    signature = ""
    if item.is_function or (item.is_class and "__init__" in item.all_members):
        function = item if item.is_function else item.all_members["__init__"]
        signature = f"({', '.join(written(p) for p in function.parameters if p.name != 'self')})"
    lines = [f"### `{package}.{name}`\n", f"```text\n{name}{signature}\n```\n", sections(item)]
    if item.is_class:
        lines += [
            f"**`{method.name}`** {first_paragraph(method)}\n"
            for method in item.members.values()
            if method.is_function and method.docstring and method.name[0] != "_"
        ]
    return "\n".join(lines)


def written(parameter: Any) -> str:
    """Return a parameter as Python code."""
    stars = {"variadic positional": "*", "variadic keyword": "**"}.get(
        parameter.kind.value if parameter.kind else "", ""
    )
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not None:
        text += f": {parameter.annotation}"
    if parameter.default is not None and not stars:
        text += f" = {parameter.default}"
    return text


def sections(item: Any) -> str:
    """Return a docstring as Markdown."""
    parts = []
    for section in item.docstring.parsed if item.docstring else []:
        if section.kind is griffe.DocstringSectionKind.text:
            parts.append(code_blocks(section.value))
        elif section.kind in {
            griffe.DocstringSectionKind.parameters,
            griffe.DocstringSectionKind.attributes,
        }:
            rows = [f"| `{each.name}` | {one_line(each.description)} |" for each in section.value]
            parts.append("\n".join(["| name | meaning |", "|---|---|", *rows]))
        elif section.kind is griffe.DocstringSectionKind.raises:
            rows = [
                f"- `{each.annotation}`: {one_line(each.description)}" for each in section.value
            ]
            parts.append("\n".join(["Raises:\n", *rows]))
        elif section.kind is griffe.DocstringSectionKind.admonition:
            parts.append(f"**{section.title}**\n\n{section.value.description}")
        elif section.kind is griffe.DocstringSectionKind.returns:
            parts.append(
                "Returns: " + " ".join(one_line(each.description) for each in section.value)
            )
    return "\n\n".join(parts) + "\n"


def code_blocks(text: str) -> str:
    """Fence the indented blocks of a docstring."""
    return re.sub(
        r"(?:^ {4}.*\n?|^\n(?= {4}))+",
        lambda block: (
            "```text\n" + re.sub(r"^ {4}", "", block[0], flags=re.MULTILINE).rstrip() + "\n```\n"
        ),
        text,
        flags=re.MULTILINE,
    )


def one_line(text: str) -> str:
    return cell(" ".join(text.split()))


def first_paragraph(item: Any) -> str:
    return " ".join(item.docstring.value.split("\n\n")[0].split()) if item.docstring else ""


def pages() -> dict[Path, str]:
    """Return the generated pages by their paths."""
    return {HERE / "cli.md": commands(), HERE / "api.md": api()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
