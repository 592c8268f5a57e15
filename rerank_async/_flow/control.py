"""`FlowControl`: what sessions that talk to the same servers share, and what is known of a server.

A line belongs here when it is about who shares what; each piece has a room of its own.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from math import inf
from typing import NoReturn
from urllib.parse import urlsplit

from rerank_async._errors import InvalidRequestError
from rerank_async._flow.budget import CAPACITY, Allowance, RetryBudget
from rerank_async._flow.latency import Latencies
from rerank_async._flow.limiter import Concurrency, Limiter, RateLimit
from rerank_async._flow.outage import Downtime
from rerank_async._flow.sizes import LearnedSizes

__all__ = ["FlowControl", "Origin"]


class Origin:
    """What is known of one server, and what may be spent on it.

    Attributes:
        budget: the budget that pays for retries and hedges.
        backups: the share of requests that may be hedged.
        latencies: the times that its answers take.
        answered_at: the moment of its last answer that was as it should be, on the loop's clock.
        throttled_at: the moment at which it last said that it has too much to do.
        probing: the lock of the one parked request that asks whether the server is back.
        probes: the number of times that this was asked in vain since the last answer.
        downtime: the time since which it answers nobody, and the way in which it fails.
        sizes: what each model there takes in one request.
    """

    __slots__ = (
        "answered_at",
        "backups",
        "budget",
        "downtime",
        "latencies",
        "probes",
        "probing",
        "sizes",
        "throttled_at",
    )

    def __init__(self, retry_budget: int | None) -> None:
        self.budget: RetryBudget = RetryBudget(retry_budget)
        self.backups: Allowance = Allowance()
        self.latencies: Latencies = Latencies()
        self.answered_at: float = -inf
        self.throttled_at: float = -inf
        self.probing: asyncio.Lock = asyncio.Lock()
        self.probes: int = 0
        self.downtime: Downtime = Downtime()
        self.sizes: defaultdict[str, LearnedSizes] = defaultdict(LearnedSizes)

    @property
    def was_reached(self) -> bool:
        """Whether any attempt ever came as far as the server."""
        return self.downtime.reached or self.answered_at > -inf


class FlowControl:
    """Slots, rates, gate, retry budgets and what was learned of servers, for one session or many.

    A session makes its own; give one to several sessions, as `flow`, and they share it::

        flow = FlowControl(Concurrency.adaptive(), rate=RateLimit(requests_per_minute=1000))
        async with RerankSession(model="a", flow=flow) as first, \
                RerankSession(model="b", flow=flow) as second: ...

    It belongs to the event loop that first used it.
    There is no hidden one: sessions that are given nothing share nothing.

    Args:
        concurrency: the limit of what may be on the wire at once, over all these sessions.
        rate: the limit of what may be sent per minute, over all these sessions; None: no limit.
        retry_budget: tokens that pay for retries and hedges, one such budget for each server: a
            retry costs 14, or 5 after a throttle; a request that succeeds at once earns 1, and one
            that succeeds in the end gets its last cost back. None means that retries are not
            counted, 0 that there are none.

    Raises:
        InvalidRequestError: an argument that cannot work; the message names it.
    """

    def __init__(
        self,
        concurrency: int | Concurrency = 16,
        *,
        rate: RateLimit | None = None,
        retry_budget: int | None = CAPACITY,
    ) -> None:
        if not isinstance(concurrency, Concurrency):
            concurrency = Concurrency(concurrency)
        if rate is not None and not isinstance(rate, RateLimit):
            raise InvalidRequestError(f"rate must be a RateLimit or None, not {rate!r}")
        if retry_budget is not None and (
            isinstance(retry_budget, bool) or not isinstance(retry_budget, int) or retry_budget < 0
        ):
            raise InvalidRequestError(
                f"retry_budget must be a whole number of at least 0 or None, not {retry_budget!r}"
            )
        self.concurrency = concurrency
        self.limiter: Limiter = Limiter(concurrency, rate)
        self._retry_budget = retry_budget
        self._origins: dict[str, Origin] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a FlowControl is not pickled: it belongs to one event loop")

    def __repr__(self) -> str:
        limiter = self.limiter
        return (
            f"<FlowControl limit={limiter.limit} {limiter.in_flight} in flight "
            f"{limiter.waiting} waiting>"
        )

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to a loop from now on.

        Raises:
            InvalidRequestError: it belongs to another one.
        """
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise InvalidRequestError(
                "this FlowControl belongs to another event loop: make one for each loop"
            )

    def budget_left(self, origin: Origin) -> int | None:
        """What is in a server's retry budget now; None where nothing is counted."""
        # Without a loop there is no time, and nothing was spent.
        return origin.budget.left(-inf if self._loop is None else self._loop.time())

    def trouble(self, origin: Origin) -> tuple[float, str]:
        """For how many seconds a server has answered nobody, and how it fails."""
        if self._loop is None:
            return 0.0, ""
        down = origin.downtime
        lasts = down.lasts(self._loop.time(), origin.answered_at)
        return (lasts, down.problem) if down.since > origin.answered_at else (0.0, "")

    def origin(self, url: str) -> Origin:
        """What is known of the server at `url`: of its scheme, host and port."""
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        key = f"{parts.scheme}://{parts.hostname}:{port}"
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = Origin(self._retry_budget)
        return origin
