"""Lines of runs, qrels, corpora and queries: what is read, what is refused, what is written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async import trec
from rerank_async.trec import CorpusLine, Judgement, QueryLine, RunLine

ARXIV = Path(__file__).resolve().parents[1] / ".." / "shared/data/arxiv"

# What can be an id in a run: anything that has no white space in it and can be written.
words = st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1)
scores = st.floats(allow_nan=False, allow_infinity=False)
rankings = st.lists(st.tuples(words, scores), unique_by=lambda pair: pair[0])


# ── runs ──


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("q1 Q0 d7 1 12.5 bm25", RunLine("q1", "d7", 1, 12.5, "bm25")),
        (b"q1 Q0 d7 1 12.5 bm25\n", RunLine("q1", "d7", 1, 12.5, "bm25")),
        ("  q1\tQ0   d7\t0\t-3e-2\tbm25\r\n", RunLine("q1", "d7", 0, -0.03, "bm25")),
        ("101 0 FT911-3 12 .5 x", RunLine("101", "FT911-3", 12, 0.5, "x")),
        ("q Q0 d -1 7. x", RunLine("q", "d", -1, 7.0, "x")),
        # A blank of another script is part of a word, as it is for the program trec_eval.
        ("q\u00a01 Q0 文書 1 1 x", RunLine("q\u00a01", "文書", 1, 1.0, "x")),
    ],
)
def test_a_line_of_a_run_is_read(line: str | bytes, expected: RunLine) -> None:
    assert trec.parse_run_line(line) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "six fields in a line.* and here are 0"),
        ("q1 Q0 d7 1 12.5", "six fields in a line.* and here are 5"),
        ("q1 Q0 d7 1 12.5 my run", "six fields in a line.* and here are 7"),
        ("q1 Q0 d7 1 nan x", "score 'nan' is not a finite number"),
        ("q1 Q0 d7 1 -inf x", "score '-inf' is not a finite number"),
        ("q1 Q0 d7 1 1e999 x", "score '1e999' is not a finite number"),
        ("q1 Q0 d7 1 1_0 x", "score '1_0' is not a finite number"),
        ("q1 Q0 d7 1 high x", "score 'high' is not a finite number"),
        ("q1 Q0 d7 12.5 1 x", "rank '12.5' is not a whole number"),
        ("q1 Q0 d7 first 1 x", "rank 'first' is not a whole number"),
        (b"q1 Q0 \xff 1 1 x", "is not UTF-8"),
        ("q1 Q0 \ud800 1 1 x", "lone surrogate"),
    ],
)
def test_a_line_that_is_not_of_a_run_is_refused(line: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trec.parse_run_line(line)


def test_a_run_is_ordered_by_score_and_equal_scores_by_doc_id_descending() -> None:
    text = trec.format_run("q1", [("a", 0.5), ("c", 0.5), ("b", 2.0), ("B", 0.5)], "mine")
    assert text.splitlines() == [
        "q1 Q0 b 1 2.0 mine",
        "q1 Q0 c 2 0.5 mine",
        "q1 Q0 a 3 0.5 mine",
        "q1 Q0 B 4 0.5 mine",
    ]


def test_a_ranking_of_nothing_is_no_lines() -> None:
    assert trec.format_run("q1", [], "mine") == ""


@given(words, rankings, words)
def test_a_run_that_was_written_is_read_back(
    query_id: str, scored: list[tuple[str, float]], tag: str
) -> None:
    lines = trec.format_run(query_id, scored, tag).encode().split(b"\n")
    assert lines.pop() == b""
    read = [trec.parse_run_line(line) for line in lines]
    assert {(line.doc_id, line.score) for line in read} == set(scored)
    assert [line.rank for line in read] == list(range(1, len(scored) + 1))
    assert {(line.query_id, line.tag) for line in read} <= {(query_id, tag)}
    assert [(line.doc_id, line.score) for line in read] == trec.in_order(scored)


@given(st.data(), rankings)
def test_the_order_of_a_run_does_not_depend_on_the_order_it_is_given_in(
    data: st.DataObject, scored: list[tuple[str, float]]
) -> None:
    shuffled = data.draw(st.permutations(scored))
    expected = [doc_id for doc_id, _ in trec.in_order(scored)]
    assert [doc_id for doc_id, _ in trec.in_order(shuffled)] == expected


@given(rankings)
def test_doc_ids_are_compared_as_their_bytes(scored: list[tuple[str, float]]) -> None:
    by_bytes = sorted(scored, key=lambda pair: (pair[1], pair[0].encode()), reverse=True)
    assert trec.in_order(scored) == by_bytes


@pytest.mark.parametrize(
    ("query_id", "scored", "tag", "message"),
    [
        ("", [], "t", "query_id '' is empty"),
        ("q 1", [], "t", "query_id 'q 1' holds white space"),
        ("q", [], "my run", "tag 'my run' holds white space"),
        ("q", [("", 1.0)], "t", "doc_id '' is empty"),
        ("q", [("d\n", 1.0)], "t", r"doc_id 'd\\n' holds white space"),
        ("q", [("d\u20281", 1.0)], "t", "holds white space"),
        ("q", [("d", math.nan)], "t", "score of doc_id 'd' is not a finite number: nan"),
        ("q", [("d", math.inf)], "t", "score of doc_id 'd' is not a finite number: inf"),
        ("q", [("d", 10**400)], "t", "score of doc_id 'd' is not a finite number"),
        ("q", [("d", 1.0), ("e", 1.0), ("d", 2.0)], "t", "doc_id 'd' comes twice"),
        ("q", [("\ud800", 1.0)], "t", "lone surrogate"),
        ("q", [(7, 1.0)], "t", "doc_id must be a string, not 7"),
    ],
)
def test_what_a_run_cannot_hold_is_refused_by_name(
    query_id: str, scored: list[tuple[str, float]], tag: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trec.format_run(query_id, scored, tag)


# ── qrels ──


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("q1 0 d7 1", Judgement("q1", "d7", 1)),
        ("q1\t0\td7\t-2\r\n", Judgement("q1", "d7", -2)),
        (b"301 Q0 FBIS3-1 0", Judgement("301", "FBIS3-1", 0)),
        ("q1\td7\t2\n", Judgement("q1", "d7", 2)),
        # Divided by tabs alone, an id may hold blanks.
        ("q 1\td 7\t2", Judgement("q 1", "d 7", 2)),
        ("query-id\tcorpus-id\tscore\n", None),
    ],
)
def test_a_line_of_qrels_is_read(line: str | bytes, expected: Judgement | None) -> None:
    assert trec.parse_judgement(line) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "four fields.* and here are 0"),
        ("q1 d7 1", "four fields in a line, .* or three divided by tabs, .* and here are 3"),
        ("q1 0 d7 1 x", "and here are 5"),
        ("q1 0 d7 yes", "relevance 'yes' is not a whole number"),
        ("q1 0 d7 1.0", "relevance '1.0' is not a whole number"),
        ("q1\t\t1", "corpus-id is empty"),
        ("\td1\t1", "query-id is empty"),
        ("q1\td1\t", "relevance '' is not a whole number"),
        (b"q1\t\xff\t1", "is not UTF-8"),
    ],
)
def test_a_line_that_is_not_of_qrels_is_refused(line: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trec.parse_judgement(line)


# ── corpora and queries ──


@pytest.mark.parametrize(
    ("line", "expected", "document"),
    [
        (
            '{"_id": "d1", "title": "A title", "text": "A text.", "metadata": {"a": [1]}}',
            CorpusLine("d1", "A title", "A text."),
            "A title A text.",
        ),
        ('{"_id": "d", "title": "", "text": "A text."}', CorpusLine("d", "", "A text."), "A text."),
        ('{"_id": "d1", "text": "A text."}', CorpusLine("d1", "", "A text."), "A text."),
        ('{"_id": "d1", "title": "A title"}', CorpusLine("d1", "A title", ""), "A title"),
        ('{"_id": "d1", "title": null, "text": ""}', CorpusLine("d1", "", ""), ""),
        (b'{"_id": 7, "text": "x"}\r\n', CorpusLine("7", "", "x"), "x"),
    ],
)
def test_a_line_of_a_corpus_is_read(line: str | bytes, expected: CorpusLine, document: str) -> None:
    assert trec.parse_corpus_line(line) == expected
    assert trec.parse_corpus_line(line).document == document


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not JSON: Expecting value"),
        ("{", "not JSON"),
        ('["d1", "x"]', "must be an object, not a list"),
        ('"x"', "must be an object, not a string"),
        ('{"text": "x"}', "it has no _id"),
        ('{"_id": "", "text": "x"}', "it has no _id"),
        ('{"_id": true, "text": "x"}', "_id must be a string or a whole number, not true"),
        ('{"_id": 1.5, "text": "x"}', "_id must be a string or a whole number, not 1.5"),
        ('{"_id": "d1"}', "it has neither text nor title"),
        ('{"_id": "d1", "text": 7}', "text must be a string, not 7"),
        ('{"_id": "d1", "title": ["x"]}', "title must be a string, not a list"),
        ('{"_id": "d1", "text": NaN}', "not JSON: NaN"),
        ('{"_id": "d1", "text": "\\ud800"}', r"it holds \\ud800, which is half a character"),
        (b'{"_id": "d1", "text": "\xff"}', "not UTF-8 text"),
        ('{"_id": "d1", "text": "\ud800"}', "lone surrogate"),
        ('{"_id": "d1", "x": ' + "[" * 100_000, "nested too deeply|not JSON"),
    ],
)
def test_a_line_that_is_not_of_a_corpus_is_refused(line: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trec.parse_corpus_line(line)


def test_a_line_of_queries_is_read() -> None:
    line = '{"_id": 3, "text": "what?", "metadata": {}}'
    assert trec.parse_query_line(line) == QueryLine("3", "what?")


@pytest.mark.parametrize("line", ['{"_id": "q1"}', '{"_id": "q1", "text": ""}'])
def test_a_query_without_text_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="the query 'q1' has no text"):
        trec.parse_query_line(line)


@pytest.mark.skipif(not ARXIV.is_dir(), reason="the arXiv abstracts are not beside the checkout")
def test_every_line_of_the_arxiv_collection_is_read() -> None:
    def read(name: str) -> list[bytes]:
        return (ARXIV / name).read_bytes().splitlines()

    corpus = {trec.parse_corpus_line(line).doc_id for line in read("corpus.jsonl")}
    queries = {trec.parse_query_line(line).query_id for line in read("queries.jsonl")}
    judgements = [trec.parse_judgement(line) for line in read("qrels/test.tsv")]
    run = [trec.parse_run_line(line) for line in read("first-stage.run")]
    assert (len(corpus), len(queries), len(run)) == (314, 190, 19_000)
    assert judgements[0] is None
    assert None not in judgements[1:]
    assert {judgement.doc_id for judgement in judgements if judgement} <= corpus
    assert {line.doc_id for line in run} <= corpus
    assert {line.query_id for line in run} == queries
