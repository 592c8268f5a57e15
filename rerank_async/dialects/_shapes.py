"""Whose answer it is: the shapes in which kinds of servers answer, told from one another.

An answer that is whole and in another shape is no accident: the next one would be the same.
A line belongs here when it tells such a shape; reading it is for the file of its dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from rerank_async.dialects._reading import BOM

__all__ = ["looks_like"]


def looks_like(body: bytes) -> str | None:
    """The kinds of servers that answer in the shape of `body`; None where none is known to.

    The shape that is asked for, with `relevance_score` in `data`, is not among them.
    """
    try:
        answer = msgspec.json.decode(body.removeprefix(BOM))
    except (ValueError, RecursionError):
        return None
    if isinstance(answer, list):
        answer = {"": answer}
    if not isinstance(answer, dict):
        return None
    for name, keys, fits in _SHAPES:
        rows: Any = answer
        for key in keys:
            rows = rows.get(key) if isinstance(rows, dict) else None
        if isinstance(rows, list) and fits(rows, answer):
            return name
    return None


_Fits = Callable[[list[Any], dict[str, Any]], bool]


def _with(*keys: str) -> _Fits:
    """Whether the rows are objects with these keys; no rows at all will do."""

    def fits(rows: list[Any], answer: dict[str, Any]) -> bool:
        return not rows or (isinstance(rows[0], dict) and all(key in rows[0] for key in keys))

    return fits


def _some_with(*keys: str) -> _Fits:
    """Whether there are rows, and they are objects with these keys."""
    fits_or_empty = _with(*keys)
    return lambda rows, answer: bool(rows) and fits_or_empty(rows, answer)


def _and(fits: _Fits, field: str, *values: str) -> _Fits:
    """Whether the answer also has that field, with one of the values where some are named."""

    def both(rows: list[Any], answer: dict[str, Any]) -> bool:
        has = answer.get(field) in values if values else field in answer
        return has and fits(rows, answer)

    return both


def _numbers(rows: list[Any], answer: dict[str, Any]) -> bool:
    return all(isinstance(row, (int, float)) for row in rows)


# Each with where its rows are. The first that fits counts: what is more special stands before.
_SHAPES: tuple[tuple[str, tuple[str, ...], _Fits], ...] = (
    ("SGLang (a bare list)", ("",), _some_with("score", "meta_info")),
    ("TEI or SGLang (a bare list)", ("",), _some_with("index", "score")),
    ("Infinity (`results`)", ("results",), _and(_with(), "object", "rerank")),
    ("ZeroEntropy (`results`)", ("results",), _and(_with(), "total_bytes")),
    ("Isaacus (`results`, `score`)", ("results",), _some_with("index", "score")),
    ("Cohere, LiteLLM or Xinference (`results`, `meta`)", ("results",), _and(_with(), "meta")),
    ("Jina, vLLM, llama.cpp or LocalAI (`results`)", ("results",), _and(_with(), "usage")),
    ("Cohere or Jina (`results`)", ("results",), _with()),
    ("DashScope (`output.results`)", ("output", "results"), _with()),
    ("NVIDIA NIM (`rankings`)", ("rankings",), _with()),
    ("Elasticsearch (`rerank`)", ("rerank",), _with()),
    ("DeepInfra (`scores`)", ("scores",), _numbers),
    ("Mixedbread (`data`, `score`)", ("data",), _and(_some_with("score"), "top_k")),
    ("vLLM's path /score (`data`, `score`)", ("data",), _some_with("score", "object")),
    ("Pinecone or Mixedbread (`data`, `score`)", ("data",), _some_with("score")),
    ("a path for embeddings", ("data",), _some_with("embedding")),
    ("a path for embeddings", ("embeddings",), _with()),
    ("a path for chats", ("choices",), _with()),
    ("a list of models", ("data",), _some_with("id", "owned_by")),
)
