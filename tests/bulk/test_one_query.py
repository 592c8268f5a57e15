"""The rows of one query over a corpus become one ranking."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rerank_async import ChunkLimits
from rerank_async.bulk import rerank_file
from rerank_async.bulk._entries import entry_of, payload_of, ranking_line, view
from rerank_async.bulk._one_query import one_ranking
from tests.bulk.support import failing_on, ranking, read_jsonl, write_jsonl
from tests.support import memory, number_of, session_over


async def test_one_query_over_a_corpus_makes_one_ranking_of_the_best(tmp_path: Path) -> None:
    corpus = [{"_id": f"d{n}", "text": f"document {(n * 7919) % 10_007}"} for n in range(2_500)]
    source = write_jsonl(tmp_path / "corpus.jsonl.gz", corpus)
    transport = memory()
    async with session_over(transport, chunks=ChunkLimits(max_documents=200)) as session:
        summary = await rerank_file(
            session, source, tmp_path / "out.jsonl", query="a", query_id="Q", top_n=10
        )
    assert len(transport.requests) == 13
    (line,) = read_jsonl(tmp_path / "out.jsonl")
    assert line["query_id"] == "Q"
    best = sorted(range(2_500), key=lambda n: -number_of("", str(corpus[n]["text"])))[:10]
    assert [result["index"] for result in line["results"]] == best
    assert [result["doc_id"] for result in line["results"]] == [f"d{n}" for n in best]
    assert line["usage"] == {"total_tokens": 2_500}
    assert summary.documents == 2_500


async def test_chunks_of_a_corpus_that_failed_are_named_in_its_ranking(tmp_path: Path) -> None:
    corpus = [f"document {n}" for n in range(95)]
    source = write_jsonl(tmp_path / "corpus.jsonl", corpus)
    transport = failing_on('"document 42"')
    limits = ChunkLimits(max_documents=10, split_refused=False)
    async with session_over(transport, chunks=limits) as session:
        summary = await rerank_file(session, source, tmp_path / "out.jsonl", query="a", top_n=95)
    (line,) = read_jsonl(tmp_path / "out.jsonl")
    assert [(span["start"], span["stop"]) for span in line["missing"]] == [(40, 50)]
    assert [index for index, _ in ranking(line)] == [
        n for n in reversed(range(95)) if not 40 <= n < 50
    ]
    assert summary.failed == 1


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=6), max_size=5),
    st.none() | st.integers(1, 12),
)
def test_the_rows_of_a_corpus_are_merged_as_if_they_were_one(
    rows: list[list[float]], top_n: int | None
) -> None:
    parts, start = [], 0
    for scores in rows:
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        line = ranking_line(None, best, [scores[index] for index in best], None, "m", 3)
        entry = entry_of(payload_of("content:", b"", len(scores), 3, line))
        parts.append((entry, start))
        start += len(scores)
    merged = list(one_ranking(parts, "q", top_n))
    if not start:
        assert merged == []
        return
    [entry] = merged
    flat = [score for scores in rows for score in scores]
    expected = sorted(range(start), key=lambda place: -flat[place])[:top_n]
    told = view(entry.line)
    # Equal scores in the order of the documents.
    assert [result.index for result in told.results] == expected
    assert [result.relevance_score for result in told.results] == [flat[i] for i in expected]
    assert (told.query_id, entry.documents, entry.tokens) == ("q", start, 3 * len(rows))
