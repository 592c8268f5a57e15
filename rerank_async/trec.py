"""Lines of the files of information retrieval: TREC runs and qrels, BEIR corpora and queries. Pure.

    from rerank_async import trec

    line = trec.parse_run_line("q1 Q0 d7 1 12.5 bm25")        # line.query_id, .doc_id, .score
    text = trec.format_run("q1", [("d7", 0.9), ("d3", 0.4)], "reranked")

What is wrong with a line is said by a `ValueError`; which line of which file it is, knows whoever
has the file. A line belongs here when it says how one line is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from rerank_async._jsonl import json_kind, parsed_json
from rerank_async._models import is_unicode

__all__ = [
    "CorpusLine",
    "Judgement",
    "QueryLine",
    "RunLine",
    "format_run",
    "in_order",
    "joined",
    "parse_corpus_line",
    "parse_judgement",
    "parse_query_line",
    "parse_run_line",
]


class RunLine(Struct, frozen=True):
    """A line of a TREC run: `query_id Q0 doc_id rank score tag`.

    Attributes:
        query_id: the id of the query.
        doc_id: the id of the document.
        rank: the document's rank by the file's word; what orders a run is the score, see
            `in_order`.
        score: a finite number, higher is better.
        tag: what made the run.
    """

    query_id: str
    doc_id: str
    rank: int
    score: float
    tag: str


class Judgement(Struct, frozen=True):
    """A line of qrels: how relevant a document is to a query.

    Attributes:
        query_id: the id of the query.
        doc_id: the id of the document.
        relevance: 0 is not relevant, higher is more; some collections use negative numbers.
    """

    query_id: str
    doc_id: str
    relevance: int


class CorpusLine(Struct, frozen=True):
    """A line of a BEIR corpus.

    Attributes:
        doc_id: the value of its `_id`.
        title: empty when there is none.
        text: empty when there is none.
    """

    doc_id: str
    title: str
    text: str

    @property
    def document(self) -> str:
        """What a reranker is to read; see `joined`."""
        return joined(self.title, self.text)


class QueryLine(Struct, frozen=True):
    """A line of BEIR queries.

    Attributes:
        query_id: the value of its `_id`.
        text: the query.
    """

    query_id: str
    text: str


class _Record(Struct):
    """What is read of a BEIR line; `metadata` and whatever else there is are passed over."""

    id: str | int | None = msgspec.field(name="_id", default=None)
    title: str | None = None
    text: str | None = None


_decode_record = msgspec.json.Decoder(_Record).decode

# What `int` and `float` take besides, as 1_000 or blanks of other scripts, is no number here.
_WHOLE = re.compile(rb"[+-]?[0-9]+")
_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


# ── runs ──


def parse_run_line(line: str | bytes) -> RunLine:
    """A line of a TREC run; any white space stands between its six fields.

    Raises:
        ValueError: it is none; the message says why.
    """
    fields = _bytes(line).split()
    if len(fields) != 6:
        raise ValueError(
            "a run has six fields in a line, query_id Q0 doc_id rank score tag, "
            f"and here are {len(fields)}"
        )
    query_id, _, doc_id, rank, score, tag = fields
    if not _NUMBER.fullmatch(score) or not math.isfinite(value := float(score)):
        raise ValueError(f"the score {_field_shown(score)} is not a finite number")
    return RunLine(
        _text_field(query_id),
        _text_field(doc_id),
        _whole_field("rank", rank),
        value,
        _text_field(tag),
    )


def in_order(scored: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """`(doc_id, score)` pairs as `trec_eval` orders a query's: highest score first, and equal
    scores by doc_id, DESCENDING.

    That is what `comp_sim_docno` in trec_eval's `form_res_rels.c` does: the ranks that a run
    states are ignored, and the doc_ids are compared as bytes, the greater one first. (It reads
    scores in single precision, so that it may see ties where there are none.)
    """
    # Code points are in the order of their UTF-8 bytes.
    return sorted(scored, key=lambda pair: (pair[1], pair[0]), reverse=True)


def format_run(query_id: str, scored: Iterable[tuple[str, float]], tag: str) -> str:
    """A query's lines of a TREC run, each with its newline, in the order of `in_order`.

    Ranks count from 1; a score is written with as few digits as give back the same number.

    Args:
        query_id: the id of the query.
        scored: `(doc_id, score)` of each document, in any order.
        tag: what made the run.

    Raises:
        ValueError: an id or the tag is empty, holds white space or cannot be written as UTF-8, a
            score is not finite, or a doc_id comes twice; the message names it.
    """
    _checked("query_id", query_id)
    _checked("tag", tag)
    seen: set[str] = set()
    pairs: list[tuple[str, float]] = []
    for doc_id, given in scored:
        _checked("doc_id", doc_id)
        if doc_id in seen:
            raise ValueError(f"doc_id {doc_id!r} comes twice")
        seen.add(doc_id)
        try:
            score = float(given)
        except OverflowError:
            score = math.inf
        if not math.isfinite(score):
            raise ValueError(f"the score of doc_id {doc_id!r} is not a finite number: {score}")
        pairs.append((doc_id, score))
    return "".join(
        f"{query_id} Q0 {doc_id} {rank} {score!r} {tag}\n"
        for rank, (doc_id, score) in enumerate(in_order(pairs), 1)
    )


def _checked(name: str, word: str) -> None:
    if not isinstance(word, str):
        raise ValueError(f"{name} must be a string, not {word!r}")
    if word.split() != [word]:
        what = "holds white space" if word else "is empty"
        raise ValueError(f"{name} {word!r} {what}, which a run's lines are divided by")
    if not is_unicode(word):
        raise ValueError(f"{name} {word!r} is not valid Unicode: it holds a lone surrogate")


# ── qrels ──


def parse_judgement(line: str | bytes) -> Judgement | None:
    """A line of qrels: TREC's `query_id 0 doc_id relevance`, divided by any white space, or BEIR's
    `query-id corpus-id score`, divided by tabs. None for the header of BEIR's.

    Raises:
        ValueError: it is neither; the message says why.
    """
    data = _bytes(line)
    fields = data.rstrip(b"\r\n").split(b"\t")
    if len(fields) == 3:
        if fields == [b"query-id", b"corpus-id", b"score"]:
            return None
        query_id, doc_id, relevance = map(bytes.strip, fields)
        if not query_id or not doc_id:
            raise ValueError(f"the {'corpus-id' if query_id else 'query-id'} is empty")
    else:
        fields = data.split()
        if len(fields) != 4:
            raise ValueError(
                "qrels have four fields in a line, query_id 0 doc_id relevance, or three divided "
                f"by tabs, query-id corpus-id score, and here are {len(fields)}"
            )
        query_id, _, doc_id, relevance = fields
    return Judgement(
        _text_field(query_id), _text_field(doc_id), _whole_field("relevance", relevance)
    )


# ── BEIR's corpora and queries ──


def joined(title: str | None, text: str | None) -> str:
    """A document's title and text as one, a space between them, as BEIR's own reranking joins
    them; the one alone where the other is empty or absent.
    """
    if title and text:
        return f"{title} {text}"
    return title or text or ""


def parse_corpus_line(line: str | bytes) -> CorpusLine:
    """A line of a BEIR corpus, `{"_id", "title", "text"}`; an `_id` that is a number becomes text.

    Raises:
        ValueError: it is none; the message says why.
    """
    record, name = _record_of(line)
    if record.title is None and record.text is None:
        raise ValueError("it has neither text nor title")
    return CorpusLine(name, record.title or "", record.text or "")


def parse_query_line(line: str | bytes) -> QueryLine:
    """A line of BEIR queries, `{"_id", "text"}`; an `_id` that is a number becomes text.

    Raises:
        ValueError: it is none, or its text is empty; the message says why.
    """
    record, name = _record_of(line)
    if not record.text:
        raise ValueError(f"the query {name!r} has no text")
    return QueryLine(name, record.text)


def _record_of(line: str | bytes) -> tuple[_Record, str]:
    data = _bytes(line)
    try:
        record = _decode_record(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(_record_problem(parsed_json(data)) or str(error)) from None
    if record.id is None or record.id == "":
        raise ValueError("it has no _id")
    return record, str(record.id)


def _record_problem(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"it must be an object, not {json_kind(value)}"
    for name in ("title", "text"):
        if not isinstance(value.get(name), str | None):
            return f"{name} must be a string, not {json_kind(value[name])}"
    given = value.get("_id")
    if not isinstance(given, str | int | None) or isinstance(given, bool):
        return f"_id must be a string or a whole number, not {json_kind(given)}"
    return None


# ── fields ──


def _bytes(line: str | bytes) -> bytes:
    if isinstance(line, bytes):
        return line
    try:
        return line.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode: it holds a lone surrogate") from None


def _text_field(field: bytes) -> str:
    try:
        return field.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{_field_shown(field)} is not UTF-8 text") from None


def _whole_field(name: str, field: bytes) -> int:
    if not _WHOLE.fullmatch(field) or len(field) > 18:
        raise ValueError(f"the {name} {_field_shown(field)} is not a whole number")
    return int(field)


def _field_shown(field: bytes) -> str:
    return repr(field[:40].decode("utf-8", "replace"))
