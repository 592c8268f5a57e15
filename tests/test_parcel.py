"""`_parcel`: one chunk's way to an answer when something on it does not go by the book.

The ordinary course of requests is in `test_session`; retries and outages that concern several calls
are in `flow/test_control`, backups in `test_hedging`.
"""

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from rerank_async import (
    BadRequestError,
    ChunkLimits,
    Concurrency,
    HedgePolicy,
    InvalidRequestError,
    RateLimit,
    RerankError,
    RerankSession,
    ResponseError,
    RetryPolicy,
    ServerError,
)
from rerank_async._call import Call
from rerank_async._chunking import Chunk
from rerank_async._parcel import Parcel, pack
from rerank_async._route import Ask, Trail
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
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
EAGER = HedgePolicy(percentile=0.5, min_delay=1e-3, max_extra=0.99, min_samples=1)


@asynccontextmanager
async def opened(
    transport: Any, **options: Any
) -> AsyncIterator[tuple[RerankSession, Callable[..., Parcel]]]:
    """A session, and a function that packs documents as a call of it would."""
    async with session_over(transport, **options) as session:
        sender = session._sender
        assert sender is not None

        def packed(documents: list[str], top_n: int | None = None, start: int = 0) -> Parcel:
            ask, trail = Ask(7, "m", "q", top_n, None), Trail("m")
            chunk = Chunk.in_a_row(start, tuple(documents))
            return pack(sender, session._route, ask, trail, chunk)

        yield session, packed


def taken(session: RerankSession) -> tuple[int, int, int, int]:
    """Requests, documents and bytes that hold slots, and how many wait."""
    admission = session._flow.limiter._admission
    return admission.requests, admission.documents, admission.bytes, session._flow.limiter.waiting


# ── the order of the policies ──


async def test_a_parcel_is_answered_with_its_own_indices() -> None:
    async with opened(memory()) as (session, packed):
        answer = await packed(["document 1", "document 3", "document 2"], start=100).answer()
        assert list(answer.indices) == [1, 2, 0]
        assert taken(session) == (0, 0, 0, 0)


async def test_a_slot_that_was_taken_before_is_the_first_attempts_and_given_back_once() -> None:
    transport = memory(script=[refusal(500)])
    async with opened(transport, concurrency=1, retry=QUICK) as (session, packed):
        parcel = packed(numbered(3))
        assert parcel.takes_slot()
        assert taken(session) == (1, 3, 0, 0)
        assert not packed(numbered(2)).takes_slot()
        # The retry takes one of its own.
        await parcel.answer(has_slot=True)
        assert len(transport.requests) == 2
        assert taken(session) == (0, 0, 0, 0)


async def test_who_lines_up_has_a_slot_in_the_end_or_steps_out() -> None:
    async with opened(memory(), concurrency=1) as (session, packed):
        holder = packed(numbered(1))
        assert holder.takes_slot()

        async def wait() -> None:
            with packed(numbered(2)).line_up() as turn:
                await turn

        gone, stays = (asyncio.create_task(wait()) for _ in range(2))
        await steps(2)
        assert taken(session) == (1, 1, 0, 2)
        gone.cancel()
        await steps(2)
        assert taken(session) == (1, 1, 0, 1)
        await holder.answer(has_slot=True)
        await stays
        assert taken(session) == (1, 2, 0, 0)


async def test_a_wait_for_a_retry_holds_no_slot_and_every_attempt_has_one() -> None:
    on_the_wire: list[tuple[int, int, int, int]] = []
    transport = memory(script=[refusal(500)] * 3)
    exchange = transport.exchange

    async def noted(request: HttpRequest, **limits: Any) -> HttpResponse:
        on_the_wire.append(taken(session))
        response: HttpResponse = await exchange(request, **limits)
        return response

    transport.exchange = noted
    async with opened(transport, retry=QUICK) as (session, packed):
        parcel = packed(numbered(3))
        between: list[tuple[int, int, int, int]] = []
        sending = asyncio.create_task(parcel.answer())
        while not sending.done():
            await asyncio.sleep(0)
            if parcel.trail.retries and not transport.in_flight:
                between.append(taken(session))
        await sending
        assert parcel.trail.retries == 3
    assert on_the_wire == [(1, 3, 0, 0)] * 4
    assert (0, 0, 0, 0) in between


async def test_a_parcel_is_encoded_once_and_only_when_it_has_a_slot() -> None:
    transport = memory(script=[None, refusal(500), refusal(429)])
    async with opened(transport, concurrency=1, retry=QUICK) as (session, packed):
        holder, parcel = packed(numbered(1)), packed(numbered(2))
        assert holder.takes_slot()
        sending = asyncio.create_task(parcel.answer())
        await until(lambda: session.statistics().waiting == 1)
        held = [parcel.request]
        assert held == [None]
        await holder.answer(has_slot=True)
        await sending
        assert parcel.request is not None
        body = parcel.request.body
    assert [request.body is body for request in transport.requests] == [False, True, True, True]


