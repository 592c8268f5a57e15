"""`rerank-async eval` as its users meet it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.support import PROGRAM, Run, execute, on_a_terminal, one_line

pytest.importorskip("ir_measures")

ARXIV = Path(__file__).resolve().parents[2] / ".." / "shared/data/arxiv"

QRELS = "query-id\tcorpus-id\tscore\nq1\ta\t1\nq2\tb\t1\n"
FIRST = "q1 Q0 x 1 2 t\nq1 Q0 a 2 1 t\nq2 Q0 b 1 1 t\n"
RERANKED = (
    '{"query_id": "q1", "results": [{"index": 1, "doc_id": "a", "relevance_score": 0.9}]}\n'
    '{"query_id": "q2", "error": {"type": "ServerError", "message": "503"}}\n'
    '{"query_id": "q3", "results": []}\n'
)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    (tmp_path / "qrels.tsv").write_text(QRELS)
    (tmp_path / "first.run").write_text(FIRST)
    (tmp_path / "reranked.jsonl").write_text(RERANKED)


async def test_writes_metric_and_value_with_a_tab_into_a_pipe(run: Run) -> None:
    done = await run("eval", "first.run", "qrels.tsv", "--metrics", "RR R@1")
    assert (done.code, done.out, done.err) == (0, "RR\t0.7500\nR@1\t0.5000\n", "")


async def test_writes_before_after_and_difference(run: Run) -> None:
    done = await run(
        *("eval", "reranked.jsonl", "qrels.tsv", "--before", "first.run", "--metrics", "RR,P@1")
    )
    assert (done.code, done.out) == (
        0,
        "RR\t0.7500\t0.5000\t-0.2500\nP@1\t0.5000\t0.5000\t+0.0000\n",
    )


async def test_counts_three_metrics_unless_told(run: Run) -> None:
    done = await run("eval", "first.run", "qrels.tsv")
    assert done.code == 0
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["nDCG@10", "RR", "R@100"]
    assert done.err == (
        "rerank-async: first.run: no ranking is longer than 2, so that R@100 is R@2\n"
    )


async def test_says_which_queries_count_as_0_and_which_are_left_out(run: Run) -> None:
    done = await run("eval", "reranked.jsonl", "qrels.tsv", "--metrics", "RR")
    assert (done.code, done.out) == (0, "RR\t0.5000\n")
    assert done.err.splitlines() == [
        "rerank-async: reranked.jsonl: 1 query with an error in place of a ranking: counted as 0",
        "rerank-async: reranked.jsonl: 1 query without judgements: left out",
    ]


async def test_says_which_queries_are_absent(run: Run, tmp_path: Path) -> None:
    (tmp_path / "more.tsv").write_text(QRELS + "q8\ta\t1\nq9\ta\t1\n")
    done = await run("eval", "first.run", "more.tsv", "--metrics", "RR")
    assert (done.code, done.out) == (0, "RR\t0.3750\n")
    assert done.err == (
        "rerank-async: first.run: 2 queries with judgements not in the file: counted as 0\n"
    )


async def test_of_nothing_but_errors_is_0(run: Run, tmp_path: Path) -> None:
    (tmp_path / "errors.jsonl").write_text(RERANKED.splitlines()[1])
    done = await run("eval", "errors.jsonl", "qrels.tsv", "--metrics", "R@10")
    assert (done.code, done.out) == (0, "R@10\t0.0000\n")
    assert done.err.splitlines() == [
        "rerank-async: errors.jsonl: 1 query with an error in place of a ranking: counted as 0",
        "rerank-async: errors.jsonl: 1 query with judgements not in the file: counted as 0",
    ]


async def test_writes_everything_as_json(run: Run) -> None:
    done = await run(
        *("eval", "reranked.jsonl", "qrels.tsv", "--before", "first.run", "--metrics", "RR"),
        "--json",
    )
    queries = {"judged": 2, "absent": 0, "failed": 0, "partial": 0, "unjudged": 0}
    assert done.code == 0
    assert json.loads(done.out) == {
        "metrics": {"RR": 0.5},
        "queries": queries | {"failed": 1, "unjudged": 1},
        "depth": 1,
        "before": {"metrics": {"RR": 0.75}, "queries": queries, "depth": 2},
        "difference": {"RR": -0.25},
    }


async def test_shows_a_table_on_a_terminal(tmp_path: Path) -> None:
    code, screen = await on_a_terminal(
        *(*PROGRAM, "eval", "first.run", "qrels.tsv", "--before", "first.run", "--metrics", "RR"),
        cwd=tmp_path,
        columns=80,
    )
    lines = [line.split() for line in screen.splitlines()]
    assert code == 0
    assert lines == [
        ["metric", "before", "after", "difference"],
        ["RR", "0.7500", "0.7500", "+0.0000"],
        ["mean", "over", "2", "queries"],
    ]


async def test_reads_standard_input(run: Run) -> None:
    done = await run("eval", "-", "qrels.tsv", "--metrics", "RR", stdin=FIRST.encode())
    assert (done.code, done.out) == (0, "RR\t0.7500\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.run", "qrels.tsv"], ["nowhere.run", "no such file"]),
        (["first.run", "nowhere.tsv"], ["nowhere.tsv", "no such file"]),
        (["first.run", "qrels.tsv", "--before", "nowhere.run"], ["nowhere.run"]),
        (["qrels.tsv", "qrels.tsv"], ["qrels.tsv: line 1", "six fields"]),
        (["first.run", "other.tsv"], ["first.run", "no query of it has judgements"]),
        (["first.run", "qrels.tsv", "--metrics", "Foo@3"], ["--metrics", "'Foo@3'"]),
        (["-", "-"], ["standard input"]),
    ],
)
async def test_of_what_cannot_be_evaluated_is_one_line_and_exit_2(
    run: Run, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "other.tsv").write_text("query-id\tcorpus-id\tscore\nQ-1\ta\t1\n")
    done = await run("eval", *arguments)
    assert done.code == 2
    for word in words:
        assert word in one_line(done)


async def test_without_its_extra_names_the_command_that_installs_it(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['ir_measures'] = None\n"
        "from rerank_async.__main__ import main\n"
        "sys.argv = ['rerank-async', 'eval', 'first.run', 'qrels.tsv']\n"
        "sys.exit(main())\n"
    )
    done = await execute(sys.executable, "-c", program, cwd=tmp_path)
    assert done.code == 2
    assert one_line(done) == 'rerank-async: evaluation needs: pip install "rerank-async[eval]"'


@pytest.mark.skipif(not ARXIV.exists(), reason="the data set is not here")
async def test_tells_what_the_first_stage_of_real_queries_is_worth(run: Run) -> None:
    done = await run("eval", str(ARXIV / "first-stage.run"), str(ARXIV / "qrels/test.tsv"))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("nDCG@10\t0.351")
