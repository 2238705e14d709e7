"""The cookbook is true: every notebook runs, checks what it claims, and shows what came out.

    python tests/test_cookbook.py cookbook/langchain/chain.ipynb

runs a notebook and stores what it shows. The server is the local one, with the engine that the
notebook's metadata names under `phospho_engine` (`ocr`, if it names none). The agent models are the
scripted ones beside the notebooks. Cells with the tag `check` are the notebook's claims.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from live_server import serve
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import InputImage, Question, load_engine

pytestmark = pytest.mark.long

TESTS = Path(__file__).parent
COOKBOOK = TESTS.parent / "cookbook"
NOTEBOOKS = [
    path
    for path in sorted(COOKBOOK.glob("**/*.ipynb"))
    if not any(part.startswith(".") for part in path.relative_to(COOKBOOK).parts)
]

LOCAL_SERVER = "http://127.0.0.1:8000"
MOST_BYTES = 300_000
_OF_THIS_MACHINE = re.compile(
    r"(?:127\.0\.0\.1|localhost):(?!8000\b)\d+"  # a port
    r"|(?<![\w.])/(?:home|root|tmp|usr|work|Users|var)/"
    r"|\b\d\d:\d\d:\d\d\b|\b20\d\d-\d\d-\d\dT"  # a time
    r"|\bat 0x[0-9a-f]{6,}|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-"  # an address, a run
    r"|\bcall_[0-9a-f]{8,}|\blc_run-"
)
_FONT_CACHE = "Matplotlib is building the font cache"


def run(path: Path, base_url: str, folder: Path) -> Any:
    """Run a notebook in a fresh kernel.

    Args:
        path: The notebook; the file stays as it is.
        base_url: The endpoint.
        folder: Where to run it, and where everything keeps its own files.

    Returns:
        The notebook with what it shows now.
    """
    notebook = read(path)
    for cell in code_of(notebook):
        cell.update(outputs=[], execution_count=None)
    desk = folder / "desk"
    desk.mkdir()
    for script in path.parent.glob("*.py"):
        shutil.copy(script, desk)
    environment = {
        **os.environ,
        "IPYTHONDIR": str(folder),
        "MPLCONFIGDIR": str(folder),
        "PHOSPHO_BASE_URL": base_url,
        "TMPDIR": str(folder),
    }
    client = NotebookClient(
        notebook,
        extra_arguments=["--log-level=ERROR"],
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(desk)}},
        timeout=60,
    )
    client.execute(env=environment)
    return tidied(notebook, base_url)


def tidied(notebook: Any, base_url: str) -> Any:
    """Leave only what is the same at every run."""
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        streams: dict[str, Any] = {}
        kept = []
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # Pillow shows a picture twice
            if output.output_type != "stream":
                kept.append(output)
            elif output.text.startswith(_FONT_CACHE):  # where that takes long
                continue
            elif output.name in streams:  # how many pieces it comes in is chance
                streams[output.name].text += output.text
            else:
                streams[output.name] = output
                kept.append(output)
        for stream in streams.values():  # of a progress bar, what is seen in the end
            last = re.sub(r"[^\n]*\r(?!\n)", "", stream.text)
            stream.text = last.replace(base_url, LOCAL_SERVER)
        if "outputs" in cell:
            cell.outputs = kept
    return notebook


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: Any) -> list[list[Any]]:
    """What kinds of output each cell shows; words depend on versions, which checks know better."""
    return [
        [
            sorted({*output.get("data", [output.get("name")])} - {"image/jpeg"})
            for output in cell.outputs
        ]
        for cell in code_of(notebook)
    ]


class ReadingOnce:
    """The OCR engine, which takes its time: a picture's text does not depend on the question."""

    name = "ocr"

    def __init__(self) -> None:
        self._engine = load_engine(self.name)
        self._answers: dict[tuple[bytes, str], str] = {}

    def describe(self, picture: InputImage, question: Question) -> str:
        key = (picture.data, question.parameters.model_dump_json())
        if key not in self._answers:
            self._answers[key] = self._engine.describe(picture, question)
        return self._answers[key]


class Servers(ExitStack):
    """One local server for each engine, started when it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._urls: dict[str, str] = {}

    def of(self, path: Path) -> str:
        engine = read(path).metadata.get("phospho_engine", "ocr")
        if engine not in self._urls:
            app = create_app(ReadingOnce() if engine == "ocr" else load_engine(engine))
            self._urls[engine] = self.enter_context(serve(app))
        return self._urls[engine]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as started:
        yield started


every_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda path: path.relative_to(COOKBOOK).with_suffix("").as_posix()
)


@every_notebook
def test_a_notebook_runs_and_shows_what_is_stored(
    path: Path, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    assert shown(run(path, servers.of(path), tmp_path)) == shown(read(path))


@every_notebook
def test_a_notebook_was_run_from_top_to_bottom(path: Path) -> None:
    cells = code_of(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


@every_notebook
def test_a_notebook_checks_what_it_claims(path: Path) -> None:
    checks = [cell for cell in code_of(read(path)) if "check" in cell.metadata.get("tags", [])]
    assert checks
    assert all(re.search(r"^\s*assert ", cell.source, re.MULTILINE) for cell in checks)


@every_notebook
def test_a_notebook_says_how_to_start_the_server(path: Path) -> None:
    cells = read(path).cells
    words = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "phospho-multimodal serve" in words
    assert "PHOSPHO_BASE_URL" in "".join(cell.source for cell in code_of(read(path))[:3])


@every_notebook
def test_a_notebook_is_small_and_tells_nothing_of_the_machine(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    assert set(read(path).metadata) <= {"kernelspec", "phospho_engine"}
    for cell in code_of(read(path)):
        for output in cell.outputs:
            texts = [
                text
                for kind, text in output.get("data", {}).items()
                if not kind.startswith("image/")
            ]
            told = "\n".join([output.get("text", ""), *map(str, texts)])
            assert not _OF_THIS_MACHINE.search(told), told
            assert "Warning" not in told


def test_the_index_has_every_notebook_and_its_command() -> None:
    index = (COOKBOOK / "README.md").read_text(encoding="utf-8")
    names = [path.relative_to(COOKBOOK).as_posix() for path in NOTEBOOKS]
    assert names
    assert [name for name in names if f"({name})" not in index] == []
    assert [name for name in names if f" cookbook/{name}`" not in index] == []


def store(paths: list[Path]) -> None:
    """Run notebooks, and store what they show."""
    with Servers() as servers, tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(paths):
            own = Path(folder) / str(number)
            own.mkdir()
            nbformat.write(run(path, servers.of(path), own), path)
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    store([Path(name) for name in sys.argv[1:]] or NOTEBOOKS)
