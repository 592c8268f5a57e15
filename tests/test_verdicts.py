"""`_verdicts`: what is not sent any more because of how another request failed."""

import asyncio
import gc
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from rerank_async import (
    AuthenticationError,
    CertificateError,
    ChunkLimits,
    Concurrency,
    DeadlineExceededError,
    Failed,
    HedgePolicy,
    NotFoundError,
    RateLimitError,
    Reranked,
    RerankError,
    RerankRequest,
    RerankSession,
    RetryPolicy,
)
from rerank_async.testing import HttpRequest, HttpResponse
from tests.support import (
    KEY,
    GatedTransport,
    ScriptedServer,
    http,
    numbered,
    refusal,
    replying,
    scored,
    session_over,
    steps,
    until,
)

QUOTA = HttpResponse(
    429,
    {},
    orjson.dumps({"error": {"message": "no", "type": "t", "code": "insufficient_quota"}}),
)
UNKNOWN = refusal(404, "The model `x` does not exist.")


class Refusing(GatedTransport):
    """Answers the n-th request to arrive with `answers[n]`, an exception or as it should be.

    Nobody is answered before `gate` is set.
    """

    def __init__(self, answers: dict[int, HttpResponse | Exception]) -> None:
        super().__init__()
        self.answers = answers

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        answer = self.answers.get(self.arrived)
        if answer is None:
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)
        self.arrived += 1
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


def requests_of(count: int, documents: int = 2, model: str | None = None) -> list[RerankRequest]:
    return [
        RerankRequest(f"q{n}", numbered(documents), query_id=f"{n}", model=model)
        for n in range(count)
    ]


async def outcomes_of(session: RerankSession, requests: Any) -> list[Reranked | Failed]:
    async with aclosing(session.rerank_many(requests)) as outcomes:
        return [outcome async for outcome in outcomes]


def errors_of(outcomes: list[Reranked | Failed]) -> list[Exception]:
    return [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]


def sent_query(request: HttpRequest) -> str:
    query: str = orjson.loads(request.body)["query"]
    return query


def is_unsent(error: Exception) -> bool:
    return isinstance(error, RerankError) and (error.context or "").startswith("not sent")


# ── a sequence ──


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(401), AuthenticationError),
        (refusal(404), NotFoundError),
        (UNKNOWN, NotFoundError),
        (QUOTA, RateLimitError),
        (CertificateError("who are you"), CertificateError),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
async def test_the_rest_of_a_sequence_fails_without_being_sent(
    answer: HttpResponse | Exception, kind: type[RerankError], partial: bool
) -> None:
    transport = Refusing({0: answer})
    transport.gate.set()
    options = {"on_failure": "partial"} if partial else {}
    async with session_over(transport, concurrency=1, **options) as session:
        outcomes = await outcomes_of(session, requests_of(100))
        assert session.statistics().requests == 1
    assert sorted(int(o.request.query_id or "") for o in outcomes) == list(range(100))
    errors = errors_of(outcomes)
    assert [type(error) for error in errors] == [kind] * 100
    assert [is_unsent(error) for error in errors].count(False) == 1
    # Whoever raises one adds nothing to another, and what was never in work has no frames.
    assert len(set(map(id, errors))) == 100
    assert sum(error.__traceback__ is not None for error in errors) <= 2


async def test_an_error_that_condemns_one_request_stops_no_other() -> None:
    transport = Refusing({0: refusal(409), 1: HttpResponse(403, {}, b"<html>blocked</html>")})
    transport.gate.set()
    async with session_over(transport, concurrency=1) as session:
        outcomes = await outcomes_of(session, requests_of(20))
    assert len(errors_of(outcomes)) == 2
    assert transport.arrived == 20


@pytest.mark.parametrize("partial", [False, True])
async def test_what_is_on_the_wire_is_answered_and_what_waits_is_not_sent(partial: bool) -> None:
    transport = Refusing({2: refusal(401)})
    options = {"on_failure": "partial"} if partial else {}
    async with session_over(transport, concurrency=4, **options) as session:
        outcomes = asyncio.create_task(outcomes_of(session, requests_of(50)))
        await until(lambda: session.statistics().waiting == 4, "a line")
        transport.gate.set()
        found = await outcomes
        assert session.statistics().requests == 4
        assert session.statistics().in_flight == session.statistics().waiting == 0
    assert sum(isinstance(outcome, Reranked) for outcome in found) == 3
    assert len(errors_of(found)) == 47


