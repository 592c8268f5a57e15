"""The charts of a benchmark, as figures of matplotlib; where they are kept is no matter here.

Colours are those of Okabe and Ito, which people tell apart who see few colours; each line has a
marker and a dash of its own besides. A figure that lacks is a gap in its line, never a zero.
matplotlib is imported within functions: reading a benchmark must not need it.
A line belongs here when it says what a chart shows; axes, styles and files are in `_drawing`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from rerank_async.bench._drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    legend_below,
    load_axis,
    log_axis,
    new_figure,
    number_axis,
    title_of,
)
from rerank_async.bench._result import Benchmark, Latency, Level
from rerank_async.bench._tables import knee_place
from rerank_async.bench._words import load_words, run_name, tick, without_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["NAMES", "Drawn", "distributions", "draw", "draw_comparison"]

NAMES = ("throughput", "latency", "distribution", "timeline")
"""Every chart that there may be."""

# Buckets are a twentieth of a tenfold wide; where the one before is empty, its bound is not known.
_BUCKET = 10 ** (1 / 20)


@frozen
class Drawn:
    """A chart.

    Attributes:
        name: one of `NAMES`.
        title: what it shows.
        caption: a sentence that says how to read it.
        figure: matplotlib's figure.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@frozen
class _Style:
    color: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]


_SOLID = _Style(BLUE, "o", "-")
_PERCENTILES = (
    ("p50", "p50_ms", _Style(BLUE, "o", "-")),
    ("p90", "p90_ms", _Style(GREEN, "s", (0, (6, 2)))),
    ("p99", "p99_ms", _Style(ORANGE, "^", (0, (3, 2)))),
    ("p99.9", "p999_ms", _Style(VERMILLION, "D", (0, (1, 1)))),
)
# Two runs: A is filled and drawn through, B hollow and dashed.
_RUNS = (_Style(BLUE, "o", "-"), _Style(VERMILLION, "s", (0, (5, 2))))

_Points: TypeAlias = Sequence[tuple[float, float | None]]


def draw(benchmark: Benchmark) -> list[Drawn]:
    """The charts that this benchmark can fill: those over the load need more than one level."""
    found = []
    levels = benchmark.levels
    if len(levels) > 1:
        found.append(_throughput_chart(benchmark))
        if any(level.latency for level in levels):
            found.append(_latency_chart(benchmark))
    if distributions(benchmark):
        found.append(_distribution(benchmark))
    if any(level.timeline for level in levels):
        found.append(_timeline_chart(benchmark))
    return found


def draw_comparison(first: Benchmark, second: Benchmark) -> list[Drawn]:
    """The charts with two runs in each; those over the load only if it is the same kind of load."""
    runs = (first, second)
    modes = {level.mode for run in runs for level in run.levels}
    found = []
    if len(modes) == 1 and max(len(run.levels) for run in runs) > 1:
        found.append(_both_throughputs(runs))
        if any(level.latency for run in runs for level in run.levels):
            found.append(_both_latencies(runs))
    pair = _to_compare(first, second)
    if pair is not None:
        found.append(_both_distributions(pair))
    return found


# ── against the load ──


def _load_label(levels: Sequence[Level]) -> str:
    if any(level.mode == "open" for level in levels):
        return "offered load (requests/s)"
    return "concurrency (requests at once)"


def _line(axes: Axes, points: _Points, style: _Style, label: str, *, hollow: bool = False) -> None:
    axes.plot(
        [x for x, _ in points],
        [math.nan if y is None else y for _, y in points],
        color=style.color,
        linestyle=style.dash,
        marker=style.marker,
        # Many levels would be a chain of markers.
        markersize=5.5 if len(points) <= 15 else 3.5,
        markerfacecolor="none" if hollow else style.color,
        linewidth=1.8,
        label=label,
        zorder=3,
    )


