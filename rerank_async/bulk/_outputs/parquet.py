"""Rankings as a Parquet file: a row for each query, its results as a nested column.

A line belongs here when it is about that file's columns; they are read in `_inputs/parquet.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rerank_async.bulk._disk import replacing
from rerank_async.bulk._entries import Entry, Line, view
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._outputs.format import OutputFormat
from rerank_async.bulk._rows import Id, Row

__all__ = ["PARQUET"]

# A row group holds at most so many of each, so that memory is bounded.
_ROWS = 5_000
_RESULTS = 200_000


def _check_columns(tag: str, is_one_query: bool) -> Callable[[Row], None]:
    return _Columns().fits


class _Columns:
    """The kinds of the ids so far: a column of Parquet holds strings or numbers."""

    def __init__(self) -> None:
        self._kinds: dict[str, type] = {}

    def fits(self, row: Row) -> None:
        """Refuse a row whose ids are of another kind than those before."""
        if row.query_id is not None:
            self._see("query_id", row.query_id)
        for doc_id in row.doc_ids or ():
            if doc_id is not None:
                self._see("doc_id", doc_id)

    def _see(self, name: str, value: Id) -> None:
        if self._kinds.setdefault(name, type(value)) is not type(value):
            raise InputError(
                f"{name} {value!r}: a column of Parquet holds strings or whole numbers, and the "
                f"input has both; write .jsonl"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{name} {value} is too large for Parquet; write .jsonl")


def _write_parquet(path: Path, entries: Iterable[Entry], tag: str) -> None:
    with replacing(path) as fresh:
        _write_rankings(fresh, entries)


def _write_rankings(path: Path, entries: Iterable[Entry]) -> None:
    """Write a Parquet file with the columns

        query_id: string or int64
        results: list<struct<index: int64, doc_id: string or int64, relevance_score: double>>
        model: string
        total_tokens: int64
        missing: list<struct<start: int64, stop: int64, type: string, message: string>>
        error_type, error_message: string

    best results first; ids are numbers where the first ones are.

    Raises:
        InputError: pyarrow is missing, or the ids are strings and numbers.
        OSError: the file cannot be written.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise PARQUET.lacks_package(path.name) from None

    groups = _row_groups(entries)
    first = next(groups, [])
    query_ids = _kind(pa, [line.query_id for line in first])
    doc_ids = _kind(pa, [result.doc_id for line in first for result in line.results])
    schema = _schema(pa, query_ids, doc_ids)
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _chained(first, groups):
            try:
                table = pa.Table.from_pylist([_record(line) for line in group], schema)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise InputError(
                    f"{path.name}: a column of ids holds strings or numbers, not both: {error}; "
                    "write .jsonl"
                ) from None
            writer.write_table(table)


def _schema(pa: Any, query_ids: Any, doc_ids: Any) -> Any:
    """The columns, with ids of these two types."""
    result = pa.struct(
        [("index", pa.int64()), ("doc_id", doc_ids), ("relevance_score", pa.float64())]
    )
    absent = pa.struct(
        [
            ("start", pa.int64()),
            ("stop", pa.int64()),
            ("type", pa.string()),
            ("message", pa.string()),
        ]
    )
    return pa.schema(
        [
            ("query_id", query_ids),
            ("results", pa.list_(result)),
            ("model", pa.string()),
            ("total_tokens", pa.int64()),
            ("missing", pa.list_(absent)),
            ("error_type", pa.string()),
            ("error_message", pa.string()),
        ]
    )


def _row_groups(entries: Iterable[Entry]) -> Iterator[list[Line]]:
    group: list[Line] = []
    results = 0
    for entry in entries:
        line = view(entry.line)
        group.append(line)
        results += len(line.results)
        if len(group) >= _ROWS or results >= _RESULTS:
            yield group
            group, results = [], 0
    if group:
        yield group


def _chained(first: list[Line], rest: Iterator[list[Line]]) -> Iterator[list[Line]]:
    if first:
        yield first
    yield from rest


def _kind(pa: Any, ids: list[Id | None]) -> Any:
    """Numbers where the first id is one."""
    known = next((one for one in ids if one is not None), "")
    return pa.int64() if isinstance(known, int) else pa.string()


def _record(line: Line) -> dict[str, Any]:
    error = line.error
    return {
        "query_id": line.query_id,
        "results": None
        if error is not None
        else [
            {
                "index": result.index,
                "doc_id": result.doc_id,
                "relevance_score": result.relevance_score,
            }
            for result in line.results
        ],
        "model": line.model,
        "total_tokens": line.usage.total_tokens,
        "missing": [
            {
                "start": span.start,
                "stop": span.stop,
                "type": span.error.type,
                "message": span.error.message,
            }
            for span in line.missing
        ],
        "error_type": None if error is None else error.type,
        "error_message": None if error is None else error.message,
    }


PARQUET = OutputFormat(
    name="Parquet",
    endings=("parquet",),
    is_compressible=False,
    package="pyarrow",
    extra="parquet",
    check=_check_columns,
    write=_write_parquet,
)
