"""Servers that take time without taking any: rerank servers in memory, on a clock that jumps.

The loop's clock moves from one event to the next, and nothing ever waits for real: a minute of
traffic takes as long as the code that handles it.
The servers are `Transport`s, so that a real session talks to them; their dice are given, so that a
run can be repeated.
A line belongs here when it says how a server or the clock behaves; who asks, and what is made of
the answers, is in `flow`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Coroutine
from math import inf, log, sqrt, ulp
from random import Random
from selectors import SelectorKey, SelectSelector
from typing import Any, TypeAlias, TypeVar

from attrs import define, field, frozen

from rerank_async import ConnectError, RequestTimeoutError, TransportError
from rerank_async.dialects.v1 import V1
from rerank_async.testing import HttpRequest, HttpResponse

__all__ = [
    "BatchServer",
    "BucketServer",
    "Burst",
    "Faults",
    "Figures",
    "Outage",
    "SimulatedServer",
    "SlotServer",
    "Times",
    "VirtualLoop",
    "percentile",
    "run",
]

T = TypeVar("T")

# There and back together. Both ways are one wait after the work: requests come in the same order
# as they would two milliseconds later.
NETWORK = 0.004


# ── the clock ──


class _Clock(SelectSelector):
    """Where a loop waits: instead of waiting, it sets the clock."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.now = start

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Let `timeout` seconds have passed."""
        if timeout is None:
            raise RuntimeError("every task waits for another, and nothing is scheduled")
        if timeout > 0.0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds pass as soon as nobody has anything left to do in them.

    It serves no sockets.

    Args:
        start: what its clock reads at first: a real one reads the uptime of the machine, say.
    """

    # Timers that are due within this are due now.
    _clock_resolution: float

    def __init__(self, start: float = 0.0) -> None:
        self._clock = _Clock(start)
        super().__init__(self._clock)
        # A real clock goes on when nothing does; this one would wait for ever for a sum of floats
        # that is never reached.
        self._clock_resolution = max(1e-9, 4 * ulp(start))

    def time(self) -> float:
        """Seconds on its own clock."""
        return self._clock.now


def run(main: Coroutine[Any, Any, T], start: float = 0.0) -> T:
    """Run a coroutine on a virtual clock of its own, which reads `start` at first."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(start)) as runner:
        return runner.run(main)


# ── what a server was asked, and what came of it ──


@frozen
class Figures:
    """What one run came to, within a window of its time.

    Attributes:
        goodput: documents per second in answers that a client received.
        throttled: the share of answers that were 429 or 503.
        p50: of the seconds from a query's first arrival to the delivery of its answer.
        p99: likewise.
        wasted: the share of requests that brought no client an answer with status 200.
        requests: how many came.
    """

    goodput: float
    throttled: float
    p50: float
    p99: float
    wasted: float
    requests: int


def percentile(values: list[float], share: float) -> float:
    """The smallest of the values that this share of them do not exceed; 0.0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@define
class _Seen:
    """What a server saw, each with its time.

    Attributes:
        arrivals: of requests.
        answers: their time and status; a broken connection is no answer.
        served: of each answer with status 200 that the client received: when its request came,
            when it was delivered, and the seconds since that query came first.
    """

    arrivals: list[float] = field(factory=list)
    answers: list[tuple[float, int]] = field(factory=list)
    served: list[tuple[float, float, float]] = field(factory=list)


_Reply: TypeAlias = HttpResponse | TransportError
_Waiting: TypeAlias = "asyncio.Future[HttpResponse]"


def _refusal(status: int, **headers: str) -> HttpResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status, names, b'{"error":{"message":"simulated"}}')


_FULL = _refusal(429)
_FAILED = _refusal(500)
_DOWN = _refusal(503)


# ── the servers ──


