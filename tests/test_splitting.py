"""Splitting: what a server takes in one request is learned, and what it refuses is found.

The searches and the lessons as arithmetic are in `tests/flow`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import ceil, log2
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_async import (
    BadRequestError,
    ChunkLimits,
    FlowControl,
    PayloadTooLargeError,
    RerankError,
    RerankResponse,
    RerankSession,
    RetryPolicy,
    ServerError,
    StatusError,
    UnprocessableError,
)
from rerank_async.events import Event, Split
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.support import (
    Peer,
    ScriptedServer,
    assert_no_key,
    best_first,
    http,
    number_of,
    numbered,
    refusal,
    sent_documents,
    session_over,
    stream_of,
    true_answer,
)

QUICK = RetryPolicy(base=1e-9, throttle_base=1e-9)

Rule = Callable[[HttpRequest], HttpResponse | None]


class Strict(MemoryTransport):
    """A server in memory that refuses by a rule, and scores the rest.

    Attributes:
        sizes: how many documents each request had.
        answered: the sizes of those that were answered.
    """

    def __init__(self, rule: Rule, score: Callable[[str, str], float] = number_of) -> None:
        super().__init__(scoring(score))
        self._rule = rule
        self.sizes: list[int] = []
        self.answered: list[int] = []

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        size = len(sent_documents(request))
        self.sizes.append(size)
        answer = await super().exchange(request, body_limit=body_limit, timeout=timeout)
        refused = self._rule(request)
        if refused is None:
            self.answered.append(size)
        return answer if refused is None else refused


def without(*bad: str, status: int = 422) -> Rule:
    """Refuse requests with one of these documents, and do not say which."""

    def rule(request: HttpRequest) -> HttpResponse | None:
        found = set(bad) & set(sent_documents(request))
        return refusal(status, "not acceptable") if found else None

    return rule


def at_most(limit: int, status: int = 413, message: str = "too many documents") -> Rule:
    """Refuse requests with more documents than this."""
    return lambda request: (
        refusal(status, message) if len(sent_documents(request)) > limit else None
    )


def at_most_bytes(limit: int, status: int = 413) -> Rule:
    """Refuse requests with longer bodies than this."""
    return lambda request: refusal(status, "no") if len(request.body) > limit else None


def either(*rules: Rule) -> Rule:
    """Refuse what one of the rules refuses."""
    return lambda request: next(filter(None, (rule(request) for rule in rules)), None)


def assert_right(
    response: RerankResponse, documents: list[str], bad: set[int], top_n: int | None = None
) -> None:
    """Exactly the bad ones are missing, and everybody else has his own score."""
    assert set(response.missing) == bad
    assert response.complete == (not bad)
    expected = [index for index in best_first(documents) if index not in bad]
    assert list(response.results.indices) == expected[:top_n]
    for result in response.results:
        assert result.relevance_score == number_of("", documents[result.index])


def assert_idle(session: RerankSession) -> None:
    statistics = session.statistics()
    assert (statistics.in_flight, statistics.waiting) == (0, 0)


# ── what a server takes is learned ──


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (413, "no"),
        (413, "Payload Too Large"),
        (413, "batch size 100 > maximum allowed batch size 32"),
        (422, "batch size 100 > maximum allowed batch size 32"),
        (400, "too many documents: 100, at most 32"),
        (400, "Too many tokens: 9000 exceeds the limit of 8192"),
        (422, "List should have at most 32 items after validation, not 100"),
    ],
)
@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_a_request_that_is_too_large_is_sent_in_pieces_and_the_lesson_kept(
    status: int, message: str, on_failure: str
) -> None:
    documents = numbered(100)
    server = Strict(at_most(32, status, message))
    told: list[Event] = []
    async with session_over(server, on_failure=on_failure, on_event=told.append) as session:
        assert_right(await session.rerank("q", documents), documents, set())
        too_much = min(set(server.sizes) - set(server.answered))
        learned = len(server.sizes)
        assert_right(await session.rerank("q", documents), documents, set())
        # What is known to be too much is not sent again; what lies below may have to be tried.
        assert max(server.sizes[learned:]) < too_much
        for _ in range(3):
            await session.rerank("q", documents)
        learned = len(server.sizes)
        assert_right(await session.rerank("q", documents), documents, set())
        assert max(server.sizes[learned:]) <= 32
        # Four would do: half of what was refused is tried, and no more than that.
        assert len(server.sizes) - learned <= 8
        assert_idle(session)
    splits = [event for event in told if isinstance(event, Split)]
    assert splits[0].reason in ("documents", "bytes")
    assert splits[-1].reason == "learned"
    assert sum(event.documents for event in splits if event.start == 0) >= 100


@given(
    count=st.integers(1, 60),
    limit=st.integers(1, 60),
    size=st.integers(1, 60),
    calls=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_server_takes_every_document_is_scored(
    count: int, limit: int, size: int, calls: int
) -> None:
    async def run() -> None:
        documents = numbered(count)
        server = Strict(at_most(limit))
        async with session_over(server, chunks=ChunkLimits(size)) as session:
            for _ in range(calls):
                assert_right(await session.rerank("q", documents), documents, set())
            assert_idle(session)
            refusals = len(server.sizes) - len(server.answered)
            # Each refusal halves what is too much, and chunks that are sent at the same time
            # learn at the same time.
            chunks = -(-count // size)
            assert refusals <= chunks * (ceil(log2(max(2, min(count, size)))) + 3) + calls

    asyncio.run(run())


@pytest.mark.parametrize("limit", [400, 1000, 3000])
async def test_a_limit_on_bytes_is_learned_with_the_query_in_every_piece(limit: int) -> None:
    documents = numbered(200)
    server = Strict(at_most_bytes(limit))
    async with session_over(server) as session:
        for _ in range(4):
            assert_right(await session.rerank("q" * 200, documents), documents, set())
        before = len(server.sizes) - len(server.answered)
        for _ in range(5):
            await session.rerank("q" * 200, documents)
        assert len(server.sizes) - len(server.answered) == before


@pytest.mark.parametrize("first", [70, 95, 130])
async def test_a_size_that_was_refused_is_not_sent_again(first: int) -> None:
    limit = 1000
    server = Strict(at_most_bytes(limit))
    async with session_over(server, chunks=ChunkLimits(max_documents=None)) as session:
        refused: list[int] = []
        for count in (first, 30, 44, 46, 48, 47, 90, 89, 91, 92, 93, 94, 200):
            begin = len(server.requests)
            await session.rerank("q", ["document 1234"] * count)
            sizes = [len(request.body) for request in server.requests[begin:]]
            refused += [size for size in sizes if size > limit]
        # Ever smaller ones may be refused; the same size, or a larger one, never again.
        assert refused == sorted(set(refused), reverse=True)


async def test_what_was_learned_holds_for_one_model_and_one_server_and_the_whole_flow() -> None:
    server, other = Strict(at_most(10)), Strict(at_most(10))
    flow = FlowControl()
    documents = numbered(40)
    async with (
        session_over(server, flow=flow) as first,
        session_over(server, flow=flow) as second,
        session_over(other, "https://other.test/v1", flow=flow) as elsewhere,
    ):
        await first.rerank("q", documents)
        before = len(server.sizes)
        await second.rerank("q", documents)
        assert max(server.sizes[before:]) <= 10
        before = len(server.sizes)
        await first.rerank("q", documents, model="another")
        assert server.sizes[before] == 40
        await elsewhere.rerank("q", documents)
        assert other.sizes[0] == 40


async def test_a_lesson_that_was_wrong_is_taken_back() -> None:
    limit = 10
    server = Strict(lambda request: at_most(limit)(request))
    documents = numbered(40)
    async with session_over(server) as session:
        await session.rerank("q", documents)
        limit = 5
        assert_right(await session.rerank("q", documents), documents, set())
        before = len(server.sizes)
        assert_right(await session.rerank("q", documents), documents, set())
        assert max(server.sizes[before:]) <= 10


@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_a_document_that_is_too_long_all_by_itself_is_named(on_failure: str) -> None:
    documents = numbered(20)
    documents[13] += " " + "x" * 500
    server = Strict(at_most_bytes(500))
    async with session_over(server, on_failure=on_failure) as session:
        if on_failure == "partial":
            response = await session.rerank("q", documents)
            assert_right(response, documents, {13})
            assert isinstance(response.missing[13], PayloadTooLargeError)
        else:
            with pytest.raises(PayloadTooLargeError, match="documents 13 to 13") as caught:
                await session.rerank("q", documents)
            assert_no_key(caught.value)
        assert_idle(session)


async def test_one_document_that_is_too_long_does_not_make_all_later_requests_small() -> None:
    # As with servers that say of each document how many tokens it may have.
    def rule(request: HttpRequest) -> HttpResponse | None:
        if any(len(document) > 2000 for document in sent_documents(request)):
            return refusal(413, "inputs must have less than 512 tokens. Given: 900")
        return None

    documents = numbered(256)
    long = [*documents]
    long[200] += " " + "x" * 2000
    server = Strict(rule)
    async with session_over(server, on_failure="partial") as session:
        assert_right(await session.rerank("q", long), long, {200})
        for _ in range(20):
            await session.rerank("q", documents)
        before = len(server.sizes)
        await session.rerank("q", documents)
        assert len(server.sizes) - before <= 2


@pytest.mark.parametrize("message", ["no", "too many documents"])
async def test_a_server_that_refuses_every_size_is_given_up_with_every_document_named(
    message: str,
) -> None:
    server = Strict(lambda request: refusal(413, message))
    async with session_over(server, on_failure="partial") as session:
        response = await session.rerank("q", numbered(1000))
        assert len(response.missing) == 1000
        assert list(response.missing) == list(range(1000))
        # Fewer than one for each document, whatever is learned on the way and taken back.
        assert len(server.sizes) < 1000
        assert_idle(session)


async def test_a_session_that_raises_stops_at_the_first_document_that_is_too_large() -> None:
    server = Strict(lambda request: refusal(413))
    async with session_over(server) as session:
        with pytest.raises(PayloadTooLargeError, match="documents 0 to 0"):
            await session.rerank("q", numbered(512))
        assert len(server.sizes) <= 11
        assert_idle(session)


async def test_a_413_that_comes_while_the_body_is_still_sent_splits_too() -> None:
    # The reader is slow on purpose: the answer is there before the body is.
    async def serve(peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        head = b""
        while b"\r\n\r\n" not in head:
            head += await loop.sock_recv(peer.sock, 4096)
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        if length > 1_500_000:
            await peer.send(http(b"{}", "413 Payload Too Large", "Connection: close"))
            await peer.until_gone()
        peer._unread = head
        await peer.send(http(true_answer(await peer.request())))
        peer.close()

    documents = [f"document {n} " + "x" * 4000 for n in range(1000)]
    async with (
        ScriptedServer(serve) as server,
        session_over(None, server.url, retry=RetryPolicy(attempts=6, base=1e-3)) as session,
    ):
        response = await session.rerank("q", documents)
        assert list(response.results.indices) == best_first(documents)
        assert session.statistics().splits >= 2
        assert_idle(session)


# ── one document that is refused is found ──


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("count", [2, 3, 5, 16, 33, 100])
async def test_the_one_document_that_is_refused_is_named_within_the_bound(
    status: int, count: int
) -> None:
    documents = numbered(count)
    for place in {0, 1, count // 2, count - 1}:
        server = Strict(without(documents[place], status=status))
        async with session_over(server, on_failure="partial") as session:
            response = await session.rerank("q", documents)
            assert_right(response, documents, {place})
            error = response.missing[place]
            assert isinstance(error, StatusError)
            assert (error.status, error.message) == (status, "not acceptable")
            assert f"documents {place} to {place} " in str(error)
            assert len(server.sizes) - 1 <= 2 * log2(count) + 2
            assert_idle(session)
        server = Strict(without(documents[place], status=status))
        async with session_over(server) as session:
            with pytest.raises(BadRequestError, match=f"documents {place} to {place} ") as caught:
                await session.rerank("q", documents)
            assert_no_key(caught.value)
            assert len(server.sizes) - 1 <= 2 * log2(count) + 2
            assert_idle(session)


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 70),
    bad=st.sets(st.integers(0, 69), max_size=3),
    limit=st.integers(1, 80),
    size=st.one_of(st.none(), st.integers(1, 80)),
    top_n=st.one_of(st.none(), st.integers(1, 5)),
    streamed=st.booleans(),
    concurrency=st.integers(1, 6),
    status=st.sampled_from([400, 422]),
)
def test_up_to_three_refused_documents_are_named_and_everybody_else_is_scored(
    count: int,
    bad: set[int],
    limit: int,
    size: int | None,
    top_n: int | None,
    streamed: bool,
    concurrency: int,
    status: int,
) -> None:
    bad = {index for index in bad if index < count}

    async def run() -> None:
        documents = numbered(count)
        server = Strict(
            either(at_most(limit), without(*(documents[index] for index in bad), status=status))
        )
        async with session_over(
            server,
            chunks=ChunkLimits(size),
            concurrency=concurrency,
            on_failure="partial",
        ) as session:
            given: Any = stream_of(documents) if streamed else documents
            response = await session.rerank("q", given, top_n=top_n)
            assert_right(response, documents, bad, top_n)
            for index in bad:
                assert f"documents {index} to {index} " in str(response.missing[index])
            assert_idle(session)

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 70),
    bad=st.sets(st.integers(0, 69), min_size=1, max_size=3),
    limit=st.integers(1, 80),
    size=st.one_of(st.none(), st.integers(1, 80)),
    streamed=st.booleans(),
)
def test_a_session_that_raises_names_one_of_the_refused_documents_and_no_other(
    count: int, bad: set[int], limit: int, size: int | None, streamed: bool
) -> None:
    bad = {index % count for index in bad}

    async def run() -> None:
        documents = numbered(count)
        server = Strict(either(at_most(limit), without(*(documents[index] for index in bad))))
        async with session_over(server, chunks=ChunkLimits(size)) as session:
            given: Any = stream_of(documents) if streamed else documents
            with pytest.raises(UnprocessableError) as caught:
                await session.rerank("q", given)
            if len(bad) == 1:
                [index] = bad
                assert f"documents {index} to {index} " in str(caught.value)
            else:
                first, last = map(int, str(caught.value).split("documents ")[1].split(" ")[:3:2])
                assert bad & set(range(first, last + 1))
            assert_idle(session)

    asyncio.run(run())


@pytest.mark.parametrize("streamed", [False, True])
async def test_ties_stand_in_the_callers_order_however_a_chunk_was_cut(streamed: bool) -> None:
    documents = [f"document {n}" for n in range(30)]
    server = Strict(either(at_most(9), without("document 17")), lambda query, document: 0.5)
    async with session_over(server, on_failure="partial") as session:
        given: Any = stream_of(documents) if streamed else documents
        response = await session.rerank("q", given)
        assert list(response.results.indices) == [n for n in range(30) if n != 17]
        response = await session.rerank("q", documents, top_n=20, return_documents=True)
        assert [result.index for result in response.results] == [*range(17), *range(18, 21)]
        assert [result.document for result in response.results] == [
            documents[result.index] for result in response.results
        ]


async def test_each_piece_asks_for_no_more_results_than_it_has_documents() -> None:
    server = Strict(without("document 0"))
    documents = numbered(20)
    async with session_over(server, on_failure="partial") as session:
        assert_right(await session.rerank("q", documents, top_n=8), documents, {0}, 8)
    for request in server.requests:
        assert orjson.loads(request.body)["top_n"] == min(8, len(sent_documents(request)))


async def test_a_bad_document_in_one_chunk_costs_the_other_chunks_nothing() -> None:
    documents = numbered(40)
    server = Strict(without(documents[25]))
    async with session_over(server, chunks=ChunkLimits(10), on_failure="partial") as session:
        assert_right(await session.rerank("q", documents), documents, {25})
    assert server.sizes.count(10) == 4
    assert len(server.sizes) <= 4 + 2 * log2(10) + 2


@pytest.mark.parametrize("count", [2, 10, 1000])
@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_a_request_that_is_wrong_whatever_its_documents_is_soon_given_up(
    count: int, on_failure: str
) -> None:
    server = Strict(lambda request: refusal(400, "unknown model"))
    async with session_over(server, on_failure=on_failure) as session:
        documents = numbered(count)
        if on_failure == "raise":
            with pytest.raises(BadRequestError, match="unknown model"):
                await session.rerank("q", documents)
        else:
            response = await session.rerank("q", documents)
            assert set(response.missing) == set(range(count))
        assert_idle(session)
    assert len(server.sizes) <= 2 * log2(count) + 3


async def test_many_bad_documents_end_the_search_with_every_document_accounted_for() -> None:
    documents = numbered(128)
    bad = set(range(0, 128, 5))
    server = Strict(without(*(documents[index] for index in bad)))
    async with session_over(server, on_failure="partial") as session:
        response = await session.rerank("q", documents)
        assert_idle(session)
    scored = set(response.results.indices)
    assert not scored & bad
    assert bad <= set(response.missing)
    assert scored | set(response.missing) == set(range(128))
    assert not scored & set(response.missing)
    assert len(server.sizes) <= 4 * (2 * 7 + 2) + 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 501])
async def test_a_refusal_that_smaller_requests_do_not_change_is_not_cut(status: int) -> None:
    server = Strict(lambda request: refusal(status))
    async with session_over(server) as session:
        with pytest.raises(RerankError):
            await session.rerank("q", numbered(8))
    assert server.sizes == [8]


async def test_a_half_that_fails_for_another_reason_is_retried_as_ever() -> None:
    documents = numbered(16)
    failed = False

    def rule(request: HttpRequest) -> HttpResponse | None:
        nonlocal failed
        if len(sent_documents(request)) == 8 and not failed:
            failed = True
            return refusal(503)
        return without(documents[3])(request)

    server = Strict(rule)
    async with session_over(server, on_failure="partial", retry=QUICK) as session:
        assert_right(await session.rerank("q", documents), documents, {3})
        assert session.statistics().retries == 1


async def test_a_half_that_goes_on_failing_is_missing_for_that_and_not_for_the_refusal() -> None:
    documents = numbered(16)

    def rule(request: HttpRequest) -> HttpResponse | None:
        if documents[12] in sent_documents(request) and len(sent_documents(request)) < 16:
            return refusal(503)
        return without(documents[3])(request)

    server = Strict(rule)
    async with session_over(server, on_failure="partial", retry=QUICK) as session:
        response = await session.rerank("q", documents)
    assert set(response.missing) == {3, *range(8, 16)}
    assert {type(response.missing[index]) for index in range(8, 16)} == {ServerError}


@pytest.mark.looptime
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_deadline_during_the_search_leaves_each_document_scored_or_missing(
    streamed: bool,
) -> None:
    documents = numbered(64)
    for tenths in range(5, 80, 7):
        server = Strict(without(documents[20], documents[50]))
        server._delay = 1.0
        async with session_over(
            server, on_failure="partial", chunks=ChunkLimits(32), concurrency=2
        ) as session:
            given: Any = stream_of(documents) if streamed else documents
            response = await session.rerank("q", given, timeout=tenths / 10)
            assert_idle(session)
        scored = set(response.results.indices)
        assert not scored & set(response.missing)
        assert len(response.results) == len(scored)
        assert len(response.missing) == len(set(response.missing))
        assert scored | set(response.missing) == set(range(64))


async def test_retries_and_splits_of_one_call_share_its_budget() -> None:
    documents = numbered(64)
    flow = FlowControl(retry_budget=0)
    server = Strict(without(documents[9]))
    # The search is not a retry: a smaller request is another one.
    async with session_over(server, on_failure="partial", flow=flow) as session:
        assert_right(await session.rerank("q", documents), documents, {9})
        assert session.statistics().retries == 0


@pytest.mark.parametrize("count", [2, 3, 4, 50])
async def test_where_everything_is_refused_no_single_document_is_blamed(count: int) -> None:
    server = Strict(lambda request: refusal(422, "no such parameter"))
    async with session_over(server) as session:
        with pytest.raises(UnprocessableError, match=f"documents 0 to {count - 1} "):
            await session.rerank("q", numbered(count))
        assert_idle(session)
