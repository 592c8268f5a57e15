"""`_background`: one loop in a thread of its own, and what is closed with a loop or an exit."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from rerank_async import InvalidRequestError, _background
from rerank_async._background import PerLoop, in_background, is_background, wait
from tests.support import PACKAGE, until


async def here() -> tuple[int, asyncio.AbstractEventLoop]:
    """The thread and the loop that this runs on."""
    return threading.get_ident(), asyncio.get_running_loop()


class Thing:
    """What is held for a loop; notes where it was closed, and is closed once, as a session is."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed: list[asyncio.AbstractEventLoop] = []

    async def close(self) -> None:
        if not self.closed:
            self.closed.append(asyncio.get_running_loop())
        await asyncio.sleep(0)


@pytest.fixture
def other_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class TestWork:
    def test_is_done_on_one_loop_for_all_threads(self) -> None:
        with ThreadPoolExecutor(8) as threads:
            found = set(threads.map(lambda _: wait(here()), range(50)))
        [(thread, _)] = found
        assert thread != threading.get_ident()

    def test_of_several_loops_is_done_on_the_same_one(self) -> None:
        async def handed_over() -> tuple[int, asyncio.AbstractEventLoop]:
            return await asyncio.wrap_future(in_background(here()))

        assert {asyncio.run(handed_over()) for _ in range(2)} == {wait(here())}

    def test_has_the_context_variables_of_its_caller(self) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

        async def read() -> str:
            return variable.get()

        variable.set("the caller's")
        assert wait(read()) == "the caller's"

    def test_that_fails_raises_where_it_is_waited_for(self) -> None:
        async def fail() -> None:
            raise LookupError("the work's own")

        with pytest.raises(LookupError, match="the work's own"):
            wait(fail())

    def test_that_calls_exit_ends_itself_alone(self) -> None:
        async def leave() -> None:
            sys.exit(3)

        before = wait(here())
        with pytest.raises(SystemExit):
            wait(leave())
        assert wait(here()) == before

    def test_is_done_though_nobody_holds_its_future(self) -> None:
        ended = threading.Event()

        async def last(waking: Future[asyncio.Event]) -> None:
            event = asyncio.Event()
            waking.set_result(event)
            await event.wait()
            ended.set()

        waking: Future[asyncio.Event] = Future()
        in_background(last(waking))
        loop = wait(here())[1]
        wake = weakref.ref(waking.result(60))
        del waking
        gc.collect()
        event = wake()
        # Without a reference of ours, the task and what it waits for hold only each other.
        assert event is not None
        loop.call_soon_threadsafe(event.set)
        assert ended.wait(60)

    def test_is_cancelled_with_its_future(self) -> None:
        begun, ended = threading.Event(), threading.Event()

        async def last() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        future = in_background(last())
        assert begun.wait(60)
        future.cancel()
        assert ended.wait(60)
        with pytest.raises(CancelledError):
            future.result()

    def test_is_cancelled_when_whoever_waits_for_it_on_another_loop_is(self) -> None:
        ended = threading.Event()

        async def last() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.wrap_future(in_background(last()))

        asyncio.run(give_up())
        assert ended.wait(60)

    def test_is_not_waited_for_in_the_background_itself(self) -> None:
        async def within() -> bool:
            with pytest.raises(InvalidRequestError, match="await"):
                wait(here())
            return is_background()

        assert wait(within()) is True
        assert is_background() is False

    def test_that_cannot_be_begun_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        monkeypatch.setattr(_background, "_background", None)
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="shutdown"):
            in_background(here())
        # Neither the loop nor the coroutine is left open: both would warn.
        gc.collect()


