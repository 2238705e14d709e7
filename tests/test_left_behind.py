"""Calls that nobody waits for any more: on a closed event loop, or on the other side of a fork.

Each runs in a process of its own, which ends by itself if it hangs.
"""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest

from fault_server import Behaviour, Connection, FaultServer, Received, answer, hang, status
from fresh_python import in_fresh_python
from pictures import draw, encoded

pytestmark = pytest.mark.long

PICTURE = encoded()

BEGIN = """
import asyncio, faulthandler, gc, logging, os, sys, threading, time
faulthandler.dump_traceback_later(10, exit=True)
logging.disable(logging.CRITICAL)  # "Task was destroyed but it is pending"
sys.unraisablehook = lambda _: None
"""

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="There is no fork on this system.")


def later(seconds: float) -> Behaviour:
    def behave(connection: Connection, request: Received) -> None:
        connection.server.stopping.wait(seconds)
        answer()(connection, request)

    return behave


def printed(server: FaultServer, code: str) -> str:
    known = f"BASE_URL, PICTURE = {server.base_url!r}, {PICTURE!r}\n"
    ran = in_fresh_python(f"{BEGIN}{known}{dedent(code)}\nos._exit(0)")
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip()


# Whatever is collected meanwhile is collected in the middle of these.
IN_A_STEP_OF_THE_LEDGER = """
from decimal import Decimal
class Price(Decimal):
    def __rmul__(self, number):
        collect()
        return number * Decimal(self)
spending.usd_per_image = Price("0.01")
(reservation,) = spending.reserve()
reservation.release()
"""
AS_AN_EXECUTOR_TAKES_WORK = """
from concurrent.futures import ThreadPoolExecutor, thread
class Future(thread._base.Future):
    def __init__(self):
        collect()
        super().__init__()
thread._base.Future = Future
with ThreadPoolExecutor(1) as threads:  # all of them share a lock
    threads.submit(print, end="").result()
"""


@pytest.mark.parametrize("in_a_file", [False, True], ids=["in memory", "in a file"])
@pytest.mark.parametrize(
    "meanwhile",
    [IN_A_STEP_OF_THE_LEDGER, AS_AN_EXECUTOR_TAKES_WORK],
    ids=["in a step of the ledger", "as an executor takes work"],
)
def test_what_is_collected_at_a_bad_moment_is_settled_and_stops_nobody(
    in_a_file: bool, meanwhile: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "spending.db") if in_a_file else None
    left_behind = f"""
from phospho_multimodal import AsyncPhosphoClient, Spending
spending = Spending(max_usd=1, path={path!r})
client = AsyncPhosphoClient(base_url=BASE_URL, spending=spending)
asyncio.run(client.describe(PICTURE))
gc.disable()
loop = asyncio.new_event_loop()
async def no_answer_yet():
    calls = [asyncio.ensure_future(client.describe(PICTURE)) for _ in range(4)]
    await asyncio.sleep(0.3)
loop.run_until_complete(no_answer_yet())
loops = [loop]
del loop
def collect():  # whoever looks at the ledger after it was closed ends what is left, uncollected
    while loops:
        loops.pop().close()
    gc.collect()
"""
    told = """
found = spending.snapshot()
print(found.images_billed, found.images_in_doubt, found.images_reserved)
"""
    with FaultServer(answer(), later(0.6)).running() as server:
        assert printed(server, f"{left_behind}{meanwhile}{told}") == "1 4 0"


LEAVE = """
import httpx
from langchain_phospho import ChatPhospho
from phospho_multimodal import AsyncPhosphoClient, Spending
gc.disable()
# What is loaded at the first call is loaded, and the time below is a call's own.
asyncio.run(
    ChatPhospho(base_url=BASE_URL, default_image=PICTURE, deadline=30).ainvoke("Is all loaded?")
)
def leave(*calls, seconds=0.5):
    loop = asyncio.new_event_loop()
    async def no_answer_yet():
        asking = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(seconds)
        return asking
    left = loop.run_until_complete(no_answer_yet())
    loop.close()
    return left
"""


