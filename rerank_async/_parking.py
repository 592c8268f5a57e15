"""Waiting out an outage: of all requests that are parked, one at a time asks the server.

The waiting is here; how long each wait is, and when a request gives up, is decided in
`_flow.outage`, and the clock and the dice are the caller's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from rerank_async._errors import RerankError
from rerank_async._flow.control import Origin
from rerank_async._flow.outage import Outage
from rerank_async._policy import is_outage, is_throttle

__all__ = ["wait_out"]

T = TypeVar("T")


async def wait_out(
    attempt: Callable[[int], Awaitable[T]],
    error: RerankError,
    number: int,
    *,
    origin: Origin,
    patience: float,
    attempts: int,
    now: Callable[[], float],
    draw: Callable[[], float],
    is_wanted: Callable[[], bool],
    pause: Callable[[int, float, RerankError], Awaitable[None]],
) -> T:
    """Stay parked until the server answers somebody, then go on.

    Args:
        attempt: a function that makes attempt number n and returns its answer or raises.
        error: the error of the last attempt.
        number: the number of that attempt.
        origin: what all requests know of the server.
        patience: seconds for which an outage is waited out.
        attempts: attempts that may fail while others are answered.
        now: a function that reads the clock, in seconds.
        draw: a function that draws a number evenly from [0, 1).
        is_wanted: a function that says whether anybody still waits for the answer.
        pause: a function that is told the error of attempt number n, and waits so many seconds
            before the next.

    Raises:
        RerankError: the last attempt's error, when the patience is over; or another failure than
            an outage.
    """
    began = now()
    since = origin.downtime.parked(began)
    if not origin.was_reached:
        # Attempts that fail slowly are part of the wait.
        since = min(since, origin.downtime.since)
    outage = Outage(began, patience, attempts, since=since)

    async def ask_again(failures: int) -> T:
        delay = (
            outage.wait(now(), failures, draw(), reached=origin.was_reached) if failures else 0.0
        )
        await pause(number - 1, delay, error)
        return await attempt(number)

    while is_wanted() and not outage.gives_up(now(), reached=origin.was_reached):
        is_back = False
        number += 1
        try:
            async with origin.probing:
                if outage.gives_up(now(), reached=origin.was_reached):
                    break
                if not outage.is_news(origin.answered_at):
                    return await ask_again(origin.probes)
            # Nobody has to ask alone any more.
            is_back = True
            outage.hear(now())
            return await ask_again(outage.failures + 1)
        except RerankError as again:
            if not is_outage(again):
                raise
            error = again.with_traceback(None)
        if is_back:
            outage.failed(throttled=is_throttle(error))
        else:
            origin.probes += 1
    if not origin.was_reached:
        error.context = (
            f"{error.context}; given up: in {now() - since:.0f} s this server was not reached once"
        )
    raise error
