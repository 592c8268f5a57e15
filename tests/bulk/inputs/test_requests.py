"""Requests as JSON lines: what a line means, and what is said of one that is wrong."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rerank_async import InvalidRequestError
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._inputs import Beside, open_source
from rerank_async.bulk._inputs.requests import Requests
from tests.bulk.support import kept, peak, plain, standard_input, written


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


def test_what_describes_requests_says_nothing_of_their_place(tmp_path: Path) -> None:
    # A line that says no top_n is the same line under another one: here they differ.
    assert Requests(tmp_path / "x", 3).describe() == {"kind": "requests", "top_n": 3}


@pytest.mark.parametrize("top_n", [0, -1, True, 1.5, "3"])
def test_a_top_n_that_is_none_is_refused_at_once(tmp_path: Path, top_n: Any) -> None:
    with pytest.raises(InvalidRequestError, match="top_n"):
        Requests(tmp_path / "x.jsonl", top_n)


def test_standard_input_is_read_once(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", {"query": "q", "documents": ["a"]}, [])
    source = open_source(Path("-"), Beside(scratch=tmp_path))
    assert isinstance(source, Requests)
    assert not source.is_rereadable
    with standard_input(path):
        rows = source.rows()
        assert next(rows).documents == ["a"]
        with pytest.raises(InputError, match="standard input: line 2: a request must be"):
            next(rows)
    with pytest.raises(InputError, match="standard input can be read once only"):
        list(source.rows())


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_reading_takes_no_memory_that_grows_with_the_file(tmp_path: Path, suffix: str) -> None:
    # Lines that repeat each other are a thousand times as long as when they are compressed.
    text = "x" * 2000
    requests = written(
        tmp_path / f"requests.jsonl{suffix}",
        *({"query": f"q{i}", "documents": [text] * 5} for i in range(2000)),
    )
    # It holds 20 MB.
    assert peak(Requests(requests)) < 4_000_000
