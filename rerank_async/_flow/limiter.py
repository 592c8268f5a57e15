"""Slots: who waits for one, in which order, and who is woken when.

A slot is held for one attempt, never while a retry waits.
What may go is decided in `admission`; a line belongs here when it queues or wakes.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future, TimerHandle, get_running_loop
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from math import isinf
from typing import Any, Self, TypeAlias

from attrs import Attribute, field, frozen

from rerank_async._errors import InvalidRequestError
from rerank_async._flow import Controller, Ending
from rerank_async._flow.admission import Admission
from rerank_async._flow.buckets import Bucket
from rerank_async._flow.climbing import Climber
from rerank_async._flow.fuse import Fuse
from rerank_async._flow.hints import remaining
from rerank_async._flow.load import Load

__all__ = ["Concurrency", "Limiter", "RateLimit"]


def _checked_limit(instance: object, attribute: Attribute[Any], value: int) -> None:
    name = "concurrency" if attribute.name == "limit" else attribute.name
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(f"{name} must be a whole number of at least 1, not {value!r}")


def _checked_limit_or_none(instance: object, attribute: Attribute[Any], value: int | None) -> None:
    if value is not None:
        _checked_limit(instance, attribute, value)


def _checked_rate(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise InvalidRequestError(f"{name} must be a number above 0, not {value!r}")


def _rate(instance: object, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None:
        _checked_rate(attribute.name, value)


@frozen
class _Search:
    """The settings of a limit that finds itself."""

    minimum: int
    maximum: int
    gain: float
    latency_guard: float | None


@frozen
class Concurrency:
    """How much may be on the wire at once: a fixed number of requests, or one that finds itself.

    `Concurrency(16)` is a fixed number; `Concurrency.adaptive()` looks for the smallest number that
    gives the server's full throughput.
    With either, `max_documents` and `max_bytes` limit the weight of all requests on the wire
    together, for servers that count documents and not requests.

    Attributes:
        limit: requests at once; at least 1. Of an adaptive one: at first.
        max_documents: documents at once; None means no limit. Lists are cut into chunks of at most
            as many, because a server that counts documents refuses a larger one for ever.
        max_bytes: bytes of request bodies at once; None means no limit. A larger body goes when
            nothing else is on the wire.

    Raises:
        InvalidRequestError: a value below 1 or not a whole number; the message names it.
    """

    limit: int = field(default=16, validator=_checked_limit)
    max_documents: int | None = field(default=None, kw_only=True, validator=_checked_limit_or_none)
    max_bytes: int | None = field(default=None, kw_only=True, validator=_checked_limit_or_none)
    _search: _Search | None = field(default=None, kw_only=True, repr=False)

    @classmethod
    def adaptive(
        cls,
        start: int | None = None,
        *,
        min: int = 1,  # noqa: A002 — the words that one looks for
        max: int = 512,  # noqa: A002
        gain: float = 0.15,
        latency_guard: float | None = None,
        max_documents: int | None = None,
        max_bytes: int | None = None,
    ) -> Self:
        """A limit that climbs while goodput grows, and is cut when the server has too much.

        After a cut it is soon back where it was, unless that is too much again.

        Goodput is documents scored per second.
        `docs/explanation/flow-control.md` says how the search goes.

        Args:
            start: requests at once at first; None means 8, or what of `min` and `max` is nearer.
            min: the lowest limit that there may be.
            max: the highest limit that there may be.
            gain: the share of a higher limit that must come back as goodput for it to be kept, from
                0 to 1; higher keeps latency lower, lower gives more throughput.
            latency_guard: cut also when a document takes so many times as long as it used to,
                such as 2.0; None means that only throttles, broken connections and timeouts cut.
            max_documents: documents at once; None means no limit.
            max_bytes: bytes of request bodies at once; None means no limit.

        Raises:
            InvalidRequestError: a value out of range; the message names it.
        """
        for name, value in (("min", min), ("max", max), ("start", 8 if start is None else start)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidRequestError(
                    f"{name} must be a whole number of at least 1, not {value!r}"
                )
        if min > max:
            raise InvalidRequestError(f"min must not be above max, and {min} is above {max}")
        if start is None:
            start = sorted((min, 8, max))[1]
        if not min <= start <= max:
            raise InvalidRequestError(
                f"start must lie between min and max, and {start} is not between {min} and {max}"
            )
        if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0 <= gain <= 1:
            raise InvalidRequestError(f"gain must be a number from 0 to 1, not {gain!r}")
        if latency_guard is not None:
            _checked_rate("latency_guard", latency_guard)
            if latency_guard <= 1:
                raise InvalidRequestError(f"latency_guard must be above 1, not {latency_guard!r}")
        return cls(
            start,
            max_documents=max_documents,
            max_bytes=max_bytes,
            search=_Search(min, max, gain, latency_guard),
        )

    def controller(self) -> Controller:
        """What moves the limit."""
        if self._search is None:
            return Fuse(self.limit)
        search = self._search
        return Climber(
            self.limit,
            search.minimum,
            search.maximum,
            gain=search.gain,
            latency_guard=search.latency_guard,
        )


@frozen
class RateLimit:
    """How much may be sent per minute; a quota that the server has told you of.

    Requests are spread over the minute, a second's worth at a time at most.
    What is over the rate waits its turn, in the order of asking, large and small alike.
    `x-ratelimit-remaining-requests` and `-tokens` in answers correct the count downwards.

    Attributes:
        requests_per_minute: None means no limit.
        tokens_per_minute: tokens as the server bills them, the query once for every document; None
            means no limit. Before the answer they are counted by `ChunkLimits.count_tokens`, after
            it by the usage that the server reports.

    Raises:
        InvalidRequestError: a value that is not a number above 0, or both are None.
    """

    requests_per_minute: float | None = field(default=None, validator=_rate)
    tokens_per_minute: float | None = field(default=None, validator=_rate)

    def __attrs_post_init__(self) -> None:
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            raise InvalidRequestError(
                "RateLimit needs requests_per_minute or tokens_per_minute, or both"
            )


# The turn of one who waits, and what it wants to put on the wire.
_Waiter: TypeAlias = "tuple[Future[None], Load]"


class Limiter:
    """Hands out slots in the order of asking; those who asked before, for a retry, go first.

    A slot is taken by `take`, or awaited by `await line_up(...)` where that says no, with what the
    request weighs; it must be given back by `give`, whatever happens in between.

    Args:
        concurrency: the limit of what may be on the wire at once.
        rate: the limit of what may be sent per minute; None means no limit.

    Attributes:
        waiting: the number of requests that wait for a slot.
        is_rated: whether there is a rate to correct by what answers say.
        counts_tokens: whether anybody has to say how many tokens a request may cost.
        counts_bytes: whether anybody has to say how many bytes it has.
        listeners: the functions that are told of each change of the limit: old, new, and why.
    """

    def __init__(self, concurrency: Concurrency, rate: RateLimit | None = None) -> None:
        requests = None if rate is None else rate.requests_per_minute
        tokens = None if rate is None else rate.tokens_per_minute
        self._controller = concurrency.controller()
        self._admission = Admission(
            self._controller.limit,
            max_documents=concurrency.max_documents,
            max_bytes=concurrency.max_bytes,
            requests=None if requests is None else Bucket(requests),
            tokens=None if tokens is None else Bucket(tokens),
        )
        self.is_rated: bool = rate is not None
        self.counts_tokens: bool = tokens is not None
        self.counts_bytes: bool = concurrency.max_bytes is not None
        self.waiting: int = 0
        self.listeners: set[Callable[[int, int, str], None]] = set()
        # Those who were cancelled stay here until their turn would come.
        self._retries: deque[_Waiter] = deque()
        self._newcomers: deque[_Waiter] = deque()
        self._timer: TimerHandle | None = None
        self._loop: AbstractEventLoop | None = None

    @property
    def limit(self) -> int:
        """Slots there are."""
        return self._admission.limit

    @property
    def in_flight(self) -> int:
        """Slots that are taken; one that was given to a waiter is, before its task runs."""
        return self._admission.requests

    @property
    def cuts(self) -> int:
        """How often the limit was cut: an adaptive one by overload, a fixed one by resets."""
        return self._controller.cuts

    @property
    def reason(self) -> str:
        """Why the limit last changed; empty as long as it has not."""
        return self._controller.reason

    @property
    def gate(self) -> float:
        """Seconds for which a server's hint keeps everybody waiting."""
        return self._admission.gate.wait(self._now()) if self._loop is not None else 0.0

    @property
    def waiting_for(self) -> str:
        """What the first in line lacks: "gate", "rate" or "slot"; empty where nobody waits."""
        for queue in (self._retries, self._newcomers):
            for turn, load in queue:
                # Those who were cancelled stay until their turn would come.
                if not turn.done():
                    return self._admission.obstacle(self._now(), load)
        return ""

    def take(self, load: Load) -> bool:
        """Take a slot if one is free and nobody waits; say whether it was taken.

        Args:
            load: the request's weight; its bytes may be 0 unless `counts_bytes`, its tokens unless
                `counts_tokens`.
        """
        if self._newcomers or self._retries:
            return False
        now = self._now() if self._loop is None else self._loop.time()
        return self._admission.enter(now, load) == 0.0

    def line_up(self, load: Load, *, again: bool = False) -> Future[None]:
        """Take a place in the line for a slot.

        Args:
            load: the request's weight.
            again: whether it is a retry, which has waited before.

        Returns:
            What to await; then the slot is taken. Whoever is cancelled meanwhile must say so by
            `step_out`. It is no coroutine, because a hundred thousand may wait.
        """
        turn = get_running_loop().create_future()
        (self._retries if again else self._newcomers).append((turn, load))
        self.waiting += 1
        self._serve()
        return turn

    def step_out(self, turn: Future[None], load: Load) -> None:
        """Give up waiting, with what was given to `line_up`: no slot is taken then."""
        if turn.cancel() or turn.cancelled():
            self.waiting -= 1
        else:
            # The slot came together with the cancellation: it is the next one's.
            self._admission.take_back(self._now(), load)
        # It may have been what the others waited behind.
        self._serve()
        if self._timer is not None and not (self._newcomers or self._retries):
            self._timer.cancel()
            self._timer = None

    def give(self, load: Load, started: float, ending: Ending) -> None:
        """Give a slot back: to whoever waits longest, or to the free ones.

        Args:
            load: the weight with which the slot was taken.
            started: the moment at which the attempt was put on the wire, on the loop's clock.
            ending: the way in which it ended.
        """
        controller = self._controller
        if ending != "answered" or controller.heeds_answers:
            controller.finished(
                self._now(), started, load.documents, ending, self._admission.requests
            )
            self._admission.leave(load)
            self._resize(controller)
        else:
            controller.unheard += 1
            self._admission.leave(load)
        if self._newcomers or self._retries:
            self._serve()

    def close_gate(self, seconds: float, draw: float) -> bool:
        """Let nobody go for `seconds` and a little; say whether that is longer than before."""
        return self._admission.gate.close(self._now(), seconds, draw)

    def settle(self, expected: int, tokens: int) -> None:
        """A request that was expected to cost so many tokens cost so many."""
        if self._admission.token_rate is not None:
            self._admission.token_rate.settle(self._now(), tokens - expected)

    def heed(self, headers: Mapping[str, str]) -> None:
        """Correct the rates by what the server says is left."""
        for what, bucket in (
            ("requests", self._admission.request_rate),
            ("tokens", self._admission.token_rate),
        ):
            if bucket is not None and (left := remaining(headers, what)) is not None:
                bucket.correct(self._now(), left)

    def _now(self) -> float:
        if self._loop is None:
            self._loop = get_running_loop()
        return self._loop.time()

    def _resize(self, controller: Controller) -> None:
        old, new = self._admission.limit, controller.limit
        if new != old:
            self._admission.limit = new
            for listener in tuple(self.listeners):
                listener(old, new, controller.reason)

    def _serve(self) -> None:
        """Give turns as long as the next in line may go; if time is all it lacks, come back."""
        while queue := self._retries or self._newcomers:
            turn, load = queue[0]
            if not turn.done():
                now = self._now()
                delay = self._admission.enter(now, load)
                if delay > 0.0:
                    if not isinf(delay):
                        self._come_back(now + delay)
                    return
                turn.set_result(None)
                self.waiting -= 1
            queue.popleft()

    def _come_back(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._loop is not None
        # Not in the context of the call that happens to ask: it would be kept.
        self._timer = self._loop.call_at(when, self._serve, context=Context())
