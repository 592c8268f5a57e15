"""Outages: how often one who is parked asks whether the server is back, and when it gives up.

A line belongs here when it says how long a parked request waits; who waits and asks is `_parcel`.
"""

from __future__ import annotations

__all__ = ["Outage"]

# Nobody who asks whether a server is back waits for longer than so many seconds.
_LONGEST_WAIT = 30.0


class Outage:
    """One parked request's patience.

    As long as the server answers nobody, the patience alone counts.
    Once it answers others, a request that fails has itself to blame in the end, and has its
    attempts anew; unless the server only asks it to come back.

    Args:
        now: the time.
        patience: seconds after which it gives up.
        attempts: that may fail while others are answered.
    """

    __slots__ = ("_attempts", "_heard", "_misses", "_throttles", "_until")

    def __init__(self, now: float, patience: float, attempts: int) -> None:
        self._until = now + patience
        # Answers after this time are news.
        self._heard = now
        self._attempts = attempts
        self._misses = self._throttles = 0

    @property
    def failures(self) -> int:
        """Attempts that failed while others were answered."""
        return self._misses + self._throttles

    def gives_up(self, now: float) -> bool:
        """Whether there is to be no further attempt."""
        return now >= self._until or self._misses >= self._attempts

    def is_news(self, answered_at: float) -> bool:
        """Whether an answer to somebody, at that time, says that the server is back."""
        return answered_at > self._heard

    def hear(self, now: float) -> None:
        """The news were heard: what is answered from now on is news again."""
        self._heard = now

    def failed(self, *, throttled: bool) -> None:
        """An attempt failed while others were answered; it counts unless it was throttled."""
        if throttled:
            self._throttles += 1
        else:
            self._misses += 1

    def wait(self, now: float, failures: int, draw: float) -> float:
        """Seconds to wait before the next attempt, never beyond the end of the patience.

        Args:
            now: the time.
            failures: how often it was asked in vain; the wait doubles with each.
            draw: a number drawn evenly from [0, 1).
        """
        if not failures:
            return 0.0
        # 2.0 ** 1024 would overflow; the longest wait is reached long before.
        longest = min(_LONGEST_WAIT, 2.0 ** min(failures - 1, 10))
        return min(draw * longest, max(0.0, self._until - now))
