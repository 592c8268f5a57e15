"""A job's limit of tokens, kept although nobody knows what is on the wire before it is answered.

A line belongs here when it decides whether one more row can be paid for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Spending"]


class Spending:
    """What is spent, and what is set aside for the requests under way.

    Args:
        most: the number of tokens that the job may cost; None when there is no limit.
        spent: a function that returns the number of tokens that the job has cost so far.
    """

    def __init__(self, most: int | None, spent: Callable[[], int]) -> None:
        self._most = most
        self._spent = spent
        self._set_aside = self._under_way = 0
        # What rows cost by our estimate and by the server's word, to compare the two.
        self._estimated = self._said = 0
        self._is_over = False
        self._changed = asyncio.Event()

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit; without one nobody need estimate."""
        return self._most is not None

    async def can_afford(self, estimate: int) -> bool:
        """Whether there is enough left for one more row.

        Waits while the answers to requests under way may tell. After `end` the answer is no.

        Args:
            estimate: the number of tokens that the row costs by our estimate.
        """
        while self._most is not None and not self._fits(estimate):
            if not self._under_way:
                return False
            self._changed.clear()
            await self._changed.wait()
            if self._is_over:
                return False
        return True

    def _fits(self, estimate: int) -> bool:
        assert self._most is not None
        ratio = self._said / self._estimated if self._estimated else 1.0
        return self._spent() + (self._set_aside + estimate) * ratio <= self._most

    def set_aside(self, estimate: int) -> None:
        """Count a request that is handed to the session."""
        self._set_aside += estimate
        self._under_way += 1

    def settle(self, estimate: int) -> None:
        """Count a request that is over; what it cost is in `spent` by now, or soon."""
        self._set_aside -= estimate
        self._under_way -= 1
        self._changed.set()

    def compare(self, estimate: int, said: int | None) -> None:
        """Learn how estimates compare with the server's word, where it says what a row cost."""
        if said is not None and estimate:
            self._said += said
            self._estimated += estimate

    def end(self) -> None:
        """Let nobody wait any more: the job stops."""
        self._is_over = True
        self._changed.set()
