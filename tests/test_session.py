"""The session over a server in memory: chunks, retries, deadlines, slots, lifetimes, streams."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import aiohttp
import orjson
import pytest

from rerank_async import (
    AuthenticationError,
    BadRequestError,
    ChunkLimits,
    Concurrency,
    DeadlineExceededError,
    Failed,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    Reranked,
    RerankError,
    RerankRequest,
    RerankSession,
    ResponseError,
    RetryPolicy,
    ServerError,
    SessionClosedError,
    StatusError,
    TransportError,
)
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.support import (
    KEY,
    GatedTransport,
    answer_body,
    assert_no_key,
    best_first,
    is_closed,
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

# Waits too short to notice, so that real time need not be virtual.
QUICK = RetryPolicy(base=1e-6, throttle_base=1e-6)
ONCE = RetryPolicy(attempts=1)
ONE_EACH = ChunkLimits(max_documents=1)
PAIRS = ChunkLimits(max_documents=2)


def now() -> float:
    return asyncio.get_running_loop().time()


# ── one call ──


async def test_a_call_returns_the_ranking_best_first() -> None:
    documents = numbered(5)
    async with session_over(memory()) as session:
        response = await session.rerank("query", documents)
    assert list(response.results.indices) == best_first(documents)
    assert response.results.scores[0] == max(number_of("", d) for d in documents)
    assert response.model == "m"
    assert response.usage.total_tokens == 5
    assert response.complete
    assert not response.missing


async def test_a_call_sends_the_specified_fields_and_no_others() -> None:
    transport = memory()
    async with session_over(transport) as session:
        await session.rerank("query", ["document 1", "document 2"], top_n=1, model="other")
        await session.rerank("query", ["document 1"])
    assert [orjson.loads(request.body) for request in transport.requests] == [
        {"model": "other", "query": "query", "documents": ["document 1", "document 2"], "top_n": 1},
        {"model": "m", "query": "query", "documents": ["document 1"]},
    ]
    assert {request.url for request in transport.requests} == {"https://memory.test/v1/rerank"}
    assert {request.method for request in transport.requests} == {"POST"}


@pytest.mark.parametrize("top_n", [None, 1, 3, 10, 23, 50])
@pytest.mark.parametrize("size", [1, 2, 7, 22, 23])
async def test_a_call_in_chunks_gives_what_one_request_gives(size: int, top_n: int | None) -> None:
    documents = numbered(23)
    async with session_over(memory()) as whole:
        expected = await whole.rerank("q", documents, top_n=top_n)
    transport = memory()
    async with session_over(transport, chunks=ChunkLimits(max_documents=size)) as session:
        response = await session.rerank("q", documents, top_n=top_n)
    assert response.results == expected.results
    assert len(transport.requests) == -(-23 // size)


async def test_the_indices_are_the_callers_in_every_chunk() -> None:
    documents = numbered(9)
    async with session_over(memory(), chunks=PAIRS) as session:
        response = await session.rerank("q", documents)
    for result in response.results:
        assert result.relevance_score == number_of("", documents[result.index])


async def test_equal_scores_stand_in_the_order_of_the_caller_however_chunks_arrive() -> None:
    class LastFirst(MemoryTransport):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            if "document 0" in sent_documents(request):
                await until(lambda: len(self.requests) == 4, "the later chunks' requests")
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)

    transport = LastFirst(scoring(lambda query, document: 0.5))
    async with session_over(transport, chunks=PAIRS) as session:
        response = await session.rerank("q", numbered(10))
        assert response.results.indices == tuple(range(10))


async def test_each_chunk_asks_for_top_n_or_its_own_length() -> None:
    transport = memory()
    async with session_over(transport, chunks=ChunkLimits(max_documents=4)) as session:
        await session.rerank("q", numbered(9), top_n=3)
        await session.rerank("q", stream_of(numbered(9)), top_n=3)
    asked = [(len(sent_documents(r)), orjson.loads(r.body)["top_n"]) for r in transport.requests]
    assert sorted(asked[:3]) == [(3, 3), (3, 3), (3, 3)]
    assert sorted(asked[3:]) == [(1, 1), (4, 3), (4, 3)]


@pytest.mark.parametrize("chunks", [ChunkLimits(), PAIRS])
@pytest.mark.parametrize("top_n", [None, 2])
async def test_documents_come_back_as_the_caller_wrote_them(
    chunks: ChunkLimits, top_n: int | None
) -> None:
    documents = numbered(5)
    async with session_over(memory(), chunks=chunks) as session:
        with_text = await session.rerank("q", documents, top_n=top_n, return_documents=True)
        without = await session.rerank("q", documents, top_n=top_n)
    assert [r.document for r in with_text.results] == [
        documents[index] for index in best_first(documents)[:top_n]
    ]
    assert {result.document for result in without.results} == {None}


@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_a_list_may_change_once_the_call_waits(on_failure: str) -> None:
    documents = numbered(3)
    transport = GatedTransport()
    async with session_over(transport, on_failure=on_failure) as session:
        call = asyncio.create_task(session.rerank("q", documents, return_documents=True))
        await asyncio.sleep(0)
        documents[:] = ["document 1", "document 2", "document 3", "document 4"]
        transport.gate.set()
        response = await call
    assert [r.document for r in response.results] == [
        numbered(3)[i] for i in best_first(numbered(3))
    ]


@pytest.mark.parametrize(
    "documents",
    [(), [], iter(()), stream_of(())],
    ids=["tuple", "list", "iterator", "async generator"],
)
async def test_no_documents_give_an_empty_ranking_without_a_request(documents: Any) -> None:
    transport = memory()
    async with session_over(transport) as session:
        response = await session.rerank("q", documents)
    assert len(response.results) == 0
    assert response.complete
    assert transport.requests == []


@pytest.mark.parametrize("kind", ["generator", "iterator", "async generator", "async iterable"])
async def test_any_iterable_of_documents_is_ranked_like_a_list(kind: str) -> None:
    documents = numbered(7)

    class Stream:
        def __aiter__(self) -> AsyncIterator[str]:
            return stream_of(documents)

    made: dict[str, Callable[[], Any]] = {
        "generator": lambda: (document for document in documents),
        "iterator": lambda: iter(documents),
        "async generator": lambda: stream_of(documents),
        "async iterable": Stream,
    }
    async with session_over(memory(), chunks=PAIRS) as session:
        response = await session.rerank("q", made[kind](), top_n=4)
    assert list(response.results.indices) == best_first(documents)[:4]


@pytest.mark.parametrize(("is_async", "ahead"), [(False, 0), (True, 1)])
async def test_a_stream_is_read_no_faster_than_the_server_answers(
    is_async: bool, ahead: int
) -> None:
    read = 0

    def documents() -> Iterator[str]:
        nonlocal read
        for document in numbered(50):
            read += 1
            yield document

    async def slowly() -> AsyncIterator[str]:
        for document in documents():
            yield document

    transport = GatedTransport()
    async with session_over(transport, chunks=ONE_EACH, concurrency=2) as session:
        call = asyncio.create_task(session.rerank("q", slowly() if is_async else documents()))
        await until(lambda: transport.arrived == 2)
        await steps(20)
        assert read == 2 + ahead
        transport.gate.set()
        await call
    assert read == 50


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_source_that_is_cancelled_by_itself_never_makes_a_short_ranking(
    is_async: bool,
) -> None:
    def documents() -> Iterator[str]:
        yield from numbered(3)
        raise asyncio.CancelledError

    async def slowly() -> AsyncIterator[str]:
        for document in documents():
            yield document

    async with session_over(memory(), chunks=ONE_EACH, concurrency=2) as session:
        with pytest.raises((TransportError, asyncio.CancelledError)):
            await session.rerank("q", slowly() if is_async else documents())


async def test_as_many_chunks_are_in_work_as_there_are_slots_at_any_time() -> None:
    """An adaptive limit grows and shrinks while a call is under way."""
    transport = GatedTransport()
    async with session_over(transport, chunks=ONE_EACH, concurrency=2) as session:
        call = asyncio.create_task(session.rerank("q", numbered(50)))
        await until(lambda: transport.arrived == 2)
        session._flow.limiter._admission.limit = 8
        transport.gate.set()
        response = await call
    assert response.complete
    assert len(response.results) == 50


async def test_a_body_is_encoded_once_however_often_it_is_sent() -> None:
    transport = memory(script=[TransportError("broke"), refusal(500), None])
    async with session_over(transport, retry=QUICK) as session:
        await session.rerank("q", numbered(3))
    bodies = [request.body for request in transport.requests]
    assert len(bodies) == 3
    assert bodies[0] is bodies[1] is bodies[2]


# ── async generators of documents are closed ──


class Source:
    """An async generator of documents that notes when it was closed."""

    def __init__(self, documents: list[str], error: BaseException | None = None) -> None:
        self.closed = False
        self._documents, self._error = documents, error

    async def read(self) -> AsyncGenerator[str, None]:
        try:
            for document in self._documents:
                await asyncio.sleep(0)
                yield document
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


async def test_an_async_generator_is_closed_when_the_call_succeeds() -> None:
    source = Source(numbered(3))
    async with session_over(memory()) as session:
        await session.rerank("q", source.read())
        assert source.closed


async def test_an_async_generator_is_closed_when_a_chunk_fails() -> None:
    source = Source(numbered(50))
    transport = memory(script=[refusal(400)])
    async with session_over(transport, chunks=ONE_EACH, concurrency=1) as session:
        documents = source.read()
        with pytest.raises(BadRequestError):
            await session.rerank("q", documents)
        # Closed by the call: the variable keeps it from being closed as garbage.
        assert source.closed
        assert is_closed(documents)


async def test_an_async_generator_is_closed_when_the_call_is_cancelled() -> None:
    source = Source(numbered(50))
    transport = GatedTransport()
    async with session_over(transport, chunks=ONE_EACH, concurrency=1) as session:
        documents = source.read()
        call = asyncio.create_task(session.rerank("q", documents))
        await until(lambda: transport.arrived == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert source.closed
        assert is_closed(documents)


async def test_the_iterator_of_an_async_iterable_is_closed_when_a_chunk_fails() -> None:
    iterators: list[AsyncGenerator[str, None]] = []

    class Table:
        def __aiter__(self) -> AsyncIterator[str]:
            iterators.append(Source(numbered(50)).read())
            return iterators[0]

    transport = memory(script=[refusal(400)])
    async with session_over(transport, chunks=ONE_EACH, concurrency=1) as session:
        with pytest.raises(BadRequestError):
            await session.rerank("q", Table())
        was_closed = is_closed(iterators[0])
        await iterators[0].aclose()
        assert was_closed


# ── failures and retries ──


async def test_retries_are_counted_and_the_call_succeeds() -> None:
    transport = memory(script=[TransportError("broke"), refusal(503), scored([1.0])])
    async with session_over(transport, retry=QUICK) as session:
        response = await session.rerank("q", ["document 1", "document 2"])
        statistics = session.statistics()
    assert len(response.results) == 2
    assert (statistics.requests, statistics.retries, statistics.throttled) == (4, 3, 1)
    assert (statistics.documents, statistics.tokens) == (2, 2)
    assert (statistics.in_flight, statistics.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (TransportError("broke"), TransportError),
        (refusal(500), ServerError),
        (refusal(429), RateLimitError),
        (HttpResponse(200, {}, b"{"), ResponseError),
        (scored([1.0, 2.0, 3.0]), ResponseError),
        (HttpResponse(200, {}, b'{"data":[{"index":0,"relevance_score":NaN}]}'), ResponseError),
    ],
)
@pytest.mark.parametrize("attempts", [1, 3])
async def test_what_may_pass_is_tried_as_often_as_the_policy_says_and_then_raised(
    step: HttpResponse | Exception, expected: type[RerankError], attempts: int
) -> None:
    transport = memory(script=[step] * 10)
    retry = RetryPolicy(attempts=attempts, base=1e-6, throttle_base=1e-6)
    async with session_over(transport, retry=retry) as session:
        with pytest.raises(expected) as caught:
            await session.rerank("q", ["document 1"])
    assert len(transport.requests) == attempts
    assert f"attempt {attempts} of {attempts}" in str(caught.value)
    assert "documents 0 to 0" in str(caught.value)
    assert_no_key(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422, 501, 505, 511])
async def test_what_will_not_pass_is_asked_once(status: int) -> None:
    transport = memory(script=[refusal(status)])
    async with session_over(transport, retry=QUICK) as session:
        with pytest.raises(StatusError) as caught:
            await session.rerank("q", ["document 1"])
    assert caught.value.status == status
    assert len(transport.requests) == 1


async def test_a_failed_chunk_raises_itself_not_a_group_and_its_siblings_are_cancelled() -> None:
    class OneRefuses(GatedTransport):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            if "document 0" in sent_documents(request):
                await until(lambda: self.arrived == 3, "the siblings' requests")
                return refusal(422, "bad document")
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)

    transport = OneRefuses()
    async with session_over(transport, chunks=ONE_EACH) as session:
        with pytest.raises(StatusError, match="bad document") as caught:
            await session.rerank("q", numbered(4))
        assert type(caught.value).__name__ == "UnprocessableError"
        assert session.statistics().in_flight == 0
        assert transport.requests == []


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("failing", [0, 1])
async def test_a_failed_chunk_leaves_the_callers_task_uncancelled(count: int, failing: int) -> None:
    transport = memory(script=[None] * failing + [refusal(422)])
    task = asyncio.current_task()
    assert task is not None
    async with session_over(transport, chunks=ONE_EACH) as session:
        try:
            await session.rerank("q", numbered(count))
        except BaseException as error:
            raised = error
    assert type(raised).__name__ == "UnprocessableError"
    # Otherwise the caller's own asyncio.timeout() could no longer tell its cancellation.
    assert task.cancelling() == 0


class CallersError(Exception):
    pass


@pytest.mark.parametrize("read", [0, 1, 5])
@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_an_error_of_the_callers_generator_comes_through_as_it_is(
    on_failure: str, read: int
) -> None:
    mine = CallersError("mine")

    def documents() -> Iterator[str]:
        yield from numbered(read)
        raise mine

    async with session_over(memory(), chunks=PAIRS, on_failure=on_failure) as session:
        for source in (documents(), Source(numbered(read), mine).read()):
            with pytest.raises(CallersError) as caught:
                await session.rerank("q", source)
            assert caught.value is mine
        assert session.statistics().in_flight == 0


async def test_an_exception_group_of_the_callers_generator_is_not_unwrapped() -> None:
    mine = ExceptionGroup("mine", [CallersError("one"), CallersError("two")])
    async with session_over(memory(), chunks=PAIRS) as session:
        with pytest.raises(ExceptionGroup) as caught:
            await session.rerank("q", Source(numbered(3), mine).read())
    assert caught.value is mine


async def test_a_timeout_error_of_the_callers_generator_is_not_taken_for_the_deadline() -> None:
    mine = TimeoutError("the database was slow")
    async with session_over(memory()) as session:
        with pytest.raises(TimeoutError) as caught:
            await session.rerank("q", Source(["document 1"], mine).read(), timeout=60)
    assert caught.value is mine


async def test_another_model_between_chunks_is_refused_without_a_retry() -> None:
    transport = memory(script=[scored([1.0], model="m"), scored([2.0], model="m-2")])
    async with session_over(transport, chunks=ONE_EACH, retry=QUICK) as session:
        with pytest.raises(ResponseError, match="m-2"):
            await session.rerank("q", numbered(2))
    assert len(transport.requests) == 2


async def test_an_answer_without_usage_makes_the_sum_unknown_not_smaller() -> None:
    silent = HttpResponse(200, {}, b'{"data":[{"index":0,"relevance_score":1.0}]}')
    async with session_over(memory(script=[None, silent]), chunks=ONE_EACH) as session:
        response = await session.rerank("q", numbered(2))
        assert session.statistics().tokens == 1
    assert response.usage.total_tokens is None


async def test_an_error_body_that_quotes_the_key_is_shown_without_it() -> None:
    quoting = refusal(401, f"Incorrect API key provided: {KEY}")
    garbled = HttpResponse(200, {}, b"<html>" + KEY.encode())
    async with session_over(memory(script=[quoting, garbled]), retry=ONCE) as session:
        for expected in (AuthenticationError, ResponseError):
            with pytest.raises(expected, match=r"\[API key\]") as caught:
                await session.rerank("q", ["document 1"])
            assert_no_key(caught.value)


async def test_the_words_of_an_error_do_not_hold_the_key_that_the_server_quoted() -> None:
    quoting = refusal(401, f"Incorrect API key provided: {KEY}")
    async with session_over(memory(script=[quoting])) as session:
        with pytest.raises(AuthenticationError, match=r"provided: \[API key\]") as caught:
            await session.rerank("q", ["document 1"])
    assert KEY not in f"{caught.value} {caught.value!r} {caught.value.message}"


async def test_an_error_body_that_quotes_the_key_in_json_escapes_is_shown_without_it() -> None:
    key = "sk/canary/5d1e7b93c40f"
    body = b'{"error": {"message": "Incorrect key: sk\\/canary\\/5d1e7b93c40f"}}'
    transport = memory(script=[HttpResponse(401, {}, body)])
    async with session_over(transport, api_key=key) as session:
        with pytest.raises(AuthenticationError) as caught:
            await session.rerank("q", ["document 1"])
    assert_no_key(caught.value, key)


async def test_an_error_whose_headers_echo_the_key_does_not_carry_it() -> None:
    transport = memory(script=[refusal(401, x_echo=f"Bearer {KEY}", x_request_id="r-1")])
    async with session_over(transport) as session:
        with pytest.raises(AuthenticationError) as caught:
            await session.rerank("q", ["document 1"])
    assert caught.value.request_id == "r-1"
    assert_no_key(caught.value)


# ── on_failure="partial" ──


async def test_partial_names_what_is_missing_and_why() -> None:
    documents = numbered(6)
    answer = scoring(number_of)

    def refuse_two(request: HttpRequest) -> HttpResponse:
        refused = {documents[2], documents[3]} & set(sent_documents(request))
        return refusal(422, "not in my language") if refused else answer(request)

    transport = MemoryTransport(refuse_two)
    async with session_over(transport, chunks=PAIRS, on_failure="partial") as session:
        response = await session.rerank("q", documents)
    assert not response.complete
    assert sorted(response.missing) == [2, 3]
    assert all(type(e).__name__ == "UnprocessableError" for e in response.missing.values())
    assert "not in my language" in str(response.missing[3])
    kept = [index for index in best_first(documents) if index not in (2, 3)]
    assert list(response.results.indices) == kept


async def test_partial_without_a_failure_is_complete() -> None:
    async with session_over(memory(), chunks=PAIRS, on_failure="partial") as session:
        response = await session.rerank("q", numbered(5))
    assert response.complete
    assert not response.missing
    assert len(response.results) == 5


@pytest.mark.parametrize("chunks", [ChunkLimits(), PAIRS])
async def test_partial_with_nothing_scored_is_an_empty_ranking_with_everything_missing(
    chunks: ChunkLimits,
) -> None:
    transport = memory(script=itertools.repeat(refusal(500)))
    async with session_over(transport, chunks=chunks, retry=QUICK, on_failure="partial") as session:
        response = await session.rerank("q", numbered(5))
    assert len(response.results) == 0
    assert not response.complete
    assert list(response.missing) == [0, 1, 2, 3, 4]
    assert {type(error) for error in response.missing.values()} == {ServerError}


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, AuthenticationError), (403, PermissionDeniedError), (404, NotFoundError)],
)
async def test_partial_raises_at_once_what_condemns_the_whole_call(
    status: int, expected: type[RerankError]
) -> None:
    transport = memory(script=[refusal(status)] * 50)
    async with session_over(
        transport, chunks=ONE_EACH, concurrency=1, on_failure="partial"
    ) as session:
        with pytest.raises(expected):
            await session.rerank("q", numbered(50))
    assert len(transport.requests) == 1


async def test_partial_still_raises_for_a_document_that_could_not_be_sent() -> None:
    async with session_over(memory(), chunks=ONE_EACH, on_failure="partial") as session:
        with pytest.raises(InvalidRequestError, match=r"documents\[1\]"):
            await session.rerank("q", iter(["document 1", 2]))  # type: ignore[arg-type]


@pytest.mark.looptime
async def test_partial_returns_at_the_deadline_what_was_scored_by_then() -> None:
    documents = numbered(5)
    transport = memory(delay=2.0)
    async with session_over(
        transport, chunks=ONE_EACH, concurrency=1, on_failure="partial"
    ) as session:
        response = await session.rerank("q", documents, timeout=5.0)
        assert now() == 5.0
        assert session.statistics().in_flight == 0
    assert sorted(response.results.indices) == [0, 1]
    assert not response.complete
    assert list(response.missing) == [2, 3, 4]
    assert all(isinstance(e, DeadlineExceededError) for e in response.missing.values())


@pytest.mark.looptime
async def test_partial_is_not_complete_when_the_deadline_cut_a_stream() -> None:
    def endless() -> Iterator[str]:
        for number in itertools.count():
            yield f"document {number}"

    transport = memory(delay=2.0)
    async with session_over(
        transport, chunks=ONE_EACH, concurrency=1, on_failure="partial"
    ) as session:
        response = await session.rerank("q", endless(), timeout=5.0, top_n=1)
    assert response.results.indices == (1,)
    assert not response.complete


# ── deadlines ──


@pytest.mark.looptime
async def test_the_deadline_covers_the_attempt_and_names_its_seconds() -> None:
    async with session_over(memory(delay=10.0)) as session:
        with pytest.raises(DeadlineExceededError, match=r"2\.5 s") as caught:
            await session.rerank("q", ["document 1"], timeout=2.5)
        assert now() == 2.5
        assert session.statistics().in_flight == 0
    assert isinstance(caught.value, TimeoutError)
    assert_no_key(caught.value)


@pytest.mark.looptime
async def test_the_deadline_covers_waiting_for_a_slot_that_another_call_holds() -> None:
    transport = memory(delay=10.0)
    async with session_over(transport, concurrency=1) as session:
        first = asyncio.create_task(session.rerank("first", ["document 1"]))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceededError):
            await session.rerank("second", ["document 1"], timeout=5.0)
        assert now() == 5.0
        assert session.statistics().waiting == 0
        await first
        assert now() == 10.0
    assert len(transport.requests) == 1


@pytest.mark.looptime
async def test_the_deadline_covers_waits_and_tells_the_last_error() -> None:
    transport = memory(script=[refusal(429, retry_after="2")] * 9, delay=2.0)
    async with session_over(transport) as session:
        with pytest.raises(DeadlineExceededError) as caught:
            await session.rerank("q", ["document 1"], timeout=5.0)
        assert now() == 5.0
    assert isinstance(caught.value.__cause__, RateLimitError)
    assert len(transport.requests) == 2


@pytest.mark.looptime
async def test_a_wait_that_would_outlast_the_deadline_is_not_begun() -> None:
    transport = memory(script=[refusal(429, retry_after="30")])
    async with session_over(transport) as session:
        with pytest.raises(RateLimitError) as caught:
            await session.rerank("q", ["document 1"], timeout=20.0)
        assert now() == 0.0
    assert caught.value.retry_after == 30.0


@pytest.mark.looptime
@pytest.mark.parametrize(
    "hint",
    [
        {"retry_after": "9" * 13},
        {"retry_after": "9" * 5000},
        {"retry_after_ms": "9" * 30},
        {"retry_after": "Fri, 31 Dec 9999 23:59:59 GMT"},
    ],
)
async def test_a_wait_that_is_absurd_is_not_begun_and_not_cut_short(hint: dict[str, str]) -> None:
    transport = memory(script=[refusal(429, **hint)] * 9)
    async with session_over(transport, timeout=None) as session:
        with pytest.raises(RateLimitError, match="it asks to wait") as caught:
            await session.rerank("q", ["document 1"])
        assert now() == 0.0
    assert len(transport.requests) == 1
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1e9


@pytest.mark.looptime
async def test_the_sessions_timeout_holds_unless_the_call_names_another() -> None:
    async with session_over(memory(delay=10.0), timeout=3.0) as session:
        with pytest.raises(DeadlineExceededError, match="3 s"):
            await session.rerank("q", ["document 1"])
        assert now() == 3.0
        await session.rerank("q", ["document 1"], timeout=None)
        assert now() == 13.0


@pytest.mark.looptime
async def test_an_attempt_ends_at_its_own_timeout_and_is_made_again() -> None:
    transport = memory(delay=10.0)
    policy = RetryPolicy(attempts=3, attempt_timeout=4.0, base=1e-6)
    async with session_over(transport, retry=policy) as session:
        with pytest.raises(RequestTimeoutError, match="4 s") as caught:
            await session.rerank("q", ["document 1"])
        assert now() == pytest.approx(12.0, abs=1e-3)
    assert len(transport.requests) == 3
    assert isinstance(caught.value, TimeoutError)


# ── slots ──


@pytest.mark.looptime
async def test_a_wait_holds_no_slot() -> None:
    # Without a hint: after one, nobody would go.
    transport = memory(script=[refusal(429)])
    async with session_over(
        transport, concurrency=1, retry=RetryPolicy(throttle_base=20.0)
    ) as session:
        first = asyncio.create_task(session.rerank("first", ["document 1"]))
        await until(lambda: session.statistics().throttled == 1)
        await session.rerank("second", ["document 1"])
        assert now() == 0.0
        assert not first.done()
        await first
        assert now() > 0.1
    assert [orjson.loads(r.body)["query"] for r in transport.requests] == [
        "first",
        "second",
        "first",
    ]


@pytest.mark.looptime
async def test_all_calls_of_a_session_share_its_slots() -> None:
    transport = memory(delay=1.0)
    async with session_over(transport, concurrency=Concurrency(3), chunks=PAIRS) as session:
        calls = (session.rerank(f"q{n}", numbered(8)) for n in range(5))
        responses = await asyncio.gather(*calls)
    assert {len(response.results) for response in responses} == {8}
    assert len(transport.requests) == 20
    assert transport.most_in_flight == 3
    assert session.statistics().limit == 3


async def test_slots_are_given_in_the_order_of_asking() -> None:
    transport = memory()
    async with session_over(transport, concurrency=1) as session:
        await asyncio.gather(*(session.rerank(f"{n}", ["document 1"]) for n in range(20)))
    assert [orjson.loads(r.body)["query"] for r in transport.requests] == [
        str(n) for n in range(20)
    ]


async def test_statistics_tell_what_is_in_flight_and_what_waits() -> None:
    transport = GatedTransport()
    async with session_over(transport, concurrency=2) as session:
        calls = [asyncio.create_task(session.rerank("q", ["document 1"])) for _ in range(5)]
        await until(lambda: transport.arrived == 2)
        statistics = session.statistics()
        assert (statistics.calls, statistics.requests) == (5, 2)
        assert (statistics.in_flight, statistics.waiting) == (2, 3)
        assert "2 in flight" in repr(session)
        transport.gate.set()
        await asyncio.gather(*calls)
        statistics = session.statistics()
    assert (statistics.in_flight, statistics.waiting, statistics.requests) == (0, 0, 5)
    assert (statistics.documents, statistics.tokens) == (5, 5)


# ── lifetimes ──


async def test_a_closed_session_refuses_calls() -> None:
    session = session_over(memory())
    await session.close()
    with pytest.raises(SessionClosedError):
        await session.rerank("q", ["document 1"])
    with pytest.raises(SessionClosedError):
        async with session:
            raise AssertionError("it let me in")
    with pytest.raises(SessionClosedError):
        await anext(session.rerank_many([RerankRequest("q", ["document 1"])]))


async def test_closing_twice_is_closing_once() -> None:
    transport = memory()
    session = session_over(transport)
    await session.rerank("q", ["document 1"])
    await session.close()
    await session.close()
    assert transport.closed
    assert "closed" in repr(session)


@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_closing_ends_calls_in_flight_with_session_closed(on_failure: str) -> None:
    transport = GatedTransport()
    session = session_over(transport, chunks=PAIRS, concurrency=3, on_failure=on_failure)
    calls = [asyncio.create_task(session.rerank("q", numbered(n))) for n in (1, 5, 9, 1)]
    await until(lambda: transport.arrived == 3)
    await session.close()
    assert all(call.done() for call in calls)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert type(outcome) is SessionClosedError
        assert_no_key(outcome)
    assert session.statistics().in_flight == session.statistics().waiting == 0
    assert transport.closed


@pytest.mark.looptime
async def test_closing_ends_a_call_that_waits_to_retry() -> None:
    transport = memory(script=[refusal(429, retry_after="10")])
    session = session_over(transport)
    call = asyncio.create_task(session.rerank("q", ["document 1"]))
    await until(lambda: session.statistics().throttled == 1)
    await session.close()
    with pytest.raises(SessionClosedError):
        await call
    assert now() == 0.0


async def test_leaving_the_context_closes_and_lets_an_error_through() -> None:
    transport = memory()

    async def use() -> None:
        async with session_over(transport) as session:
            await session.rerank("q", ["document 1"])
            raise CallersError

    with pytest.raises(CallersError):
        await use()
    assert transport.closed


async def test_a_borrowed_aiohttp_session_is_never_closed() -> None:
    async with aiohttp.ClientSession() as borrowed:
        async with session_over(borrowed):
            pass
        assert not borrowed.closed


async def test_a_borrowed_aiohttp_session_that_is_closed_is_said_to_be() -> None:
    borrowed = aiohttp.ClientSession()
    await borrowed.close()
    async with session_over(borrowed) as session:
        with pytest.raises(SessionClosedError, match="aiohttp"):
            await session.rerank("q", ["document 1"])


def test_a_second_event_loop_is_a_clear_error() -> None:
    transport = memory()
    session = session_over(transport)

    async def call() -> None:
        await session.rerank("q", ["document 1"])

    asyncio.run(call())
    with pytest.raises(InvalidRequestError, match="event loop"):
        asyncio.run(call())
    with pytest.raises(InvalidRequestError, match="event loop"):
        asyncio.run(session.close())
    assert len(transport.requests) == 1
    assert session.statistics().calls == 1


# ── rerank_many ──


def requests_of(count: int) -> list[RerankRequest]:
    documents = ["document 1", "document 2"]
    return [RerankRequest(f"q{n}", documents, query_id=f"{n}") for n in range(count)]


async def outcomes_of(session: RerankSession, requests: Any) -> list[Reranked | Failed]:
    async with aclosing(session.rerank_many(requests)) as outcomes:
        return [outcome async for outcome in outcomes]


async def test_rerank_many_yields_outcomes_as_they_complete() -> None:
    class FirstIsSlow(GatedTransport):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            if orjson.loads(request.body)["query"] != "q0":
                self.gate.set()
                return await MemoryTransport.exchange(
                    self, request, body_limit=body_limit, timeout=timeout
                )
            await until(lambda: len(self.requests) == 3, "the others")
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)

    async with session_over(FirstIsSlow()) as session:
        outcomes = [outcome async for outcome in session.rerank_many(requests_of(4))]
    assert [outcome.request.query_id for outcome in outcomes] == ["1", "2", "3", "0"]
    for outcome in outcomes:
        assert isinstance(outcome, Reranked)
        assert outcome.response.results.indices == (1, 0)


async def test_rerank_many_yields_failures_as_values() -> None:
    def broken() -> Iterator[str]:
        yield "document 1"
        raise CallersError("mine")

    requests = [
        RerankRequest("a", ["document 1"]),
        RerankRequest("b", ["document 1"]),
        RerankRequest("c", broken()),
        RerankRequest("d", [3]),  # type: ignore[list-item]
        RerankRequest("e", ["document 1"]),
    ]
    transport = memory(script=[None, refusal(409)])
    async with session_over(transport, concurrency=1) as session:
        found = {o.request.query: o async for o in session.rerank_many(requests)}
    kinds = {
        query: type(outcome.error) if isinstance(outcome, Failed) else Reranked
        for query, outcome in found.items()
    }
    assert kinds == {
        "a": Reranked,
        "b": BadRequestError,
        "c": CallersError,
        "d": InvalidRequestError,
        "e": Reranked,
    }


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_rerank_many_reads_no_further_than_twice_the_slots_ahead_of_its_consumer(
    asynchronous: bool,
) -> None:
    read = 0

    def source() -> Iterator[RerankRequest]:
        nonlocal read
        for request in requests_of(40):
            read += 1
            yield request

    requests: Any = stream_of(source()) if asynchronous else source()
    async with (
        session_over(memory(), concurrency=3) as session,
        aclosing(session.rerank_many(requests)) as outcomes,
    ):
        taken = 0
        async for _ in outcomes:
            taken += 1
            await steps(100)
            # Two for each slot are in work or wait to be taken, and one stands at the door.
            assert read == min(40, taken + 2 * 3 + 1)
        assert taken == 40


async def test_rerank_many_takes_a_thousand_requests() -> None:
    transport = memory()
    async with session_over(transport, concurrency=8) as session:
        ids = [o.request.query_id async for o in session.rerank_many(requests_of(1000))]
        assert session.statistics().calls == 1000
    assert sorted(map(str, ids)) == sorted(map(str, range(1000)))
    assert transport.most_in_flight == 8


@pytest.mark.parametrize("empty", [[], iter(()), stream_of(())], ids=["list", "iterator", "stream"])
async def test_rerank_many_of_nothing_yields_nothing(empty: Any) -> None:
    async with session_over(memory()) as session:
        assert [outcome async for outcome in session.rerank_many(empty)] == []


async def test_rerank_many_closed_early_leaves_nothing_running() -> None:
    transport = GatedTransport()
    before = asyncio.all_tasks()
    async with session_over(transport, concurrency=2) as session:
        outcomes = session.rerank_many(requests_of(40))
        waiting = asyncio.create_task(anext(outcomes))
        await until(lambda: transport.arrived == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await outcomes.aclose()
        assert asyncio.all_tasks() == before
        assert session.statistics().in_flight == session.statistics().waiting == 0


async def test_rerank_many_closes_a_source_that_is_an_async_generator() -> None:
    closed = False

    async def source() -> AsyncGenerator[RerankRequest, None]:
        nonlocal closed
        try:
            for request in requests_of(40):
                yield request
        finally:
            closed = True

    requests = source()
    async with (
        session_over(memory(), concurrency=1) as session,
        aclosing(session.rerank_many(requests)) as outcomes,
    ):
        await anext(outcomes)
    assert closed
    assert is_closed(requests)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_rerank_many_raises_what_its_source_raises(asynchronous: bool) -> None:
    mine = CallersError("mine")

    def source() -> Iterator[RerankRequest]:
        yield from requests_of(2)
        raise mine

    requests: Any = stream_of(source()) if asynchronous else source()
    async with session_over(memory()) as session:
        with pytest.raises(CallersError) as caught:
            await outcomes_of(session, requests)
    assert caught.value is mine


async def test_rerank_many_refuses_an_item_that_is_no_request_and_names_its_place() -> None:
    items: Any = [*requests_of(2), ("q", ["document 1"])]
    async with session_over(memory()) as session:
        with pytest.raises(InvalidRequestError, match=r"requests\[2\].*tuple"):
            await outcomes_of(session, items)


@pytest.mark.parametrize("where", ["source", "documents"])
@pytest.mark.looptime
async def test_rerank_many_does_not_hang_when_something_it_reads_was_cancelled(where: str) -> None:
    async def cancelled() -> AsyncGenerator[Any, None]:
        lookup = asyncio.create_task(asyncio.sleep(1000))
        lookup.cancel()
        await lookup
        yield

    requests: Any = cancelled() if where == "source" else [RerankRequest("q", cancelled())]
    async with session_over(memory()) as session:
        ended = False
        try:
            async with asyncio.timeout(1000), aclosing(session.rerank_many(requests)) as outcomes:
                async for outcome in outcomes:
                    assert isinstance(outcome, Failed)
            ended = True
        except TimeoutError:
            pass
        except BaseException:
            ended = True
        assert ended, "it waited for an outcome that could not come"


async def test_closing_the_session_ends_rerank_many_with_session_closed() -> None:
    transport = GatedTransport()
    session = session_over(transport, concurrency=2)
    outcomes = session.rerank_many(requests_of(40))
    waiting = asyncio.create_task(anext(outcomes))
    await until(lambda: transport.arrived == 2)
    await session.close()
    with pytest.raises(SessionClosedError):
        await waiting
    await outcomes.aclose()


async def test_each_request_of_rerank_many_may_have_its_own_model_and_top_n() -> None:
    transport = memory()
    requests = [RerankRequest("q", numbered(4), top_n=2, model="special")]
    async with session_over(transport) as session:
        [outcome] = [o async for o in session.rerank_many(requests)]
    assert isinstance(outcome, Reranked)
    assert len(outcome.response.results) == 2
    assert outcome.response.model == "special"


# ── what a call refuses ──


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"query": ""}, "query"),
        ({"query": 5}, "query"),
        ({"query": "\ud800"}, "query"),
        ({"documents": "one string"}, "documents"),
        ({"documents": b"bytes"}, "documents"),
        ({"documents": {"a": 1}}, "documents"),
        ({"documents": {"a"}}, "documents"),
        ({"documents": 5}, "documents"),
        ({"documents": ["a", None]}, r"documents\[1\]"),
        ({"documents": ["a", "\udfff"]}, r"documents\[1\]"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"top_n": 1.0}, "top_n"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": True}, "timeout"),
    ],
)
async def test_a_call_refuses_what_cannot_be_sent_and_names_it(
    arguments: dict[str, Any], named: str
) -> None:
    transport = memory()
    call = {"query": "q", "documents": ["document 1"], **arguments}
    async with session_over(transport) as session:
        with pytest.raises(InvalidRequestError, match=named) as caught:
            await session.rerank(**call)
    assert isinstance(caught.value, ValueError)
    assert_no_key(caught.value)
    assert transport.requests == []


async def test_a_call_without_any_model_says_where_to_give_one() -> None:
    async with session_over(memory(), model=None) as session:
        with pytest.raises(InvalidRequestError, match="RERANK_MODEL"):
            await session.rerank("q", ["document 1"])


async def test_the_model_of_the_environment_is_used_when_no_other_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RERANK_MODEL", "from-the-environment")
    async with session_over(memory(), model=None) as session:
        response = await session.rerank("q", ["document 1"])
    assert response.model == "from-the-environment"


# ── what the constructor refuses ──


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"base_url": "memory.test/v1"}, "base_url"),
        ({"base_url": "file:///etc/passwd"}, "base_url"),
        ({"base_url": "https:///v1"}, "base_url"),
        ({"base_url": "https://user:pass@memory.test/v1"}, "base_url"),
        ({"base_url": "https://memory.test/v1?x=1"}, "base_url"),
        ({"base_url": "https://memory.test/v1#x"}, "base_url"),
        ({"base_url": "https://memory.test/v1/rerank"}, "base_url"),
        ({"base_url": "https://memory.test:port/v1"}, "base_url"),
        ({"base_url": "http://memory.test/v1"}, "base_url.*allow_insecure_http"),
        ({"base_url": 5}, "base_url"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": f"{KEY}\n"}, "api_key"),
        ({"api_key": f"{KEY}\u00e9"}, "api_key"),
        ({"api_key": f"{KEY} x"}, "api_key"),
        ({"api_key": KEY.encode()}, "api_key"),
        ({"dialect": "nobody"}, "dialect"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "60"}, "timeout"),
        ({"on_failure": "ignore"}, "on_failure"),
        ({"chunks": 100}, "chunks"),
        ({"retry": 5}, "retry"),
        ({"http": object()}, "http"),
    ],
)
def test_the_constructor_refuses_what_cannot_work_and_names_it(
    arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequestError, match=named) as caught:
        RerankSession(**{"base_url": "https://memory.test/v1", "api_key": KEY, **arguments})
    assert KEY not in str(caught.value)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [{"timeout": -1}, {"api_key": f"{KEY}\n"}, {"base_url": "http://memory.test/v1"}]
)
def test_a_refused_construction_shows_the_key_in_no_traceback(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RerankSession(**{"base_url": "https://memory.test/v1", "api_key": KEY, **arguments})
    assert_no_key(caught.value)


def test_the_3xcoder_endpoint_without_a_key_says_how_to_give_one() -> None:
    with pytest.raises(InvalidRequestError, match="RERANK_API_KEY"):
        RerankSession(model="m")


async def test_the_openai_key_goes_to_the_3xcoder_endpoint_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for url, sent in ((None, f"Bearer {KEY}"), ("https://memory.test/v1", None)):
        transport = memory()
        async with RerankSession(url, model="m", http=transport) as session:
            await session.rerank("q", ["document 1"])
        assert transport.requests[0].headers.get("authorization") == sent


async def test_nothing_that_can_be_printed_shows_the_key() -> None:
    transport = memory()
    async with session_over(transport) as session:
        await session.rerank("q", ["document 1"])
        shown = (repr(session), str(session), repr(session._endpoint), repr(vars(session)))
        assert not any(KEY in text for text in shown)
        assert "memory.test" in shown[0]
        assert "'m'" in shown[0]
    request = transport.requests[0]
    assert KEY not in repr(request)
    assert KEY not in repr(request.headers)
    assert request.headers["authorization"] == f"Bearer {KEY}"


async def test_answers_come_back_in_the_body_of_the_specification() -> None:
    body = answer_body([0.25, 0.75])
    async with session_over(memory(script=[HttpResponse(200, {}, body)])) as session:
        response = await session.rerank("q", ["document 1", "document 2"])
    assert response.to_dict() == {
        "object": "list",
        "data": [
            {"object": "rerank.result", "index": 1, "relevance_score": 0.75},
            {"object": "rerank.result", "index": 0, "relevance_score": 0.25},
        ],
        "model": "m",
        "usage": {"total_tokens": 7},
    }


@pytest.mark.parametrize("key", [b"sk-bytes-5d1e7b93", ["sk-bytes-5d1e7b93"]])
def test_a_key_that_is_no_text_is_refused_by_its_type_and_shown_in_no_frame(key: Any) -> None:
    with pytest.raises(InvalidRequestError, match="api_key must be a string, not") as caught:
        RerankSession("https://host/v1", api_key=key)
    assert_no_key(caught.value, "sk-bytes-5d1e7b93")


def test_a_session_is_not_pickled_and_its_key_with_it() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(session_over(memory()))
