"""The CPU time of an import in fresh processes, compared to the framework and httpx.

CPython 3.11 keeps its frames in chunks of 16 KiB, and asks the system for one anew at each call
that crosses the end of one. Whatever is called often right there, pydantic's reading of a field for
one, takes 20 µs longer: LangChain's own import took 393 to 517 ms by nothing but the depth that it
was called from, and 5,200 to 10,000 chunks were given back meanwhile. Which import it hits is
chance. So all run in a frame so large that they share one chunk (33 given back).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from statistics import median

__all__ = ["FLOORS", "FOREIGN", "measure_imports"]

_PROBE = """
import json, sys, time
def run():
    exec({code!r}, globals())
    if False:
        {slots} = None
begin = time.process_time()
run()
imported = time.process_time()
names = list(sys.modules)
print(json.dumps([imported - begin, names]))
"""
"""Prints seconds of CPU, and the names of the modules."""

_SLOTS = " = ".join(f"x{number}" for number in range(40_000))

_LANGCHAIN = """
import httpx
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
"""

_LLAMA_INDEX = """
import httpx
import llama_index.core.llms
import llama_index.core.multi_modal_llms
"""

_IMPORTS = {
    "LangChain and httpx": _LANGCHAIN,
    "langchain_phospho": "from langchain_phospho import ChatPhospho",
    "LlamaIndex and httpx": _LLAMA_INDEX,
    "llama_index_phospho": "from llama_index_phospho import Phospho",
    "langchain_openai": "from langchain_openai import ChatOpenAI",
    "langchain_anthropic": "from langchain_anthropic import ChatAnthropic",
    "llama_index.llms.openai": "from llama_index.llms.openai import OpenAI",
}

FLOORS = {
    "langchain_phospho": "LangChain and httpx",
    "llama_index_phospho": "LlamaIndex and httpx",
}
"""What each of ours stands on."""

_PEERS = _IMPORTS.keys() - FLOORS.keys() - set(FLOORS.values())
_ROUNDS_OF_PEERS = 2
"""Enough for a figure beside ours; no verdict hangs on it, and each import takes seconds."""

FOREIGN = {
    "langchain_phospho": ("PIL", "fastapi", "uvicorn", "rapidocr", "onnxruntime", "llama_index"),
    "llama_index_phospho": ("fastapi", "uvicorn", "rapidocr", "onnxruntime", "langchain_core"),
}
"""What must not be loaded. LlamaIndex's own core loads Pillow."""


def measure_imports(rounds: int) -> dict[str, dict[str, float]]:
    """Measure imports.

    Args:
        rounds: How many fresh processes each of ours has, each at once with one of its floor.

    Returns:
        By what is imported: `ms` of CPU, `modules` loaded and how many of them are `FOREIGN`. For
        those of `FLOORS` also the CPU `over` their floor's: the median of the pairs' ratios, since
        a machine that slows down slows down both of a pair.
    """
    with tempfile.TemporaryDirectory() as cache:
        # Compiled by a first round that does not count, as pip compiles what it installs: not what
        # is in a checkout, where a variable of the environment may forbid it besides.
        compiled = {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        environment = {**os.environ, **compiled}
        _measure(1, environment)
        return _measure(rounds, environment)


def _measure(rounds: int, environment: dict[str, str]) -> dict[str, dict[str, float]]:
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in _IMPORTS}
    pairs = list(FLOORS.items())
    for number in range(rounds):
        peers = [(name,) for name in _PEERS] if number < _ROUNDS_OF_PEERS else []
        groups: list[tuple[str, ...]] = [*pairs, *peers]
        for group in random.sample(groups, len(groups)):
            # Both of a pair at once, on the core that all this runs on: they take turns of some
            # milliseconds, so that whatever slows it down slows down both.
            running = [
                (name, _fresh_process(name, environment))
                for name in random.sample(group, len(group))
            ]
            for name, process in running:
                found = _result(name, process)
                if found is not None:
                    seen[name].append(found)
    medians = {
        name: {column: median(row[column] for row in rows) for column in rows[0]}
        for name, rows in seen.items()
        if rows
    }
    for name, floor in pairs:
        both = zip(seen[name], seen[floor], strict=True)
        medians[name]["over"] = median(ours["ms"] / theirs["ms"] for ours, theirs in both)
    return medians


def _fresh_process(name: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Begin to import something once."""
    probe = _PROBE.format(code=_IMPORTS[name], slots=_SLOTS)
    with tempfile.TemporaryFile("w+") as script:
        script.write(probe)
        script.seek(0)
        return subprocess.Popen(
            [sys.executable, "-"],
            stdin=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )


def _result(name: str, process: subprocess.Popen[str]) -> dict[str, float] | None:
    """Read what was measured; `None` where it is not installed."""
    out, err = process.communicate()
    if process.returncode != 0:
        if "ModuleNotFoundError" in err:
            return None
        raise RuntimeError(err)
    took, names = json.loads(out)
    tops = {module.partition(".")[0] for module in names}
    foreign = len(tops.intersection(FOREIGN.get(name, ())))
    return {"ms": took * 1e3, "modules": len(names), "foreign": foreign}
