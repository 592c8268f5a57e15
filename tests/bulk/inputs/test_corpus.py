"""A corpus: what a line means, and how the documents are divided into rows."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rerank_async import InvalidRequestError
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._inputs.corpus import Corpus, plain_text_of
from tests.bulk.support import peak, plain, written


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
    [row] = Corpus(path, "q", document_of=plain_text_of).rows()
    assert (row.documents, row.doc_ids) == (["one", "  zwölf ", "{}"], None)


def test_plain_lines_that_are_not_utf_8_are_refused_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"one\ntw\xf6\n")
    with pytest.raises(InputError, match=r"x\.txt: line 2: not UTF-8 text .byte 3."):
        list(Corpus(tmp_path / "x.txt", "q", document_of=plain_text_of).rows())


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


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_reading_takes_no_memory_that_grows_with_the_file(tmp_path: Path, suffix: str) -> None:
    # Lines that repeat each other are a thousand times as long as when they are compressed.
    text = "x" * 2000
    corpus = written(
        tmp_path / f"corpus.jsonl{suffix}", *({"text": text, "_id": i} for i in range(10_000))
    )
    # It holds 20 MB.
    assert peak(Corpus(corpus, "q", documents_per_row=100)) < 4_000_000
