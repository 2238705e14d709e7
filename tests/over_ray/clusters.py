"""A real Ray cluster of several nodes on this machine, quick and quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read by Ray when it is loaded, and by all that it starts.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_enable_metrics_collection="0",
    RAY_BACKEND_LOG_LEVEL="fatal",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
)

_STORE = 80 * 2**20
_LIVELY = {  # a dead node is noticed after half a second, not after twelve
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


@contextlib.contextmanager
def cluster(nodes: int = 2) -> Iterator[Any]:
    """Start a head without CPUs, and some nodes with one each; they end with the block."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - after the environment

    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": _STORE,
        "_system_config": _LIVELY,
    }
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(made)
        yield made
    finally:
        made.shutdown()


def add_node(made: Any) -> Any:
    """Add a node with one CPU."""
    return made.add_node(num_cpus=1, object_store_memory=_STORE)


@contextlib.contextmanager
def driver(made: Any) -> Iterator[None]:
    """Be a driver of a cluster."""
    import ray  # noqa: PLC0415

    ray.init(
        address=made.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def kill_process(name: str) -> None:
    """Kill a process of Ray's as the system would, by what it calls itself."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(name.encode()):
                os.kill(int(folder.name), signal.SIGKILL)
                return
    message = f"there is no process {name}"
    raise AssertionError(message)
