from __future__ import annotations

import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType

import pytest

from drivers import DRIVERS, Driver
from fault_server import Behaviour, FaultServer
from phospho_multimodal.exchange import retry

Lab = Callable[..., FaultServer]


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    """Both clients: parity is tested, not promised."""
    return request.param


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Starts servers that behave to order, and stops them; none may be left with connections."""
    with ExitStack() as stack:

        def start(*script: Behaviour) -> FaultServer:
            return stack.enter_context(FaultServer(*script).running())

        yield start


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off by milliseconds; the real figures are tested where they are decided."""
    monkeypatch.setattr(retry, "_FIRST_DELAY", 0.002)
    monkeypatch.setattr(retry, "_LONGEST_DELAY", 0.01)


@pytest.fixture
def real_delays(no_waiting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `no_waiting` for a test of the figures themselves."""
    monkeypatch.setattr(retry, "_FIRST_DELAY", 0.5)
    monkeypatch.setattr(retry, "_LONGEST_DELAY", 8.0)


@pytest.fixture
def interrupt_after() -> Iterator[Callable[[float], object]]:
    """Raise KeyboardInterrupt in this thread after some seconds, as Ctrl-C does."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        # Python ignores what is raised where something is being finalized. A user presses again.
        if frame is not None and frame.f_code.co_filename == weakref.__file__:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
