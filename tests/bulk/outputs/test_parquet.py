"""Parquet as output: its columns, and what becomes of rows that failed."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_async import ServerError
from rerank_async.bulk import InputError
from rerank_async.bulk._entries import Entry, entry_of, failed_line, payload_of, ranking_line
from rerank_async.bulk._outputs import parquet, write
from rerank_async.bulk._rows import Id

ERROR = ServerError("no", status=500)


def ranked(query_id: Id, doc_ids: list[Id | None] | None = None) -> Entry:
    line = ranking_line(query_id, [1, 0], [0.5, 0.25], doc_ids, "m", 3, [(2, 4, ERROR)])
    return entry_of(payload_of(f"id:{query_id}", b"", 2, 3, line))


def test_a_row_is_a_query_with_its_results_or_with_its_error(tmp_path: Path) -> None:
    failed = entry_of(payload_of("id:q2", b"", 2, 0, failed_line("q2", ERROR), failed=True))
    done = write(tmp_path / "out.parquet", [ranked("q1", [7, None]), failed], tag="t")
    assert (done.rows, done.failed, done.errors_path) == (1, 1, None)
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        {
            "query_id": "q1",
            "results": [
                {"index": 1, "doc_id": None, "relevance_score": 0.5},
                {"index": 0, "doc_id": 7, "relevance_score": 0.25},
            ],
            "model": "m",
            "total_tokens": 3,
            "missing": [{"start": 2, "stop": 4, "type": "ServerError", "message": str(ERROR)}],
            "error_type": None,
            "error_message": None,
        },
        {
            "query_id": "q2",
            "results": None,
            "model": None,
            "total_tokens": None,
            "missing": [],
            "error_type": "ServerError",
            "error_message": str(ERROR),
        },
    ]


@pytest.mark.parametrize(("query_id", "kind"), [(7, pa.int64()), ("7", pa.string())])
def test_ids_are_numbers_where_the_first_is_one(tmp_path: Path, query_id: Id, kind: object) -> None:
    write(tmp_path / "out.parquet", [ranked(query_id)], tag="t")
    assert pq.read_schema(tmp_path / "out.parquet").field("query_id").type == kind


def test_a_long_output_is_written_in_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_ROWS", 4)
    write(tmp_path / "out.parquet", [ranked(row) for row in range(10)], tag="t")
    meta = pq.read_metadata(tmp_path / "out.parquet")
    assert [meta.row_group(place).num_rows for place in range(meta.num_row_groups)] == [4, 4, 2]
    assert pq.read_table(tmp_path / "out.parquet")["query_id"].to_pylist() == [*range(10)]


def test_an_output_without_rows_has_the_columns(tmp_path: Path) -> None:
    write(tmp_path / "out.parquet", [], tag="t")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_ids_of_two_kinds_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds strings or numbers, not both"):
        write(tmp_path / "out.parquet", [ranked(7), ranked("a")], tag="t")
    assert list(tmp_path.iterdir()) == []


def test_without_its_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'needs pyarrow: pip install "rerank-async\[parquet\]"'):
        write(tmp_path / "out.parquet", [], tag="t")
