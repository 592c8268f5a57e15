"""The stream of events: which come on each path, in which order, and that the counts are theirs."""

from __future__ import annotations

import asyncio
import logging
import pickle
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from rerank_async import (
    BadRequestError,
    ChunkLimits,
    Concurrency,
    DeadlineExceededError,
    HedgePolicy,
    InvalidRequestError,
    RerankRequest,
    RerankSession,
    RetryPolicy,
    ServerError,
    SessionClosedError,
    TransportError,
)
from rerank_async import events as public
from rerank_async.events import (
    AttemptFinished,
    AttemptRetried,
    AttemptStarted,
    CallFinished,
    CallStarted,
    Event,
    Hedged,
    LimitChanged,
    Split,
    Throttled,
)
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.support import (
    KEY,
    GatedTransport,
    assert_no_key,
    memory,
    number_of,
    numbered,
    refusal,
    session_over,
    stream_of,
    until,
)

ONE = ["document 1"]
PAIRS = ChunkLimits(max_documents=2)
QUICK = RetryPolicy(base=1e-9, throttle_base=1e-9)


def names(told: list[Event]) -> list[str]:
    return [type(event).__name__ for event in told]


def of(told: list[Event], kind: type[Event]) -> list[Any]:
    return [event for event in told if isinstance(event, kind)]


def assert_consistent(session: RerankSession, told: list[Event]) -> None:
    """The statistics are the counts of the events, and what began is over."""
    statistics = session.statistics()
    counts = Counter(type(event) for event in told)
    assert statistics.calls == counts[CallStarted]
    assert statistics.requests == counts[AttemptStarted]
    assert statistics.retries == counts[AttemptRetried]
    assert statistics.throttled == counts[Throttled]
    assert statistics.hedges == counts[Hedged]
    assert statistics.splits == counts[Split]
    answered = [event for event in of(told, AttemptFinished) if event.error is None]
    assert statistics.documents == sum(event.documents for event in answered)
    assert statistics.tokens == sum(event.tokens or 0 for event in answered)
    assert (statistics.in_flight, statistics.waiting) == (0, 0)
    assert counts[CallStarted] == counts[CallFinished]
    assert counts[AttemptStarted] == counts[AttemptFinished]
    assert sum(event.retries for event in of(told, CallFinished)) == statistics.retries
    assert all(KEY not in repr(event) for event in told)


# ── the sequence on each path ──


@pytest.mark.looptime
async def test_a_call_that_succeeds_at_once_is_four_events() -> None:
    told: list[Event] = []
    async with session_over(memory(delay=2.0), on_event=told.append) as session:
        await session.rerank("the query", numbered(3), top_n=2)
        assert_consistent(session, told)
    number = told[0].call
    assert told == [
        CallStarted(number, "m", "the query", 3, 2, "https://memory.test/v1/rerank"),
        AttemptStarted(number, 0, 3, 1, False),
        AttemptFinished(number, 0, 3, 1, False, 2.0, None, 3),
        CallFinished(number, 2.0, None, "m", 3, 0, 3, 0),
    ]


