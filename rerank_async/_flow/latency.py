"""How long answers take: percentiles over the last half minute, for chunks of similar size.

A line belongs here when it turns seconds that were measured into one that is expected.
"""

from __future__ import annotations

from collections import Counter
from math import ceil, floor, log2

from rerank_async._moments import GRAIN

__all__ = ["Latencies"]

# Three slices of ten seconds, as in Finagle's backup requests: old enough to know, young enough to
# follow.
_SLICE = 10.0
_SLICES = 3
# Bins an eighth of a doubling wide: a percentile is too high by 9 % at most.
_PER_DOUBLING = 8
_SHORTEST = 1e-6
# Put into bins together, they take less time than one by one (`benchmarks/pieces.py`, "a latency").
_BATCH = 256


class Latencies:
    """Seconds that exchanges took, by size class: 1, 2–3, 4–7, 8–15, … documents.

    What was recorded is forgotten after 20 to 30 seconds.
    """

    __slots__ = ("_classes", "_origin", "_unsorted")

    def __init__(self) -> None:
        # The slices begin when something is first recorded, whatever the clock reads then.
        self._origin: float | None = None
        # Size class → (number of the slice, bins) for the newest slices, newest last.
        self._classes: dict[int, list[tuple[int, dict[int, int]]]] = {}
        # What was recorded and not put into bins yet: most of the time nobody asks.
        self._unsorted: list[tuple[float, int, float]] = []

    def record(self, now: float, documents: int, seconds: float) -> None:
        """An exchange of so many documents took so long (or longer: it was given up then)."""
        unsorted = self._unsorted
        unsorted.append((now, documents, seconds))
        if len(unsorted) >= _BATCH:
            self._sort()

    def _sort(self) -> None:
        for now, documents, seconds in self._unsorted:
            self._put(now, documents, seconds)
        self._unsorted.clear()

    def _put(self, now: float, documents: int, seconds: float) -> None:
        number = self._slice(now)
        size = documents.bit_length()
        slices = self._classes.get(size)
        if slices is None:
            slices = self._classes[size] = []
        if not slices or slices[-1][0] != number:
            slices.append((number, {}))
            del slices[:-_SLICES]
        bins = slices[-1][1]
        place = floor(log2(seconds + _SHORTEST) * _PER_DOUBLING)
        bins[place] = bins.get(place, 0) + 1

    def _slice(self, now: float) -> int:
        if self._origin is None:
            self._origin = now
        return floor((now - self._origin + GRAIN) / _SLICE)

    def percentile(
        self, now: float, documents: int, share: float, at_least: int = 1
    ) -> float | None:
        """Seconds that a `share` of such exchanges did not exceed; None where too few are known.

        Args:
            now: the time.
            documents: the number of documents in the exchange in question.
            share: a share between 0 and 1.
            at_least: the number of times that must be known.
        """
        self._sort()
        oldest = self._slice(now) - _SLICES + 1
        bins: Counter[int] = Counter()
        for number, counted in self._classes.get(documents.bit_length(), ()):
            if number >= oldest:
                bins.update(counted)
        total = bins.total()
        if total < max(1, at_least):
            return None
        rank = max(1, ceil(share * total - 1e-9))
        for place in sorted(bins):
            rank -= bins[place]
            if rank <= 0:
                return float(2.0 ** ((place + 1) / _PER_DOUBLING))
        raise AssertionError("the rank is at most the total")
