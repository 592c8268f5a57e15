"""A plan counts what would be sent, and sends nothing."""

from __future__ import annotations

from pathlib import Path

from rerank_async import ChunkLimits
from rerank_async.bulk import plan_file, rerank_file
from tests.bulk.support import requests, write_jsonl
from tests.support import memory, session_over


async def test_a_plan_counts_what_is_left_and_sends_nothing(tmp_path: Path) -> None:
    rows = requests(30, documents=25)
    rows[0]["documents"] = [rows[0]["documents"][0]["text"]] * 25
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    transport = memory()
    async with session_over(transport, chunks=ChunkLimits(max_documents=10)) as session:
        plan = await plan_file(session, source, output)
        assert (plan.queries, plan.documents, plan.done) == (30, 750, 0)
        assert (plan.to_send, plan.requests) == (29 * 25 + 1, 29 * 3 + 1)
        assert plan.tokens > 0
        assert not transport.requests
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
        summary = await rerank_file(session, source, output)
        assert summary.requests == plan.requests
        plan = await plan_file(session, source, output)
        assert (plan.done, plan.to_send, plan.requests, plan.tokens) == (30, 0, 0, 0)
