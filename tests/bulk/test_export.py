"""What a job has done is written in the input's order, in any format."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from rerank_async.bulk import BulkOptions, JobChangedError, export_file, rerank_file
from tests.bulk.support import expected, ranking, read_jsonl, requests, write_jsonl
from tests.support import memory, session_over


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


async def test_what_is_done_so_far_can_be_written_in_any_format(tmp_path: Path) -> None:
    rows = requests(20)
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    transport = memory()
    async with session_over(transport) as session:
        await rerank_file(session, source, output, options=BulkOptions(max_tokens=50))
        sent = len(transport.requests)
        job = tmp_path / "out.jsonl.job"
        for name in ("so-far.jsonl", "so-far.run", "so-far.jsonl.gz", "so-far.parquet"):
            written = await export_file(session, source, tmp_path / name, job=job)
            assert written.rows == sent
    assert len(transport.requests) == sent
    assert not output.exists()
    assert len(read_jsonl(tmp_path / "so-far.jsonl")) == sent
    assert (
        gzip.decompress((tmp_path / "so-far.jsonl.gz").read_bytes())
        == (tmp_path / "so-far.jsonl").read_bytes()
    )
    assert len((tmp_path / "so-far.run").read_text().splitlines()) == 5 * sent
