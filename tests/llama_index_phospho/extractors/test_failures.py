"""Describing pictures when something fails, or ends in the middle: what is kept, what stops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
)

from describing import WRITES, describe, nodes_of, told
from fault_server import Connection, FaultServer, Received, answer, hang, reset, status
from llama_index_phospho import ImageDescriptionExtractor
from phospho_multimodal import (
    AuthenticationError,
    ConfigurationError,
    EndpointGoneError,
    PaymentRequiredError,
    PermissionDeniedError,
    Spending,
    SpendingLimitError,
)

KEY = "sk-secret-0123456789"
Extractor = Callable[..., ImageDescriptionExtractor]
Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("failing", "says"),
    [
        pytest.param(status(422, "unreadable"), "InvalidRequestError", id="422"),
        pytest.param(status(500), "ServiceError", id="500"),
        pytest.param(status(418), "APIStatusError", id="418"),
        pytest.param(status(429), "RateLimitedError", id="429"),
        pytest.param(reset(), "ReplyLostError", id="no reply"),
        pytest.param(status(200, b"hello"), "UnexpectedReplyError", id="not the contract"),
    ],
)
def test_a_picture_that_fails_is_marked_and_the_others_go_on(
    extractor: Extractor,
    make: Make,
    *,
    server: FaultServer,
    pictures: list[Path],
    failing: Any,
    says: str,
) -> None:
    bad = pictures[1].read_bytes()

    def behave(connection: Connection, request: Received) -> None:
        (failing if request.image == bad else describe)(connection, request)

    server.script = [behave]
    # The bad one twice: what it failed of is not asked about, and perhaps paid for, again.
    nodes = nodes_of([*pictures[:3], pictures[1]])
    describer = extractor(make(max_retries=0))
    nodes = describer(nodes)
    assert [told(node).keys() == WRITES for node in nodes] == [True, False, True, False]
    for node in (nodes[1], nodes[3]):
        assert told(node).keys() == {"image_description_error", "image_description_key"}
        assert node.metadata["image_description_error"].startswith(f"{says}: ")
        assert "image_description_error" in node.excluded_embed_metadata_keys
    assert len(server.requests) == 3
    server.script = [describe]
    nodes = describer(nodes)  # and once it is mended, the mark goes
    assert all(told(node).keys() == WRITES for node in nodes)
    assert len(server.requests) == 4


def test_an_empty_description_is_a_failure_and_not_kept(
    extractor: Extractor, server: FaultServer, pictures: list[Path]
) -> None:
    nodes = nodes_of(pictures[:1])
    describer = extractor()
    server.script = [answer(" \n")]
    nodes = describer(nodes)
    assert nodes[0].metadata["image_description_error"].startswith("UnexpectedReplyError: ")
    server.script = [describe]
    assert told(describer(nodes)[0]).keys() == WRITES


def test_what_is_no_picture_is_marked_without_a_request(
    extractor: Extractor, server: FaultServer, tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    nodes = [
        ImageNode(image_path=str(tmp_path / "nowhere.png")),
        ImageNode(image_path=str(tmp_path / "notes.png")),
        ImageNode(text="a caption without its image"),
        ImageDocument(),
    ]
    nodes = extractor()(nodes)
    errors = [node.metadata["image_description_error"] for node in nodes]
    assert [error.partition(":")[0] for error in errors] == ["ImageError"] * 4
    assert server.requests == []


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (401, AuthenticationError),
        (402, PaymentRequiredError),
        (403, PermissionDeniedError),
        (404, EndpointGoneError),
        (410, EndpointGoneError),
    ],
)
def test_what_would_fail_for_all_stops_at_once_and_keeps_what_was_done(
    extractor: Extractor,
    *,
    server: FaultServer,
    pictures: list[Path],
    tmp_path: Path,
    code: int,
    error: type[Exception],
) -> None:
    server.script = [describe, describe, status(code)]
    describer = extractor(store=tmp_path / "captions.db", num_workers=1)
    with pytest.raises(error):
        describer(nodes_of(pictures))
    assert len(server.requests) == 3
    server.script = [describe]
    nodes = extractor(store=tmp_path / "captions.db")(nodes_of(pictures))
    assert all("image_description" in node.metadata for node in nodes)
    assert server.billed == len(pictures)


async def test_those_under_way_end_and_are_kept_when_the_run_stops(
    extractor: Extractor, server: FaultServer, pictures: list[Path]
) -> None:
    def behave(connection: Connection, request: Received) -> None:
        if request.image == pictures[0].read_bytes():
            server.wait_for_requests(4)
            status(402)(connection, request)
        else:
            time.sleep(0.2)
            describe(connection, request)

    server.script = [behave]
    describer = extractor(num_workers=4)
    with pytest.raises(PaymentRequiredError):
        await describer.acall(nodes_of(pictures))
    await asyncio.sleep(0.3)
    assert (len(server.requests), server.billed) == (4, 3)
    server.script = [describe]
    await describer.acall(nodes_of(pictures))
    assert server.billed == len(pictures)
    await describer.llm.aclose()


def test_the_cap_of_the_llm_holds(
    extractor: Extractor, make: Make, server: FaultServer, pictures: list[Path]
) -> None:
    describer = extractor(make(spending=Spending(max_images=3)))
    with pytest.raises(SpendingLimitError, match="cap of 3 images"):
        describer(nodes_of(pictures))
    assert server.billed == 3
    describer.llm.spending = Spending(max_images=len(pictures) - 3)
    describer(nodes_of(pictures))
    assert server.billed == len(pictures)


def test_a_bug_stops_the_run_too(
    extractor: Extractor, monkeypatch: pytest.MonkeyPatch, pictures: list[Path]
) -> None:
    describer = extractor()
    monkeypatch.setattr(describer._store, "keep", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        describer(nodes_of(pictures))


# Interruptions


async def test_a_cancelled_run_can_be_run_again(
    extractor: Extractor, server: FaultServer, pictures: list[Path]
) -> None:
    server.script = [describe, describe, hang()]
    describer = extractor(num_workers=1)
    running = asyncio.ensure_future(describer.aextract(nodes_of(pictures[:4])))
    await asyncio.to_thread(server.wait_for_requests, 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    server.script = [describe]
    await describer.acall(nodes_of(pictures[:4]))
    # The one that was under way is asked about again, and nobody waits for it.
    assert len(server.requests) == 5
    await describer.llm.aclose()


INGEST = """
    import sys
    from llama_index.core.schema import ImageNode
    from llama_index_phospho import ImageDescriptionExtractor, Phospho

    base_url, store, *paths = sys.argv[1:]
    nodes = [ImageNode(image_path=path) for path in paths]
    llm = Phospho(base_url=base_url)
    extractor = ImageDescriptionExtractor(llm=llm, store=store, show_progress=False)
    print("ready", flush=True)
    extractor(nodes)
