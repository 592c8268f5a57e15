"""One event loop for all plain functions of a process, and what lives as long as a loop.

    sessions: PerLoop[RerankSession] = PerLoop()  # at most one for each loop

    async def rerank(query: str, documents: Documents) -> RerankResponse:
        return await sessions.here(make_session).rerank(query, documents)

    response = wait(rerank("query", documents))  # from a plain function, in any thread
    future = in_background(rerank("query", documents))  # the same, to be waited for later

The loop runs in a daemon thread, which is started by the first work. A process that was forked has
a loop of its own, and every loop is ended when the interpreter is.
A line belongs here when it is about that thread, or about what is closed when a loop, a process or
an interpreter ends.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from rerank_async._errors import InvalidRequestError

__all__ = ["PerLoop", "in_background", "is_background", "wait"]

T = TypeVar("T")

# Seconds that a loop gets to close what lives on it.
_LAST_MOMENT = 5.0


class _Background:
    """The loop, and the thread that runs it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="rerank_async", daemon=True)
        self._is_ending = False
        # A loop holds its tasks weakly: one that only waits for what it made itself would be lost.
        self._work: set[concurrent.futures.Future[Any]] = set()
        try:
            self.thread.start()
        except RuntimeError:
            # The interpreter ends.
            self.loop.close()
            raise

    def begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Have the loop do it."""
        if self.loop.get_task_factory() is not None:
            # Tasks may begin at once, and what calls `sys.exit` then would pass its own future.
            work = _a_turn_later(work)
        done = asyncio.run_coroutine_threadsafe(work, self.loop)
        self._work.add(done)
        done.add_done_callback(self._work.discard)
        return done

    def _run(self) -> None:
        # Work that calls `sys.exit` ends itself alone, and its error goes to whoever waits for it.
        while not self._is_ending:
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self.loop.run_forever()
        try:
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self.loop.run_until_complete(self._end_all())
        finally:
            self.loop.close()

    def _stop(self) -> None:
        self._is_ending = True
        self.loop.stop()

    async def _end_all(self) -> None:
        # No thread pool is waited for, as `asyncio.Runner` would: that takes a thread, and there
        # are releases of Python 3.12 that start none while an interpreter ends.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()

    def end(self, until: float) -> None:
        """End all work and the thread, or give it up at that moment."""
        self.loop.call_soon_threadsafe(self._stop)
        self.thread.join(max(0.0, until - time.monotonic()))


async def _a_turn_later(work: Coroutine[Any, Any, T]) -> T:
    try:
        await asyncio.sleep(0)
    except BaseException:
        work.close()
        raise
    return await work


_lock = threading.Lock()
_background: _Background | None = None
_living: WeakSet[PerLoop[Any]] = WeakSet()
# What a fork took along. The sockets are the parent's: here they are neither used nor closed.
_inherited: list[object] = []


def in_background(work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Do the work on the background's loop, with the context variables of the caller.

    Args:
        work: coroutine that was not awaited yet. What it does must not block.

    Returns:
        The future of its result. Cancel it, and the work is cancelled.

    Raises:
        RuntimeError: the interpreter ends, and starts no thread any more.
    """
    global _background
    try:
        # Held to the end, so that no work comes in between the last and the end of the loop.
        with _lock:
            if _background is None:
                _background = _Background()
            return _background.begin(work)
    except RuntimeError:
        work.close()
        raise


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Do the work on the background's loop, and wait for its result; any other thread may call it.

    What ends the wait, such as Ctrl-C, cancels the work.

    Args:
        work: coroutine that was not awaited yet.

    Raises:
        InvalidRequestError: the background itself would wait for itself.
        BaseException: whatever the work raises.
    """
    if is_background():
        work.close()
        raise InvalidRequestError(
            "a plain function that waits was called on the event loop that it would wait for: "
            "await the asynchronous one there"
        )
    done = in_background(work)
    # Tracebacks show what has a name here.
    del work
    try:
        return done.result()
    finally:
        # Nobody waits for it any more; of what is done nothing can be cancelled.
        done.cancel()
        # An error's traceback holds this frame: the two would hold each other.
        del done


def is_background() -> bool:
    """Whether this is the background's own thread, in which nobody may wait for it."""
    return _background is not None and _background.thread.ident == threading.get_ident()


# ── what lives as long as a loop ──


class Closable(Protocol):
    """What is held for a loop."""

    async def close(self) -> None:
        """Let go of everything. It is called more than once, also while it is at it."""


