"""`_ledger`: what is noted of a row is found in the journal, the index and the counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rerank_async import RerankResponse, ServerError, Usage
from rerank_async._models import Missing, Results
from rerank_async.bulk import JobChangedError
from rerank_async.bulk._entries import Entry, Line, view
from rerank_async.bulk._job import Job
from rerank_async.bulk._ledger import Ledger
from rerank_async.bulk._manifest import Manifest
from rerank_async.bulk._meter import Meter
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sending import sending_of
from tests.support import memory, session_over

ROW = Row("query", ["one", "two"], "q1")
DIGEST = ROW.digest()
ERROR = ServerError("no", status=500)


@pytest.fixture
async def job(tmp_path: Path) -> AsyncIterator[Job]:
    with Job(tmp_path / "job") as job:
        job.take_up(Manifest({"model": "m"}, None))
        yield job


@pytest.fixture
async def meter() -> AsyncIterator[Meter]:
    async with session_over(memory()) as session:
        yield Meter(session, lambda: 0.0)


def answer(model: str = "m", *, tokens: int | None = 5, missing: bool = False) -> RerankResponse:
    absent = Missing([(1, 2, ERROR)] if missing else [])
    return RerankResponse(Results([0], [0.5]), model, Usage(tokens), absent)


async def noted(job: Job) -> tuple[Entry, Line]:
    """The entry of the row, and its line."""
    await job.journal.sync()
    offset = job.index.offset(ROW.key(DIGEST))
    assert offset is not None
    entry = job.entry(offset)
    return entry, view(entry.line)


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("tokens", [5, None])
async def test_a_ranking_is_noted_with_what_it_cost(
    job: Job, meter: Meter, tokens: int | None, missing: bool
) -> None:
    ledger = Ledger(job, meter, "m", is_one_query=False)
    job.index.begin(ROW.key(DIGEST))
    sending = sending_of(ROW, identical_once=True)
    await ledger.note_ranking(sending, DIGEST, answer(tokens=tokens, missing=missing), 7)
    entry, line = await noted(job)
    assert (entry.key, entry.digest, entry.documents) == ("id:q1", DIGEST.hex(), 2)
    assert (entry.tokens, entry.is_estimate, entry.failed) == (7, tokens is None, missing)
    assert [result.index for result in line.results] == [0]
    assert len(line.missing) == missing
    assert (meter.queries, meter.documents, meter.tokens, meter.failed) == (1, 2, 7, missing)


async def test_a_failure_is_noted_unless_an_earlier_run_got_scores(job: Job, meter: Meter) -> None:
    ledger = Ledger(job, meter, "m", is_one_query=False)
    job.index.begin(ROW.key(DIGEST))
    await ledger.note_failure(ROW, DIGEST, ERROR)
    entry, line = await noted(job)
    assert entry.failed
    assert line.error is not None
    assert line.error.type == "ServerError"
    sending = sending_of(ROW, identical_once=True)
    await ledger.note_ranking(sending, DIGEST, answer(missing=True), 7)
    before = await noted(job)
    await ledger.note_failure(ROW, DIGEST, ERROR)
    assert await noted(job) == before
    assert (meter.queries, meter.failed) == (3, 3)


async def test_parts_of_one_ranking_are_scored_by_one_model(job: Job, meter: Meter) -> None:
    sending = sending_of(ROW, identical_once=True)
    several = Ledger(job, meter, "m", is_one_query=False)
    for model in ("A", "B"):
        await several.note_ranking(sending, DIGEST, answer(model), 1)
    one = Ledger(job, meter, "m", is_one_query=True)
    await one.note_ranking(sending, DIGEST, answer("A"), 1)
    with pytest.raises(JobChangedError, match="'B' answered, and 'A' scored other parts"):
        await one.note_ranking(sending, DIGEST, answer("B"), 1)
