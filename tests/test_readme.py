"""The README is true: its Python runs, and the reference names what the code has."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from langchain_core.language_models import BaseChatModel
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import BaseModel

from langchain_phospho import ChatPhospho
from live_server import serve
from llama_index_phospho import PhosphoMultiModal
from phospho_multimodal import PhosphoClient, errors
from phospho_multimodal.contract import ParameterOptions
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import load_engine
from phospho_multimodal.settings import ClientOptions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = "".join(
    page.read_text(encoding="utf-8") for page in sorted((ROOT / "cookbook/reference").glob("*.md"))
)
QUICK_START = README.partition("## Quick start")[2].partition("\n## ")[0]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


LANGCHAIN, LLAMA_INDEX, PLAIN = blocks("python", QUICK_START)
HEALTH, ANSWER = blocks("text", QUICK_START)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serve(create_app(load_engine("ocr"))) as url:
        yield url


@pytest.mark.parametrize("block", [LANGCHAIN, LLAMA_INDEX, PLAIN])
def test_a_block_of_the_quick_start_prints_what_the_readme_shows(
    block: str, base_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PHOSPHO_BASE_URL", base_url)
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    assert capsys.readouterr().out == ANSWER
    assert len(block.splitlines()) <= 12


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_quick_start_runs_as_printed_in_a_fresh_environment(tmp_path: Path) -> None:
    """Run every block in its order, in a copy of the project, with nothing added."""
    shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    script = ["set -e", "trap 'kill $!' EXIT"]
    for language, block in re.findall(
        r"^```(sh|python)\n(.*?)^```$", QUICK_START, re.MULTILINE | re.DOTALL
    ):
        script.append(f"python <<'BLOCK'\n{block}BLOCK" if language == "python" else block)
    ran = subprocess.run(  # noqa: S603 - our own text
        ["bash", "-c", "\n".join(script)],  # noqa: S607
        cwd=tmp_path / "copy",
        env={name: value for name, value in os.environ.items() if "VIRTUAL_ENV" not in name},
        capture_output=True,
        check=False,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == HEALTH.strip() + ANSWER * 3


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
    assert set(blocks("python", README)) == {LANGCHAIN, LLAMA_INDEX, PLAIN}


def test_the_first_commands_are_the_two_of_the_makefile() -> None:
    first = re.search(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert first is not None
    commands = [line.split("#")[0].strip() for line in first.group(1).splitlines()]
    assert commands == ["make demo", "make test"]


def names_missing_in_the_tables(names: Iterable[str]) -> list[str]:
    return [name for name in names if f"`{name}`" not in REFERENCE]


def test_the_tables_have_every_keyword_of_the_clients() -> None:
    named = set(inspect.signature(PhosphoClient).parameters) - {"options"}
    assert named == {"http_client", "spending"}
    keywords = {*named, *ClientOptions.__annotations__, *ParameterOptions.__annotations__}
    assert names_missing_in_the_tables(keywords) == []


@pytest.mark.parametrize(
    ("model", "base"), [(ChatPhospho, BaseChatModel), (PhosphoMultiModal, FunctionCallingLLM)]
)
def test_the_tables_have_every_field_of_the_models(
    model: type[BaseModel], base: type[BaseModel]
) -> None:
    own = {
        field.alias or name
        for name, field in model.model_fields.items()
        if name not in base.model_fields
    }
    assert names_missing_in_the_tables(own) == []


@pytest.mark.parametrize(
    ("model", "base"), [(ChatPhospho, BaseChatModel), (PhosphoMultiModal, FunctionCallingLLM)]
)
def test_every_field_of_the_models_is_described(
    model: type[BaseModel], base: type[BaseModel]
) -> None:
    """Editors, `help()` and JSON schemas show these descriptions."""
    own = {
        name: field for name, field in model.model_fields.items() if name not in base.model_fields
    }
    assert [name for name, field in own.items() if not field.description] == []


def test_the_table_of_errors_has_every_class() -> None:
    assert names_missing_in_the_tables(errors.__all__) == []


def test_the_table_of_metadata_has_every_key(base_url: str) -> None:
    with PhosphoClient(base_url=base_url) as client:
        metadata = client.describe(ROOT / "cookbook" / "receipt.png").metadata
    assert names_missing_in_the_tables([*metadata, *metadata["images"][0]]) == []