async def test_where_bytes_are_limited_a_parcel_weighs_its_body_before_it_lines_up() -> None:
    limit = Concurrency(4, max_bytes=10_000)
    async with opened(memory(), concurrency=limit) as (session, packed):
        parcel = packed(["document 1" + " x" * 3000])
        assert parcel.request is not None
        assert parcel.load.bytes == len(parcel.request.body) > 6000
        assert parcel.takes_slot()
        assert taken(session) == (1, 1, parcel.load.bytes, 0)
        assert not packed(["document 2" + " y" * 3000]).takes_slot()
        await parcel.answer(has_slot=True)
        assert taken(session) == (0, 0, 0, 0)


@pytest.mark.looptime
@pytest.mark.parametrize("hedge", [None, EAGER])
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_what_was_taken_is_given_back(
    seed: int, hedge: HedgePolicy | None
) -> None:
    dice = random.Random(seed)

    def storm() -> Iterator[HttpResponse | None]:
        failures = [refusal(500), refusal(429), refusal(503, retry_after="1"), refusal(422)]
        while True:
            yield dice.choice(failures) if dice.random() < 0.4 else None

    transport = memory(script=storm())
    exchange = transport.exchange

    async def uneven(request: HttpRequest, **limits: Any) -> HttpResponse:
        await asyncio.sleep(dice.choice([0.0, 0.01, 0.5]))
        response: HttpResponse = await exchange(request, **limits)
        return response

    transport.exchange = uneven
    async with session_over(
        transport,
        concurrency=Concurrency(4, max_documents=12, max_bytes=300),
        rate=RateLimit(6000, tokens_per_minute=60_000),
        chunks=ChunkLimits(3, count_tokens=len),
        on_failure="partial" if seed % 2 else "raise",
        hedge=hedge,
        timeout=None,
        seed=seed,
    ) as session:
        calls = [
            asyncio.create_task(session.rerank(f"{n}", numbered(dice.randrange(1, 12))))
            for n in range(40)
        ]
        for call in dice.sample(calls, 15):
            await asyncio.sleep(0.05)
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert taken(session) == (0, 0, 0, 0)


# ── what cannot be sent ──


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


@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_where_bytes_are_limited_too_it_is_refused_by_its_place(on_failure: str) -> None:
    async def stream() -> AsyncIterator[str]:
        for document in [*numbered(5), "\ud800"]:
            yield document

    limit = Concurrency(2, max_bytes=1000)
    async with session_over(
        memory(), concurrency=limit, chunks=ChunkLimits(2), on_failure=on_failure
    ) as session:
        for documents in (["a", "\ud800"], stream()):
            with pytest.raises(InvalidRequestError, match=r"documents\[[15]\]"):
                await session.rerank("q", documents)
            assert taken(session) == (0, 0, 0, 0)


# ── what is not believed, what is not held, what is not shown ──


async def test_a_server_that_answers_with_the_key_as_its_model_is_not_believed() -> None:
    script = [scored([0.5], model=f"model of {KEY}")]
    async with session_over(memory(script=script), retry=RetryPolicy(attempts=1)) as session:
        with pytest.raises(ResponseError, match="quotes the API key") as caught:
            await session.rerank("q", ["document 1"])
    assert_no_key(caught.value)


OTHER_SHAPE = b'{"results":[{"index":0,"relevance_score":0.5}],"meta":{"note":"%s"}}'


@pytest.mark.parametrize("on_failure", ["raise", "partial"])
@pytest.mark.parametrize("key", [KEY, "r", "0", "e", "index", "5"])
async def test_an_answer_in_another_dialect_is_paid_for_once(key: str, on_failure: str) -> None:
    transport = memory(script=[HttpResponse(200, {}, OTHER_SHAPE % b"ok")] * 9)
    async with session_over(
        transport,
        api_key=key,
        chunks=ChunkLimits(max_documents=10),
        concurrency=1,
        on_failure=on_failure,
    ) as session:
        with pytest.raises(ResponseError, match="looks like the answer of Cohere") as caught:
            await session.rerank("q", numbered(100))
    assert len(transport.requests) == 1
    assert caught.value.final
    assert caught.value.condemns == "session"


