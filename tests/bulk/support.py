"""What the tests of bulk jobs share: inputs, and the outputs that must come of them."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from tests.support import number_of


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