class SimulatedServer(ABC):
    """What the servers have in common: the wire, the clock, and the record.

    A client that goes away, by a timeout or a cancellation, gives up its place in the queue; work
    that has begun goes on to its end, as it does in most servers.
    Every request is taken to carry the same number of documents, for which the answer is made
    beforehand; the query, which must hold no quotation mark, names the request.

    Args:
        dice: where times and failures are drawn from.
        documents: in each request.

    Attributes:
        seen: what came, and what became of it.
        documents: in each request.
    """

    def __init__(self, dice: Random, documents: int = 4) -> None:
        self.dice = dice
        self.documents = documents
        self.seen = _Seen()
        ranking = [(index, 1.0 - index / (documents + 1)) for index in range(documents)]
        self._answer = HttpResponse(200, {}, V1().encode_response("simulated", ranking, documents))
        self._loop: asyncio.AbstractEventLoop | None = None
        # When each query that has no answer yet came first.
        self._first: dict[bytes, float] = {}

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the first request came from."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._open(self._loop)
        return self._loop

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        """Answer a request after the time that it takes."""
        loop = self.loop
        came = loop.time()
        # The dialect writes the model first and the query second.
        query = request.body.split(b'"', 8)[7]
        self.seen.arrivals.append(came)
        self._first.setdefault(query, came)
        waiting: _Waiting = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _expire, waiting, timeout)
        self._arrive(waiting)
        try:
            response = await waiting
        except (asyncio.CancelledError, RequestTimeoutError):
            self._leave(waiting)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        now = loop.time()
        self.seen.answers.append((now, response.status))
        if response.status == 200 and query in self._first:
            self.seen.served.append((came, now, now - self._first.pop(query)))
        return response

    async def close(self) -> None:  # noqa: B027  # nothing was opened
        """Let go of what was opened: nothing."""

    def figures(self, begin: float, end: float) -> Figures:
        """What was seen from `begin` to `end`."""
        came = sum(begin <= when < end for when in self.seen.arrivals)
        fruitful = sum(begin <= came < end for came, _, _ in self.seen.served)
        answers = [status for when, status in self.seen.answers if begin <= when < end]
        took = [seconds for _, when, seconds in self.seen.served if begin <= when < end]
        throttled = sum(status in (429, 503) for status in answers)
        return Figures(
            goodput=len(took) * self.documents / (end - begin),
            throttled=throttled / max(1, len(answers)),
            p50=percentile(took, 0.5),
            p99=percentile(took, 0.99),
            wasted=1.0 - fruitful / max(1, came),
            requests=came,
        )

    def recovery(self, steady: float, trouble: float, end: float, window: float) -> float:
        """Seconds from the last refusal of a burst until goodput is at nine tenths of the former.

        Args:
            steady: from when on the goodput is what it is without trouble.
            trouble: when the burst begins.
            end: when it ends.
            window: seconds over which goodput is taken.

        Returns:
            Infinity where it does not come back while anybody is answered.
        """
        delivered = [when for _, when, _ in self.seen.served]

        def count(begin: float, end: float) -> int:
            return bisect_left(delivered, end) - bisect_left(delivered, begin)

        former = count(steady, trouble) / (trouble - steady)
        refused = (at for at, status in self.seen.answers if status != 200 and at <= end + NETWORK)
        last = begin = max(refused, default=trouble)
        while begin + window <= delivered[-1]:
            if count(begin, begin + window) >= 0.9 * former * window:
                return begin - last
            begin += window / 20.0
        return inf

    def _reply(self, waiting: _Waiting, reply: _Reply) -> None:
        """Send the answer back over the network."""
        self.loop.call_later(NETWORK, _deliver, waiting, reply)

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:  # noqa: B027  # most need nothing
        """The first request is about to come: schedule what happens by itself."""

    @abstractmethod
    def _arrive(self, waiting: _Waiting) -> None:
        """A request comes; whoever sent it waits there."""

    def _leave(self, waiting: _Waiting) -> None:  # noqa: B027  # some have no queue
        """The client has gone away."""


def _deliver(waiting: _Waiting, reply: _Reply) -> None:
    if waiting.done():
        return
    if isinstance(reply, TransportError):
        waiting.set_exception(reply)
    else:
        waiting.set_result(reply)


def _expire(waiting: _Waiting, timeout: float) -> None:
    if not waiting.done():
        waiting.set_exception(RequestTimeoutError(f"no answer within {timeout:g} s"))


