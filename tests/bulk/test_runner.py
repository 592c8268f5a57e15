"""Jobs from their inputs to their outputs, over a server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from rerank_async import (
    AuthenticationError,
    ChunkLimits,
    ConnectError,
    InvalidRequestError,
    RerankError,
    RetryPolicy,
)
from rerank_async.bulk import (
    PATIENT,
    BulkOptions,
    BulkProgress,
    InputError,
    JobChangedError,
    JobFullError,
    JobLockedError,
    rerank_file,
)
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.bulk.support import (
    expected,
    failing_on,
    queries,
    ranking,
    read_jsonl,
    requests,
    write_jsonl,
)
from tests.support import (
    GatedTransport,
    memory,
    number_of,
    refusal,
    sent_documents,
    session_over,
    until,
)

ONCE = RetryPolicy(attempts=1)


async def test_every_request_of_a_file_has_its_ranking_in_the_order_of_the_input(
    tmp_path: Path,
) -> None:
    rows = requests(40)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    async with session_over(memory()) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert [line["query_id"] for line in lines] == [row["query_id"] for row in rows]
    for row, line in zip(rows, lines, strict=True):
        assert ranking(line) == expected(row)
        for result in line["results"]:
            assert result["doc_id"] == row["documents"][result["index"]]["doc_id"]
        assert line["model"] == "m"
        assert line["usage"] == {"total_tokens": 5}
    assert summary.finished
    assert (summary.queries, summary.documents, summary.failed) == (40, 200, 0)
    assert (summary.sent, summary.requests, summary.tokens) == (200, 40, 200)
    assert summary.job == tmp_path / "out.jsonl.job"


async def test_ids_come_back_as_the_numbers_and_strings_that_they_were(tmp_path: Path) -> None:
    rows = [
        {"query_id": 7, "query": "a", "documents": [{"doc_id": 12, "text": "document 1"}]},
        {"query_id": "8", "query": "b", "documents": ["document 2"]},
        {"query": "c", "documents": ["document 3"]},
    ]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    async with session_over(memory()) as session:
        await rerank_file(session, source, tmp_path / "out.jsonl")
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert [line["query_id"] for line in lines] == [7, "8", None]
    assert lines[0]["results"] == [{"index": 0, "doc_id": 12, "relevance_score": 1.0}]
    assert lines[1]["results"] == [{"index": 0, "relevance_score": 2.0}]


async def test_top_n_is_a_rows_own_or_else_the_jobs(tmp_path: Path) -> None:
    rows = requests(3)
    rows[1]["top_n"] = 4
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    async with session_over(memory()) as session:
        await rerank_file(session, source, tmp_path / "out.jsonl", top_n=2)
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert [len(line["results"]) for line in lines] == [2, 4, 2]
    assert ranking(lines[0]) == expected(rows[0], top_n=2)


async def test_a_row_without_documents_has_an_empty_ranking_and_costs_nothing(
    tmp_path: Path,
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"query_id": "q", "query": "a", "documents": []}])
    transport = memory()
    async with session_over(transport) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    assert read_jsonl(tmp_path / "out.jsonl")[0]["results"] == []
    assert summary.queries == 1
    assert not transport.requests


async def test_an_empty_input_makes_an_empty_output(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [])
    async with session_over(memory()) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    assert summary.finished
    assert (tmp_path / "out.jsonl").read_bytes() == b""


async def test_a_failed_row_is_an_error_row_in_its_place(tmp_path: Path) -> None:
    rows = requests(10)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    async with session_over(failing_on("query 4")) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert [line["query_id"] for line in lines] == [row["query_id"] for row in rows]
    assert lines[4].keys() == {"query_id", "error"}
    assert lines[4]["error"]["type"] == "BadRequestError"
    assert "this one I do not like" in lines[4]["error"]["message"]
    assert summary.finished
    assert summary.failed == 1


async def test_in_partial_mode_a_row_keeps_what_was_scored_and_names_the_rest(
    tmp_path: Path,
) -> None:
    rows = requests(3, documents=6)
    bad = rows[1]["documents"][2]["text"] = "document 5555"
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    async with session_over(failing_on(bad), on_failure="partial") as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    line = read_jsonl(tmp_path / "out.jsonl")[1]
    assert [index for index, _ in ranking(line)] == [
        index for index, _ in expected(rows[1]) if index != 2
    ]
    assert [(span["start"], span["stop"]) for span in line["missing"]] == [(2, 3)]
    assert line["missing"][0]["error"]["type"] == "BadRequestError"
    assert summary.failed == 1


# ── going on ──


async def test_a_job_that_was_stopped_goes_on_and_sends_nothing_twice(tmp_path: Path) -> None:
    rows = requests(60)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    stop = asyncio.Event()
    transport = memory(delay=0.001)

    def watch(progress: BulkProgress) -> None:
        if progress.queries >= 5 and progress.phase == "sending":
            stop.set()

    async with session_over(transport, concurrency=2) as session:
        running = asyncio.create_task(rerank_file(session, source, output, stop=stop))
        await until(lambda: len(transport.requests) > 10)
        stop.set()
        first = await running
    assert not first.finished
    assert first.stopped == "interrupted"
    assert 0 < first.queries < 60
    assert not output.exists()

    again = memory()
    async with session_over(again) as session:
        second = await rerank_file(session, source, output)
    assert second.finished
    assert second.resumed == first.queries
    assert len(transport.requests) == first.queries
    assert not set(queries(transport)) & set(queries(again))
    assert [ranking(line) for line in read_jsonl(output)] == [expected(row) for row in rows]


async def test_a_job_that_is_done_is_written_again_without_a_request(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(5))
    output = tmp_path / "out.jsonl"
    async with session_over(memory()) as session:
        await rerank_file(session, source, output)
    before = output.read_bytes()
    output.unlink()
    transport = memory()
    async with session_over(transport) as session:
        summary = await rerank_file(session, source, output)
    assert not transport.requests
    assert output.read_bytes() == before
    assert (summary.resumed, summary.tokens) == (5, 25)


async def test_the_input_may_come_back_in_another_order(tmp_path: Path) -> None:
    rows = requests(20)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    async with session_over(memory()) as session:
        await rerank_file(session, source, output)
        write_jsonl(source, reversed(rows))
        summary = await rerank_file(session, source, output)
    assert summary.requests == 0
    assert [ranking(line) for line in read_jsonl(output)] == [
        expected(row) for row in reversed(rows)
    ]


Change = Callable[[list[dict[str, Any]]], None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(requests(1, start=99)[0]), "rows was 5, now 6"),
        (lambda rows: rows.pop(), "rows was 5, now 4"),
        (lambda rows: rows[2].update(query="another"), "content is another"),
        (lambda rows: rows[2]["documents"].append("document 1"), "documents was 25, now 26"),
        (lambda rows: rows[2].update(query_id="new"), "content is another"),
        (lambda rows: rows[2].update(top_n=3), "content is another"),
        (lambda rows: rows[2]["documents"][0].update(doc_id="new"), "content is another"),
    ],
)
async def test_a_changed_input_is_an_error_that_says_so(
    tmp_path: Path, change: Change, message: str
) -> None:
    rows = requests(5)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    transport = memory()
    async with session_over(transport) as session:
        await rerank_file(session, source, output)
        change(rows)
        write_jsonl(source, rows)
        with pytest.raises(JobChangedError, match=message):
            await rerank_file(session, source, output)
    assert len(transport.requests) == 5


@pytest.mark.parametrize(
    ("options", "call", "bulk", "message"),
    [
        ({"model": "other"}, {}, {}, "model was 'm', now 'other'"),
        ({"base_url": "https://other.test/v1"}, {}, {}, "the server was 'https://memory.test/v1'"),
        ({}, {"top_n": 3}, {}, "top_n was not given, now 3"),
        ({"chunks": ChunkLimits(max_documents=2)}, {}, {}, "max_documents was 1000, now 2"),
        ({"chunks": ChunkLimits(max_bytes=999)}, {}, {}, "max_bytes was not given, now 999"),
        ({"chunks": ChunkLimits(max_tokens=99)}, {}, {}, "max_tokens was not given, now 99"),
        ({"on_failure": "partial"}, {}, {}, "on_failure was 'raise', now 'partial'"),
        ({}, {}, {"identical_once": False}, "whether identical documents are sent once"),
    ],
)
async def test_a_changed_option_is_an_error_that_says_which(
    tmp_path: Path,
    options: dict[str, Any],
    call: dict[str, Any],
    bulk: dict[str, Any],
    message: str,
) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", requests(3)), tmp_path / "out.jsonl"
    async with session_over(memory()) as session:
        await rerank_file(session, source, output)
    transport = memory()
    async with session_over(transport, **options) as session:
        with pytest.raises(JobChangedError, match=message):
            await rerank_file(session, source, output, **call, options=BulkOptions(**bulk))
    assert not transport.requests


async def test_failed_rows_are_done_again_on_demand_only(tmp_path: Path) -> None:
    rows = requests(10)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    async with session_over(failing_on("query 4", "query 7")) as session:
        await rerank_file(session, source, output)
    for retry_failed, sent, failed in ((False, 0, 2), (True, 2, 0), (True, 0, 0)):
        transport = memory()
        async with session_over(transport) as session:
            options = BulkOptions(retry_failed=retry_failed)
            summary = await rerank_file(session, source, output, options=options)
        assert len(transport.requests) == sent
        assert summary.failed == failed
        assert len(read_jsonl(output)) == 10
    assert [ranking(line) for line in read_jsonl(output)] == [expected(row) for row in rows]


async def test_a_second_run_of_a_job_that_is_under_way_is_refused(tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", requests(5)), tmp_path / "out.jsonl"
    transport = memory(delay=30)
    async with session_over(transport) as session:
        running = asyncio.create_task(rerank_file(session, source, output))
        await until(lambda: transport.in_flight > 0)
        with pytest.raises(JobLockedError, match="another process"):
            await rerank_file(session, source, output)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_an_output_that_no_job_wrote_is_not_replaced(tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", requests(2)), tmp_path / "out.jsonl"
    output.write_text("precious")
    async with session_over(memory()) as session:
        with pytest.raises(InvalidRequestError, match="exists"):
            await rerank_file(session, source, output)
        assert output.read_text() == "precious"
        assert not (tmp_path / "out.jsonl.job").exists()
        await rerank_file(session, source, output, options=BulkOptions(overwrite=True))
    assert len(read_jsonl(output)) == 2


async def test_bad_rows_are_found_before_anything_is_sent(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [*requests(5), {"query_id": "x", "query": ""}])
    transport = memory()
    async with session_over(transport) as session:
        with pytest.raises(InputError, match="line 6"):
            await rerank_file(session, source, tmp_path / "out.jsonl")
    assert not transport.requests
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


async def test_an_id_that_occurs_twice_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    rows = requests(5)
    rows[3]["query_id"] = "q1"
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    transport = memory()
    async with session_over(transport) as session:
        with pytest.raises(InputError, match="'q1' stands in rows 2 and 4"):
            await rerank_file(session, source, tmp_path / "out.jsonl")
    assert not transport.requests


async def test_rows_without_ids_that_are_alike_are_sent_once(tmp_path: Path) -> None:
    rows = [{"query": "a", "documents": ["document 1", "document 2"]}] * 3
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    transport = memory()
    async with session_over(transport) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    assert len(transport.requests) == 1
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 3
    assert summary.finished


async def test_rows_that_are_alike_may_come_while_the_first_is_under_way(tmp_path: Path) -> None:
    twin = {"query": "a", "documents": ["document 1", "document 2"]}
    source = write_jsonl(tmp_path / "in.jsonl", [twin, *requests(40), twin])
    transport = memory()
    async with session_over(transport, concurrency=1) as session:
        options = BulkOptions(check_first=False)
        summary = await rerank_file(session, source, tmp_path / "out.jsonl", options=options)
    assert summary.finished
    assert len(transport.requests) == 41
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert ranking(lines[0]) == ranking(lines[41]) == expected(twin)


# ── an input that changes after it was checked ──


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"query":"query 599"', b'"query":"query 5x9"'),
        (b'"query_id":"q599"', b'"query_id":"q5x9"'),
        (b'{"query_id":"q599"', b" " * 17),
    ],
)
async def test_a_row_that_changes_after_the_check_is_not_sent(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, requests(600, documents=20))
    good, whole = scoring(number_of), source.read_bytes()
    assert len(old) == len(new) or new.isspace()
    place = whole.index(old)

    def changing(request: HttpRequest) -> HttpResponse:
        # The same file, in its place: the reader has it open, reads far fewer rows ahead than there
        # are, and must find all that stands before the change as it was.
        with source.open("r+b") as file:
            if new.isspace():
                file.truncate(place)
            else:
                file.seek(place)
                file.write(new)
        return good(request)

    transport = MemoryTransport(changing)
    async with session_over(transport, concurrency=1) as session:
        with pytest.raises(JobChangedError, match="was changed after it was checked"):
            await rerank_file(session, source, output)
    assert not output.exists()
    assert not {"query 599", "query 5x9"} & set(queries(transport))
    source.write_bytes(whole)
    async with session_over(memory()) as session:
        summary = await rerank_file(session, source, output)
    assert (summary.finished, summary.resumed) == (True, 599)
    assert [ranking(line) for line in read_jsonl(output)] == [
        expected(row) for row in requests(600, documents=20)
    ]


# ── an input that is read as it comes ──


async def test_an_unchecked_input_that_changed_is_found_by_its_rows(tmp_path: Path) -> None:
    rows = requests(20)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    options = BulkOptions(check_first=False)
    async with session_over(memory()) as session:
        await rerank_file(session, source, output, options=options)
        before = output.read_bytes()
        write_jsonl(source, [*rows[:7], {**rows[7], "query": "another"}, *rows[8:]])
        with pytest.raises(JobChangedError, match="'q7' has other content"):
            await rerank_file(session, source, output, options=options)
        write_jsonl(source, rows[:-1])
        with pytest.raises(JobChangedError, match="'q19'"):
            await rerank_file(session, source, output, options=options)
        # One that only grew goes on.
        write_jsonl(source, [*rows, *requests(3, start=20)])
        summary = await rerank_file(session, source, output, options=options)
    assert (summary.finished, summary.requests, summary.resumed) == (True, 3, 20)
    assert output.read_bytes().startswith(before)


async def test_a_bad_row_of_an_unchecked_input_ends_the_job_once_what_is_under_way_is_noted(
    tmp_path: Path,
) -> None:
    rows = requests(30)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [*rows[:20], {"query": ""}, *rows[20:]])
    options = BulkOptions(check_first=False)
    transport = memory()
    async with session_over(transport) as session:
        with pytest.raises(InputError, match="line 21"):
            await rerank_file(session, source, output, options=options)
        assert len(transport.requests) == 20
        write_jsonl(source, rows)
        summary = await rerank_file(session, source, output, options=options)
    assert (summary.resumed, summary.requests) == (20, 10)


# ── when to stop ──


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_of_everything_stops_the_job_at_once(tmp_path: Path, status: int) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", requests(500)), tmp_path / "out.jsonl"
    transport = failing_on("query", status=status)
    async with session_over(transport, concurrency=4) as session:
        summary = await rerank_file(session, source, output)
    assert summary.stopped == "refused"
    assert getattr(summary.error, "status", None) == status
    # What was on the wire when the first was refused.
    assert len(transport.requests) <= 4
    assert not output.exists()
    # Nothing was noted: with a good key every row is done.
    async with session_over(memory()) as session:
        summary = await rerank_file(session, source, output)
    assert summary.finished
    assert (summary.resumed, summary.failed) == (0, 0)


async def test_what_is_answered_beside_a_refusal_is_kept(tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", requests(50)), tmp_path / "out.jsonl"
    refused = asyncio.Event()

    class OneRefused(GatedTransport):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            if self.arrived == 1:
                self.arrived += 1
                await until(lambda: self.arrived == 4)
                refused.set()
                return refusal(401)
            # The others are still on the wire when the refusal is known.
            self.gate = refused
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)

    async with session_over(OneRefused(), concurrency=4) as session:
        summary = await rerank_file(session, source, output)
        assert session.statistics().requests == 4
    assert summary.stopped == "refused"
    async with session_over(memory()) as session:
        summary = await rerank_file(session, source, output)
    assert summary.finished
    assert summary.resumed == 3


async def test_an_outage_stops_the_job_and_fails_no_row(tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", requests(50)), tmp_path / "out.jsonl"
    down = MemoryTransport(scoring(number_of), script=[ConnectError("no way")] * 1000)
    async with session_over(down, retry=ONCE) as session:
        summary = await rerank_file(session, source, output)
    assert summary.stopped == "outage"
    assert isinstance(summary.error, ConnectError)
    async with session_over(memory()) as session:
        summary = await rerank_file(session, source, output)
    assert summary.finished
    assert summary.failed == 0


@pytest.mark.parametrize("status", [429, 503])
async def test_a_hint_that_is_too_long_to_wait_for_stops_the_job_and_fails_no_row(
    tmp_path: Path, status: int
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(60))
    good, seen = scoring(number_of), 0

    def handle(request: HttpRequest) -> HttpResponse:
        nonlocal seen
        seen += 1
        # The last answers come while requests that will be refused are under way.
        return good(request) if seen <= 20 else refusal(status, retry_after="7200")

    transport = MemoryTransport(handle, delay=0.01)
    async with session_over(transport, retry=PATIENT, concurrency=8) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    assert summary.stopped == "outage"
    assert isinstance(summary.error, RerankError)
    assert summary.error.retry_after == 7200.0
    assert (summary.queries, summary.failed) == (20, 0)


async def test_too_many_failures_one_after_another_stop_the_job(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(200))
    transport = failing_on("query")
    options = BulkOptions(max_failures=20)
    async with session_over(transport, chunks=ChunkLimits(split_refused=False)) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl", options=options)
    assert summary.stopped == "failures"
    assert summary.failed >= 20
    assert len(transport.requests) < 80


async def test_failures_between_successes_do_not_stop_the_job(tmp_path: Path) -> None:
    rows = requests(60)
    words = [f'"query {row}"' for row in range(0, 60, 2)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    options = BulkOptions(max_failures=20)
    async with session_over(failing_on(*words), concurrency=1) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl", options=options)
    assert summary.finished
    assert summary.failed == 30


async def test_a_token_budget_stops_before_it_is_exceeded_and_a_larger_one_goes_on(
    tmp_path: Path,
) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", requests(50)), tmp_path / "out.jsonl"
    sent = 0
    for budget in (100, 180, 10_000):
        transport = memory()
        async with session_over(transport) as session:
            options = BulkOptions(max_tokens=budget)
            summary = await rerank_file(session, source, output, options=options)
        sent += len(transport.requests)
        # The server says 5 tokens a row.
        assert summary.tokens == 5 * summary.queries == 5 * sent <= budget
        if budget < 250:
            assert summary.stopped == "max_tokens"
            # What the server says is learned from the first rows: little of the budget is left.
            assert summary.tokens > budget - 5 * 2
    assert summary.finished


async def test_requests_on_the_wire_are_finished_when_the_job_is_asked_to_stop(
    tmp_path: Path,
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(50))
    gate = asyncio.Event()
    inner = memory()

    class Held:
        requests = inner.requests

        async def exchange(self, request: Any, **options: Any) -> Any:
            await gate.wait()
            return await inner.exchange(request, **options)

        async def close(self) -> None:
            await inner.close()

    stop = asyncio.Event()
    waiting: list[int] = []
    async with session_over(Held(), concurrency=4) as session:
        running = asyncio.create_task(
            rerank_file(session, source, tmp_path / "out.jsonl", stop=stop)
        )
        await until(lambda: session.statistics().in_flight == 4)
        stop.set()
        await asyncio.sleep(0)
        waiting.append(session.statistics().in_flight)
        gate.set()
        summary = await running
    assert waiting == [4]
    assert summary.stopped == "interrupted"
    assert summary.queries == len(inner.requests) >= 4


async def test_a_wire_that_does_not_get_empty_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(5))
    stop = asyncio.Event()
    transport = memory(delay=1000)
    options = BulkOptions(drain=0.01)
    async with session_over(transport) as session:
        running = asyncio.create_task(
            rerank_file(session, source, tmp_path / "out.jsonl", stop=stop, options=options)
        )
        await until(lambda: transport.in_flight > 0)
        stop.set()
        summary = await running
    assert summary.stopped == "interrupted"
    assert summary.queries == 0


# ── identical and known ──


async def test_documents_that_are_repeated_within_a_row_are_sent_once(tmp_path: Path) -> None:
    texts = ["document 3", "document 1", "document 3", "document 2", "document 1"]
    source = write_jsonl(
        tmp_path / "in.jsonl", [{"query_id": "q", "query": "a", "documents": texts}]
    )
    transport = memory()
    async with session_over(transport) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    assert sent_documents(transport.requests[0]) == ["document 3", "document 1", "document 2"]
    assert ranking(read_jsonl(tmp_path / "out.jsonl")[0]) == [
        (0, 3.0),
        (2, 3.0),
        (3, 2.0),
        (1, 1.0),
        (4, 1.0),
    ]
    assert summary.identical == 2

    each = memory()
    async with session_over(each) as session:
        options = BulkOptions(identical_once=False)
        await rerank_file(session, source, tmp_path / "each.jsonl", options=options)
    assert sent_documents(each.requests[0]) == texts


async def test_a_cache_makes_the_second_job_cost_nothing(tmp_path: Path) -> None:
    rows = requests(10)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    options = BulkOptions(cache=tmp_path / "scores.db")
    async with session_over(memory()) as session:
        await rerank_file(session, source, tmp_path / "one.jsonl", top_n=2, options=options)
    transport = memory()
    async with session_over(transport) as session:
        summary = await rerank_file(session, source, tmp_path / "two.jsonl", options=options)
    assert not transport.requests
    assert (summary.cached, summary.tokens) == (50, 0)
    assert [ranking(line) for line in read_jsonl(tmp_path / "two.jsonl")] == [
        expected(row) for row in rows
    ]
    assert all(line["model"] == "m" for line in read_jsonl(tmp_path / "two.jsonl"))


async def test_of_a_row_that_is_known_in_part_only_the_rest_is_sent(tmp_path: Path) -> None:
    options = BulkOptions(cache=tmp_path / "scores.db")
    one = {"query_id": "q", "query": "a", "documents": ["document 1", "document 5"]}
    two = {**one, "documents": ["document 5", "document 9", "document 1", "document 3"]}
    transport = memory()
    async with session_over(transport) as session:
        for name, row in (("one", one), ("two", two)):
            source = write_jsonl(tmp_path / f"{name}-in.jsonl", [row])
            await rerank_file(session, source, tmp_path / f"{name}.jsonl", options=options)
    assert sent_documents(transport.requests[1]) == ["document 9", "document 3"]
    assert ranking(read_jsonl(tmp_path / "two.jsonl")[0]) == expected(two)


async def test_scores_of_two_models_are_never_mixed_in_one_ranking(tmp_path: Path) -> None:
    options = BulkOptions(cache=tmp_path / "scores.db")
    one = {"query_id": "q", "query": "a", "documents": ["document 1", "document 5"]}
    two = {**one, "documents": ["document 5", "document 9", "document 1", "document 3"]}
    good = scoring(number_of)

    def renamed(request: HttpRequest) -> HttpResponse:
        body = orjson.loads(good(request).body)
        for result in body["data"]:
            result["relevance_score"] /= 100
        return HttpResponse(200, {}, orjson.dumps({**body, "model": "m-2"}))

    for name, row, server in (("one", one, good), ("two", two, renamed)):
        source = write_jsonl(tmp_path / f"{name}-in.jsonl", [row])
        async with session_over(MemoryTransport(server)) as session:
            await rerank_file(session, source, tmp_path / f"{name}.jsonl", options=options)
    (line,) = read_jsonl(tmp_path / "two.jsonl")
    assert line["model"] == "m-2"
    assert ranking(line) == [(1, 0.09), (0, 0.05), (3, 0.03), (2, 0.01)]


async def test_progress_is_told_and_one_who_watches_cannot_end_the_job(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(20))
    told: list[BulkProgress] = []
    async with session_over(memory()) as session:
        await rerank_file(session, source, tmp_path / "one.jsonl", on_progress=told.append)
        assert told[-1].queries == told[-1].queries_total == 20
        assert told[-1].phase == "writing"

        def broken(progress: BulkProgress) -> None:
            raise RuntimeError("no")

        summary = await rerank_file(session, source, tmp_path / "two.jsonl", on_progress=broken)
    assert summary.finished


async def test_a_full_disk_stops_the_job_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = requests(200)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    import os

    real, written = os.write, 0

    def limited(file: int, data: bytes) -> int:
        nonlocal written
        if written > 60_000:
            raise OSError(28, "No space left on device")
        done = real(file, bytes(data)[:5_000])
        written += done
        return done

    monkeypatch.setattr(os, "write", limited)
    async with session_over(memory()) as session:
        with pytest.raises(JobFullError, match="make room"):
            await rerank_file(session, source, output)
    monkeypatch.undo()
    async with session_over(memory()) as session:
        summary = await rerank_file(session, source, output)
    assert 0 < summary.resumed < 200
    assert [ranking(line) for line in read_jsonl(output)] == [expected(row) for row in rows]


async def test_an_error_of_the_key_is_told_without_it(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(1))
    async with session_over(failing_on("query", status=401)) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    assert isinstance(summary.error, AuthenticationError)
