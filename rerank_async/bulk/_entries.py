"""What a journal holds: the outcome of one row as bytes, and the frame around it. Pure.

A journal is lines. Each is a checksum, a mark, and one JSON object:

    0c2f61e8+{"key":"id:q1",…}

The checksum is the CRC-32 of everything after it but the newline, in eight lower-case hexadecimal
digits. The mark says whether the entry begins a group (`=`) or belongs to the one before (`+`). A
group is what was handed to the disk together; only the last group may not have reached the disk.
A line belongs here when it is about those bytes; who writes them is `_journal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from zlib import crc32

import msgspec
import orjson
from msgspec import Raw, Struct

from rerank_async.bulk._rows import Id

__all__ = [
    "Absent",
    "Entry",
    "Line",
    "LineResult",
    "Problem",
    "entry_of",
    "failed_line",
    "frame",
    "merged_entry",
    "payload_of",
    "ranking_line",
    "readable",
    "unframed",
    "view",
]

# The checksum and the mark.
_HEAD = 9
_MARKS = b"=+"


class Entry(Struct, frozen=True, omit_defaults=True):
    """What is kept of one row.

    Attributes:
        key: the key that the row is known by.
        digest: the digest of the row's content, in hexadecimal; empty where the whole input has
            one.
        documents: the number of the row's documents.
        tokens: the tokens that the row cost, by the server's word or, where `is_estimate`, by our
            estimate.
        line: the row's line in the output, without newline.
        is_estimate: whether the server did not say what the row cost.
        failed: whether the row has no ranking, or one that lacks documents.
    """

    key: str
    digest: str
    documents: int
    tokens: int
    line: Raw
    is_estimate: bool = False
    failed: bool = False


class LineResult(Struct, frozen=True, omit_defaults=True, gc=False):
    """One result of an output line."""

    index: int
    relevance_score: float
    doc_id: Id | None = None


class Problem(Struct, frozen=True):
    """Why something has no score: an error's class and its words."""

    type: str
    message: str


class Absent(Struct, frozen=True):
    """Documents without a score, from `start` to before `stop`, and why."""

    start: int
    stop: int
    error: Problem


class Cost(Struct, frozen=True):
    """What a row cost; None when the server did not say."""

    total_tokens: int | None = None


class _Ranked(Struct, frozen=True):
    query_id: Id | None
    results: list[LineResult]
    model: str | None
    usage: Cost


class _Partial(_Ranked, frozen=True):
    missing: list[Absent]


class _Unranked(Struct, frozen=True):
    query_id: Id | None
    error: Problem


class Line(Struct, frozen=True):
    """An output line, read back: a ranking, or the error that stands in its place."""

    query_id: Id | None = None
    results: list[LineResult] = []
    model: str | None = None
    usage: Cost = Cost()
    missing: list[Absent] = []
    error: Problem | None = None


_entry = msgspec.json.Decoder(Entry).decode
_line = msgspec.json.Decoder(Line).decode
_encode = msgspec.json.Encoder().encode


def ranking_line(
    query_id: Id | None,
    indices: Sequence[int],
    scores: Sequence[float],
    doc_ids: Sequence[Id | None] | None,
    model: str | None,
    tokens: int | None,
    missing: Iterable[tuple[int, int, Exception]] = (),
) -> bytes:
    """The output line of a ranking, best first, without newline.

    Args:
        query_id: the input's id of the query; None when it gave none.
        indices: the positions in the row's documents.
        scores: the score at each of these positions.
        doc_ids: the id of each document of the row; None when the input gave none.
        model: the model that answered.
        tokens: the tokens that the row cost, by the server's word; None when it did not say.
        missing: the spans `(start, stop, error)` of documents without a score.
    """
    if len(indices) != len(scores):
        raise ValueError(f"{len(indices)} indices and {len(scores)} scores")
    if doc_ids is None:
        results = list(map(LineResult, indices, scores))
    else:
        results = list(map(LineResult, indices, scores, map(doc_ids.__getitem__, indices)))
    absent = [Absent(start, stop, _problem(error)) for start, stop, error in missing]
    return _ranked(query_id, results, model, tokens, absent)


def _ranked(
    query_id: Id | None,
    results: list[LineResult],
    model: str | None,
    tokens: int | None,
    absent: list[Absent],
) -> bytes:
    usage = Cost(tokens)
    if absent:
        return _encode(_Partial(query_id, results, model, usage, absent))
    return _encode(_Ranked(query_id, results, model, usage))


def merged_entry(
    query_id: Id | None,
    results: list[LineResult],
    model: str | None,
    documents: int,
    tokens: int,
    *,
    is_estimate: bool,
    missing: list[Absent],
) -> Entry:
    """The entry of a ranking that was put together from others; no journal holds it.

    Args:
        query_id: the query's id.
        results: the results, best first.
        model: the model that answered.
        documents: the number of documents that were ranked.
        tokens: the tokens that the ranking cost.
        is_estimate: whether the server did not say what it cost.
        missing: the documents without a score.
    """
    line = _ranked(query_id, results, model, None if is_estimate else tokens, missing)
    return Entry(
        "", "", documents, tokens, Raw(line), is_estimate=is_estimate, failed=bool(missing)
    )


def failed_line(query_id: Id | None, error: Exception) -> bytes:
    """The output line of a row that has no ranking, without newline."""
    return _encode(_Unranked(query_id, _problem(error)))


def _problem(error: Exception) -> Problem:
    return Problem(type(error).__name__, readable(str(error)))


def readable(text: str) -> str:
    """Text that UTF-8 can write: what a server sends in an error may not be."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def payload_of(
    key: str,
    digest: bytes,
    documents: int,
    tokens: int,
    line: bytes,
    *,
    is_estimate: bool = False,
    failed: bool = False,
) -> bytes:
    """An entry as one JSON object; see `Entry`."""
    head = orjson.dumps(
        {
            "key": key,
            "digest": digest.hex(),
            "documents": documents,
            "tokens": tokens,
            "is_estimate": is_estimate,
            "failed": failed,
        }
    )
    return b"".join((head[:-1], b',"line":', line, b"}"))


def entry_of(payload: bytes | memoryview) -> Entry:
    """The entry that `payload_of` made.

    Raises:
        msgspec.DecodeError: it did not.
    """
    return _entry(payload)


def view(line: bytes | Raw) -> Line:
    """An output line, read back."""
    return _line(line)


def frame(payload: bytes, *, begins: bool) -> bytes:
    """A line of the journal, newline included."""
    mark = b"=" if begins else b"+"
    checked = crc32(payload, crc32(mark))
    return b"".join((b"%08x" % checked, mark, payload, b"\n"))


def unframed(line: bytes) -> tuple[bytes, bool] | None:
    """The payload of a journal's line, and whether it begins a group; None if it is damaged.

    Args:
        line: the line with its newline; a line without one is not whole.
    """
    if len(line) <= _HEAD or line[-1:] != b"\n" or line[8] not in _MARKS:
        return None
    if line[:8] != b"%08x" % crc32(memoryview(line)[8:-1]):
        return None
    return line[_HEAD:-1], line[8:9] == b"="
