"""Work that takes long, in a thread of its own.

A line belongs here when it is about that thread; rows are read ahead in `_reader`'s.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

__all__ = ["in_thread"]

T = TypeVar("T")

# Seconds in which a thread that is not wanted any more has let go of its files, if it ever does.
_LET_GO = 1.0


async def in_thread(work: Callable[[Callable[[], bool]], T], *, can_block: bool = False) -> T:
    """Do work that takes long in a thread; it is asked to end when this is cancelled.

    Args:
        work: the function to call. It is given a function that says whether to end, which it calls
            every so often.
        can_block: whether the work may wait for ever, as reading a pipe may. Then nobody waits for
            it when it does not end soon, and it ends with the process.
    """
    halted = threading.Event()
    loop = asyncio.get_running_loop()
    doing: asyncio.Future[T] = loop.create_future()

    def told(result: T | None, error: BaseException | None) -> None:
        if error is not None:
            doing.set_exception(error)
        else:
            doing.set_result(cast("T", result))

    def do() -> None:
        result, failure = None, None
        try:
            result = work(halted.is_set)
        except BaseException as error:
            failure = error
        # Where the loop is closed, nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(told, result, failure)

    # Daemon: a process may end although a pipe has not.
    threading.Thread(target=do, name="rerank-files", daemon=True).start()
    try:
        return await asyncio.shield(doing)
    finally:
        halted.set()
        if not doing.done():
            # It has the job's files in its hands: they are closed only when it lets go.
            await asyncio.wait([doing], timeout=_LET_GO if can_block else None)
        if doing.done() and not doing.cancelled():
            doing.exception()
