"""The words of the public API as frozen values: a request, its outcome, a ranking and its parts.

A line belongs here when it says what a value *is*; how rankings come about is in `_merging`,
how they look on a wire in `dialects`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeAlias, overload

from attrs import field, frozen

from rerank_async._errors import InvalidRequestError, RerankError
from rerank_async._private import shown

__all__ = [
    "Documents",
    "Failed",
    "Missing",
    "RerankRequest",
    "RerankResponse",
    "RerankResult",
    "Reranked",
    "Results",
    "Usage",
]

Documents: TypeAlias = Iterable[str] | AsyncIterable[str]


def as_documents(documents: Documents) -> Documents:
    """Refuse what looks like documents and is not; pass everything else through.

    Raises:
        InvalidRequestError: for one string (an iterable of strings, each one character), for
            bytes, for a mapping or set (whose items have no index), or for what cannot be iterated.
    """
    if isinstance(documents, (list, tuple)):
        return documents
    if isinstance(documents, (str, bytes, bytearray)):
        raise InvalidRequestError(
            f"documents must be a list of strings, not one {type(documents).__name__}: "
            "put it in a list"
        )
    if isinstance(documents, (Mapping, set, frozenset)):
        raise InvalidRequestError(
            f"documents must be in an order that gives each an index, which a "
            f"{type(documents).__name__} is not: pass a list"
        )
    if not isinstance(documents, (Iterable, AsyncIterable)):
        raise InvalidRequestError(
            f"documents must be an iterable or an async iterable of strings, "
            f"not {type(documents).__name__}"
        )
    return documents


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it: it holds no lone surrogate."""
    try:
        # Being ASCII is a stored flag, and most text is.
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_text(name: str, value: str) -> str:
    """Refuse a value that is not text, is empty or could not be written.

    Raises:
        InvalidRequestError: naming the argument `name`.
    """
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidRequestError(f"{name} must not be empty")
    if not is_unicode(value):
        raise InvalidRequestError(
            f"{name} is not valid Unicode: it holds a lone surrogate; decode it with "
            "errors='replace'"
        )
    return value


def _as_query(query: str) -> str:
    return as_text("query", query)


def as_model(model: str | None) -> str | None:
    """Refuse a model that is neither a text that can be sent nor None.

    Raises:
        InvalidRequestError: naming `model`.
    """
    return None if model is None else as_text("model", model)


def as_top_n(top_n: int | None) -> int | None:
    """Refuse a `top_n` that is not a positive whole number or None.

    Raises:
        InvalidRequestError: naming `top_n`.
    """
    if top_n is None:
        return None
    if isinstance(top_n, bool) or not isinstance(top_n, int):
        raise InvalidRequestError(f"top_n must be a whole number or None, not {shown(top_n)}")
    if top_n < 1:
        raise InvalidRequestError(f"top_n must be at least 1, not {top_n}: leave it out for all")
    return top_n


def _how_many(documents: Documents) -> str:
    """Documents in a representation: in logs, their texts are long, and other people's."""
    if isinstance(documents, Sized):
        return f"<{len(documents)} documents>"
    return f"<documents of a {type(documents).__name__}>"


@frozen
class RerankRequest:
    """One query and the documents to rank for it, as `rerank_many` takes them.

    Attributes:
        query: the query to compare documents against; not empty.
        documents: a list, any iterable, or an async iterable of strings; a one-shot iterable
            makes a one-shot request.
        top_n: the number of results to return; None returns all.
        model: the model id; None means the session's.
        query_id: an id of yours; the library only hands it back.

    Raises:
        InvalidRequestError: an argument that could not be sent; the message names it.
    """

    query: str = field(converter=_as_query)
    documents: Documents = field(converter=as_documents, repr=_how_many)
    top_n: int | None = field(default=None, kw_only=True, converter=as_top_n)
    model: str | None = field(default=None, kw_only=True, converter=as_model)
    query_id: str | None = field(default=None, kw_only=True)


@frozen
class RerankResult:
    """One document's place in a ranking.

    Attributes:
        index: the document's position in the documents that *you* passed.
        relevance_score: the server's score, a finite number, comparable only within one query
            and model.
        document: the text itself when `return_documents=True`, otherwise None.
    """

    index: int
    relevance_score: float
    document: str | None = None


