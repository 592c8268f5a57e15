"""The files that a job ends in, made from the journal's entries: JSON lines, a run, or Parquet.

A file appears under its name only when it is whole.
A line belongs here when it turns entries into such a file.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TypeAlias

from attrs import define

from rerank_async._errors import InvalidRequestError
from rerank_async.bulk._disk import whole
from rerank_async.bulk._entries import Absent, Entry, Scored, merged_entry, view
from rerank_async.bulk._errors import InputError, JobChangedError
from rerank_async.bulk._files import kind_of, writing
from rerank_async.bulk._rows import Id, Row
from rerank_async.trec import format_run

__all__ = ["Written", "checked", "fitting", "one_ranking", "write"]

Outcomes: TypeAlias = Iterable[tuple[Entry, int]]

_ENDINGS = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "run": "run",
    "trec": "run",
    "parquet": "parquet",
}


@define
class Written:
    """What a file got.

    Attributes:
        path: the file.
        rows: rows with a whole ranking.
        failed: rows with an error, or with a ranking that lacks documents.
        errors_path: where rows with an error stand when the file itself has no place for them.
    """

    path: Path
    rows: int = 0
    failed: int = 0
    errors_path: Path | None = None


def checked(path: Path) -> str:
    """The format that an output's name asks for: "jsonl", "run" or "parquet".

    Raises:
        InvalidRequestError: none.
    """
    found = _ENDINGS.get(kind_of(path))
    if found is None or (found == "parquet" and path.suffix != ".parquet"):
        raise InvalidRequestError(
            f"output {path.name!r} must end in .jsonl, .run or .parquet, the first two perhaps "
            "followed by .gz or .zst"
        )
    if path.is_dir():
        raise InvalidRequestError(f"output {path} is a directory: name a file")
    return found


def fitting(path: Path, tag: str, *, is_one_query: bool) -> Callable[[Row], None]:
    """What refuses a row whose ids cannot stand in the output, before it is paid for.

    The function that is returned is to be given every row, and raises `InputError`.

    Args:
        path: the output; its name says the format.
        tag: the last word of a run's lines.
        is_one_query: whether the rows are chunks of a corpus, and their query has the query_id.

    Raises:
        InvalidRequestError: the tag cannot stand in a run.
    """
    how = checked(path)
    if how == "run":
        try:
            format_run("q", (), tag)
        except ValueError as error:
            raise InvalidRequestError(f"tag cannot stand in a run: {error}") from None
        return partial(_fits_run, is_one_query)
    if how == "parquet":
        return _Columns().fits
    return lambda row: None


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


def one_ranking(outcomes: Outcomes, query_id: Id | None, top_n: int | None) -> Iterator[Entry]:
    """The entries of one query's chunks as the one entry of that query; none if there are none.

    Args:
        outcomes: of the chunks, with how many documents stand before each.
        query_id: the query's.
        top_n: how many results to keep; None keeps all.

    Raises:
        JobChangedError: the chunks' scores are of more than one model.
    """
    # Equal scores in the order of the documents.
    best: list[tuple[float, int, Id | None]] = []
    missing: list[Absent] = []
    documents = tokens = 0
    is_estimate = False
    model: str | None = None
    for entry, start in outcomes:
        line = view(entry.line)
        documents += entry.documents
        tokens += entry.tokens
        is_estimate |= entry.is_estimate
        model = model or line.model
        if line.model is not None and line.model != model:
            raise JobChangedError(
                f"{model!r} scored a part of the corpus and {line.model!r} another: scores of two "
                "models cannot be compared; begin anew in another directory (--job)"
            )
        if line.error is not None:
            missing.append(Absent(start, start + entry.documents, line.error))
        missing += (
            Absent(start + span.start, start + span.stop, span.error) for span in line.missing
        )
        for result in line.results:
            item = (result.relevance_score, -(start + result.index), result.doc_id)
            if top_n is None or len(best) < top_n:
                heapq.heappush(best, item)
            elif item[:2] > best[0][:2]:
                heapq.heapreplace(best, item)
    if not documents:
        return
    best.sort(key=lambda item: item[:2], reverse=True)
    results = [Scored(-place, score, doc_id) for score, place, doc_id in best]
    yield merged_entry(
        query_id, results, model, documents, tokens, is_estimate=is_estimate, missing=missing
    )


def write(path: Path, entries: Iterable[Entry], *, tag: str) -> Written:
    """Write the file, whole or not at all.

    Args:
        path: its name says the format; what stands there is replaced.
        entries: in the order that they are to stand in.
        tag: the last word of a run's lines.

    Raises:
        InputError: an id cannot stand in this format; the message names it.
        JobFullError: the disk took no more.
        JobError: the file cannot be written.
    """
    how = checked(path)
    done = Written(path)
    if how == "parquet":
        from rerank_async.bulk._parquet_output import write_rankings

        with whole(path) as fresh:
            write_rankings(fresh, map(_counted(done), entries))
        return done
    if how == "jsonl":
        with whole(path) as fresh, writing(fresh, path.suffix) as file:
            for entry in map(_counted(done), entries):
                file.write(entry.line)
                file.write(b"\n")
        return done
    errors = path.with_name(path.name + ".failed.jsonl")
    with contextlib.ExitStack() as stack:
        failures: IO[bytes] | None = None
        fresh = stack.enter_context(whole(path))
        file = stack.enter_context(writing(fresh, path.suffix))
        for entry in map(_counted(done), entries):
            if entry.failed:
                if failures is None:
                    done.errors_path = errors
                    failures = stack.enter_context(stack.enter_context(whole(errors)).open("wb"))
                failures.write(bytes(entry.line) + b"\n")
            file.write(_run_lines(entry, tag))
    if failures is None:
        # What an earlier run left there is over.
        errors.unlink(missing_ok=True)
    return done


def _counted(done: Written) -> Callable[[Entry], Entry]:
    def count(entry: Entry) -> Entry:
        if entry.failed:
            done.failed += 1
        else:
            done.rows += 1
        return entry

    return count


def _run_lines(entry: Entry, tag: str) -> bytes:
    line = view(entry.line)
    if not line.results:
        return b""
    ranking = [
        (str(result.index if result.doc_id is None else result.doc_id), result.relevance_score)
        for result in line.results
    ]
    return _in_a_run(line.query_id, ranking, tag).encode()
