"""The page on serving is true: its commands of ours are ones that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from phospho_multimodal.cli import app
from phospho_multimodal.server.engines import ENGINES
from phospho_multimodal.server.engines.dialects import DIALECTS
from phospho_multimodal.server.engines.upstream import KEY_VARIABLE

PAGE = (Path(__file__).parents[1] / "cookbook" / "serving.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"phospho-multimodal (\w+ [^`\n]+)", PAGE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_the_command_line_takes(command: str) -> None:
    name, *arguments = shlex.split(command, comments=True)
    arguments = ["8100" if argument == "%i" else argument for argument in arguments]
    subcommand = typer.main.get_command(app).commands[name]
    given = subcommand.make_context(name, arguments).params
    assert given.get("engine", "openai") in ENGINES
    assert given.get("dialect") in {None, *DIALECTS}


def test_the_page_has_commands_for_every_dialect() -> None:
    assert len(COMMANDS) > 8
    assert [name for name in DIALECTS if name not in PAGE] == []
    assert KEY_VARIABLE in PAGE
