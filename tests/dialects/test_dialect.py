"""`_dialect`: a server that does everything in its own way is one class, and none is trusted."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from rerank_async import (
    AuthenticationError,
    BadRequestError,
    ChunkLimits,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitError,
    RerankSession,
    ResponseError,
    RetryPolicy,
    ServerError,
    StatusError,
)
from rerank_async._errors import Meaning, error_for_status
from rerank_async._ordering import best_first
from rerank_async._policy import is_retryable, is_throttle, refusal_of
from rerank_async.dialects import Dialect, Failure, Read, get, get_server
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport
from tests.support import KEY, number_of, numbered, session_over


class Odd(Dialect):
    """The model in the path, a key header of its own, scores by position, no `top_n`."""

    name = "odd"
    limits = ChunkLimits(max_documents=5)

    def url(self, base_url: str, model: str) -> str:
        return f"{base_url}/{model.replace('.', '_')}/scores?api-version=7"

    def headers(self, key: str | None) -> Mapping[str, str]:
        fixed = {"X-Version": "2026-07"}
        return fixed if key is None else {**fixed, "Api-Key": f"key {key}"}

    def encode_request(
        self, model: str, query: str, documents: Sequence[str], top_n: int | None
    ) -> bytes:
        return json.dumps({"q": query, "texts": list(documents)}).encode()

    def decode_response(self, body: bytes) -> Read:
        scores = json.loads(body)["scores"]
        return Read(list(range(len(scores))), scores)


def odd_server(request: HttpRequest) -> HttpResponse:
    asked = json.loads(request.body)
    scores = [number_of(asked["q"], text) for text in asked["texts"]]
    return HttpResponse(200, {}, json.dumps({"scores": scores}).encode())


def best(count: int) -> list[int]:
    return best_first([number_of("q", text) for text in numbered(count)])


def over(dialect: Dialect, handler: Callable[[HttpRequest], HttpResponse]) -> RerankSession:
    quick = RetryPolicy(attempts=2, base=0.001, throttle_base=0.001)
    return session_over(MemoryTransport(handler), dialect=dialect, model="big.model", retry=quick)


async def test_a_server_that_does_everything_in_its_own_way_is_one_class() -> None:
    transport = MemoryTransport(odd_server)
    async with session_over(transport, dialect=Odd(), model="big.model") as session:
        response = await session.rerank("q", numbered(12), top_n=3)
        assert session.dialect == "odd"
        assert session.chunks == Odd.limits
    assert list(response.results.indices) == best(12)[:3]
    assert len(transport.requests) == 3
    for request in transport.requests:
        assert request.url == "https://memory.test/v1/big_model/scores?api-version=7"
        assert request.headers["api-key"] == f"key {KEY}"
        assert request.headers["x-version"] == "2026-07"
        assert "authorization" not in request.headers
        assert KEY not in repr(request.headers)


async def test_limits_that_the_caller_gives_count_and_not_the_dialects() -> None:
    transport = MemoryTransport(odd_server)
    async with session_over(transport, dialect=Odd(), chunks=ChunkLimits()) as session:
        await session.rerank("q", numbered(12))
    assert len(transport.requests) == 1


WRONG: dict[str, Callable[[int], Any]] = {
    "an index beyond the documents": lambda n: Read([7, *range(1, n)], [0.5] * n),
    "an index twice": lambda n: Read([0] * n, [0.5] * n),
    "an index below 0": lambda n: Read([-1, *range(1, n)], [0.5] * n),
    "too few results": lambda n: Read(list(range(n - 1)), [0.5] * (n - 1)),
    "too many results": lambda n: Read(list(range(n + 1)), [0.5] * (n + 1)),
    "no results": lambda n: Read([], []),
    "fewer scores than indices": lambda n: Read(list(range(n)), [0.5]),
    "a score that is no number": lambda n: Read(list(range(n)), [float("nan")] * n),
    "a score that is None": lambda n: Read(list(range(n)), [None] * n),  # type: ignore[list-item]
    "a score that is text": lambda n: Read(list(range(n)), ["1"] * n),  # type: ignore[list-item]
    "an index that is true": lambda n: Read([False, *range(1, n)], [0.5] * n),
    "None": lambda n: None,
    "a tuple": lambda n: (list(range(n)), [0.5] * n),
    "an iterator": lambda n: Read(iter(range(n)), [0.5] * n),  # type: ignore[arg-type]
    "an answer of the core's own kind": lambda n: __import__(
        "rerank_async._answers", fromlist=["Answer"]
    ).Answer([5] * n, [0.5] * n, None, None),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("on_failure", ["raise", "partial"])
async def test_no_dialect_gets_a_wrong_score_past_the_check(wrong: str, on_failure: Any) -> None:
    class Careless(Odd):
        def decode_response(self, body: bytes) -> Read:
            read: Read = WRONG[wrong](3)
            return read

    transport = MemoryTransport(odd_server)
    quick = RetryPolicy(attempts=1)
    async with session_over(
        transport, dialect=Careless(), retry=quick, on_failure=on_failure
    ) as session:
        if on_failure == "raise":
            with pytest.raises(ResponseError):
                await session.rerank("q", numbered(3))
        else:
            response = await session.rerank("q", numbered(3))
            assert not response.complete
            assert list(response.results) == []
            assert set(response.missing) == {0, 1, 2}


@pytest.mark.parametrize(
    "error", [KeyError("scores"), TypeError("odd"), RecursionError(), ZeroDivisionError("0")]
)
async def test_what_a_dialect_raises_over_an_answer_is_an_answer_that_cannot_be_read(
    error: Exception,
) -> None:
    class Broken(Odd):
        def decode_response(self, body: bytes) -> Read:
            raise error

    async with over(Broken(), odd_server) as session:
        with pytest.raises(ResponseError, match="the dialect odd could not read") as caught:
            await session.rerank("q", numbered(3))
    assert type(error).__name__ in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_key_that_the_server_quotes_is_not_shown_by_a_dialect_that_fails() -> None:
    class Quoting(Odd):
        def decode_response(self, body: bytes) -> Read:
            raise ValueError(f"cannot read {body.decode()}")

    def quoting(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, {}, b"the key is " + KEY.encode())

    async with over(Quoting(), quoting) as session:
        with pytest.raises(ResponseError, match="could not read") as caught:
            await session.rerank("q", numbered(3))
    assert KEY not in str(caught.value)
    assert "[API key]" in str(caught.value)


class Knowing(Odd):
    """What a failure means stands in its body."""

    def classify(self, status: int, body: bytes) -> Failure:
        means: Any = body.decode()
        return Failure("words", means=means)

    def decode_response(self, body: bytes) -> Read:
        if body.startswith(b"{"):
            return super().decode_response(body)
        failure = self.classify(200, body)
        raise error_for_status(200, failure.message, {}, None, means=failure.means)


MEANINGS: list[tuple[Meaning, type[StatusError], bool]] = [
    ("too_many", PayloadTooLargeError, False),
    ("too_long", PayloadTooLargeError, False),
    ("bad_request", BadRequestError, False),
    ("wrong_key", AuthenticationError, False),
    ("no_model", NotFoundError, False),
    ("used_up", RateLimitError, False),
    ("busy", RateLimitError, True),
    ("passing", ServerError, True),
]


@pytest.mark.parametrize(("means", "kind", "again"), MEANINGS)
@pytest.mark.parametrize("status", [200, 400, 404, 429, 500, 503])
async def test_what_a_dialect_knows_counts_whatever_the_status(
    means: Meaning, kind: type[StatusError], again: bool, status: int
) -> None:
    transport = MemoryTransport(lambda request: HttpResponse(status, {}, means.encode()))
    quick = RetryPolicy(attempts=3, base=0.001, throttle_base=0.001)
    async with session_over(transport, dialect=Knowing(), retry=quick) as session:
        with pytest.raises(kind) as caught:
            await session.rerank("q", numbered(1))
    error = caught.value
    assert type(error) is kind
    assert (error.means, error.status) == (means, status)
    assert len(transport.requests) == (3 if again else 1)
    assert is_retryable(error) is again
    assert is_throttle(error) is (means == "busy")
    assert (error.condemns is None) is again


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("means", ["too_many", "too_long", "bad_request"])
async def test_a_list_that_is_refused_in_odd_words_is_sent_in_pieces(
    status: int, means: str
) -> None:
    def refusing(request: HttpRequest) -> HttpResponse:
        if len(json.loads(request.body)["texts"]) > 2:
            return HttpResponse(status, {}, means.encode())
        return odd_server(request)

    async with over(Knowing(), refusing) as session:
        response = await session.rerank("q", numbered(5))
    assert list(response.results.indices) == best(5)


def test_the_meanings_of_one_condemned_model_and_of_a_session_differ() -> None:
    condemned = {
        means: error_for_status(418, "", {}, None, means=means).condemns for means, _, _ in MEANINGS
    }
    assert condemned == {
        "too_many": "request",
        "too_long": "request",
        "bad_request": "request",
        "wrong_key": "session",
        "no_model": "model",
        "used_up": "session",
        "busy": None,
        "passing": None,
    }
    refusals = {
        means: refusal_of(error_for_status(418, "", {}, None, means=means))
        for means, _, _ in MEANINGS
    }
    found = {means: refusal for means, refusal in refusals.items() if refusal is not None}
    assert found == {"too_many": "documents", "too_long": "bytes", "bad_request": "content"}


def test_a_dialect_is_a_name_or_an_object_and_nothing_else() -> None:
    mine = Odd()
    assert get(mine) is mine
    assert get("v1").name == "v1"
    wrong: Any
    for wrong in ("v9", "", None, 7, Odd, ["v1"]):
        with pytest.raises(InvalidRequestError, match="is not known: use one of v1, or an object"):
            get(wrong)
    with pytest.raises(InvalidRequestError, match=r"dialect 'v9' is not known"):
        RerankSession("https://rerank.test/v1", dialect="v9")


def test_a_dialect_without_a_servers_side_is_not_served() -> None:
    assert get_server("v1").path == "/rerank"
    with pytest.raises(InvalidRequestError, match=r"^dialect 'odd' is spoken by clients only$"):
        get_server(Odd())  # type: ignore[arg-type]


def test_defaults_are_those_of_most_servers() -> None:
    class Plain(Dialect):
        name = "plain"

        def encode_request(
            self, model: str, query: str, documents: Sequence[str], top_n: int | None
        ) -> bytes:
            return b"".join(text.encode() for text in documents)

        def decode_response(self, body: bytes) -> Read:
            return Read([], [])

    plain = Plain()
    assert plain.url("https://host/v1", "m") == "https://host/v1/rerank"
    assert plain.headers(None) == {}
    assert plain.headers("k") == {"Authorization": "Bearer k"}
    assert list(plain.encode_pieces("m", "q", ["a", "b"], None)) == [b"ab"]
    assert plain.document_bytes("é") == 5
    assert plain.classify(400, b'{"error": {"message": "no", "code": "c"}}') == Failure("no", "c")
    with pytest.raises(TypeError, match="abstract"):
        Dialect()  # type: ignore[abstract]


def test_an_error_keeps_what_it_means_over_a_pickle() -> None:
    import copy
    import pickle

    error: StatusError = error_for_status(500, "words", {}, 2.0, means="busy")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert other.means == "busy"
        assert other.retry_after == 2.0
