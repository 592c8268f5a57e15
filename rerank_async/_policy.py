"""Retry or not, and how long to wait: arithmetic without clock, dice or waiting.

The clock's reading and the dice's are arguments, so that a policy is tested by a table.
A line belongs here when it decides about a failed attempt; who waits is `_retry`.
"""

from __future__ import annotations

import re
from math import inf
from typing import Any, Literal, TypeAlias

from attrs import Attribute, field, frozen

from rerank_async._errors import (
    CertificateError,
    InvalidRequestError,
    Meaning,
    RequestTimeoutError,
    RerankError,
    ResponseError,
    StatusError,
    TransportError,
)
from rerank_async._flow import Ending
from rerank_async._moments import GRAIN

__all__ = [
    "RETRIED_STATUSES",
    "HedgePolicy",
    "Refusal",
    "RetryPolicy",
    "ending_of",
    "is_outage",
    "is_retryable",
    "is_throttle",
    "refusal_of",
    "retry_delay",
]

# What passes by itself: timeouts, too much at once, a server or gateway that failed.
# 501, 505 and 511 are 5xx that do not pass; 520 to 524 are Cloudflare's, 529 means overloaded.
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 525), 529})
_THROTTLES = frozenset({429, 503, 529})
_GATEWAY_TIMEOUTS = frozenset({408, 504, 524})

# How servers say that there are too many documents in a request, and that it is too long. What they
# say of one document or of the query is neither, unless it comes with a number of tokens.
_DOCUMENTS = (
    r"(?:documents|texts|inputs|passages|sentences|items|pairs|records|sources|candidates|elements"
    r"|element\(s)\b"
)
_TOO_MANY = re.compile(
    rf"too many (?:\w+ )?{_DOCUMENTS}|number of (?:\w+ )?{_DOCUMENTS}"
    # llama.cpp's physical batch is one of tokens.
    r"|^(?!.*physical batch).*\bbatch[ _]size"
    r"|\b(?:document|text|input|passage|sentence|item|pair|record|source)s?[ _](?:count|limit)\b"
    rf"|(?:at most|more than|up to|max\w*|limit\w*|exceed\w*|<=?)(?: \w+)?[ :]*[\d,_]+ {_DOCUMENTS}"
    rf"|\bmax(?:imum)?[ _](?:allowed[ _])?{_DOCUMENTS}"
    # A JSON array that is longer than its schema allows.
    r"|array\W{0,2} (?:too long|of length <=|with maximum length)",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"too many (?:\w+ )?tokens|tokens?\W.{0,80}(?:exceed|limit|maximum|more than)"
    r"|(?:exceed|limit|\bmax|(?:more|less|longer) than).{0,80}\btokens?"
    r"|context (?:length|size|window)|too (?:long|large|big)"
    r"|\b(?:payload|body|request)\b.{0,20} (?:size|length)\b.{0,40}(?:exceed|limit|max|larger)"
    r"|(?:exceed|limit|\bmax).{0,40}\b(?:[\d.]+ ?[KMG]i?B|bytes)\b",
    re.IGNORECASE,
)
# Words that may fit the above, and are about what smaller requests would not change.
_ELSEWHERE = re.compile(
    r"\btop_?[nk]\b|^(?=.*\bquery\b)(?!.*\b(?:document|text|input|passage|sentence|item|pair))",
    re.IGNORECASE,
)


