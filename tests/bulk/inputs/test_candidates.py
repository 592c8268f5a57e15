"""The candidates of a run: which documents of a BEIR folder each query comes with."""

from __future__ import annotations

import gzip
from pathlib import Path
from threading import Thread

import pytest

from rerank_async import trec
from rerank_async.bulk._errors import InputError
from rerank_async.bulk._inputs import Beside, open_source
from rerank_async.bulk._inputs.candidates import Candidates
from tests.bulk.support import kept, peak, plain, run_of, written

ARXIV = Path(__file__).resolve().parents[3] / ".." / "shared/data/arxiv"


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
    source = open_source(ARXIV, Beside(run=ARXIV / "first-stage.run", scratch=tmp_path))
    rows = list(source.rows())
    assert [row.query_id for row in rows] == list(expected)
    assert len(rows) == 190
    for row in rows:
        assert row.doc_ids == [name for name, _ in trec.in_order(expected[str(row.query_id)])]
        assert row.documents == [corpus[str(name)] for name in row.doc_ids or ()]
        assert len(row.documents) == 100


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
