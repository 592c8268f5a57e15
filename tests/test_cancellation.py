"""Cancelling a call, a stream or a close wherever it waits: nothing left, nothing swallowed."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import pytest

from rerank_async import (
    AuthenticationError,
    BadRequestError,
    ChunkLimits,
    Concurrency,
    DeadlineExceededError,
    HedgePolicy,
    InvalidRequestError,
    PermissionDeniedError,
    RateLimit,
    RequestTimeoutError,
    RerankError,
    RerankRequest,
    RerankSession,
    ResponseError,
    RetryPolicy,
    ServerError,
    SessionClosedError,
)
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.support import (
    GatedTransport,
    assert_no_key,
    memory,
    number_of,
    numbered,
    refusal,
    scored,
    sent_documents,
    session_over,
    steps,
    stream_of,
    until,
)

PAIRS = ChunkLimits(max_documents=2)
# Waits that are over at the next turn of the loop.
POLICY = RetryPolicy(base=1e-9, throttle_base=1e-9)


def hindered() -> Any:
    """A server in memory whose first answers are failures that are waited out."""
    return memory(script=[refusal(503), None, scored([1.0, 2.0, 3.0]), refusal(429)])


async def assert_nothing_is_left(
    session: RerankSession, transport: MemoryTransport, tasks: set[asyncio.Task[Any]]
) -> None:
    assert asyncio.all_tasks() == tasks
    statistics = session.statistics()
    assert (statistics.in_flight, statistics.waiting) == (0, 0)
    assert transport.in_flight == 0
    # Every slot is free again: as many calls as there are slots run side by side.
    response, *_ = await asyncio.gather(
        *(session.rerank("after", numbered(7)) for _ in range(statistics.limit))
    )
    assert len(response.results) == 7


@pytest.mark.parametrize("kind", ["one request", "list", "generator", "async generator"])
@pytest.mark.parametrize("concurrency", [1, 2, 16])
async def test_a_call_may_be_cancelled_at_any_step(kind: str, concurrency: int) -> None:
    tasks = asyncio.all_tasks()
    finished_at = None
    for k in range(400):
        documents: Any = numbered(2 if kind == "one request" else 9)
        if kind == "generator":
            documents = iter(documents)
        elif kind == "async generator":
            documents = stream_of(documents)
        transport = hindered()
        async with session_over(
            transport, chunks=PAIRS, concurrency=concurrency, retry=POLICY
        ) as session:
            call = asyncio.create_task(session.rerank("q", documents))
            await steps(k)
            if call.done():
                finished_at = k
                assert len((await call).results) in (2, 9)
                break
            call.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await call
            assert_no_key(caught.value)
            await assert_nothing_is_left(session, transport, tasks)
    # The sweep went through the whole call, its waits included.
    assert finished_at is not None
    assert finished_at > 4


@pytest.mark.looptime
async def test_a_call_may_be_cancelled_at_any_moment_of_its_waits() -> None:
    tasks = asyncio.all_tasks()
    for tenth in range(1, 60):
        transport = hindered()
        async with session_over(
            transport, chunks=PAIRS, concurrency=1, retry=RetryPolicy(base=2.0, throttle_base=2.0)
        ) as session:
            call = asyncio.create_task(session.rerank("q", numbered(9)))
            await asyncio.sleep(tenth / 10)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            assert call.cancelled() or tenth > 1
            await assert_nothing_is_left(session, transport, tasks)


async def test_rerank_many_may_be_closed_at_any_step() -> None:
    tasks = asyncio.all_tasks()
    seen_whole = False
    for k in range(400):
        transport = hindered()
        async with session_over(transport, chunks=PAIRS, concurrency=2, retry=POLICY) as session:
            outcomes = session.rerank_many(RerankRequest("q", numbered(5)) for _ in range(6))

            async def consume(outcomes: Any = outcomes) -> int:
                async with aclosing(outcomes):
                    return len([outcome async for outcome in outcomes])

            consumer = asyncio.create_task(consume())
            await steps(k)
            if consumer.done():
                seen_whole = await consumer == 6
                break
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            await assert_nothing_is_left(session, transport, tasks)
    assert seen_whole


@pytest.mark.parametrize("taken", range(6))
async def test_rerank_many_may_be_left_after_any_outcome(taken: int) -> None:
    tasks = asyncio.all_tasks()
    transport = memory()
    async with session_over(transport, concurrency=2) as session:
        requests = stream_of(RerankRequest("q", numbered(3)) for _ in range(50))
        async with aclosing(session.rerank_many(requests)) as outcomes:
            for _ in range(taken):
                await anext(outcomes)
        await assert_nothing_is_left(session, transport, tasks)
        await requests.aclose()


@pytest.mark.looptime
async def test_a_call_may_be_cancelled_while_it_waits_to_retry() -> None:
    tasks = asyncio.all_tasks()
    transport = memory(script=[refusal(429, retry_after="10")])
    async with session_over(transport, concurrency=1) as session:
        call = asyncio.create_task(session.rerank("q", ["document 1"]))
        await until(lambda: session.statistics().throttled == 1)
        await steps(5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert asyncio.get_running_loop().time() == 0.0
        await assert_nothing_is_left(session, transport, tasks)
    assert len([r for r in transport.requests if b'"q"' in r.body]) == 1


async def test_a_call_may_be_cancelled_while_it_waits_for_a_slot() -> None:
    tasks = asyncio.all_tasks()
    transport = GatedTransport()
    async with session_over(transport, concurrency=1) as session:
        first, second, third = (
            asyncio.create_task(session.rerank(name, ["document 1"])) for name in "abc"
        )
        await until(lambda: session.statistics().waiting == 2)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert session.statistics().waiting == 1
        transport.gate.set()
        await asyncio.gather(first, third)
        assert len(transport.requests) == 2
        await assert_nothing_is_left(session, transport, tasks)


async def test_a_call_cancelled_in_the_moment_it_is_given_a_slot_hands_it_on() -> None:
    transport = GatedTransport()
    async with session_over(transport, concurrency=1) as session:
        first, second, third = (
            asyncio.create_task(session.rerank(name, ["document 1"])) for name in "abc"
        )
        await until(lambda: session.statistics().waiting == 2)
        first.add_done_callback(lambda _: second.cancel())
        transport.gate.set()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert third.exception() is None
        assert session.statistics().in_flight == 0


@pytest.mark.parametrize("k", range(6))
async def test_a_close_that_was_cancelled_can_be_done_again(k: int) -> None:
    async def unhurried() -> Any:
        yield "document 1"
        try:
            await asyncio.Event().wait()
        finally:
            await steps(10)

    transport = memory()
    session = session_over(transport)
    call = asyncio.create_task(session.rerank("q", unhurried()))
    await steps(3)
    closing = asyncio.create_task(session.close())
    await steps(k)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await session.close()
    assert call.done()
    assert isinstance(call.exception(), SessionClosedError)
    assert transport.closed


async def test_two_closes_at_once_both_wait_for_the_calls_to_end() -> None:
    transport = GatedTransport()
    session = session_over(transport)
    call = asyncio.create_task(session.rerank("q", ["document 1"]))
    await until(lambda: transport.arrived == 1)

    async def close() -> bool:
        await session.close()
        return call.done() and transport.closed

    assert all(await asyncio.gather(close(), close()))
    await asyncio.gather(call, return_exceptions=True)


async def test_cancelling_a_call_wins_over_closing_its_session() -> None:
    transport = GatedTransport()
    session = session_over(transport)
    call = asyncio.create_task(session.rerank("q", ["document 1"]))
    await until(lambda: transport.arrived == 1)
    call.cancel()
    await session.close()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.looptime
async def test_a_callers_own_timeout_around_a_call_is_the_callers() -> None:
    tasks = asyncio.all_tasks()
    transport = memory(delay=10.0)
    async with session_over(transport, chunks=PAIRS) as session:

        async def call() -> None:
            async with asyncio.timeout(3.0):
                await session.rerank("q", numbered(9), timeout=60.0)

        with pytest.raises(TimeoutError) as caught:
            await call()
        assert not isinstance(caught.value, DeadlineExceededError)
        assert asyncio.get_running_loop().time() == 3.0
        await assert_nothing_is_left(session, transport, tasks)


@pytest.mark.looptime
async def test_a_callers_timeout_and_the_deadline_at_the_same_time_are_a_timeout() -> None:
    transport = memory(delay=10.0)
    async with session_over(transport, chunks=PAIRS) as session:

        async def call() -> None:
            async with asyncio.timeout(3.0):
                await session.rerank("q", numbered(9), timeout=3.0)

        with pytest.raises(TimeoutError):
            await call()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_a_sibling_that_fails_in_the_callers_task_group_ends_the_call() -> None:
    class SiblingError(Exception):
        pass

    transport = GatedTransport()

    async def sibling() -> None:
        await until(lambda: transport.arrived == 2)
        raise SiblingError

    async def together(session: RerankSession) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(session.rerank("q", numbered(4)))
            group.create_task(sibling())

    async with session_over(transport, chunks=PAIRS) as session:
        with pytest.raises(ExceptionGroup) as caught:
            await together(session)
        assert [type(error) for error in caught.value.exceptions] == [SiblingError]
        assert session.statistics().in_flight == 0


@pytest.mark.parametrize("k", [*range(12), 40])
async def test_a_cancellation_is_not_lost_when_a_chunk_fails_at_the_same_time(k: int) -> None:
    transport = memory(script=[refusal(422)])
    async with session_over(transport, chunks=PAIRS) as session:
        going_on = False

        async def caller() -> None:
            nonlocal going_on
            with suppress(Exception):
                await session.rerank("q", numbered(6))
            going_on = True
            await asyncio.Event().wait()

        task = asyncio.create_task(caller())
        await steps(k)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        # Whichever came first: a failure lets the caller go on to be cancelled later.
        assert going_on or k < 40


# ── with flow control ──


HEDGED = HedgePolicy(percentile=0.01, min_delay=1e-6, max_extra=0.99, min_samples=1, quiet=1e-6)


def assert_flow_is_as_new(session: RerankSession) -> None:
    """Slots, weights, queue, budget and the right to ask are all where they were."""
    admission = session._flow.limiter._admission
    assert (admission.requests, admission.documents, admission.bytes) == (0, 0, 0)
    assert session._flow.limiter.waiting == 0
    assert not session._route.origin.probing.locked()
    left = session.statistics().retry_budget
    assert left is not None
    assert 0 <= left <= 500


@pytest.mark.looptime
@pytest.mark.parametrize("kind", ["one request", "list", "async generator"])
@pytest.mark.parametrize("concurrency", [1, 2, 16])
async def test_a_hedged_call_may_be_cancelled_at_any_moment(kind: str, concurrency: int) -> None:
    tasks = asyncio.all_tasks()
    hedges = finished_at = 0
    for tick in range(1, 200):
        # Every answer takes a different time, so that backups win as well as lose.
        transport = memory(script=[None] * 4 + [refusal(503), None, scored([1.0, 2.0, 3.0])])
        async with session_over(
            transport,
            chunks=PAIRS,
            concurrency=Concurrency(concurrency, max_documents=12, max_bytes=2000),
            retry=POLICY,
            hedge=HEDGED,
        ) as session:
            for _ in range(4):
                await session.rerank("warm", numbered(2))
            transport._delay = 0.003
            documents: Any = numbered(2 if kind == "one request" else 9)
            if kind == "async generator":
                documents = stream_of(documents)
            call = asyncio.create_task(session.rerank("q", documents))
            await asyncio.sleep(tick * 0.00101)
            hedges += session.statistics().hedges
            if call.done():
                finished_at = tick
                await call
                break
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert_flow_is_as_new(session)
            await assert_nothing_is_left(session, transport, tasks)
            assert_flow_is_as_new(session)
    assert finished_at > 2
    assert hedges > 0 or concurrency < 16


@pytest.mark.parametrize("concurrency", [2, 16])
async def test_a_hedged_call_may_be_cancelled_at_any_step(concurrency: int) -> None:
    tasks = asyncio.all_tasks()
    finished_at = None
    for k in range(400):
        transport = hindered()
        async with session_over(
            transport, chunks=PAIRS, concurrency=concurrency, retry=POLICY, hedge=HEDGED
        ) as session:
            call = asyncio.create_task(session.rerank("q", numbered(9)))
            await steps(k)
            if call.done():
                finished_at = k
                break
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert_flow_is_as_new(session)
            await assert_nothing_is_left(session, transport, tasks)
    assert finished_at is not None
    assert finished_at > 4


@pytest.mark.parametrize("on_failure", ["raise", "partial"])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_call_may_be_cancelled_at_any_step_of_a_search(
    on_failure: str, concurrency: int
) -> None:
    tasks = asyncio.all_tasks()
    documents = numbered(12)
    answer = scoring(number_of)

    def rule(request: HttpRequest) -> HttpResponse:
        if b'"after"' in request.body:
            return answer(request)
        sent = sent_documents(request)
        if len(sent) > 8:
            return refusal(413, "too many documents")
        return refusal(422) if documents[5] in sent else answer(request)

    finished_at = None
    for k in range(400):
        transport = MemoryTransport(rule)
        async with session_over(
            transport, concurrency=concurrency, on_failure=on_failure
        ) as session:
            call = asyncio.create_task(session.rerank("q", documents))
            await steps(k)
            if call.done():
                finished_at = k
                await asyncio.gather(call, return_exceptions=True)
                break
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert_flow_is_as_new(session)
            await assert_nothing_is_left(session, transport, tasks)
    assert finished_at is not None
    assert finished_at > 8


@pytest.mark.looptime
@pytest.mark.parametrize("k", range(8))
async def test_calls_may_be_cancelled_at_the_gate_and_in_the_moment_it_opens(k: int) -> None:
    tasks = asyncio.all_tasks()
    for at in (1.0, 9.999, 10.0, 10.2, 10.5, 10.8, 11.0, 11.5):
        transport = memory(script=[refusal(429, retry_after="10")])
        async with session_over(transport, concurrency=2, seed=k) as session:
            began = asyncio.get_running_loop().time()
            calls = [asyncio.create_task(session.rerank(f"{n}", numbered(2))) for n in range(6)]
            await asyncio.sleep(at)
            await steps(k)
            for call in calls[::2]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert all(call.done() and not call.cancelled() for call in calls[1::2])
            assert_flow_is_as_new(session)
            await assert_nothing_is_left(session, transport, tasks)
            assert asyncio.get_running_loop().time() - began <= 13.0


@pytest.mark.looptime
@pytest.mark.parametrize("tenths", [*range(0, 40, 3), 123, 456, 789])
async def test_parked_calls_may_be_cancelled_at_any_moment_and_the_others_go_on(
    tenths: int,
) -> None:
    tasks = asyncio.all_tasks()
    loop = asyncio.get_running_loop()
    began = loop.time()

    def down(request: HttpRequest) -> HttpResponse:
        return refusal(500) if loop.time() - began < 60.0 else scoring(number_of)(request)

    policy = RetryPolicy(attempts=2, base=0.1, max_outage=600.0)
    for victims in (slice(0, 1), slice(0, None, 2), slice(0, 4), slice(3, 4)):
        began = loop.time()
        transport = MemoryTransport(down, delay=0.1)
        async with session_over(transport, retry=policy, timeout=None, concurrency=3) as session:
            calls = [asyncio.create_task(session.rerank(f"{n}", numbered(2))) for n in range(4)]
            await asyncio.sleep(tenths / 10 + 0.001)
            gone = [call for call in calls[victims] if not call.done()]
            for call in gone:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert all(call.cancelled() for call in gone)
            assert all(call.exception() is None for call in calls if call not in gone)
            assert_flow_is_as_new(session)
            if not any(call not in gone for call in calls):
                await asyncio.sleep(60.0)
            await assert_nothing_is_left(session, transport, tasks)


@pytest.mark.looptime
@pytest.mark.parametrize("k", range(12))
async def test_calls_may_be_cancelled_in_the_moment_a_rate_lets_them_go(k: int) -> None:
    transport = memory()
    async with session_over(transport, rate=RateLimit(requests_per_minute=60)) as session:
        calls = [asyncio.create_task(session.rerank(f"{n}", numbered(2))) for n in range(6)]
        await asyncio.sleep(2.0)
        await steps(k)
        calls[2].cancel()
        calls[3].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert all(calls[n].done() and not calls[n].cancelled() for n in (0, 1, 4, 5))
        assert_flow_is_as_new(session)
        # What those did not send is there for the next: nobody waits longer than six would.
        assert asyncio.get_running_loop().time() <= 5.01


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_is_cancelled_when_the_counts_come_back_to_zero(seed: int) -> None:
    dice = random.Random(seed)
    tasks = asyncio.all_tasks()
    failures = [refusal(500), refusal(429), refusal(422), None, None, None, None]
    transport = memory(script=[dice.choice(failures) for _ in range(60)])
    async with session_over(
        transport,
        concurrency=Concurrency(dice.choice([1, 2, 5]), max_documents=dice.choice([None, 4])),
        chunks=PAIRS,
        retry=POLICY,
        hedge=dice.choice([None, HEDGED]),
        on_failure="partial",
    ) as session:
        calls = [
            asyncio.create_task(session.rerank(f"{n}", numbered(dice.randrange(1, 9))))
            for n in range(30)
        ]
        for _ in range(60):
            await asyncio.sleep(0)
            dice.choice(calls).cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert_flow_is_as_new(session)
        transport._script = iter(())
        await assert_nothing_is_left(session, transport, tasks)


# ── when the call is over ──

HAS_EAGER_TASKS = hasattr(asyncio, "eager_task_factory")
FACTORIES = [
    "lazy tasks",
    pytest.param(
        "eager tasks",
        marks=[] if HAS_EAGER_TASKS else pytest.mark.skip("Python 3.12 brings eager tasks"),
    ),
]


def _eager(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
    # Not asyncio's own factory: of some Pythons it refuses an option that some loops pass.
    return asyncio.Task(work, loop=loop, **{**options, "eager_start": True})


class OddError(BaseException):
    """No `Exception`, as some frameworks' own signals are."""