@frozen
class Usage:
    """What the call cost.

    Attributes:
        total_tokens: the sum over all requests of the call; None when any server answer left it
            out, for a part of a sum is not the sum.
    """

    total_tokens: int | None


class Results(Sequence[RerankResult]):
    """A ranking, best first: an immutable sequence that makes its items when asked.

    Behind it are two columns, so that a ranking of a thousand documents of which a caller looks at
    ten costs ten objects.
    """

    __slots__ = ("_documents", "_indices", "_scores")

    def __init__(
        self,
        indices: Sequence[int],
        scores: Sequence[float],
        documents: Sequence[str] | None = None,
    ) -> None:
        self._indices = indices
        self._scores = scores
        self._documents = documents

    def _at(self, place: int) -> RerankResult:
        document = None if self._documents is None else self._documents[place]
        return RerankResult(self._indices[place], self._scores[place], document)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> RerankResult: ...

    @overload
    def __getitem__(self, place: slice) -> Results: ...

    def __getitem__(self, place: int | slice) -> RerankResult | Results:
        if isinstance(place, slice):
            documents = None if self._documents is None else self._documents[place]
            return Results(self._indices[place], self._scores[place], documents)
        return self._at(place)

    def __iter__(self) -> Iterator[RerankResult]:
        return map(self._at, range(len(self._indices)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Results):
            return NotImplemented
        return list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        more = "" if len(self) <= 3 else f", … {len(self) - 3} more"
        return f"Results([{shown}{more}])"

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices alone, best first."""
        return tuple(self._indices)

    @property
    def scores(self) -> tuple[float, ...]:
        """The relevance scores alone, best first."""
        return tuple(self._scores)


class Missing(Mapping[int, RerankError]):
    """Which indices could not be scored, and why: index → error, in ascending order.

    Kept as spans, one for each chunk that failed, so that a million unscored documents cost no
    more than their chunks.
    """

    __slots__ = ("_size", "_spans", "_starts")

    def __init__(self, spans: Iterable[tuple[int, int, RerankError]] = ()) -> None:
        """Take spans `(start, stop, error)` that do not overlap, in any order."""
        self._spans = tuple(sorted(spans, key=lambda span: span[0]))
        self._starts = [span[0] for span in self._spans]
        self._size = sum(stop - start for start, stop, _ in self._spans)

    def __getitem__(self, index: int) -> RerankError:
        place = bisect_right(self._starts, index) - 1 if isinstance(index, int) else -1
        if place >= 0:
            start, stop, error = self._spans[place]
            if start <= index < stop:
                return error
        raise KeyError(index)

    def __iter__(self) -> Iterator[int]:
        for start, stop, _ in self._spans:
            yield from range(start, stop)

    def __len__(self) -> int:
        return self._size

    def __hash__(self) -> int:
        return hash(self._spans)

    def __repr__(self) -> str:
        shown = "; ".join(
            f"{start} to {stop - 1}: {type(error).__name__}" for start, stop, error in self._spans
        )
        return f"Missing({shown})"


_NOTHING_MISSING = Missing()


@frozen
class RerankResponse:
    """The ranking of one call.

    Attributes:
        results: the results, best first; equal scores stand in the order of
            `docs/explanation/scores.md`.
        model: the model that answered, by the server's word.
        usage: the sum of what the call's requests used.
        missing: the indices that could not be scored, each with its error; empty unless the
            session was made with `on_failure="partial"`.
        complete: True when every document of the call was scored. Under a deadline that cut a
            stream short it is False even where `missing` is empty: what was never read has no
            index.
    """

    results: Results
    model: str
    usage: Usage
    missing: Missing = _NOTHING_MISSING
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The response as the body of the v1 exchange, ready for `json.dumps`."""
        return {
            "object": "list",
            "data": [
                {
                    "object": "rerank.result",
                    "index": result.index,
                    "relevance_score": result.relevance_score,
                }
                for result in self.results
            ],
            "model": self.model,
            "usage": {"total_tokens": self.usage.total_tokens},
        }


@frozen
class Reranked:
    """An outcome of `rerank_many`: this request has a ranking."""

    request: RerankRequest
    response: RerankResponse


@frozen
class Failed:
    """An outcome of `rerank_many`: this request has none, and here is why.

    `error` is a `RerankError`, or whatever the request's own document iterable raised.
    """

    request: RerankRequest
    error: Exception