def _positive_seconds(instance: object, attribute: Attribute[Any], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
        raise InvalidRequestError(
            f"{attribute.name} must be a number of seconds above 0 and not infinite, not {value!r}"
        )


def _positive_seconds_or_none(
    instance: object, attribute: Attribute[Any], value: float | None
) -> None:
    if value is not None:
        _positive_seconds(instance, attribute, value)


def _count(instance: object, attribute: Attribute[Any], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(
            f"{attribute.name} must be a whole number of at least 1, not {value!r}"
            + (": 1 means no retries" if attribute.name == "attempts" else "")
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
        attempts: the most attempts per request, the first included; 1 means no retries.
        base: the first wait's upper end after a failure that may be over at once.
        throttle_base: the first wait's upper end after the server said that it has too much to do.
        max_wait: the upper end that no drawn wait exceeds.
        max_retry_after: a hint above this is not waited for: the error comes at once, with the
            hint in its `retry_after`.
        attempt_timeout: the longest time that one attempt may take; None leaves it to the call's
            own timeout.
        max_outage: the longest time for which requests may be parked because the server is down, or
            throttles them again and again; for work that nobody waits for. None means not at all:
            with its attempts or the retry budget used up a request fails. Of those that are parked
            one at a time asks whether the server is back; hints of up to that length are waited
            for. An outage is waited out once: whoever is parked later waits for what is left. A
            server that was never reached is given up after 10 s. Use it with `timeout=None`.

    Raises:
        InvalidRequestError: a value out of range; the message names it.
    """

    attempts: int = field(default=4, validator=_count)
    base: float = field(default=0.05, validator=_positive_seconds)
    throttle_base: float = field(default=1.0, validator=_positive_seconds)
    max_wait: float = field(default=20.0, validator=_positive_seconds)
    max_retry_after: float = field(default=120.0, validator=_positive_seconds)
    attempt_timeout: float | None = field(default=30.0, validator=_positive_seconds_or_none)
    max_outage: float | None = field(default=None, validator=_positive_seconds_or_none)

    @property
    def longest_hint(self) -> float:
        """The longest hint, in seconds, that is waited for."""
        return max(self.max_retry_after, self.max_outage or 0.0)


def _share(instance: object, attribute: Attribute[Any], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise InvalidRequestError(
            f"{attribute.name} must be a number between 0 and 1, not {value!r}"
        )


@frozen
class HedgePolicy:
    """When a request that takes long is sent a second time; the first valid answer counts.

    For interactive use: it trades a few more requests for fewer slow calls.
    The backup goes only if a slot is free without waiting, the retry budget can pay for it, the
    server has not throttled lately and the deadline leaves time for it.
    After Dean and Barroso, "The Tail at Scale", 2013, and Finagle's `BackupRequestFilter`.

    Attributes:
        percentile: a backup is sent once a request takes longer than this share of the requests
            with about as many documents did in the last 30 s.
        min_delay: the least time before a backup is sent, in seconds.
        max_extra: backups per request, on average, at most.
        min_samples: the number of such requests that must be known before any backup is sent.
        quiet: seconds without a throttle that must have passed.

    Raises:
        InvalidRequestError: a value out of range; the message names it.
    """

    percentile: float = field(default=0.95, validator=_share)
    min_delay: float = field(default=0.05, validator=_positive_seconds)
    max_extra: float = field(default=0.05, validator=_share)
    min_samples: int = field(default=50, validator=_count)
    quiet: float = field(default=10.0, validator=_positive_seconds)


def is_retryable(error: BaseException) -> bool:
    """Whether another attempt could fare better. An allow-list: what is not named here is final.

    A server's `x-should-retry: true` or `false` overrides its status.
    """
    if isinstance(error, StatusError):
        told = error.headers.get("x-should-retry", "").strip().lower()
        if told in ("true", "false"):
            return told == "true"
        if error.means is not None:
            return error.condemns is None
        # A quota that is used up comes as a 429, and does not pass.
        return error.status in RETRIED_STATUSES and error.condemns is None
    if isinstance(error, ResponseError):
        return not error.final
    return isinstance(error, TransportError) and error.condemns is None


def is_throttle(error: BaseException) -> bool:
    """Whether the server said that it has too much to do: 429, 503 or 529, or by its dialect."""
    if not isinstance(error, StatusError):
        return False
    return error.status in _THROTTLES if error.means is None else error.means == "busy"


def ending_of(error: BaseException) -> Ending:
    """What a failed attempt says about load; see `Ending`."""
    if isinstance(error, RerankError) and is_throttle(error):
        return "paused" if error.retry_after else "throttled"
    if isinstance(error, RequestTimeoutError):
        return "timeout"
    if isinstance(error, StatusError):
        return "timeout" if error.status in _GATEWAY_TIMEOUTS else "other"
    if isinstance(error, TransportError) and not isinstance(error, CertificateError):
        return "reset"
    return "other"


def is_outage(error: BaseException) -> bool:
    """Whether it may be the server, or the way there, that is down for everybody."""
    if isinstance(error, StatusError):
        return is_retryable(error)
    return isinstance(error, TransportError) and is_retryable(error)


Refusal: TypeAlias = Literal["documents", "bytes", "content"]
_REFUSED_BY: dict[Meaning, Refusal] = {
    "too_many": "documents",
    "too_long": "bytes",
    "bad_request": "content",
}


def refusal_of(error: RerankError) -> Refusal | None:
    """What a server refuses about a request that smaller ones may put right.

    "documents": there are too many; "bytes": it is too long, in bytes or tokens; "content": it does
    not say, and one of the documents may be the reason. None: smaller requests would not help.
    Where the dialect knows, it decides. Otherwise 413 means that there is too much, and 400 and 422
    may mean anything: the server's words decide.
    """
    if not isinstance(error, StatusError):
        return None
    if error.means is not None:
        return _REFUSED_BY.get(error.means)
    if error.status not in (400, 413, 422):
        return None
    if error.condemns != "request":
        # It is about the model or the account.
        return None
    if error.status != 413 and _ELSEWHERE.search(error.message):
        return "content"
    if _TOO_MANY.search(error.message):
        return "documents"
    if error.status == 413 or _TOO_LONG.search(error.message):
        return "bytes"
    return "content"


def retry_delay(
    policy: RetryPolicy,
    error: RerankError,
    attempt: int,
    draw: float,
    left: float | None,
    needed: float = 0.0,
) -> float | None:
    """Seconds to wait before the next attempt, or None when there is to be none.

    Args:
        policy: the limits.
        error: the error of the attempt that failed.
        attempt: the number of that attempt; 1 is the first.
        draw: a number drawn evenly from [0, 1).
        left: seconds until the call's deadline; None when it has none.
        needed: seconds that an attempt is likely to take.
    """
    if attempt >= policy.attempts or not is_retryable(error):
        return None
    base = policy.throttle_base if is_throttle(error) else policy.base
    # 2.0 ** 1024 would overflow; any max_wait is reached long before.
    delay = draw * min(policy.max_wait, base * 2.0 ** min(attempt - 1, 100))
    hint = error.retry_after
    if hint is not None:
        if hint > policy.longest_hint:
            return None
        delay = max(delay, hint * (1.0 + draw / 10.0))
    if left is not None and delay + needed >= left - GRAIN:
        # The deadline would pass first: the error that is known now says more.
        return None
    return delay
