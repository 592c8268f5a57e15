"""What a person sees of two benchmarks side by side: A, and B against it.

Better and worse are words, so that they reach whoever sees no colours.
A line belongs here when it decides what a comparison is made of; what differs is found in
`_differences`.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rerank_async.bench import _charts, _drawing
from rerank_async.bench._differences import (
    Difference,
    Matched,
    caveats,
    figure_differences,
    matched,
    unmatched,
)
from rerank_async.bench._files import make_directory, write_whole
from rerank_async.bench._html import to_html
from rerank_async.bench._markdown import to_markdown
from rerank_async.bench._page import Block, Chart, Fold, Heading, Page, Points, Table, Text
from rerank_async.bench._report import draw_files
from rerank_async.bench._result import Benchmark
from rerank_async.bench._tables import knee_place
from rerank_async.bench._terminal import Column, show_line, show_table
from rerank_async.bench._words import (
    NOTHING,
    load_words,
    mode_words,
    moment,
    one_line,
    run_name,
    without_middle,
)

__all__ = ["show_comparison", "write_comparison"]

_BRIEF = ("requests/s", "p50 (ms)", "p99 (ms)", "failed")
_NOT_THE_SERVERS = "this may not be a comparison of the servers"
_NOISE = (
    "Differences are B against A; within 1% they count as the same. Two runs against one server "
    "differ too: repeat both before you believe a small difference."
)


def show_comparison(a: Benchmark, b: Benchmark, console: Console) -> None:
    """Print both side by side, and the difference in percent with its meaning in a word.

    Args:
        a: what `b` is compared with.
        b: the run that is compared with `a`.
        console: a terminal; or something else, which gets plain lines.
    """
    for letter, run in (("A", a), ("B", b)):
        show_line(console, f"{letter}: {_described(run)}", "bold")
    for caveat in caveats(a, b):
        show_line(console, f"Warning: {_NOT_THE_SERVERS}: {caveat}", "yellow")
    console.print()
    pairs = matched(a, b)
    if not pairs:
        show_line(console, "No load was held in both runs: there is nothing to compare.")
    elif len(pairs) > 1:
        show_table(console, _brief(pairs))
    for pair in pairs:
        # All figures of one level: of many the brief table is what one can read.
        if pair is _chosen(a, b, pairs):
            show_line(console, f"All figures at {load_words(pair.first)}", "bold")
            show_table(console, _full(figure_differences(pair)))
    for sentence in unmatched(a, b):
        show_line(console, f"Not compared, {sentence}")
    show_line(console, _knees(a, b))
    show_line(console, _NOISE, "dim")


def write_comparison(a: Benchmark, b: Benchmark, directory: Path) -> list[Path]:
    """Write the comparison into a directory, and say which files that are.

    Args:
        a: what `b` is compared with.
        b: the run that is compared with `a`.
        directory: the directory, which is made when it is not there; may be that of a report.

    Raises:
        InvalidRequestError: the directory cannot be made, or a file not written.
        RuntimeError: matplotlib is not installed; the message says how to install it.
    """
    make_directory(directory)
    with _drawing.style():
        charts, files = draw_files(_charts.draw_comparison(a, b), "comparison-")
    page = _page(a, b, charts)
    return [
        write_whole(directory / "comparison.md", to_markdown(page).encode()),
        write_whole(directory / "comparison.html", to_html(page).encode()),
        *(write_whole(directory / name, data) for name, data in files.items()),
    ]


def _described(run: Benchmark) -> str:
    return (
        f"{run_name(run)} ({one_line(run.target.model)} at {one_line(run.target.url)}, "
        f"{mode_words(run)}, {moment(run.started)})"
    )


def _chosen(a: Benchmark, b: Benchmark, pairs: list[Matched]) -> Matched:
    """The load whose figures are shown in full: A's knee, or B's, or the most that both had."""
    for run in (a, b):
        place = knee_place(run)
        for pair in pairs:
            if place is not None and run.levels[place] in (pair.first, pair.second):
                return pair
    return pairs[-1]


def _knees(a: Benchmark, b: Benchmark) -> str:
    words = []
    for letter, run in (("A", a), ("B", b)):
        place = knee_place(run)
        at = "none" if place is None else load_words(run.levels[place])
        words.append(f"{letter} {at}")
    return f"Knees: {', '.join(words)}."


# ── tables ──


def _brief(pairs: list[Matched]) -> list[Column]:
    found = [Column("load", [load_words(pair.first) for pair in pairs], 0)]
    for group, name in enumerate(_BRIEF):
        ones = [
            next((d for d in figure_differences(pair) if d.name == name), None) for pair in pairs
        ]
        found += [
            Column(f"{name} A", [d.text(d.before) if d else NOTHING for d in ones], group),
            Column("B", [d.text(d.after) if d else NOTHING for d in ones], group),
        ]
        # Of shares that are mostly nothing, the percentage of a difference says little.
        if name != "failed":
            words = [d.words if d else NOTHING for d in ones]
            found.append(Column("difference", words, group))
    return found


def _full(found: list[Difference]) -> list[Column]:
    return [
        Column("", [d.name for d in found], 0, is_text=True),
        Column("A", [d.text(d.before) for d in found], 1),
        Column("B", [d.text(d.after) for d in found], 1),
        Column("difference", [d.words for d in found], 1),
    ]


def _comparison_table(columns: list[Column]) -> Table:
    rows = tuple(zip(*(column.cells for column in columns), strict=True))
    return Table(tuple(column.name for column in columns), rows)


# ── the page ──


def _page(a: Benchmark, b: Benchmark, charts: list[Chart]) -> Page:
    blocks: list[Block] = []
    found = caveats(a, b)
    if found:
        blocks.append(Points(_NOT_THE_SERVERS, tuple(found), "warning"))
    blocks += [Text(f"{letter}: {_described(run)}") for letter, run in (("A", a), ("B", b))]
    pairs = matched(a, b)
    if pairs:
        chosen = _chosen(a, b, pairs)
        if len(pairs) > 1:
            blocks += [Heading("Every load that both have"), _comparison_table(_brief(pairs))]
        blocks += [
            Heading(f"At {load_words(chosen.first)}"),
            _comparison_table(_full(figure_differences(chosen))),
        ]
    else:
        blocks.append(Text("No load was held in both runs: there is nothing to compare."))
    alone = unmatched(a, b)
    if alone:
        blocks.append(Points("Not compared", tuple(alone)))
    blocks += [Text(_knees(a, b)), Text(_NOISE)]
    if charts:
        blocks += [Heading("Charts"), *charts]
    if len(pairs) > 1:
        blocks.append(Heading("All figures"))
        blocks += [
            Fold(
                f"At {load_words(pair.first)}",
                (_comparison_table(_full(figure_differences(pair))),),
            )
            for pair in pairs
        ]
    title = f"{without_middle(run_name(a), 60)} and {without_middle(run_name(b), 60)}"
    return Page(
        f"Rerank benchmarks: {title}",
        tuple(blocks),
        f"A was measured by rerank_async {a.rerank_async}, B by {b.rerank_async}.",
    )
