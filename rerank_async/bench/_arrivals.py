"""How hard, and when: which loads are held one after another, and the moments of an open loop.

Loads are written as

    16           this one
    1,2,4,8      these
    1-64         1, 2, 4 and so on up to 64, until more does not help
    auto         the same, with ends that fit most servers

A line belongs here when it says when a request is intended, or which load a word means; how loads
follow one another in a search is `_sweep`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Literal, TypeAlias

from attrs import frozen

from rerank_async._errors import InvalidRequestError

__all__ = ["Arrivals", "Loads", "arrivals", "parse_concurrency", "parse_rate"]

Arrivals: TypeAlias = Literal["constant", "poisson"]

MOST_CONCURRENCY = 100_000
MOST_RATE = 1_000_000.0
# Where a search ends that is not told: hardly a rerank server takes more.
_AUTO_CONCURRENCY = 1024
_AUTO_RATE = 100_000.0

_NUMBER = re.compile(r"[0-9]{1,7}(\.[0-9]{1,6})?")


@frozen
class Loads:
    """Loads to hold, one after another.

    Attributes:
        mode: "closed": they are requests at once; "open": requests/s.
        values: the loads, smallest first; of a search its two ends. The lower end is 0 where it is
            to be found out.
        is_search: whether to go from one end towards the other until more does not help.
    """

    mode: Literal["closed", "open"]
    values: tuple[float, ...]
    is_search: bool = False


def parse_concurrency(text: str | int) -> Loads:
    """What `--concurrency` means.

    Raises:
        InvalidRequestError: it is not in the grammar, or out of range.
    """
    loads = _parse("concurrency", "closed", str(text), _AUTO_CONCURRENCY, 1.0)
    for value in loads.values:
        if value != int(value) or not 1 <= value <= MOST_CONCURRENCY:
            raise InvalidRequestError(
                f"concurrency must be whole numbers from 1 to {MOST_CONCURRENCY:,}, not {value:g}"
            )
    return loads


def parse_rate(text: str | float) -> Loads:
    """What `--rate` means.

    Raises:
        InvalidRequestError: it is not in the grammar, or out of range.
    """
    loads = _parse("rate", "open", str(text), _AUTO_RATE, 0.0)
    for value in loads.values[1:] if loads.is_search else loads.values:
        if not 0 < value <= MOST_RATE:
            raise InvalidRequestError(
                f"rate must be above 0 and at most {MOST_RATE:,.0f}, not {value:g}"
            )
    return loads


def _parse(
    name: str, mode: Literal["closed", "open"], text: str, most: float, least: float
) -> Loads:
    text = text.strip().lower().replace(" ", "")
    if text == "auto":
        return Loads(mode, (least, most), is_search=True)
    low, dash, high = text.partition("-")
    if dash and _NUMBER.fullmatch(low) and _NUMBER.fullmatch(high):
        if not 0 < float(low) < float(high):
            raise InvalidRequestError(f"{name}: {text} must go from a smaller load to a larger one")
        return Loads(mode, (float(low), float(high)), is_search=True)
    parts = text.split(",")
    if all(map(_NUMBER.fullmatch, parts)):
        return Loads(mode, tuple(sorted({float(part) for part in parts})))
    example = "16 or 1,2,4,8 or 1-64" if mode == "closed" else "50 or 10,20,40 or 10-1000"
    raise InvalidRequestError(f"{name} must be like {example} or auto, not {text!r}")


def arrivals(rate: float, kind: Arrivals, seed: int) -> Iterator[float]:
    """When requests are intended, in seconds from the beginning; without an end.

    Args:
        rate: requests/s.
        kind: "constant": at equal distances. "poisson": each independent of the others, as those
            of many people are; they come in bunches, and a server that is fast enough on average
            has to queue them.
        seed: the seed of what is drawn.
    """
    if kind == "constant":
        # Not added up: the error would grow.
        for number in count():
            yield number / rate
    dice, moment = Random(seed), 0.0
    while True:
        moment += dice.expovariate(rate)
        yield moment
