"""Retry or not, and how long to wait: arithmetic without clock, dice or waiting.

The clock's reading and the dice's are arguments, so that a policy is tested by a table.
A line belongs here when it decides about a failed attempt; who waits is `_retry`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import inf, isfinite
from typing import Any

from attrs import Attribute, field, frozen

from rerank_async._errors import (
    CertificateError,
    InvalidRequestError,
    RateLimitError,
    RerankError,
    ResponseError,
    ServerError,
    StatusError,
    TransportError,
)

__all__ = [
    "RETRIED_STATUSES",
    "RetryPolicy",
    "is_retryable",
    "is_throttle",
    "retry_after",
    "retry_delay",
]

# What passes by itself: timeouts, too much at once, a server or gateway that failed.
# 501, 505 and 511 are 5xx that do not pass; 520 to 524 are Cloudflare's, 529 means overloaded.
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 525), 529})
_THROTTLES = frozenset({429, 503, 529})

_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,9})?", re.ASCII)


def _positive(instance: object, attribute: Attribute[Any], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
        raise InvalidRequestError(
            f"{attribute.name} must be a number of seconds above 0 and not infinite, not {value!r}"
        )


def _positive_or_none(instance: object, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None:
        _positive(instance, attribute, value)


def _attempts(instance: object, attribute: Attribute[Any], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(
            f"attempts must be a whole number of at least 1, not {value!r}: 1 means no retries"
        )


@frozen
class RetryPolicy:
    """How often, and after how long, a failed attempt is made again. All times in seconds.

    The wait before attempt n + 1 is drawn evenly from 0 to `min(max_wait, base · 2^(n-1))`
    (full jitter, as in AWS's "Exponential Backoff And Jitter"), where base is `throttle_base` for
    429, 503 and 529 and `base` for every other failure.
    A server's hint (`Retry-After`) is waited for in full, plus up to a tenth, so that many clients
    do not come back in step.

    Attributes:
        attempts: at most so many per request, the first included; 1 means no retries.
        base: the first wait's upper end after a failure that may be over at once.
        throttle_base: the first wait's upper end after the server said that it has too much to do.
        max_wait: the upper end that no drawn wait exceeds.
        max_retry_after: a hint above this is not waited for: the error comes at once, with the
            hint in its `retry_after`.
        attempt_timeout: how long one attempt may take; None leaves it to the call's own timeout.

    Raises:
        InvalidRequestError: a value out of range; the message names it.
    """

    attempts: int = field(default=4, validator=_attempts)
    base: float = field(default=0.05, validator=_positive)
    throttle_base: float = field(default=1.0, validator=_positive)
    max_wait: float = field(default=20.0, validator=_positive)
    max_retry_after: float = field(default=120.0, validator=_positive)
    attempt_timeout: float | None = field(default=30.0, validator=_positive_or_none)


def is_retryable(error: BaseException) -> bool:
    """Whether another attempt could fare better. An allow-list: what is not named here is final.

    A server's `x-should-retry: true` or `false` overrides its status.
    """
    if isinstance(error, StatusError):
        told = error.headers.get("x-should-retry", "").strip().lower()
        if told in ("true", "false"):
            return told == "true"
        return error.status in RETRIED_STATUSES
    if isinstance(error, CertificateError):
        return False
    if isinstance(error, ResponseError):
        return not error.final
    return isinstance(error, TransportError)


def is_throttle(error: BaseException) -> bool:
    """Whether the server said that it has too much to do: 429, 503 or 529."""
    return isinstance(error, StatusError) and error.status in _THROTTLES


def retry_delay(
    policy: RetryPolicy, error: RerankError, attempt: int, draw: float, left: float | None
) -> float | None:
    """Seconds to wait before the next attempt, or None when there is to be none.

    Args:
        policy: the limits.
        error: how the attempt failed.
        attempt: which one failed; 1 is the first.
        draw: a number drawn evenly from [0, 1).
        left: seconds until the call's deadline; None when it has none.
    """
    if attempt >= policy.attempts or not is_retryable(error):
        return None
    base = policy.throttle_base if is_throttle(error) else policy.base
    # 2.0 ** 1024 would overflow; any max_wait is reached long before.
    delay = draw * min(policy.max_wait, base * 2.0 ** min(attempt - 1, 100))
    hint = error.retry_after if isinstance(error, (RateLimitError, ServerError)) else None
    if hint is not None:
        if hint > policy.max_retry_after:
            return None
        delay = max(delay, hint * (1.0 + draw / 10.0))
    if left is not None and delay >= left:
        # The deadline would pass while waiting: the error that is known now says more.
        return None
    return delay


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The server's hint in seconds from now, or None where it gave none that makes sense.

    Read in turn: `retry-after-ms` in milliseconds, `Retry-After` in seconds, `Retry-After` as an
    HTTP date, counted from the server's own `Date` header so that a clock that is off does no harm.
    Anything else (negative, not finite, other digits than 0 to 9, a date that has passed) is no
    hint.

    Args:
        headers: of the response, looked up in lower case.
        now: Unix time, used where the response has no `Date`.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return seconds
    then = _date(value)
    if then is None:
        return None
    served = _date(headers.get("date"))
    wait = then - (now if served is None else served)
    return wait if wait > 0.0 else None


def _number(value: str | None) -> float | None:
    if value is None or not _NUMBER.fullmatch(value.strip(" \t")):
        return None
    number = float(value)
    return number if isfinite(number) else None


def _date(value: str | None) -> float | None:
    if value is None or not value.isascii():
        return None
    try:
        moment = parsedate_to_datetime(value)
        # A date without an offset is in UTC: HTTP knows no other.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
