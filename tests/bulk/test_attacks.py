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
    export_file,
    plan_file,
    rerank_file,
    rerank_run,
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


# ── exporting what was read as it came ──


async def test_a_job_that_did_not_check_its_input_is_exported_whole(tmp_path: Path) -> None:
    rows = requests(20)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    options = BulkOptions(check_first=False)
    async with session_over(memory()) as session:
        await rerank_file(session, source, output, options=options)
        whole = output.read_bytes()
        written = await export_file(session, source, output, options=options)
        assert (written.rows, written.failed) == (20, 0)
        assert output.read_bytes() == whole
        # Nothing is written for an input that is another.
        write_jsonl(source, rows[:10])
        with pytest.raises(JobChangedError, match="has a result for query_id"):
            await export_file(session, source, output, options=options)
        rows[3]["query"] = "another"
        write_jsonl(source, rows)
        with pytest.raises(JobChangedError, match="'q3' has other content"):
            await export_file(session, source, output, options=options)
    assert output.read_bytes() == whole


async def test_a_job_over_a_pipe_is_exported_when_its_input_comes_again(tmp_path: Path) -> None:
    rows = requests(10)
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    pipe, output = tmp_path / "pipe.jsonl", tmp_path / "out.jsonl"
    os.mkfifo(pipe)

    async def fed(work: Any) -> None:
        await asyncio.gather(work, asyncio.to_thread(pipe.write_bytes, data))

    async with session_over(memory()) as session:
        await fed(rerank_file(session, pipe, output))
        whole = output.read_bytes()
        await fed(export_file(session, pipe, output))
    assert output.read_bytes() == whole
    assert [ranking(line) for line in read_jsonl(output)] == [expected(row) for row in rows]


# ── files that are one and the same ──


async def test_an_output_does_not_take_the_place_of_what_the_job_needs(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(3))
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    transport = memory()
    options = BulkOptions(overwrite=True)
    async with session_over(transport) as session:
        for output in (source, tmp_path / "." / "in.jsonl", tmp_path / "link.jsonl"):
            with pytest.raises(InvalidRequestError, match="is the input"):
                await rerank_file(session, source, output, job=tmp_path / "job", options=options)
            with pytest.raises(InvalidRequestError, match="is the input"):
                await export_file(session, source, output, job=tmp_path / "job")
        out = tmp_path / "out.jsonl"
        with pytest.raises(InvalidRequestError, match="is the job's directory"):
            await rerank_file(session, source, out, job=out)
        with pytest.raises(InvalidRequestError, match="is the cache"):
            await rerank_file(session, source, out, options=BulkOptions(cache=out))
        with pytest.raises(InvalidRequestError, match="is the run"):
            await rerank_run(session, tmp_path, tmp_path / "x.run", tmp_path / "x.run")
        with pytest.raises(InvalidRequestError, match="a part of the input"):
            await rerank_run(session, tmp_path, tmp_path / "x.run", tmp_path / "queries.jsonl")
        with pytest.raises(InvalidRequestError, match="a part of the input"):
            await rerank_file(session, tmp_path, tmp_path / "out.parquet")
    assert source.read_bytes() == before
    assert not transport.requests


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


# ── names that are URIs ──


@pytest.mark.parametrize("uri", ["s3://bucket/x.jsonl", Path("gs://bucket/x.jsonl")])
async def test_a_uri_is_refused_where_a_file_of_this_machine_is_wanted(
    uri: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_jsonl(tmp_path / "in.jsonl", requests(3))
    transport = memory()
    async with session_over(transport) as session:
        for name, call in (
            ("input", lambda: rerank_file(session, uri, "out.jsonl")),
            ("output", lambda: rerank_file(session, source, uri)),
            ("job", lambda: rerank_file(session, source, "out.jsonl", job=uri)),
            ("run", lambda: rerank_run(session, tmp_path, uri, "out.jsonl")),
            ("output", lambda: plan_file(session, source, uri)),
            ("output", lambda: export_file(session, source, uri)),
        ):
            with pytest.raises(InvalidRequestError, match=f"^{name}: .*{uri}"):
                await call()
    with pytest.raises(InvalidRequestError, match=f"^cache: .*{uri}"):
        BulkOptions(cache=uri)
    with pytest.raises(InvalidRequestError, match=f"^path: .*{uri}"):
        ScoreCache(uri, endpoint="e", dialect="v1", model="m")
    assert not transport.requests
    assert list(tmp_path.iterdir()) == [source]


async def test_a_file_uri_of_this_machine_is_the_file(tmp_path: Path) -> None:
    rows = requests(3)
    source = write_jsonl(tmp_path / "the input.jsonl", rows)
    output = tmp_path / "out.jsonl"
    async with session_over(memory()) as session:
        summary = await rerank_file(session, source.as_uri(), output.as_uri())
    assert summary.output == output
    assert [ranking(line) for line in read_jsonl(output)] == [expected(row) for row in rows]
