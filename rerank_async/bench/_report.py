"""What a person sees of one benchmark: on the terminal, and in a directory of files.

A line belongs here when it decides what a report is made of. What the figures are called is in
`_tables`, how they look in `_terminal`, `_markdown`, `_html` and `_charts`.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rerank_async.bench import _charts, _drawing
from rerank_async.bench._files import make_directory, remove, write_whole
from rerank_async.bench._html import to_html
from rerank_async.bench._markdown import to_markdown
from rerank_async.bench._page import Block, Chart, Fold, Heading, Page, Points, Table, Text
from rerank_async.bench._result import Benchmark, Level, to_json
from rerank_async.bench._tables import (
    KNEE,
    circumstances,
    columns,
    details,
    documents_words,
    goal_sentence,
    headline,
    knee_place,
    knee_sentence,
    level_to_detail,
    levels_head,
    levels_rows,
    remarks,
)
from rerank_async.bench._terminal import Column, show_line, show_list, show_table
from rerank_async.bench._words import (
    load_words,
    mode_words,
    moment,
    one_line,
    run_name,
    who_limited,
    without_middle,
)

__all__ = ["check_installed", "draw_files", "page_of", "show_report", "write_report"]

check_installed = _drawing.check_installed

_TITLE = "Rerank Benchmark Result"


def show_report(benchmark: Benchmark, console: Console) -> None:
    """Print the figures: of one level as a list, of several as a table and the knee's as a list.

    Args:
        benchmark: a benchmark of at least one level.
        console: a terminal; or something else, which gets plain lines.
    """
    target = benchmark.target
    show_line(console, f"{run_name(benchmark)}: {target.model} at {target.url}", "bold")
    documents = documents_words(benchmark)
    show_line(console, f"{mode_words(benchmark)}; documents per request: {documents}")
    for remark in remarks(benchmark):
        show_line(console, f"Note: {remark}", "yellow")
    console.print()
    if len(benchmark.levels) == 1:
        show_list(console, _TITLE, details(benchmark.levels[0]))
        return
    knee = knee_place(benchmark)
    # A cut goes between throughput, latency and the rest, if there has to be one.
    groups = {"req/s": 1, "docs/s": 1, "mean": 2, "p50": 2, "p99": 2, "p99.9": 2}
    found = [
        Column(name, cells, groups.get(name, 3), is_text=name == "limit")
        for name, cells in columns(benchmark)
    ]
    show_table(console, found, frozenset(() if knee is None else (knee,)))
    offered = "requests/s" if benchmark.levels[0].mode == "open" else "requests at once"
    mark = "" if knee is None else f" {KNEE} is the knee."
    show_line(console, f"Load in {offered}, latencies in milliseconds.{mark}", "dim")
    show_line(console, knee_sentence(benchmark))
    if goal := goal_sentence(benchmark):
        show_line(console, goal)
    console.print()
    place, what = level_to_detail(benchmark)
    level = benchmark.levels[place]
    show_list(console, f"{load_words(level)}, {what}", details(level))


def write_report(benchmark: Benchmark, directory: Path) -> list[Path]:
    """Write the figures and charts into a directory, and say which files that are.

    The JSON comes first, so that it is kept whatever becomes of the others. Charts of an earlier
    report in this directory that this one does not have are removed.

    Args:
        benchmark: a benchmark of at least one level.
        directory: the directory, which is made when it is not there.

    Raises:
        InvalidRequestError: the directory cannot be made, or a file not written.
        RuntimeError: matplotlib is not installed; the message says how to install it.
    """
    make_directory(directory)
    kept = directory / "benchmark.json"
    is_ours = kept.exists()
    written = [write_whole(kept, to_json(benchmark))]
    with _drawing.style():
        charts, files = draw_files(_charts.draw(benchmark))
    page = page_of(benchmark, charts)
    written.append(write_whole(directory / "benchmark.md", to_markdown(page).encode()))
    written.append(write_whole(directory / "benchmark.html", to_html(page).encode()))
    written += [write_whole(directory / name, data) for name, data in files.items()]
    if is_ours:
        every = {f"{name}.{kind}" for name in _charts.NAMES for kind in ("svg", "png")}
        remove(directory / name for name in sorted(every - set(files)))
    return written


def draw_files(
    charts: list[_charts.Drawn], prefix: str = ""
) -> tuple[list[Chart], dict[str, bytes]]:
    """Charts for a page, and their files by name; to be called within `_drawing.style`."""
    found: list[Chart] = []
    files: dict[str, bytes] = {}
    for chart in charts:
        name = prefix + chart.name
        svg = _drawing.svg_of(chart.figure, name)
        found.append(Chart(name, chart.title, chart.caption, svg))
        files[f"{name}.svg"] = svg
        files[f"{name}.png"] = _drawing.png_of(chart.figure)
    return found, files


# ── the page ──


def page_of(benchmark: Benchmark, charts: list[Chart]) -> Page:
    """What stands on the written report."""
    levels = benchmark.levels
    place, what = level_to_detail(benchmark)
    level = levels[place]
    blocks: list[Block] = []
    found = remarks(benchmark)
    if found:
        blocks.append(Points("before you believe the figures", found, "warning"))
    one = len(levels) == 1
    blocks += [
        Text(
            f"{one_line(benchmark.target.model)} at {one_line(benchmark.target.url)}, "
            f"{mode_words(benchmark)}, {moment(benchmark.started)}."
        ),
        Heading(f"At {load_words(level)}" + ("" if one else f", {what}")),
        Table((), tuple(headline(level)), big=True),
        Text(f"Limited by {who_limited(level.limited_by)}. {one_line(level.why)}"),
    ]
    if not one:
        knee = knee_place(benchmark)
        marked = frozenset(() if knee is None else (knee,))
        head = levels_head(benchmark)
        blocks += [
            Text(" ".join(filter(None, (knee_sentence(benchmark), goal_sentence(benchmark))))),
            Heading("Every load"),
            Table(head, levels_rows(benchmark), marked, frozenset({len(head) - 1})),
        ]
    blocks += [
        *([Heading("Charts"), *charts] if charts else [Text("No request succeeded: no charts.")]),
        Heading("All figures"),
        *(Fold(f"At {load_words(v)}", _lists(v)) for v in levels),
        Heading("How it was measured"),
        Table((), tuple(circumstances(benchmark)), words=frozenset({0, 1})),
    ]
    return Page(
        f"Rerank benchmark: {without_middle(run_name(benchmark), 120)}",
        tuple(blocks),
        f"Written by rerank_async {benchmark.rerank_async}; the figures in full are in "
        "benchmark.json.",
    )


def _lists(level: Level) -> tuple[Text | Table, ...]:
    blocks: list[Text | Table] = []
    for heading, rows in details(level):
        if heading:
            blocks.append(Text(heading))
        blocks.append(Table((), tuple(rows), words=frozenset({0, 1})))
    return tuple(blocks)
