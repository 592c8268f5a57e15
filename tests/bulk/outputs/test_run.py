"""A TREC run as output: what stands in it, and where the rows stand that it has no place for."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_async import ServerError
from rerank_async.bulk import InputError
from rerank_async.bulk._entries import Entry, entry_of, failed_line, payload_of, ranking_line
from rerank_async.bulk._outputs import write
from rerank_async.bulk._outputs.run import RUN
from rerank_async.bulk._rows import Row

ERROR = ServerError("no", status=500)


def ranked(query_id: str, doc_ids: list[str | int | None] | None, *, missing: int = 0) -> Entry:
    spans = [(2, 2 + missing, ERROR)] if missing else []
    line = ranking_line(query_id, [1, 0], [0.5, 0.25], doc_ids, "m", 1, spans)
    payload = payload_of(f"id:{query_id}", b"", 2, 1, line, failed=bool(missing))
    return entry_of(payload)


def unranked(query_id: str) -> Entry:
    line = failed_line(query_id, ERROR)
    return entry_of(payload_of(f"id:{query_id}", b"", 2, 0, line, failed=True))


def test_a_document_is_named_by_its_id_or_else_by_its_index(tmp_path: Path) -> None:
    path = tmp_path / "out.run"
    done = write(path, [ranked("q1", ["a", 7]), ranked("q2", ["a", None])], tag="t")
    assert path.read_text().splitlines() == [
        "q1 Q0 7 1 0.5 t",
        "q1 Q0 a 2 0.25 t",
        "q2 Q0 1 1 0.5 t",
        "q2 Q0 a 2 0.25 t",
    ]
    assert (done.rows, done.failed, done.errors_path) == (2, 0, None)


def test_rows_that_failed_stand_in_a_file_beside_it_as_long_as_there_are_any(
    tmp_path: Path,
) -> None:
    path, beside = tmp_path / "out.run", tmp_path / "out.run.failed.jsonl"
    entries = [unranked("q1"), ranked("q2", None, missing=1), ranked("q3", None)]
    done = write(path, entries, tag="t")
    assert (done.rows, done.failed, done.errors_path) == (1, 2, beside)
    assert beside.read_bytes() == bytes(entries[0].line) + b"\n" + bytes(entries[1].line) + b"\n"
    # What was ranked of a row that lacks documents stands in the run as well.
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["q2", "q2", "q3", "q3"]
    assert write(path, entries[2:], tag="t").errors_path is None
    assert not beside.exists()


def test_the_rows_of_a_corpus_need_no_query_id() -> None:
    row = Row("q", ["one"])
    RUN.check("t", True)(row)
    with pytest.raises(InputError, match="needs a query_id for every row"):
        RUN.check("t", False)(row)