class TestAThingForEachLoop:
    def test_is_made_once_and_closed_with_its_loop(self) -> None:
        things: PerLoop[Thing] = PerLoop()

        async def twice() -> Thing:
            first = things.here(Thing)
            await asyncio.sleep(0)
            assert things.here(Thing) is first
            return first

        made = [asyncio.run(twice()) for _ in range(3)]
        assert len(set(made)) == 3
        assert [thing.closed for thing in made] == [[thing.loop] for thing in made]

    async def test_is_closed_when_its_holder_is_gone(self) -> None:
        things: PerLoop[Thing] = PerLoop()
        thing = things.here(Thing)
        del things
        gc.collect()
        await until(lambda: bool(thing.closed))

    async def test_that_is_dropped_is_closed_and_another_is_made(self) -> None:
        things: PerLoop[Thing] = PerLoop()
        thing = things.here(Thing)
        # Several may find out at once that it is of no use.
        await asyncio.gather(*(things.drop(thing) for _ in range(3)))
        assert thing.closed
        other = things.here(Thing)
        assert other is not thing
        await things.drop(thing)
        assert things.here(Thing) is other
        await things.aclose()
        assert other.closed

    def test_is_closed_on_its_loop_from_any_thread(
        self, other_loop: asyncio.AbstractEventLoop
    ) -> None:
        things: PerLoop[Thing] = PerLoop()

        async def make() -> Thing:
            return things.here(Thing)

        made = [
            wait(make()),
            asyncio.run_coroutine_threadsafe(make(), other_loop).result(60),
        ]
        things.close()
        assert [thing.closed for thing in made] == [[thing.loop] for thing in made]
        things.close()

    def test_of_a_loop_that_stands_still_is_closed_on_it(self) -> None:
        things: PerLoop[Thing] = PerLoop()

        async def make() -> Thing:
            return things.here(Thing)

        loop = asyncio.new_event_loop()
        thing = loop.run_until_complete(make())

        async def close_elsewhere() -> None:
            await things.aclose()

        # No thread runs two loops.
        asyncio.run(close_elsewhere())
        assert not thing.closed
        things.close()
        assert thing.closed == [loop]
        loop.close()

    async def test_is_not_closed_by_its_own_loop_from_a_plain_function(self) -> None:
        things: PerLoop[Thing] = PerLoop()
        things.here(Thing)
        with pytest.raises(InvalidRequestError, match="aclose"):
            things.close()
        await things.aclose()

    def test_that_does_not_end_is_given_up(
        self, other_loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_background, "_LAST_MOMENT", 0.01)
        given_up: Future[None] = Future()

        class Endless(Thing):
            async def close(self) -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    if not given_up.done():
                        given_up.set_result(None)

        things: PerLoop[Endless] = PerLoop()

        async def make() -> Endless:
            return things.here(Endless)

        asyncio.run_coroutine_threadsafe(make(), other_loop).result(60)
        things.close()
        given_up.result(60)


# ── whole programs ──

BEGINNING = """
import atexit
# What is registered first is called last.
loops = []
atexit.register(lambda: [loop.close() for loop in loops])
import asyncio, os, sys, threading, time
from rerank_async import _background
from rerank_async._background import PerLoop, in_background, is_background, wait

def say(text):
    # In one piece: several threads and processes write.
    os.write(1, f"{text}\\n".encode())

async def here():
    return threading.get_ident(), asyncio.get_running_loop()

class Thing:
    is_closed = False
    async def close(self):
        if not self.is_closed:
            self.is_closed = True
            say("thing closed")
        await asyncio.sleep(0)

things = PerLoop()

async def make():
    return things.here(Thing)
"""


