"""Type-checked, never run: what a caller's type checker sees of the public API."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import assert_never, assert_type

import aiohttp

from rerank_async import (
    ChunkLimits,
    Concurrency,
    Failed,
    InvalidRequestError,
    RateLimitError,
    Reranked,
    RerankError,
    RerankRequest,
    RerankResponse,
    RerankResult,
    RerankSession,
    Results,
    RetryPolicy,
    ServerError,
    Statistics,
    StatusError,
    Usage,
)
from rerank_async.testing import MemoryTransport, scoring


def texts() -> Iterator[str]:
    yield "one"


async def texts_to_come() -> AsyncIterator[str]:
    yield "one"


async def requests_to_come() -> AsyncGenerator[RerankRequest, None]:
    yield RerankRequest("query", texts_to_come())


def count_tokens(text: str) -> int:
    return len(text)


async def sessions() -> None:
    assert_type(RerankSession(), RerankSession)
    async with RerankSession(model="m") as session:
        assert_type(session, RerankSession)
        assert_type(session.statistics(), Statistics)
        assert_type(session.statistics().in_flight, int)
        assert_type(await session.close(), None)
    RerankSession(
        "https://host/v1",
        api_key="key",
        model="m",
        dialect="v1",
        chunks=ChunkLimits(max_documents=None, max_tokens=8000, count_tokens=count_tokens),
        concurrency=Concurrency(4),
        retry=RetryPolicy(attempts=2, attempt_timeout=None),
        timeout=None,
        on_failure="partial",
        allow_insecure_http=True,
        allow_unguarded_http=False,
        seed=7,
    )
    RerankSession(concurrency=4, timeout=1, on_failure="raise")
    RerankSession(http=MemoryTransport(scoring(lambda query, document: 0.5)))
    async with aiohttp.ClientSession() as borrowed:
        RerankSession(http=borrowed)


async def one_call(session: RerankSession) -> None:
    response = await session.rerank("query", ["one", "two"], top_n=1)
    assert_type(response, RerankResponse)
    assert_type(response.results, Results)
    assert_type(response.results[0], RerankResult)
    assert_type(response.results[:2], Results)
    assert_type(response.results.indices, tuple[int, ...])
    assert_type(response.results.scores, tuple[float, ...])
    for result in response.results:
        assert_type(result, RerankResult)
        assert_type(result.index, int)
        assert_type(result.relevance_score, float)
        assert_type(result.document, str | None)
    assert_type(response.model, str)
    assert_type(response.usage, Usage)
    assert_type(response.usage.total_tokens, int | None)
    assert_type(response.complete, bool)
    for index, error in response.missing.items():
        assert_type(index, int)
        assert_type(error, RerankError)


async def documents_in_any_order_of_coming(session: RerankSession) -> None:
    assert_type(await session.rerank("query", ["one"]), RerankResponse)
    assert_type(await session.rerank("query", ("one",)), RerankResponse)
    assert_type(await session.rerank("query", texts()), RerankResponse)
    assert_type(await session.rerank("query", texts_to_come()), RerankResponse)
    assert_type(await session.rerank("query", (text for text in texts())), RerankResponse)
    await session.rerank("query", ["one"], model="m", timeout=None, return_documents=True)
    await session.rerank("query", ["one"], timeout=0.5)
    await session.rerank("query", ["one"], timeout=...)


async def what_a_checker_refuses(session: RerankSession) -> None:
    await session.rerank("query", [1, 2])  # type: ignore[list-item]
    await session.rerank("query", b"one")  # type: ignore[arg-type]
    await session.rerank("query", ["one"], top_n="1")  # type: ignore[arg-type]
    await session.rerank("query", ["one"], 3)  # type: ignore[call-arg]
    RerankSession(on_failure="ignore")  # type: ignore[arg-type]
    RerankRequest("query", ["one"], 3)  # type: ignore[call-arg]


async def many_calls(session: RerankSession) -> None:
    requests = [RerankRequest("query", ["one"], top_n=1, model="m", query_id="q7")]
    assert_type(session.rerank_many(requests), AsyncGenerator[Reranked | Failed, None])
    async with aclosing(session.rerank_many(requests)) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, Reranked | Failed)
            assert_type(outcome.request, RerankRequest)
            assert_type(outcome.request.query_id, str | None)
            if isinstance(outcome, Reranked):
                assert_type(outcome.response, RerankResponse)
            elif isinstance(outcome, Failed):
                assert_type(outcome.error, Exception)
            else:
                assert_never(outcome)
    session.rerank_many(RerankRequest("query", texts()) for _ in range(3))
    session.rerank_many(requests_to_come())


async def outcomes_by_pattern(session: RerankSession) -> None:
    async for outcome in session.rerank_many(requests_to_come()):
        match outcome:
            case Reranked(response=response):
                assert_type(response, RerankResponse)
            case Failed(error=error):
                assert_type(error, Exception)


async def errors(session: RerankSession) -> None:
    try:
        await session.rerank("query", ["one"])
    except (RateLimitError, ServerError) as error:
        assert_type(error.retry_after, float | None)
    except StatusError as error:
        assert_type(error.status, int)
        assert_type(error.message, str)
        assert_type(error.request_id, str | None)
    except InvalidRequestError as error:
        as_value_error: ValueError = error
        raise as_value_error from None
    except RerankError as error:
        assert_type(error.context, str | None)
