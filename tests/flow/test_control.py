"""Flow control in a session: the gate, sharing, weights, rates, the budget, parking, deadlines.

What each piece decides is in `tests/flow`; here is what calls notice of it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_async import (
    ChunkLimits,
    Concurrency,
    ConnectError,
    DeadlineExceededError,
    Failed,
    FlowControl,
    InvalidRequestError,
    RateLimit,
    RateLimitError,
    RequestTimeoutError,
    RerankError,
    RerankRequest,
    RerankSession,
    RetryPolicy,
    ServerError,
    StoppedError,
    TransportError,
)
from rerank_async._flow.outage import NEVER_REACHED
from rerank_async.events import (
    AttemptRetried,
    AttemptStarted,
    Event,
    LimitChanged,
    Throttled,
    Waiting,
)
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.support import (
    GatedTransport,
    Peer,
    ScriptedServer,
    assert_no_key,
    best_first,
    http,
    memory,
    number_of,
    numbered,
    refusal,
    sent_documents,
    session_over,
    steps,
    stream_of,
    true_answer,
    until,
)

ONE = ["document 1"]
ONE_EACH = ChunkLimits(max_documents=1)
PAIRS = ChunkLimits(max_documents=2)
QUICK = RetryPolicy(base=1e-6, throttle_base=1e-6)


def now() -> float:
    return asyncio.get_running_loop().time()


class Server(MemoryTransport):
    """A server in memory that notes when each request came, and may refuse by a rule.

    Attributes:
        times: when each request came.
        documents_in_flight: now; `most_documents`: the most there were at once.
        refuse: asked for each request; None lets it be answered.
    """

    def __init__(
        self,
        refuse: Callable[[HttpRequest], HttpResponse | Exception | None] = lambda request: None,
        *,
        delay: float = 0.0,
    ) -> None:
        super().__init__(scoring(number_of), delay=delay)
        self.refuse = refuse
        self.times: list[float] = []
        self.documents_in_flight = self.most_documents = 0
        self.bytes_in_flight = self.most_bytes = 0

    @property
    def queries(self) -> list[str]:
        return [orjson.loads(request.body)["query"] for request in self.requests]

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        self.times.append(now())
        count = len(sent_documents(request))
        self.documents_in_flight += count
        self.bytes_in_flight += len(request.body)
        self.most_documents = max(self.most_documents, self.documents_in_flight)
        self.most_bytes = max(self.most_bytes, self.bytes_in_flight)
        try:
            response = await super().exchange(request, body_limit=body_limit, timeout=timeout)
            step = self.refuse(request)
            if isinstance(step, Exception):
                raise step
            return response if step is None else step
        finally:
            self.documents_in_flight -= count
            self.bytes_in_flight -= len(request.body)


def once(*answers: HttpResponse | Exception | None) -> Any:
    """A rule: these for the first requests, then none."""
    left = iter(answers)
    return lambda request: next(left, None)


def assert_idle(session: RerankSession) -> None:
    statistics = session.statistics()
    assert (statistics.in_flight, statistics.waiting) == (0, 0)


# ── the gate ──


@pytest.mark.looptime
async def test_a_hint_keeps_every_call_of_the_session_waiting() -> None:
    server = Server(once(refusal(429, retry_after="10")))
    async with session_over(server, concurrency=4) as session:
        first = asyncio.create_task(session.rerank("first", ONE))
        await until(lambda: session.statistics().throttled == 1)
        later = [asyncio.create_task(session.rerank(f"later {n}", ONE)) for n in range(3)]
        await asyncio.sleep(9.9)
        statistics = session.statistics()
        assert len(server.requests) == 1
        assert statistics.waiting == 3
        assert 0.1 <= statistics.gate <= 1.1
        await asyncio.gather(first, *later)
        assert session.statistics().gate == 0.0
        assert_idle(session)
    assert all(10.0 <= time <= 11.0 for time in server.times[1:])
    # The gate is one, with one jitter: nobody is let through on his own.
    assert len({time for query, time in zip(server.queries, server.times, strict=True)}) <= 3


@pytest.mark.looptime
async def test_the_jitter_of_the_gate_is_another_for_each_seed() -> None:
    opened = set()
    for seed in range(5):
        server = Server(once(refusal(503, retry_after="10")))
        async with session_over(server, seed=seed) as session:
            began = now()
            await session.rerank("q", ONE)
            opened.add(round(server.times[1] - began, 6))
    assert len(opened) == 5
    assert all(10.0 <= seconds <= 11.0 for seconds in opened)


@pytest.mark.looptime
async def test_a_hint_too_long_to_be_waited_for_keeps_nobody_waiting() -> None:
    server = Server(once(refusal(429, retry_after="999")))
    async with session_over(server) as session:
        with pytest.raises(RateLimitError):
            await session.rerank("q", ONE)
        assert session.statistics().gate == 0.0
        await session.rerank("q", ONE)
        assert now() == 0.0


@pytest.mark.looptime
async def test_who_has_the_patience_for_a_long_outage_has_it_for_a_long_hint() -> None:
    server = Server(once(refusal(429, retry_after="999")))
    policy = RetryPolicy(max_outage=1000.0)
    async with session_over(server, retry=policy, timeout=None) as session:
        await session.rerank("q", ONE)
    assert 999.0 <= now() <= 1100.0


@pytest.mark.looptime
async def test_an_answer_that_says_the_quota_is_used_up_closes_the_gate_too() -> None:
    def warn(request: HttpRequest) -> HttpResponse | None:
        if len(server.requests) > 1:
            return None
        answer = scoring(number_of)(request)
        return HttpResponse(200, {"ratelimit": '"minute";r=0;t=7'}, answer.body)

    server = Server(warn)
    async with session_over(server) as session:
        first = await session.rerank("first", ONE)
        assert now() == 0.0
        assert first.complete
        await session.rerank("second", ONE)
        assert session.statistics().throttled == 0
    assert 7.0 <= server.times[1] <= 7.7


@pytest.mark.looptime
async def test_the_gate_only_ever_moves_further_away() -> None:
    server = Server(once(refusal(429, retry_after="20"), refusal(429, retry_after="1")))
    told: list[Event] = []
    async with session_over(server, concurrency=2, on_event=told.append) as session:
        await asyncio.gather(*(session.rerank(name, ONE) for name in "ab"))
    assert all(time >= 20.0 for time in server.times[2:])
    assert [event.gate for event in told if isinstance(event, Throttled)] == [True, False]


@pytest.mark.looptime
async def test_who_is_on_the_wire_is_not_called_back_by_a_hint() -> None:
    server = Server(once(refusal(429, retry_after="60")), delay=1.0)
    async with session_over(server, concurrency=2, timeout=None) as session:
        slow = asyncio.create_task(session.rerank("slow", ONE))
        throttled = asyncio.create_task(session.rerank("throttled", ONE))
        done, _ = await asyncio.wait([slow, throttled], return_when=asyncio.FIRST_COMPLETED)
        assert now() == 1.0
        assert len(done) == 1
        await asyncio.gather(slow, throttled)


@pytest.mark.looptime
async def test_behind_the_gate_those_who_were_refused_go_before_those_who_came_later() -> None:
    server = Server(once(refusal(429, retry_after="10")))
    # With more patience than the gate's own jitter, the retry would come after it.
    async with session_over(server, concurrency=1, retry=RetryPolicy(base=1e-9)) as session:
        first = asyncio.create_task(session.rerank("first", ONE))
        await until(lambda: session.statistics().throttled == 1)
        session._flow.limiter.close_gate(30.0, 0.0)
        later = [asyncio.create_task(session.rerank(f"{n}", ONE)) for n in range(5)]
        await asyncio.gather(first, *later)
    assert server.queries == ["first", "first", "0", "1", "2", "3", "4"]


@pytest.mark.looptime
async def test_a_call_that_cannot_outlive_the_gate_is_told_at_once_and_sends_nothing() -> None:
    server = Server(once(refusal(429, retry_after="30")))
    async with session_over(server, timeout=None) as session:
        refused = asyncio.create_task(session.rerank("refused", ONE))
        await until(lambda: session.statistics().throttled == 1)
        with pytest.raises(DeadlineExceededError, match="asked everybody to wait"):
            await session.rerank("impatient", ONE, timeout=20.0)
        assert now() == 0.0
        await session.rerank("patient", ONE, timeout=40.0)
        await refused
        assert_idle(session)
    assert "impatient" not in server.queries


@pytest.mark.looptime
async def test_a_deadline_and_a_cancellation_reach_those_who_wait_at_the_gate() -> None:
    server = Server(once(refusal(429, retry_after="60")), delay=1.0)
    async with session_over(server, timeout=None, concurrency=1) as session:
        # The others wait already when the gate is closed in front of them.
        refused = asyncio.create_task(session.rerank("refused", ONE))
        impatient = asyncio.create_task(session.rerank("impatient", ONE, timeout=5.0))
        cancelled = asyncio.create_task(session.rerank("cancelled", ONE))
        patient = asyncio.create_task(session.rerank("patient", ONE))
        await asyncio.sleep(2.0)
        assert session.statistics().waiting == 3
        cancelled.cancel()
        with pytest.raises(DeadlineExceededError):
            await impatient
        assert now() == 5.0
        assert session.statistics().waiting == 1
        await asyncio.gather(refused, patient)
        assert cancelled.cancelled()
        assert_idle(session)
    assert sorted(server.queries) == ["patient", "refused", "refused"]


@pytest.mark.looptime
async def test_closing_the_session_ends_those_who_wait_at_the_gate_at_once() -> None:
    server = Server(once(refusal(429, retry_after="60")))
    session = session_over(server, timeout=None)
    calls = [asyncio.create_task(session.rerank(f"{n}", ONE)) for n in range(3)]
    await until(lambda: session.statistics().throttled == 1)
    await session.close()
    assert now() == 0.0
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert "SessionClosedError" in {type(result).__name__ for result in results}
    assert_idle(session)


# ── sharing ──


@pytest.mark.looptime
async def test_sessions_with_one_flow_share_its_slots_in_the_order_of_asking() -> None:
    servers = [Server(delay=1.0), Server(delay=1.0)]
    flow = FlowControl(3)
    async with (
        session_over(servers[0], flow=flow) as one,
        session_over(servers[1], "https://other.test/v1", flow=flow) as other,
    ):
        calls = [(one, other)[n % 2].rerank(f"{n}", ONE) for n in range(12)]
        tasks = [asyncio.create_task(call) for call in calls]
        await steps(5)
        assert sum(server.in_flight for server in servers) == 3
        assert (one.statistics().in_flight, other.statistics().in_flight) == (3, 3)
        assert (one.statistics().waiting, other.statistics().waiting) == (9, 9)
        assert "limit=3 3 in flight 9 waiting" in repr(flow)
        await asyncio.gather(*tasks)
    assert now() == 4.0
    order = sorted(
        (time, query)
        for server in servers
        for time, query in zip(server.times, server.queries, strict=True)
    )
    assert [int(query) // 3 for _, query in order] == [int(time) for time, _ in order]


@pytest.mark.looptime
async def test_sessions_with_one_flow_share_the_gate() -> None:
    throttled, other = Server(once(refusal(429, retry_after="10"))), Server()
    flow = FlowControl()
    async with (
        session_over(throttled, flow=flow) as first,
        session_over(other, flow=flow) as second,
    ):
        call = asyncio.create_task(first.rerank("q", ONE))
        await until(lambda: first.statistics().throttled == 1)
        assert second.statistics().gate >= 10.0
        await second.rerank("q", ONE)
        await call
        assert second.statistics().throttled == 0
    assert other.times[0] >= 10.0


async def test_the_budget_is_one_for_each_server_and_shared_by_its_sessions() -> None:
    def failing() -> Server:
        return Server(lambda request: refusal(500))

    flow = FlowControl(retry_budget=28)
    policy = RetryPolicy(attempts=3, base=1e-9)
    async with (
        session_over(failing(), flow=flow, retry=policy) as one,
        session_over(failing(), flow=flow, retry=policy, model="other") as same,
        session_over(failing(), "https://other.test/v1", flow=flow, retry=policy) as other,
    ):
        with pytest.raises(ServerError):
            await one.rerank("q", ONE)
        assert [session.statistics().retry_budget for session in (one, same, other)] == [0, 0, 28]
        with pytest.raises(ServerError) as caught:
            await same.rerank("q", ONE)
        assert caught.value.budget_exhausted
        assert same.statistics().requests == 1
        with pytest.raises(ServerError) as caught:
            await other.rerank("q", ONE)
        assert not caught.value.budget_exhausted


@pytest.mark.looptime
async def test_sessions_that_are_given_nothing_share_nothing() -> None:
    throttled, other = Server(once(refusal(429, retry_after="10"))), Server()
    async with session_over(throttled) as first, session_over(other) as second:
        call = asyncio.create_task(first.rerank("q", ONE))
        await until(lambda: first.statistics().throttled == 1)
        await second.rerank("q", ONE)
        assert now() == 0.0
        await call


async def test_closing_one_session_leaves_the_others_of_its_flow_as_they_are() -> None:
    gated, server = GatedTransport(), Server()
    flow = FlowControl(1)
    first = session_over(gated, flow=flow)
    async with session_over(server, flow=flow) as second:
        holder = asyncio.create_task(first.rerank("q", ONE))
        await until(lambda: gated.arrived == 1)
        queued = asyncio.create_task(first.rerank("q", ONE))
        waiting = asyncio.create_task(second.rerank("q", ONE))
        await until(lambda: flow.limiter.waiting == 2)
        await first.close()
        response = await waiting
        assert len(response.results) == 1
        results = await asyncio.gather(holder, queued, return_exceptions=True)
        assert {type(result).__name__ for result in results} == {"SessionClosedError"}
        assert_idle(second)


async def test_a_change_of_the_limit_is_told_to_every_open_session_of_the_flow() -> None:
    told: list[list[Event]] = [[], [], []]
    flow = FlowControl(Concurrency.adaptive(8))
    server = Server(lambda request: refusal(429))
    once_only = RetryPolicy(attempts=1)
    closed = session_over(Server(), flow=flow, on_event=told[2].append)
    await closed.rerank("q", ONE)
    await closed.close()
    async with (
        session_over(server, flow=flow, retry=once_only, on_event=told[0].append) as first,
        session_over(Server(), flow=flow, on_event=told[1].append) as second,
    ):
        await second.rerank("q", ONE)
        await asyncio.gather(*(first.rerank("q", ONE) for _ in range(8)), return_exceptions=True)
        statistics = second.statistics()
    changes = [[e for e in events if isinstance(e, LimitChanged)] for events in told]
    assert changes[0]
    assert changes[0] == changes[1]
    assert changes[2] == []
    assert (changes[0][0].old, changes[0][0].reason) == (8, "throttled")
    assert statistics.limit == changes[0][-1].new
    assert statistics.cuts >= 1
    assert statistics.limit_reason == changes[0][-1].reason


def test_a_flow_belongs_to_one_event_loop() -> None:
    flow = FlowControl()

    async def use() -> None:
        async with session_over(memory(), flow=flow) as session:
            await session.rerank("q", ONE)

    asyncio.run(use())
    with pytest.raises(InvalidRequestError, match="another event loop"):
        asyncio.run(use())


def test_a_flow_may_be_made_outside_of_any_loop() -> None:
    flow = FlowControl(2)
    assert repr(flow) == "<FlowControl limit=2 0 in flight 0 waiting>"
    session = session_over(memory(), flow=flow)
    assert session.statistics().gate == 0.0
    assert session.statistics().limit == 2


def test_a_flow_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="one event loop"):
        pickle.dumps(FlowControl())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"flow": FlowControl(), "concurrency": 4}, "flow"),
        ({"flow": FlowControl(), "rate": RateLimit(60)}, "flow"),
        ({"flow": 16}, "flow"),
        ({"concurrency": 0}, "concurrency"),
        ({"rate": 60}, "rate"),
        ({"hedge": True}, "hedge"),
        ({"on_event": 5}, "on_event"),
        ({"on_event": "log"}, "on_event"),
    ],
)
def test_a_session_refuses_what_cannot_control_its_flow(options: Any, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        session_over(memory(), **options)


@pytest.mark.parametrize("budget", [-1, 1.5, True, "500"])
def test_a_flow_refuses_a_budget_that_is_no_whole_number(budget: Any) -> None:
    with pytest.raises(InvalidRequestError, match="retry_budget"):
        FlowControl(retry_budget=budget)


# ── weights ──


@pytest.mark.looptime
async def test_no_more_documents_are_on_the_wire_than_the_weight_allows() -> None:
    server = Server(delay=1.0)
    flow = Concurrency(16, max_documents=10)
    async with session_over(server, concurrency=flow, chunks=ChunkLimits(4)) as session:
        response = await session.rerank("q", numbered(60))
    assert len(response.results) == 60
    assert server.most_documents == 8
    assert len(server.requests) == 15


async def test_lists_are_cut_to_what_may_be_on_the_wire_at_once() -> None:
    server = Server()
    async with session_over(server, concurrency=Concurrency(16, max_documents=32)) as session:
        await session.rerank("q", numbered(100))
    assert max(len(sent_documents(request)) for request in server.requests) <= 32
    assert server.most_documents <= 32


@pytest.mark.looptime
async def test_a_body_larger_than_the_weight_goes_alone_and_is_overtaken_by_nobody() -> None:
    server = Server(delay=1.0)
    flow = Concurrency(4, max_bytes=400)
    async with session_over(server, concurrency=flow, timeout=None) as session:
        small = [asyncio.create_task(session.rerank(f"{n}", ONE)) for n in range(3)]
        large = asyncio.create_task(session.rerank("large", ["document 1" + " x" * 500]))
        later = [asyncio.create_task(session.rerank(f"later {n}", ONE)) for n in range(20)]
        await asyncio.gather(*small, large, *later)
    assert server.queries[:4] == ["0", "1", "2", "large"]
    assert server.times[3:5] == [1.0, 2.0]
    assert server.most_bytes == len(server.requests[3].body)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    limit=st.integers(1, 6),
    weight=st.integers(1, 16),
    cancelled=st.sets(st.integers(0, 39)),
)
def test_whatever_the_weights_the_order_is_kept_and_the_limit_too(
    counts: list[int], limit: int, weight: int, cancelled: set[int]
) -> None:
    async def run() -> None:
        server = Server()
        flow = Concurrency(limit, max_documents=weight)
        async with session_over(server, concurrency=flow, chunks=ChunkLimits(weight)) as session:
            calls = [
                asyncio.create_task(session.rerank(f"{n}", numbered(min(count, weight))))
                for n, count in enumerate(counts)
            ]
            await steps(1)
            on_the_wire = session.statistics().in_flight
            for n in cancelled:
                if on_the_wire <= n < len(calls):
                    calls[n].cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert_idle(session)
        served = [int(query) for query in server.queries]
        assert served == sorted(served)
        assert server.most_documents <= weight
        assert server.most_in_flight <= limit
        for n, result in enumerate(results):
            assert (n in served) == (not isinstance(result, BaseException))

    asyncio.run(run())


# ── rates ──


@pytest.mark.looptime
async def test_requests_are_spread_over_the_minute() -> None:
    server = Server()
    async with session_over(server, rate=RateLimit(requests_per_minute=60)) as session:
        await asyncio.gather(*(session.rerank(f"{n}", ONE) for n in range(11)))
        assert_idle(session)
    assert server.times == pytest.approx(range(11), abs=1e-3)
    assert server.queries == [str(n) for n in range(11)]


@pytest.mark.looptime
async def test_tokens_are_counted_with_the_query_once_for_every_document() -> None:
    server = Server()
    limits = ChunkLimits(count_tokens=lambda text: 10)
    rate = RateLimit(tokens_per_minute=60 * 60)
    async with session_over(server, chunks=limits, rate=rate) as session:
        # Three documents and three times the query: 60 tokens, as many as come in a second. The
        # server then says that it were 3, and the rest is given back.
        for _ in range(4):
            await session.rerank("q", numbered(3))
        assert now() == pytest.approx(3 * 3 / 60, abs=1e-3)


@pytest.mark.looptime
async def test_what_failed_has_cost_its_tokens() -> None:
    server = Server(once(TransportError("broke")))
    limits = ChunkLimits(count_tokens=lambda text: 10)
    rate = RateLimit(tokens_per_minute=60 * 20)
    policy = RetryPolicy(base=1e-9)
    async with session_over(server, chunks=limits, rate=rate, retry=policy) as session:
        await session.rerank("q", ONE)
    assert server.times == pytest.approx([0.0, 1.0], abs=1e-3)


@pytest.mark.looptime
async def test_a_large_request_is_not_starved_by_small_ones_under_a_rate_of_tokens() -> None:
    def unbilled(request: HttpRequest) -> HttpResponse:
        data = [{"index": n, "relevance_score": 0.0} for n in range(len(sent_documents(request)))]
        return HttpResponse(200, {}, orjson.dumps({"data": data, "model": "m"}))

    server = Server(unbilled)
    limits = ChunkLimits(count_tokens=lambda text: 5)
    rate = RateLimit(tokens_per_minute=60 * 100)
    async with session_over(server, chunks=limits, rate=rate, timeout=None) as session:
        small = [asyncio.create_task(session.rerank(f"{n}", ONE)) for n in range(12)]
        large = asyncio.create_task(session.rerank("large", numbered(100)))
        later = [asyncio.create_task(session.rerank(f"later {n}", ONE)) for n in range(50)]
        await asyncio.gather(*small, large, *later)
    assert server.queries[12] == "large"
    # Full again one second later at most, and then ten seconds of debt.
    assert server.times[12] <= 2.0
    assert server.times[13] == pytest.approx(server.times[12] + 9.1, abs=0.1)


@pytest.mark.looptime
async def test_headers_that_say_how_little_is_left_slow_the_client_down() -> None:
    def warn(request: HttpRequest) -> HttpResponse:
        answer = scoring(number_of)(request)
        return HttpResponse(200, {"x-ratelimit-remaining-requests": "0"}, answer.body)

    server = Server(warn)
    async with session_over(server, rate=RateLimit(requests_per_minute=600)) as session:
        for n in range(5):
            await session.rerank(f"{n}", ONE)
    # Ten could go at once; but nothing is left after each, and a new one comes every 0.1 s.
    assert server.times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4], abs=1e-3)


@pytest.mark.looptime
async def test_a_usage_that_cannot_be_true_blocks_nobody_for_longer_than_a_few_minutes() -> None:
    absurd = orjson.dumps(
        {
            "data": [{"index": 0, "relevance_score": 1.0}],
            "model": "m",
            "usage": {"total_tokens": 10**15},
        }
    )
    server = Server(once(HttpResponse(200, {}, absurd)))
    rate = RateLimit(tokens_per_minute=6000)
    async with session_over(server, rate=rate, timeout=None) as session:
        await session.rerank("q", ONE)
        with pytest.raises(DeadlineExceededError):
            await session.rerank("q", ONE, timeout=0.5)
        await session.rerank("q", ONE, timeout=600.0)


@pytest.mark.parametrize("tokens", [None, 1.5, -5, "5"])
async def test_under_a_rate_of_tokens_a_count_that_is_no_count_is_refused(tokens: Any) -> None:
    limits = ChunkLimits(count_tokens=lambda text: tokens)
    rate = RateLimit(tokens_per_minute=6000)
    async with session_over(Server(), chunks=limits, rate=rate) as session:
        with pytest.raises(InvalidRequestError, match="count_tokens"):
            await session.rerank("q", ONE)
        assert_idle(session)


@pytest.mark.looptime
async def test_a_call_cancelled_at_the_rate_takes_nothing_out_of_it() -> None:
    server = Server()
    async with session_over(server, rate=RateLimit(requests_per_minute=60)) as session:
        await session.rerank("0", ONE)
        calls = [asyncio.create_task(session.rerank(f"{n}", ONE)) for n in range(1, 10)]
        await asyncio.sleep(0.5)
        for call in calls[:-1]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert_idle(session)
    assert server.queries == ["0", "9"]
    assert server.times == pytest.approx([0.0, 1.0], abs=1e-3)


@pytest.mark.looptime
async def test_sessions_with_one_flow_share_its_rates() -> None:
    servers = [Server(), Server()]
    flow = FlowControl(rate=RateLimit(requests_per_minute=60))
    async with session_over(servers[0], flow=flow) as a, session_over(servers[1], flow=flow) as b:
        await asyncio.gather(*(s.rerank("q", ONE) for _ in range(3) for s in (a, b)))
    times = sorted(servers[0].times + servers[1].times)
    assert times == pytest.approx(range(6), abs=1e-3)


# ── resets in bursts ──


async def test_a_server_that_resets_above_three_connections_costs_no_call_of_150() -> None:
    """On a real wire, and with the number of slots that a session has when it is given nothing."""
    connections = resets = 0
    changes: list[LimitChanged] = []

    async def serve(peer: Peer) -> None:
        nonlocal connections, resets
        if connections >= 3:
            resets += 1
            peer.reset()
            return
        connections += 1
        try:
            while True:
                raw = await peer.request()
                await asyncio.sleep(0.01)
                await peer.send(http(true_answer(raw)))
        finally:
            connections -= 1

    def note(event: Event) -> None:
        if isinstance(event, LimitChanged):
            changes.append(event)

    documents = numbered(3)
    async with (
        ScriptedServer(serve) as server,
        session_over(None, server.url, concurrency=16, on_event=note) as session,
    ):
        calls = (session.rerank("q", documents) for _ in range(150))
        results = await asyncio.gather(*calls, return_exceptions=True)
        statistics = session.statistics()
    lost = [result for result in results if isinstance(result, BaseException)]
    assert not lost
    assert resets >= 10
    assert statistics.cuts >= 2
    assert statistics.limit < 16
    assert statistics.limit_reason in ("resets", "coming back")
    assert (changes[0].old, changes[0].new, changes[0].reason) == (16, 8, "resets")


@pytest.mark.looptime
async def test_a_given_number_is_back_a_second_after_a_burst_of_resets() -> None:
    broken = iter([*[TransportError("broke")] * 13])
    server = Server(lambda request: next(broken, None), delay=0.05)
    async with session_over(server, concurrency=16) as session:
        await asyncio.gather(*(session.rerank("q", ONE) for _ in range(16)))
        assert session.statistics().limit <= 8
        assert session.statistics().limit_reason == "resets"
        await asyncio.sleep(1.0)
        await asyncio.gather(*(session.rerank("q", ONE) for _ in range(40)))
        statistics = session.statistics()
        assert (statistics.limit, statistics.limit_reason) == (16, "coming back")
        assert statistics.cuts >= 1


@pytest.mark.looptime
@pytest.mark.parametrize("failure", [refusal(429), refusal(500), TransportError("broke")])
async def test_a_few_failures_leave_a_given_number_alone(failure: Any) -> None:
    number = 0

    def refuse(request: HttpRequest) -> HttpResponse | Exception | None:
        nonlocal number
        number += 1
        return failure if number % 50 < 3 else None

    told: list[Event] = []
    server = Server(refuse, delay=0.05)
    async with session_over(server, concurrency=16, on_event=told.append) as session:
        for _ in range(20):
            calls = (session.rerank("q", ONE) for _ in range(50))
            await asyncio.gather(*calls, return_exceptions=True)
        assert (session.statistics().limit, session.statistics().cuts) == (16, 0)
    assert not any(isinstance(event, LimitChanged) for event in told)


# ── the retry budget ──


async def test_when_the_budget_is_used_up_an_interactive_call_fails_at_once_and_says_so() -> None:
    server = Server(lambda request: TransportError("broke"))
    async with session_over(server, flow=FlowControl(retry_budget=13)) as session:
        with pytest.raises(TransportError, match="the retry budget is used up") as caught:
            await session.rerank("q", ONE)
        assert session.statistics().retries == 0
    assert caught.value.budget_exhausted
    assert "documents 0 to 0" in str(caught.value)
    assert_no_key(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).budget_exhausted


async def test_an_error_that_nobody_would_repeat_says_nothing_of_a_budget() -> None:
    server = Server(lambda request: refusal(400))
    async with session_over(server, flow=FlowControl(retry_budget=0)) as session:
        with pytest.raises(RerankError) as caught:
            await session.rerank("q", ONE)
    assert not caught.value.budget_exhausted


@pytest.mark.parametrize(
    ("failures", "left"),
    [
        ([refusal(500)], 100),
        ([refusal(429)], 100),
        ([refusal(500), refusal(500)], 86),
        ([refusal(500), refusal(429)], 86),
        ([refusal(429), refusal(500)], 95),
        ([refusal(500)] * 3, 72),
        ([refusal(500)] * 4, 58),
        ([refusal(400)], 100),
    ],
)
async def test_a_retry_is_paid_for_and_the_last_one_of_a_success_is_given_back(
    failures: list[HttpResponse], left: int
) -> None:
    flow = FlowControl(retry_budget=100)
    async with session_over(Server(once(*failures)), flow=flow, retry=QUICK) as session:
        await asyncio.gather(session.rerank("q", ONE), return_exceptions=True)
        assert session.statistics().retry_budget == left


async def test_a_success_at_once_earns_one_token_up_to_the_capacity() -> None:
    flow = FlowControl(retry_budget=20)
    async with session_over(Server(once(*[refusal(500)] * 2)), flow=flow, retry=QUICK) as session:
        await asyncio.gather(session.rerank("q", ONE), return_exceptions=True)
        left = []
        for _ in range(16):
            left.append(session.statistics().retry_budget)
            await session.rerank("q", ONE)
    assert left == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20]


async def test_a_budget_of_none_counts_nothing_and_one_of_nought_allows_nothing() -> None:
    async with session_over(
        Server(once(*[refusal(500)] * 3)), flow=FlowControl(retry_budget=None), retry=QUICK
    ) as session:
        await session.rerank("q", ONE)
        assert session.statistics().retry_budget is None
    async with session_over(
        Server(once(refusal(500))), flow=FlowControl(retry_budget=0), retry=QUICK
    ) as session:
        with pytest.raises(ServerError) as caught:
            await session.rerank("q", ONE)
        assert caught.value.budget_exhausted


@pytest.mark.parametrize("failure", [refusal(500), refusal(503), TransportError("broke")])
async def test_in_an_outage_each_call_is_sent_once_when_the_budget_is_used_up(
    failure: HttpResponse | Exception,
) -> None:
    server = Server(lambda request: failure)
    began = time.monotonic()
    async with session_over(server, retry=QUICK) as session:
        while session.statistics().retry_budget or session.statistics().calls < 40:
            with pytest.raises(RerankError):
                await session.rerank("q", ONE)
            if session.statistics().calls > 300:
                break
        before = len(server.requests)
        for _ in range(500):
            with pytest.raises(RerankError) as caught:
                await session.rerank("q", ONE)
            assert caught.value.budget_exhausted
        assert (len(server.requests) - before) / 500 <= 1.05
        # 500 tokens, 5 for the cheapest retry; time fills them again in ten minutes.
        earned = 500 * (time.monotonic() - began) / 600
        assert session.statistics().retries <= (500 + earned) / 5


@pytest.mark.parametrize("seed", range(4))
async def test_of_calls_to_a_server_that_fails_every_fifth_time_99_percent_succeed(
    seed: int,
) -> None:
    dice = random.Random(seed)
    server = Server(lambda request: refusal(500) if dice.random() < 0.2 else None)
    lowest = 500
    async with session_over(server, retry=QUICK, seed=seed) as session:
        failed = 0
        for _ in range(100):
            results = await asyncio.gather(
                *(session.rerank("q", ONE) for _ in range(20)), return_exceptions=True
            )
            failed += sum(isinstance(result, BaseException) for result in results)
            lowest = min(lowest, session.statistics().retry_budget or 0)
        assert_idle(session)
    assert failed / 2000 <= 0.01
    assert lowest >= 0


# ── parking ──


PARKED = RetryPolicy(attempts=2, base=0.01, throttle_base=0.01, max_outage=600.0)


@pytest.mark.looptime
async def test_a_bulk_call_waits_an_outage_out_and_one_at_a_time_asks() -> None:
    server = Server(lambda request: refusal(500) if now() < 300.0 else None, delay=0.5)
    async with session_over(server, retry=PARKED, timeout=None, concurrency=8) as session:
        responses = await asyncio.gather(*(session.rerank(f"{n}", ONE) for n in range(8)))
        assert_idle(session)
    assert all(response.complete for response in responses)
    assert server.times[-1] >= 300.0
    # Two attempts each, then one asks every so often: U(0, 30) apart at most.
    asked = [time for time in server.times if 5.0 < time < 300.0]
    assert 5 <= len(asked) <= 60
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(asked))


@pytest.mark.looptime
async def test_who_has_no_budget_is_parked_too() -> None:
    server = Server(lambda request: refusal(500) if now() < 100.0 else None)
    flow = FlowControl(retry_budget=0)
    async with session_over(server, retry=PARKED, timeout=None, flow=flow) as session:
        response = await session.rerank("q", ONE)
        assert response.complete
    assert now() >= 100.0


@pytest.mark.looptime
async def test_an_outage_longer_than_the_patience_ends_every_parked_call() -> None:
    server = Server(lambda request: TransportError("no route"))
    async with session_over(server, retry=PARKED, timeout=None) as session:
        calls = [asyncio.create_task(session.rerank(f"{n}", ONE)) for n in range(5)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {TransportError}
        assert 600.0 <= now() <= 700.0
        assert_idle(session)
        assert not session._route.origin.probing.locked()
        assert all("budget" not in str(result) for result in results)


@pytest.mark.looptime
async def test_a_parked_call_keeps_its_deadline() -> None:
    server = Server(lambda request: refusal(500))
    async with session_over(server, retry=PARKED, timeout=50.0) as session:
        calls = [asyncio.create_task(session.rerank(f"{n}", ONE)) for n in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert now() == 50.0
        assert {type(result) for result in results} == {DeadlineExceededError}
        assert not session._route.origin.probing.locked()
        assert_idle(session)


@pytest.mark.looptime
async def test_a_call_that_is_refused_for_what_it_is_does_not_stay_parked() -> None:
    server = Server(once(*[refusal(500)] * 3, refusal(401)))
    async with session_over(server, retry=PARKED, timeout=None) as session:
        with pytest.raises(RerankError, match="401"):
            await session.rerank("q", ONE)
        assert not session._route.origin.probing.locked()


@pytest.mark.looptime
@pytest.mark.parametrize("every", [1.0, 7.0, 45.0])
async def test_a_call_that_alone_is_failed_does_not_stay_parked_while_others_are_answered(
    every: float,
) -> None:
    server = Server(lambda request: refusal(500) if b"poison" in request.body else None)
    async with session_over(server, retry=PARKED, timeout=None) as session:
        await session.rerank("well", ONE)
        await asyncio.sleep(every / 2)
        call = asyncio.create_task(session.rerank("poison", ONE))
        await asyncio.sleep(every / 2)
        while not call.done() and now() < 1200.0:
            await session.rerank("well", ONE)
            await asyncio.sleep(every)
        done = call.done()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert done, "still parked after twenty minutes, with a server that answers everybody else"
    assert server.queries.count("poison") <= 50


@pytest.mark.looptime
async def test_when_the_server_is_back_those_who_were_parked_go_side_by_side() -> None:
    server = Server(lambda request: refusal(500) if now() < 60.0 else None, delay=1.0)
    async with session_over(server, retry=PARKED, timeout=None, concurrency=32) as session:
        await asyncio.gather(*(session.rerank(f"{n}", ONE) for n in range(32)))
    back = min(time for time in server.times if time >= 60.0)
    # One answer, and then the rest together; not one after the other for half a minute.
    assert now() - back <= 10.0


@pytest.mark.looptime
async def test_rerank_many_goes_through_an_outage_without_a_failure() -> None:
    server = Server(
        lambda request: refusal(503, retry_after="5") if 2.0 < now() < 120.0 else None, delay=0.1
    )
    policy = RetryPolicy(max_outage=600.0)
    async with session_over(server, retry=policy, timeout=None, concurrency=4) as session:
        requests = (RerankRequest(f"{n}", ONE) for n in range(200))
        names = [type(outcome).__name__ async for outcome in session.rerank_many(requests)]
        assert_idle(session)
    assert names == ["Reranked"] * 200
    outage = [time for time in server.times if 2.5 < time < 120.0]
    assert len(outage) <= 120


@pytest.mark.looptime
async def test_events_of_a_parked_call_count_its_attempts_on() -> None:
    told: list[Event] = []
    server = Server(lambda request: refusal(500) if now() < 20.0 else None)
    async with session_over(server, retry=PARKED, timeout=None, on_event=told.append) as session:
        await session.rerank("q", ONE)
        statistics = session.statistics()
    numbers = [event.attempt for event in told if isinstance(event, AttemptStarted)]
    assert numbers == list(range(1, len(server.requests) + 1))
    retried = [event.attempt for event in told if isinstance(event, AttemptRetried)]
    assert retried == numbers[:-1]
    assert (statistics.requests, statistics.retries) == (len(numbers), len(numbers) - 1)


# ── deadlines ──


@pytest.mark.looptime
async def test_an_attempt_gets_its_own_time_or_what_is_left_whichever_is_less() -> None:
    given: list[float | None] = []

    class Noting(Server):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            given.append(timeout)
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)

    server = Noting(delay=30.0)
    policy = RetryPolicy(attempt_timeout=4.0, base=1e-9)
    async with session_over(server, retry=policy) as session:
        with pytest.raises(DeadlineExceededError) as caught:
            await session.rerank("q", ONE, timeout=10.0)
        assert now() == 10.0
    # Of the last the call's own deadline is the end.
    assert given == [4.0, 4.0, None]
    assert type(caught.value.__cause__).__name__ == "RequestTimeoutError"


@pytest.mark.looptime
async def test_no_retry_is_begun_that_is_not_likely_to_be_over_in_time() -> None:
    server = Server(delay=4.0)
    async with session_over(server, retry=QUICK) as session:
        for _ in range(3):
            await session.rerank("q", ONE)
        began = now()
        server.refuse = once(refusal(500))
        with pytest.raises(ServerError):
            await session.rerank("q", ONE, timeout=7.0)
        # An answer takes four seconds, and after the first failure only three were left.
        assert now() == began + 4.0
        server.refuse = once(refusal(500))
        await session.rerank("q", ONE, timeout=9.0)


@pytest.mark.looptime
@pytest.mark.parametrize("source", ["list", "stream"])
async def test_at_the_deadline_a_partial_call_has_the_best_so_far(source: str) -> None:
    documents = numbered(20)
    server = Server(
        lambda request: refusal(500) if "document 0" in sent_documents(request) else None,
        delay=1.0,
    )
    policy = RetryPolicy(attempts=50, base=1e-9)
    async with session_over(
        server, chunks=PAIRS, concurrency=3, on_failure="partial", retry=policy
    ) as session:
        given: Any = documents if source == "list" else stream_of(documents)
        response = await session.rerank("q", given, timeout=3.5)
        assert now() == 3.5
        assert_idle(session)
    assert not response.complete
    scored = set(response.results.indices)
    # The first chunk fails on and on; of the two other slots each had answered three times.
    assert len(scored) == 12
    assert list(response.results.indices) == [i for i in best_first(documents) if i in scored]
    assert not scored & set(response.missing)
    assert {0, 1} <= set(response.missing)
    if source == "list":
        assert scored | set(response.missing) == set(range(20))
    # No retry was begun that could not have been over in time: of those it is said why they failed.
    assert [type(response.missing[index]) for index in (0, 1)] == [ServerError] * 2
    rest = [error for index, error in response.missing.items() if index > 1]
    assert {type(error) for error in rest} <= {DeadlineExceededError}


# ── storms ──


def faults(dice: random.Random, rate: float) -> Iterator[HttpResponse | Exception | None]:
    failures: list[HttpResponse | Exception] = [
        refusal(500),
        refusal(429),
        refusal(503, retry_after="1"),
        refusal(529),
        TransportError("broke"),
        HttpResponse(200, {}, b"{"),
        HttpResponse(200, {}, b'{"data":[{"index":0,"relevance_score":NaN}]}'),
    ]
    while True:
        yield dice.choice(failures) if dice.random() < rate else None


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("concurrency", [Concurrency(4, max_documents=9), Concurrency.adaptive(4)])
async def test_in_a_storm_every_document_is_scored_right_or_named(
    seed: int, concurrency: Concurrency
) -> None:
    dice = random.Random(seed)
    storm = faults(dice, 0.35)
    server = Server(lambda request: next(storm), delay=0.2)
    async with session_over(
        server,
        concurrency=concurrency,
        chunks=ChunkLimits(4),
        on_failure="partial",
        rate=RateLimit(6000),
        timeout=None,
        seed=seed,
    ) as session:

        async def call(n: int) -> None:
            documents = numbered(dice.randrange(1, 40))
            given: Any = documents if n % 2 else stream_of(documents)
            top_n = dice.choice([None, 3])
            response = await session.rerank(f"{n}", given, top_n=top_n)
            for result in response.results:
                assert result.relevance_score == number_of("", documents[result.index])
            scored = [i for i in best_first(documents) if i not in response.missing]
            assert response.complete == (not response.missing)
            assert list(response.results.indices) == scored[:top_n]

        calls = [asyncio.create_task(call(n)) for n in range(40)]
        await asyncio.sleep(1.0)
        gone = dice.sample(calls, 10)
        for task in gone:
            task.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        for task, result in zip(calls, results, strict=True):
            assert result is None or (
                task in gone and isinstance(result, asyncio.CancelledError)
            ), result
        statistics = session.statistics()
        assert_idle(session)
        assert statistics.retry_budget is not None
        assert 0 <= statistics.retry_budget <= 500
    assert server.in_flight == 0


# ── a hundred thousand calls ──

_CROWD = """
import asyncio, random, re, sys
import orjson
from rerank_async import RerankSession
from rerank_async.testing import HttpResponse

