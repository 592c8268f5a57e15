"""Budgets: how many more requests than calls a client may send, so that it never feeds an outage.

A line belongs here when it counts tokens that pay for extra requests.
"""

from __future__ import annotations

from math import inf

__all__ = ["HEDGE_COST", "RETRY_COST", "THROTTLE_COST", "Allowance", "RetryBudget"]

# The figures of AWS's standard retry mode, 2026: a full bucket pays for 35 retries; a client whose
# calls fail now and then never notices it, and one whose calls all fail soon sends each once.
CAPACITY = 500
RETRY_COST = 14
# Cheaper, because the server itself asked to come back.
THROTTLE_COST = 5
HEDGE_COST = RETRY_COST

# An empty budget is full again after so many seconds without any success: what was spent in an
# outage says nothing about the next one. It is slow enough to feed none: one retry in 17 s.
_REFILL = 600.0

_MOST_SAVED = 10.0


class RetryBudget:
    """A bucket of tokens that pays for retries and hedges, filled by success.

    A request that succeeds at its first attempt adds one token; one that succeeds after retries
    gives back what its last retry cost; one that fails gives nothing back.
    Time fills it as well, evenly within ten minutes.

    Args:
        capacity: tokens it holds at most, and at first; None means that nothing is ever refused.

    Attributes:
        is_full: whether adding to it changes nothing.
    """

    __slots__ = ("_at", "_capacity", "_part", "_tokens", "is_full")

    def __init__(self, capacity: int | None = CAPACITY) -> None:
        self._capacity = capacity
        self._tokens = 0 if capacity is None else capacity
        # Up to when time has filled it, and the part of a token that it has gained by then.
        self._at = -inf
        self._part = 0.0
        self.is_full: bool = True

    def left(self, now: float) -> int | None:
        """What is in it now; None where nothing is counted."""
        if self._capacity is None:
            return None
        self._fill(now, self._capacity)
        return self._tokens

    def take(self, now: float, cost: int) -> bool:
        """Pay for one more request; False, and nothing is taken, when there is not enough."""
        if self._capacity is None:
            return True
        self._fill(now, self._capacity)
        if self._tokens < cost:
            return False
        self._tokens -= cost
        self.is_full = self._tokens == self._capacity
        return True

    def add(self, tokens: int = 1) -> None:
        """Put tokens in, up to the capacity."""
        if self._capacity is not None:
            self._tokens = min(self._capacity, self._tokens + tokens)
            self.is_full = self._tokens == self._capacity

    def _fill(self, now: float, capacity: int) -> None:
        # While it is full no time is saved up.
        if self.is_full:
            self._part = 0.0
        elif now > self._at:
            self._part += capacity * min(1.0, (now - self._at) / _REFILL)
            # A hair less than one is one: the clock's reading is rounded.
            gained = int(self._part + 1e-4)
            self._part -= gained
            self.add(gained)
        else:
            return
        self._at = now


class Allowance:
    """A share of the requests that may be sent a second time.

    At most ten are saved up, so that a quiet hour does not pay for a burst.
    """

    __slots__ = ("_saved",)

    def __init__(self) -> None:
        self._saved = 0.0

    def earn(self, share: float) -> None:
        """One request was sent, and allows this share of an extra one."""
        self._saved = min(_MOST_SAVED, self._saved + share)

    def can_spend(self) -> bool:
        """Whether there is enough for one extra request."""
        # Twenty times 0.05 is a hair less than 1.
        return self._saved >= 1.0 - 1e-9

    def spend(self) -> None:
        """One extra request is sent."""
        self._saved -= 1.0
