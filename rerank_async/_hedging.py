"""A backup for a request that takes long: of the two, the first valid answer counts.

The tasks are here; whether and after how long there is a backup is decided by the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from rerank_async._errors import TransportError

__all__ = ["cancelled_from_outside", "hedge"]

T = TypeVar("T")


async def hedge(
    launch: Callable[[bool], asyncio.Task[T]],
    *,
    delay: float | None,
    decide: Callable[[], bool],
    lost: Callable[[bool], None],
) -> T:
    """The answer of an attempt, or of its backup where that one is answered first.

    Args:
        launch: a function that puts the attempt on the wire, in a task of its own; it is told
            whether that is the backup.
        delay: seconds after which there may be a backup; None means that there is none.
        decide: a function that says whether the backup goes; asked once, when it is due.
        lost: a function that is told of the one that would have taken longer, once there is an
            answer: whether it is the backup.

    Raises:
        RerankError: the error of the one that failed first, when both did.
    """
    running = {launch(False): False}
    failure: BaseException | None = None
    is_answered = False
    try:
        if delay is not None:
            done, _ = await asyncio.wait(running, timeout=delay)
            if not done and decide():
                running[launch(True)] = True
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del running[task]
            # All of them are asked: asyncio complains of exceptions that nobody looked at.
            failures = {task: _failure_of(task) for task in done}
            for task, error in failures.items():
                if error is None:
                    is_answered = True
                    return task.result()
                failure = failure or error
            # An error holds this frame: none of these names may hold the error.
            del done, task, error, failures
    finally:
        for task, is_backup in running.items():
            task.cancel()
            if is_answered:
                lost(is_backup)
        if running:
            await asyncio.gather(*running, return_exceptions=True)
    assert failure is not None
    try:
        raise failure
    finally:
        del failure


def cancelled_from_outside() -> TransportError:
    """The error of an exchange that somebody who is not its call has cancelled."""
    return TransportError("an exchange was cancelled from outside the call")


def _failure_of(task: asyncio.Task[T]) -> BaseException | None:
    if task.cancelled():
        return cancelled_from_outside()
    return task.exception()
