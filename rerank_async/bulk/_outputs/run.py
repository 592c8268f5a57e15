"""Rankings as a TREC run, and a file beside it for the rows that a run has no place for.

A line belongs here when it is about these two files; how a line of a run is written is in `trec`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO

from rerank_async._errors import InvalidRequestError
from rerank_async.bulk._disk import replacing
from rerank_async.bulk._entries import Entry, view
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._files import writing
from rerank_async.bulk._outputs.format import OutputFormat
from rerank_async.bulk._rows import Id, Row
from rerank_async.trec import format_run

__all__ = ["RUN"]


def _check_run(tag: str, is_one_query: bool) -> Callable[[Row], None]:
    try:
        format_run("q", (), tag)
    except ValueError as error:
        raise InvalidRequestError(f"tag cannot stand in a run: {error}") from None
    return partial(_fits_run, is_one_query)


def _fits_run(is_one_query: bool, row: Row) -> None:
    if row.doc_ids is None:
        names = [str(place) for place in range(len(row.documents))]
    else:
        names = [
            str(place if doc_id is None else doc_id) for place, doc_id in enumerate(row.doc_ids)
        ]
    query_id = "q" if is_one_query else row.query_id
    _in_a_run(query_id, [(name, 0.0) for name in names], "tag")


def _in_a_run(query_id: Id | None, ranking: list[tuple[str, float]], tag: str) -> str:
    if query_id is None:
        raise InputError(
            "a run needs a query_id for every row: give the input some, or write .jsonl"
        )
    try:
        return format_run(str(query_id), ranking, tag)
    except ValueError as error:
        raise InputError(
            f"query_id {query_id!r} cannot stand in a run: {error}; change the input, or write "
            ".jsonl"
        ) from None


def _write_run(path: Path, entries: Iterable[Entry], tag: str) -> Path | None:
    errors = path.with_name(path.name + ".failed.jsonl")
    with contextlib.ExitStack() as stack:
        failures: IO[bytes] | None = None
        fresh = stack.enter_context(replacing(path))
        file = stack.enter_context(writing(fresh, path.suffix))
        for entry in entries:
            if entry.failed:
                if failures is None:
                    failures = stack.enter_context(
                        stack.enter_context(replacing(errors)).open("wb")
                    )
                failures.write(bytes(entry.line) + b"\n")
            file.write(_run_lines(entry, tag))
    if failures is not None:
        return errors
    # What an earlier run left there is over.
    errors.unlink(missing_ok=True)
    return None


def _run_lines(entry: Entry, tag: str) -> bytes:
    line = view(entry.line)
    if not line.results:
        return b""
    ranking = [
        (str(result.index if result.doc_id is None else result.doc_id), result.relevance_score)
        for result in line.results
    ]
    return _in_a_run(line.query_id, ranking, tag).encode()


RUN = OutputFormat(name="a TREC run", endings=("run", "trec"), check=_check_run, write=_write_run)
