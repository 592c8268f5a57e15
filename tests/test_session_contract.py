"""The session's contract with aiohttp: what is handed to it, and what each status becomes.

aioresponses stands in for `ClientSession._request`: nothing below it runs, so what concerns the
wire is in `test_transport.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import aiohttp
import orjson
import pytest
from aioresponses import aioresponses
from yarl import URL

import rerank_async
from rerank_async import (
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    RerankSession,
    ResponseError,
    RetryPolicy,
    ServerError,
    StatusError,
    TransportError,
    UnprocessableError,
)
from tests.support import KEY, assert_no_key

URL_OF_RERANK = URL("https://api.example.test/v1/rerank")
SPECIFIED: dict[str, Any] = {
    "object": "list",
    "data": [
        {"object": "rerank.result", "index": 2, "relevance_score": 0.95},
        {"object": "rerank.result", "index": 0, "relevance_score": 0.72},
    ],
    "model": "rerank-model",
    "usage": {"total_tokens": 150},
}


class Response(aiohttp.ClientResponse):
    """aiohttp asks for a `stream_writer` since 3.14, which aioresponses 0.7.9 does not give."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, stream_writer=Mock(), **kwargs)
        except TypeError:
            super().__init__(*args, **kwargs)


class Server:
    """aioresponses with the one URL, and the calls it saw."""

    def __init__(self, mock: aioresponses) -> None:
        self._mock = mock

    def answers(self, **options: Any) -> None:
        self._mock.post(str(URL_OF_RERANK), response_class=Response, **options)

    @property
    def calls(self) -> list[dict[str, Any]]:
        assert set(self._mock.requests) <= {("POST", URL_OF_RERANK)}
        return [call.kwargs for call in self._mock.requests.get(("POST", URL_OF_RERANK), [])]


@pytest.fixture
def server() -> Iterator[Server]:
    with aioresponses() as mock:
        yield Server(mock)


def session(**options: Any) -> RerankSession:
    options = {"retry": RetryPolicy(attempts=3, base=1e-6, throttle_base=1e-6), **options}
    return RerankSession(
        "https://api.example.test/v1", api_key=KEY, model="rerank-model", **options
    )


@pytest.mark.parametrize("own", [True, False], ids=["own pool", "lent session"])
async def test_the_request_is_the_one_of_the_specification(server: Server, own: bool) -> None:
    server.answers(payload=SPECIFIED)
    async with (
        aiohttp.ClientSession() as lent,
        session(http=None if own else lent) as client,
    ):
        await client.rerank("What is it?", ["a", "b", "ü"], top_n=2)
    [call] = server.calls
    assert call["headers"]["Authorization"] == f"Bearer {KEY}"
    assert call["headers"]["Content-Type"] == "application/json"
    assert call["headers"]["Accept"] == "application/json"
    assert call["headers"]["User-Agent"] == f"rerank-async/{rerank_async.__version__}"
    assert call["allow_redirects"] is False
    assert orjson.loads(call["data"]) == {
        "model": "rerank-model",
        "query": "What is it?",
        "documents": ["a", "b", "ü"],
        "top_n": 2,
    }


async def test_top_n_is_left_out_when_all_results_are_wanted(server: Server) -> None:
    server.answers(payload=SPECIFIED | {"data": SPECIFIED["data"][1:]})
    async with session() as client:
        await client.rerank("q", ["a"])
    assert list(orjson.loads(server.calls[0]["data"])) == ["model", "query", "documents"]


async def test_the_example_of_the_specification_is_read(server: Server) -> None:
    server.answers(payload=SPECIFIED)
    async with session() as client:
        response = await client.rerank("q", ["a", "b", "c"], top_n=2)
    assert response.to_dict() == SPECIFIED
    assert [(r.index, r.relevance_score) for r in response.results] == [(2, 0.95), (0, 0.72)]
    assert response.usage.total_tokens == 150


