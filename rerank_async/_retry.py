"""tenacity, driven by a `RetryPolicy`: the only file that knows it.

tenacity counts and sleeps; `_policy` decides; the clock and the dice come from the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import tenacity
from tenacity import AsyncRetrying, RetryCallState

from rerank_async._errors import RerankError
from rerank_async._policy import RetryPolicy, is_retryable, retry_delay

__all__ = ["retry"]

T = TypeVar("T")


async def retry(
    attempt: Callable[[int], Awaitable[T]],
    first_error: RerankError,
    *,
    policy: RetryPolicy,
    dice: Random,
    left: Callable[[], float | None],
    sleep: Callable[[float], Awaitable[None]],
) -> T:
    """Go on after a first attempt that failed.

    The first attempt is made by the caller, so that a call that succeeds at once pays nothing.

    Args:
        attempt: makes attempt number n (2 or more) and returns its answer or raises.
        first_error: how attempt 1 failed.
        policy: how often and how long.
        dice: where the jitter is drawn from.
        left: seconds until the call's deadline, or None.
        sleep: waits so many seconds.

    Raises:
        RerankError: the last attempt's error, when there is to be no further one.
    """
    # tenacity asks how long to wait before it asks whether to stop; one decision answers both.
    delay: float | None = None

    def wait(state: RetryCallState) -> float:
        nonlocal delay
        error = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(error, RerankError)
        delay = retry_delay(policy, error, state.attempt_number, dice.random(), left())
        return 0.0 if delay is None else delay

    def stop(state: RetryCallState) -> bool:
        return delay is None

    # Handed on, not kept: an error's traceback holds the frames it came through.
    failed = [first_error]
    del first_error
    number = 0

    async def numbered() -> T:
        nonlocal number
        number += 1
        if failed:
            raise failed.pop()
        return await attempt(number)

    # One object for each call: tenacity keeps the state of a call on it.
    retrying = AsyncRetrying(
        sleep=sleep,
        stop=stop,
        wait=wait,
        retry=tenacity.retry_if_exception(is_retryable),
        reraise=True,
    )
    try:
        return await retrying(numbered)
    finally:
        # The closures, tenacity's state and the errors' tracebacks hold one another, and with them
        # bodies and documents; cut here, they go at once and not when the collector comes by.
        del retrying