class _Raising(MemoryTransport):
    """A server in memory that raises what no script of its may."""

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        raise OddError


def _failing(error: BaseException, after: int = 0) -> Any:
    yield from numbered(after)
    raise error


async def _failing_async(error: BaseException, after: int = 0, turns: int = 0) -> Any:
    for document in numbered(after):
        yield document
    await steps(turns)
    raise error


class _Wicked:
    """Async iterable whose end is slow, and must not be interrupted by the call's own end."""

    closed = False

    def __init__(self, error: BaseException | None = None) -> None:
        self._given, self._error = 0, error

    def __aiter__(self) -> _Wicked:
        return self

    async def __anext__(self) -> str:
        self._given += 1
        if self._given > 5 and self._error is not None:
            raise self._error
        return f"document {self._given}"

    async def aclose(self) -> None:
        await steps(5)
        self.closed = True


def _always(status: int) -> MemoryTransport:
    return MemoryTransport(lambda request: refusal(status))


def _closer(session: RerankSession, tasks: list[asyncio.Task[None]]) -> Any:
    """Documents that have the session closed, in whatever task reads them."""
    yield "document 1"
    tasks.append(asyncio.get_running_loop().create_task(session.close()))
    yield "document 2"
    yield "document 3"


def _first_fails() -> MemoryTransport:
    scores = scoring(number_of)
    return MemoryTransport(
        lambda request: refusal(500) if b"document 0" in request.body else scores(request)
    )