@pytest.mark.parametrize(
    ("status", "expected", "calls"),
    [
        (400, BadRequestError, 1),
        (401, AuthenticationError, 1),
        (403, PermissionDeniedError, 1),
        (404, NotFoundError, 1),
        (408, BadRequestError, 3),
        (413, PayloadTooLargeError, 1),
        (422, UnprocessableError, 1),
        (425, BadRequestError, 3),
        (429, RateLimitError, 3),
        (500, ServerError, 3),
        (501, ServerError, 1),
        (502, ServerError, 3),
        (503, ServerError, 3),
        (504, ServerError, 3),
        (505, ServerError, 1),
        (529, ServerError, 3),
    ],
)
async def test_each_status_is_its_error_after_as_many_calls_as_it_is_worth(
    server: Server, status: int, expected: type[StatusError], calls: int
) -> None:
    body = {"error": {"message": "the reason", "type": "t", "param": None, "code": None}}
    server.answers(status=status, payload=body, headers={"X-Request-Id": "r-7"}, repeat=True)
    async with session() as client:
        with pytest.raises(StatusError) as caught:
            await client.rerank("q", ["a"])
    assert type(caught.value) is expected
    assert (caught.value.status, caught.value.message) == (status, "the reason")
    assert caught.value.request_id == "r-7"
    assert len(server.calls) == calls
    assert_no_key(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>Sign in to the network</html>", b'{"error": "not today"}', b"[]", b"\xff"],
)
async def test_a_success_that_is_no_ranking_is_asked_for_again_and_then_raised(
    server: Server, body: bytes
) -> None:
    server.answers(body=body, content_type="text/html", repeat=True)
    async with session() as client:
        with pytest.raises(ResponseError) as caught:
            await client.rerank("q", ["a"])
    assert len(server.calls) == 3
    assert_no_key(caught.value)


async def test_a_failure_that_passes_is_not_seen(server: Server) -> None:
    server.answers(status=503, body="busy")
    server.answers(exception=aiohttp.ServerDisconnectedError())
    server.answers(payload=SPECIFIED | {"data": SPECIFIED["data"][1:]})
    async with session() as client:
        response = await client.rerank("q", ["a"])
        assert client.statistics().retries == 2
    assert response.results.indices == (0,)
    assert len({call["data"] for call in server.calls}) == 1


async def test_the_servers_hint_is_in_the_error(server: Server) -> None:
    server.answers(status=429, headers={"Retry-After": "9999"}, body="slow down")
    async with session() as client:
        with pytest.raises(RateLimitError) as caught:
            await client.rerank("q", ["a"])
    assert caught.value.retry_after == 9999
    assert len(server.calls) == 1


def subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for below in kind.__subclasses__():
        yield from subclasses(below)


def made(kind: type[BaseException]) -> BaseException:
    """An instance, however its constructor wants to be called."""
    reason = OSError(111, "refused")
    for arguments in (
        (),
        (Mock(), ()),
        (Mock(), reason),
        ("/path", Mock(), reason),
        ("a", "b"),
        ("h", "p", "x", 1),
    ):
        try:
            return kind(*arguments)
        except (TypeError, AttributeError, AssertionError):
            continue
    return kind.__new__(kind)


@pytest.mark.parametrize(
    "kind", sorted(set(subclasses(aiohttp.ClientError)), key=str), ids=lambda kind: kind.__name__
)
async def test_no_error_of_aiohttp_gets_out(server: Server, kind: type[BaseException]) -> None:
    error = made(kind)
    error.secret = KEY  # type: ignore[attr-defined]
    server.answers(exception=error, repeat=True)
    async with session() as client:
        with pytest.raises(TransportError) as caught:
            await client.rerank("q", ["a"])
    assert_no_key(caught.value)
    link: BaseException | None = caught.value
    while link is not None:
        assert not isinstance(link, aiohttp.ClientError)
        link = link.__cause__ or link.__context__
