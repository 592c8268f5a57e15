"""What the tests of bulk jobs share: inputs, and the outputs that must come of them."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import zstandard

from rerank_async.bulk._inputs import Source
from rerank_async.bulk._rows import Row
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring
from tests.support import number_of, refusal


def requests(count: int, documents: int = 5, *, start: int = 0) -> list[dict[str, Any]]:
    """So many requests with ids of their own; `number_of` scores their documents."""
    return [
        {
            "query_id": f"q{row}",
            "query": f"query {row}",
            "documents": [
                {"doc_id": f"d{row}-{place}", "text": f"document {(row * 31 + place * 7919) % 997}"}
                for place in range(documents)
            ],
        }
        for row in range(start, start + count)
    ]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """The rows as JSON lines, compressed if the name says so."""
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of an output."""
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [orjson.loads(line) for line in data.splitlines()]


def expected(row: dict[str, Any], *, top_n: int | None = None) -> list[tuple[int, float]]:
    """The ranking of a request by `number_of`: `(index, score)`, best first."""
    texts = [one if isinstance(one, str) else one["text"] for one in row["documents"]]
    scores = [number_of(row["query"], text) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    return [(index, scores[index]) for index in order[:top_n]]


def ranking(line: dict[str, Any]) -> list[tuple[int, float]]:
    """What an output line says: `(index, score)`, best first."""
    return [(result["index"], result["relevance_score"]) for result in line["results"]]


# ── servers ──


def failing_on(*words: str, status: int = 400) -> MemoryTransport:
    """A server that refuses requests of which a document or the query holds one of the words."""
    good = scoring(number_of)

    def handle(request: HttpRequest) -> HttpResponse:
        if any(word.encode() in request.body for word in words):
            return refusal(status, "this one I do not like")
        return good(request)

    return MemoryTransport(handle)


def queries(transport: MemoryTransport) -> list[str]:
    """The queries that were sent, in order."""
    return [orjson.loads(request.body)["query"] for request in transport.requests]


# ── sources ──


def written(path: Path, *items: object) -> Path:
    """A file of JSON lines; a string or bytes is a line as it is."""
    data = b"".join(
        (item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items
    )
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


def run_of(path: Path, *lines: str) -> Path:
    """A TREC run of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def plain(row: Row) -> tuple[Any, ...]:
    """What a row says, to be compared."""
    return (row.query_id, row.query, row.documents, row.doc_ids, row.top_n, row.start)


def kept(source: Source) -> Source:
    """The type checker sees here that a class is a `Source`."""
    return source


@contextmanager
def standard_input(path: Path) -> Iterator[None]:
    """The file is this process's standard input."""
    before, file = os.dup(0), os.open(path, os.O_RDONLY)
    os.dup2(file, 0)
    os.close(file)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def peak(source: Source) -> int:
    """The most memory that is held while the rows are read and dropped, in bytes."""
    tracemalloc.start()
    try:
        for _ in source.rows():
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