# How the documents may be, and what comes of it.
SOURCES: dict[str, tuple[Any, type[BaseException] | None]] = {
    "one request": (lambda: numbered(2), None),
    "list": (lambda: numbered(9), None),
    "generator": (lambda: iter(numbered(9)), None),
    "async generator": (lambda: stream_of(numbered(9)), None),
    "a list with a number": (lambda: [3], InvalidRequestError),
    "a long list with a number": (lambda: [*numbered(9), 3], InvalidRequestError),
    "a lone surrogate": (lambda: ["\ud800"], InvalidRequestError),
    "an iterator of a number": (lambda: iter([3]), InvalidRequestError),
    "a number at the end of an iterator": (lambda: iter([*numbered(8), 3]), InvalidRequestError),
    "an async generator of a number": (lambda: stream_of([3]), InvalidRequestError),
    "a number in an async generator": (lambda: stream_of([*numbered(8), 3]), InvalidRequestError),
    "an iterator that raises": (lambda: _failing(ValueError()), ValueError),
    "an iterator that raises later": (lambda: _failing(ValueError(), 8), ValueError),
    "an iterator that raises oddly": (lambda: _failing(OddError(), 3), OddError),
    "an iterator that raises a group": (
        lambda: _failing(ExceptionGroup("mine", [ValueError()]), 3),
        ExceptionGroup,
    ),
    "an iterator that is cancelled": (
        lambda: _failing(asyncio.CancelledError(), 3),
        asyncio.CancelledError,
    ),
    "an async generator that raises": (lambda: _failing_async(ValueError()), ValueError),
    "an async generator that raises later": (lambda: _failing_async(ValueError(), 8), ValueError),
    "an async generator that raises late": (lambda: _failing_async(ValueError(), 8, 9), ValueError),
    "an async generator that raises oddly": (lambda: _failing_async(OddError(), 3), OddError),
    "an async generator that raises a group": (
        lambda: _failing_async(ExceptionGroup("mine", [ValueError()]), 3),
        ExceptionGroup,
    ),
    "an async generator that is cancelled": (
        lambda: _failing_async(asyncio.CancelledError(), 3),
        asyncio.CancelledError,
    ),
    "an async iterable that raises, with a slow end": (lambda: _Wicked(KeyError()), KeyError),
}

