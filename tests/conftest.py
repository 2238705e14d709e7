"""What every test stands on: an environment that says nothing about endpoints or networks."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

_READ_BY_THE_CLIENT = ("phospho_",)
_READ_BY_HTTPX = (
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "ssl_cert_",
    "sslkeylogfile",
)
_READ_BY_TRACING = ("langchain_", "langsmith_")


# How long an example takes says more of the machine than of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_xdist_auto_num_workers() -> int:
    """Run more workers than there are cores, because many tests wait for a server."""
    return (os.cpu_count() or 1) + 2


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """Take Ctrl-C, and let children take it: a shell has its background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's own settings: a test sees those that it makes itself."""
    for name in list(os.environ):
        if name.lower().startswith(_READ_BY_THE_CLIENT + _READ_BY_HTTPX + _READ_BY_TRACING):
            monkeypatch.delenv(name)
