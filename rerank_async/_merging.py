"""Answers in, one ranking out: the caller's indices, the tie rule, `top_n`, and what is missing.

The order does not depend on the order in which the answers arrive: by score, highest first; equal
scores by chunk, that with the earlier first document first, and within a chunk as its answer has
them.
A line belongs here when it decides how the answers of several requests become one.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import neg
from typing import TypeAlias

from rerank_async._answers import Answer
from rerank_async._chunking import Chunk
from rerank_async._errors import RerankError, ResponseError
from rerank_async._models import Missing, RerankResponse, Results, Usage
from rerank_async._ordering import best_first
from rerank_async._private import excerpt

__all__ = ["Merger", "ranking_of"]

# score, then chunk and place negated, so that the smallest entry is the one to give way; the
# caller's index and the document ride along (chunk and place are unique: they never compare).
_Entry = tuple[float, int, int, int, str | None]


# Indices, scores, and texts where they are kept; best first.
_Columns: TypeAlias = tuple[list[int], list[float], list[str] | None]

# About how many scores are put in order at once, and of how many one is looked at beforehand.
_STEP = 2**12
_SAMPLED = 64


class Merger:
    """Collects the answers to one call's chunks.

    With `top_n` it keeps a heap of `top_n` entries, whatever the number of documents; without, or
    where chunks overlap, it keeps every answer's columns.

    Args:
        top_n: the number of results to keep; None keeps all.
        keep_documents: whether the results carry the documents' text.
        overlap: whether a document may be in several chunks. Then its highest score counts, it is
            missing only where none of its chunks was answered, and equal scores go by index.
    """

    def __init__(
        self, top_n: int | None, *, keep_documents: bool = False, overlap: bool = False
    ) -> None:
        self._top_n = top_n
        self._keep_documents = keep_documents
        self._overlap = overlap
        self._answers: list[tuple[Chunk, Answer]] = []
        self._heap: list[_Entry] = []
        self._failures: list[tuple[Sequence[int], RerankError]] = []
        self._answered = False
        self._model: str | None = None
        self._tokens: int | None = 0
        self._ranked: _Columns | None = None

    def add(self, chunk: Chunk, answer: Answer) -> None:
        """Take the answer to `chunk`.

        Raises:
            ResponseError: it comes from another model than the answers before it, so that their
                scores cannot be compared.
        """
        if answer.model is not None:
            if self._model is None:
                self._model = answer.model
            elif self._model != answer.model:
                error = ResponseError(
                    f"the model {_short(answer.model)!r} answered for {chunk}, and "
                    f"{_short(self._model)!r} for others of the same call: their scores cannot be "
                    "compared"
                )
                raise error.condemning("request")
        self._answered = True
        self._ranked = None
        if self._tokens is not None:
            tokens = answer.total_tokens
            self._tokens = None if tokens is None else self._tokens + tokens
        if self._top_n is None or self._overlap:
            self._answers.append((chunk, answer))
        else:
            self._push(chunk, answer, self._top_n)

    def _push(self, chunk: Chunk, answer: Answer, top_n: int) -> None:
        heap, positions, start = self._heap, chunk.positions, chunk.start
        documents = chunk.documents if self._keep_documents else None
        for place, (index, score) in enumerate(zip(answer.indices, answer.scores, strict=True)):
            entry = (
                score,
                -start,
                -place,
                positions[index],
                None if documents is None else documents[index],
            )
            if len(heap) < top_n:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)
            else:
                # The answer is in order: what follows cannot be better.
                break

    def steps(self) -> Iterator[None]:
        """Put a long ranking in order step by step, so that `finish` has little left to do.

        Each step takes the scores of one range out of every answer. Equal scores are in the same
        range, so that their order is that of `finish` alone.
        """
        parts = [] if self._overlap else self._parts()
        total = sum(len(answer.scores) for _, answer in parts)
        if total <= _STEP:
            return
        # Of each answer other places: many servers give the same scores at the same places.
        looked_at = (
            answer.scores[number % _SAMPLED :: _SAMPLED] for number, (_, answer) in enumerate(parts)
        )
        sample = sorted(chain.from_iterable(looked_at), reverse=True)
        yield
        # One bound for each step's worth of scores; the last range has none.
        bounds: list[float] = sorted(set(sample[:: max(1, _STEP // _SAMPLED)]), reverse=True)
        indices: list[int] = []
        scores: list[float] = []
        documents: list[str] = []
        taken = [0] * len(parts)
        for bound in (*bounds, None):
            # No object for each answer is kept: enough of them would start the garbage collector,
            # which walks over every list there is, the caller's documents too.
            some: _Columns = [], [], [] if self._keep_documents else None
            for place, (chunk, answer) in enumerate(parts):
                begin, end = taken[place], len(answer.scores)
                if bound is not None:
                    end = bisect_right(answer.scores, -bound, begin, key=neg)
                if begin < end:
                    _gather(some, chunk, answer.indices[begin:end], answer.scores[begin:end])
                    taken[place] = end
            found = _in_order(some)
            indices += found[0]
            scores += found[1]
            documents += found[2] or ()
            yield
        self._ranked = indices, scores, documents if self._keep_documents else None

    def fail(self, positions: Sequence[int], error: RerankError) -> None:
        """Note that the documents at these positions, ascending, have no score, and why."""
        self._failures.append((positions, error))

    def finish(self, model: str, *, complete: bool = True) -> RerankResponse:
        """The ranking of what was added.

        Args:
            model: the model that was asked for, named when no answer named one.
            complete: False when documents were left unread, beside those noted by `fail`.
        """
        if self._overlap:
            indices, scores, documents = self._best_of_each()
        elif self._top_n is None:
            indices, scores, documents = self._sorted()
        else:
            indices, scores, documents = self._from_heap()
        missing = [
            (start, stop, error)
            for positions, error in self._failures
            for start, stop in _rows_of(positions)
        ]
        if self._overlap:
            missing = _but(missing, set(indices))
            cut = slice(self._top_n)
            indices, scores = indices[cut], scores[cut]
            documents = None if documents is None else documents[cut]
        return RerankResponse(
            Results(indices, scores, documents),
            self._model or model,
            # Of a call without any answer nothing is known.
            Usage(None if self._failures and not self._answered else self._tokens),
            Missing(missing),
            complete and not missing,
        )

    def _parts(self) -> list[tuple[Chunk, Answer]]:
        """The answers in the order of their chunks."""
        return sorted(self._answers, key=lambda part: part[0].start)

    def _sorted(self) -> _Columns:
        if self._ranked is not None:
            return self._ranked
        columns: _Columns = [], [], [] if self._keep_documents else None
        for chunk, answer in self._parts():
            _gather(columns, chunk, answer.indices, answer.scores)
        return _in_order(columns)

    def _best_of_each(self) -> _Columns:
        """Each document once, with the highest of its scores; equal ones in the caller's order."""
        best: dict[int, tuple[float, str]] = {}
        for chunk, answer in self._answers:
            for place, score in zip(answer.indices, answer.scores, strict=True):
                position = chunk.positions[place]
                if position not in best or score > best[position][0]:
                    best[position] = score, chunk.documents[place]
        columns: _Columns = [], [], [] if self._keep_documents else None
        for position in sorted(best):
            score, document = best[position]
            columns[0].append(position)
            columns[1].append(score)
            if columns[2] is not None:
                columns[2].append(document)
        return _in_order(columns)

    def _from_heap(self) -> _Columns:
        best = sorted(self._heap, reverse=True)
        documents = [entry[4] or "" for entry in best] if self._keep_documents else None
        return [entry[3] for entry in best], [entry[0] for entry in best], documents


