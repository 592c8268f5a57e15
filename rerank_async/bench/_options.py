"""What a benchmark can be told, checked as soon as it is said.

A line belongs here when it says what an option may be.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from attrs import field, frozen

from rerank_async._errors import InvalidRequestError
from rerank_async._paths import local_path
from rerank_async.bench._arrivals import (
    MOST_CONCURRENCY,
    Arrivals,
    Loads,
    parse_concurrency,
    parse_rate,
)
from rerank_async.bench._workload import parse_sizes

__all__ = ["BenchOptions", "parse_duration", "parse_goodput"]

# A histogram holds up to an hour, and nothing takes longer than its timeout.
_LONGEST_TIMEOUT = 3600.0
_LONGEST = 7 * 24 * 3600.0
_MOST_REQUESTS = 100_000_000

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|min|m|h|)")
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_PERCENTILE = re.compile(r"p?([0-9]{1,2}(?:\.[0-9]{1,3})?)")


def parse_duration(name: str, text: str | float) -> float:
    """Seconds of `500ms`, `1.5s`, `2min`, `1h`, or of a number of seconds.

    Raises:
        InvalidRequestError: it is no such time; the message begins with `name`.
    """
    match = _DURATION.fullmatch(str(text).strip().lower().replace(" ", ""))
    if match is None:
        raise InvalidRequestError(f"{name} must be a time like 500ms, 1.5s or 2min, not {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def parse_goodput(text: str) -> tuple[float, float]:
    """The percentile and the milliseconds of `p99:500ms`.

    Raises:
        InvalidRequestError: it is not like that.
    """
    share, colon, time = text.strip().lower().partition(":")
    match = _PERCENTILE.fullmatch(share)
    if not colon or match is None or not 0 < float(match[1]) < 100:
        raise InvalidRequestError(f"goodput must be like p99:500ms, not {text!r}")
    within = parse_duration("goodput", time) * 1000.0
    if not within > 0:
        raise InvalidRequestError(f"goodput must have a time above 0, not {text!r}")
    return float(match[1]), within


def _checked_seconds(name: str, value: str | float, least: float, most: float) -> float:
    seconds = parse_duration(name, value)
    if not least <= seconds <= most:
        raise InvalidRequestError(
            f"{name} must be from {least:g} to {most:,.0f} seconds, not {value}"
        )
    return seconds


def _as_duration(value: str | float | None) -> float | None:
    return None if value is None else _checked_seconds("duration", value, 0.1, _LONGEST)


def _as_warm_up(value: str | float) -> float:
    return _checked_seconds("warm_up", value, 0.0, _LONGEST)


def _as_timeout(value: str | float) -> float:
    return _checked_seconds("timeout", value, 0.001, _LONGEST_TIMEOUT)


def _check_whole(name: str, value: int | None, most: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidRequestError(
            f"{name} must be a whole number from 1 to {most:,}, not {value!r}"
        )


def _as_requests(name: str | PathLike[str] | None) -> Path | None:
    return None if name is None else local_path("requests", name)


@frozen(kw_only=True)
class BenchOptions:
    """What is asked, how hard and for how long. The words are those of the command line.

    Attributes:
        concurrency: the requests at once of a closed loop: `16`, `1,2,4,8`, `1-64` or `auto`. None
            where there is a `rate`; 16 where neither is given.
        rate: the requests/s of an open loop: `50`, `10,20,40`, `10-1000` or `auto`. None for a
            closed loop.
        arrivals: the way in which requests of an open loop are spread: "poisson", each independent
            of the others, or "constant", at equal distances.
        duration: the time that each load is measured for, in seconds or as in `500ms`; 10 s where
            `count` is not given either.
        count: requests that are measured at each load, in place of `duration`.
        warm_up: the time before that, in seconds or as in `500ms`; its requests do not count.
        timeout: the time that a request may take, its retries included, in seconds or as in
            `500ms`.
        attempts: HTTP requests for one, at most; 1 means that what fails has failed, and that the
            server's `Retry-After` changes nothing about the load.
        max_in_flight: the requests at once from which on others wait, for an open loop.
        documents: the number of documents in a request, in the grammar of `_workload`.
        document_words: the number of words in a document, in the same grammar.
        query_words: the number of words in a query, in the same grammar.
        requests: a file of requests to send instead of made ones, `-` for standard input.
        top_n: results to ask for; None asks for all.
        seed: the seed of all that is drawn.
        goodput: what counts as answered in time, as in `p99:500ms`; None for no such figure.
        name: the name of the run, for a person; empty for none.

    Raises:
        InvalidRequestError: an option that cannot work; the message begins with its name.
    """

    concurrency: str | int | None = None
    rate: str | float | None = None
    arrivals: Arrivals = "poisson"
    duration: float | None = field(default=None, converter=_as_duration)
    count: int | None = None
    warm_up: float = field(default=2.0, converter=_as_warm_up)
    timeout: float = field(default=30.0, converter=_as_timeout)
    attempts: int = 1
    max_in_flight: int = 10_000
    documents: str = "20"
    document_words: str = "100"
    query_words: str = "10"
    requests: Path | None = field(default=None, converter=_as_requests)
    top_n: int | None = None
    seed: int = 0
    goodput: str | None = None
    name: str = ""

    def __attrs_post_init__(self) -> None:
        if self.concurrency is not None and self.rate is not None:
            raise InvalidRequestError(
                "concurrency and rate exclude each other: one is of a closed loop, one of an open"
            )
        if self.duration is not None and self.count is not None:
            raise InvalidRequestError("duration and count exclude each other")
        if self.arrivals not in ("constant", "poisson"):
            raise InvalidRequestError(
                f'arrivals must be "constant" or "poisson", not {self.arrivals!r}'
            )
        _check_whole("count", self.count, _MOST_REQUESTS)
        _check_whole("attempts", self.attempts, 100)
        _check_whole("max_in_flight", self.max_in_flight, MOST_CONCURRENCY)
        _check_whole("top_n", self.top_n, 1_000_000)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidRequestError(f"seed must be a whole number from 0, not {self.seed!r}")
        # Whatever they mean is made of them later; what they cannot mean is said now.
        self.loads()
        self.target()
        for name in ("documents", "document_words", "query_words"):
            parse_sizes(name, getattr(self, name))

    def loads(self) -> Loads:
        """The loads to hold."""
        if self.rate is not None:
            return parse_rate(self.rate)
        return parse_concurrency(16 if self.concurrency is None else self.concurrency)

    def target(self) -> tuple[float, float] | None:
        """Of goodput: the percentile and the milliseconds; None where none is asked for."""
        return None if self.goodput is None else parse_goodput(self.goodput)
