"""Slots: how many exchanges are on the wire at once, for all calls of one session, and the counts.

A slot is held for one attempt, never while a retry waits.
A line belongs here when it decides who may send now, or counts what was sent.
"""

from __future__ import annotations

from asyncio import CancelledError, Future, get_running_loop
from collections import deque

from attrs import field, frozen

from rerank_async._errors import InvalidRequestError

__all__ = ["Concurrency", "Limiter", "Statistics"]


def _slots(instance: object, attribute: object, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(
            f"concurrency must be a whole number of at least 1, not {value!r}"
        )


@frozen
class Concurrency:
    """How many requests of one session may be on the wire at once.

    Attributes:
        limit: that number; at least 1.

    Raises:
        InvalidRequestError: the limit is below 1 or not a whole number.
    """

    limit: int = field(default=16, validator=_slots)


@frozen
class Statistics:
    """A snapshot of a session's counts since it was made.

    Attributes:
        calls: `rerank` calls begun, those of `rerank_many` included.
        requests: attempts put on the wire; a second try after a stale pooled connection is part of
            its attempt.
        retries: attempts that followed a failed one.
        throttled: answers with status 429, 503 or 529.
        in_flight: attempts on the wire now.
        waiting: attempts that wait for a slot now.
        limit: slots there are.
        documents: documents that were scored.
        tokens: the sum of the usage that servers reported; answers without it add nothing.
    """

    calls: int
    requests: int
    retries: int
    throttled: int
    in_flight: int
    waiting: int
    limit: int
    documents: int
    tokens: int


class Limiter:
    """Hands out slots in the order of asking, and keeps the counts.

    A slot is taken by `if not limiter.take(): await limiter.wait()` and must be given back by
    `give()`, whatever happens in between.
    The two steps are apart so that a slot that is free costs no coroutine.

    Args:
        concurrency: how many slots there are.
    """

    def __init__(self, concurrency: Concurrency) -> None:
        self.limit = concurrency.limit
        self.calls = 0
        self.requests = 0
        self.retries = 0
        self.throttled = 0
        self.documents = 0
        self.tokens = 0
        # A slot that is given to a waiter counts as in flight from then on, so that nobody who
        # asks later can take it before the waiter's task runs: while a slot is free, nobody waits.
        self._in_flight = 0
        self._waiting = 0
        # Those who were cancelled stay here until their turn would come.
        self._waiters: deque[Future[None]] = deque()

    def take(self) -> bool:
        """Take a slot if one is free; say whether it was taken."""
        if self._in_flight >= self.limit:
            return False
        self._in_flight += 1
        self.requests += 1
        return True

    async def wait(self) -> None:
        """Take a slot when it is this one's turn. A wait that is cancelled takes none."""
        turn = get_running_loop().create_future()
        self._waiters.append(turn)
        self._waiting += 1
        try:
            await turn
        except CancelledError:
            if turn.cancelled():
                self._waiting -= 1
            else:
                # The slot came together with the cancellation: it is the next one's.
                self.give()
            raise
        self.requests += 1

    def give(self) -> None:
        """Give a slot back: to whoever waits longest, or to the free ones."""
        self._in_flight -= 1
        while self._waiters and self._in_flight < self.limit:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                self._waiting -= 1
                self._in_flight += 1

    def statistics(self) -> Statistics:
        """The counts as they are now."""
        return Statistics(
            calls=self.calls,
            requests=self.requests,
            retries=self.retries,
            throttled=self.throttled,
            in_flight=self._in_flight,
            waiting=self._waiting,
            limit=self.limit,
            documents=self.documents,
            tokens=self.tokens,
        )