async def test_each_event_has_the_number_of_its_call_and_no_other_call_has_it() -> None:
    told: list[Event] = []
    async with (
        session_over(memory(), on_event=told.append) as session,
        session_over(memory()) as other,
    ):
        await asyncio.gather(*(s.rerank("q", ONE) for _ in range(5) for s in (session, other)))
        requests = [RerankRequest("q", ONE) for _ in range(3)]
        [_ async for _ in session.rerank_many(requests)]
        assert_consistent(session, told)
    numbers = [event.call for event in of(told, CallStarted)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 8
    for number in numbers:
        mine = names([event for event in told if event.call == number])
        assert mine == ["CallStarted", "AttemptStarted", "AttemptFinished", "CallFinished"]


async def test_the_documents_of_a_stream_are_counted_at_the_end() -> None:
    told: list[Event] = []
    async with session_over(memory(), on_event=told.append, chunks=PAIRS) as session:
        await session.rerank("q", stream_of(numbered(5)))
        assert_consistent(session, told)
    assert of(told, CallStarted)[0].documents is None
    assert of(told, CallFinished)[0].documents == 5
    spans = [(event.start, event.documents) for event in of(told, AttemptStarted)]
    assert spans == [(0, 2), (2, 2), (4, 1)]


async def test_no_documents_are_two_events() -> None:
    told: list[Event] = []
    async with session_over(memory(), on_event=told.append) as session:
        await session.rerank("q", [])
        assert_consistent(session, told)
    assert names(told) == ["CallStarted", "CallFinished"]


@pytest.mark.looptime
async def test_a_throttle_and_a_retry_come_in_this_order() -> None:
    told: list[Event] = []
    transport = memory(script=[refusal(429, retry_after="3"), refusal(500)])
    async with session_over(transport, on_event=told.append) as session:
        await session.rerank("q", ONE)
        assert_consistent(session, told)
    assert names(told) == [
        "CallStarted",
        "AttemptStarted",
        "Throttled",
        "AttemptFinished",
        "AttemptRetried",
        "AttemptStarted",
        "AttemptFinished",
        "AttemptRetried",
        "AttemptStarted",
        "AttemptFinished",
        "CallFinished",
    ]
    assert told[2] == Throttled(told[0].call, 429, 3.0, True)
    assert [event.attempt for event in of(told, AttemptStarted)] == [1, 2, 3]
    first, second = of(told, AttemptRetried)
    assert (first.attempt, type(first.error).__name__) == (1, "RateLimitError")
    assert 3.0 <= first.delay <= 3.3
    assert (second.attempt, type(second.error)) == (2, ServerError)
    assert of(told, CallFinished)[0].retries == 2


async def test_a_call_that_fails_ends_with_its_error() -> None:
    told: list[Event] = []
    transport = memory(script=[TransportError("broke")] * 9)
    async with session_over(transport, on_event=told.append, retry=QUICK) as session:
        with pytest.raises(TransportError) as caught:
            await session.rerank("q", ONE)
        assert_consistent(session, told)
    assert names(told)[-2:] == ["AttemptFinished", "CallFinished"]
    [finished] = of(told, CallFinished)
    assert finished.error is caught.value
    assert (finished.model, finished.tokens, finished.retries) == (None, None, 3)
    assert len(of(told, AttemptRetried)) == 3


async def test_arguments_that_cannot_be_sent_begin_no_call() -> None:
    told: list[Event] = []
    async with session_over(memory(), on_event=told.append) as session:
        for arguments in (("", ONE), ("q", "one"), ("q", 5)):
            with pytest.raises(InvalidRequestError):
                await session.rerank(*arguments)
        assert told == []
        with pytest.raises(InvalidRequestError):
            await session.rerank("q", ["a", 5])  # type: ignore[list-item]
        assert names(told) == ["CallStarted", "CallFinished"]
        assert_consistent(session, told)


async def test_a_cancelled_call_ends_with_its_cancellation() -> None:
    told: list[Event] = []
    transport = GatedTransport()
    async with session_over(transport, on_event=told.append, chunks=PAIRS) as session:
        call = asyncio.create_task(session.rerank("q", numbered(6)))
        await until(lambda: transport.arrived == 3)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert_consistent(session, told)
    assert isinstance(of(told, CallFinished)[0].error, asyncio.CancelledError)
    errors = {type(event.error) for event in of(told, AttemptFinished)}
    assert errors == {asyncio.CancelledError}


@pytest.mark.looptime
async def test_a_deadline_and_a_close_end_a_call_with_their_error() -> None:
    told: list[Event] = []
    session = session_over(memory(delay=10.0), on_event=told.append)
    with pytest.raises(DeadlineExceededError):
        await session.rerank("q", ONE, timeout=2.0)
    call = asyncio.create_task(session.rerank("q", ONE))
    await asyncio.sleep(1.0)
    await session.close()
    await asyncio.gather(call, return_exceptions=True)
    assert_consistent(session, told)
    first, second = of(told, CallFinished)
    assert (type(first.error), first.seconds) == (DeadlineExceededError, 2.0)
    assert (type(second.error), second.seconds) == (SessionClosedError, 1.0)


@pytest.mark.looptime
async def test_a_partial_call_says_how_many_are_missing() -> None:
    told: list[Event] = []
    transport = memory(script=[None, refusal(500), None])
    async with session_over(
        transport,
        on_event=told.append,
        chunks=PAIRS,
        on_failure="partial",
        retry=RetryPolicy(attempts=1),
    ) as session:
        response = await session.rerank("q", numbered(6))
        assert_consistent(session, told)
    [finished] = of(told, CallFinished)
    assert finished.error is None
    assert (finished.documents, finished.missing) == (6, 2)
    assert len(response.missing) == 2


async def test_a_search_for_a_refused_document_tells_each_split() -> None:
    told: list[Event] = []

    def rule(request: HttpRequest) -> HttpResponse:
        if b'"document 0"' in request.body:
            return refusal(422, "no")
        return scoring(number_of)(request)

    async with session_over(
        MemoryTransport(rule), on_event=told.append, on_failure="partial"
    ) as session:
        await session.rerank("q", numbered(8))
        assert_consistent(session, told)
    number = told[0].call
    assert of(told, Split) == [
        Split(number, 0, 8, 2, "refused"),
        Split(number, 0, 4, 2, "refused"),
        Split(number, 0, 2, 2, "refused"),
    ]
    assert names(told)[:5] == [
        "CallStarted",
        "AttemptStarted",
        "AttemptFinished",
        "Split",
        "AttemptStarted",
    ]
    # Smaller requests are no retries.
    assert of(told, AttemptRetried) == []
    assert {event.attempt for event in of(told, AttemptStarted)} == {1}


async def test_what_was_learned_is_told_as_learned() -> None:
    told: list[Event] = []

    def rule(request: HttpRequest) -> HttpResponse:
        if request.body.count(b"document ") > 4:
            return refusal(413, "too many documents")
        return scoring(number_of)(request)

    async with session_over(MemoryTransport(rule), on_event=told.append) as session:
        await session.rerank("q", numbered(8))
        told.clear()
        await session.rerank("q", numbered(16))
    [split] = of(told, Split)
    assert (split.call, split.start, split.documents) == (told[0].call, 0, 16)
    assert split.pieces == 4
    assert split.reason == "learned"


@pytest.mark.looptime
async def test_a_backup_is_told_before_it_starts() -> None:
    told: list[Event] = []
    transport = memory(delay=0.1)
    policy = HedgePolicy(max_extra=0.99, min_samples=5)
    async with session_over(transport, on_event=told.append, hedge=policy) as session:
        for _ in range(10):
            await session.rerank("q", ONE)
        earlier = len(told)
        transport._delay = 1.0
        await session.rerank("q", ONE)
        assert_consistent(session, told)
    assert names(told[earlier:]) == [
        "CallStarted",
        "AttemptStarted",
        "Hedged",
        "AttemptStarted",
        "AttemptFinished",
        "AttemptFinished",
        "CallFinished",
    ]
    assert told[earlier + 3].hedge  # type: ignore[attr-defined]


async def test_a_change_of_the_limit_belongs_to_no_call() -> None:
    told: list[Event] = []
    transport = memory(script=[refusal(429)] * 8)
    async with session_over(
        transport,
        on_event=told.append,
        concurrency=Concurrency.adaptive(8),
        retry=RetryPolicy(attempts=1),
    ) as session:
        await asyncio.gather(*(session.rerank("q", ONE) for _ in range(8)), return_exceptions=True)
        assert_consistent(session, told)
        limit = session.statistics().limit
    changes = of(told, LimitChanged)
    assert changes
    assert {event.call for event in changes} == {0}
    assert changes[0].old == 8
    assert changes[-1].new == limit
    for earlier, later in pairwise(changes):
        assert later.old == earlier.new


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_the_counts_are_those_of_the_events(seed: int) -> None:
    dice = random.Random(seed)
    told: list[Event] = []
    steps: list[Any] = [
        None,
        None,
        None,
        refusal(500),
        refusal(429),
        refusal(422),
        refusal(413),
        TransportError("broke"),
        HttpResponse(200, {}, b"["),
    ]
    transport = memory(script=[dice.choice(steps) for _ in range(300)])
    async with session_over(
        transport,
        on_event=told.append,
        chunks=ChunkLimits(5),
        retry=QUICK,
        concurrency=3,
        on_failure=dice.choice(["raise", "partial"]),
        hedge=dice.choice([None, HedgePolicy(min_samples=1, min_delay=1e-6)]),
    ) as session:
        calls = [
            asyncio.create_task(session.rerank("q", numbered(dice.randrange(1, 30))))
            for _ in range(20)
        ]
        await asyncio.sleep(0)
        for call in dice.sample(calls, 5):
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert_consistent(session, told)


# ── the key ──


@pytest.mark.parametrize(
    "step",
    [
        refusal(401, f"bad key {KEY}"),
        refusal(500, f"bad key {KEY}", x_echo=f"Bearer {KEY}"),
        HttpResponse(200, {"x-echo": KEY}, f'{{"data": "{KEY}"}}'.encode()),
        HttpResponse(429, {"retry-after": "0", "x-echo": KEY}, KEY.encode()),
        refusal(422, f"{KEY}"),
        refusal(413, f"too large for {KEY}"),
    ],
)
async def test_a_key_that_the_server_quotes_is_in_no_event_and_no_line_of_the_log(
    step: HttpResponse, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Event] = []
    async with session_over(
        memory(script=[step] * 40), on_event=told.append, retry=QUICK
    ) as session:
        results = await asyncio.gather(session.rerank("q", numbered(4)), return_exceptions=True)
        assert isinstance(results[0], Exception)
        assert_no_key(results[0])
        assert_consistent(session, told)
    for event in told:
        assert KEY not in repr(event)
        error = getattr(event, "error", None)
        if error is not None:
            assert_no_key(error)
    assert KEY not in caplog.text
    assert len(caplog.records) >= len(told)
    assert all(KEY not in repr(vars(record)) for record in caplog.records)


# ── the log ──


async def test_each_event_is_a_line_of_the_log_with_the_event_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []
    transport = memory(script=[refusal(503)])
    async with session_over(transport, on_event=told.append, retry=QUICK) as session:
        await session.rerank("a secret query", numbered(2))
    records = [record for record in caplog.records if record.name == "rerank_async"]
    assert [record.rerank_event for record in records] == told  # type: ignore[attr-defined]
    levels = {type(event): record.levelno for event, record in zip(told, records, strict=True)}
    assert levels[Throttled] == levels[AttemptRetried] == logging.INFO
    assert levels[CallStarted] == levels[AttemptFinished] == logging.DEBUG
    assert "a secret query" not in caplog.text
    assert "a secret query" not in repr(told)


async def test_at_the_level_of_info_a_call_that_goes_well_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="rerank_async"):
        async with session_over(memory(script=[None, refusal(500)]), retry=QUICK) as session:
            await session.rerank("q", ONE)
            assert not [record for record in caplog.records if record.name == "rerank_async"]
            await session.rerank("q", ONE)
    assert [record.levelno for record in caplog.records if record.name == "rerank_async"] == [
        logging.INFO
    ]


# ── values ──


def test_events_are_values() -> None:
    event = AttemptStarted(1, 0, 3, 1, False)
    assert event == AttemptStarted(1, 0, 3, 1, False)
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(AttributeError):
        event.start = 5  # type: ignore[misc]
    match event:
        case AttemptStarted(call, start, documents):
            assert (call, start, documents) == (1, 0, 3)


def test_every_kind_of_event_is_public() -> None:
    kinds = {kind.__name__ for kind in Event.__subclasses__()}
    assert kinds <= set(public.__all__)
    assert "Event" in public.__all__


async def test_an_error_of_the_server_is_the_same_in_the_event_and_in_the_call() -> None:
    told: list[Event] = []
    async with session_over(memory(script=[refusal(400)]), on_event=told.append) as session:
        with pytest.raises(BadRequestError) as caught:
            await session.rerank("q", ONE)
    assert of(told, AttemptFinished)[0].error is caught.value