def _gather(
    columns: _Columns, chunk: Chunk, indices: Sequence[int], scores: Sequence[float]
) -> None:
    """Add results of a chunk to the columns, with the caller's own indices."""
    columns[0].extend(chunk.positions_of(indices))
    columns[1].extend(scores)
    if columns[2] is not None:
        columns[2].extend([chunk.documents[index] for index in indices])


def _in_order(columns: _Columns) -> _Columns:
    """The same results, best first."""
    indices, scores, documents = columns
    # Each part is in order already, and the sort merges runs. Equal scores keep the order of the
    # chunks.
    places = best_first(scores)
    if documents is not None:
        documents = list(map(documents.__getitem__, places))
    # To sort the scores once more takes as long as to fetch them (`benchmarks/pieces.py`).
    return list(map(indices.__getitem__, places)), sorted(scores, reverse=True), documents


def _rows_of(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending positions as pieces without gaps: the first of each, and the one after its last."""
    if type(positions) is range and positions.step == 1:
        yield positions.start, positions.stop
        return
    start = stop = positions[0]
    for position in positions:
        if position != stop:
            yield start, stop
            start = position
        stop = position + 1
    yield start, stop


def _but(
    missing: list[tuple[int, int, RerankError]], scored: set[int]
) -> list[tuple[int, int, RerankError]]:
    """What no chunk gave a score to; each document once, with its first error."""
    seen = set(scored)
    left: list[tuple[int, int, RerankError]] = []
    for start, stop, error in missing:
        alone = [position for position in range(start, stop) if position not in seen]
        seen.update(alone)
        if alone:
            left += [(first, after, error) for first, after in _rows_of(alone)]
    return left


def _short(model: str) -> str:
    """A model's name as a message may show it."""
    return excerpt(model.encode("utf-8", errors="replace"))


def ranking_of(
    chunk: Chunk, answer: Answer, top_n: int | None, keep_documents: bool, model: str
) -> RerankResponse:
    """The ranking of a call that was one request: its answer, cut to `top_n`.

    The same as a `Merger` with one answer, without the detour.
    """
    indices, scores = answer.indices, answer.scores
    if top_n is not None and top_n < len(indices):
        indices, scores = indices[:top_n], scores[:top_n]
    documents = [chunk.documents[index] for index in indices] if keep_documents else None
    return RerankResponse(
        Results(indices, scores, documents), answer.model or model, Usage(answer.total_tokens)
    )
