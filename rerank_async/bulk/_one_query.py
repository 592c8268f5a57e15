"""One query over a corpus: many rows, which become one ranking.

A line belongs here when it puts the rankings of such rows together.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from rerank_async.bulk._entries import Absent, Entry, LineResult, merged_entry, view
from rerank_async.bulk._errors import JobChangedError
from rerank_async.bulk._rows import Id

__all__ = ["one_ranking"]


def one_ranking(
    parts: Iterable[tuple[Entry, int]], query_id: Id | None, top_n: int | None
) -> Iterator[Entry]:
    """The entry of one query, made of the entries of its rows; nothing when no row has documents.

    Args:
        parts: the entry of each row, and the number of documents in the rows before.
        query_id: the query's id.
        top_n: the number of results to keep; None keeps all.

    Raises:
        JobChangedError: the scores are of more than one model.
    """
    # Equal scores in the order of the documents.
    best: list[tuple[float, int, Id | None]] = []
    missing: list[Absent] = []
    documents = tokens = 0
    is_estimate = False
    model: str | None = None
    for entry, start in parts:
        line = view(entry.line)
        documents += entry.documents
        tokens += entry.tokens
        is_estimate |= entry.is_estimate
        model = model or line.model
        if line.model is not None and line.model != model:
            raise JobChangedError(
                f"{model!r} scored a part of the corpus and {line.model!r} another: scores of two "
                "models cannot be compared; begin anew in another directory (--job)"
            )
        if line.error is not None:
            missing.append(Absent(start, start + entry.documents, line.error))
        missing += (
            Absent(start + span.start, start + span.stop, span.error) for span in line.missing
        )
        for result in line.results:
            item = (result.relevance_score, -(start + result.index), result.doc_id)
            if top_n is None or len(best) < top_n:
                heapq.heappush(best, item)
            elif item[:2] > best[0][:2]:
                heapq.heapreplace(best, item)
    if not documents:
        return
    best.sort(key=lambda item: item[:2], reverse=True)
    results = [LineResult(-place, score, doc_id) for score, place, doc_id in best]
    yield merged_entry(
        query_id, results, model, documents, tokens, is_estimate=is_estimate, missing=missing
    )
