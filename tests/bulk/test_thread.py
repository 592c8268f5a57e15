"""`_thread`: what takes long is done beside the event loop, and let go when nobody wants it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from rerank_async.bulk import _thread
from rerank_async.bulk._thread import in_thread


async def test_what_the_work_returns_or_raises_comes_back() -> None:
    def work(halted: Callable[[], bool]) -> tuple[bool, bool]:
        return halted(), threading.current_thread() is threading.main_thread()

    assert await in_thread(work) == (False, False)

    def broken(halted: Callable[[], bool]) -> None:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        await in_thread(broken)


async def test_whoever_is_cancelled_waits_until_the_work_has_let_go() -> None:
    begun, ended = threading.Event(), threading.Event()
    told: list[bool] = []

    def work(halted: Callable[[], bool]) -> None:
        begun.set()
        while not halted():
            ended.wait(0.001)
        told.append(True)

    doing = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(begun.wait)
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    assert told == [True]


async def test_nobody_waits_for_work_that_may_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_thread, "_LET_GO", 0.0)
    begun, pipe = threading.Event(), threading.Event()

    def work(halted: Callable[[], bool]) -> None:
        begun.set()
        pipe.wait()

    doing = asyncio.ensure_future(in_thread(work, can_block=True))
    await asyncio.to_thread(begun.wait)
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    pipe.set()