# How a server may be, what a session over it is given, and what becomes of nine documents.
SERVERS: dict[str, tuple[Any, dict[str, Any], type[BaseException] | None]] = {
    "refused": (lambda: _always(401), {}, AuthenticationError),
    "refused, in partial mode": (
        lambda: _always(403),
        {"on_failure": "partial"},
        PermissionDeniedError,
    ),
    "searched for the bad ones": (lambda: _always(422), {}, BadRequestError),
    "too large": (lambda: _always(413), {}, BadRequestError),
    "retries are used up": (lambda: _always(500), {}, ServerError),
    "some are missing": (_first_fails, {"on_failure": "partial"}, None),
    "all are missing": (lambda: _always(500), {"on_failure": "partial"}, None),
    "another model": (
        lambda: memory(script=[scored([1.0, 2.0]), scored([1.0, 2.0], model="other")] * 9),
        {},
        ResponseError,
    ),
    "an odd transport": (lambda: _Raising(scoring(number_of)), {}, OddError),
    "hedged": (memory, {"hedge": HEDGED}, None),
    "hedged and failed": (lambda: _always(500), {"hedge": HEDGED}, ServerError),
    "deadline": (lambda: memory(delay=9.0), {"timeout": 1e-4}, DeadlineExceededError),
    "deadline, with a backup": (
        lambda: memory(delay=9.0),
        {"timeout": 1e-4, "hedge": HEDGED},
        DeadlineExceededError,
    ),
    "deadline, in partial mode": (
        lambda: memory(delay=9.0),
        {"timeout": 1e-4, "on_failure": "partial"},
        None,
    ),
    "each attempt takes too long": (
        lambda: memory(delay=9.0),
        {"retry": RetryPolicy(attempt_timeout=1e-4, attempts=2, base=1e-9)},
        RequestTimeoutError,
    ),
}
OPTIONS: dict[str, Any] = {"chunks": PAIRS, "concurrency": 3, "retry": POLICY}