C = TypeVar("C", bound=Closable)


async def _keep(thing: Closable) -> AsyncGenerator[None, None]:
    """Closes the thing when the loop ends its async generators, as `asyncio.run` does."""
    try:
        yield
    finally:
        await thing.close()


class _Kept(Generic[C]):
    """A thing of the running loop, which is told of it."""

    def __init__(self, thing: C) -> None:
        self.thing = thing
        self._keeper = _keep(thing)
        self._is_let_go = False
        # Runs to its first yield at once: from then on the loop knows of it.
        with contextlib.suppress(StopIteration):
            self._keeper.asend(None).send(None)

    async def close(self) -> None:
        await self.thing.close()
        # Several may ask for it at once, and a generator is closed by one task only.
        if not self._is_let_go:
            self._is_let_go = True
            await self._keeper.aclose()


class PerLoop(Generic[C]):
    """At most one thing for each event loop, such as a session.

    A thing is closed with its loop, with the object that holds it, or when the interpreter ends,
    whichever is first. After a fork the child holds nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[AbstractEventLoop, _Kept[C]] = {}
        _living.add(self)

    def here(self, make: Callable[[], C]) -> C:
        """The running loop's thing; `make` is called if there is none."""
        loop = asyncio.get_running_loop()
        kept = self._kept.get(loop)
        if kept is None:
            # Those of loops that are closed were closed with them. A copy: other threads write.
            for other in [other for other in list(self._kept) if other.is_closed()]:
                self._kept.pop(other, None)
            kept = self._kept[loop] = _Kept(make())
        return kept.thing

    async def drop(self, thing: C) -> None:
        """Close a thing of the running loop; the next call of `here` makes another."""
        kept = self._kept.get(asyncio.get_running_loop())
        if kept is None or kept.thing is not thing:
            # Somebody else has dropped it, and waits for its end as well.
            await thing.close()
            return
        del self._kept[asyncio.get_running_loop()]
        await kept.close()

    async def aclose(self) -> None:
        """Close the running loop's thing, and then those of other loops."""
        kept = self._kept.pop(asyncio.get_running_loop(), None)
        if kept is not None:
            await kept.close()
        self.close()

    def close(self) -> None:
        """Close the things of all loops, each for some seconds at most. Idempotent.

        Raises:
            InvalidRequestError: one is the running loop's.
        """
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() in self._kept:
                raise InvalidRequestError(
                    "close() would wait for its own event loop: await aclose() there"
                )
        _close_all([self], time.monotonic() + _LAST_MOMENT)

    def leave_behind(self) -> object:
        """Let go of all without closing them."""
        kept, self._kept = self._kept, {}
        return kept


async def _close_within(kept: _Kept[Any], until: float) -> None:
    async with asyncio.timeout(max(0.0, until - time.monotonic())):
        await kept.close()


def _close_all(holders: Iterable[PerLoop[Any]], until: float) -> None:
    """Close what they hold, all at the same time, or give it up at that moment."""
    closing: list[concurrent.futures.Future[None]] = []
    for holder in holders:
        for loop in list(holder._kept):
            if not loop.is_running() and _is_on_a_loop():
                # No thread runs two loops: it stays until it is closed from a plain function.
                continue
            kept = holder._kept.pop(loop, None)
            if kept is None or loop.is_closed():
                continue
            work = _close_within(kept, until)
            try:
                if loop.is_running():
                    closing.append(asyncio.run_coroutine_threadsafe(work, loop))
                else:
                    with contextlib.suppress(TimeoutError):
                        loop.run_until_complete(work)
            except RuntimeError:
                # The loop was closed at this very moment, and the thing with it.
                work.close()
    done, _ = concurrent.futures.wait(closing, max(0.0, until - time.monotonic()))
    for one in done:
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            one.result()


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# ── the end of an interpreter, and the beginning of a forked process ──


def _end() -> None:
    """Close everything, while there is still a Python to do it."""
    global _background
    until = time.monotonic() + _LAST_MOMENT
    with contextlib.suppress(Exception):
        _close_all(list(_living), until)
    with _lock:
        ended, _background = _background, None
    if ended is not None:
        ended.end(until)


def _begin_anew() -> None:
    """In a forked process: threads and loops stayed behind."""
    global _lock, _background
    _lock = threading.Lock()
    _inherited.append(_background)
    _background = None
    _inherited.extend(holder.leave_behind() for holder in list(_living))


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
