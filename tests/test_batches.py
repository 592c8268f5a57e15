"""The batch function, over a transport in memory and over loopback; no engine is needed."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import orjson
import pytest

from rerank_async import (
    ChunkLimits,
    Concurrency,
    InvalidRequestError,
    RateLimit,
    RetryPolicy,
    SessionOptions,
    TransportError,
)
from rerank_async._columns import batch_of
from rerank_async.batches import BatchReranker
from rerank_async.events import CallFinished, Event
from rerank_async.server import LocalServer
from rerank_async.testing import HttpResponse, MemoryTransport
from tests.every_option import arguments_of_sessions
from tests.support import KEY, MEMORY_URL, PACKAGE, memory, refusal, until

OUTCOME = (
    "indices",
    "doc_ids",
    "relevance_scores",
    "model",
    "total_tokens",
    "error_type",
    "error_message",
)


DOCUMENTS = ["close the door", "open a file for reading", "read a file line by line"]


def reranker(http: Any = None, **options: Any) -> BatchReranker:
    options = {"model": "m", "http": memory() if http is None else http, **options}
    return BatchReranker(MEMORY_URL, **options)


def nested(*rows: list[Any], **more: Any) -> dict[str, Any]:
    """A batch with one query for each list of documents."""
    return {
        "query_id": [f"q{number}" for number in range(len(rows))],
        "query": ["a query"] * len(rows),
        "documents": list(rows),
        **more,
    }


@pytest.fixture
def server_url() -> Iterator[str]:
    """A server with a key, on a loop and thread of its own: `run` blocks this one."""
    url: Future[str] = Future()
    stopped = threading.Event()

    async def serve() -> None:
        async with LocalServer(api_key=KEY) as server:
            url.set_result(server.url)
            await asyncio.to_thread(stopped.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield url.result(timeout=30)
    finally:
        stopped.set()
        thread.join()


class TestNestedBatches:
    async def test_come_out_best_first_row_by_row(self) -> None:
        async with reranker() as rerank:
            out = await rerank(nested(["document 1", "document 3", "document 2"], ["document 9"]))
        assert out == {
            "query_id": ["q0", "q1"],
            "indices": [[1, 2, 0], [0]],
            "doc_ids": [None, None],
            "relevance_scores": [[3.0, 2.0, 1.0], [9.0]],
            "model": ["m", "m"],
            "total_tokens": [3, 1],
            "error_type": [None, None],
            "error_message": [None, None],
        }

    async def test_need_no_query_id(self) -> None:
        async with reranker() as rerank:
            out = await rerank({"query": ["q"], "documents": [["document 1"]]})
        assert tuple(out) == OUTCOME

    async def test_name_documents_by_a_column_or_by_the_documents_themselves(self) -> None:
        documents = [{"doc_id": "a", "text": "document 1"}, {"doc_id": "b", "text": "document 2"}]
        async with reranker() as rerank:
            out = await rerank(
                nested(
                    documents,
                    ["document 1", "document 2"],
                    ["document 1", {"doc_id": 7, "text": "document 2"}],
                    documents,
                    doc_ids=[None, [10, 20], None, ["x", "y"]],
                )
            )
        assert out["doc_ids"] == [["b", "a"], [20, 10], [7, None], ["y", "x"]]

    async def test_have_top_n_for_all_or_for_a_row(self) -> None:
        row = ["document 1", "document 2", "document 3"]
        async with reranker(top_n=2) as rerank:
            out = await rerank(nested(row, row, row, top_n=[None, 1, float("nan")]))
        assert list(map(len, out["indices"])) == [2, 1, 2]

    async def test_with_no_documents_are_empty_rankings(self) -> None:
        http = memory()
        async with reranker(http) as rerank:
            out = await rerank(nested([]))
        assert out["indices"] == [[]]
        assert out["error_type"] == [None]
        assert not http.requests

    async def test_may_be_empty_themselves(self) -> None:
        async with reranker() as rerank:
            assert await rerank(nested()) == {name: [] for name in ("query_id", *OUTCOME)}

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ({"query": None}, "query must be a string, not NoneType"),
            ({"query": ""}, "query must not be empty"),
            ({"query": 7}, "query must be a string, not int"),
            ({"query": "\ud800"}, "query is not valid Unicode"),
            ({"documents": None}, "documents must be a list, not NoneType"),
            ({"documents": "text"}, "documents must be a list, not str"),
            ({"documents": 7}, "documents must be a list or an array, not int"),
            ({"documents": ["document 1", None]}, "documents[1] must be a string"),
            ({"documents": ["document 1", {"doc_id": 1}]}, "documents[1] has no text"),
            ({"doc_ids": ["a"]}, "doc_ids must be as many as documents, and 1 are not 2"),
            ({"top_n": 0}, "top_n must be at least 1"),
            ({"top_n": "3"}, "top_n must be a whole number"),
            ({"top_n": 1.5}, "top_n must be a whole number"),
        ],
    )
    async def test_a_bad_row_is_an_error_in_columns_and_the_others_are_ranked(
        self, bad: dict[str, Any], words: str
    ) -> None:
        good = {
            "query": "a query",
            "documents": ["document 1", "document 2"],
            "doc_ids": ["a", "b"],
            "top_n": 2,
        }
        rows = [good, good | bad, good]
        async with reranker() as rerank:
            out = await rerank({name: [row[name] for row in rows] for name in good})
        assert out["error_type"] == [None, "InvalidRequestError", None]
        assert words in out["error_message"][1]
        assert out["doc_ids"] == [["b", "a"], None, ["b", "a"]]
        assert [out[name][1] for name in ("indices", "relevance_scores", "model")] == [None] * 3


class TestFlatBatches:
    BATCH: ClassVar[dict[str, list[Any]]] = {
        "query_id": ["a", "b", "a", "b", "a"],
        "doc_id": [1, 2, 3, 4, 5],
        "query": ["qa", "qb", "qa", "qb", "qa"],
        "text": ["document 1", "document 2", "document 3", "document 4", "document 5"],
        "source": [1.5, None, "x", [1], {}],
    }

    async def test_are_ranked_by_query_and_keep_their_rows_and_columns(self) -> None:
        http = memory()
        async with reranker(http) as rerank:
            out = await rerank(self.BATCH)
        assert out == self.BATCH | {
            "relevance_score": [1.0, 2.0, 3.0, 4.0, 5.0],
            "rank": [3, 2, 2, 1, 1],
            "error_type": [None] * 5,
            "error_message": [None] * 5,
        }
        assert len(http.requests) == 2

    async def test_have_no_score_beyond_top_n(self) -> None:
        async with reranker(top_n=1) as rerank:
            out = await rerank(self.BATCH)
        assert out["rank"] == [None, None, None, 1, 1]
        assert out["relevance_score"] == [None, None, None, 4.0, 5.0]
        assert out["error_type"] == [None] * 5

    @pytest.mark.parametrize(
        ("column", "value", "words"),
        [
            ("text", None, "text must be a string, not NoneType"),
            ("text", 1.5, "text must be a string, not float"),
            ("text", "\udfff", "text is not valid Unicode"),
            ("query_id", None, "query_id is missing"),
            ("query_id", float("nan"), "query_id is missing"),
            ("query_id", ["a"], "query_id must be a string or a whole number, not list"),
            ("query", None, "query must be a string, not NoneType"),
            ("doc_id", 1, "doc_id 1 comes twice for this query"),
        ],
    )
    async def test_a_bad_row_fails_alone_and_the_rest_of_its_query_is_ranked(
        self, column: str, value: Any, words: str
    ) -> None:
        batch = {name: list(values) for name, values in self.BATCH.items()}
        batch[column][2] = value
        async with reranker() as rerank:
            out = await rerank(batch)
        assert out["error_type"] == [None, None, "InvalidRequestError", None, None]
        assert words in out["error_message"][2]
        assert out["rank"] == [2, 2, None, 1, 1]

    async def test_a_query_id_with_two_queries_fails_in_all_its_rows(self) -> None:
        async with reranker() as rerank:
            out = await rerank(self.BATCH | {"query": ["qa", "qb", "other", "qb", "qa"]})
        assert [kind is None for kind in out["error_type"]] == [False, True, False, True, False]
        assert "has more than one query" in out["error_message"][0]

    async def test_a_failed_call_fails_all_rows_of_its_query(self) -> None:
        async with reranker(memory(script=[refusal(409, "not this one")])) as rerank:
            out = await rerank(self.BATCH)
        assert sorted(map(str, out["error_type"])) == ["BadRequestError"] * 3 + ["None"] * 2


class TestABatchAsAWhole:
    @pytest.mark.parametrize(
        ("batch", "words"),
        [
            ({"documents": [["a"]]}, "no column query:"),
            ({"query": ["q"]}, "no column query_id and no text"),
            ({"query": ["q"], "query_id": ["1"]}, "no column text"),
            ({"query": ["q"], "documents": [["a"], ["b"]]}, "of one length, not: query 1"),
            ({"query": "q", "documents": [["a"]]}, "column query must be a list or an array"),
            ([["a"]], "must be a dict of columns, not list"),
        ],
    )
    async def test_that_cannot_be_used_raises(self, batch: Any, words: str) -> None:
        async with reranker() as rerank:
            with pytest.raises(InvalidRequestError, match=words):
                await rerank(batch)

    async def test_may_be_in_work_beside_others_in_the_same_slots(self) -> None:
        http = memory(delay=0.001)
        async with reranker(http, concurrency=3) as rerank:
            batches = [nested(*[["document 1"]] * 20) for _ in range(4)]
            outs = await asyncio.gather(*map(rerank, batches))
        assert all(out["error_type"] == [None] * 20 for out in outs)
        assert http.most_in_flight == 3

    async def test_is_ended_when_its_caller_is(self) -> None:
        http = memory(delay=60)
        async with reranker(http) as rerank:
            task = asyncio.create_task(rerank(nested(["document 1"])))
            await until(lambda: http.in_flight == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: http.in_flight == 0)


class TestArrays:
    async def test_of_numpy_are_columns(self) -> None:
        np = pytest.importorskip("numpy")
        column = np.empty(2, dtype=object)
        column[0] = np.array(["document 1", "document 2"])
        column[1] = np.array(["document 3"], dtype=object)
        ids = np.empty(2, dtype=object)
        ids[:] = [np.array([5, 6]), None]
        batch = {
            "query_id": np.array([1, 2]),
            "query": np.array(["q", "r"]),
            "documents": column,
            "doc_ids": ids,
            "top_n": np.array([1.0, np.nan]),
        }
        http = memory()
        async with reranker(http) as rerank:
            out = await rerank(batch)
        assert out["query_id"] == [1, 2]
        assert out["indices"] == [[1], [0]]
        assert out["doc_ids"] == [[6], None]
        assert type(out["doc_ids"][0][0]) is int
        assert {orjson.loads(request.body)["query"] for request in http.requests} == {"q", "r"}

    async def test_of_two_dimensions_are_lists_of_documents(self) -> None:
        np = pytest.importorskip("numpy")
        texts = np.array([["document 1", "document 2"], ["document 4", "document 3"]])
        async with reranker() as rerank:
            out = await rerank({"query": np.array(["q", "r"]), "documents": texts})
        assert out["indices"] == [[1, 0], [0, 1]]

    async def test_of_pandas_are_columns_with_its_missing_values(self) -> None:
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame(
            {
                "query_id": ["a", "a", None],
                "query": ["q", "q", "q"],
                "doc_id": pd.array([1, None, 3], dtype="Int64"),
                "text": ["document 1", None, "document 2"],
            }
        )
        async with reranker() as rerank:
            out = await rerank({name: frame[name] for name in frame})
        assert out["rank"] == [1, None, None]
        assert out["error_type"] == [None, "InvalidRequestError", "InvalidRequestError"]

    async def test_of_pyarrow_are_columns(self) -> None:
        pa = pytest.importorskip("pyarrow")
        table = pa.table(
            {
                "query": ["q"],
                "documents": [[{"doc_id": 1, "text": "document 1"}]],
                "top_n": pa.array([None], pa.int64()),
            }
        )
        async with reranker() as rerank:
            out = await rerank({name: table[name] for name in table.column_names})
        assert out["doc_ids"] == [[1]]


class TestFailures:
    async def test_of_a_request_are_columns(self) -> None:
        http = memory(script=[refusal(422, "too odd"), None, TransportError("it broke")])
        async with reranker(http, concurrency=1, retry=RetryPolicy(attempts=1)) as rerank:
            out = await rerank(nested(*[["document 1"]] * 4))
        assert out["error_type"] == ["UnprocessableError", None, "TransportError", None]
        assert "too odd" in out["error_message"][0]
        assert out["total_tokens"] == [None, 1, None, 1]

    async def test_whatever_they_are_are_columns(self) -> None:
        http = memory(script=[RuntimeError("a bug"), None])
        async with reranker(http, concurrency=1) as rerank:
            out = await rerank(nested(*[["document 1"]] * 2))
        assert out["error_type"] == ["RuntimeError", None]

    async def test_in_words_that_are_no_unicode_can_still_be_written(self) -> None:
        http = memory(script=[TransportError("odd \udcff")])
        async with reranker(http, retry=RetryPolicy(attempts=1)) as rerank:
            out = await rerank(nested(["document 1"]))
        assert out["error_message"][0].startswith("odd ?")

    async def test_an_outage_is_waited_out(self) -> None:
        broken = [TransportError("it broke")] * 12
        quick = RetryPolicy(attempts=2, base=1e-4, max_wait=1e-3, max_outage=60)
        async with reranker(memory(script=broken), concurrency=4, retry=quick) as rerank:
            out = await rerank(nested(*[["document 1"]] * 8))
        assert out["error_type"] == [None] * 8


class TestARefusal:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [(401, "AuthenticationError"), (403, "PermissionDeniedError"), (404, "NotFoundError")],
    )
    async def test_of_key_or_model_is_not_asked_for_again(self, status: int, kind: str) -> None:
        def refuse(request: Any) -> HttpResponse:
            return refusal(status, "not you")

        http = MemoryTransport(refuse, delay=0.001)
        async with reranker(http, concurrency=3) as rerank:
            first = await rerank(nested(*[["document 1"]] * 100))
            asked = len(http.requests)
            second = await rerank(nested(*[["document 1"]] * 100))
        assert asked <= 3
        assert len(http.requests) == asked
        for out in (first, second):
            assert out["error_type"] == [kind] * 100
            assert "not you" in out["error_message"][99]

    async def test_leaves_what_was_ranked_before_it(self) -> None:
        http = memory(script=[None, None, refusal(401)])
        async with reranker(http, concurrency=1) as rerank:
            out = await rerank(nested(*[["document 1"]] * 5))
        assert out["error_type"] == [None] * 2 + ["AuthenticationError"] * 3
        assert len(http.requests) == 3

    async def test_of_one_row_alone_does_not_stop_the_others(self) -> None:
        http = memory(script=[refusal(422), refusal(400)])
        async with reranker(http, concurrency=1) as rerank:
            out = await rerank(nested(*[["document 1"]] * 4))
        assert out["error_type"] == ["UnprocessableError", "BadRequestError", None, None]

    async def test_is_forgotten_by_close(self) -> None:
        http = memory(script=[refusal(401)])
        rerank = reranker(http)
        assert (await rerank(nested(["document 1"])))["error_type"] == ["AuthenticationError"]
        await rerank.aclose()
        assert (await rerank(nested(["document 1"])))["error_type"] == [None]
        await rerank.aclose()


class TestThePickle:
    def test_carries_every_option(self) -> None:
        options: dict[str, Any] = {
            "model": "m",
            "api_key": KEY,
            "dialect": "v1",
            "concurrency": Concurrency.adaptive(max=9),
            "rate": RateLimit(requests_per_minute=60),
            "retry": RetryPolicy(attempts=2),
            "chunks": ChunkLimits(10),
            "top_n": 3,
        }
        rerank = BatchReranker("https://rerank.test/v1", **options)
        again = pickle.loads(pickle.dumps(rerank))
        assert again.options == rerank.options
        assert again.__getstate__() == rerank.__getstate__()
        assert again.top_n == 3

    def test_carries_the_key_only_where_it_was_passed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RERANK_API_KEY", KEY)
        assert KEY.encode() not in pickle.dumps(BatchReranker(MEMORY_URL, model="m"))
        given = BatchReranker(MEMORY_URL, model="m", api_key=KEY)
        assert KEY.encode() in pickle.dumps(given)
        assert KEY not in repr(given)
        assert KEY not in repr(vars(pickle.loads(pickle.dumps(given))))

    async def test_leaves_the_session_behind(self) -> None:
        rerank = BatchReranker(MEMORY_URL, model="m", concurrency=2)
        async with rerank:
            rerank._sessions.here(rerank._make)
            again = pickle.loads(pickle.dumps(rerank))
            assert not again._sessions._kept

    async def test_takes_the_key_of_where_it_arrives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = pickle.dumps(BatchReranker("https://rerank.test/v1", model="m"))
        monkeypatch.setenv("RERANK_API_KEY", KEY)
        async with pickle.loads(data) as rerank:
            headers = rerank._sessions.here(rerank._make).session._endpoint.headers
            assert headers["Authorization"] == f"Bearer {KEY}"


class TestObjectsOutOfEqualPickles:
    def test_share_a_session_and_outlive_each_other(self, server_url: str) -> None:
        data = pickle.dumps(BatchReranker(server_url, model="lexical", api_key=KEY))
        batch = nested(DOCUMENTS)
        held: list[object] = []
        for _ in range(3):
            # As an engine does for every task.
            rerank = pickle.loads(data)
            rerank.run(batch)
            held.append(*rerank._sessions._kept.values())
        assert held[0] is held[1] is held[2]
        other = pickle.loads(
            pickle.dumps(BatchReranker(server_url, model="lexical", api_key=KEY, top_n=1))
        )
        other.run(batch)
        assert held[0] not in other._sessions._kept.values()
        rerank.close()
        other.close()

    def test_do_not_share_a_refusal_for_ever(
        self, server_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = pickle.dumps(BatchReranker(server_url, model="lexical", api_key="sk-wrong"))
        first, second = pickle.loads(data), pickle.loads(data)
        seen = arguments_of_sessions(monkeypatch)
        for _ in range(2):
            assert first.run(nested(DOCUMENTS))["error_type"] == ["AuthenticationError"]
        assert len(seen) == 1
        # It asks for itself: the key may have been put right meanwhile.
        assert second.run(nested(DOCUMENTS))["error_type"] == ["AuthenticationError"]
        assert len(seen) == 2
        first.close()


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"base_url": "rerank.test"}, "base_url"),
            ({"model": ""}, "model"),
            ({"api_key": 7}, "api_key"),
            ({"api_key": "two words"}, "api_key"),
            ({"dialect": "none"}, "dialect"),
            ({"concurrency": 0}, "concurrency"),
            ({"rate": 7}, "rate"),
            ({"retry": 7}, "retry"),
            ({"chunks": 7}, "chunks"),
            ({"top_n": 0}, "top_n"),
            ({"base_url": "http://rerank.test/v1", "api_key": "key"}, "base_url"),
        ],
    )
    def test_that_cannot_work_are_refused_at_once(self, options: Any, word: str) -> None:
        with pytest.raises(InvalidRequestError, match=word):
            BatchReranker(**{"base_url": MEMORY_URL, "model": "m"} | options)

    async def test_the_model_must_be_known_where_the_work_is_done(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rerank = BatchReranker(MEMORY_URL, http=memory())
        with pytest.raises(InvalidRequestError, match="RERANK_MODEL"):
            await rerank(nested(["document 1"]))
        monkeypatch.setenv("RERANK_MODEL", "m")
        async with rerank:
            assert (await rerank(nested(["document 1"])))["model"] == ["m"]

    async def test_a_key_that_is_missing_where_the_work_is_done_raises(self) -> None:
        # The 3xCoder endpoint asks for one; on this machine nobody knows it, and need not.
        rerank = BatchReranker(model="m")
        with pytest.raises(InvalidRequestError, match="api_key"):
            await rerank(nested(["document 1"]))


class TestOptions:
    async def test_stand_in_place_of_the_arguments(self) -> None:
        told: list[Event] = []
        options = SessionOptions(MEMORY_URL, model="m", http=memory(), on_event=told.append)
        async with BatchReranker(options=options, top_n=1) as rerank:
            out = await rerank(nested(["document 1", "document 2"]))
        assert out["indices"] == [[1]]
        assert rerank.options == options
        assert [type(event) for event in told if isinstance(event, CallFinished)] == [CallFinished]

    async def test_are_taken_as_they_stand(self) -> None:
        # Without a word about time, a call has a minute, and an outage is not waited out.
        http = memory(script=[TransportError("down")] * 9)
        options = SessionOptions(MEMORY_URL, model="m", http=http)
        rerank = BatchReranker(options=options)
        assert rerank.options.timeout == 60.0
        assert rerank.retry == RetryPolicy()
        assert BatchReranker(MEMORY_URL).options.timeout is None
        assert BatchReranker(MEMORY_URL).retry.max_outage == 600.0

    @pytest.mark.parametrize(
        "beside",
        [
            {"base_url": MEMORY_URL},
            {"model": "m"},
            {"api_key": KEY},
            {"concurrency": 3},
            {"rate": RateLimit(requests_per_minute=6)},
            {"retry": RetryPolicy()},
            {"chunks": ChunkLimits()},
            {"allow_insecure_http": True},
            {"http": memory()},
        ],
        ids=lambda beside: next(iter(beside)),
    )
    def test_have_no_argument_of_a_session_beside_them(self, beside: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequestError, match=f"{next(iter(beside))} stands beside"):
            BatchReranker(options=SessionOptions(MEMORY_URL, model="m"), **beside)

    def test_that_would_lose_documents_are_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="on_failure"):
            BatchReranker(options=SessionOptions(MEMORY_URL, on_failure="partial"))

    def test_are_options(self) -> None:
        with pytest.raises(InvalidRequestError, match="options must be SessionOptions"):
            BatchReranker(options={"model": "m"})  # type: ignore[arg-type]


class TestASession:
    def test_is_one_for_each_loop_and_closed_with_it(self) -> None:
        http = memory()
        rerank = reranker(http)

        async def twice() -> None:
            await rerank(nested(["document 1"]))
            await rerank(nested(["document 1"]))
            assert len(rerank._sessions._kept) == 1

        for _ in range(3):
            http.closed = False
            asyncio.run(twice())
            assert http.closed

    async def test_is_closed_with_its_object(self) -> None:
        http = memory()
        rerank = reranker(http)
        await rerank(nested(["document 1"]))
        del rerank
        gc.collect()
        await until(lambda: http.closed)

    def test_of_plain_functions_is_one_for_all_threads(self) -> None:
        http = memory(delay=0.001)
        with reranker(http, concurrency=2) as rerank, ThreadPoolExecutor(8) as threads:
            outs = list(threads.map(rerank.run, [nested(*[["document 1"]] * 5)] * 8))
            assert len(rerank._sessions._kept) == 1
        assert all(out["error_type"] == [None] * 5 for out in outs)
        assert http.most_in_flight == 2
        assert http.closed

    async def test_is_closed_only_from_outside_its_own_loop(self) -> None:
        async with reranker() as rerank:
            await rerank(nested(["document 1"]))
            with pytest.raises(InvalidRequestError, match="aclose"):
                rerank.close()

    async def test_that_is_closed_ends_what_is_in_work(self) -> None:
        http = memory(delay=60)
        rerank = reranker(http)
        task = asyncio.create_task(rerank(nested(["document 1"])))
        await until(lambda: http.in_flight == 1)
        await rerank.aclose()
        assert (await task)["error_type"] == ["SessionClosedError"]


PROGRAM = """
import asyncio, os, sys
from rerank_async._columns import batch_of
from rerank_async.batches import BatchReranker

