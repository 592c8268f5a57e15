"""What a response's headers say about load: when to come back, and how much is left.

Headers are strangers' text: what makes no sense is no hint.
A line belongs here when it reads a header that slows the client down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["exhausted_for", "remaining", "retry_after"]

_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?", re.ASCII)
# So many seconds are thirty thousand years: no longer hint says more.
_FOREVER = 1e12
# How much is left, by any server that is meant seriously.
_COUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{0,9})?", re.ASCII)
# One policy's state in the IETF's field: `"name";r=0;t=55`, or `remaining=0, reset=55` in drafts.
_LEFT = re.compile(r"(?:^|[\s;,])r(?:emaining)?=([0-9]{1,12})(?![0-9.])", re.ASCII)
_RESET = re.compile(r"(?:^|[\s;,])(?:t|reset)=([0-9]{1,12})(?![0-9.])", re.ASCII)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The server's hint in seconds from now, or None where it gave none that makes sense.

    Read in turn: `retry-after-ms` in milliseconds, `Retry-After` in seconds, `Retry-After` as an
    HTTP date, counted from the server's own `Date` header so that a clock that is off does no harm.
    However long the time is, it is a hint, if one that nobody waits for; it is cut to 1e12 seconds.
    Anything else (negative, not finite, other digits than 0 to 9, a date that has passed or that
    HTTP cannot write) is no hint.

    Args:
        headers: the response's headers, looked up in lower case.
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


def remaining(headers: Mapping[str, str], what: str) -> float | None:
    """How much is left by `x-ratelimit-remaining-requests` or `-tokens`; None where not said.

    Args:
        headers: the response's headers, looked up in lower case.
        what: "requests" or "tokens".
    """
    value = headers.get(f"x-ratelimit-remaining-{what}")
    return None if value is None or not _COUNT.fullmatch(value.strip(" \t")) else float(value)


def exhausted_for(headers: Mapping[str, str]) -> float | None:
    """Seconds until there is quota again, by the IETF's `RateLimit` field; None where some is left.

    The field is `"name";r=0;t=55`, several policies apart by commas; older drafts write
    `remaining=0, reset=55`.
    `x-ratelimit-reset-*` is not read: it is a Unix time with some servers, a duration with others,
    and of those some mean the time until everything is back.
    """
    field = headers.get("ratelimit")
    if field is None:
        return None
    # A draft's field has commas within its one policy.
    policies = field.split(",") if '"' in field or "r=" in field.split(",", 1)[0] else [field]
    longest = 0
    for policy in policies:
        left, reset = _LEFT.search(policy), _RESET.search(policy)
        if left is not None and reset is not None and int(left[1]) == 0:
            longest = max(longest, int(reset[1]))
    return float(longest) or None


def _number(value: str | None) -> float | None:
    if value is None or not _NUMBER.fullmatch(value.strip(" \t")):
        return None
    return min(float(value), _FOREVER)


def _date(value: str | None) -> float | None:
    if value is None or not value.isascii():
        return None
    try:
        moment = parsedate_to_datetime(value)
        # A date without an offset is in UTC: HTTP knows no other.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