async def _call_with(name: str, residue: int) -> None:
    source, expected = SOURCES[name]
    async with session_over(memory(), **OPTIONS) as session:
        documents = source()
        await _assert_that_nothing_follows(
            session.rerank("q", documents), expected, residue, session
        )
        assert getattr(documents, "closed", True)


async def _call_of(name: str, residue: int) -> None:
    server, options, expected = SERVERS[name]
    for documents in (numbered(9), iter(numbered(9)), stream_of(numbered(9)), numbered(1)):
        transport = server()
        async with session_over(transport, **{**OPTIONS, **options}) as session:
            if options.get("hedge"):
                delay, transport._delay = transport._delay, 0.0
                with suppress(RerankError):
                    await session.rerank("warm", numbered(2), timeout=None)
                transport._delay = delay
            if name == "another model" and documents == numbered(1):
                continue
            await _assert_that_nothing_follows(
                session.rerank("q", documents), expected, residue, session
            )


async def _assert_that_nothing_follows(
    work: Any, expected: type[BaseException] | None, residue: int, session: RerankSession
) -> None:
    """Await it in this task: whatever its end, the task goes on, and is cancelled no more often."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    assert before == residue
    caught: BaseException | None = None
    try:
        await work
    except BaseException as error:
        caught = error
    assert task.cancelling() == before
    # An interruption that came too late would come here.
    await steps(3)
    assert isinstance(caught, expected or type(None)), caught
    assert session.statistics().in_flight == 0


async def _ended_by_a_timeout(residue: int) -> None:
    """The caller's own ways of giving up; each leaves the count as it was."""
    loop = asyncio.get_running_loop()
    for documents in (numbered(9), iter(numbered(9)), stream_of(numbered(9)), numbered(1)):
        async with session_over(memory(delay=9.0), **OPTIONS) as session:

            async def timeout(work: Any) -> None:
                async with asyncio.timeout(1e-4):
                    await work

            async def wait_for(work: Any) -> None:
                await asyncio.wait_for(work, 1e-4)

            async def at_once(work: Any) -> None:
                async with asyncio.timeout_at(loop.time() - 1.0):
                    await work

            for way in (timeout, wait_for, at_once):
                if not isinstance(documents, list):
                    documents = iter(numbered(9))
                await _assert_that_nothing_follows(
                    way(session.rerank("q", documents)), TimeoutError, residue, session
                )


