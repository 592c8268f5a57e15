"""`_call`: what happens within one call when something in it does not go by the book.

The ordinary course of calls is in `test_session`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from rerank_async import (
    ChunkLimits,
    DeadlineExceededError,
    InvalidRequestError,
    ResponseError,
    RetryPolicy,
    TransportError,
)
from rerank_async.testing import HttpRequest, HttpResponse
from tests.support import (
    memory,
    numbered,
    refusal,
    scored,
    session_over,
    steps,
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


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_workers_that_begin_at_once_do_not_start_each_other_as_deep_as_there_are_slots() -> (
    None
):
    factory = getattr(asyncio, "eager_task_factory")  # noqa: B009
    asyncio.get_running_loop().set_task_factory(factory)
    many = sys.getrecursionlimit()
    async with session_over(memory(), chunks=ONE_EACH, concurrency=many) as session:
        response = await session.rerank("q", numbered(many))
    assert len(response.results) == many


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


class TestAListOfAHundredThousandDocuments:
    """It is checked part by part, with turns of the loop between."""

    DOCUMENTS = tuple(numbered(100_000))

    @pytest.mark.parametrize(
        ("odd", "said"), [(7, "must be a string, not int"), ("\ud800", "not valid Unicode")]
    )
    async def test_is_refused_before_anything_is_sent_and_the_odd_one_is_named(
        self, odd: Any, said: str
    ) -> None:
        transport = memory()
        documents: list[Any] = [*self.DOCUMENTS, odd]
        async with session_over(transport) as session:
            with pytest.raises(InvalidRequestError, match=rf"documents\[100000\].*{said}"):
                await session.rerank("q", documents)
        assert transport.requests == []

    async def test_lets_others_have_their_turn_while_it_is_checked(self) -> None:
        transport = memory()
        turns = 0

        async def others() -> None:
            nonlocal turns
            while not transport.requests:
                turns += 1
                await asyncio.sleep(0)

        async with session_over(transport) as session, asyncio.TaskGroup() as group:
            group.create_task(others())
            await asyncio.sleep(0)
            before = turns
            await session.rerank("q", self.DOCUMENTS, top_n=1)
        assert turns - before >= 3

    async def test_may_change_once_the_call_waits(self) -> None:
        documents: list[Any] = list(self.DOCUMENTS)
        async with session_over(memory()) as session:
            call = asyncio.create_task(session.rerank("q", documents, return_documents=True))
            await asyncio.sleep(0)
            documents[-1] = 7
            response = await call
        assert len(response.results) == 100_000
        assert {result.document for result in response.results} == set(self.DOCUMENTS)

    @pytest.mark.parametrize("on_failure", ["raise", "partial"])
    async def test_whose_time_is_over_while_it_is_checked_is_missing_or_late(
        self, on_failure: Any
    ) -> None:
        transport = memory()
        async with session_over(transport, on_failure=on_failure) as session:
            call = session.rerank("q", self.DOCUMENTS, timeout=1e-6)
            if on_failure == "raise":
                with pytest.raises(DeadlineExceededError):
                    await call
            else:
                response = await call
                assert not response.complete
                assert len(response.missing) == 100_000
        assert transport.requests == []
