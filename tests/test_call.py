"""`_call`: what happens within one call when something in it does not go by the book.

The ordinary course of calls is in `test_session`.
"""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from rerank_async import (
    ChunkLimits,
    InvalidRequestError,
    ResponseError,
    RetryPolicy,
    TransportError,
)
from rerank_async.testing import HttpRequest, HttpResponse
from tests.support import (
    KEY,
    GatedTransport,
    assert_no_key,
    memory,
    numbered,
    refusal,
    scored,
    session_over,
    steps,
    until,
)

ONE_EACH = ChunkLimits(1)
QUICK = RetryPolicy(attempts=50, base=1e-6, throttle_base=1e-6)


@pytest.mark.parametrize("concurrency", [1, 2, 16])
@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_a_chunk_whose_exchange_was_cancelled_by_others_is_not_lost_silently(
    concurrency: int, on_failure: str
) -> None:
    transport = memory()
    exchange = transport.exchange

    async def cancelled_once(request: HttpRequest, **limits: Any) -> HttpResponse:
        if len(transport.requests) == 1:
            transport.requests.append(request)
            raise asyncio.CancelledError
        response: HttpResponse = await exchange(request, **limits)
        return response

    transport.exchange = cancelled_once
    async with session_over(
        transport, chunks=ONE_EACH, concurrency=concurrency, on_failure=on_failure
    ) as session:
        with pytest.raises(TransportError, match="cancelled from outside"):
            await session.rerank("q", numbered(5))
        assert session.statistics().in_flight == 0


@pytest.mark.parametrize("first", [0, 1])
async def test_answers_of_two_models_are_refused_also_in_partial_calls_whichever_comes_first(
    first: int,
) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    answers = [scored([0.5], model="one"), scored([0.5], model="another")]
    transport = memory()

    async def gated(request: HttpRequest, **limits: Any) -> HttpResponse:
        place = len(transport.requests)
        transport.requests.append(request)
        await gates[place].wait()
        return answers[place]

    transport.exchange = gated
    async with session_over(transport, chunks=ONE_EACH, on_failure="partial") as session:
        call = asyncio.create_task(session.rerank("q", numbered(2)))
        await steps(10)
        gates[first].set()
        await steps(10)
        gates[1 - first].set()
        with pytest.raises(ResponseError, match="cannot be compared"):
            await call


async def test_a_model_with_a_name_without_end_makes_a_message_with_an_end() -> None:
    answers = [scored([0.5], model="a" * 100_000), scored([0.5], model="b" * 100_000)]
    async with session_over(memory(script=answers), chunks=ONE_EACH) as session:
        with pytest.raises(ResponseError) as caught:
            await session.rerank("q", numbered(2))
    assert len(str(caught.value)) < 1000


async def test_a_server_that_answers_with_the_key_as_its_model_is_not_believed() -> None:
    script = [scored([0.5], model=f"model of {KEY}")]
    async with session_over(memory(script=script), retry=RetryPolicy(attempts=1)) as session:
        with pytest.raises(ResponseError, match="quotes the API key") as caught:
            await session.rerank("q", ["document 1"])
    assert_no_key(caught.value)


@pytest.mark.parametrize("kind", ["iterator", "async"])
async def test_documents_at_hand_are_sent_while_the_rest_are_still_read(kind: str) -> None:
    transport = memory()
    read = 0
    read_at_first_request: list[int] = []
    exchange = transport.exchange

    async def noted(request: HttpRequest, **limits: Any) -> HttpResponse:
        read_at_first_request.append(read)
        response: HttpResponse = await exchange(request, **limits)
        return response

    transport.exchange = noted

    def plain() -> Iterator[str]:
        nonlocal read
        for document in numbered(100):
            read += 1
            yield document

    async def never_waiting() -> AsyncIterator[str]:
        for document in plain():
            yield document

    documents = plain() if kind == "iterator" else never_waiting()
    async with session_over(transport, chunks=ChunkLimits(5), concurrency=16) as session:
        await session.rerank("q", documents)
    # One chunk is on its way while the next is read, not sixteen.
    assert read_at_first_request[0] <= 10


async def test_failures_hold_no_documents_once_they_are_over() -> None:
    class Text(str):
        """A document that can be watched."""

    watched: list[weakref.ref[Text]] = []

    def documents() -> Iterator[str]:
        for number in range(50):
            text = Text(f"document {number}")
            watched.append(weakref.ref(text))
            yield text

    script = [refusal(500) if place % 2 else None for place in range(80)]
    gc.collect()
    gc.disable()
    try:
        async with session_over(
            memory(script=script), chunks=ONE_EACH, concurrency=2, retry=QUICK
        ) as session:
            await session.rerank("q", documents(), top_n=1)
            assert session.statistics().retries > 20
        alive = sum(reference() is not None for reference in watched)
    finally:
        gc.enable()
    # The best document may be held by nobody, the last ones by the loop's own last steps.
    assert alive <= 4


async def test_a_top_n_beyond_all_numbers_asks_for_all() -> None:
    async with session_over(memory(), chunks=ChunkLimits(max_bytes=10_000)) as session:
        response = await session.rerank("q", numbered(3), top_n=2**70)
    assert len(response.results) == 3


@pytest.mark.parametrize("requests", [5, None])
async def test_rerank_many_refuses_what_cannot_be_iterated(requests: Any) -> None:
    async with session_over(memory()) as session:
        with pytest.raises(InvalidRequestError, match="requests"):
            async for _ in session.rerank_many(requests):
                pass


async def test_a_partial_call_without_any_answer_does_not_know_its_usage() -> None:
    async with session_over(memory(script=[refusal(400)]), on_failure="partial") as session:
        response = await session.rerank("q", ["document 1"])
    assert response.usage.total_tokens is None


async def test_a_document_that_is_not_valid_unicode_is_refused_at_once_and_waits_for_no_slot() -> (
    None
):
    transport = GatedTransport()
    async with session_over(transport, concurrency=1) as session:
        holder = asyncio.create_task(session.rerank("q", ["document 1"]))
        await until(lambda: transport.arrived == 1)
        call = asyncio.create_task(session.rerank("q", ["a", "\ud800"]))
        await steps(5)
        refused = call.done()
        transport.gate.set()
        await holder
        with pytest.raises(InvalidRequestError, match=r"documents\[1\]"):
            await call
        assert session.statistics().in_flight == 0
    assert refused
