"""The Markdown of a report: tables that hold, and names that stay names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.bench._markdown import escaped, to_markdown
from rerank_async.bench._page import Fold, Heading, Page, Points, Table, Text
from rerank_async.bench._report import page_of, write_report
from rerank_async.bench._result import Benchmark
from tests.bench import made

pytest.importorskip("matplotlib")

EVIL = "<script>x</script> | a*b* `c` [d](http://evil.test) @somebody\n# not a heading"


def written(benchmark: Benchmark) -> str:
    """Without charts, which take longest."""
    return to_markdown(page_of(benchmark, []))


def tables_of(text: str) -> list[list[list[str]]]:
    """The cells of each table, split where Markdown splits them."""
    found = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        found.append([[cell.strip() for cell in row] for row in rows])
    return found


def read(text: str) -> str:
    """What a reader sees of text without marks: each backslash shows what it stands before."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def test_the_figures_of_every_load_are_a_table_with_the_knee_in_words_and_in_bold() -> None:
    tables = tables_of(written(made.benchmark()))
    levels = next(table for table in tables if table[0][0] == "concurrency")
    assert levels[0] == [
        "concurrency",
        "req/s",
        "docs/s",
        "mean (ms)",
        "p50 (ms)",
        "p99 (ms)",
        "p99.9 (ms)",
        "failed",
        "throttled",
        "busy",
        "limited by",
    ]
    assert len(levels) == 2 + 9
    assert levels[2][:3] == ["1", "140", "14,000"]
    assert levels[7][:3] == ["**32 (knee)**", "**1,093**", "**109,268**"]
    # Numbers on the right, words on the left.
    assert levels[1][0] == "---"[: len(levels[1][0])] or levels[1][0] == "---:"
    assert levels[1][1] == "---:"
    assert levels[1][-1] == "---"


def test_every_table_has_as_many_cells_in_each_row() -> None:
    benchmark = made.benchmark(
        made.level(1, failures={EVIL: 7}, why=EVIL),
        made.level(2),
        name=EVIL,
        target=evolve(made.TARGET, model=EVIL, url=EVIL),
    )
    tables = tables_of(written(benchmark))
    assert len(tables) > 8
    for table in tables:
        assert len({len(row) for row in table}) == 1, table


def test_all_figures_of_each_level_and_how_it_was_measured_are_there() -> None:
    text = written(made.open_benchmark())
    rows = [row for table in tables_of(text) for row in table]
    assert ["Request rate configured (req/s)", "1,400"] in rows
    assert ["Answered within 100 ms", "30%"] in rows
    assert ["RateLimitError", "24"] in rows
    assert ["Client's processor", "AMD EPYC 7B13, cores to use: 4"] in rows
    assert ["Sent as", "open loop, Poisson arrivals"] in rows
    assert ["aiohttp", "3.14.5"] in rows
    assert "### At 1,400 requests/s" in text


def test_every_chart_that_it_shows_lies_beside_it(tmp_path: Path) -> None:
    write_report(made.benchmark(), tmp_path)
    text = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    shown = re.findall(r"^!\[[^\]]+\]\(([^)]+)\)$", text, re.MULTILINE)
    assert len(shown) == 4
    assert all((tmp_path / name).is_file() for name in shown)


def test_what_one_should_know_comes_before_the_figures() -> None:
    text = written(made.benchmark(notes=("The disk was full.",)))
    assert text.index("- The disk was full.") < text.index("| requests/s |")
    assert "**Warning:** " in text


def test_a_hostile_name_is_neither_markup_nor_a_link_nor_a_heading() -> None:
    benchmark = made.benchmark(
        made.level(), name=EVIL, target=evolve(made.TARGET, model=EVIL), notes=(EVIL,)
    )
    text = written(benchmark)
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\]\(http", text)
    assert "http://evil" not in text
    assert "\n# not" not in text
    assert not re.search(r"(?<!\\)@somebody", text)
    assert "<script>x</script> | a*b* `c` [d](http://evil.test) @somebody # not" in read(text)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("rerank_async", "rerank_async"),
        ("_private_", r"\_private\_"),
        ("1. first", r"1\. first"),
        ("- item", r"\- item"),
        ("3 of 5-6", "3 of 5-6"),
        ("-10.5%", "-10.5%"),
        ("29.1", "29.1"),
        ("---", r"\---"),
        ("http://a.test", r"http\://a.test"),
        ("www.a.test", r"www\.a.test"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("  two   words ", "two words"),
    ],
)
def test_only_what_markdown_would_act_upon_is_marked(text: str, marked: str) -> None:
    assert escaped(text) == marked


@given(st.text())
def test_any_text_is_read_as_it_was_written(text: str) -> None:
    marked = escaped(text)
    assert "\n" not in marked
    assert not re.search(r"(?<!\\)(?:\\\\)*[|<`\[]", marked)
    plain = "".join(
        c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    assert read(marked) == " ".join(plain.split())


def test_each_part_of_a_page_has_its_marks() -> None:
    page = Page(
        "Title",
        (
            Heading("Part"),
            Text("Words."),
            Points("Points", ("one", "two")),
            Table(("a", "b"), (("x", "1"), ("y", "2")), frozenset({1})),
            Fold("More", (Text("inside"),)),
        ),
        "End.",
    )
    assert to_markdown(page) == (
        "# Title\n\n## Part\n\nWords.\n\nPoints\n\n- one\n- two\n\n"
        "| a | b |\n| --- | ---: |\n| x | 1 |\n| **y** | **2** |\n\n"
        "### More\n\ninside\n\n---\n\nEnd.\n"
    )