@frozen
class Times:
    """How long a server works on a request: lognormal, as measured times mostly are.

    Attributes:
        mean: in seconds, of those that are not slow.
        deviation: the standard deviation, as a share of the mean.
        slow: the share that takes `slowness` times as long.
        slowness: how many times.
    """

    mean: float = 0.2
    deviation: float = 0.3
    slow: float = 0.0
    slowness: float = 20.0

    def draw(self, dice: Random) -> float:
        """Seconds for one request."""
        variance = log(1.0 + self.deviation**2)
        seconds = dice.lognormvariate(log(self.mean) - variance / 2.0, sqrt(variance))
        if self.slow and dice.random() < self.slow:
            seconds *= self.slowness
        return seconds


@frozen
class Faults:
    """What goes wrong at random.

    Attributes:
        errors: the share of requests that get status 500, after the usual time.
        resets: the share whose connection breaks at once.
        throttles: the share that gets status 429 at once, whatever the load is, without a hint.
    """

    errors: float = 0.0
    resets: float = 0.0
    throttles: float = 0.0


@frozen
class Burst:
    """A time in which requests are refused, whatever the load is, without a hint.

    Attributes:
        begin: seconds on the loop's clock.
        end: likewise.
        share: of the requests.
        status: 429, or 503 as in a restart.
    """

    begin: float
    end: float
    share: float = 1.0
    status: int = 429


class SlotServer(SimulatedServer):
    """Works on so many requests at once, first come, first served; refuses what its queue is full.

    Args:
        dice: where times and failures are drawn from.
        slots: requests worked on at once.
        queue: requests that may wait; None means any number. One that comes when it is full gets
            429 at once, without a hint.
        times: how long the work takes.
        faults: what goes wrong.
        changes: times, in seconds on the loop's clock, with slots and queue from then on.
        bursts: when requests are refused for another reason than their number.
        connections: requests on the wire at once; one more is reset. None means any number.
        documents: in each request.

    Attributes:
        busy: slots that are taken.
        most_busy: the most there were.
    """

    def __init__(
        self,
        dice: Random,
        slots: int,
        queue: int | None,
        *,
        times: Times | None = None,
        faults: Faults | None = None,
        changes: tuple[tuple[float, int, int | None], ...] = (),
        bursts: tuple[Burst, ...] = (),
        connections: int | None = None,
        documents: int = 4,
    ) -> None:
        super().__init__(dice, documents)
        self._bursts = bursts
        self._connections = connections
        self._slots = slots
        self._room = queue
        self._times = times or Times()
        self._faults = faults or Faults()
        self._changes = changes
        self._queue: deque[_Waiting] = deque()
        self.busy = self.most_busy = 0

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        for when, slots, queue in self._changes:
            loop.call_at(when, self._change, slots, queue)

    def _change(self, slots: int, queue: int | None) -> None:
        # What is being worked on, or waits already, stays.
        self._slots, self._room = slots, queue
        self._next()

    def _arrive(self, waiting: _Waiting) -> None:
        faults, dice = self._faults, self.dice
        refusal = self._refused()
        if self._connections is not None and self.busy + len(self._queue) >= self._connections:
            self._reply(waiting, TransportError("simulated: one connection too many"))
        elif faults.resets and dice.random() < faults.resets:
            self._reply(waiting, TransportError("simulated: the connection broke"))
        elif refusal is not None:
            self._reply(waiting, refusal)
        elif self.busy < self._slots:
            self._begin(waiting)
        elif self._room is None or len(self._queue) < self._room:
            self._queue.append(waiting)
        else:
            self._reply(waiting, _FULL)

    def _refused(self) -> HttpResponse | None:
        """What a request gets that is refused for another reason than the load."""
        if self._faults.throttles and self.dice.random() < self._faults.throttles:
            return _FULL
        now = self.loop.time()
        for burst in self._bursts:
            if burst.begin <= now < burst.end and self.dice.random() < burst.share:
                return _FULL if burst.status == 429 else _DOWN
        return None

    def _leave(self, waiting: _Waiting) -> None:
        if waiting in self._queue:
            self._queue.remove(waiting)

    def _begin(self, waiting: _Waiting) -> None:
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        reply = self._answer
        if self._faults.errors and self.dice.random() < self._faults.errors:
            reply = _FAILED
        self.loop.call_later(self._times.draw(self.dice), self._end, waiting, reply)

    def _end(self, waiting: _Waiting, reply: _Reply) -> None:
        self.busy -= 1
        self._reply(waiting, reply)
        self._next()

    def _next(self) -> None:
        while self._queue and self.busy < self._slots:
            self._begin(self._queue.popleft())


