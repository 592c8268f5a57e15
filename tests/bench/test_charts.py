"""What the charts show: their lines, axes and words, and that nothing covers anything."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.bench import _drawing
from rerank_async.bench._charts import NAMES, Drawn, distributions, draw, draw_comparison
from rerank_async.bench._drawing import log_ticks, png_of, svg_of
from rerank_async.bench._result import Benchmark
from tests.bench import made

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with _drawing.style():
        yield


def drawn(benchmark: Benchmark) -> dict[str, Drawn]:
    return {chart.name: chart for chart in draw(benchmark)}


def axes_of(chart: Drawn) -> list[Any]:
    return list(chart.figure.axes)


def line(axes: Any, label: str) -> Any:
    return next(found for found in axes.get_lines() if found.get_label() == label)


def legend_of(chart: Drawn) -> list[str]:
    return [text.get_text() for legend in chart.figure.legends for text in legend.get_texts()]


def texts_in(svg: bytes) -> list[str]:
    root = ET.fromstring(svg)
    return [
        "".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")
    ]


# ── which there are ──


def test_several_levels_fill_every_chart() -> None:
    assert tuple(drawn(made.benchmark())) == NAMES


def test_one_level_fills_those_that_look_inside_it() -> None:
    assert tuple(drawn(made.benchmark(made.level()))) == ("distribution", "timeline")


def test_where_everything_failed_there_is_no_latency_to_draw() -> None:
    charts = drawn(made.benchmark(made.failed_level(1), made.failed_level(2)))
    assert tuple(charts) == ("throughput", "timeline")
    assert list(line(axes_of(charts["throughput"])[0], "succeeded").get_ydata()) == [0, 0]


def test_a_level_without_a_timeline_is_no_obstacle() -> None:
    levels = (evolve(made.level(1), timeline=()), made.level(2))
    assert "timeline" in drawn(made.benchmark(*levels))
    assert "timeline" not in drawn(made.benchmark(evolve(made.level(1), timeline=())))


# ── throughput ──


def test_the_throughput_begins_at_zero_and_has_the_loads_that_were_held_as_ticks() -> None:
    chart = drawn(made.benchmark())["throughput"]
    (axes,) = axes_of(chart)
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylabel() == "throughput (requests/s)"
    assert axes.get_xlabel() == "concurrency (requests at once), log scale"
    assert axes.get_xscale() == "log"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["1", "2", "4", "8", "16", "32", "64", "128", "256"]
    points = line(axes, "succeeded")
    assert list(points.get_xdata()) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert points.get_ydata()[5] == pytest.approx(1092.68, abs=0.01)


def test_the_knee_is_a_line_with_its_load_above() -> None:
    for name in ("throughput", "latency"):
        (axes,) = axes_of(drawn(made.benchmark())[name])
        (knee,) = [found for found in axes.get_lines() if found.get_gid() == "knee"]
        assert list(knee.get_xdata()) == [32, 32]
        assert [text.get_text() for text in axes.texts] == ["knee: 32 at once"]
    (axes,) = axes_of(drawn(evolve(made.benchmark(), knee=None))["throughput"])
    assert not axes.texts


def test_the_ceiling_of_the_client_is_drawn_where_it_came_near() -> None:
    levels = made.closed_levels((1, 2, 4))
    assert "this client's ceiling" not in legend_of(drawn(made.benchmark(*levels))["throughput"])
    near = [evolve(v, client=evolve(v.client, ceiling_requests_per_s=600.0)) for v in levels]
    chart = drawn(made.benchmark(*near))["throughput"]
    (axes,) = axes_of(chart)
    assert list(line(axes, "this client's ceiling").get_ydata()) == [600, 600, 600]
    assert axes.get_ylim()[1] > 600
    assert "ceiling" in chart.caption
    # It sent late, but was not busy: its ceiling would be out of the picture.
    limited = [evolve(v, limited_by="client") for v in levels]
    assert "this client's ceiling" not in legend_of(drawn(made.benchmark(*limited))["throughput"])


def test_an_open_loop_shows_what_was_offered_and_what_was_in_time() -> None:
    chart = drawn(made.open_benchmark())["throughput"]
    (axes,) = axes_of(chart)
    assert axes.get_xlabel() == "offered load (requests/s)"
    offered = line(axes, "as many as offered")
    assert list(offered.get_xdata()) == list(offered.get_ydata())
    assert line(axes, "goodput (in time)").get_ydata()[-1] == pytest.approx(315)
    failed = line(axes, "some requests failed")
    assert list(failed.get_xdata()) == [1200, 1400]


def test_rates_beyond_all_reason_do_not_press_the_rest_flat() -> None:
    levels = [made.level(rate, 90.0, mode="open") for rate in (100, 10_000)]
    (axes,) = axes_of(drawn(made.benchmark(*levels))["throughput"])
    assert axes.get_ylim()[1] < 160


@pytest.mark.parametrize(
    "loads", [range(1, 31), [2**n for n in range(20)], range(1000, 1030), [1, 1000], [7, 8], [5]]
)
def test_labels_of_loads_do_not_touch_and_the_last_load_has_one(loads: Any) -> None:
    levels = [made.level(load, 100.0) for load in loads]
    if len(levels) == 1:
        levels *= 2
    chart = drawn(made.benchmark(*levels))["throughput"]
    chart.figure.draw_without_rendering()
    (axes,) = axes_of(chart)
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    for left, right in pairwise(boxes):
        assert left.x1 + 2 < right.x0
    assert labels[-1].get_text() == f"{max(loads):,}"


# ── latency ──


def test_four_percentiles_differ_in_colour_marker_and_dash() -> None:
    chart = drawn(made.benchmark())["latency"]
    (axes,) = axes_of(chart)
    assert legend_of(chart) == ["p50", "p90", "p99", "p99.9"]
    lines = [line(axes, name) for name in legend_of(chart)]
    for what in ("get_color", "get_marker", "_dash_pattern"):
        values = [getattr(one, what) for one in lines]
        seen = {str(value() if callable(value) else value) for value in values}
        assert len(seen) == 4, what
    assert axes.get_yscale() == "log"
    assert "ms" in axes.get_ylabel()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["5", "10", "20", "50", "100", "200", "500", "1,000"]


def test_a_load_at_which_nothing_was_answered_is_a_gap_and_no_zero() -> None:
    levels = (*made.closed_levels((1, 8)), made.failed_level(64), *made.closed_levels((512,)))
    (axes,) = axes_of(drawn(made.benchmark(*levels))["latency"])
    values = list(line(axes, "p99").get_ydata())
    assert math.isnan(values[2])
    assert not math.isnan(values[3])
    low, high = axes.get_xlim()
    assert low < 1
    assert high > 512


def test_a_load_at_the_end_that_failed_keeps_its_place_on_the_axis() -> None:
    levels = (*made.closed_levels((1, 8)), made.failed_level(64))
    (axes,) = axes_of(drawn(made.benchmark(*levels))["latency"])
    assert axes.get_xlim()[1] > 64


def test_the_goal_of_goodput_is_a_line_among_the_latencies() -> None:
    chart = drawn(made.open_benchmark())["latency"]
    assert "goal: 100 ms" in legend_of(chart)
    assert "due" in chart.caption


@given(st.lists(st.floats(1e-4, 1e7), min_size=1), st.integers(4, 9))
def test_ticks_of_a_log_axis_enclose_all_values_and_are_not_many(
    values: list[float], most: int
) -> None:
    ticks = log_ticks(values, most)
    assert ticks[0] < min(values)
    assert ticks[-1] > max(values)
    assert 2 <= len(ticks) <= most + 1
    assert ticks == sorted(ticks)
    assert {f"{tick:e}"[0] for tick in ticks} <= set("125")


# ── distribution ──


def test_the_distribution_shows_the_least_load_the_knee_and_the_most() -> None:
    names = [name for name, _ in distributions(made.benchmark())]
    assert names == ["1 at once", "32 at once (knee)", "256 at once"]
    chart = drawn(made.benchmark())["distribution"]
    assert [axes.get_title(loc="left") for axes in axes_of(chart)] == names


def test_the_bars_of_a_distribution_are_the_shares_of_the_buckets() -> None:
    latency = evolve(
        made.latency(), count=100, buckets=((10.0, 20), (11.22, 50), (50.0, 30)), max_ms=50.0
    )
    (axes,) = axes_of(drawn(made.benchmark(made.level(latency=latency)))["distribution"])
    values, edges, _ = axes.patches[0].get_data()
    assert list(values) == [20, 50, 0, 30]
    # The width of a bucket is known, also where the one before it is empty and left out.
    assert list(edges) == pytest.approx([8.913, 10, 11.22, 44.56, 50], rel=1e-3)
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylabel() == "requests (%)"
    drawn_at = {found.get_label(): found.get_xdata()[0] for found in axes.get_lines()}
    assert drawn_at == {"p50": latency.p50_ms, "p99": latency.p99_ms, "max": 50.0}


def test_an_open_loop_shows_what_waiting_for_the_server_would_have_hidden() -> None:
    chart = drawn(made.open_benchmark())["distribution"]
    assert "from the real send" in legend_of(chart)
    assert "waits for the server" in chart.caption


# ── time ──


def test_the_timeline_has_documents_latency_and_errors_with_units() -> None:
    chart = drawn(made.open_benchmark())["timeline"]
    panels = axes_of(chart)
    assert [axes.get_ylabel() for axes in panels] == ["documents/s", "latency (ms)", "errors (1/s)"]
    assert panels[-1].get_xlabel() == "measured time (s), one load after another"
    assert {"failed requests/s", "throttles/s"} <= set(legend_of(chart))
    # Each level begins where the one before ended.
    begins = [patch.get_data().edges[0] for patch in panels[0].patches]
    assert begins == pytest.approx([20.4 * number for number in range(7)])
    # The last slice is short, and its rate is by the second all the same.
    first = panels[0].patches[0].get_data()
    assert first.values[-1] == pytest.approx(
        100 * round(200 * 0.4 * (1 + 0.06 * math.sin(34))) / 0.4
    )


def test_without_errors_there_is_no_empty_panel_but_a_sentence() -> None:
    chart = drawn(made.benchmark())["timeline"]
    assert len(axes_of(chart)) == 2
    assert "No request failed, and none was throttled." in chart.caption


def test_a_slice_in_which_nothing_succeeded_is_a_gap_in_the_latency() -> None:
    level = made.level()
    slices = list(level.timeline)
    slices[3] = evolve(slices[3], p50_ms=None, p99_ms=None, succeeded=0, documents=0)
    chart = drawn(made.benchmark(evolve(level, timeline=tuple(slices))))["timeline"]
    documents, latency = axes_of(chart)
    assert math.isnan(latency.patches[0].get_data().values[3])
    assert documents.patches[0].get_data().values[3] == 0


def test_of_thirty_levels_the_knee_is_named_above_the_time() -> None:
    chart = drawn(made.benchmark(*made.closed_levels(range(1, 31)), knee=12))["timeline"]
    names = [text.get_text() for text in axes_of(chart)[0].texts]
    assert "13 (knee)" in names
    assert "30" in names
    chart.figure.draw_without_rendering()
    boxes = sorted(
        (text.get_window_extent() for text in axes_of(chart)[0].texts), key=lambda box: box.x0
    )
    for left, right in pairwise(boxes):
        assert left.x1 < right.x0


# ── two runs ──


def test_both_runs_are_in_one_chart_and_told_apart_by_more_than_colour() -> None:
    other = made.benchmark(*made.closed_levels((1, 16, 512)), name="two L4")
    charts = {chart.name: chart for chart in draw_comparison(made.benchmark(), other)}
    assert set(charts) == {"throughput", "latency", "distribution"}
    (axes,) = axes_of(charts["throughput"])
    a, b = line(axes, "A: bge on one L4"), line(axes, "B: two L4")
    assert list(b.get_xdata()) == [1, 16, 512]
    assert a.get_marker() != b.get_marker()
    assert a.get_linestyle() != b.get_linestyle()
    assert "A: bge on one L4" in legend_of(charts["distribution"])


def test_loads_of_another_kind_are_not_put_on_one_axis() -> None:
    assert draw_comparison(made.benchmark(), made.open_benchmark()) == []


# ── what is kept ──


@pytest.mark.parametrize(
    "benchmark",
    [
        made.benchmark(),
        made.open_benchmark(),
        made.benchmark(made.level()),
        made.benchmark(*made.closed_levels(range(1, 61, 2)), knee=0),
        made.benchmark(*made.closed_levels((1, 8, 64)), made.failed_level(512), knee=2),
    ],
    ids=["closed", "open", "one", "thirty", "failing"],
)
def test_no_legend_title_or_name_covers_data_or_leaves_the_picture(benchmark: Benchmark) -> None:
    for chart in draw(benchmark):
        figure = chart.figure
        figure.draw_without_rendering()
        whole = figure.bbox
        outside = [legend.get_window_extent() for legend in figure.legends]
        assert figure._suptitle is not None  # type: ignore[attr-defined]
        outside.append(figure._suptitle.get_window_extent())  # type: ignore[attr-defined]
        for axes in axes_of(chart):
            for box in outside:
                assert not axes.get_window_extent().overlaps(box), chart.name
            outside += [text.get_window_extent() for text in axes.texts]
        for box in outside:
            assert box.x0 >= -1, chart.name
            assert box.x1 <= whole.x1 + 1, chart.name
            assert box.y0 >= -1, chart.name
            assert box.y1 <= whole.y1 + 1, chart.name


def test_an_svg_holds_its_words_as_text_and_nothing_from_elsewhere() -> None:
    svg = svg_of(drawn(made.benchmark())["throughput"].figure, "throughput")
    texts = texts_in(svg)
    assert "throughput (requests/s)" in texts
    assert "knee: 32 at once" in texts
    assert "1,250" in texts
    assert b"<metadata" not in svg
    assert b"Matplotlib" not in svg
    root = ET.fromstring(svg)
    ids = [node.get("id", "") for node in root.iter() if node.get("id")]
    assert ids
    assert all(name.startswith("throughput-") for name in ids)
    for node in root.iter():
        for key, value in node.attrib.items():
            if key.endswith("href"):
                assert value.removeprefix("#") in ids


def test_a_hostile_name_is_text_and_no_formula() -> None:
    name = "<script>alert('$x_1$')</script> & \x00\x1b 日本"
    benchmark = made.benchmark(target=evolve(made.TARGET, model=name))
    for chart in draw(benchmark):
        svg = svg_of(chart.figure, chart.name)
        assert any("<script>alert('$x_1$')" in text for text in texts_in(svg)), chart.name
        png_of(chart.figure)


def test_a_long_name_is_cut_in_its_middle_and_stays_within_the_picture() -> None:
    benchmark = made.benchmark(target=evolve(made.TARGET, model="W" * 300), name="M" * 300)
    for chart in (*draw(benchmark), *draw_comparison(benchmark, benchmark)):
        chart.figure.draw_without_rendering()
        for text in (chart.figure._suptitle, *chart.figure.legends):  # type: ignore[attr-defined]
            box = text.get_window_extent()
            assert box.x0 >= -1
            assert box.x1 <= chart.figure.bbox.x1 + 1


def test_the_style_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31}), _drawing.style():
        assert matplotlib.rcParams["font.size"] == 10
    with matplotlib.rc_context({"font.size": 31}):
        with _drawing.style():
            pass
        assert matplotlib.rcParams["font.size"] == 31
