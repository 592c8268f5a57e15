"""Best first: the one order in which results stand.

A line belongs here when it says in which order scores are; which of two equal ones goes first is
said by whoever asks, by the order in which the places are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["best_first"]


def best_first(scores: Sequence[float], places: Iterable[int] | None = None) -> list[int]:
    """The places of scores, from the highest score to the lowest.

    Equal scores keep the order in which their places are given: the sort is stable.

    Args:
        scores: one for each place.
        places: the places to put in order; None means all of them, from 0.
    """
    chosen = range(len(scores)) if places is None else places
    # `reverse` keeps the order of equal ones, too.
    return sorted(chosen, key=scores.__getitem__, reverse=True)
