"""Hedging: when a backup is sent, which answer counts, and what is left of the one that lost."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rerank_async import (
    ChunkLimits,
    Concurrency,
    DeadlineExceededError,
    FlowControl,
    HedgePolicy,
    InvalidRequestError,
    RateLimit,
    RequestTimeoutError,
    RerankSession,
    RetryPolicy,
    ServerError,
    StatusError,
    TransportError,
)
from rerank_async.events import AttemptFinished, AttemptStarted, Event, Hedged
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.support import (
    Peer,
    ScriptedServer,
    assert_no_key,
    best_first,
    http,
    memory,
    number_of,
    numbered,
    refusal,
    scored,
    session_over,
    steps,
    true_answer,
    until,
)

ONE = ["document 1"]
ONCE = RetryPolicy(attempts=1)
# One backup for each request may be saved up at once, and few samples are enough.
EAGER = HedgePolicy(max_extra=0.99, min_samples=10)


def now() -> float:
    return asyncio.get_running_loop().time()


class Paced(MemoryTransport):
    """A server in memory whose answers take 0.1 s each, unless `plan` says otherwise.

    Attributes:
        plan: what becomes of the next requests, in order: how long each takes, and how it ends;
            None ends it as it should.
        cancelled: how many were called back.
    """

    def __init__(self) -> None:
        super().__init__(scoring(number_of))
        self.plan: list[tuple[float, HttpResponse | Exception | None]] = []
        self.times: list[float] = []
        self.cancelled = 0

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        self.times.append(now())
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        delay, step = self.plan.pop(0) if self.plan else (0.1, None)
        try:
            if timeout is not None and timeout < delay:
                await asyncio.sleep(timeout)
                raise RequestTimeoutError(f"no answer within {timeout:g} s")
            await asyncio.sleep(delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        if isinstance(step, Exception):
            raise step
        return self._handler(request) if step is None else step


@asynccontextmanager
async def warmed(
    hedge: HedgePolicy | None = EAGER, *, calls: int = 60, **options: Any
) -> AsyncGenerator[tuple[RerankSession, Paced, list[Event]], None]:
    """A session that has seen so many answers of 0.1 s, the events since, and an idle end."""
    transport = Paced()
    told: list[Event] = []
    async with session_over(transport, hedge=hedge, on_event=told.append, **options) as session:
        for _ in range(calls):
            await session.rerank("warm", ONE)
        told.clear()
        transport.requests.clear()
        transport.times.clear()
        transport.most_in_flight = 0
        yield session, transport, told
        statistics = session.statistics()
        assert (statistics.in_flight, statistics.waiting) == (0, 0)
        assert transport.in_flight == 0
        started = [event for event in told if isinstance(event, AttemptStarted)]
        finished = [event for event in told if isinstance(event, AttemptFinished)]
        assert len(started) == len(finished)


# ── when a backup is sent ──


@pytest.mark.looptime
async def test_a_straggler_gets_a_backup_and_the_first_answer_counts() -> None:
    async with warmed() as (session, transport, told):
        transport.plan = [(30.0, None)]
        began = now()
        response = await session.rerank("q", ONE)
        assert response.complete
        # A percentile is too high by nine percent at most.
        assert transport.times[1] - began == pytest.approx(0.1, rel=0.1)
        assert now() - began == pytest.approx(0.2, rel=0.1)
        assert transport.cancelled == 1
        assert session.statistics().hedges == 1
    [hedged] = [event for event in told if isinstance(event, Hedged)]
    assert (hedged.start, hedged.documents) == (0, 1)
    assert hedged.seconds == pytest.approx(0.1, rel=0.1)
    started = [event for event in told if isinstance(event, AttemptStarted)]
    assert [(event.attempt, event.hedge) for event in started] == [(1, False), (1, True)]
    finished = [event for event in told if isinstance(event, AttemptFinished)]
    assert [(event.hedge, type(event.error).__name__) for event in finished] == [
        (True, "NoneType"),
        (False, "CancelledError"),
    ]


@pytest.mark.looptime
async def test_without_a_policy_nothing_is_ever_sent_twice() -> None:
    async with warmed(None) as (session, transport, _):
        transport.plan = [(30.0, None)]
        await session.rerank("q", ONE)
        assert len(transport.requests) == 1


@pytest.mark.looptime
async def test_the_first_may_still_win_and_then_the_backup_is_called_back() -> None:
    async with warmed() as (session, transport, told):
        transport.plan = [(0.15, None), (30.0, None)]
        await session.rerank("q", ONE)
        assert len(transport.requests) == 2
        assert transport.cancelled == 1
    finished = [event for event in told if isinstance(event, AttemptFinished)]
    assert [event.hedge for event in finished] == [False, True]


@pytest.mark.looptime
async def test_as_long_as_too_few_answers_are_known_no_backup_is_sent() -> None:
    async with warmed(HedgePolicy(max_extra=0.99, min_samples=50), calls=49) as (session, t, _):
        t.plan = [(3.0, None), (3.0, None)]
        await session.rerank("q", ONE)
        assert len(t.requests) == 1
        await session.rerank("q", ONE)
        assert len(t.requests) == 3


@pytest.mark.looptime
async def test_what_is_known_of_small_chunks_says_nothing_of_large_ones() -> None:
    async with warmed() as (session, transport, _):
        transport.plan = [(3.0, None)]
        await session.rerank("q", numbered(100))
        assert len(transport.requests) == 1


@pytest.mark.looptime
async def test_what_is_known_is_forgotten_after_half_a_minute() -> None:
    async with warmed() as (session, transport, _):
        await asyncio.sleep(31.0)
        transport.plan = [(3.0, None)]
        await session.rerank("q", ONE)
        assert len(transport.requests) == 1


@pytest.mark.looptime
async def test_no_backup_is_sent_before_its_least_delay() -> None:
    policy = HedgePolicy(max_extra=0.99, min_samples=10, min_delay=2.0)
    async with warmed(policy) as (session, transport, _):
        transport.plan = [(1.9, None), (30.0, None)]
        await session.rerank("q", ONE)
        assert len(transport.requests) == 1
        began = now()
        await session.rerank("q", ONE)
        assert transport.times[2] - began == pytest.approx(2.0)


@pytest.mark.looptime
async def test_backups_are_a_twentieth_of_the_requests_at_most() -> None:
    policy = HedgePolicy(min_samples=10, percentile=0.7)
    async with warmed(policy, calls=40) as (session, transport, _):
        for number in range(200):
            if number % 5 == 0:
                transport.plan = [(3.0, None)]
            await session.rerank("q", ONE)
        # Every fifth takes long; of 240 requests twelve may have a backup.
        assert 8 <= session.statistics().hedges <= 12


@pytest.mark.looptime
async def test_a_backup_is_paid_for_out_of_the_retry_budget() -> None:
    flow = FlowControl(retry_budget=30)
    async with warmed(flow=flow) as (session, transport, _):
        transport.plan = [(3.0, None), (0.1, None)] * 3
        for _ in range(3):
            await session.rerank("q", ONE)
        # 30 − 14 + 1 − 14 + 1, and four are not enough for a third.
        assert session.statistics().hedges == 2
        assert session.statistics().retry_budget == 5


@pytest.mark.looptime
async def test_no_backup_is_sent_soon_after_a_throttle() -> None:
    async with warmed(retry=RetryPolicy(throttle_base=1e-9)) as (session, transport, _):
        transport.plan = [(0.1, refusal(429)), (3.0, None)]
        await session.rerank("q", ONE)
        assert len(transport.requests) == 2
        await asyncio.sleep(10.0)
        for _ in range(10):
            await session.rerank("q", ONE)
        transport.requests.clear()
        transport.plan = [(3.0, None)]
        await session.rerank("q", ONE)
        assert len(transport.requests) == 2


@pytest.mark.looptime
async def test_no_backup_is_sent_without_a_free_slot() -> None:
    async with warmed(concurrency=2) as (session, transport, _):
        transport.plan = [(3.0, None), (3.0, None)]
        await asyncio.gather(session.rerank("a", ONE), session.rerank("b", ONE))
        assert len(transport.requests) == 2
        assert session.statistics().hedges == 0
        # What was taken for it was put back.
        assert session.statistics().retry_budget == 500


@pytest.mark.looptime
async def test_no_backup_is_sent_that_weighs_too_much() -> None:
    async with warmed(concurrency=Concurrency(8, max_documents=1)) as (session, transport, _):
        transport.plan = [(3.0, None)]
        await session.rerank("q", ONE)
        assert len(transport.requests) == 1


@pytest.mark.looptime
async def test_no_backup_is_sent_over_the_rate() -> None:
    async with warmed(rate=RateLimit(requests_per_minute=60), calls=15, timeout=None) as (s, t, _):
        t.plan = [(0.5, None)]
        await s.rerank("q", ONE)
        assert len(t.requests) == 1


@pytest.mark.looptime
async def test_no_backup_is_sent_for_which_the_deadline_leaves_no_time() -> None:
    async with warmed() as (session, transport, _):
        transport.plan = [(3.0, None)]
        with pytest.raises(DeadlineExceededError):
            await session.rerank("q", ONE, timeout=0.15)
        assert len(transport.requests) == 1


@pytest.mark.looptime
async def test_each_chunk_of_a_call_may_have_a_backup_of_its_own() -> None:
    documents = numbered(12)
    async with warmed(chunks=ChunkLimits(1), concurrency=32) as (session, transport, _):
        transport.plan = [(30.0 if n < 4 else 0.05, None) for n in range(12)]
        began = now()
        response = await session.rerank("q", documents)
        assert now() - began < 1.0
        assert list(response.results.indices) == best_first(documents)
        assert session.statistics().hedges == 4


# ── which answer counts ──


@pytest.mark.looptime
@pytest.mark.parametrize(
    "bad",
    [
        refusal(500),
        refusal(429),
        TransportError("broke"),
        HttpResponse(200, {}, b"{"),
        scored([0.5, 0.5]),
        HttpResponse(200, {}, b'{"data":[{"index":0,"relevance_score":NaN}]}'),
    ],
)
@pytest.mark.parametrize("which", ["first", "backup"])
async def test_a_bad_answer_does_not_count_and_the_other_one_is_waited_for(
    bad: HttpResponse | Exception, which: str
) -> None:
    async with warmed(retry=ONCE) as (session, transport, _):
        if which == "first":
            transport.plan = [(0.2, bad), (0.5, None)]
        else:
            transport.plan = [(0.5, None), (0.05, bad)]
        response = await session.rerank("q", ONE)
        assert response.complete
        assert len(transport.requests) == 2
        assert transport.cancelled == 0


@pytest.mark.looptime
async def test_a_failure_before_the_backup_was_due_is_the_attempts_own() -> None:
    async with warmed(retry=ONCE) as (session, transport, _):
        transport.plan = [(0.01, refusal(500))]
        with pytest.raises(ServerError):
            await session.rerank("q", ONE)
        assert len(transport.requests) == 1


@pytest.mark.looptime
async def test_when_both_fail_the_one_that_failed_first_is_told() -> None:
    async with warmed(retry=ONCE) as (session, transport, told):
        transport.plan = [(0.5, refusal(500, "late")), (0.1, refusal(502, "early"))]
        with pytest.raises(ServerError, match="early") as caught:
            await session.rerank("q", ONE)
        assert_no_key(caught.value)
    assert len([event for event in told if isinstance(event, AttemptFinished)]) == 2


@pytest.mark.looptime
async def test_when_both_fail_the_attempt_is_made_again_once() -> None:
    async with warmed(retry=RetryPolicy(attempts=2, base=1e-9)) as (session, transport, _):
        transport.plan = [(0.5, refusal(500)), (0.1, refusal(500)), (0.1, None)]
        await session.rerank("q", ONE)
        assert len(transport.requests) == 3
        assert session.statistics().retries == 1


@pytest.mark.looptime
async def test_answers_that_come_together_are_both_asked_for_their_failures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = HedgePolicy(max_extra=0.99, min_samples=10, min_delay=1.0)
    endings: list[tuple[HttpResponse | Exception | None, HttpResponse | Exception | None]] = [
        (None, None),
        (refusal(500), None),
        (None, refusal(500)),
        (refusal(500), TransportError("broke")),
    ]
    for first, backup in endings:
        async with warmed(policy, retry=ONCE) as (session, transport, _):
            transport.plan = [(3.0, first), (2.0, backup)]
            results = await asyncio.gather(session.rerank("q", ONE), return_exceptions=True)
            both_fail = first is not None and backup is not None
            assert isinstance(results[0], Exception) == both_fail
            del results
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.looptime
@pytest.mark.parametrize("which", [0, 1])
async def test_a_request_that_others_cancelled_leaves_the_answer_to_the_other(which: int) -> None:
    async with warmed(retry=ONCE) as (session, transport, _):
        exchange = transport.exchange
        count = 0

        async def cancelled(request: HttpRequest, **limits: Any) -> HttpResponse:
            nonlocal count
            count += 1
            if count - 1 == which:
                await asyncio.sleep(0.2)
                raise asyncio.CancelledError
            return await exchange(request, **limits)

        transport.exchange = cancelled  # type: ignore[method-assign]
        transport.plan = [(1.0, None)]
        response = await session.rerank("q", ONE)
        assert response.complete


@pytest.mark.looptime
async def test_when_all_were_cancelled_by_others_the_call_fails_and_is_not_cancelled() -> None:
    async with warmed(retry=ONCE) as (session, transport, _):

        async def cancelled(request: HttpRequest, **limits: Any) -> HttpResponse:
            raise asyncio.CancelledError

        transport.exchange = cancelled  # type: ignore[method-assign]
        with pytest.raises(TransportError, match="cancelled from outside"):
            await session.rerank("q", ONE)


@pytest.mark.looptime
async def test_the_documents_of_a_backup_are_scored_once() -> None:
    documents = numbered(6)
    policy = HedgePolicy(max_extra=0.99, min_samples=10, min_delay=0.2)
    async with warmed(policy, chunks=ChunkLimits(1), concurrency=32) as (session, transport, _):
        transport.plan = [(0.4 if n < 6 else 0.2, None) for n in range(12)]
        response = await session.rerank("q", documents)
        assert sorted(response.results.indices) == list(range(6))
        assert len(transport.requests) == 12


# ── what is left ──


@pytest.mark.looptime
async def test_a_backup_counts_as_a_slot_until_it_ends() -> None:
    async with warmed(concurrency=2) as (session, transport, _):
        transport.plan = [(3.0, None), (3.0, None)]
        call = asyncio.create_task(session.rerank("q", ONE))
        await asyncio.sleep(0.2)
        assert session.statistics().in_flight == 2
        waiting = asyncio.create_task(session.rerank("q", ONE))
        await steps(5)
        assert session.statistics().waiting == 1
        await asyncio.gather(call, waiting)
        assert transport.most_in_flight == 2


@pytest.mark.looptime
@pytest.mark.parametrize("tenths", range(1, 12))
async def test_a_call_that_is_cancelled_calls_both_back(tenths: int) -> None:
    tasks = asyncio.all_tasks()
    async with warmed() as (session, transport, _):
        transport.plan = [(0.5, refusal(500)), (0.7, None)]
        call = asyncio.create_task(session.rerank("q", ONE))
        await asyncio.sleep(tenths / 10 - 0.03)
        call.cancel()
        results = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError) == (tenths <= 8)
        assert asyncio.all_tasks() == tasks
        await session.rerank("after", ONE)


@pytest.mark.looptime
async def test_a_deadline_calls_both_back_and_a_partial_call_says_what_is_missing() -> None:
    async with warmed(on_failure="partial") as (session, transport, _):
        transport.plan = [(30.0, None), (30.0, None)]
        began = now()
        response = await session.rerank("q", ONE, timeout=5.0)
        assert now() == began + 5.0
        assert list(response.missing) == [0]
        assert transport.cancelled == 2


@pytest.mark.looptime
async def test_closing_the_session_calls_both_back() -> None:
    transport = Paced()
    session = session_over(transport, hedge=EAGER)
    for _ in range(20):
        await session.rerank("warm", ONE)
    transport.plan = [(30.0, None), (30.0, None)]
    call = asyncio.create_task(session.rerank("q", ONE))
    await asyncio.sleep(1.0)
    assert transport.in_flight == 2
    await session.close()
    await asyncio.gather(call, return_exceptions=True)
    assert type(call.exception()).__name__ == "SessionClosedError"
    assert transport.in_flight == 0
    assert session.statistics().in_flight == 0


@pytest.mark.looptime
async def test_attempts_that_were_given_up_early_do_not_make_backups_come_earlier() -> None:
    async with warmed() as (session, _, _):
        # As a search box does that asks again with every letter.
        for _ in range(1500):
            call = asyncio.create_task(session.rerank("q", ONE))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        before = session.statistics().hedges
        for _ in range(20):
            await session.rerank("q", ONE)
        assert session.statistics().hedges == before


@pytest.mark.looptime
async def test_a_server_that_has_become_slow_is_known_as_slow_after_a_while() -> None:
    async with warmed(HedgePolicy(max_extra=0.3, min_samples=10)) as (session, transport, _):
        for _ in range(100):
            transport.plan = [(1.0, None), (1.0, None)]
            await session.rerank("q", ONE)
        before = session.statistics().hedges
        for _ in range(20):
            transport.plan = [(1.0, None), (1.0, None)]
            await session.rerank("q", ONE)
        assert session.statistics().hedges - before <= 2


async def test_a_document_that_is_no_unicode_is_refused_by_its_place_with_hedging_too() -> None:
    async with session_over(memory(), hedge=EAGER) as session:
        with pytest.raises(InvalidRequestError, match=r"documents\[1\]"):
            await session.rerank("q", ["a", "\ud800"])
        statistics = session.statistics()
        assert (statistics.in_flight, statistics.waiting) == (0, 0)


@pytest.mark.parametrize("hedge", [None, EAGER])
async def test_a_call_that_fails_holds_no_body_once_it_is_over(hedge: HedgePolicy | None) -> None:
    logging.getLogger("rerank_async").setLevel(logging.WARNING)
    async with session_over(memory(script=[refusal(400)]), hedge=hedge) as session:
        gc.collect()
        gc.disable()
        try:
            # Not `pytest.raises`, which makes a cycle of its own.
            try:
                await session.rerank("q", ["document 1 " + "x" * 10_000])
            except StatusError as error:
                status = error.status
            assert status == 400
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            held = [item for item in gc.garbage if type(item).__name__ == "Parcel"]
            assert not held
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
            logging.getLogger("rerank_async").setLevel(logging.NOTSET)


# ── on the wire ──


async def test_on_the_wire_the_losers_connection_is_closed_and_the_winners_kept() -> None:
    slow: list[Peer] = []
    begun = asyncio.Event()

    async def serve(peer: Peer) -> None:
        while True:
            raw = await peer.request()
            if b"slow" in raw and not slow:
                slow.append(peer)
                begun.set()
                await peer.until_gone()
            await peer.send(http(true_answer(raw)))

    tasks = asyncio.all_tasks()
    policy = HedgePolicy(max_extra=0.99, min_samples=5, min_delay=0.001)
    # No keeping of time is needed for it to be over: the slow one is never answered.
    async with (
        ScriptedServer(serve) as server,
        session_over(None, server.url, hedge=policy, retry=ONCE) as session,
    ):
        for _ in range(10):
            await session.rerank("quick", ONE)
        before = session.statistics().hedges
        response = await session.rerank("slow", ONE)
        assert response.complete
        assert session.statistics().hedges == before + 1
        assert session.statistics().in_flight == 0
        [peer] = slow
        await asyncio.wait_for(peer.gone.wait(), 10)
        connections = len(server.peers)
        for _ in range(5):
            await session.rerank("quick", ONE)
        assert len(server.peers) - connections <= session.statistics().hedges
        assert begun.is_set()
    assert asyncio.all_tasks() == tasks


async def test_on_the_wire_a_backup_that_is_no_http_leaves_the_call_to_the_first() -> None:
    answered = asyncio.Event()
    slow = 0

    async def serve(peer: Peer) -> None:
        nonlocal slow
        while True:
            raw = await peer.request()
            if b"slow" in raw:
                slow += 1
                if slow == 2:
                    await peer.send(b"not http at all\r\n\r\n")
                    answered.set()
                    await peer.until_gone()
                await answered.wait()
                for _ in range(20):
                    await asyncio.sleep(0)
            await peer.send(http(true_answer(raw)))

    policy = HedgePolicy(max_extra=0.99, min_samples=5, min_delay=0.001)
    async with (
        ScriptedServer(serve) as server,
        session_over(None, server.url, hedge=policy, retry=ONCE) as session,
    ):
        for _ in range(10):
            await session.rerank("quick", ONE)
        response = await session.rerank("slow", ONE)
        assert response.complete
        assert slow == 2
        await until(lambda: session.statistics().in_flight == 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("percentile", 1.0),
        ("percentile", 0),
        ("min_delay", 0),
        ("max_extra", 1.5),
        ("min_samples", 0),
        ("quiet", float("inf")),
    ],
)
def test_a_hedge_policy_refuses_what_cannot_work_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        HedgePolicy(**{name: value})
