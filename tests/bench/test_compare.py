"""Two runs side by side: what differs, which way, and when that says nothing of the servers."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rerank_async import InvalidRequestError
from rerank_async.bench._compare import show_comparison, write_comparison
from rerank_async.bench._differences import (
    Difference,
    caveats,
    figure_differences,
    matched,
    unmatched,
)
from rerank_async.bench._report import write_report
from rerank_async.bench._result import Benchmark, Goodput
from tests.bench import made
from tests.bench.test_html import Reader
from tests.bench.test_markdown import tables_of


def shown(a: Benchmark, b: Benchmark, width: int = 80) -> str:
    file = io.StringIO()
    show_comparison(a, b, Console(file=file, width=width))
    return file.getvalue()


def faster(load: int = 16, **more: Any) -> Benchmark:
    """A tenth more throughput than `made.level` of the same load, at a tenth less latency."""
    return made.benchmark(made.level(load, 1452.0, middle=9.0, **more), name="faster")


def slow(load: int = 16, **more: Any) -> Benchmark:
    return made.benchmark(made.level(load, 1320.0, middle=10.0, **more), name="slow")


# ── a difference ──


@pytest.mark.parametrize(
    ("before", "after", "more_is_better", "words"),
    [
        (100.0, 110.0, True, "+10.0% better"),
        (100.0, 90.0, True, "-10.0% worse"),
        (100.0, 110.0, False, "+10.0% worse"),
        (100.0, 90.0, False, "-10.0% better"),
        (100.0, 100.9, True, "+0.9% same"),
        (0.0, 0.0, False, "0% same"),
        (0.0, 3.0, False, "from 0 worse"),
        (None, 3.0, False, "–"),
        (3.0, None, True, "–"),
    ],
)
def test_a_difference_says_in_a_word_which_way_it_goes(
    before: float | None, after: float | None, more_is_better: bool, words: str
) -> None:
    assert Difference("x", before, after, more_is_better).words == words


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6), st.booleans())
def test_what_is_better_one_way_is_worse_or_the_same_the_other_way(
    one: float, other: float, more_is_better: bool
) -> None:
    there = Difference("x", one, other, more_is_better).verdict
    back = Difference("x", other, one, more_is_better).verdict
    opposite = {"better": "worse", "worse": "better", "same": "same"}[there]
    # A difference of about 1% may be the same one way and a little more the other way.
    assert back == opposite or "same" in (there, back)


def test_every_figure_knows_whether_more_of_it_is_better() -> None:
    pair = matched(slow(), faster())[0]
    found = {one.name: one for one in figure_differences(pair)}
    assert found["requests/s"].words == "+10.0% better"
    assert found["documents/s"].words == "+10.0% better"
    assert found["p99 (ms)"].words == "-10.0% better"
    better = {name for name, one in found.items() if one.more_is_better}
    assert better == {"requests/s", "documents/s", "tokens/s"}


def test_goodput_is_compared_only_where_the_same_was_asked_for() -> None:
    good = Goodput(99.0, 100.0, 1300.0, 0.98, False)
    names = [
        d.name for d in figure_differences(matched(slow(goodput=good), faster(goodput=good))[0])
    ]
    assert "goodput (requests/s)" in names
    other = evolve(good, within_ms=50.0)
    names = [
        d.name for d in figure_differences(matched(slow(goodput=good), faster(goodput=other))[0])
    ]
    assert "goodput (requests/s)" not in names


def test_how_many_failed_is_compared_by_share() -> None:
    a = made.benchmark(made.level(16, 100.0, requests=1000, failed=10))
    b = made.benchmark(made.level(16, 200.0, requests=2000, failed=20))
    failed = next(d for d in figure_differences(matched(a, b)[0]) if d.name == "failed")
    assert (failed.text(failed.before), failed.text(failed.after)) == ("1%", "1%")
    assert failed.verdict == "same"


def test_a_level_that_failed_has_no_latency_to_compare() -> None:
    a = made.benchmark(made.level(16))
    b = made.benchmark(made.failed_level(16))
    found = {d.name: d for d in figure_differences(matched(a, b)[0])}
    assert found["p99 (ms)"].words == "–"
    assert found["requests/s"].words == "-100.0% worse"


# ── which levels ──


def test_levels_are_matched_by_their_load_and_others_are_listed() -> None:
    b = made.benchmark(*made.closed_levels((1, 16, 512)))
    assert [pair.first.load for pair in matched(made.benchmark(), b)] == [1, 16]
    assert unmatched(made.benchmark(), b) == [
        "only in A: 2 at once, 4 at once, 8 at once, 32 at once, 64 at once, 128 at once, "
        "256 at once",
        "only in B: 512 at once",
    ]


def test_sixteen_at_once_and_sixteen_a_second_are_different_loads() -> None:
    a, b = made.benchmark(made.level(16)), made.benchmark(made.level(16, mode="open"))
    assert matched(a, b) == []
    assert "nothing to compare" in shown(a, b)


# ── what else differed ──


def test_the_same_circumstances_are_worth_no_warning() -> None:
    assert caveats(slow(), faster()) == []
    # Another address is what one compares.
    b = evolve(faster(), target=evolve(made.TARGET, url="http://other.test/v1"), started="later")
    assert caveats(slow(), b) == []


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("target", {"model": "x"}, "the model differs: bge-reranker-v2-m3 in A, x in B"),
        ("target", {"dialect": "tei"}, "the dialect differs: v1 in A, tei in B"),
        ("machine", {"cores": 8}, "the client's machine (cores) differs: 4 in A, 8 in B"),
        ("machine", {"processor": "M4"}, "the client's machine (processor) differs"),
        ("machine", {"packages": {}}, "the client's uvloop differs: 0.23.0 in A, none in B"),
        ("workload", {"documents": "20"}, "the workload (documents) differs: 100 in A, 20 in B"),
        ("workload", {"top_n": None}, "the workload (top_n) differs: 10 in A, none in B"),
        ("workload", {"source": "x.jsonl"}, "the workload (source) differs: generated in A"),
        ("workload", {"mean_documents": 90.0}, "documents in a request on average: 100 in A"),
    ],
)
def test_what_else_differed_is_a_warning(part: str, changes: dict[str, Any], words: str) -> None:
    b = faster()
    b = evolve(b, **{part: evolve(getattr(b, part), **changes)})
    found = caveats(slow(), b)
    assert any(words in caveat for caveat in found), found
    assert "Warning: this may not be a comparison of the servers" in shown(slow(), b)


def test_another_version_of_the_client_is_a_warning() -> None:
    assert caveats(slow(), evolve(faster(), rerank_async="0.2.0")) == [
        "the version of rerank_async differs: 0.1.0 in A, 0.2.0 in B"
    ]


def test_another_mode_and_a_client_at_its_limit_are_warnings() -> None:
    a, b = slow(), made.benchmark(made.level(16, mode="open"))
    assert "the mode differs: closed loop in A, open loop in B" in caveats(a, b)
    assert caveats(slow(), faster(limited_by="client")) == [
        "this client was the limit, in A or in B, at: 16 at once"
    ]


def test_failures_in_one_of_the_two_are_a_warning() -> None:
    [found] = caveats(slow(), faster(failures={"HTTP 503": 5000}))
    assert found.startswith("more than 1% of the requests failed, in A or in B, at: 16 at once")


def test_another_content_of_the_file_of_requests_is_a_warning() -> None:
    def of_file(digest: str | None) -> Benchmark:
        return evolve(slow(), workload=evolve(made.WORKLOAD, source="x.jsonl", digest=digest))

    assert caveats(of_file("a"), of_file("a")) == []
    assert caveats(of_file("a"), of_file("b")) == [
        "the content of the requests' file differs: a in A, b in B"
    ]
    # Of a report that is older, nobody knows.
    assert caveats(of_file(None), of_file("b")) == []


def test_lists_that_are_drawn_may_differ_a_little() -> None:
    b = evolve(faster(), workload=evolve(made.WORKLOAD, mean_documents=101.0))
    assert caveats(slow(), b) == []


# ── on the terminal ──


def test_one_level_is_shown_with_all_its_figures() -> None:
    text = shown(slow(), faster())
    assert text.startswith("A: slow (bge-reranker-v2-m3 at http://rerank.test:8000/v1, closed loop")
    assert re.search(r"^requests/s +1,320 +1,452 +\+10\.0% better$", text, re.MULTILINE)
    assert re.search(r"^p50 \(ms\) +10\.0 +9\.00 +-10\.0% better$", text, re.MULTILINE)
    assert "repeat both before you believe" in text


def test_several_levels_are_a_table_within_the_width_and_one_in_full() -> None:
    b = made.benchmark(*made.closed_levels((1, 16, 512)), name="B")
    text = shown(made.benchmark(), b)
    table = text[text.index("load") : text.index("Not compared")]
    assert max(map(len, table.splitlines())) <= 80
    assert re.search(r"^ *1 at once +140 +140 +0% same", text, re.MULTILINE)
    # Neither knee is at a load that both had: the highest of them is shown.
    assert "All figures at 16 at once" in text
    assert "Not compared, only in B: 512 at once" in text
    assert "Knees: A 32 at once, B none." in text


def test_the_figures_in_full_are_those_of_a_knee_where_both_have_its_load() -> None:
    b = made.benchmark(*made.closed_levels((1, 16, 32)), knee=1)
    assert "All figures at 32 at once" in shown(made.benchmark(), b)
    assert "All figures at 16 at once" in shown(
        made.benchmark(*made.closed_levels((1, 16, 64)), knee=None), b
    )


# ── in files ──


def test_a_comparison_lies_beside_a_report_and_leaves_its_files_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = {path: path.read_bytes() for path in write_report(made.benchmark(), tmp_path)}
    written = write_comparison(made.benchmark(), made.benchmark(name="again"), tmp_path)
    assert {path.name for path in written} == {
        "comparison.md",
        "comparison.html",
        *(
            f"comparison-{chart}.{kind}"
            for chart in ("throughput", "latency", "distribution")
            for kind in ("svg", "png")
        ),
    }
    assert all(path.read_bytes() == data for path, data in report.items())


def test_the_files_show_the_differences_the_warnings_and_both_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    b = evolve(faster(), machine=evolve(made.MACHINE, cores=8), name="<b>bold</b>")
    write_comparison(slow(), b, tmp_path)
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    rows = [row for table in tables_of(markdown) for row in table]
    assert ["requests/s", "1,320", "1,452", "+10.0% better"] in rows
    assert "the client's machine (cores) differs: 4 in A, 8 in B" in markdown
    assert "<b>" not in re.sub(r"\\<", "", markdown)
    page = Reader()
    page.feed((tmp_path / "comparison.html").read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    assert ["p50 (ms)", "10.0", "9.00", "-10.0% better"] in page.rows
    assert "b" not in {tag for tag, _ in page.tags}
    assert "B: <b>bold</b>" in page.text


def test_runs_without_a_common_load_are_said_to_have_none(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_comparison(slow(16), made.open_benchmark(), tmp_path)
    assert {path.name for path in written} == {"comparison.md", "comparison.html"}
    assert "nothing to compare" in written[0].read_text(encoding="utf-8")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequestError, match="file"):
        write_comparison(slow(), faster(), tmp_path / "file")


def test_without_matplotlib_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match=r"rerank-async\[bench\]"):
        write_comparison(slow(), faster(), tmp_path)