reranker = BatchReranker(sys.argv[1], model="lexical")
batch = {"query": ["open a file"] * 3, "documents": [sys.argv[2:]] * 3}
for out in (reranker.run(batch), asyncio.run(reranker(batch))):
    assert out["indices"] == [[1, 2, 0]] * 3, out
if hasattr(os, "fork"):
    child = os.fork()
    out = reranker.run(batch)
    assert out["indices"] == [[1, 2, 0]] * 3, out
    if child:
        assert os.waitpid(child, 0)[1] == 0
loop = asyncio.new_event_loop()
loop.run_until_complete(reranker(batch))
print("done")
"""


class TestOverLoopback:
    def test_a_batch_is_ranked_from_a_plain_function(
        self, server_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RERANK_API_KEY", KEY)
        with BatchReranker(server_url, model="lexical") as rerank:
            out = rerank.run({"query": ["open a file"], "documents": [DOCUMENTS]})
        assert out["indices"] == [[1, 2, 0]]
        assert out["model"] == ["lexical"]

    def test_a_wrong_key_is_an_error_in_every_row(self, server_url: str) -> None:
        with BatchReranker(server_url, model="lexical", api_key="sk-wrong") as rerank:
            out = rerank.run(nested(*[DOCUMENTS] * 50))
        assert out["error_type"] == ["AuthenticationError"] * 50

    @pytest.mark.timeout(300)
    def test_a_program_that_never_closes_it_ends_without_a_warning(self, server_url: str) -> None:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, server_url, *DOCUMENTS],
            capture_output=True,
            text=True,
            timeout=240,
            env=os.environ | {"RERANK_API_KEY": KEY, "PYTHONPATH": str(PACKAGE.parent)},
        )
        assert done.stdout == "done\ndone\n"
        assert "Unclosed" not in done.stderr
        assert "rerank" not in done.stderr, done.stderr
        assert done.returncode == 0


@pytest.mark.looptime
async def test_an_outage_is_waited_out_once_by_however_many_batches() -> None:
    down = memory(script=iter(lambda: TransportError("down"), None))
    reranker = BatchReranker(
        MEMORY_URL,
        model="m",
        api_key=KEY,
        http=down,
        concurrency=4,
        retry=RetryPolicy(attempts=2, base=0.01, max_outage=60.0),
    )
    columns = {"query": ["q"] * 50, "documents": [["a", "b"]] * 50}
    queries = batch_of(columns, None).queries
    loop = asyncio.get_running_loop()
    for _ in range(4):
        outcomes = await reranker.outcomes(queries)
        assert {type(outcome) for outcome in outcomes} == {TransportError}
    # Fifty rows, four at a time, in four batches: each would wait a minute.
    assert 60.0 <= loop.time() < 90.0
    await reranker.aclose()