def ran(program: str) -> str:
    """What a program printed, which ended well and said nothing else."""
    done = subprocess.run(
        # That a fork with threads is dangerous is what these tests are about. Not in development
        # mode, in which asyncio speaks of whatever takes long on a busy machine.
        [
            *(sys.executable, "-W", "default", "-W", "ignore::DeprecationWarning"),
            *("-c", BEGINNING + program),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.timeout(300)
class TestTheEndOfAProgram:
    def test_closes_what_lives_on_the_loop_and_cancels_what_is_in_work(self) -> None:
        program = """
async def last():
    try:
        await asyncio.Event().wait()
    finally:
        say("work cancelled")

wait(make())
in_background(last())
wait(asyncio.sleep(0))
say("done")
"""
        assert ran(program) == "done\nthing closed\nwork cancelled\n"

    def test_needs_no_thread_of_a_pool(self) -> None:
        # Names are looked up in one, which makes the loop's executor.
        program = """
wait(asyncio.to_thread(time.sleep, 0))
wait(make())
say("done")
"""
        assert ran(program) == "done\nthing closed\n"

    def test_does_not_wait_for_work_that_will_not_end(self) -> None:
        program = """
_background._LAST_MOMENT = 0.1

async def stubborn():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            say("not yet")

async def block():
    time.sleep(100_000)

wait(make())
in_background(stubborn())
wait(asyncio.sleep(0))
if "block" in sys.argv:
    in_background(block())
say("done")
"""
        assert ran(program) == "done\nthing closed\nnot yet\n"
        assert ran(f'sys.argv.append("block")\n{program}') == "done\n"

    def test_without_any_work_starts_nothing(self) -> None:
        program = """
say(threading.active_count())
"""
        assert ran(program) == "1\n"

    def test_closes_what_lives_on_a_loop_of_its_own(self) -> None:
        program = """
loop = asyncio.new_event_loop()
loops.append(loop)
loop.run_until_complete(make())
"""
        assert ran(program) == "thing closed\n"

    @pytest.mark.posix("signals that are sent to a process")
    def test_by_control_c_cancels_what_is_waited_for(self) -> None:
        program = """
async def last():
    say("begun")
    try:
        await asyncio.Event().wait()
    finally:
        say("cancelled")

try:
    wait(last())
except KeyboardInterrupt:
    in_background(asyncio.sleep(0)).result()
    say("interrupted")
"""
        process = subprocess.Popen(
            [sys.executable, "-c", BEGINNING + program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
            # A job in the background of a shell would ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == "cancelled\ninterrupted\n"
            assert process.stderr.read() == ""
        assert process.returncode == 0


@pytest.mark.timeout(300)
@pytest.mark.posix("os.fork")
class TestAFork:
    def test_has_a_loop_of_its_own_and_leaves_the_parents_things_alone(self) -> None:
        program = """
parents = wait(here())
thing = wait(make())
child = os.fork()
if not child:
    # The parent's loop looks as if it ran here, and would be waited for.
    assert not things._kept
    things.close()
    own = wait(here())
    assert own[1] is not parents[1]
    assert wait(make()) is not thing
    things.close()
    say("the child is done")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert wait(here()) == parents
assert wait(make()) is thing
say("the parent is done")
"""
        assert ran(program) == (
            "thing closed\nthe child is done\nthe parent is done\nthing closed\n"
        )

    def test_ends_by_itself_with_what_it_made(self) -> None:
        program = """
wait(make())
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
    say("the parent is done")
else:
    wait(make())
    say("the child is done")
"""
        assert ran(program) == (
            "the child is done\nthing closed\nthe parent is done\nthing closed\n"
        )

    def test_while_another_thread_begins_work_hangs_nobody(self) -> None:
        # That thread, and so whoever would free the lock, is not in the child.
        program = """
held, freed = threading.Event(), threading.Event()

def hold():
    with _background._lock:
        held.set()
        freed.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if not child:
    wait(here())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
freed.set()
thread.join()
wait(here())
say("done")
"""
        assert ran(program) == "done\n"

    def test_of_a_fork_has_a_loop_of_its_own_too(self) -> None:
        program = """
def descend(depth):
    wait(here())
    if depth:
        child = os.fork()
        if not child:
            descend(depth - 1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    wait(here())

descend(3)
say("done")
"""
        assert ran(program) == "done\n"
