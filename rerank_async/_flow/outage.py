"""Outages: how often one who is parked asks whether the server is back, and when it gives up.

A line belongs here when it says how long a parked request waits; who waits and asks is `_parcel`.
"""

from __future__ import annotations

from math import inf

from rerank_async._moments import GRAIN

__all__ = ["NEVER_REACHED", "Downtime", "Outage"]

# Nobody who asks whether a server is back waits for longer than so many seconds.
_LONGEST_WAIT = 30.0

NEVER_REACHED = 10.0
"""Seconds for which a server is asked for that was never reached: no such name, nobody who listens.

More often than by an outage that is so by a misspelt address, and no patience mends it; a server
that is started together with its client needs some seconds."""

# Failures that are so many seconds apart belong to two outages, or nobody knows that it was one:
# more than lies between two attempts of one who is parked.
_FORGOTTEN = 120.0


class Downtime:
    """What is known of one server's outage; there is one as long as failures follow no answer.

    An outage is the server's, and is waited out once: whoever meets it later waits for what is left
    of the patience, and once that is over, not at all.

    Attributes:
        since: the moment of the first failed attempt since the last answer.
        problem: the way in which the last attempt failed, in words.
        reached: whether any attempt came as far as the server.
    """

    __slots__ = ("_failed_at", "_parked_at", "problem", "reached", "since")

    def __init__(self) -> None:
        self.since: float = -inf
        self._failed_at = self._parked_at = -inf
        self.problem: str = ""
        self.reached: bool = False

    def failed(self, now: float, answered_at: float, problem: str, *, reached: bool) -> None:
        """Note an attempt that failed as in an outage.

        Args:
            now: the time.
            answered_at: the moment at which the server last answered somebody as it should.
            problem: the way in which the attempt failed, in words.
            reached: whether it came as far as the server.
        """
        if self.since <= answered_at or now - self._failed_at > _FORGOTTEN + GRAIN:
            self.since = now
        self._failed_at, self.problem = now, problem
        self.reached = self.reached or reached

    def lasts(self, now: float, answered_at: float) -> float:
        """Seconds since the first failure; 0.0 where an answer came after it."""
        return now - self.since if self.since > answered_at else 0.0

    def parked(self, now: float) -> float:
        """When the first request was parked in this outage: now, where it is this one."""
        if self._parked_at < self.since:
            self._parked_at = now
        return self._parked_at


class Outage:
    """One parked request's patience.

    As long as the server answers nobody, the patience alone counts.
    Once it answers others, a request that fails has itself to blame in the end, and has its
    attempts anew; unless the server only asks it to come back.

    Args:
        now: the time.
        patience: seconds after which it gives up.
        attempts: the number of attempts that may fail while others are answered.
        since: the moment at which the first request was parked in this outage; None: now.
    """

    __slots__ = ("_attempts", "_heard", "_misses", "_patience", "_since", "_throttles")

    def __init__(
        self, now: float, patience: float, attempts: int, *, since: float | None = None
    ) -> None:
        self._since = now if since is None else since
        self._patience = patience
        # Answers after this time are news.
        self._heard = now
        self._attempts = attempts
        self._misses = self._throttles = 0

    @property
    def failures(self) -> int:
        """Attempts that failed while others were answered."""
        return self._misses + self._throttles

    def _until(self, reached: bool) -> float:
        return self._since + (self._patience if reached else min(self._patience, NEVER_REACHED))

    def gives_up(self, now: float, *, reached: bool = True) -> bool:
        """Whether there is to be no further attempt.

        Args:
            now: the time.
            reached: whether anybody ever came as far as the server.
        """
        return now >= self._until(reached) - GRAIN or self._misses >= self._attempts

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

    def wait(self, now: float, failures: int, draw: float, *, reached: bool = True) -> float:
        """Seconds to wait before the next attempt, never beyond the end of the patience.

        Args:
            now: the time.
            failures: the number of times that it was asked in vain; the wait doubles with each.
            draw: a number drawn evenly from [0, 1).
            reached: whether anybody ever came as far as the server.
        """
        if not failures:
            return 0.0
        # 2.0 ** 1024 would overflow; the longest wait is reached long before.
        longest = min(_LONGEST_WAIT, 2.0 ** min(failures - 1, 10))
        return min(draw * longest, max(0.0, self._until(reached) - now))
