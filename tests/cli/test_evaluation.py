"""How good rankings are: small cases by hand, and a second opinion on real ones."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._cli._evaluation import (
    METRICS,
    Evaluation,
    Rankings,
    assess,
    parse_metrics,
    read_judgements,
    read_rankings,
)
from rerank_async.bulk import InputError

pytest.importorskip("ir_measures")

ARXIV = Path(__file__).resolve().parents[2] / ".." / "shared/data/arxiv"

QRELS = "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t1\nq2\tc\t1\n"
RUN = """\
q1 Q0 x 1 9.5 tag
q1 Q0 b 2 8.5 tag
q1 Q0 a 3 7.5 tag
q2 Q0 y 1 3 tag
q2 Q0 c 2 2 tag
"""


def line(query_id: str | int | None, *scored: tuple[str | int, float], **more: object) -> str:
    results = [
        {"index": index, "doc_id": doc_id, "relevance_score": score}
        for index, (doc_id, score) in enumerate(scored)
    ]
    return json.dumps(
        {"query_id": query_id, "results": results, "model": "m", "usage": {"total_tokens": 1}}
        | more
    )


def failure(query_id: str | None) -> str:
    return json.dumps({"query_id": query_id, "error": {"type": "ServerError", "message": "503"}})


LINES = "\n".join(
    [line("q1", ("x", 9.5), ("b", 8.5), ("a", 7.5)), "", line("q2", ("y", 3.0), ("c", 2.0))]
)


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, dict[str, int]]:
    path = tmp_path / "qrels.tsv"
    path.write_text(QRELS)
    return read_judgements(path)


def rankings_of(
    tmp_path: Path, text: str, judged: dict[str, dict[str, int]], name: str = "ranked"
) -> Rankings:
    path = tmp_path / name
    path.write_text(text)
    return read_rankings(path, judged)


def evaluation_of(
    tmp_path: Path, text: str, judged: dict[str, dict[str, int]], metrics: str = METRICS
) -> Evaluation:
    return assess(rankings_of(tmp_path, text, judged), judged, parse_metrics(metrics))


# ── a second opinion ──


def own_ndcg(scores: Mapping[str, float], relevances: Mapping[str, int], depth: int) -> float:
    def dcg(gains: list[int]) -> float:
        return sum(max(gain, 0) / math.log2(rank + 1) for rank, gain in enumerate(gains[:depth], 1))

    best = dcg(sorted(relevances.values(), reverse=True))
    order = sorted(scores, key=lambda doc_id: (scores[doc_id], doc_id), reverse=True)
    return dcg([relevances.get(doc_id, 0) for doc_id in order]) / best if best else 0.0


DOC_IDS = st.text("abcé漢", min_size=1, max_size=2)


class TestTheNumbers:
    @pytest.mark.parametrize("text", [RUN, LINES])
    def test_are_those_worked_by_hand(
        self, tmp_path: Path, judged: dict[str, dict[str, int]], text: str
    ) -> None:
        found = evaluation_of(tmp_path, text, judged, "nDCG@10 RR R@1 R@2 R@100")
        # q1: the gains 0, 1, 2 stand where 2, 1, 0 would be best.
        q1 = (1 / math.log2(3) + 2 / math.log2(4)) / (2 / math.log2(2) + 1 / math.log2(3))
        q2 = 1 / math.log2(3)
        assert found.metrics == pytest.approx(
            {"nDCG@10": (q1 + q2) / 2, "RR": 1 / 2, "R@1": 0.0, "R@2": (1 / 2 + 1) / 2, "R@100": 1}
        )
        assert (found.judged, found.absent, found.failed, found.unjudged) == (2, 0, 0, 0)
        assert found.depth == 3

    def test_count_a_judged_query_that_is_absent_as_0(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        found = evaluation_of(tmp_path, "q2 Q0 c 1 1 tag\n", judged)
        assert found.metrics == {"nDCG@10": 0.5, "RR": 0.5, "R@100": 0.5}
        assert (found.judged, found.absent) == (2, 1)

    def test_count_a_query_with_an_error_as_0(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        text = "\n".join([failure("q1"), line("q2", ("c", 1.0)), failure("q9")])
        found = evaluation_of(tmp_path, text, judged)
        assert found.metrics == {"nDCG@10": 0.5, "RR": 0.5, "R@100": 0.5}
        assert (found.failed, found.absent, found.unjudged) == (1, 0, 1)

    def test_are_0_when_every_query_has_an_error(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        found = evaluation_of(tmp_path, failure("q1"), judged)
        assert set(found.metrics.values()) == {0.0}
        assert (found.failed, found.absent, found.depth) == (1, 1, 0)

    def test_leave_out_a_query_without_judgements(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        more = RUN + "q3 Q0 a 1 1 tag\nq3 Q0 b 2 0 tag\nq4 Q0 a 1 1 tag\n"
        found = evaluation_of(tmp_path, more, judged)
        assert found.metrics == evaluation_of(tmp_path, RUN, judged).metrics
        assert found.unjudged == 2

    def test_tell_a_ranking_that_lacks_documents(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        missing = [{"start": 1, "stop": 2, "error": {"type": "ServerError", "message": "503"}}]
        text = line("q2", ("c", 1.0), missing=missing)
        assert evaluation_of(tmp_path, text, judged).partial == 1

    def test_do_not_depend_on_the_order_of_equal_scores_in_the_file(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        # By doc_id, the greatest first, as trec_eval has it: y stands before c.
        for text in ("q2 Q0 c 1 1 t\nq2 Q0 y 2 1 t\n", "q2 Q0 y 1 1 t\nq2 Q0 c 2 1 t\n"):
            found = evaluation_of(tmp_path, text, judged, "RR RR@10")
            assert found.metrics == {"RR": 0.25, "RR@10": 0.25}

    def test_tell_scores_apart_that_differ_in_the_last_digit(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        text = line("q2", ("c", math.nextafter(0.9, 1)), ("y", 0.9))
        assert evaluation_of(tmp_path, text, judged, "RR").metrics == {"RR": 0.5}

    def test_take_a_number_for_an_id(self, tmp_path: Path) -> None:
        path = tmp_path / "qrels"
        path.write_text("7 0 12 1\n")
        found = evaluation_of(tmp_path, line(7, (12, 0.5)), read_judgements(path), "RR")
        assert found.metrics == {"RR": 1.0}

    @given(
        st.dictionaries(
            st.sampled_from(["q1", "q2", "q3"]),
            st.dictionaries(
                st.text("abcé漢", min_size=1, max_size=2), st.integers(-1, 4), min_size=1
            ),
            min_size=1,
        ),
        st.dictionaries(
            st.sampled_from(["q1", "q2", "q3"]),
            st.dictionaries(
                DOC_IDS,
                st.sampled_from([0.0, -1.5, 1e-9, 1e-9 + 1e-20, 2.0]) | st.floats(-1e6, 1e6),
                min_size=1,
            ),
        ),
        st.integers(1, 5),
    )
    def test_agree_with_a_second_opinion(
        self,
        judged: dict[str, dict[str, int]],
        scores: dict[str, dict[str, float]],
        depth: int,
    ) -> None:
        scores = {query_id: scores[query_id] for query_id in judged if query_id in scores}
        ranked = Rankings("made up", scores, set(), set(), 0)
        found = assess(ranked, judged, parse_metrics(f"nDCG@{depth}"))
        own = [
            own_ndcg(scores.get(query_id, {}), relevances, depth)
            for query_id, relevances in judged.items()
        ]
        assert found.metrics[f"nDCG@{depth}"] == pytest.approx(sum(own) / len(own))


@pytest.mark.skipif(not ARXIV.exists(), reason="the data set is not here")
class TestOnRealQueries:
    def test_the_first_stage_scores_what_it_is_known_to(self) -> None:
        judged = read_judgements(ARXIV / "qrels/test.tsv")
        ranked = read_rankings(ARXIV / "first-stage.run", judged)
        found = assess(ranked, judged, parse_metrics(METRICS))
        assert found.metrics["nDCG@10"] == pytest.approx(0.351, abs=0.001)
        own = [
            own_ndcg(ranked.scores.get(query_id, {}), relevances, 10)
            for query_id, relevances in judged.items()
        ]
        assert found.metrics["nDCG@10"] == pytest.approx(sum(own) / len(own))
        assert (found.judged, found.depth) == (len(judged), 100)


class TestJudgements:
    @pytest.mark.parametrize("text", ["q1 0 a 2\nq1\t0\tb\t1\n\nq2 0 c 1", "\ufeff" + QRELS])
    def test_are_read_from_trec_and_beir(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "qrels"
        path.write_text(text, encoding="utf-8")
        assert read_judgements(path) == {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}

    def test_are_read_from_a_compressed_file(self, tmp_path: Path) -> None:
        zstandard = pytest.importorskip("zstandard")
        (tmp_path / "qrels.tsv.gz").write_bytes(gzip.compress(QRELS.encode()))
        (tmp_path / "qrels.tsv.zst").write_bytes(zstandard.compress(QRELS.encode()))
        for name in ("qrels.tsv.gz", "qrels.tsv.zst"):
            assert read_judgements(tmp_path / name) == {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "holds no judgements"),
            ("query-id\tcorpus-id\tscore\n", "holds no judgements"),
            ("q1 0 a 1\nq1 0 b\n", "line 2: qrels have four fields"),
            ("q1 0 a yes\n", "line 1: the relevance 'yes'"),
            ("q1 0 a 1\nq1 0 a 1\n\nq1 0 a 2\n", "line 4: document 'a' has another relevance"),
            ("q1 0 a 123456789\n", "line 1: a relevance of 123456789 is beyond 1,000,000"),
        ],
    )
    def test_that_are_none_are_named(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "qrels"
        path.write_text(text)
        with pytest.raises(InputError, match=words) as caught:
            read_judgements(path)
        assert str(path) in str(caught.value)

    def test_of_a_file_that_is_not_there_are_an_input_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            read_judgements(tmp_path / "nowhere")


class TestRankings:
    @pytest.mark.parametrize(
        ("name", "text"),
        [("ranked", RUN), ("ranked.run", RUN), ("ranked", LINES), ("ranked.jsonl", LINES)],
    )
    def test_are_read_from_a_run_and_from_json_lines(
        self, tmp_path: Path, judged: dict[str, dict[str, int]], name: str, text: str
    ) -> None:
        assert rankings_of(tmp_path, text, judged, name).scores == {
            "q1": {"x": 9.5, "b": 8.5, "a": 7.5},
            "q2": {"y": 3.0, "c": 2.0},
        }

    def test_are_read_from_a_compressed_file(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        path = tmp_path / "ranked.jsonl.gz"
        path.write_bytes(gzip.compress(LINES.encode()))
        assert set(read_rankings(path, judged).scores) == {"q1", "q2"}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "holds no rankings"),
            ("q1 Q0 a 1 1.0\n", "line 1: a run has six fields"),
            ("q1 Q0 a 1 x t\n", "line 1: the score 'x'"),
            ("q1 Q0 a 1 1 t\nq1 Q0 a 2 0 t\n", "line 2: document 'a' stands twice"),
            ("7 Q0 a 1 1 t\n", "no query of it has judgements: it holds '7', .* of 'q1'"),
            (line("q7", ("a", 1.0)), "no query of it has judgements: it holds 'q7'"),
            ("\n{nonsense\n", "line 2 is not a line of rankings"),
            ("{}", "line 1 has no query_id"),
            (line(None, ("a", 1.0)), "line 1 has no query_id"),
            (line("q1", ("a", 1.0), ("a", 0.5)), "line 1: document 'a' stands twice"),
            (line("q1") + "\n" + failure("q1"), "line 2: query 'q1' stands in line 1 already"),
            (
                '{"query_id": "q1", "results": [{"index": 0, "relevance_score": 1}]}',
                "line 1: result 0 has no doc_id",
            ),
            (
                '{"query_id": "q1", "results": [{"index": 0, "doc_id": "a"}]}',
                "line 1 is not a line of rankings: .*relevance_score",
            ),
        ],
    )
    def test_that_are_none_are_named(
        self, tmp_path: Path, judged: dict[str, dict[str, int]], text: str, words: str
    ) -> None:
        with pytest.raises(InputError, match=words) as caught:
            rankings_of(tmp_path, text, judged)
        assert str(tmp_path / "ranked") in str(caught.value)

    def test_in_parquet_are_refused(
        self, tmp_path: Path, judged: dict[str, dict[str, int]]
    ) -> None:
        with pytest.raises(InputError, match="not Parquet"):
            rankings_of(tmp_path, "PAR1", judged, "ranked.parquet")


class TestMetrics:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            (METRICS, ["nDCG@10", "RR", "R@100"]),
            ("nDCG@10,RR, R@100", ["nDCG@10", "RR", "R@100"]),
            ("MRR Recall@5 RR", ["RR", "R@5"]),
            ("P(rel=2)@5 nDCG(gains={0: 0, 1: 3}, dcg='log2')@10", None),
            ("RR@10 AP Success@1", ["RR@10", "AP", "Success@1"]),
        ],
    )
    def test_are_named_as_ir_measures_names_them(self, text: str, names: list[str] | None) -> None:
        found = [str(metric) for metric in parse_metrics(text)]
        assert found == (["P(rel=2)@5", "nDCG(gains={1:3})@10"] if names is None else names)

    @pytest.mark.parametrize(
        "name",
        ["nonsense", "R", "nDCG@ten", "nDCG@", "P(rel=)@5", "P(2)@5", "P(depth=2)@5", "(", "RR)"],
    )
    def test_that_there_are_not_are_named(self, name: str) -> None:
        with pytest.raises(ValueError, match="is no metric that ir_measures knows") as caught:
            parse_metrics(f"RR {name}")
        assert repr(name) in str(caught.value)

    @pytest.mark.parametrize("text", ["", " , "])
    def test_must_be_some(self, text: str) -> None:
        with pytest.raises(ValueError, match="no metric is named"):
            parse_metrics(text)