@pytest.mark.parametrize("in_a_file", [False, True], ids=["in memory", "in a file"])
@pytest.mark.parametrize(
    "options",
    ["", "deadline=30", "http_client=httpx.AsyncClient()"],
    ids=["as it is", "with a deadline", "by a borrowed client"],
)
def test_money_of_calls_left_behind_is_in_doubt_though_nothing_collects_them(
    options: str, in_a_file: bool, tmp_path: Path
) -> None:
    path = str(tmp_path / "spending.db") if in_a_file else None
    asked = f"""
spending = Spending(max_images=3, path={path!r})
client = AsyncPhosphoClient(base_url=BASE_URL, max_concurrency=2, spending=spending, {options})
left = leave(*(client.describe(PICTURE) for _ in range(5)))
found = spending.snapshot()
print(found.images_in_doubt, found.images_reserved, found.images_left)
"""
    with FaultServer(answer(), hang()).running() as server:
        assert printed(server, LEAVE + asked) == "2 0 1"


@pytest.mark.parametrize("options", ["", "deadline=30"], ids=["as it is", "with a deadline"])
@pytest.mark.parametrize(
    "next_call",
    [
        "model.invoke(question)",
        "asyncio.run(model.ainvoke(question))",
    ],
    ids=["a thread", "another loop"],
)
def test_slots_of_calls_left_behind_are_there_for_the_next_though_nothing_collects_them(
    next_call: str, options: str
) -> None:
    asked = f"""
model = ChatPhospho(base_url=BASE_URL, max_concurrency=2, default_image=PICTURE, {options})
left = leave(*(model.ainvoke("Who hears this?") for _ in range(5)))
question = "And now?"
print({next_call}.text)
"""
    with FaultServer(answer(), hang(), hang(), answer()).running() as server:
        assert printed(server, LEAVE + asked) == "You asked: And now?"


@pytest.mark.parametrize(
    ("options", "picture", "left"),
    [
        (
            "max_concurrency=1, requests_per_second=0.7",
            "PICTURE",
            "leave(client.describe(PICTURE))",
        ),
        (
            "",
            "drawn",
            "[leave(client.describe(drawn), seconds=0) for _ in range(os.cpu_count())]",
        ),
    ],
    ids=["its slot while it waits for the rate", "its core before its thread has begun"],
)
def test_a_call_left_behind_gives_back(options: str, picture: str, left: str) -> None:
    asked = f"""
from PIL import Image
drawn = Image.new("RGB", (2000, 2000))
client = AsyncPhosphoClient(base_url=BASE_URL, {options})
asyncio.run(client.describe({picture}))
left = {left}
print(asyncio.run(client.describe({picture}, "And now?")).description)
"""
    with FaultServer().running() as server:
        assert printed(server, LEAVE + asked) == "You asked: And now?"


def test_a_slot_that_came_to_a_closed_loop_comes_to_the_next() -> None:
    asked = """
client = AsyncPhosphoClient(base_url=BASE_URL, max_concurrency=1)
def elsewhere():
    asyncio.run(client.describe(PICTURE))
    ended.set()
ended = threading.Event()
threading.Thread(target=elsewhere).start()
time.sleep(0.1)
loop = asyncio.new_event_loop()
async def queue():
    waiting = asyncio.ensure_future(client.describe(PICTURE))
    await asyncio.sleep(0.1)
    return waiting
left = loop.run_until_complete(queue())
ended.wait()  # its slot goes to the loop, which does not run
loop.close()
print(asyncio.run(client.describe(PICTURE, "And now?")).description)
"""
    with FaultServer(answer(), later(0.8), answer()).running() as server:
        assert printed(server, LEAVE + asked) == "You asked: And now?"


WAITING = """
loop, closes = asyncio.new_event_loop(), threading.Timer(1, lambda: loop.close())
async def no_answer_yet(call):
    left = asyncio.ensure_future(call)
    await asyncio.sleep(0.5)
    return left
"""


@pytest.mark.parametrize("call", ["model.invoke(question)", "asyncio.run(model.ainvoke(question))"])
def test_whoever_waits_already_when_a_loop_is_closed_gets_its_slots(call: str) -> None:
    asked = f"""
question = "And now?"
model = ChatPhospho(base_url=BASE_URL, max_concurrency=1, default_image=PICTURE, deadline=30)
left = loop.run_until_complete(no_answer_yet(model.ainvoke("Who hears this?")))
closes.start()
print({call}.text)
"""
    with FaultServer(answer(), hang(), answer()).running() as server:
        assert printed(server, LEAVE + WAITING + asked) == "You asked: And now?"