@pytest.mark.parametrize("key", [KEY, "k", "s3cret", "it's"])
async def test_an_answer_in_another_dialect_that_quotes_the_key_is_told_without_it(
    key: str,
) -> None:
    body = OTHER_SHAPE % f"the key {key} is".encode()
    transport = memory(script=[HttpResponse(200, {}, body)] * 9)
    async with session_over(transport, api_key=key) as session:
        with pytest.raises(ResponseError, match="looks like the answer of Cohere") as caught:
            await session.rerank("q", numbered(3))
    assert len(transport.requests) == 1
    assert "the key [API key] is" in str(caught.value)
    if key == KEY:
        assert_no_key(caught.value)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b'{"code":"InvalidModel","message":"no","request_id":"r"}', "model"),
        (b'{"error":{"message":"no","code":"insufficient_quota"}}', "session"),
        (b'{"detail":"Quota exceeded for the month"}', "session"),
        (b'{"error":{"message":"busy"}}', None),
        (b"<html>log in</html>", None),
        (b'{"data":[{"index":0,', None),
        (b"", None),
    ],
)
async def test_an_error_that_comes_as_200_is_final_where_its_words_say_so(
    body: bytes, what: str | None
) -> None:
    transport = memory(script=[HttpResponse(200, {}, body)] * 9)
    policy = RetryPolicy(attempts=3, base=1e-6)
    async with session_over(transport, retry=policy) as session:
        with pytest.raises(ResponseError) as caught:
            await session.rerank("q", numbered(3))
    assert caught.value.condemns == what
    assert len(transport.requests) == (3 if what is None else 1)


async def test_an_answer_for_another_number_of_documents_is_asked_for_again() -> None:
    transport = memory(script=[scored([0.5]), scored([0.5] * 4)])
    async with opened(transport, retry=QUICK) as (_, packed):
        answer = await packed(numbered(3)).answer()
        assert sorted(answer.indices) == [0, 1, 2]
        answer = await packed(numbered(3), top_n=2).answer()
        assert len(answer.indices) == 2
    assert len(transport.requests) == 4


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


async def test_what_fails_after_a_retry_carries_no_earlier_failure_as_its_context() -> None:
    transport = memory(script=[refusal(500), refusal(400)])
    async with opened(transport, retry=QUICK) as (_, packed):
        with pytest.raises(BadRequestError) as caught:
            await packed(["document 1"]).answer()
    chain: list[RerankError | BaseException | None] = [caught.value.__context__]
    chain.append(caught.value.__cause__)
    assert not any(isinstance(link, ServerError) for link in chain)


async def test_neither_a_parcel_nor_its_call_shows_documents_or_query() -> None:
    async with opened(memory()) as (_, packed):
        parcel = packed(["a secret", "another secret"], start=5)
        assert repr(parcel) == "<Parcel documents 5 to 6>"
        scattered = Parcel(*[None] * 4, Chunk((1, 5, 9), ("a", "b", "c")), None, None, None)  # type: ignore[arg-type,call-arg]
        assert repr(scattered) == "<Parcel 3 of the documents 1 to 9>"
        call = Call(parcel.sender, parcel.route, parcel.ask, parcel.trail, False)
        assert repr(call) == "<Call 7>"


# ── a large body ──

LARGE = ["a" * 300_000, "é" * 900_000, 'b"\\' * 200_000]


@pytest.mark.parametrize("concurrency", [2, Concurrency(2, max_bytes=2**23)])
@pytest.mark.parametrize(
    "documents", [LARGE, [f"document {n}" for n in range(20_000)]], ids=["long", "many"]
)
async def test_a_large_body_is_written_in_turns_of_the_loop_and_is_the_same(
    documents: list[str], concurrency: Any
) -> None:
    transport = MemoryTransport(scoring(lambda query, document: float(len(document))))
    async with session_over(
        transport, chunks=ChunkLimits(max_documents=None), concurrency=concurrency
    ) as session:
        await session.rerank("warm up", ["a"])
        call = asyncio.create_task(session.rerank("q", documents, top_n=3))
        turns = 0
        while len(transport.requests) < 2:
            turns += 1
            await asyncio.sleep(0)
        await call
    assert turns > 4
    body = orjson.dumps({"model": "m", "query": "q", "documents": documents, "top_n": 3})
    assert transport.requests[1].body == body


async def test_a_large_body_that_cannot_be_written_names_the_document() -> None:
    transport = MemoryTransport(scoring(lambda query, document: 1.0))
    async with session_over(transport, concurrency=1) as session:
        calls = [session.rerank("q", [*LARGE, "\ud800"]) for _ in range(3)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, InvalidRequestError)
            assert str(error).startswith("documents[3] is not valid Unicode")
        assert session.statistics().in_flight == 0
    assert not transport.requests


async def test_a_call_may_be_cancelled_while_its_large_body_is_written() -> None:
    transport = MemoryTransport(scoring(lambda query, document: 1.0))
    async with session_over(transport) as session:
        call = asyncio.create_task(session.rerank("q", LARGE))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert session.statistics().in_flight == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert session.statistics().in_flight == 0
    assert not transport.requests
