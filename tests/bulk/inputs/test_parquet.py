"""Rows from Parquet: nested and flat columns, files and directories of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rerank_async import InvalidRequestError
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._inputs import Source
from rerank_async.bulk._inputs.parquet import ParquetRequests
from rerank_async.bulk._inputs.requests import Requests
from rerank_async.bulk._rows import Row


def table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table(columns), path, **options)
    return path


def rows_of(path: Path, top_n: int | None = None) -> list[Row]:
    source: Source = ParquetRequests(path, top_n)
    rows = list(source.rows())
    assert list(source.rows()) == rows
    return rows


def plain(row: Row) -> tuple[Any, ...]:
    return (row.query_id, row.query, row.documents, row.doc_ids, row.top_n, row.start)


# ── nested ──


@pytest.mark.parametrize(
    "strings", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list])
def test_a_list_of_texts_is_a_request(tmp_path: Path, strings: Any, lists: Any) -> None:
    path = table(
        tmp_path / "x.parquet",
        {
            "query": pa.array(["é", "b"], strings),
            "documents": pa.array([["x", "y"], []], lists(pa.string())),
            "metadata": [1, 2],
        },
    )
    assert list(map(plain, rows_of(path))) == [
        (None, "é", ["x", "y"], None, None, 0),
        (None, "b", [], None, None, 0),
    ]


def test_a_list_of_structs_is_a_request_with_ids(tmp_path: Path) -> None:
    documents = [
        [{"doc_id": "d1", "text": "x", "title": "t"}, {"doc_id": None, "text": "y", "title": "t"}],
        [{"doc_id": None, "text": "z", "title": None}],
    ]
    path = table(
        tmp_path / "x.parquet",
        {
            "top_n": pa.array([1, None], pa.int16()),
            "query_id": ["q1", None],
            "query": ["a", "b"],
            "documents": documents,
        },
    )
    assert list(map(plain, rows_of(path, top_n=9))) == [
        ("q1", "a", ["x", "y"], ["d1", None], 1, 0),
        (None, "b", ["z"], None, 9, 0),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": [None]}, "row 2: query is empty"),
        ({"query": [""]}, "row 2: query is empty"),
        ({"documents": [None]}, "row 2: documents is null"),
        ({"documents": [["x", None]]}, r"row 2: documents\[1\] has no text"),
        ({"top_n": [0]}, "row 2: top_n must be at least 1, not 0"),
    ],
)
def test_what_is_wrong_with_a_nested_row_is_said_with_its_place(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    good: dict[str, list[Any]] = {"query": ["a"], "documents": [["x"]], "top_n": [1]}
    bad = {name: good[name] + columns.get(name, good[name]) for name in good}
    path = table(tmp_path / "x.parquet", bad)
    with pytest.raises(InputError, match=rf"x\.parquet: {message}"):
        rows_of(path)


def test_a_doc_id_that_comes_twice_in_a_list_is_refused(tmp_path: Path) -> None:
    documents = [{"doc_id": "d", "text": "x"}, {"doc_id": "d", "text": "y"}]
    path = table(tmp_path / "x.parquet", {"query": ["a"], "documents": [documents]})
    with pytest.raises(InputError, match=r"row 1: doc_id 'd' comes twice for this query"):
        rows_of(path)


# ── flat ──


def flat(
    path: Path, triples: Sequence[tuple[Any, Any, Any]], doc_ids: Any = None, **options: Any
) -> Path:
    columns = dict(zip(("query_id", "query", "text"), map(list, zip(*triples, strict=True))))  # noqa: B905
    if doc_ids is not None:
        columns["doc_id"] = doc_ids
    return table(path, columns, **options)


def test_rows_of_one_query_that_stand_together_are_a_request(tmp_path: Path) -> None:
    triples = [("q1", "a", "x"), ("q1", "a", "y"), ("q0", "b", "x")]
    path = flat(tmp_path / "x.parquet", triples, ["d1", "d2", "d1"])
    assert list(map(plain, rows_of(path, top_n=3))) == [
        ("q1", "a", ["x", "y"], ["d1", "d2"], 3, 0),
        ("q0", "b", ["x"], ["d1"], 3, 0),
    ]


def test_ids_may_be_numbers_or_be_missing(tmp_path: Path) -> None:
    path = flat(tmp_path / "x.parquet", [(1, "a", "x"), (1, "a", ""), (2, "b", "x")])
    assert list(map(plain, rows_of(path))) == [
        (1, "a", ["x", ""], None, None, 0),
        (2, "b", ["x"], None, None, 0),
    ]
    path = flat(tmp_path / "x.parquet", [(1, "a", "x"), (2, "b", "x")], [7, None])
    assert [row.doc_ids for row in rows_of(path)] == [[7], None]


def test_a_request_may_be_longer_than_a_batch_and_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    flat(folder / "part-0.parquet", [("q0", "a", str(i)) for i in range(10_000)])
    flat(folder / "part-1.parquet", [("q0", "a", str(i)) for i in range(10_000, 10_010)])
    flat(folder / "part-2.parquet", [("q1", "b", "x")])
    (folder / "_SUCCESS").touch()
    rows = rows_of(folder)
    assert [row.query_id for row in rows] == ["q0", "q1"]
    assert rows[0].documents == [str(i) for i in range(10_010)]


@pytest.mark.parametrize(
    ("triples", "doc_ids", "message"),
    [
        ([("q1", "a", "x"), ("q2", "b", "x"), ("q1", "a", "y")], None, "row 3: .* sort the rows"),
        ([("q1", "a", "x"), ("q1", "b", "x")], None, "row 2: query_id 'q1' has another query"),
        ([("q1", "a", "x"), (None, "a", "x")], None, "row 2: query_id is null"),
        ([("q1", "a", "x"), ("q1", "a", None)], None, "row 2: text is null"),
        ([("q1", "a", "x"), ("q2", "", "x")], None, "row 2: query is empty"),
        ([("q1", "a", "x"), ("q2", None, "x")], None, "row 2: query is empty"),
        (
            [("q0", "a", "x"), ("q1", "a", "x"), ("q1", "a", "y")],
            ["d", "d", "d"],
            "row 2: doc_id 'd' comes twice for this query",
        ),
    ],
)
def test_what_is_wrong_with_flat_rows_is_said_with_its_place(
    tmp_path: Path,
    triples: list[tuple[Any, Any, Any]],
    doc_ids: list[str] | None,
    message: str,
) -> None:
    path = flat(tmp_path / "x.parquet", triples, doc_ids)
    with pytest.raises(InputError, match=rf"x\.parquet: {message}"):
        rows_of(path)


def test_a_query_that_comes_again_in_another_file_is_refused(tmp_path: Path) -> None:
    flat(tmp_path / "a.parquet", [("q1", "a", "x"), ("q2", "b", "x")])
    flat(tmp_path / "b.parquet", [("q1", "a", "y")])
    with pytest.raises(InputError, match=r"b\.parquet: row 1: query_id 'q1' comes again"):
        rows_of(tmp_path)


# ── columns and files ──


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["x"]}, "has no column query_id nor query: it must have query and documents"),
        ({"documents": [["x"]]}, "has no column query$"),
        ({"query": [1], "documents": [["x"]]}, "column query must be text, not int64"),
        ({"query": ["a"], "documents": ["x"]}, "column documents must be a list, not string"),
        ({"query": ["a"], "documents": [[1]]}, "column documents must be a list of text or of"),
        ({"query": ["a"], "documents": [[{"body": "x"}]]}, "documents: its structs have no text"),
        (
            {"query": ["a"], "documents": [[{"text": "x", "doc_id": 1.5}]]},
            "documents: doc_id must be text or whole numbers, not double",
        ),
        (
            {"query": ["a"], "documents": [["x"]], "query_id": [1.5]},
            "column query_id must be text or whole numbers, not double",
        ),
        (
            {"query": ["a"], "documents": [["x"]], "top_n": ["3"]},
            "column top_n must be whole numbers, not string",
        ),
        ({"query_id": [1], "query": ["a"], "text": [1]}, "column text must be text, not int64"),
        (
            {"query_id": [1], "query": ["a"], "text": ["x"], "doc_id": [True]},
            "column doc_id must be text or whole numbers, not bool",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rows_of(table(tmp_path / "x.parquet", columns))
    assert str(caught.value).startswith(str(tmp_path / "x.parquet"))


def test_a_directory_of_unlike_files_is_refused(tmp_path: Path) -> None:
    flat(tmp_path / "a.parquet", [("q1", "a", "x")])
    table(tmp_path / "b.parquet", {"query": ["a"], "documents": [["x"]]})
    with pytest.raises(InputError, match=r"b\.parquet has other columns than .*a\.parquet"):
        rows_of(tmp_path)


def test_a_directory_of_nested_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        table(tmp_path / f"{name}.parquet", {"query": [name], "documents": [["x"]]})
    assert [row.query for row in rows_of(tmp_path)] == ["a", "b", "c"]


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(InputError, match=r"x\.parquet: there is no such file"):
        rows_of(path)
    for content in (b"", b'{"query": "a"}\n' * 10):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.parquet cannot be read: ") as caught:
            rows_of(path)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = flat(tmp_path / "x.parquet", [(1, "a", str(i)) for i in range(1000)])
    data = path.read_bytes()
    for size in range(1, len(data), len(data) // 20):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="cannot be read"):
            rows_of(path)


def test_damaged_pages_are_noticed_and_named(tmp_path: Path) -> None:
    path = flat(tmp_path / "x.parquet", [(1, "a", str(i)) for i in range(5000)], compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:2000] = bytes(1800)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.parquet cannot be read: "):
        rows_of(path)


def test_an_empty_directory_has_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \.parquet files"):
        rows_of(tmp_path)


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    texts = pa.array([], pa.string())
    path = table(tmp_path / "x.parquet", {"query_id": texts, "query": texts, "text": texts})
    assert rows_of(path) == []


def test_without_its_package_parquet_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError) as caught:
        list(ParquetRequests(tmp_path / "x.parquet").rows())
    assert 'pip install "rerank-async[parquet]"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_describes_requests_in_parquet_is_what_describes_those_in_json_lines(
    tmp_path: Path,
) -> None:
    # So that a job goes on with the same rows in the other format.
    source = ParquetRequests(tmp_path / "x.parquet", 3)
    assert source.describe() == Requests(tmp_path / "x.jsonl", 3).describe()


def test_a_wrong_top_n_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="top_n"):
        ParquetRequests(tmp_path / "x.parquet", 0)


def test_closing_the_rows_closes_the_file(tmp_path: Path) -> None:
    path = flat(tmp_path / "x.parquet", [(i, "a", "x") for i in range(10)])
    before = set(Path("/dev/fd").iterdir())
    rows = ParquetRequests(path).rows()
    next(rows)
    rows.close()
    assert len(set(Path("/dev/fd").iterdir())) == len(before)


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_reading_takes_no_memory_that_grows_with_the_file(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "x.parquet"
    # No two texts alike, so that nothing is kept once for all.
    texts = [f"{i} " + "x" * 1000 for i in range(30_000)]
    if layout == "flat":
        flat(path, [(i // 10, "a", text) for i, text in enumerate(texts)], compression="none")
    else:
        documents = [texts[i : i + 10] for i in range(0, len(texts), 10)]
        table(path, {"query": ["a"] * 3000, "documents": documents}, compression="none")
    assert path.stat().st_size > 30_000_000
    del texts
    # One row group: it is not read as a whole.
    with parquet.ParquetFile(path) as file:
        assert file.num_row_groups == 1
    before = highest = pa.total_allocated_bytes()
    with closing(ParquetRequests(path).rows()) as rows:
        for _ in rows:
            highest = max(highest, pa.total_allocated_bytes())
    assert highest - before < 16_000_000