@pytest.mark.parametrize("partial", [False, True])
async def test_what_was_sent_and_comes_too_late_does_not_say_that_it_was_not_sent(
    partial: bool,
) -> None:
    class Silent(Refusing):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            if sent_query(request) == "q0":
                await asyncio.Event().wait()
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)

    transport = Silent({0: refusal(401)})
    options = {"on_failure": "partial"} if partial else {}
    async with session_over(transport, concurrency=2, timeout=0.5, **options) as session:
        stream = asyncio.create_task(outcomes_of(session, requests_of(4)))
        await until(lambda: session.statistics().waiting == 2, "a line")
        transport.gate.set()
        outcomes = await stream
    (late,) = (outcome for outcome in outcomes if outcome.request.query_id == "0")
    if partial:
        assert isinstance(late, Reranked)
        error: Exception = late.response.missing[1]
    else:
        assert isinstance(late, Failed)
        error = late.error
    assert isinstance(error, DeadlineExceededError)
    assert len([error for error in errors_of(outcomes) if is_unsent(error)]) == 2


@pytest.mark.parametrize("options", [{}, {"on_failure": "partial"}, {"hedge": HedgePolicy()}])
async def test_an_answer_that_came_just_before_the_final_error_is_not_thrown_away(
    options: dict[str, Any],
) -> None:
    gate, arrived = asyncio.Event(), 0

    class AtOnce(GatedTransport):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            nonlocal arrived
            arrived += 1
            await gate.wait()
            return refusal(401) if sent_query(request) == "q1" else scored([1.0])

    async with session_over(AtOnce(), concurrency=4, **options) as session:
        stream = asyncio.create_task(outcomes_of(session, requests_of(9, documents=1)))
        await until(lambda: arrived == 4, "four on the wire")
        await steps(20)
        gate.set()
        outcomes = await stream
    assert arrived == 4
    answered = {outcome.request.query for outcome in outcomes if isinstance(outcome, Reranked)}
    assert answered == {"q0", "q2", "q3"}


async def test_a_call_of_many_chunks_sends_none_of_them_after_a_final_error() -> None:
    transport = Refusing({1: refusal(401)})
    limits = ChunkLimits(max_documents=5)
    async with session_over(transport, concurrency=3, chunks=limits) as session:
        outcomes = asyncio.create_task(outcomes_of(session, requests_of(9, documents=100)))
        await until(lambda: transport.arrived == 3, "the first")
        transport.gate.set()
        found = await outcomes
        assert session.statistics().requests == 3
    assert [type(error) for error in errors_of(found)] == [AuthenticationError] * 9


async def test_what_waits_for_a_retry_or_for_the_server_fails_at_once() -> None:
    transport = Refusing({0: refusal(503, retry_after="90"), 1: refusal(401)})
    policy = RetryPolicy(max_outage=1000.0)
    async with session_over(transport, concurrency=2, retry=policy, timeout=None) as session:
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcomes = asyncio.create_task(outcomes_of(session, requests_of(2)))
        await until(lambda: transport.arrived == 2, "both")
        transport.gate.set()
        found = await outcomes
        assert loop.time() - began < 60.0
    assert [type(error) for error in errors_of(found)] == [AuthenticationError] * 2
    assert transport.arrived == 2


async def test_what_is_on_the_wire_when_another_is_refused_is_not_tried_again() -> None:
    gate = asyncio.Event()

    class Two(GatedTransport):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            self.arrived += 1
            if self.arrived == 1:
                await gate.wait()
                return refusal(503)
            return refusal(401)

    transport = Two()
    async with (
        session_over(transport, concurrency=2) as session,
        aclosing(session.rerank_many(requests_of(5))) as outcomes,
    ):
        first = await anext(outcomes)
        assert isinstance(first, Failed)
        gate.set()
        rest = [outcome async for outcome in outcomes]
    kinds = sorted(type(error).__name__ for error in errors_of(rest))
    assert kinds == ["AuthenticationError"] * 3 + ["ServerError"]
    assert transport.arrived == 2