async def _ended_by_anyio(residue: int) -> None:
    import anyio

    async def scoped(work: Any) -> None:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(1e-4, scope.cancel)
            await work
        assert scope.cancelled_caught

    async def moved_on(work: Any) -> None:
        with anyio.move_on_after(1e-4) as scope:
            await work
        assert scope.cancelled_caught

    async def sibling(work: Any) -> None:
        async with anyio.create_task_group() as group:
            group.cancel_scope.deadline = anyio.current_time() + 1e-4
            await work
        assert group.cancel_scope.cancelled_caught

    for way in (scoped, moved_on, sibling):
        for documents in (numbered(9), iter(numbered(9)), stream_of(numbered(9)), numbered(1)):
            async with session_over(memory(delay=9.0), **OPTIONS) as session:
                await _assert_that_nothing_follows(
                    way(session.rerank("q", documents)), None, residue, session
                )
    # Nothing of the scope's is left for what fails by itself within it.
    for name, (source, expected) in SOURCES.items():
        async with session_over(memory(), **OPTIONS) as session:

            async def inside(session: RerankSession = session, source: Any = source) -> None:
                with anyio.move_on_after(60):
                    await session.rerank("q", source())

            if "cancelled" not in name:
                await _assert_that_nothing_follows(inside(), expected, residue, session)


