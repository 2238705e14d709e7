"""The shape of the project: what is shipped, under which names, and what an import costs.

These tests run in the source tree and on the installed wheel alike: the packages are looked for
where they were imported from, and the texts beside the tests.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import zipfile
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fresh_python import in_fresh_python
from phospho_multimodal import _version, errors

ROOT = Path(__file__).parents[1]
PACKAGES = ["langchain_phospho", "llama_index_phospho", "phospho_multimodal"]
EXTRAS = [
    "agents",
    "aiohttp",
    "all",
    "batch",
    "bench",
    "cli",
    "heif",
    "langchain",
    "llama-index",
    "ocr",
    "ray",
    "server",
    "transformers",
]
FRAMEWORKS = {"langchain", "langchain_core", "langgraph", "llama_index"}
OCR = {"cv2", "onnxruntime", "rapidocr"}
SERVER = {"fastapi", "phospho_multimodal.server", "starlette", "uvicorn"}
# No file names the host of a package registry, and so this one does not either.
REGISTRY = re.compile(
    r"\b(?:py(?:pi|thonhosted)|anaconda|npmjs|crates)\.(?:org|com|io)\b", re.IGNORECASE
)

every_package = pytest.mark.parametrize("package", PACKAGES)


@pytest.fixture(scope="module")
def about() -> metadata.PackageMetadata:
    return metadata.metadata("phospho-multimodal")


def test_the_metadata_carries_the_version_of_the_code(about: metadata.PackageMetadata) -> None:
    assert about["Version"] == _version.__version__


def test_the_metadata_says_the_license_and_the_oldest_python(
    about: metadata.PackageMetadata,
) -> None:
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.10"


def test_the_extras_are_those_of_the_readme(about: metadata.PackageMetadata) -> None:
    assert sorted(about.get_all("Provides-Extra") or []) == EXTRAS
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [extra for extra in EXTRAS if f"`{extra}`" not in readme] == []


def test_the_bare_install_brings_no_framework_and_no_server() -> None:
    bare = [
        line for line in metadata.requires("phospho-multimodal") or [] if "extra ==" not in line
    ]
    names = {re.split(r"[^\w-]", line)[0] for line in bare}
    assert names == {"anyio", "httpcore", "httpx", "orjson", "pillow", "pybase64", "pydantic"}


def test_the_command_is_installed() -> None:
    commands = metadata.entry_points(group="console_scripts", name="phospho-multimodal")
    assert {command.value for command in commands} == {"phospho_multimodal.cli.main:main"}


def test_the_changelog_leads_with_unreleased_and_then_this_version() -> None:
    """Before the first release there is no section but Unreleased."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert sections[1:2] in ([], [_version.__version__])


def test_the_map_names_every_folder_and_each_folder_says_what_it_holds() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for package in PACKAGES:
        for init in Path(str(resources.files(package))).rglob("__init__.py"):
            assert f"{init.parent.name}/`" in contributing, init
            assert init.read_text(encoding="utf-8").startswith('"""'), init


@every_package
def test_a_package_is_typed(package: str) -> None:
    assert (resources.files(package) / "py.typed").is_file()


@every_package
def test_a_package_exports_its_public_names_and_no_others(package: str) -> None:
    module = importlib.import_module(package)
    public = {
        name
        for name in dir(module)
        if not name.startswith("_")
        and name != "annotations"  # of `from __future__`
        and not isinstance(getattr(module, name), ModuleType)
    }
    exported = {name for name in module.__all__ if not name.startswith("_")}
    assert public == exported


@every_package
def test_the_exported_names_are_sorted(package: str) -> None:
    """Constants, then classes, then functions, each by the alphabet: ruff's order of `__all__`."""
    names = importlib.import_module(package).__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))


def test_the_core_exports_every_error() -> None:
    core = importlib.import_module("phospho_multimodal")
    assert set(errors.__all__) - set(core.__all__) == set()


def test_the_tree_drawn_in_errors_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    line_of_ancestors: list[str] = []
    for indent, name in re.findall(
        r"^ {4}((?:[│├└─ ]{4})*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE
    ):
        line_of_ancestors[len(indent) // 4 :] = [name]
        drawn[name] = line_of_ancestors[-2] if len(line_of_ancestors) > 1 else "Exception"
    real = {
        name: value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PhosphoError)
    }
    assert drawn == real
    assert sorted(real) == sorted(errors.__all__)


def test_no_error_is_one_that_a_framework_swallows() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert [kind for kind in kinds if issubclass(kind, (TypeError, ValueError))] == []


def test_no_file_names_the_host_of_a_package_registry() -> None:
    places = [ROOT / name for name in (".ci", ".github", "cookbook", "tests")]
    places += [Path(str(resources.files(package))) for package in PACKAGES]
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 30  # the places are where they are looked for
    naming = [
        str(path)
        for path in files
        if "__pycache__" not in path.parts and REGISTRY.search(path.read_text("utf-8", "ignore"))
    ]
    assert naming == []


_PROBE = """
import importlib, json, sys
import httpx

made = []
for kind in (httpx.Client, httpx.AsyncClient, httpx.HTTPTransport, httpx.AsyncHTTPTransport):
    def record(self, *_, _name=kind.__name__, **__):
        made.append(_name)
    kind.__init__ = record

importlib.import_module(package)
print(json.dumps({"loaded": sorted(sys.modules), "made": made}))
"""


def import_alone(package: str) -> Any:
    """Tell what a fresh process has loaded, and which HTTP clients it has made, after an import."""
    process = in_fresh_python(f"package = {package!r}\n{_PROBE}")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


# llama-index-core loads Pillow itself, so that only the other two can do without.
@pytest.mark.long
@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("phospho_multimodal", {"PIL"} | FRAMEWORKS | SERVER | OCR),
        ("langchain_phospho", {"PIL", "llama_index", "llama_index_phospho"} | SERVER | OCR),
        (
            "llama_index_phospho",
            {"langchain", "langchain_core", "langchain_phospho"} | SERVER | OCR,
        ),
    ],
)
def test_an_import_loads_only_what_it_needs_and_opens_nothing(
    package: str, unwanted: set[str]
) -> None:
    outcome = import_alone(package)
    assert package in outcome["loaded"]
    assert unwanted & set(outcome["loaded"]) == set()
    assert outcome["made"] == []


@pytest.mark.parametrize("name", ["langchain-phospho", "llama-index-llms-phospho"])
def test_a_distribution_without_code_installs_this_version(name: str) -> None:
    project = (ROOT / "packaging" / name / "pyproject.toml").read_text(encoding="utf-8")
    assert f'name = "{name}"' in project
    assert f'version = "{_version.__version__}"' in project
    (extra,) = re.findall(rf"phospho-multimodal\[(.+)\]=={_version.__version__}", project)
    assert extra in EXTRAS


@pytest.mark.long
@pytest.mark.parametrize("name", ["langchain-phospho", "llama-index-llms-phospho"])
def test_a_distribution_without_code_builds(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path)]
    command.append(str(ROOT / "packaging" / name))
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own command
    (wheel,) = tmp_path.glob("*.whl")
    assert {file.split("/")[0] for file in zipfile.ZipFile(wheel).namelist()} == {
        f"{name.replace('-', '_')}-{_version.__version__}.dist-info"
    }
