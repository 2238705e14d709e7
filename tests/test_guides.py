"""Every Python block of the guides and the reference runs as printed, in the order of its page."""

from __future__ import annotations

import ast
import gc
import re
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from live_server import serve
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import load_engine

ROOT = Path(__file__).parents[1]
COOKBOOK = ROOT / "cookbook"
PAGES = sorted(COOKBOOK.rglob("*.md"))


def blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serve(create_app(load_engine("ocr"))) as url:
        yield url


@pytest.mark.parametrize(
    # The examples of api.md come from docstrings and are fragments.
    "page",
    [page for page in PAGES if page.name != "api.md" and blocks(page)],
    ids=lambda page: page.stem,
)
@pytest.mark.filterwarnings(  # LlamaIndex leaves event loops open
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_the_blocks_of_a_page_run_as_printed(
    page: Path,
    base_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The reader has the project's folder, the server of the quickstart, and one variable."""
    shutil.copytree(COOKBOOK, tmp_path / "cookbook")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHOSPHO_BASE_URL", base_url)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)  # noqa: S102 - our own text
        assert capsys.readouterr().out or "print(" not in block
    names.clear()
    gc.collect()  # here, and not in the middle of another test


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if "://" in name:
            continue
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_troubleshooting_quotes_real_messages() -> None:
    """A quoted message is a part of a text in the source."""
    source = []
    for package in ("phospho_multimodal", "langchain_phospho", "llama_index_phospho"):
        for file in Path(str(resources.files(package))).rglob("*.py"):
            source += texts_of(ast.parse(file.read_text(encoding="utf-8")))
    everything = "\n".join(source)
    page = (COOKBOOK / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(quoted) >= 15
    ours = [text for text in quoted if "Input should" not in text]  # pydantic's words
    assert [text for text in ours if text not in everything] == []


def texts_of(tree: ast.AST) -> list[str]:
    """Return the texts of a module; the values inside of an f-string become a mark."""
    return [
        "".join(
            part.value if isinstance(part, ast.Constant) else "…"
            for part in (node.values if isinstance(node, ast.JoinedStr) else [node])
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]
