"""Which load is held next, by what came of those before. Pure.

A search doubles the load until more does not help, then looks once between the neighbours of the
best: so it takes few levels, whatever the server.
A line belongs here when it decides about the next load.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log2

from rerank_async._moments import GRAIN
from rerank_async.bench._arrivals import Loads
from rerank_async.bench._knee import best_of
from rerank_async.bench._result import Level
from rerank_async.bench._verdict import failed_share, keeps_up

__all__ = ["first_rate", "next_load"]

_LEAST_GROWTH = 0.05
_MOST_FAILED = 0.10
# A rate is found to about a seventh.
_CLOSE = 1.15


def first_rate(seconds: float) -> float:
    """Where a search for a rate begins: what one request after another would make, or a bit less.

    Args:
        seconds: the seconds that the first request took.
    """
    # Exactly a half, or a hair more than that, is two a second.
    return 2.0 ** floor(log2(min(1024.0, max(1.0, 1.0 / max(seconds - GRAIN, GRAIN)))))


def next_load(loads: Loads, done: Sequence[Level]) -> float | None:
    """The load to hold next; None when there is none.

    Args:
        loads: what was asked for.
        done: the levels so far, in the order in which they were held.
    """
    if not loads.is_search:
        return loads.values[len(done)] if len(done) < len(loads.values) else None
    low, high = loads.values
    climb = _steps(low, high)
    climbed = list(done[: len(climb)])
    for place in range(len(climbed)):
        if _is_enough(climbed[: place + 1]):
            # What came after it was held for a closer look.
            climbed = climbed[: place + 1]
            break
    else:
        if len(climbed) < len(climb):
            return climb[len(climbed)]
    return _between_rates(done) if loads.mode == "open" else _between_numbers(climbed, done)


def _steps(low: float, high: float) -> list[float]:
    steps = []
    while low < high:
        steps.append(low)
        low *= 2
    return [*steps, high]


def _is_enough(climbed: Sequence[Level]) -> bool:
    """Whether the last level says that a higher load is no use."""
    last = climbed[-1]
    if last.mode == "open":
        return not keeps_up(last)
    if failed_share(last) > _MOST_FAILED:
        return True
    if len(climbed) < 3:
        return False
    first, second, third = (level.requests_per_s for level in climbed[-3:])
    return second < first * (1 + _LEAST_GROWTH) and third < second * (1 + _LEAST_GROWTH)


def _between_numbers(climbed: Sequence[Level], done: Sequence[Level]) -> float | None:
    """The middles between the best level and its neighbours, each once."""
    place = best_of(climbed)
    if place is None:
        return None
    held = {level.load for level in done}
    best = climbed[place].load
    for other in (climbed[place - 1 : place], climbed[place + 1 : place + 2]):
        for neighbour in other:
            middle = float((neighbour.load + best) // 2)
            if middle not in held:
                return middle
    return None


def _between_rates(done: Sequence[Level]) -> float | None:
    """The middle between the highest rate that was kept up with and the lowest that was not."""
    kept = [level.load for level in done if keeps_up(level)]
    lost = [level.load for level in done if not keeps_up(level)]
    if not kept or not lost or min(lost) <= max(kept) * _CLOSE:
        return None
    return (max(kept) + min(lost)) / 2
