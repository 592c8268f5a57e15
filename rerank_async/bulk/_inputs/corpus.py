"""A corpus: one query, and a file of which each line is a document.

A line belongs here when it says what may stand in such a line, or how a corpus is divided into
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from rerank_async import trec
from rerank_async._jsonl import json_kind, parsed_json
from rerank_async._models import as_text, as_top_n
from rerank_async._private import Private
from rerank_async.bulk._files import Lines
from rerank_async.bulk._inputs.fields import as_positive, is_id
from rerank_async.bulk._inputs.source import Beside, InputFormat
from rerank_async.bulk._rows import Id, Row

__all__ = ["CORPUS", "PLAIN_CORPUS", "Corpus", "passage_of", "plain_text_of"]

Document: TypeAlias = tuple[str, Id | None]


class _Passage(Private, Struct, gc=False):
    text: str | None = None
    title: str | None = None
    # A file may have several, of which one counts; the others may be anything.
    beir_id: Any = msgspec.field(name="_id", default=None)
    doc_id: Any = None
    id: Any = None


_decode_passage = msgspec.json.Decoder(str | _Passage).decode


class Corpus:
    """One query over all documents of a file, in rows of equally many documents.

    Nobody checks whether an id comes twice: that would take as much memory as the corpus has ids.

    The rows have no query_id, because all of them would have the same; this source has it.
    The words of `describe` do not have it: no score depends on it.

    Args:
        path: the file; `-` is standard input.
        query: the query.
        query_id: the query's id.
        top_n: the number of results that are wanted of the whole corpus; None wants all.
        documents_per_row: the number of documents that make a row.
        document_of: a function that makes a document's text and its id of a line, and raises
            ValueError where it cannot.

    Raises:
        InvalidRequestError: an argument could not be used; the message names it.
    """

    is_one_query = True

    def __init__(
        self,
        path: Path,
        query: str,
        *,
        query_id: Id | None = None,
        top_n: int | None = None,
        documents_per_row: int = 1000,
        document_of: Callable[[bytes], Document] | None = None,
    ) -> None:
        self._file = Lines(path)
        self.name = self._file.name
        self.is_rereadable = self._file.is_rereadable
        self.query_id = query_id
        self.top_n = as_top_n(top_n)
        self._query = as_text("query", query)
        self._documents_per_row = as_positive("documents_per_row", documents_per_row)
        self._document_of = document_of or passage_of

    def describe(self) -> dict[str, str | int | None]:
        """The query, how many results are wanted, and how the corpus is divided."""
        return {
            "kind": "corpus",
            "query": self._query,
            "top_n": self.top_n,
            "documents_per_row": self._documents_per_row,
        }

    def prepare(self, halted: Callable[[], bool]) -> None:
        """Nothing."""

    def rows(self) -> Generator[Row, None, None]:
        """See `Source`."""
        document_of, size = self._document_of, self._documents_per_row
        start = 0
        texts: list[str] = []
        doc_ids: list[Id | None] = []
        with closing(self._file.read()) as numbered:
            for number, line in numbered:
                try:
                    text, doc_id = document_of(line)
                except ValueError as error:
                    raise self._file.wrong(number, error) from None
                texts.append(text)
                doc_ids.append(doc_id)
                if len(texts) == size:
                    yield self._row(texts, doc_ids, start)
                    start += len(texts)
                    texts, doc_ids = [], []
        if texts:
            yield self._row(texts, doc_ids, start)

    def _row(self, texts: list[str], doc_ids: list[Id | None], start: int) -> Row:
        return Row(
            self._query,
            texts,
            None,
            doc_ids if any(doc_id is not None for doc_id in doc_ids) else None,
            None if self.top_n is None else min(self.top_n, len(texts)),
            start,
        )


def passage_of(line: bytes) -> Document:
    """The document of a JSON line: a text, or an object with `text`, perhaps `title`, and perhaps
    an id in `_id`, `doc_id` or `id`, the first of these that is there. The lines of a
    BEIR corpus are such.

    Raises:
        ValueError: text and title are missing, or a field is of the wrong kind; the message says
            which.
    """
    try:
        passage = _decode_passage(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(_not_a_passage(parsed_json(line)) or str(error)) from None
    if isinstance(passage, str):
        return passage, None
    if passage.text is None and passage.title is None:
        raise ValueError("it has neither text nor title")
    for name, doc_id in (
        ("_id", passage.beir_id),
        ("doc_id", passage.doc_id),
        ("id", passage.id),
    ):
        if doc_id is not None:
            if not is_id(doc_id):
                raise ValueError(
                    f"{name} must be a string or a whole number, not {json_kind(doc_id)}"
                )
            return trec.joined(passage.title, passage.text), doc_id
    return trec.joined(passage.title, passage.text), None


def _not_a_passage(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"a document must be a string or an object with a text, not {json_kind(value)}"
    for name in ("text", "title"):
        if not isinstance(value.get(name), str | None):
            return f"{name} must be a string, not {json_kind(value[name])}"
    return None


def plain_text_of(line: bytes) -> Document:
    """The document of a line of plain text, which has no id.

    Raises:
        ValueError: the line is not UTF-8.
    """
    try:
        return line.decode(), None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1})") from None


def _reader_of(document_of: Callable[[bytes], Document]) -> Callable[[Path, Beside], Corpus]:
    def open_corpus(path: Path, beside: Beside) -> Corpus:
        assert beside.query is not None
        return Corpus(
            path,
            beside.query,
            query_id=beside.query_id,
            top_n=beside.top_n,
            documents_per_row=beside.documents_per_row,
            document_of=document_of,
        )

    return open_corpus


CORPUS = InputFormat(
    name="JSON lines",
    endings=("jsonl", "ndjson"),
    needs="query",
    is_for_pipes=True,
    open=_reader_of(passage_of),
)
PLAIN_CORPUS = InputFormat(
    name="plain text",
    endings=("txt",),
    needs="query",
    open=_reader_of(plain_text_of),
)
