"""Rows from files: requests, a corpus, the candidates of a run; and which of them a path means."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import InvalidRequestError, trec
from rerank_async.bulk import _collection
from rerank_async.bulk._errors import HaltedError, InputError, JobError
from rerank_async.bulk._fields import doubled
from rerank_async.bulk._parquet import ParquetRequests
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sources import Candidates, Corpus, Requests, Source, open_source

ARXIV = Path(__file__).resolve().parents[2] / ".." / "shared/data/arxiv"


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


def plain(row: Row) -> tuple[Any, ...]:
    return (row.query_id, row.query, row.documents, row.doc_ids, row.top_n, row.start)


def kept(source: Source) -> Source:
    """The type checker sees here that a class is a `Source`."""
    return source


# ── requests ──


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"query": "q", "documents": ["a", "b"]}, (None, "q", ["a", "b"], None, None, 0)),
        (
            {"query_id": "q1", "query": "q", "documents": ["a"], "top_n": 3},
            ("q1", "q", ["a"], None, 3, 0),
        ),
        ({"query_id": 7, "query": "q", "documents": []}, (7, "q", [], None, None, 0)),
        (
            {"query": "q", "documents": [{"doc_id": "d1", "text": "a"}, {"doc_id": 2, "text": ""}]},
            (None, "q", ["a", ""], ["d1", 2], None, 0),
        ),
        (
            {"query": "q", "documents": ["a", {"text": "b", "doc_id": "d"}, {"text": "c"}]},
            (None, "q", ["a", "b", "c"], [None, "d", None], None, 0),
        ),
        (
            {"query": "q", "documents": [{"text": "a", "doc_id": None}, "b"]},
            (None, "q", ["a", "b"], None, None, 0),
        ),
        (
            {"query": "é", "documents": ["日本"], "query_id": None, "top_n": None, "x": [1.5]},
            (None, "é", ["日本"], None, None, 0),
        ),
        (
            {"query": "q", "documents": [{"text": "a", "title": "passed over", "score": 0.5}]},
            (None, "q", ["a"], None, None, 0),
        ),
        ({"query_id": 10**30, "query": "q", "documents": []}, (10**30, "q", [], None, None, 0)),
    ],
)
def test_a_line_of_requests_becomes_a_row(
    tmp_path: Path, line: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    for text in (json.dumps(line), json.dumps(line, ensure_ascii=False)):
        (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
        assert list(map(plain, Requests(tmp_path / "x.jsonl").rows())) == [expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"query", "not JSON: Expecting value .character 1."),
        (b'{"query": "q", "documents": ["a"', "not JSON: Expecting ',' delimiter .character 33."),
        (b'{"query": "q", "documents": []} {}', "not JSON: Extra data"),
        (b'["q", ["a"]]', "a request must be an object, not a list"),
        (b"null", "a request must be an object, not null"),
        (b'{"documents": ["a"]}', "it has no query"),
        (b'{"query": "q"}', "it has no documents"),
        (b'{"query": "q", "texts": ["a"]}', "it has no documents"),
        (b'{"query": "", "documents": []}', "query must be .* not empty, not an empty string"),
        (b'{"query": null, "documents": []}', "query must be a string .*, not null"),
        (b'{"query": ["q"], "documents": []}', "query must be a string .*, not a list"),
        (b'{"query": "q", "documents": "a"}', "documents must be a list, not a string"),
        (b'{"query": "q", "documents": null}', "documents must be a list, not null"),
        (b'{"query": "q", "documents": {"d1": "a"}}', "documents must be a list, not an object"),
        (
            b'{"query": "q", "documents": ["a", 7]}',
            r"documents\[1\] must be a string or an object with a text, not 7",
        ),
        (b'{"query": "q", "documents": [null]}', r"documents\[0\] must be .*, not null"),
        (b'{"query": "q", "documents": [{"doc_id": "d"}]}', r"documents\[0\] has no text"),
        (
            b'{"query": "q", "documents": ["a", {"text": 1}]}',
            r"documents\[1\]\.text must be a string, not 1",
        ),
        (
            b'{"query": "q", "documents": [{"text": "a", "doc_id": true}]}',
            r"documents\[0\]\.doc_id must be a string or a whole number, not true",
        ),
        (
            b'{"query": "q", "documents": [{"text": "a", "doc_id": 1.5}]}',
            r"documents\[0\]\.doc_id must be a string or a whole number, not 1\.5",
        ),
        (
            b'{"query_id": false, "query": "q", "documents": []}',
            "query_id must be a string or a whole number, not false",
        ),
        (b'{"query": "q", "documents": [], "top_n": 0}', "top_n must be .* at least 1, not 0"),
        (b'{"query": "q", "documents": [], "top_n": -1}', "top_n must be .* at least 1, not -1"),
        (b'{"query": "q", "documents": [], "top_n": "5"}', "top_n must be .*, not a string"),
        (b'{"query": "q", "documents": [], "top_n": true}', "top_n must be .*, not true"),
        (b'{"query": "q", "documents": [], "top_n": 1.5}', r"top_n must be .*, not 1\.5"),
        (b'{"query": "q", "documents": ["\\ud800 a"]}', r"it holds \\ud800, .* half a character"),
        (b'{"query": "\\udfff", "documents": []}', r"it holds \\udfff, .* half a character"),
        (b'{"query": "q", "documents": ["\xff"]}', "not UTF-8 text .byte 31."),
        (b'{"query": "q", "documents": [NaN]}', "not JSON: NaN is no number there"),
        (b'{"query": "q", "documents": [], "top_n": Infinity}', "not JSON: Infinity"),
        (
            b'{"query": "q", "documents": [{"text": "a", "doc_id": 7},'
            b' {"text": "b", "doc_id": 7}]}',
            "doc_id 7 comes twice: results could not be told apart",
        ),
        (
            b'{"query": "q", "documents": [{"text": "a", "doc_id": 7},'
            b' {"text": "b", "doc_id": "7"}]}',
            "doc_id '7' comes twice",
        ),
        (b'{"query": "q", "documents": ' + b"[" * 100_000, "nested too deeply|not JSON"),
    ],
)
def test_a_line_that_is_no_request_is_refused_with_its_place(
    tmp_path: Path, line: bytes, message: str
) -> None:
    good = {"query": "q", "documents": ["a"]}
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(good).encode() + b"\n\n" + line + b"\n")
    rows = Requests(path).rows()
    next(rows)
    with pytest.raises(InputError, match=message) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{path}: line 3: ")
    assert "\n" not in str(caught.value)


@given(st.lists(st.none() | st.sampled_from(["a", "7", "8"]) | st.sampled_from([7, 8, 9])))
def test_an_id_is_doubled_when_two_are_the_same_as_text(doc_ids: list[str | int | None]) -> None:
    given_ids = [str(doc_id) for doc_id in doc_ids if doc_id is not None]
    twice = doubled(doc_ids)
    if twice is None:
        assert len(set(given_ids)) == len(given_ids)
    else:
        assert given_ids.count(str(twice)) > 1


def test_the_rows_own_top_n_goes_before_that_of_the_source(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.jsonl",
        {"query": "q", "documents": ["a"]},
        {"query": "q", "documents": ["a"], "top_n": 2},
    )
    assert [row.top_n for row in Requests(path, top_n=5).rows()] == [5, 2]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst"])
def test_requests_are_read_as_often_as_wanted(tmp_path: Path, name: str) -> None:
    lines = [{"query_id": i, "query": "q", "documents": [str(i)]} for i in range(10)]
    source = kept(Requests(written(tmp_path / name, *lines)))
    assert source.is_rereadable
    first = list(source.rows())
    assert [row.query_id for row in first] == list(range(10))
    assert list(source.rows()) == first


def test_two_readers_of_one_source_do_not_meet(tmp_path: Path) -> None:
    lines = [{"query_id": i, "query": "q", "documents": []} for i in range(4)]
    source = Requests(written(tmp_path / "x.jsonl", *lines))
    with closing(source.rows()) as one, closing(source.rows()) as other:
        ids = [next(rows).query_id for rows in (one, one, other, one, other)]
    assert ids == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("kind", [Requests, ParquetRequests])
def test_what_describes_requests_says_nothing_of_their_place(
    tmp_path: Path, kind: type[Requests | ParquetRequests]
) -> None:
    # A line that says no top_n is the same line under another one: here they differ.
    assert kind(tmp_path / "x", 3).describe() == {"kind": "requests", "top_n": 3}


@pytest.mark.parametrize("top_n", [0, -1, True, 1.5, "3"])
def test_a_top_n_that_is_none_is_refused_at_once(tmp_path: Path, top_n: Any) -> None:
    with pytest.raises(InvalidRequestError, match="top_n"):
        Requests(tmp_path / "x.jsonl", top_n)


@contextmanager
def standard_input(path: Path) -> Iterator[None]:
    before, file = os.dup(0), os.open(path, os.O_RDONLY)
    os.dup2(file, 0)
    os.close(file)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_standard_input_is_read_once(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", {"query": "q", "documents": ["a"]}, [])
    source = open_source("-", scratch=tmp_path)
    assert isinstance(source, Requests)
    assert not source.is_rereadable
    with standard_input(path):
        rows = source.rows()
        assert next(rows).documents == ["a"]
        with pytest.raises(InputError, match="standard input: line 2: a request must be"):
            next(rows)
    with pytest.raises(InputError, match="standard input can be read once only"):
        list(source.rows())


# ── a corpus ──


@pytest.mark.parametrize(
    ("line", "text", "doc_id"),
    [
        ("a text", "a text", None),
        ({"_id": "d1", "title": "T", "text": "x", "metadata": {}}, "T x", "d1"),
        ({"doc_id": 7, "text": "x"}, "x", 7),
        ({"id": "i", "text": "x"}, "x", "i"),
        ({"id": 1.5, "_id": "d1", "text": "x"}, "x", "d1"),
        ({"id": "i", "doc_id": "d", "text": "x"}, "x", "d"),
        ({"text": ""}, "", None),
        ({"title": "T"}, "T", None),
    ],
)
def test_a_line_of_a_corpus_is_a_document(
    tmp_path: Path, line: object, text: str, doc_id: object
) -> None:
    [row] = Corpus(written(tmp_path / "x.jsonl", line), "q").rows()
    assert plain(row) == (None, "q", [text], None if doc_id is None else [doc_id], None, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"7", "a document must be a string or an object with a text, not 7"),
        (b'["x"]', "a document must be .*, not a list"),
        (b"{}", "it has neither text nor title"),
        (b'{"_id": "d1", "contents": "x"}', "it has neither text nor title"),
        (b'{"text": 7}', "text must be a string, not 7"),
        (b'{"text": "x", "title": {}}', "title must be a string, not an object"),
        (b'{"text": "x", "_id": [1]}', "_id must be a string or a whole number, not a list"),
        (b'{"text": "x", "id": true}', "id must be a string or a whole number, not true"),
        (b"plain text", "not JSON"),
        (b'"\\ud800"', r"it holds \\ud800"),
        (b'"\xff"', "not UTF-8 text"),
    ],
)
def test_a_line_that_is_no_document_is_refused_with_its_place(
    tmp_path: Path, line: bytes, message: str
) -> None:
    path = written(tmp_path / "x.jsonl", "fine", line)
    with pytest.raises(InputError, match=message) as caught:
        list(Corpus(path, "q").rows())
    assert str(caught.value).startswith(f"{path}: line 2: ")


@pytest.mark.parametrize(
    ("documents", "top_n", "expected"),
    [
        (0, None, []),
        (1, None, [(0, 1, None)]),
        (4, 3, [(0, 4, 3)]),
        (5, 3, [(0, 4, 3), (4, 1, 1)]),
        (8, 10, [(0, 4, 4), (4, 4, 4)]),
        (9, None, [(0, 4, None), (4, 4, None), (8, 1, None)]),
    ],
)
def test_a_corpus_is_divided_into_rows(
    tmp_path: Path, documents: int, top_n: int | None, expected: Sequence[tuple[Any, ...]]
) -> None:
    path = written(tmp_path / "x.jsonl", *({"_id": i, "text": str(i)} for i in range(documents)))
    source = Corpus(path, "q", query_id="q1", top_n=top_n, documents_per_row=4)
    rows = list(source.rows())
    assert [(row.start, len(row.documents), row.top_n) for row in rows] == expected
    assert [text for row in rows for text in row.documents] == [str(i) for i in range(documents)]
    assert [name for row in rows for name in row.doc_ids or ()] == list(range(documents))
    assert {row.query_id for row in rows} <= {None}
    assert (source.query_id, source.top_n, source.is_one_query) == ("q1", top_n, True)


def test_a_corpus_may_be_plain_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress("\ufeffone\r\n\r\n  zwölf \n{}".encode()))
    [row] = Corpus(path, "q").rows()
    assert (row.documents, row.doc_ids) == (["one", "  zwölf ", "{}"], None)


def test_plain_lines_that_are_not_utf_8_are_refused_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"one\ntw\xf6\n")
    with pytest.raises(InputError, match=r"x\.txt: line 2: not UTF-8 text .byte 3."):
        list(Corpus(tmp_path / "x.txt", "q").rows())


def test_what_describes_a_corpus_is_what_its_result_depends_on(tmp_path: Path) -> None:
    source = Corpus(tmp_path / "x.jsonl", "q", query_id=1, top_n=3, documents_per_row=50)
    assert source.describe() == {
        "kind": "corpus",
        "query": "q",
        "top_n": 3,
        "documents_per_row": 50,
    }


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"query": ""}, "query"),
        ({"query": "\ud800"}, "query"),
        ({"query": "q", "top_n": 0}, "top_n"),
        ({"query": "q", "documents_per_row": 0}, "documents_per_row"),
        ({"query": "q", "documents_per_row": 1.0}, "documents_per_row"),
    ],
)
def test_a_wrong_argument_of_a_corpus_is_named(
    tmp_path: Path, arguments: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} "):
        Corpus(tmp_path / "x.jsonl", **arguments)


# ── candidates ──


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir set?"
    folder.mkdir()
    written(
        folder / "corpus.jsonl",
        *({"_id": f"d{i}", "title": f"T{i}", "text": f"x{i}"} for i in range(10)),
    )
    written(folder / "queries.jsonl", *({"_id": f"q{i}", "text": f"query {i}"} for i in range(4)))
    return folder


def run_of(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_a_query_of_a_run_comes_with_its_best_documents(tmp_path: Path, beir: Path) -> None:
    run = run_of(
        tmp_path / "x.run",
        # The ranks are wrong, and do not count.
        "q2 Q0 d1 1 0.5 t",
        "q2 Q0 d3 2 0.5 t",
        "q2 Q0 d2 3 0.9 t",
        "q2 Q0 d9 4 0.1 t",
        "q0 Q0 d0 1 -1 t",
    )
    source = kept(Candidates(beir, run, depth=3, top_n=2, scratch=tmp_path / "scratch"))
    expected = [
        ("q2", "query 2", ["T2 x2", "T3 x3", "T1 x1"], ["d2", "d3", "d1"], 2, 0),
        ("q0", "query 0", ["T0 x0"], ["d0"], 2, 0),
    ]
    assert list(map(plain, source.rows())) == expected
    assert list(map(plain, source.rows())) == expected
    assert source.describe() == {"kind": "run", "depth": 3, "top_n": 2}
    assert source.is_rereadable
    assert not source.is_one_query


def test_an_empty_run_has_no_rows(tmp_path: Path, beir: Path) -> None:
    run = run_of(tmp_path / "x.run")
    assert list(Candidates(beir, run, scratch=tmp_path).rows()) == []


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_beir_folder_may_be_compressed(tmp_path: Path, suffix: str) -> None:
    written(tmp_path / f"corpus.jsonl{suffix}", {"_id": "d1", "text": "x"})
    written(tmp_path / f"queries.jsonl{suffix}", {"_id": "q1", "text": "q"})
    run = tmp_path / "x.run.gz"
    run.write_bytes(gzip.compress(b"q1 Q0 d1 1 1 t\n"))
    [row] = Candidates(tmp_path, run, scratch=tmp_path / "scratch").rows()
    assert plain(row) == ("q1", "q", ["x"], ["d1"], None, 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["q1 Q0 d1 1 1 t", "q1 Q0 d77 2 0.5 t"], "line 2: doc_id 'd77' is not in .*corpus.jsonl"),
        (["q1 Q0 d1 1 1 t", "q77 Q0 d1 1 1 t"], "line 2: query_id 'q77' is not in .*queries"),
        (
            ["q1 Q0 d1 1 1 t", "q2 Q0 d1 1 1 t", "q1 Q0 d2 2 0.5 t"],
            "line 3: query_id 'q1' comes again after other queries: sort the run by query_id",
        ),
        (
            ["q1 Q0 d1 1 1 t", "q1 Q0 d2 1 1 t", "q1 Q0 d1 2 0.5 t"],
            "line 3: doc_id 'd1' stands in line 1 already, for the same query_id 'q1'",
        ),
        (["q1 Q0 d1 1 1"], "line 1: a run has six fields"),
        (["q1 Q0 d1 1 nan t"], "line 1: the score 'nan'"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_with_its_place(
    tmp_path: Path, beir: Path, lines: list[str], message: str
) -> None:
    run = run_of(tmp_path / "x.run", *lines)
    with pytest.raises(InputError, match=f"x.run: {message}"):
        list(Candidates(beir, run, scratch=tmp_path / "scratch").rows())


def test_documents_below_the_depth_need_no_text(tmp_path: Path, beir: Path) -> None:
    run = run_of(tmp_path / "x.run", "q1 Q0 d1 1 1 t", "q1 Q0 d77 2 0.5 t")
    [row] = Candidates(beir, run, depth=1, scratch=tmp_path / "scratch").rows()
    assert row.doc_ids == ["d1"]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("corpus", [{"_id": "d1", "text": "x"}] * 2, "line 2: _id 'd1' stands in line 1 already"),
        ("queries", [{"_id": "q1", "text": "x"}] * 2, "line 2: _id 'q1' stands in line 1 already"),
        ("corpus", [{"_id": 1, "text": "x"}, {"_id": "1", "text": "x"}], "line 2: _id '1'"),
        ("corpus", [{"text": "x"}], "line 1: it has no _id"),
        ("queries", [{"_id": "q1", "text": ""}], "line 1: the query 'q1' has no text"),
        ("corpus", [b"{"], "line 1: not JSON"),
    ],
)
def test_what_is_wrong_with_a_beir_folder_is_said_with_its_place(
    tmp_path: Path, beir: Path, name: str, lines: list[object], message: str
) -> None:
    written(beir / f"{name}.jsonl", *lines)
    scratch = tmp_path / "scratch"
    with pytest.raises(InputError, match=rf"{name}\.jsonl: {message}"):
        list(Candidates(beir, run_of(tmp_path / "x.run"), scratch=scratch).rows())
    # Nothing that is half done is left.
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["corpus", "queries"])
def test_a_folder_without_its_files_is_refused(tmp_path: Path, beir: Path, name: str) -> None:
    (beir / f"{name}.jsonl").unlink()
    with pytest.raises(InputError, match=rf"has no {name}\.jsonl .or {name}\.jsonl\.gz"):
        list(Candidates(beir, run_of(tmp_path / "x.run"), scratch=tmp_path).rows())


@pytest.fixture
def candidates(tmp_path: Path, beir: Path) -> Callable[[], list[str]]:
    """The texts of a run's one query."""
    run = run_of(tmp_path / "x.run", "q1 Q0 d1 1 1 t")

    def texts() -> list[str]:
        [row] = Candidates(beir, run, scratch=tmp_path / "scratch").rows()
        return list(row.documents)

    return texts


