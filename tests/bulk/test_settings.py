"""What a caller says of a job, and what is refused of it."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, fields

from rerank_async import ChunkLimits, InvalidRequestError, RerankSession
from rerank_async.bulk import (
    BulkOptions,
    ScoreCache,
    export_file,
    plan_file,
    rerank_file,
    rerank_run,
)
from rerank_async.bulk._settings import JobSettings
from tests.bulk.support import expected, ranking, read_jsonl, requests, write_jsonl
from tests.support import memory, session_over


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


async def test_a_session_without_a_model_is_refused(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", requests(1))
    async with RerankSession("https://memory.test/v1", http=memory()) as session:
        with pytest.raises(InvalidRequestError, match="model"):
            await rerank_file(session, source, tmp_path / "out.jsonl")


def test_what_the_calls_take_is_what_a_job_is_told() -> None:
    told = {one.name for one in fields(JobSettings)}
    shared = {"session", "stop", "on_progress"}
    for call in (rerank_file, plan_file, export_file):
        assert {*signature(call).parameters} <= told | shared
    assert {*signature(plan_file).parameters} == told | {"session"}
    assert {*signature(export_file).parameters} == told | {"session"}
    assert {*signature(rerank_run).parameters} <= told | shared | {"folder"}


async def test_a_corpus_has_defaults_of_its_own(tmp_path: Path) -> None:
    settings = JobSettings(input=tmp_path / "x.jsonl", output=tmp_path / "out.jsonl", query="q")
    async with session_over(memory(), chunks=ChunkLimits(max_documents=20)) as session:
        source = settings.assignment(session).source
        assert (source.query_id, source.top_n) == ("1", 1000)
        assert source.describe()["documents_per_row"] == 20
        source = evolve(settings, query_id="Q", top_n=3).assignment(session).source
        assert (source.query_id, source.top_n) == ("Q", 3)
        source = evolve(settings, query=None).assignment(session).source
        assert (source.query_id, source.top_n) == (None, None)


async def test_what_is_no_session_is_refused(tmp_path: Path) -> None:
    not_a_session: Any = "https://memory.test"
    with pytest.raises(InvalidRequestError, match="session must be a RerankSession, not str"):
        await rerank_file(not_a_session, tmp_path / "x.jsonl", tmp_path / "out.jsonl")
