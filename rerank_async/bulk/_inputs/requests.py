"""Requests as JSON lines: each line is a query and its documents.

A line belongs here when it says what may stand in such a line, or what is wrong with one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Struct

from rerank_async._jsonl import json_kind, parsed_json
from rerank_async._models import as_top_n
from rerank_async._private import Private
from rerank_async.bulk._files import Lines
from rerank_async.bulk._inputs.fields import doubled, is_id
from rerank_async.bulk._inputs.source import InputFormat
from rerank_async.bulk._rows import Id, Row

__all__ = ["REQUESTS", "Requests"]


class _Document(Private, Struct, gc=False):
    text: str
    doc_id: str | int | None = None


class _RequestLine(Private, Struct, gc=False):
    query: Annotated[str, Meta(min_length=1)]
    documents: list[str | _Document]
    query_id: str | int | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None


_decode_request = msgspec.json.Decoder(_RequestLine).decode


class Requests:
    """A file of requests, each line one as JSON:
    `{"query_id", "query", "documents": [text | {"doc_id", "text"}], "top_n"}`.

    `query_id`, `doc_id` and `top_n` may be left out; ids are strings or whole numbers; other fields
    are passed over.

    Args:
        path: the file; `-` is standard input.
        top_n: the number of results that are wanted where a line does not say it; None wants all.

    Raises:
        InvalidRequestError: `top_n` is no such number.
    """

    is_one_query = False
    query_id: Id | None = None

    def __init__(self, path: Path, top_n: int | None = None) -> None:
        self._file = Lines(path)
        self.name = self._file.name
        self.is_rereadable = self._file.is_rereadable
        self.top_n = as_top_n(top_n)

    def describe(self) -> dict[str, str | int | None]:
        """The kind, and how many results are wanted of a row that does not say."""
        return {"kind": "requests", "top_n": self.top_n}

    def prepare(self, halted: Callable[[], bool]) -> None:
        """Nothing."""

    def rows(self) -> Generator[Row, None, None]:
        """See `Source`."""
        top_n = self.top_n
        with closing(self._file.read()) as numbered:
            for number, line in numbered:
                try:
                    request = _decode_request(line)
                except (ValueError, RecursionError) as error:
                    raise self._file.wrong(number, _request_problem(line, error)) from None
                documents, doc_ids = _texts_and_ids(request.documents)
                if doc_ids is not None and (twice := doubled(doc_ids)) is not None:
                    raise self._file.wrong(
                        number, f"doc_id {twice!r} comes twice: results could not be told apart"
                    )
                yield Row(
                    request.query,
                    documents,
                    request.query_id,
                    doc_ids,
                    top_n if request.top_n is None else request.top_n,
                    content=line,
                )


def _texts_and_ids(
    documents: list[str | _Document],
) -> tuple[list[str], list[Id | None] | None]:
    # Most lines have one kind of document, and there are many in a line.
    kinds = set(map(type, documents))
    if _Document not in kinds:
        return cast("list[str]", documents), None
    if str in kinds:
        documents = [_Document(item) if isinstance(item, str) else item for item in documents]
    named = cast("list[_Document]", documents)
    doc_ids: list[Id | None] = [document.doc_id for document in named]
    has_ids = any(doc_id is not None for doc_id in doc_ids)
    return [document.text for document in named], doc_ids if has_ids else None


def _request_problem(line: bytes, error: Exception) -> str:
    """What is wrong with a line that was refused with `error`."""
    try:
        request = parsed_json(line)
    except ValueError as problem:
        return str(problem)
    return _not_a_request(request) or str(error)


def _not_a_request(request: Any) -> str | None:
    if not isinstance(request, dict):
        return f"a request must be an object, not {json_kind(request)}"
    for name in ("query", "documents"):
        if name not in request:
            return f"it has no {name}"
    query, documents = request["query"], request["documents"]
    if not isinstance(query, str) or not query:
        return f"query must be a string that is not empty, not {json_kind(query)}"
    if not is_id(request.get("query_id")):
        return f"query_id must be a string or a whole number, not {json_kind(request['query_id'])}"
    top_n = request.get("top_n")
    if top_n is not None and (type(top_n) is not int or top_n < 1):
        return f"top_n must be a whole number of at least 1, not {json_kind(top_n)}"
    if not isinstance(documents, list):
        return f"documents must be a list, not {json_kind(documents)}"
    for place, document in enumerate(documents):
        where = f"documents[{place}]"
        if isinstance(document, str):
            continue
        if not isinstance(document, dict):
            return f"{where} must be a string or an object with a text, not {json_kind(document)}"
        if "text" not in document:
            return f"{where} has no text"
        if not isinstance(document["text"], str):
            return f"{where}.text must be a string, not {json_kind(document['text'])}"
        if not is_id(document.get("doc_id")):
            given = json_kind(document["doc_id"])
            return f"{where}.doc_id must be a string or a whole number, not {given}"
    return None


REQUESTS = InputFormat(
    name="JSON lines",
    endings=("jsonl", "ndjson"),
    is_for_pipes=True,
    open=lambda path, beside: Requests(path, beside.top_n),
)
