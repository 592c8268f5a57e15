"""Columns into the queries that they ask for, and what became of these into columns. Pure.

A batch is nested, a row for each query with its documents in a list, or flat, a row for each
document.
A line belongs here when it says what columns a batch may have, or what comes out of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen

from rerank_async._errors import InvalidRequestError
from rerank_async._models import RerankResponse, is_unicode

__all__ = [
    "Batch",
    "BatchOutcome",
    "BatchQuery",
    "Columns",
    "Flat",
    "Nested",
    "batch_of",
    "is_nested",
    "problem_of",
]

Columns: TypeAlias = dict[str, list[Any]]
BatchOutcome: TypeAlias = RerankResponse | Exception


@frozen
class BatchQuery:
    """One call that a batch asks for.

    Attributes:
        query: text, if it is one.
        documents: list of texts, if they are.
        top_n: number of results; None means all.
        problem: reason for which there is no call to make; None where there is one.
    """

    query: Any = field(repr=False)
    documents: Any = field(repr=False)
    top_n: Any = None
    problem: Exception | None = None


@frozen
class Nested:
    """A batch whose rows are one query each, its documents in a list.

    Attributes:
        columns: lists as they came, by their names.
        queries: calls to make, one for each row.
        doc_ids: ids of each row's documents; None where a row has none.
    """

    columns: Columns = field(repr=False)
    queries: list[BatchQuery]
    doc_ids: list[list[Any] | None] = field(repr=False)

    def outcome_columns(self, outcomes: Sequence[BatchOutcome]) -> Columns:
        """One value for each row and column; see `BatchReranker`."""
        out: Columns = {
            name: []
            for name in (
                "indices",
                "doc_ids",
                "relevance_scores",
                "model",
                "total_tokens",
                "error_type",
                "error_message",
            )
        }
        for outcome, ids in zip(outcomes, self.doc_ids, strict=True):
            values: tuple[Any, ...]
            if isinstance(outcome, Exception):
                values = (None, None, None, None, None, *problem_of(outcome))
            else:
                indices = list(outcome.results.indices)
                values = (
                    indices,
                    None if ids is None else [ids[index] for index in indices],
                    list(outcome.results.scores),
                    outcome.model,
                    outcome.usage.total_tokens,
                    None,
                    None,
                )
            for column, value in zip(out.values(), values, strict=True):
                column.append(value)
        return out

    def result(self, outcomes: Sequence[BatchOutcome]) -> Columns:
        """The query_id, where there was one, and what became of each row."""
        kept = {name: self.columns[name] for name in ("query_id",) if name in self.columns}
        return kept | self.outcome_columns(outcomes)


@frozen
class Flat:
    """A batch whose rows are one document each; rows with the same query_id are one call.

    Attributes:
        columns: lists as they came, by their names.
        queries: calls to make.
        places: places of each call's documents in the columns.
        problems: reasons for which rows are in no call, by the places of the rows.
    """

    columns: Columns = field(repr=False)
    queries: list[BatchQuery]
    places: list[list[int]]
    problems: dict[int, Exception]

    def outcome_columns(self, outcomes: Sequence[BatchOutcome]) -> Columns:
        """One value for each row and column; see `BatchReranker`."""
        count = len(self.columns["query"])
        scores: list[float | None] = [None] * count
        ranks: list[int | None] = [None] * count
        types: list[str | None] = [None] * count
        messages: list[str | None] = [None] * count
        for outcome, places in zip(outcomes, self.places, strict=True):
            if isinstance(outcome, Exception):
                kind, message = problem_of(outcome)
                for place in places:
                    types[place], messages[place] = kind, message
                continue
            found = zip(outcome.results.indices, outcome.results.scores, strict=True)
            for rank, (index, score) in enumerate(found, 1):
                scores[places[index]], ranks[places[index]] = score, rank
        for place, error in self.problems.items():
            types[place], messages[place] = problem_of(error)
        return {
            "relevance_score": scores,
            "rank": ranks,
            "error_type": types,
            "error_message": messages,
        }

    def result(self, outcomes: Sequence[BatchOutcome]) -> Columns:
        """The rows as they came, and what became of each."""
        return self.columns | self.outcome_columns(outcomes)


Batch: TypeAlias = Nested | Flat


def problem_of(error: Exception) -> tuple[str, str]:
    """An error as its two columns; what a server sends may not be Unicode, and a column must be."""
    return type(error).__name__, str(error).encode("utf-8", "replace").decode()


def is_nested(names: Iterable[str]) -> bool:
    """Whether columns of these names have the documents in lists.

    Raises:
        InvalidRequestError: they are neither that nor flat; the message says what is missing.
    """
    known = set(names)
    wanted = {"query"} if "documents" in known else {"query_id", "query", "text"}
    missing = wanted - known
    if missing:
        raise InvalidRequestError(
            f"the batch has no column {' and no '.join(sorted(missing))}: it must have query and "
            "documents, or query_id, query and text"
        )
    return "documents" in known


def batch_of(batch: Mapping[str, Any], top_n: int | None) -> Batch:
    """The calls that a batch asks for.

    Args:
        batch: columns of any kind, by their names.
        top_n: number of results for rows that do not say one; None means all.

    Raises:
        InvalidRequestError: the batch as a whole cannot be used.
    """
    if not isinstance(batch, Mapping):
        raise InvalidRequestError(
            f"a batch must be a dict of columns, not {type(batch).__name__}: a table or a data "
            "frame must be turned into one"
        )
    nested = is_nested(batch)
    columns = {name: _values(f"column {name}", column) for name, column in batch.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InvalidRequestError(f"the batch's columns must be of one length, not: {shown}")
    return _nested(columns, top_n) if nested else _flat(columns, top_n)


def _values(name: str, column: Any) -> list[Any]:
    """A column as a list of plain Python values; nested ones stay as they are.

    Raises:
        InvalidRequestError: it is not one; the message begins with `name`.
    """
    if isinstance(column, (list, tuple)):
        return list(column)
    # pyarrow's columns have the one, those of numpy and pandas the other.
    for method in ("to_pylist", "tolist"):
        make = getattr(column, method, None)
        if make is not None:
            values = make()
            if isinstance(values, list):
                return values
    raise InvalidRequestError(f"{name} must be a list or an array, not {type(column).__name__}")


def is_absent(value: Any) -> bool:
    """Whether it is how an engine writes "no value": None, NaN, or pandas' NA."""
    if isinstance(value, float):
        return value != value
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _nested(columns: Columns, top_n: int | None) -> Nested:
    count = len(columns["query"])
    ids_column = columns.get("doc_ids", [None] * count)
    top_column = columns.get("top_n", [None] * count)
    queries: list[BatchQuery] = []
    doc_ids: list[list[Any] | None] = []
    for query, given, ids, top in zip(
        columns["query"], columns["documents"], ids_column, top_column, strict=True
    ):
        try:
            documents, found = _texts_and_doc_ids(given, ids)
            queries.append(
                BatchQuery(
                    _plain_text(query), documents, top_n if is_absent(top) else _whole_number(top)
                )
            )
        except Exception as problem:
            # Mostly InvalidRequestError; but a column of objects may hold anything.
            queries.append(BatchQuery(None, None, problem=problem.with_traceback(None)))
            found = None
        doc_ids.append(found)
    return Nested(columns, queries, doc_ids)