COUNT, PICK = int(sys.argv[1]), sys.argv[2]
ANSWER = HttpResponse(200, {}, b'{"data":[{"index":0,"relevance_score":1.0}],"model":"m"}')


class Gated:
    def __init__(self):
        self.gate = asyncio.Event()
        self.served = []

    async def exchange(self, request, *, body_limit, timeout):
        await self.gate.wait()
        self.served.append(int(orjson.loads(request.body)["query"]))
        return ANSWER

    async def close(self):
        pass


def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])


async def main():
    server, answered, cancelled = Gated(), set(), set()
    async with RerankSession("https://memory.test/v1", model="m", http=server) as session:
        calls = {n: asyncio.create_task(session.rerank(str(n), ["d"])) for n in range(COUNT)}
        while session.statistics().waiting < COUNT - 16:
            await asyncio.sleep(0)
        waiting = peak()
        gone = set(range(1, COUNT, 2))
        if PICK == "random":
            gone = set(random.Random(1).sample(range(COUNT), COUNT // 2))
        for number in gone:
            calls[number].cancel()
        server.gate.set()
        while calls:
            for _ in range(COUNT // 500):
                await asyncio.sleep(0)
            # Whoever keeps a hundred thousand answers keeps them, not the session.
            for number in [number for number, call in calls.items() if call.done()]:
                call = calls.pop(number)
                (cancelled if call.cancelled() else answered).add(number)
                assert call.cancelled() or len(call.result().results) == 1
        statistics = session.statistics()
        assert (statistics.in_flight, statistics.waiting) == (0, 0), statistics
        assert session._flow.limiter._admission.documents == 0
        assert session._flow.limiter._admission.bytes == 0
        assert cancelled == gone
        assert server.served == [n for n in range(COUNT) if n not in gone], "not in order"
        assert len(answered) == COUNT - len(gone)
    print(waiting, peak())


asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory")
@pytest.mark.parametrize(("count", "pick"), [(100_000, "random"), (20_000, "every second")])
def test_a_hundred_thousand_calls_wait_in_300_mebibytes_and_half_of_them_may_go(
    count: int, pick: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CROWD, str(count), pick],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    waiting, peak = map(int, done.stdout.split())
    assert waiting / 1024 < 300
    assert peak / 1024 < 330


# ── what attacks found ──


@pytest.mark.looptime
@pytest.mark.parametrize("calls", [1, 32, 200])
async def test_an_outage_longer_than_the_patience_ends_all_at_about_the_same_time(
    calls: int,
) -> None:
    down = memory(script=iter(lambda: TransportError("down"), None))
    policy = RetryPolicy(max_outage=60.0)
    async with session_over(down, retry=policy, timeout=None) as session:
        errors = await asyncio.gather(
            *(session.rerank("q", ONE) for _ in range(calls)), return_exceptions=True
        )
    assert all(isinstance(error, TransportError) for error in errors)
    assert now() < 90.0


@pytest.mark.looptime
async def test_parked_calls_that_are_throttled_ask_ever_less_often() -> None:
    server = Server(refuse=lambda request: refusal(429) if b'"t"' in request.body else None)
    policy = RetryPolicy(max_outage=600.0)
    async with session_over(server, retry=policy, timeout=None) as session:
        throttled = [asyncio.create_task(session.rerank("t", ONE)) for _ in range(10)]
        while not all(task.done() for task in throttled):
            await session.rerank("q", ONE)
            await asyncio.sleep(1.0)
        assert all(isinstance(task.exception(), RateLimitError) for task in throttled)
        # Each doubles its wait up to half a minute: 15 s on average, in ten minutes.
        assert session.statistics().throttled < 10 * 80


@pytest.mark.looptime
async def test_no_retry_is_paid_for_that_the_gate_lets_go_too_late() -> None:
    def refuse(request: HttpRequest) -> HttpResponse:
        return refusal(429, retry_after="100") if b'"gate"' in request.body else refusal(500)

    async with session_over(Server(refuse=refuse, delay=1.0)) as session:
        gate = asyncio.create_task(session.rerank("gate", ONE, timeout=5.0))
        await asyncio.sleep(0.5)
        # It is answered once the gate is closed, for longer than it has time.
        with pytest.raises(ServerError):
            await session.rerank("late", ONE, timeout=30.0)
        assert now() == pytest.approx(1.5)
        with pytest.raises(RateLimitError):
            await gate
        assert session.statistics().retry_budget == 500
        assert session.statistics().retries == 0


@pytest.mark.looptime
async def test_who_waits_to_ask_when_the_patience_is_over_does_not_ask() -> None:
    down = memory(script=iter(lambda: TransportError("down"), None), delay=5.0)
    policy = RetryPolicy(attempts=1, max_outage=60.0)
    async with session_over(down, retry=policy, timeout=None) as session:
        errors = await asyncio.gather(
            *(session.rerank("q", ONE) for _ in range(40)), return_exceptions=True
        )
    assert all(isinstance(error, TransportError) for error in errors)
    # One after the other, all forty would have taken 200 s for asking alone.
    assert now() < 100.0


async def test_a_parked_call_does_not_go_before_those_who_came_earlier() -> None:
    answers = iter([refusal(429)])
    server = Server(refuse=lambda request: next(answers, None))
    policy = RetryPolicy(attempts=1, max_outage=600.0)
    async with session_over(server, retry=policy, concurrency=1, timeout=None) as session:
        await asyncio.gather(*(session.rerank(query, ONE) for query in ("t", "a", "b", "c")))
    assert server.queries == ["t", "a", "b", "c", "t"]


@pytest.mark.looptime
async def test_attempts_that_the_deadline_ends_cut_an_adaptive_limit() -> None:
    # It works on eight at once, and each of more takes as long as all of them together.
    class Slow(MemoryTransport):
        async def exchange(self, request: HttpRequest, **options: Any) -> HttpResponse:
            self.in_flight += 1
            try:
                await asyncio.sleep(0.2 if self.in_flight <= 8 else 60.0)
            finally:
                self.in_flight -= 1
            return await super().exchange(request, **options)

    server = Slow(scoring(number_of))
    async with session_over(
        server, concurrency=Concurrency.adaptive(32), timeout=2.0, retry=QUICK
    ) as session:

        async def user() -> int:
            answered = 0
            for _ in range(60):
                try:
                    await session.rerank("q", ONE)
                    answered += 1
                except DeadlineExceededError:
                    pass
            return answered

        answered = await asyncio.gather(*(user() for _ in range(32)))
        assert session.statistics().cuts > 0
        assert "timeouts" in session.statistics().limit_reason or sum(answered) > 32 * 30


async def test_a_log_handler_that_raises_breaks_no_call_and_keeps_no_slot() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("a broken handler")

    logger = logging.getLogger("rerank_async")
    handler = Broken()
    logger.addHandler(handler)
    try:
        server = memory(script=[refusal(429), None, refusal(429)])
        async with session_over(
            server, concurrency=Concurrency.adaptive(4), retry=QUICK
        ) as session:
            await asyncio.gather(*(session.rerank("q", ONE) for _ in range(40)))
            assert (session.statistics().in_flight, session.statistics().waiting) == (0, 0)
    finally:
        logger.removeHandler(handler)


async def test_a_call_that_waits_keeps_no_body_also_after_a_size_was_refused() -> None:
    server = GatedTransport(script=[refusal(413, "too many documents")])
    async with session_over(server, concurrency=1) as session:
        server.gate.set()
        await session.rerank("q", numbered(64))
        assert session.statistics().splits == 1
        server.gate.clear()
        calls = [asyncio.create_task(session.rerank("q", numbered(20))) for _ in range(3)]
        await until(lambda: session.statistics().waiting == 2)
        parcels = [thing for thing in gc.get_objects() if type(thing).__name__ == "Parcel"]
        waiting = [parcel for parcel in parcels if len(parcel.chunk.documents) == 20]
        assert sorted(parcel.request is None for parcel in waiting) == [False, True, True]
        del parcels, waiting
        server.gate.set()
        await asyncio.gather(*calls)


# ── servers that were never reached, and what is known of those that wait ──

REFUSED = "could not connect: Connection refused"


def unreachable() -> RequestTimeoutError:
    """What comes of an address that swallows whatever is sent to it."""
    error = RequestTimeoutError("no connection within 10 s")
    error.reached = False
    return error


@pytest.mark.looptime
@pytest.mark.parametrize("calls", [1, 40])
@pytest.mark.parametrize("failure", [lambda: ConnectError(REFUSED), unreachable])
async def test_a_server_that_was_never_reached_is_given_up_after_seconds(
    calls: int, failure: Callable[[], TransportError]
) -> None:
    server = Server(lambda request: failure())
    async with session_over(server, retry=PARKED, timeout=None) as session:
        errors = await asyncio.gather(
            *(session.rerank("q", ONE) for _ in range(calls)), return_exceptions=True
        )
        assert {type(error) for error in errors} == {type(failure())}
        assert NEVER_REACHED <= now() < NEVER_REACHED + 2.0
        assert "this server was not reached once" in str(errors[0])
        # It is not waited out again, and asked all the same.
        before, sent = now(), len(server.times)
        with pytest.raises(type(failure())):
            await session.rerank("q", ONE)
        assert now() - before < 1.0
        assert len(server.times) > sent
        assert_idle(session)


@pytest.mark.looptime
@pytest.mark.parametrize("concurrency", [16, Concurrency.adaptive()])
async def test_a_server_that_swallows_connections_is_given_up_within_half_a_minute(
    concurrency: Any,
) -> None:
    server = Server(lambda request: unreachable(), delay=10.0)
    policy = RetryPolicy(max_outage=600.0)
    async with session_over(server, retry=policy, timeout=None, concurrency=concurrency) as session:
        requests = [RerankRequest(query=f"{n}", documents=ONE) for n in range(50)]
        async with aclosing(session.rerank_many(requests)) as outcomes:
            async for outcome in outcomes:
                assert isinstance(outcome, Failed)
                assert 20.0 <= now() < 32.0
                assert "this server was not reached once" in str(outcome.error)
                break


@pytest.mark.looptime
async def test_a_server_that_starts_together_with_its_client_is_waited_for() -> None:
    def failure(request: HttpRequest) -> Any:
        # It listens after five seconds, and has loaded its model after five minutes.
        if now() < 5.0:
            return ConnectError(REFUSED)
        return refusal(503) if now() < 300.0 else None

    async with session_over(Server(failure), retry=PARKED, timeout=None) as session:
        responses = await asyncio.gather(*(session.rerank(f"{n}", ONE) for n in range(8)))
    assert all(response.complete for response in responses)


@pytest.mark.looptime
@pytest.mark.parametrize("first", [None, refusal(503), TransportError("broken")])
async def test_a_server_that_was_reached_once_is_waited_for(first: Any) -> None:
    failures = iter([first])

    def failure(request: HttpRequest) -> Any:
        return next(failures, ConnectError(REFUSED) if now() < 300.0 else None)

    async with session_over(Server(failure), retry=PARKED, timeout=None) as session:
        await session.rerank("a", ONE)
        await asyncio.sleep(1.0)
        await session.rerank("b", ONE)
    assert now() >= 300.0


@pytest.mark.looptime
async def test_an_outage_is_waited_out_once_whatever_comes_later() -> None:
    down = True
    server = Server(lambda request: TransportError("down") if down else None)
    policy = RetryPolicy(attempts=2, base=0.01, max_outage=60.0)
    async with session_over(server, retry=policy, timeout=None, concurrency=2) as session:
        requests = [RerankRequest(query=f"{n}", documents=ONE) for n in range(50)]
        outcomes = [outcome async for outcome in session.rerank_many(requests)]
        assert all(isinstance(outcome, Failed) for outcome in outcomes)
        assert 60.0 <= now() < 70.0
        # Until it answers somebody: then the next outage is another one.
        down = False
        await session.rerank("q", ONE)
        down, began = True, now()
        with pytest.raises(TransportError):
            await session.rerank("q", ONE)
        assert now() - began > 59.9
        # And so is one that comes long after the last that anybody heard of it.
        await asyncio.sleep(1000.0)
        began = now()
        with pytest.raises(TransportError):
            await session.rerank("q", ONE)
        assert now() - began > 59.9


@pytest.mark.looptime
async def test_who_waits_is_seen_with_the_reason_at_once() -> None:
    down = True

    def failure(request: HttpRequest) -> Any:
        return ConnectError(REFUSED) if down else None

    heard: list[Event] = []
    policy = RetryPolicy(attempts=2, base=2.0, max_outage=600.0)
    async with session_over(
        Server(failure), retry=policy, timeout=None, on_event=heard.append
    ) as session:
        assert (session.statistics().unanswered, session.statistics().problem) == (0.0, "")
        calls = [asyncio.create_task(session.rerank("q", ONE)) for _ in range(3)]
        await asyncio.sleep(0.001)
        seen = session.statistics()
        assert (seen.backing_off, seen.parked, seen.problem) == (3, 0, REFUSED)
        await asyncio.sleep(5.0)
        seen = session.statistics()
        assert (seen.backing_off, seen.parked, seen.problem) == (0, 3, REFUSED)
        assert 4.9 < seen.unanswered < 5.1
        waits = [event for event in heard if isinstance(event, Waiting)]
        assert [(wait.reason, wait.seconds) for wait in waits] == [("outage", None)] * 3
        assert all(REFUSED in str(wait.error) for wait in waits)
        down = False
        await asyncio.gather(*calls)
        seen = session.statistics()
        assert (seen.backing_off, seen.parked) == (0, 0)
        assert (seen.unanswered, seen.problem) == (0.0, "")


@pytest.mark.looptime
@pytest.mark.parametrize("reason", ["slot", "gate", "rate"])
async def test_what_a_waiting_request_lacks_is_said(reason: str) -> None:
    first = refusal(429, retry_after="50") if reason == "gate" else None
    failures = iter([first])
    server = Server(lambda request: next(failures, None), delay=10.0)
    heard: list[Event] = []
    async with session_over(
        server,
        concurrency=1 if reason == "slot" else 8,
        rate=RateLimit(requests_per_minute=1) if reason == "rate" else None,
        timeout=None,
        on_event=heard.append,
    ) as session:
        assert session.statistics().waiting_for == ""
        one = asyncio.create_task(session.rerank("a", ONE))
        await asyncio.sleep(11.0 if reason == "gate" else 0.1)
        two = asyncio.create_task(session.rerank("b", ONE))
        await asyncio.sleep(0.1)
        assert session.statistics().waiting_for == reason
        [wait] = [e for e in heard if isinstance(e, Waiting) and e.call != heard[0].call]
        assert wait.reason == reason
        assert (wait.seconds is not None) == (reason == "gate")
        await asyncio.gather(one, two)
        assert session.statistics().waiting_for == ""


# ── a stream that is asked to stop ──


@pytest.mark.looptime
@pytest.mark.parametrize("wait", ["slot", "gate", "rate", "retry", "parked", "source"])
async def test_a_stream_that_is_asked_to_stop_waits_for_nothing_but_the_wire(wait: str) -> None:
    answers: dict[str, Any] = {
        "gate": refusal(429, retry_after="100"),
        "retry": refusal(500),
        "parked": refusal(503),
    }
    server = Server(lambda request: answers.get(wait), delay=2.0)
    stop = asyncio.Event()

    async def source() -> AsyncIterator[RerankRequest]:
        for number in range(20):
            yield RerankRequest(query=f"{number}", documents=ONE)
        if wait == "source":
            await asyncio.sleep(1000.0)

    async with session_over(
        server,
        concurrency=4,
        rate=RateLimit(requests_per_minute=1) if wait == "rate" else None,
        retry=RetryPolicy(attempts=2, base=100.0, max_wait=100.0, max_outage=600.0),
        timeout=None,
    ) as session:
        asyncio.get_running_loop().call_later(21.0 if wait == "source" else 3.0, stop.set)
        outcomes = [outcome async for outcome in session.rerank_many(source(), stop=stop)]
        assert_idle(session)
    # What was on the wire was asked at 2 s at the latest, and takes two more.
    assert now() <= (21.1 if wait == "source" else 4.1)
    reranked = [outcome for outcome in outcomes if not isinstance(outcome, Failed)]
    stopped = [one for one in outcomes if isinstance(one, Failed)]
    assert all(isinstance(one.error, (StoppedError, ServerError)) for one in stopped)
    if wait == "source":
        assert len(reranked) == 20
    else:
        assert len(reranked) == {"slot": 8, "rate": 1}.get(wait, 0)
        assert stopped
    assert len(server.times) <= 20


@pytest.mark.looptime
async def test_of_a_sequence_the_rest_comes_out_as_stopped() -> None:
    stop = asyncio.Event()
    requests = [RerankRequest(query=f"{number}", documents=ONE) for number in range(50)]
    server = Server(delay=1.0)
    async with session_over(server, concurrency=4) as session:
        asyncio.get_running_loop().call_later(1.5, stop.set)
        outcomes = [outcome async for outcome in session.rerank_many(requests, stop=stop)]
    assert sorted(int(outcome.request.query) for outcome in outcomes) == list(range(50))
    failed = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(failed) == 42
    assert all(isinstance(error, StoppedError) for error in failed)
    assert len(server.times) == 8
