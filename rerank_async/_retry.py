"""tenacity, driven by a decision that the caller hands in: the only file that knows it.

tenacity counts and sleeps; `_policy` and the budget decide; the clock and the dice are theirs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity
from tenacity import AsyncRetrying, RetryCallState

from rerank_async._errors import RerankError
from rerank_async._policy import is_retryable

__all__ = ["retry"]

T = TypeVar("T")


async def retry(
    attempt: Callable[[int], Awaitable[T]],
    first_error: RerankError,
    *,
    decide: Callable[[RerankError, int], float | None],
    sleep: Callable[[float], Awaitable[None]],
) -> T:
    """Go on after a first attempt that failed.

    The first attempt is made by the caller, so that a call that succeeds at once pays nothing.

    Args:
        attempt: a function that makes attempt number n (2 or more) and returns its answer or
            raises.
        first_error: the error of attempt 1.
        decide: a function that is told the error of the attempt that failed, and its number; it
            returns the seconds to wait before the next, or None when there is to be none. It is
            asked once for each attempt.
        sleep: a function that waits so many seconds.

    Raises:
        RerankError: the last attempt's error, when there is to be no further one.
    """
    # Emptied at the end: what decides knows the call, and tenacity's state knows what decides.
    deciding = [decide]
    del decide
    # tenacity asks how long to wait before it asks whether to stop; one decision answers both.
    delay: float | None = None

    def wait(state: RetryCallState) -> float:
        nonlocal delay
        error = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(error, RerankError)
        delay = deciding[0](error, state.attempt_number)
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
        deciding.clear()
        del retrying
