"""What an import and a first object cost, in fresh processes, over what they stand on.

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
{make}
first = time.process_time()
times = []
for _ in range(50):
    start = time.process_time()
    {make}
    times.append(time.process_time() - start)
times.sort()
print(json.dumps([imported - begin, len(names), times[25], names]))
"""

_SLOTS = " = ".join(f"x{number}" for number in range(40_000))

_LANGCHAIN = """
import httpx
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
class Null(BaseChatModel):
    @property
    def _llm_type(self): return "null"
    def _generate(self, *args, **kwargs): raise NotImplementedError
"""

_LLAMA_INDEX = """
import httpx
import llama_index.core.llms
import llama_index.core.multi_modal_llms
"""

_PROBES = {
    "LangChain and httpx": (_LANGCHAIN, "Null()"),
    "langchain_phospho": (
        "from langchain_phospho import ChatPhospho",
        "ChatPhospho(base_url='http://127.0.0.1:9')",
    ),
    "LlamaIndex and httpx": (_LLAMA_INDEX, "None"),
    "llama_index_phospho": (
        "from llama_index_phospho import Phospho",
        "Phospho(base_url='http://127.0.0.1:9')",
    ),
    "langchain_openai": ("from langchain_openai import ChatOpenAI", "None"),
    "langchain_anthropic": ("from langchain_anthropic import ChatAnthropic", "None"),
    "llama_index.llms.openai": ("from llama_index.llms.openai import OpenAI", "None"),
}

FLOORS = {
    "langchain_phospho": "LangChain and httpx",
    "llama_index_phospho": "LlamaIndex and httpx",
}
"""What each of ours stands on."""

FOREIGN = {
    "langchain_phospho": ("PIL", "fastapi", "uvicorn", "rapidocr", "onnxruntime", "llama_index"),
    "llama_index_phospho": ("fastapi", "uvicorn", "rapidocr", "onnxruntime", "langchain_core"),
}
"""What must not be loaded. LlamaIndex's own core loads Pillow."""


def measure_imports(rounds: int) -> dict[str, dict[str, float]]:
    """Measure imports and constructors.

    Args:
        rounds: How many fresh processes each has.

    Returns:
        By what is imported: `ms` of CPU, `modules` loaded, `object` in microseconds, how many of
        `FOREIGN` are `foreign` modules among the loaded, and for those of `FLOORS` the CPU `over`
        their floor's: the median of the ratios within each round, since a machine that slows down
        meanwhile slows down both of a round.
    """
    with tempfile.TemporaryDirectory() as cache:
        # Compiled by a first round that does not count, as pip compiles what it installs: not what
        # is in a checkout, where a variable of the environment may forbid it besides.
        compiled = {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        environment = {**os.environ, **compiled}
        _measure(1, environment)
        return _measure(rounds, environment)


def _measure(rounds: int, environment: dict[str, str]) -> dict[str, dict[str, float]]:
    seen: dict[str, list[list[float]]] = {name: [] for name in _PROBES}
    for _ in range(rounds):
        for name in random.sample(list(_PROBES), len(_PROBES)):
            code, make = _PROBES[name]
            probe = _PROBE.format(code=code, make=make, slots=_SLOTS)
            ran = subprocess.run(
                [sys.executable, "-"],
                input=probe,
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            if ran.returncode == 0:
                took, modules, made, names = json.loads(ran.stdout)
                tops = {module.partition(".")[0] for module in names}
                foreign = len(tops.intersection(FOREIGN.get(name, ())))
                seen[name].append([took * 1e3, modules, made * 1e6, foreign])
            elif "ModuleNotFoundError" not in ran.stderr:
                raise RuntimeError(ran.stderr)
    columns = ("ms", "modules", "object", "foreign")
    found = {
        name: dict(zip(columns, map(median, zip(*rows, strict=True)), strict=True))
        for name, rows in seen.items()
        if rows
    }
    for name, floor in FLOORS.items():
        pairs = zip(seen[name], seen[floor], strict=True)
        found[name]["over"] = median(ours[0] / theirs[0] for ours, theirs in pairs)
    return found
