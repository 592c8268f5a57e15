"""Listeners: who may be one, and that none can break a call."""

from __future__ import annotations

import asyncio
import logging
import warnings
from functools import partial
from typing import Any

import pytest

from rerank_async import (
    ChunkLimits,
    Concurrency,
    HedgePolicy,
    InvalidRequestError,
    RetryPolicy,
)
from rerank_async.events import AttemptFinished, CallStarted, Event
from tests.support import best_first, memory, numbered, refusal, session_over

ONE = ["document 1"]
QUICK = RetryPolicy(base=1e-9, throttle_base=1e-9)


def complaints(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_several_listeners_are_told_in_their_order() -> None:
    told: list[tuple[str, Event]] = []
    listeners = [lambda event, name=name: told.append((name, event)) for name in "abc"]
    async with session_over(memory(), on_event=listeners) as session:
        await session.rerank("q", ONE)
    assert [name for name, _ in told] == ["a", "b", "c"] * 4
    assert [event for _, event in told][::3] == [event for _, event in told][1::3]


@pytest.mark.parametrize("make", [list, tuple, iter, set])
async def test_listeners_may_be_any_iterable_of_functions(make: Any) -> None:
    told: list[Event] = []
    async with session_over(memory(), on_event=make([told.append])) as session:
        await session.rerank("q", ONE)
    assert len(told) == 4


@pytest.mark.parametrize("nobody", [None, [], ()])
async def test_nobody_need_listen(nobody: Any) -> None:
    async with session_over(memory(), on_event=nobody) as session:
        await session.rerank("q", ONE)
        assert session.statistics().requests == 1


@pytest.mark.parametrize("chunks", [ChunkLimits(), ChunkLimits(2)])
@pytest.mark.parametrize("hedge", [None, HedgePolicy(min_samples=1, min_delay=1e-6)])
async def test_a_listener_that_raises_breaks_nothing_and_is_logged_once(
    chunks: ChunkLimits, hedge: HedgePolicy | None, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError("mine")

    documents = numbered(9)
    transport = memory(script=[refusal(429), None, refusal(500)])
    async with session_over(
        transport,
        on_event=[broken, told.append],
        chunks=chunks,
        hedge=hedge,
        retry=QUICK,
        concurrency=Concurrency.adaptive(2),
    ) as session:
        for _ in range(3):
            response = await session.rerank("q", documents)
            assert list(response.results.indices) == best_first(documents)
        statistics = session.statistics()
    assert statistics.listener_errors == len(told)
    assert (statistics.in_flight, statistics.waiting) == (0, 0)
    [record] = complaints(caplog)
    assert record.levelno == logging.ERROR
    assert "broken" in record.getMessage()
    assert "ValueError: mine" in caplog.text


async def test_a_listener_that_raises_a_cancellation_does_not_cancel_the_call() -> None:
    # As one does that asks a cancelled future for its result.
    def broken(event: Event) -> None:
        raise asyncio.CancelledError

    async with session_over(memory(), on_event=broken, concurrency=1) as session:
        for _ in range(3):
            response = await session.rerank("q", ONE)
            assert len(response.results) == 1
        statistics = session.statistics()
    assert statistics.listener_errors == 12
    assert (statistics.in_flight, statistics.waiting) == (0, 0)


async def test_a_listener_may_ask_the_session_for_its_statistics() -> None:
    in_flight: list[int] = []

    def ask(event: Event) -> None:
        in_flight.append(session.statistics().in_flight)

    session = session_over(memory(), on_event=ask)
    async with session:
        await session.rerank("q", ONE)
    assert in_flight == [0, 1, 1, 0]


async def test_a_listener_may_cancel_the_call_that_it_is_told_of() -> None:
    def cancel(event: Event) -> None:
        if isinstance(event, AttemptFinished):
            call.cancel()

    async with session_over(memory(), on_event=cancel, concurrency=1) as session:
        call = asyncio.create_task(session.rerank("q", ONE))
        await asyncio.wait([call])
        statistics = session.statistics()
        assert (statistics.in_flight, statistics.waiting) == (0, 0)


async def test_a_listener_may_begin_another_call() -> None:
    others: list[asyncio.Task[Any]] = []
    begun: list[Event] = []

    def again(event: Event) -> None:
        if isinstance(event, CallStarted) and not begun:
            begun.append(event)
            others.append(asyncio.create_task(session.rerank("again", ONE)))

    session = session_over(memory(), on_event=again, concurrency=1)
    async with session:
        await session.rerank("q", ONE)
        await asyncio.gather(*others)
        assert session.statistics().calls == 2


async def coroutine_function(event: Event) -> None:
    """Would never be awaited."""


class Asynchronous:
    async def __call__(self, event: Event) -> None:
        """Would never be awaited."""

    async def method(self, event: Event) -> None:
        """Would never be awaited."""


@pytest.mark.parametrize(
    "listener",
    [
        coroutine_function,
        partial(coroutine_function),
        Asynchronous().method,
        Asynchronous(),
    ],
    ids=["function", "partial", "method", "object"],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_coroutine_function_is_refused_with_a_way_out(listener: Any, several: bool) -> None:
    with pytest.raises(InvalidRequestError, match=r"coroutine function.*queue"):
        session_over(memory(), on_event=[print, listener] if several else listener)


@pytest.mark.parametrize("listener", [5, "log", [5], [print, None], object(), {"a": 1}, b"ab"])
def test_what_cannot_be_called_is_refused_by_the_name_of_the_argument(listener: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidRequestError, match="on_event"):
            session_over(memory(), on_event=listener)


async def test_a_listener_may_be_given_to_two_sessions() -> None:
    told: list[Event] = []
    async with (
        session_over(memory(), on_event=told.append) as first,
        session_over(memory(), on_event=told.append) as second,
    ):
        await first.rerank("q", ONE)
        await second.rerank("q", ONE)
    assert len(told) == 8


async def test_the_counts_go_on_without_listeners_and_without_a_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.CRITICAL, logger="rerank_async"):
        async with session_over(memory(script=[refusal(503)]), retry=QUICK) as session:
            await session.rerank("q", numbered(3))
            statistics = session.statistics()
    assert (statistics.calls, statistics.requests, statistics.retries) == (1, 2, 1)
    assert (statistics.throttled, statistics.documents, statistics.tokens) == (1, 3, 3)
    assert [record for record in caplog.records if record.name == "rerank_async"] == []
