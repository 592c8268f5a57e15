"""Rates: token buckets for requests and for tokens per minute, on a clock that is an argument.

A line belongs here when it says how soon a rate lets something through.
"""

from __future__ import annotations

from math import inf

from rerank_async._moments import rounding

__all__ = ["Bucket"]


class Bucket:
    """A token bucket: it fills evenly, and what is sent takes out of it.

    What is larger than the whole bucket goes when the bucket is full and leaves a debt, so that
    large and small wait their turn alike and the rate is kept on average.

    Args:
        per_minute: the amount that flows in per minute; the bucket is full at first.
        burst: the most that it holds; None means the fill of one second, and at least 1.
    """

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, per_minute: float, burst: float | None = None) -> None:
        self._rate = per_minute / 60.0
        self._burst = max(1.0, self._rate) if burst is None else burst
        self._level = self._burst
        self._at = -inf

    def level(self, now: float) -> float:
        """What is in it; negative while a debt is paid off."""
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
        return self._level

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` may go; 0.0 when it may go now."""
        lacking = min(amount, self._burst) - self.level(now)
        # A billionth is the rounding of many additions, and no reason to wait.
        if lacking <= 1e-9 * self._burst:
            return 0.0
        wait = lacking / self._rate
        return wait if wait > rounding(now) else 0.0

    def take(self, now: float, amount: float) -> None:
        """`amount` goes."""
        self._level = self.level(now) - amount

    def settle(self, now: float, difference: float) -> None:
        """Take `difference` more (or give back, where it is negative): an estimate was wrong.

        This makes no debt of more than a minute: the figures are a stranger's.
        """
        level = self.level(now)
        lowest = min(level, -60.0 * self._rate)
        self._level = min(self._burst, max(lowest, level - difference))

    def correct(self, now: float, remaining: float) -> None:
        """The server says that no more than `remaining` is left."""
        self._level = min(self.level(now), remaining)
