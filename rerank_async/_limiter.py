"""Slots: how many exchanges are on the wire at once, for all calls of one session, and the counts.

A slot is held for one attempt, never while a retry waits.
A line belongs here when it decides who may send now, or counts what was sent.
"""

from __future__ import annotations

from asyncio import Semaphore
from types import TracebackType

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
    """Hands out slots in the order of asking, as an async context manager, and keeps the counts.

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
        self._in_flight = 0
        self._waiting = 0
        # asyncio's semaphore is fair: whoever waits longest is next.
        self._semaphore = Semaphore(concurrency.limit)

    async def __aenter__(self) -> None:
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1
        self._in_flight += 1
        self.requests += 1

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._in_flight -= 1
        self._semaphore.release()

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
