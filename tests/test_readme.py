"""The README is true: its Python runs, and its tables name what the code has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from langchain_core.language_models import BaseChatModel
from llama_index.core.llms.function_calling import FunctionCallingLLM
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel

from langchain_phospho import ChatPhospho
from live_server import serve
from llama_index_phospho import PhosphoMultiModal
from phospho_multimodal import PhosphoClient, errors
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import load_engine
from phospho_multimodal.settings import ClientOptions, ParameterOptions

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LANGCHAIN, LLAMA_INDEX = BLOCKS[:2]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serve(create_app(load_engine("ocr"))) as url:
        yield url


@pytest.fixture
def desk(base_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be where the README's reader is: a server in the environment, a receipt in the folder."""
    monkeypatch.setenv("PHOSPHO_BASE_URL", base_url)
    monkeypatch.setenv("PHOSPHO_API_KEY", "test-key")
    monkeypatch.chdir(tmp_path)
    receipt = Image.new("RGB", (640, 320), "white")
    draw = ImageDraw.Draw(receipt)
    for line, text in enumerate(["CORNER BAKERY", "Bread 4.20", "Coffee 3.10", "TOTAL 7.30"]):
        draw.text((40, 30 + 65 * line), text, "black", ImageFont.load_default(44))
    receipt.save("receipt.png")
    (tmp_path / "photos").mkdir()
    receipt.save("photos/receipt.png")


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    assert capsys.readouterr().out or "print(" not in block


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("block", [LANGCHAIN, LLAMA_INDEX])
def test_the_first_blocks_print_what_the_picture_says(
    block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    assert "7.30" in capsys.readouterr().out


@pytest.mark.parametrize("block", [LANGCHAIN, LLAMA_INDEX])
def test_the_first_blocks_are_short(block: str) -> None:
    assert len(block.splitlines()) <= 12


def test_the_first_commands_are_the_two_of_the_makefile() -> None:
    first = re.search(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert first is not None
    commands = [line.split("#")[0].strip() for line in first.group(1).splitlines()]
    assert commands == ["make demo", "make test"]


def names_missing_in_the_tables(names: Iterable[str]) -> list[str]:
    return [name for name in names if f"`{name}`" not in README]


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


def test_the_table_of_errors_has_every_class() -> None:
    assert names_missing_in_the_tables(errors.__all__) == []


@pytest.mark.usefixtures("desk")
def test_the_table_of_metadata_has_every_key() -> None:
    with PhosphoClient() as client:
        metadata = client.describe(Path("receipt.png")).metadata
    assert names_missing_in_the_tables([*metadata, *metadata["images"][0]]) == []