class BatchServer(SimulatedServer):
    """Works on one batch at a time, as a GPU does; what comes meanwhile waits for the next one.

    It does not wait for a batch to fill.
    The queue is as long as it takes.

    Args:
        dice: where the small differences between batches are drawn from.
        batch: documents at once.
        base: seconds for any batch.
        each: seconds more for each document in it.
        deviation: of a batch's time, as a share: its documents are longer or shorter.
        documents: in each request.

    Attributes:
        batches: the documents of each batch so far.
    """

    def __init__(
        self,
        dice: Random,
        batch: int = 64,
        base: float = 0.020,
        each: float = 0.002,
        *,
        deviation: float = 0.05,
        documents: int = 1,
    ) -> None:
        super().__init__(dice, documents)
        self._requests = batch // documents
        self._base = base
        self._each = each
        self._noise = Times(1.0, deviation)
        self._queue: deque[_Waiting] = deque()
        self._busy = False
        self.batches: list[int] = []

    def _arrive(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        if not self._busy:
            self._begin()

    def _leave(self, waiting: _Waiting) -> None:
        if waiting in self._queue:
            self._queue.remove(waiting)

    def _begin(self) -> None:
        self._busy = True
        count = min(len(self._queue), self._requests)
        batch = [self._queue.popleft() for _ in range(count)]
        size = count * self.documents
        self.batches.append(size)
        seconds = (self._base + self._each * size) * self._noise.draw(self.dice)
        self.loop.call_later(seconds, self._end, batch)

    def _end(self, batch: list[_Waiting]) -> None:
        for waiting in batch:
            self._reply(waiting, self._answer)
        self._busy = False
        if self._queue:
            self._begin()


class BucketServer(SimulatedServer):
    """Answers so many requests per second; what is over that gets 429 with `retry-after: 1`.

    Args:
        dice: where times are drawn from.
        rate: requests per second.
        burst: what a pause saves up.
        times: how long the work takes; any number are worked on at once.
        documents: in each request.
    """

    def __init__(
        self,
        dice: Random,
        rate: float = 50.0,
        burst: float = 25.0,
        *,
        times: Times | None = None,
        documents: int = 4,
    ) -> None:
        super().__init__(dice, documents)
        self._rate = rate
        self._burst = burst
        self._times = times or Times(0.1)
        self._tokens = burst
        self._counted = 0.0
        self._refusal = _refusal(429, retry_after="1")

    def _arrive(self, waiting: _Waiting) -> None:
        now = self.loop.time()
        self._tokens = min(self._burst, self._tokens + self._rate * (now - self._counted))
        self._counted = now
        if self._tokens < 1.0:
            self._reply(waiting, self._refusal)
            return
        self._tokens -= 1.0
        self.loop.call_later(self._times.draw(self.dice), self._reply, waiting, self._answer)


class Outage(SimulatedServer):
    """Answers as it should until it goes down, and nobody from then on.

    Args:
        dice: where times are drawn from.
        down_at: when, on the loop's clock.
        refuses: whether connections are refused then; otherwise there is 503 from a gateway.
    """

    def __init__(self, dice: Random, down_at: float, *, refuses: bool) -> None:
        super().__init__(dice)
        self._down_at = down_at
        self._refuses = refuses
        self._times = Times()

    def _arrive(self, waiting: _Waiting) -> None:
        if self.loop.time() < self._down_at:
            self.loop.call_later(self._times.draw(self.dice), self._reply, waiting, self._answer)
        elif self._refuses:
            self._reply(waiting, ConnectError("simulated: the connection was refused"))
        else:
            self._reply(waiting, _DOWN)