@pytest.mark.parametrize("closed", ["before", "meanwhile"])
@pytest.mark.parametrize(
    "look", ["describer.describe(questions)", "asyncio.run(describer.adescribe(questions))"]
)
def test_nobody_waits_for_the_answer_to_a_look_that_was_left_behind(look: str, closed: str) -> None:
    asked = f"""
from langchain_phospho.image_describer import ImageDescriber, ImageQuestion
from phospho_multimodal.images.source import image_source
describer = ImageDescriber(ChatPhospho(base_url=BASE_URL, deadline=30))
picture = describer.recognize(image_source(PICTURE))
questions = [ImageQuestion(picture, "What?")]
left = loop.run_until_complete(no_answer_yet(describer.adescribe(questions)))
loop.close() if {closed == "before"} else closes.start()
def ask():
    (outcome,) = {look}
    print(outcome.text)
asking = threading.Thread(target=ask)
asking.start()
asking.join()
"""
    with FaultServer(answer(), hang(), answer()).running() as server:
        assert printed(server, LEAVE + WAITING + asked) == "You asked: What?"


def test_a_loop_that_is_dropped_without_being_closed_keeps_no_money() -> None:
    asked = """
spending = Spending(max_images=10)
def drop():
    client = AsyncPhosphoClient(base_url=BASE_URL, max_concurrency=1, spending=spending)
    loop = asyncio.new_event_loop()
    async def no_answer_yet():
        for _ in range(3):
            asyncio.ensure_future(client.describe(PICTURE))
        await asyncio.sleep(0.5)
    loop.run_until_complete(no_answer_yet())
drop()
gc.collect()
print(spending.snapshot().images_in_doubt, spending.snapshot().images_reserved)
"""
    with FaultServer(answer(), hang()).running() as server:
        assert printed(server, LEAVE + asked) == "1 0"


def test_a_batch_that_was_left_behind_is_no_error_of_somebody_else(tmp_path: Path) -> None:
    pictures = [(str(number), encoded(draw(60 + number, 40))) for number in range(9)]
    asked = f"""
from phospho_multimodal.batch import adescribe_many
spending = Spending()
job = adescribe_many({pictures!r}, {str(tmp_path)!r}, base_url=BASE_URL, spending=spending,
                     concurrency=3, results="jsonl")
left = leave(job, seconds=3)
print(spending.snapshot().images_in_doubt, spending.snapshot().images_reserved)
"""
    refusal = status(422, [])
    with FaultServer(answer(), refusal, refusal, refusal, hang()).running() as server:
        told = printed(server, LEAVE + asked)
    assert told == "3 0"