def _close(session: RerankSession, closing: list[asyncio.Task[None]]) -> None:
    closing.append(asyncio.ensure_future(session.close()))


async def _ended_by_closing(residue: int) -> None:
    for documents in (numbered(9), iter(numbered(9)), stream_of(numbered(9)), numbered(1)):
        session = session_over(memory(delay=9.0), **OPTIONS)
        closing: list[asyncio.Task[None]] = []
        # On a loop that is not slowed down the call waits for its answers by then.
        asyncio.get_running_loop().call_later(1e-3, _close, session, closing)
        await _assert_that_nothing_follows(
            session.rerank("q", documents), SessionClosedError, residue, session
        )
        await asyncio.gather(*closing)
    session, closing = session_over(memory(), **OPTIONS), []
    await _assert_that_nothing_follows(
        session.rerank("q", _closer(session, closing)), SessionClosedError, residue, session
    )
    await asyncio.gather(*closing)


async def _many(residue: int) -> None:
    """`rerank_many`, read to its end, left early, and with a source that raises."""

    def requests(count: int, error: BaseException | None = None) -> Any:
        yield from (RerankRequest("q", numbered(5)) for _ in range(count))
        if error is not None:
            raise error

    async def consume(session: RerankSession, items: Any, most: int = 99, turns: int = 0) -> None:
        async with aclosing(session.rerank_many(items)) as outcomes:
            async for _ in outcomes:
                await steps(turns)
                most -= 1
                if not most:
                    return

    for turns in (0, 30):
        for items, most, expected in (
            (requests(6), 99, None),
            (requests(6), 2, None),
            (stream_of(requests(6)), 2, None),
            (requests(0, ValueError()), 99, ValueError),
            (requests(1, ValueError()), 99, ValueError),
            (requests(6, OddError()), 99, OddError),
            (stream_of(requests(6, ValueError())), 99, ValueError),
            ([RerankRequest("q", numbered(5)), 3], 99, InvalidRequestError),
        ):
            async with session_over(memory(), **OPTIONS) as session:
                await _assert_that_nothing_follows(
                    consume(session, items, most, turns), expected, residue, session
                )


ENDS: dict[str, Any] = {
    **{name: partial(_call_with, name) for name in SOURCES},
    **{name: partial(_call_of, name) for name in SERVERS},
    "the caller's timeout": _ended_by_a_timeout,
    "anyio's scopes": _ended_by_anyio,
    "the session is closed": _ended_by_closing,
    "rerank_many": _many,
}


@pytest.mark.parametrize("loop_kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("end", ENDS)
def test_nobody_is_cancelled_after_a_call(end: str, factory: str, loop_kind: str) -> None:
    new_loop = asyncio.new_event_loop
    if loop_kind == "uvloop":
        new_loop = pytest.importorskip("uvloop").new_event_loop

    async def caller(residue: int) -> None:
        if residue:
            # A cancellation that was caught and never taken back: many programs have one.
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        await ENDS[end](residue)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        if factory == "eager tasks":
            runner.get_loop().set_task_factory(_eager)
        for residue in (0, 1):
            runner.run(caller(residue))
