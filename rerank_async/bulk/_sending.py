"""What of a row is sent, and what is made of the answer: identical once, known never. Pure.

A document's score depends on the query and that document alone where a scorer is pointwise,
and only there may one score stand for several documents.
A line belongs here when it decides between a row and a request.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from rerank_async._errors import RerankError
from rerank_async._models import RerankResponse
from rerank_async._ordering import best_first
from rerank_async.bulk._rows import Row

__all__ = ["Ranking", "Sending", "sending_of"]


@frozen
class Ranking:
    """The ranking of a row, best first, and what it lacks.

    Attributes:
        indices: the positions in the row's documents.
        scores: the score at each of these positions.
        model: the model that answered.
        tokens: the tokens that it cost, by the server's word; None when it did not say.
        missing: the spans `(start, stop, error)` of the row's documents without a score.
    """

    indices: Sequence[int]
    scores: Sequence[float]
    model: str | None
    tokens: int | None
    missing: Sequence[tuple[int, int, RerankError]] = ()


@frozen
class Sending:
    """What of a row is to be sent.

    Attributes:
        row: the row.
        documents: the documents to send; empty when every score is known.
        top_n: the number of results to ask for; None asks for all.
        places: the positions in the row of each document that is sent; None when the row is sent as
            it is.
        known: the score of each document of the row, None where it is not known; None when nothing
            was looked up.
        known_model: the model that the known scores are of.
    """

    row: Row
    documents: Sequence[str] = field(repr=False)
    top_n: int | None
    places: Sequence[Sequence[int]] | None = None
    known: Sequence[float | None] | None = None
    known_model: str | None = None

    def mixes(self, model: str) -> bool:
        """Whether an answer of that model does not go with the scores that are known."""
        return (
            self.known is not None
            and model != self.known_model
            and any(score is not None for score in self.known)
        )

    def ranking(self, response: RerankResponse | None) -> Ranking:
        """The row's ranking.

        Equal scores stand in the answer's order; documents that share one score, and where some
        scores were known all documents of equal score, in the row's.

        Args:
            response: the answer to what was sent; None when nothing was.
        """
        if self.known is not None:
            return self._merged(response, self.known)
        if response is None:
            return Ranking((), (), None, 0)
        results = response.results
        indices, scores = results.indices, results.scores
        tokens = response.usage.total_tokens
        if self.places is None:
            return Ranking(indices, scores, response.model, tokens, self._missing(response))
        places = self.places
        wide = [place for index in indices for place in places[index]]
        high = [score for index, score in zip(indices, scores, strict=True) for _ in places[index]]
        top_n = self.row.top_n
        return Ranking(wide[:top_n], high[:top_n], response.model, tokens, self._missing(response))

    def _merged(self, response: RerankResponse | None, known: Sequence[float | None]) -> Ranking:
        scores = list(known)
        model, tokens = self.known_model, 0
        missing: Sequence[tuple[int, int, RerankError]] = ()
        said: int | None = tokens
        if response is not None:
            results = response.results
            model, said = response.model, response.usage.total_tokens
            missing = self._missing(response)
            for index, score in zip(results.indices, results.scores, strict=True):
                for place in (index,) if self.places is None else self.places[index]:
                    scores[place] = score
        scored = [place for place, score in enumerate(scores) if score is not None]
        values = [0.0 if score is None else score for score in scores]
        order = best_first(values, scored)[: self.row.top_n]
        return Ranking(order, [values[place] for place in order], model, said, missing)

    def _missing(self, response: RerankResponse) -> Sequence[tuple[int, int, RerankError]]:
        if not response.missing:
            return ()
        absent: dict[int, RerankError] = {}
        for index, error in response.missing.items():
            for place in (index,) if self.places is None else self.places[index]:
                absent[place] = error
        return _spans(absent)


def _spans(absent: dict[int, RerankError]) -> list[tuple[int, int, RerankError]]:
    """Neighbours with the same error as one span."""
    spans: list[tuple[int, int, RerankError]] = []
    for place in sorted(absent):
        error = absent[place]
        if spans and spans[-1][1] == place and spans[-1][2] is error:
            spans[-1] = (spans[-1][0], place + 1, error)
        else:
            spans.append((place, place + 1, error))
    return spans


def sending_of(
    row: Row,
    *,
    identical_once: bool,
    known: Sequence[float | None] | None = None,
    known_model: str | None = None,
) -> Sending:
    """What of a row is to be sent.

    Args:
        row: the row.
        identical_once: whether documents with the same text are sent once.
        known: the score of each document that a cache has, None for the others; None when there is
            no cache.
        known_model: the model that those scores are of.
    """
    documents = row.documents
    if known is None and (not identical_once or len(set(documents)) == len(documents)):
        return Sending(row, documents, row.top_n)
    places: dict[object, list[int]] = {}
    for place, document in enumerate(documents):
        if known is None or known[place] is None:
            places.setdefault(document if identical_once else place, []).append(place)
    sent = [documents[where[0]] for where in places.values()]
    # To be kept, every score must be known, not the best alone.
    top_n = row.top_n if known is None else None
    return Sending(row, sent, top_n, list(places.values()), known, known_model)