def test_the_copy_of_a_corpus_is_kept_while_it_stays_the_same(
    tmp_path: Path, beir: Path, candidates: Callable[[], list[str]]
) -> None:
    assert candidates() == ["T1 x1"]
    copy = tmp_path / "scratch" / "collection.sqlite"
    made = copy.stat().st_ino, copy.stat().st_mtime_ns
    assert candidates() == ["T1 x1"]
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == made

    written(beir / "corpus.jsonl", {"_id": "d1", "text": "another"})
    assert candidates() == ["another"]
    stat = (beir / "corpus.jsonl").stat()
    written(beir / "corpus.jsonl", {"_id": "d1", "text": "ANOTHER"})
    os.utime(beir / "corpus.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert candidates() == ["ANOTHER"]


@pytest.mark.parametrize("name", ["corpus", "queries"])
def test_the_copy_of_files_is_not_taken_for_others_of_the_same_size_and_time(
    tmp_path: Path, beir: Path, name: str
) -> None:
    run = run_of(tmp_path / "x.run", "q1 Q0 d1 1 1 t")

    def row() -> tuple[str, list[str]]:
        [found] = Candidates(beir, run, scratch=tmp_path / "scratch").rows()
        return found.query, list(found.documents)

    file = beir / f"{name}.jsonl"
    written(beir / "corpus.jsonl", {"_id": "d1", "text": "one"})
    written(beir / "queries.jsonl", {"_id": "q1", "text": "one"})
    before = file.stat()
    assert row() == ("one", ["one"])
    # In place: what stays the same, too, is the file's number.
    with file.open("r+b") as handle:
        handle.write(file.read_bytes().replace(b"one", b"two"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert row() == (("one", ["two"]) if name == "corpus" else ("two", ["one"]))


@pytest.mark.parametrize("left", [b"", b"rubbish " * 1000])
def test_a_copy_that_is_not_whole_is_made_anew(
    tmp_path: Path, candidates: Callable[[], list[str]], left: bytes
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name in ("collection.sqlite", "collection.sqlite.new"):
        (scratch / name).write_bytes(left)
    assert candidates() == ["T1 x1"]
    assert [path.name for path in scratch.iterdir()] == ["collection.sqlite"]


def test_a_copy_that_was_not_finished_is_made_anew(
    tmp_path: Path, candidates: Callable[[], list[str]]
) -> None:
    candidates()
    with closing(sqlite3.connect(tmp_path / "scratch" / "collection.sqlite")) as db:
        db.execute("DELETE FROM made_from")
        db.execute("UPDATE documents SET text = 'half'")
        db.commit()
    assert candidates() == ["T1 x1"]


def test_a_scratch_directory_that_cannot_be_made_is_named(tmp_path: Path, beir: Path) -> None:
    (tmp_path / "file").touch()
    run = run_of(tmp_path / "x.run")
    with pytest.raises(JobError, match="file"):
        list(Candidates(beir, run, scratch=tmp_path / "file" / "scratch").rows())


def test_rows_may_be_begun_in_one_thread_and_ended_in_another(tmp_path: Path, beir: Path) -> None:
    run = run_of(tmp_path / "x.run", "q1 Q0 d1 1 1 t", "q2 Q0 d1 1 1 t", "q3 Q0 d1 1 1 t")
    rows = Candidates(beir, run, scratch=tmp_path / "scratch").rows()
    found = [next(rows).query_id]

    def go_on() -> None:
        found.append(next(rows).query_id)
        rows.close()

    thread = Thread(target=go_on)
    thread.start()
    thread.join()
    assert found == ["q1", "q2"]


@pytest.mark.skipif(not ARXIV.is_dir(), reason="the arXiv abstracts are not beside the checkout")
def test_the_candidates_of_the_arxiv_collection_are_those_of_its_run(tmp_path: Path) -> None:
    corpus = {
        line.doc_id: line.document
        for line in map(trec.parse_corpus_line, (ARXIV / "corpus.jsonl").read_bytes().splitlines())
    }
    expected: dict[str, list[tuple[str, float]]] = {}
    for line in map(trec.parse_run_line, (ARXIV / "first-stage.run").read_bytes().splitlines()):
        expected.setdefault(line.query_id, []).append((line.doc_id, line.score))
    source = open_source(ARXIV, run=ARXIV / "first-stage.run", scratch=tmp_path)
    rows = list(source.rows())
    assert [row.query_id for row in rows] == list(expected)
    assert len(rows) == 190
    for row in rows:
        assert row.doc_ids == [name for name, _ in trec.in_order(expected[str(row.query_id)])]
        assert row.documents == [corpus[str(name)] for name in row.doc_ids or ()]
        assert len(row.documents) == 100


# ── which one ──


@pytest.fixture
def place(tmp_path: Path, beir: Path) -> Path:
    for name in ("x.jsonl", "x.txt", "x.tsv", "x.parquet.gz"):
        (tmp_path / name).touch()
    beir.rename(tmp_path / "beir")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "part-0.parquet").touch()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "arguments", "kind"),
    [
        ("x.jsonl", {}, Requests),
        ("x.jsonl.gz", {}, Requests),
        ("x.ndjson.zst", {"top_n": 3}, Requests),
        ("pipe", {}, Requests),
        ("x.parquet", {}, ParquetRequests),
        ("tables", {}, ParquetRequests),
        ("x.jsonl", {"query": "q"}, Corpus),
        ("x.txt.gz", {"query": "q", "query_id": 1}, Corpus),
        ("pipe", {"query": "q"}, Corpus),
        ("beir", {"run": "x.run"}, Candidates),
        ("beir", {"run": "x.run", "depth": 10}, Candidates),
    ],
)
def test_a_path_and_what_is_beside_it_mean_a_source(
    place: Path, path: str, arguments: dict[str, Any], kind: type
) -> None:
    source = open_source(place / path, **arguments, scratch=place / "scratch")
    assert type(source) is kind
    # Nothing is read, and nothing written.
    assert not (place / "scratch").exists()


def test_arguments_reach_the_source(place: Path) -> None:
    corpus = open_source(
        place / "x.jsonl", query="q", query_id="q1", top_n=5, documents_per_row=7, scratch=place
    )
    assert corpus.describe()["documents_per_row"] == 7
    assert (corpus.query_id, corpus.top_n) == ("q1", 5)
    run = open_source(place / "beir", run=place / "x.run", top_n=5, scratch=place)
    assert (run.describe()["depth"], run.top_n) == (100, 5)
    run = open_source(place / "beir", run="-", depth=10, scratch=place)
    assert (run.describe()["depth"], run.is_rereadable, run.name) == (10, False, "standard input")
    assert open_source(str(place / "x.parquet"), top_n=4, scratch=str(place)).top_n == 4


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("beir", {}, "^run: .* is a directory; .* give a TREC run"),
        ("beir", {"query": "q"}, "^query: .* is a directory.*: give the file"),
        ("beir", {"run": "x.run", "query": "q"}, "^query and run contradict each other"),
        ("beir", {"depth": 10}, "^depth .* give run"),
        ("beir", {"run": "x.run", "depth": 0}, "^depth must be at least 1"),
        ("beir", {"run": "x.run", "query_id": "q1"}, "^query_id .* give that"),
        ("x.jsonl", {"run": "x.run"}, "^run: .*x.jsonl is not a directory: give the directory"),
        ("absent", {"run": "x.run"}, "^run: .*absent is not there: give the directory"),
        ("x.jsonl", {"depth": 10}, "^depth "),
        ("x.jsonl", {"query_id": "q1"}, "^query_id "),
        ("x.jsonl", {"query": ""}, "^query must not be empty"),
        ("x.jsonl", {"top_n": 0}, "^top_n must be at least 1"),
        ("x.jsonl", {"query": "q", "documents_per_row": 0}, "^documents_per_row must be"),
        ("x.txt", {}, "^query: x.txt holds documents only: give the query"),
        ("x.parquet", {"query": "q"}, "^query: .* leave query out"),
        ("x.tsv", {}, "^path: what x.tsv holds cannot be told by its ending"),
        ("x.tsv", {"query": "q"}, "^path: what x.tsv holds"),
        ("x.parquet.gz", {}, "^path: what x.parquet.gz holds"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    place: Path, path: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        open_source(place / path, **arguments, scratch=place / "scratch")


def test_a_file_that_is_not_there_is_said_to_be_missing(place: Path) -> None:
    with pytest.raises(InputError, match="absent: there is no such file"):
        open_source(place / "absent", scratch=place)
    with pytest.raises(InputError, match=r"absent\.jsonl: there is no such file"):
        list(open_source(place / "absent.jsonl", scratch=place).rows())


# ── memory ──


def peak(source: Source) -> int:
    """The most memory that is held while the rows are read and dropped, in bytes."""
    tracemalloc.start()
    try:
        for _ in source.rows():
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_reading_takes_no_memory_that_grows_with_the_file(tmp_path: Path, suffix: str) -> None:
    # Lines that repeat each other are a thousand times as long as when they are compressed.
    text = "x" * 2000
    requests = written(
        tmp_path / f"requests.jsonl{suffix}",
        *({"query": f"q{i}", "documents": [text] * 5} for i in range(2000)),
    )
    corpus = written(
        tmp_path / f"corpus.jsonl{suffix}", *({"text": text, "_id": i} for i in range(10_000))
    )
    # Both hold 20 MB.
    assert peak(Requests(requests)) < 4_000_000
    assert peak(Corpus(corpus, "q", documents_per_row=100)) < 4_000_000


def test_candidates_of_a_larger_folder_take_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for size in (200, 4000):
        folder = tmp_path / str(size)
        folder.mkdir()
        corpus = ({"_id": f"d{i}", "text": "x" * 2000} for i in range(size))
        written(folder / "corpus.jsonl", *corpus)
        written(folder / "queries.jsonl", *({"_id": f"q{i}", "text": "q"} for i in range(size)))
        run = run_of(
            folder / "x.run",
            *(f"q{i} Q0 d{(i + j) % size} 1 {j} t" for i in range(size) for j in range(5)),
        )
        peaks.append(peak(Candidates(folder, run, scratch=folder / "scratch")))
    assert peaks[1] < 1.2 * peaks[0] + 100_000


# While the files are read for their digests, and while their texts are taken over.
@pytest.mark.parametrize("limit", [0, 1, 8, 30])
def test_reading_a_corpus_ends_when_nobody_wants_it_any_more(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_collection, "_STEPS", 1000)
    folder = tmp_path / "beir"
    folder.mkdir()
    written(folder / "corpus.jsonl", *({"_id": f"d{i}", "text": "x" * 200} for i in range(5000)))
    written(folder / "queries.jsonl", {"_id": "q", "text": "q"})
    run, scratch = run_of(tmp_path / "x.run", "q Q0 d1 1 1 t"), tmp_path / "scratch"
    asked = 0

    def halted() -> bool:
        nonlocal asked
        asked += 1
        return asked > limit

    with pytest.raises(HaltedError):
        Candidates(folder, run, scratch=scratch).prepare(halted)
    assert not list(tmp_path.glob("scratch/*"))
    source = Candidates(folder, run, scratch=scratch)
    source.prepare(lambda: False)
    assert [row.documents for row in source.rows()] == [["x" * 200]]