def _mark_knee(axes: Axes, benchmark: Benchmark) -> None:
    place = knee_place(benchmark)
    if place is None:
        return
    load = benchmark.levels[place].load
    axes.axvline(load, color=INK, linestyle=(0, (4, 3)), linewidth=1, zorder=1, gid="knee")
    axes.annotate(
        f"knee: {load_words(benchmark.levels[place])}",
        (load, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        fontweight="bold",
    )


def _throughput_chart(benchmark: Benchmark) -> Drawn:
    levels = benchmark.levels
    figure_, (axes,) = new_figure(1)
    caption = "Requests that succeeded, for each load that was held."
    most = max(level.requests_per_s for level in levels)
    if levels[0].mode == "open":
        offered = [(level.load, level.load) for level in levels]
        style = _Style(GREY, "", (0, (1, 2)))
        _line(axes, offered, style, "as many as offered")
        caption += " Below the dotted line the server falls behind what is offered."
        # What is offered beyond reason must not press the rest flat.
        most = max(most, min(levels[-1].load, 1.6 * most))
    _line(axes, [(v.load, v.requests_per_s) for v in levels], _SOLID, "succeeded")
    if any(level.goodput for level in levels):
        good = [(v.load, v.goodput.requests_per_s if v.goodput else None) for v in levels]
        _line(axes, good, _Style(GREEN, "^", (0, (6, 2))), "goodput (in time)")
    ceiling = [(level.load, level.client.ceiling_requests_per_s) for level in levels]
    done = max(level.requests_per_s for level in levels)
    # A reader asks for it where it came near; where it did not, it would be out of the picture.
    near = [value for _, value in ceiling if value < 2 * done]
    if near:
        _line(axes, ceiling, _Style(PURPLE, "", (0, (3, 1, 1, 1))), "this client's ceiling")
        most = max([most, *near])
        caption += " The client's ceiling is what it could send, were it always busy."
    failed = [(level.load, level.requests_per_s) for level in levels if level.failed]
    if failed:
        axes.plot(
            [x for x, _ in failed],
            [y for _, y in failed],
            color=VERMILLION,
            marker="x",
            markersize=9,
            markeredgewidth=2,
            linestyle="none",
            label="some requests failed",
            zorder=4,
            # At zero it would be half a cross.
            clip_on=False,
        )
    load_axis(axes, [level.load for level in levels], _load_label(levels))
    number_axis(axes, "throughput (requests/s)", most)
    _mark_knee(axes, benchmark)
    title_of(figure_, "Throughput against load", _who(benchmark))
    legend_below(figure_, axes)
    return Drawn("throughput", "Throughput against load", caption, figure_)


def _latency_chart(benchmark: Benchmark) -> Drawn:
    levels = benchmark.levels
    figure_, (axes,) = new_figure(1)
    values = []
    for name, attribute, style in _PERCENTILES:
        points = [
            (level.load, None if level.latency is None else getattr(level.latency, attribute))
            for level in levels
        ]
        values += [value for _, value in points if value is not None]
        _line(axes, points, style, name)
    wanted = {level.goodput.within_ms for level in levels if level.goodput}
    for limit in sorted(wanted):
        values.append(limit)
        axes.axhline(
            limit, color=GREY, linestyle=(0, (1, 2)), linewidth=1.5, label=f"goal: {tick(limit)} ms"
        )
    load_axis(axes, [level.load for level in levels], _load_label(levels))
    log_axis(axes.yaxis, "latency (ms), log scale", values)
    _mark_knee(axes, benchmark)
    title_of(figure_, "Latency against load", _who(benchmark))
    legend_below(figure_, axes)
    caption = "Of requests that succeeded; a gap is a load at which none did."
    if levels[0].mode == "open":
        caption += " Counted from the moment at which a request was due, not from when it was sent."
    return Drawn("latency", "Latency percentiles against load", caption, figure_)


# ── one level from the inside ──


def distributions(benchmark: Benchmark) -> list[tuple[str, Level]]:
    """The levels whose distribution is worth a panel: the least load, the knee, the most."""
    knee = knee_place(benchmark)
    last = len(benchmark.levels) - 1
    places = [0, last // 2 if knee is None else knee, last]
    found = []
    for place in sorted(set(places)):
        level = benchmark.levels[place]
        if level.latency is not None and level.latency.buckets:
            found.append((load_words(level) + (" (knee)" if place == knee else ""), level))
    return found


def _staircase(latency: Latency) -> tuple[list[float], list[float]]:
    """Edges in milliseconds, and between each two of them the share of requests in percent."""
    edges: list[float] = []
    shares: list[float] = []
    for upper, number in latency.buckets:
        lower = max(edges[-1] if edges else 0.0, upper / _BUCKET)
        if not edges:
            edges.append(lower)
        # Rounded bounds are no gap.
        elif lower > edges[-1] * 1.001:
            shares.append(0.0)
            edges.append(lower)
        shares.append(100 * number / max(1, latency.count))
        edges.append(upper)
    return edges, shares


def _distribution(benchmark: Benchmark) -> Drawn:
    panels = distributions(benchmark)
    figure_, all_axes = new_figure(len(panels), height=1.5 + 1.35 * len(panels), share_x=True)
    seen: list[float] = []
    for axes, (name, level) in zip(all_axes, panels, strict=True):
        latency = level.latency
        assert latency is not None
        edges, shares = _staircase(latency)
        seen += [edges[0], max(edges[-1], latency.max_ms)]
        most = max(shares)
        axes.stairs(
            shares,
            edges,
            fill=True,
            color=SKY,
            label="from the intended send" if level.service else "requests",
        )
        if level.service is not None and level.service.buckets:
            edges, shares = _staircase(level.service)
            seen += [edges[0], edges[-1]]
            most = max(most, *shares)
            axes.stairs(
                shares,
                edges,
                color=INK,
                linestyle=(0, (3, 2)),
                linewidth=1.2,
                label="from the real send",
            )
        for value, style, label in (
            (latency.p50_ms, _Style(BLUE, "", "-"), "p50"),
            (latency.p99_ms, _Style(ORANGE, "", (0, (4, 2))), "p99"),
            (latency.max_ms, _Style(VERMILLION, "", (0, (1, 1))), "max"),
        ):
            axes.axvline(value, color=style.color, linestyle=style.dash, linewidth=1.8, label=label)
        number_axis(axes, "requests (%)", most, ticks=3)
        axes.set_title(name, loc="left", fontsize=9, fontweight="bold")
    log_axis(all_axes[-1].xaxis, "latency (ms), log scale", seen)
    title_of(figure_, "Distribution of latency", _who(benchmark))
    legend_below(figure_, *all_axes)
    caption = "How many requests of a hundred took how long; each bar is about 12% wide."
    if any(level.service for _, level in panels):
        caption += (
            " Dashed: what a benchmark that waits for the server would have seen of the same"
            " requests."
        )
    return Drawn("distribution", "Distribution of latency", caption, figure_)


def _timeline_chart(benchmark: Benchmark) -> Drawn:
    levels = benchmark.levels
    slices = [interval for level in levels for interval in level.timeline]
    has_errors = any(interval.failed or interval.throttles for interval in slices)
    has_latency = any(interval.p99_ms is not None for interval in slices)
    figure_, all_axes = new_figure(
        1 + has_latency + has_errors,
        height=2.6 + 1.5 * (has_latency + has_errors),
        share_x=True,
    )
    begins: list[float] = []
    end = 0.0
    for level in levels:
        begins.append(end)
        end += max(level.duration_s, *(i.at_s + i.seconds for i in level.timeline), 0.0)
    panels = iter(all_axes)
    documents = next(panels)
    rates = [(i.documents / i.seconds if i.seconds > 0 else None) for i in slices]
    _stairs(documents, levels, begins, rates, _SOLID, "documents/s")
    number_axis(documents, "documents/s", max(filter(None, rates), default=0.0), ticks=4)
    if has_latency:
        axes = next(panels)
        p50 = [interval.p50_ms for interval in slices]
        p99 = [interval.p99_ms for interval in slices]
        _stairs(axes, levels, begins, p50, _Style(GREEN, "", "-"), "p50 latency")
        _stairs(axes, levels, begins, p99, _Style(ORANGE, "", (0, (3, 1))), "p99 latency")
        log_axis(axes.yaxis, "latency (ms)", [v for v in (*p50, *p99) if v is not None], few=True)
    if has_errors:
        axes = next(panels)
        failed = [(i.failed / i.seconds if i.seconds > 0 else None) for i in slices]
        throttled = [(i.throttles / i.seconds if i.seconds > 0 else None) for i in slices]
        _stairs(axes, levels, begins, failed, _Style(VERMILLION, "", "-"), "failed requests/s")
        _stairs(axes, levels, begins, throttled, _Style(PURPLE, "", (0, (3, 1))), "throttles/s")
        number_axis(
            axes, "errors (1/s)", max(filter(None, failed + throttled), default=0.0), ticks=3
        )
    for axes in all_axes:
        for begin in begins[1:]:
            axes.axvline(begin, color=GREY, linewidth=0.5, alpha=0.6, zorder=1)
    _name_levels(documents, benchmark, begins, end)
    all_axes[-1].set_xlim(0, end or 1)
    all_axes[-1].set_xlabel(
        "measured time (s)" if len(levels) == 1 else "measured time (s), one load after another"
    )
    title_of(figure_, "Documents and errors over time", _who(benchmark))
    legend_below(figure_, *all_axes)
    caption = "Each step is a slice of the measured time; warm-ups are left out."
    if not has_errors:
        caption += " No request failed, and none was throttled."
    return Drawn("timeline", "Documents, latency and errors over time", caption, figure_)


def _stairs(
    axes: Axes,
    levels: Sequence[Level],
    begins: Sequence[float],
    values: Sequence[float | None],
    style: _Style,
    label: str,
) -> None:
    """A line of steps for each level, with gaps between them and where there is no value."""
    rest = iter(values)
    for begin, level in zip(begins, levels, strict=True):
        if not level.timeline:
            continue
        edges = [begin + interval.at_s for interval in level.timeline]
        last = level.timeline[-1]
        edges.append(max(begin + last.at_s + last.seconds, edges[-1]))
        axes.stairs(
            [math.nan if v is None else v for v in (next(rest) for _ in level.timeline)],
            edges,
            baseline=None,
            color=style.color,
            linestyle=style.dash,
            linewidth=1.6,
            label=label,
            zorder=3,
        )
        # One line in the legend for all of them.
        label = "_nolegend_"


def _name_levels(axes: Axes, benchmark: Benchmark, begins: Sequence[float], end: float) -> None:
    """The loads above their parts of the time, as many as there is room for."""
    levels = benchmark.levels
    if len(levels) == 1:
        return
    knee = knee_place(benchmark)
    bounds = list(zip(begins, [*begins[1:], end], strict=True))
    taken: list[tuple[float, float]] = []
    # The knee's name goes first, and the last one's: the others are where these leave room.
    for place in sorted(range(len(levels)), key=lambda i: (i != knee, i != len(levels) - 1, i)):
        text = tick(levels[place].load) + (" (knee)" if place == knee else "")
        middle = sum(bounds[place]) / 2
        half = end * 0.0065 * (len(text) + 1)
        if any(middle - half < right and left < middle + half for left, right in taken):
            continue
        taken.append((middle - half, middle + half))
        axes.annotate(
            text,
            (middle, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            fontweight="bold" if place == knee else "normal",
        )
    kind = "requests/s offered" if levels[0].mode == "open" else "requests at once"
    axes.set_title(f"above the steps: {kind}", loc="right", fontsize=8, pad=16)


# ── two runs ──


def _both_throughputs(runs: tuple[Benchmark, Benchmark]) -> Drawn:
    figure_, (axes,) = new_figure(1)
    everything = [level for run in runs for level in run.levels]
    for letter, run, style in zip("AB", runs, _RUNS, strict=True):
        points = [(level.load, level.requests_per_s) for level in run.levels]
        _line(axes, points, style, _run_name(letter, run), hollow=letter == "B")
    load_axis(axes, [level.load for level in everything], _load_label(everything))
    number_axis(axes, "throughput (requests/s)", max(v.requests_per_s for v in everything))
    title_of(figure_, "Throughput against load", "A and B")
    legend_below(figure_, axes)
    caption = "Requests that succeeded, for each load that was held: A filled, B hollow."
    return Drawn("throughput", "Throughput of both runs against load", caption, figure_)


def _both_latencies(runs: tuple[Benchmark, Benchmark]) -> Drawn:
    figure_, all_axes = new_figure(2, height=6.2, share_x=True)
    everything = [level for run in runs for level in run.levels]
    for axes, (name, attribute, _) in zip(
        all_axes, (_PERCENTILES[0], _PERCENTILES[2]), strict=True
    ):
        values = []
        for letter, run, style in zip("AB", runs, _RUNS, strict=True):
            points = [
                (level.load, None if level.latency is None else getattr(level.latency, attribute))
                for level in run.levels
            ]
            values += [value for _, value in points if value is not None]
            _line(axes, points, style, _run_name(letter, run), hollow=letter == "B")
        log_axis(axes.yaxis, f"{name} latency (ms)", values, few=True)
    load_axis(all_axes[-1], [level.load for level in everything], _load_label(everything))
    title_of(figure_, "Latency against load, log scale", "A and B")
    legend_below(figure_, *all_axes)
    caption = "Of requests that succeeded: A filled, B hollow; a gap is a load at which none did."
    return Drawn("latency", "Latency of both runs against load", caption, figure_)


def _to_compare(first: Benchmark, second: Benchmark) -> tuple[tuple[Benchmark, Level], ...] | None:
    """A level of each with the same load: a knee, or the most that both had."""
    theirs = {(level.mode, level.load): level for level in second.levels if level.latency}
    common = [v for v in first.levels if v.latency and (v.mode, v.load) in theirs]
    if not common:
        return None
    knees = [
        run.levels[place]
        for run in (first, second)
        for place in (knee_place(run),)
        if place is not None
    ]
    wanted = {(level.mode, level.load) for level in knees}
    ours = next((v for v in common if (v.mode, v.load) in wanted), common[-1])
    return ((first, ours), (second, theirs[ours.mode, ours.load]))


def _both_distributions(pair: tuple[tuple[Benchmark, Level], ...]) -> Drawn:
    figure_, (axes,) = new_figure(1)
    seen: list[float] = []
    most = 0.0
    for letter, (run, level), style in zip("AB", pair, _RUNS, strict=True):
        assert level.latency is not None
        edges, shares = _staircase(level.latency)
        if not shares:
            continue
        seen += [edges[0], edges[-1]]
        most = max(most, *shares)
        name = _run_name(letter, run)
        if letter == "A":
            axes.stairs(shares, edges, fill=True, color=SKY, label=name)
        else:
            axes.stairs(
                shares, edges, color=style.color, linestyle=style.dash, linewidth=1.8, label=name
            )
    log_axis(axes.xaxis, "latency (ms), log scale", seen)
    number_axis(axes, "requests (%)", most)
    at = load_words(pair[0][1])
    title_of(figure_, "Distribution of latency", f"at {at}")
    legend_below(figure_, axes)
    caption = f"How many requests of a hundred took how long, at {at}: A filled, B dashed."
    return Drawn("distribution", "Distribution of both runs' latency", caption, figure_)


def _run_name(letter: str, benchmark: Benchmark) -> str:
    return f"{letter}: {without_middle(run_name(benchmark), 36)}"


def _who(benchmark: Benchmark) -> str:
    model = without_middle(benchmark.target.model, 40)
    return f"{model}, {tick(round(benchmark.workload.mean_documents, 1))} documents a request"
