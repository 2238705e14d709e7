"""The pages on serving are true: their commands of ours are ones that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from phospho_multimodal.cli.main import app
from phospho_multimodal.server.engines import ENGINES, discovery
from phospho_multimodal.server.engines.dialects import DIALECTS
from phospho_multimodal.server.engines.upstream import KEY_VARIABLE

COOKBOOK = Path(__file__).parents[1] / "cookbook"
PAGE = (COOKBOOK / "serving.md").read_text(encoding="utf-8")
GUIDE = (COOKBOOK / "guides" / "real_vision_model.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"phospho-multimodal (\w+ [^`\n]+)", PAGE + GUIDE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_the_command_line_takes(command: str) -> None:
    name, *arguments = shlex.split(command, comments=True)
    arguments = ["8100" if argument == "%i" else argument for argument in arguments]
    subcommand = typer.main.get_command(app).commands[name]
    given = subcommand.make_context(name, arguments).params
    assert given.get("engine") in {None, *ENGINES}
    assert given.get("dialect") in {None, *DIALECTS}


def test_the_page_has_commands_for_every_dialect() -> None:
    assert len(COMMANDS) > 8
    assert [name for name in DIALECTS if name not in PAGE] == []
    assert KEY_VARIABLE in PAGE


def test_the_guide_names_the_ports_and_the_command_that_the_server_prints() -> None:
    for port in discovery.LOCAL_SERVERS.values():
        assert f":{port}" in GUIDE
    assert discovery.PULL in GUIDE


def test_a_context_of_the_page_has_room_for_the_largest_image() -> None:
    contexts = [int(n) for n in re.findall(r"max.model.len[: ]+(\d+)", PAGE + GUIDE)]
    assert len(contexts) > 3
    largest_image = 16384  # tokens: Qwen2.5-VL's max_pixels
    assert min(contexts) > largest_image + 250 + 512
