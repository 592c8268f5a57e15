"""What a hostile reading of bulk jobs found: each of these went wrong once."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from rerank_async import ChunkLimits, InvalidRequestError
from rerank_async.bulk import (
    BulkOptions,
    BulkProgress,
    JobChangedError,
    JobError,
    ScoreCache,
    rerank_file,
)
from rerank_async.bulk._outputs import json_lines
from rerank_async.bulk._runner import Run
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.bulk.support import expected, ranking, read_jsonl, requests, write_jsonl
from tests.cli.support import PROGRAM, environment
from tests.support import Peer, ScriptedServer, http, memory, number_of, session_over, true_answer


def of_models(*models: str) -> MemoryTransport:
    """A server whose requests are answered by these models in turn, and at last by the last."""
    good = scoring(number_of)
    left = list(models)

    def handle(request: HttpRequest) -> HttpResponse:
        response = good(request)
        body = orjson.loads(response.body)
        body["model"] = left.pop(0) if len(left) > 1 else left[0]
        return HttpResponse(response.status, response.headers, orjson.dumps(body))

    return MemoryTransport(handle)


async def test_an_output_without_a_directory_is_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    source, transport = write_jsonl(tmp_path / "in.jsonl", requests(3)), memory()
    async with session_over(transport) as session:
        with pytest.raises(InvalidRequestError, match="is not there: make it"):
            await rerank_file(session, source, tmp_path / "no" / "o.jsonl", job=tmp_path / "job")
    assert not transport.requests
    assert not (tmp_path / "job").exists()


# ── one ranking, one model ──


async def test_a_corpus_is_not_ranked_by_two_models(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [f"document {place}" for place in range(40)])
    output = tmp_path / "out.jsonl"

    def call(session: Any) -> Any:
        return rerank_file(session, corpus, output, query="q")

    chunks = ChunkLimits(max_documents=10)
    async with session_over(of_models("A", "A", "B"), chunks=chunks, concurrency=1) as session:
        with pytest.raises(JobChangedError, match="'B' answered, and 'A' scored other parts"):
            await call(session)
    # Nor by a run that goes on.
    async with session_over(of_models("B"), chunks=chunks) as session:
        with pytest.raises(JobChangedError, match="'B' answered, and 'A' scored other parts"):
            await call(session)
    assert not output.exists()
    transport = of_models("A")
    async with session_over(transport, chunks=chunks) as session:
        summary = await call(session)
    assert (summary.finished, summary.resumed) == (True, 2)
    assert [index for index, _ in ranking(read_jsonl(output)[0])] == [*range(39, -1, -1)]


# ── what is paid for is kept ──


async def test_scores_of_a_part_are_kept_when_the_row_is_done_again_in_vain(
    tmp_path: Path,
) -> None:
    rows = requests(2, documents=4)
    bad = rows[0]["documents"][1]["text"] = "document 5555"
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    good = scoring(number_of)
    is_broken = False

    def handle(request: HttpRequest) -> HttpResponse:
        if is_broken or bad.encode() in request.body:
            return HttpResponse(422, {}, b'{"error": "no"}')
        return good(request)

    async with session_over(MemoryTransport(handle), on_failure="partial") as session:
        await rerank_file(session, source, output)
        before = output.read_bytes()
        assert len(read_jsonl(output)[0]["results"]) == 3
        is_broken = True
        again = BulkOptions(retry_failed=True)
        for options in (again, None, again):
            summary = await rerank_file(session, source, output, options=options)
            assert (summary.queries, summary.failed) == (2, 1)
            assert output.read_bytes() == before
        bad = "nothing is bad any more"
        is_broken = False
        await rerank_file(session, source, output, options=again)
    assert [ranking(line) for line in read_jsonl(output)] == [expected(row) for row in rows]


async def test_an_answer_is_kept_whose_scores_the_cache_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(1))

    def full(*_: object) -> None:
        raise JobError("no room")

    transport = memory()
    async with session_over(transport) as session:
        with monkeypatch.context() as patch:
            patch.setattr(ScoreCache, "store", full)
            with pytest.raises(JobError, match="no room"):
                await rerank_file(
                    session,
                    source,
                    tmp_path / "out.jsonl",
                    options=BulkOptions(cache=tmp_path / "cache"),
                )
        summary = await rerank_file(session, source, tmp_path / "out.jsonl")
    assert summary.resumed == 1
    assert len(transport.requests) == 1


# ── ends ──


async def test_a_stop_while_the_output_is_written_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(5))
    stop = asyncio.Event()
    halted: list[object] = []
    halt = Run._halt

    def noted(self: Run, *arguments: Any) -> bool:
        try:
            done = halt(self, *arguments)
        except Exception as error:
            halted.append(error)
            raise
        halted.append(done)
        return done

    monkeypatch.setattr(Run, "_halt", noted)

    def watch(progress: BulkProgress) -> None:
        if progress.phase == "writing":
            stop.set()

    async with session_over(memory()) as session:
        summary = await rerank_file(
            session, source, tmp_path / "out.jsonl", stop=stop, on_progress=watch
        )
    assert summary.finished
    assert halted == [True]


async def test_a_disk_that_is_full_at_the_end_leaves_nothing_half_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(50))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    class Full:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Any:
            return type("File", (), {"write": full})

        def __exit__(self, *_: object) -> None: ...

    async with session_over(memory()) as session:
        with monkeypatch.context() as patch:
            patch.setattr(json_lines, "writing", Full)
            # A generator that is closed with the database already gone would warn here.
            with pytest.raises(JobError, match="No space left"):
                await rerank_file(session, source, tmp_path / "out.jsonl")
        assert (await rerank_file(session, source, tmp_path / "out.jsonl")).finished


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_job_ends_as_it_does_although_nobody_reads_what_it_says(
    tmp_path: Path, stream: str
) -> None:
    write_jsonl(tmp_path / "in.jsonl", requests(5))

    async def answering(peer: Peer) -> None:
        while True:
            await peer.send(http(true_answer(await peer.request())))

    reading, writing = os.pipe()
    os.close(reading)
    try:
        async with ScriptedServer(answering) as server:
            process = await asyncio.create_subprocess_exec(
                *PROGRAM,
                *("bulk", "in.jsonl", "out.jsonl", "--url", server.url, "--model", "m", "--json"),
                cwd=tmp_path,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=writing if stream == "stdout" else subprocess.DEVNULL,
                stderr=writing if stream == "stderr" else subprocess.DEVNULL,
            )
            assert await process.wait() == 0
    finally:
        os.close(writing)
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 5