async def test_an_answer_of_one_model_condemns_no_other() -> None:
    class Gone(GatedTransport):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            if orjson.loads(request.body)["model"] == "gone":
                self.arrived += 1
                return UNKNOWN
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)

    transport = Gone()
    transport.gate.set()
    requests = [
        request
        for pair in zip(requests_of(20, model="gone"), requests_of(20, model="here"), strict=True)
        for request in pair
    ]
    async with session_over(transport, concurrency=1) as session:
        found = await outcomes_of(session, iter(requests))
    for outcome in found:
        assert isinstance(outcome, Failed) == (outcome.request.model == "gone")
    assert len(found) == 40
    assert transport.arrived == 21


# ── what has no end ──


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_of_a_source_without_a_length_nothing_more_is_read(asynchronous: bool) -> None:
    read, closed = 0, []

    def endless() -> Iterator[RerankRequest]:
        nonlocal read
        try:
            while True:
                read += 1
                yield RerankRequest("q", ["document 1"])
        finally:
            closed.append(True)

    async def waiting() -> AsyncIterator[RerankRequest]:
        nonlocal read
        try:
            for _ in range(3):
                read += 1
                yield RerankRequest("q", ["document 1"])
            # Nobody asks for more, and nobody comes.
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    transport = Refusing({0: refusal(401), 1: refusal(401), 2: refusal(401)})
    transport.gate.set()
    async with session_over(transport, concurrency=2) as session:
        found = await outcomes_of(session, waiting() if asynchronous else endless())
    assert [type(error) for error in errors_of(found)] == [AuthenticationError] * read
    assert read <= 2 * 2 + 1
    assert transport.arrived <= 2
    if not asynchronous:
        gc.collect()
    assert closed == [True]


async def test_what_was_read_comes_out_also_when_nobody_took_it_for_a_while() -> None:
    read = 0

    async def source() -> AsyncIterator[RerankRequest]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield RerankRequest("q", ["document 1"], query_id=f"{number}")

    transport = Refusing({0: refusal(401)})
    transport.gate.set()
    ids = []
    async with (
        session_over(transport, concurrency=1) as session,
        aclosing(session.rerank_many(source())) as outcomes,
    ):
        async for outcome in outcomes:
            ids.append(int(outcome.request.query_id or ""))
            await steps(50)
    assert sorted(ids) == list(range(read))
    assert read <= 4


# ── two streams, one session; the wire ──


async def test_one_stream_does_not_hear_what_another_was_told() -> None:
    transport = Refusing({0: refusal(401)})
    transport.gate.set()
    async with session_over(transport, concurrency=1) as session:
        refused = await outcomes_of(session, requests_of(3))
        # The key may have been let in meanwhile: whoever begins anew asks anew.
        answered = await outcomes_of(session, requests_of(3))
        await session.rerank("q", ["document 1"])
    assert len(errors_of(refused)) == 3
    assert errors_of(answered) == []


async def test_the_frames_of_unsent_requests_hold_nothing_of_the_first() -> None:
    transport = Refusing({0: refusal(401)})
    transport.gate.set()
    async with session_over(transport, concurrency=1) as session:
        found = await outcomes_of(session, requests_of(3))
    for error in errors_of(found):
        assert error.__cause__ is None
        if is_unsent(error):
            assert error.__context__ is None
            assert "documents 0" not in str(error)
        shown = "".join(traceback.format_exception(error))
        assert KEY not in shown


@pytest.mark.parametrize("concurrency", [16, Concurrency.adaptive(max=16)])
async def test_on_the_wire_a_hundred_requests_hear_a_401_as_often_as_there_are_slots(
    concurrency: Any,
) -> None:
    body = b'{"detail":"Unauthorized"}'
    answers = [http(body, "401 Unauthorized")] * 100
    async with ScriptedServer(replying(*answers)) as server:
        async with RerankSession(
            server.url, model="m", api_key=KEY, concurrency=concurrency
        ) as session:
            found = await outcomes_of(session, requests_of(100))
        assert len(server.requests) <= 16
    assert [type(error) for error in errors_of(found)] == [AuthenticationError] * 100