def _texts_and_doc_ids(given: Any, ids: Any) -> tuple[list[Any], list[Any] | None]:
    """The texts of a row, and their ids where there are any."""
    if is_absent(given) or isinstance(given, (str, bytes, Mapping)):
        raise InvalidRequestError(f"documents must be a list, not {type(given).__name__}")
    items = _values("documents", given)
    found = None if is_absent(ids) else _values("doc_ids", ids)
    if found is not None and len(found) != len(items):
        raise InvalidRequestError(
            f"doc_ids must be as many as documents, and {len(found)} are not {len(items)}"
        )
    if not any(isinstance(item, Mapping) for item in items):
        return [_plain_text(item) for item in items], found
    texts, own = [], []
    for place, item in enumerate(items):
        if isinstance(item, Mapping):
            if "text" not in item:
                raise InvalidRequestError(f"documents[{place}] has no text")
            texts.append(_plain_text(item["text"]))
            doc_id = item.get("doc_id")
            own.append(None if is_absent(doc_id) else doc_id)
        else:
            texts.append(_plain_text(item))
            own.append(None)
    if found is None and any(doc_id is not None for doc_id in own):
        found = own
    return texts, found


def _plain_text(value: Any) -> Any:
    """A subclass of `str`, such as numpy's, as plain text; all else is for others to refuse."""
    return str(value) if isinstance(value, str) and type(value) is not str else value


def _whole_number(value: Any) -> Any:
    """A whole number that came as a float, because its column has gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flat(columns: Columns, top_n: int | None) -> Flat:
    queries = [_plain_text(query) for query in columns["query"]]
    texts = [_plain_text(text) for text in columns["text"]]
    groups: dict[str | int, list[int]] = {}
    problems: dict[int, Exception] = {}
    for place, query_id in enumerate(map(_whole_number, columns["query_id"])):
        if is_absent(query_id):
            problems[place] = InvalidRequestError("query_id is missing")
        elif not isinstance(query_id, (str, int)):
            problems[place] = _not_a("query_id", "string or a whole number", query_id)
        elif not isinstance(queries[place], str):
            problems[place] = _not_a("query", "string", queries[place])
        else:
            groups.setdefault(query_id, []).append(place)
    doc_ids = columns.get("doc_id")
    calls: list[BatchQuery] = []
    kept: list[list[int]] = []
    for query_id, places in groups.items():
        query = queries[places[0]]
        if any(queries[place] != query for place in places):
            problem = InvalidRequestError(f"query_id {query_id!r} has more than one query")
            problems.update(dict.fromkeys(places, problem))
            continue
        good: list[int] = []
        seen: set[str] = set()
        for place in places:
            doc_id = None if doc_ids is None else doc_ids[place]
            text = texts[place]
            if not isinstance(text, str):
                problems[place] = _not_a("text", "string", text)
            elif not is_unicode(text):
                problems[place] = InvalidRequestError(
                    "text is not valid Unicode: it holds a lone surrogate"
                )
            elif not is_absent(doc_id) and str(doc_id) in seen:
                problems[place] = InvalidRequestError(
                    f"doc_id {doc_id!r} comes twice for this query: results could not be told apart"
                )
            else:
                seen.add(str(doc_id))
                good.append(place)
        if good:
            calls.append(BatchQuery(query, [texts[place] for place in good], top_n))
            kept.append(good)
    return Flat(columns, calls, kept, problems)


def _not_a(name: str, wanted: str, value: Any) -> InvalidRequestError:
    return InvalidRequestError(f"{name} must be a {wanted}, not {type(value).__name__}")