@forks
def test_a_child_does_not_end_what_its_parent_left_behind() -> None:
    asked = """
client = AsyncPhosphoClient(base_url=BASE_URL, max_concurrency=1, deadline=30)
left = leave(client.describe(PICTURE))
child = os.fork()
if child == 0:
    async def together():
        await asyncio.gather(*(client.describe(PICTURE) for _ in range(4)))
    asyncio.run(together())
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    with FaultServer(answer(), hang(), later(0.3)).running() as server:
        assert printed(server, LEAVE + asked) == "0"
        assert server.most_in_flight == 2  # one is the parent's


@pytest.mark.parametrize(
    "end", ["", "loop.run_until_complete(loop.shutdown_asyncgens())"], ids=["at once", "in order"]
)
def test_a_client_keeps_no_event_loop_but_the_last(end: str) -> None:
    with FaultServer().running() as server:
        told = printed(
            server,
            f"""
            import weakref
            from phospho_multimodal import AsyncPhosphoClient
            client = AsyncPhosphoClient(base_url=BASE_URL)
            loops = []
            for _ in range(4):
                loop = asyncio.new_event_loop()
                loop.run_until_complete(client.describe(PICTURE))
                {end}
                loop.close()
                loops.append(weakref.ref(loop))
            del loop
            gc.collect()
            print(sum(loop() is not None for loop in loops))
            """,
        )
    assert int(told) <= 1


def test_calls_left_behind_in_the_queue_add_no_slot() -> None:
    with FaultServer(later(0.3)).running() as server:
        told = printed(
            server,
            """
            from phospho_multimodal import AsyncPhosphoClient
            client = AsyncPhosphoClient(base_url=BASE_URL, max_concurrency=2)
            async def together(count):
                await asyncio.gather(*(client.describe(PICTURE) for _ in range(count)))
            asyncio.run(together(1))
            elsewhere = threading.Thread(target=lambda: asyncio.run(together(2)))
            elsewhere.start()
            time.sleep(0.1)
            loop = asyncio.new_event_loop()
            async def queue():
                calls = [asyncio.ensure_future(client.describe(PICTURE)) for _ in range(6)]
                await asyncio.sleep(0.05)
            loop.run_until_complete(queue())
            loop.close()
            del loop
            elsewhere.join()
            gc.collect()
            asyncio.run(together(6))
            print("done")
            """,
        )
        assert told == "done"
        assert server.most_in_flight == 2


@forks
@pytest.mark.parametrize("package", ["langchain_phospho", "llama_index_phospho"])
def test_a_child_makes_clients_of_its_own_whoever_made_some_at_the_fork(package: str) -> None:
    with FaultServer().running() as server:
        told = printed(
            server,
            f"""
            from {package} import {"ChatPhospho" if package == "langchain_phospho" else "Phospho"}
            from {package}.configuration import _making
            model = {"ChatPhospho" if package == "langchain_phospho" else "Phospho"}(
                base_url=BASE_URL)
            holds, forked = threading.Event(), threading.Event()
            def hold():
                with _making.held:
                    holds.set()
                    forked.wait()
            threading.Thread(target=hold).start()
            holds.wait()
            child = os.fork()
            if child == 0:
                model._clients()
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            forked.set()
            print(status)
            """,
        )
    assert told == "0"


@forks
def test_a_child_asks_itself_about_a_picture_that_its_parent_was_asking_about() -> None:
    with FaultServer(later(0.5)).running() as server:
        told = printed(
            server,
            """
            from langchain_phospho import ChatPhospho
            from langchain_phospho.image_describer import ImageDescriber, ImageQuestion
            from phospho_multimodal.images.source import image_source
            describer = ImageDescriber(ChatPhospho(base_url=BASE_URL))
            picture = describer.recognize(image_source(PICTURE))
            # No child of Python's goes on importing what another thread was importing at its fork.
            describer.describe([ImageQuestion(picture, "Is all of it loaded?")])
            questions = [ImageQuestion(picture, "What?")]
            asking = threading.Thread(target=describer.describe, args=(questions,))
            asking.start()
            time.sleep(0.2)
            child = os.fork()
            if child == 0:
                (outcome,) = describer.describe(questions)
                os._exit(isinstance(outcome, Exception))
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            asking.join()
            """,
        )
        assert told == "0"
        assert server.billed == 3


@forks
def test_what_is_set_aside_for_calls_of_a_parent_is_not_set_aside_in_its_child() -> None:
    with FaultServer().running() as server:
        told = printed(
            server,
            """
            from phospho_multimodal import Spending
            spending = Spending(max_images=3)
            first, second = spending.reserve(2)
            child = os.fork()
            if child == 0:
                first.bill()
                print(len(spending.reserve(3)), spending.snapshot().images_billed, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            first.bill()
            second.release()
            print(spending.snapshot().images_billed, spending.snapshot().images_reserved)
            """,
        )
    assert told.split() == ["3", "0", "1", "0"]


def test_whatever_many_loops_leave_behind_the_ledger_and_the_slots_are_right() -> None:
    asked = """
import random
spending = Spending()
client = AsyncPhosphoClient(
    base_url=BASE_URL, max_concurrency=3, spending=spending, deadline=30)
failures = []
def leave_some(seed, ends=time.monotonic() + 4):
    chance = random.Random(seed)
    while time.monotonic() < ends:
        try:
            calls = [client.describe(PICTURE) for _ in range(chance.randint(1, 6))]
            left = leave(*calls, seconds=chance.uniform(0, 0.12))
            failures.extend(one for one in left if one.done() and one.exception())
            del left
            if chance.random() < 0.3:
                gc.collect()
            if chance.random() < 0.5:
                spending.snapshot()
        except BaseException as failure:
            failures.append(failure)
threads = [threading.Thread(target=leave_some, args=(seed,)) for seed in range(5)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
async def together():
    await asyncio.gather(*(client.describe(PICTURE) for _ in range(9)))
asyncio.run(together())
found = spending.snapshot()
print(failures, found.images_reserved, found.images_billed + found.images_in_doubt)
"""
    with FaultServer(later(0.05)).running() as server:
        told = printed(server, LEAVE + asked)
        # One call, which loads what there is, goes to a ledger of its own.
        assert told == f"[] 0 {server.billed - 1}"