"""


def ingesting(server: FaultServer, store: Path, pictures: list[Path]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", dedent(INGEST), server.base_url, str(store)]
    return subprocess.Popen(  # noqa: S603 - our own code
        [*command, *map(str, pictures)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.long
def test_a_killed_run_goes_on_where_it_was(
    extractor: Extractor, server: FaultServer, pictures: list[Path], tmp_path: Path
) -> None:
    store = tmp_path / "captions.db"
    server.script = [describe, describe, describe, hang()]
    child = ingesting(server, store, pictures)
    server.wait_for_requests(7)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    server.script = [describe]
    nodes = extractor(store=store)(nodes_of(pictures))
    assert all("image_description" in node.metadata for node in nodes)
    # Those that were under way, four at most, are asked about again; what was kept is not.
    assert len(server.requests) == 7 + len(pictures) - 3


def test_a_store_that_cannot_be_used_is_told_at_once(extractor: Extractor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is not a database, and quite long enough for one")
    for path in (tmp_path / "notes.txt", tmp_path / "nowhere" / "captions.db"):
        with pytest.raises(ConfigurationError, match="store of descriptions"):
            extractor(store=path)


_ON_A_FULL_DISK = """
    import resource, signal, sys, threading
    from pathlib import Path

    from describing import describe, nodes_of, told
    from fault_server import FaultServer
    from llama_index_phospho import ImageDescriptionExtractor, Phospho
    from phospho_multimodal import ConfigurationError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write is then an error
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def describe_on_a_full_disk(connection, request):
        all_are_asked.wait(30)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        describe(connection, request)

    store, *pictures = map(Path, sys.argv[1:])
    all_are_asked = threading.Barrier(len(pictures))
    with FaultServer(describe_on_a_full_disk).running() as server:
        llm = Phospho(base_url=server.base_url)
        extractor = ImageDescriptionExtractor(llm=llm, store=store, show_progress=False)
        try:
            extractor(nodes_of(pictures))
        except ConfigurationError as error:
            said = str(error)
        assert server.billed == len(pictures)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        nodes = extractor(nodes_of(pictures))
        again = ImageDescriptionExtractor(llm=llm, store=store, show_progress=False)
        assert [told(node) for node in again(nodes_of(pictures))] == [told(node) for node in nodes]
        assert server.billed == len(pictures)
    print(said)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no limit of files to stand for a full disk")
def test_what_was_paid_for_on_a_full_disk_is_held_until_there_is_room(
    pictures: list[Path], tmp_path: Path
) -> None:
    ended = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", dedent(_ON_A_FULL_DISK), str(tmp_path / "store.db")]
        + [str(path) for path in pictures[:4]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "that were billed are held in memory" in ended.stdout


def test_the_store_holds_no_picture_prompt_key_or_url(
    extractor: Extractor, make: Make, server: FaultServer, pictures: list[Path], tmp_path: Path
) -> None:
    server.script = [answer("harmless")]
    nodes = [*nodes_of(pictures[:1]), ImageNode(image_url="http://127.0.0.1:9/?sig=hunter2")]
    extractor(make(), store=tmp_path / "captions.db", prompt="A private question?")(nodes)
    written = b"".join(path.read_bytes() for path in tmp_path.glob("captions.db*"))
    assert b"harmless" in written
    secrets = [KEY.encode(), b"private", b"hunter2", pictures[0].read_bytes()[:40]]
    assert [secret for secret in secrets if secret in written] == []
