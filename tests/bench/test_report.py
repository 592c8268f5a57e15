"""What the terminal shows and what a directory holds; and how numbers are written."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rerank_async import InvalidRequestError
from rerank_async.bench._report import show_report, write_report
from rerank_async.bench._result import Benchmark, Goodput, read_benchmark
from rerank_async.bench._tables import columns
from rerank_async.bench._words import (
    change,
    figure,
    moment,
    one_line,
    share,
    tick,
    without_middle,
)
from tests.bench import made


def shown(benchmark: Benchmark, *, width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    # What is measured is the text; colours would be between the words.
    show_report(
        benchmark,
        Console(
            file=file,
            width=width,
            force_terminal=terminal,
            color_system="truecolor" if terminal else None,
            legacy_windows=False,
        ),
    )
    return file.getvalue()


def pairs_in(text: str) -> dict[str, str]:
    return {
        name.strip(): value.strip()
        for name, value in re.findall(r"^(.{1,40}?): +(\S.*)$", text, re.MULTILINE)
    }


# ── numbers ──


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1_234_567.8, "1,234,568"),
        (999.6, "1,000"),
        (99.96, "100"),
        (98.54, "98.5"),
        (9.996, "10.0"),
        (7.254, "7.25"),
        (0.031249, "0.0312"),
        (-12.34, "-12.3"),
        (1e-9, "0"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_a_figure_has_three_digits_and_all_of_a_whole_number(
    value: float | None, text: str
) -> None:
    assert figure(value) == text


@given(st.floats(1e-5, 1e12))
def test_a_figure_is_read_back_within_half_a_percent(value: float) -> None:
    text = figure(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.00501)
    assert len(re.sub(r"[,.]", "", text).lstrip("0")) >= 3


@given(st.floats(1e-5, 1e9), st.floats(1e-5, 1e9))
def test_figures_stand_in_the_order_of_their_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert float(figure(low).replace(",", "")) <= float(figure(high).replace(",", ""))


@given(st.floats(0, 1))
def test_only_all_is_100_percent_and_only_nothing_is_0(value: float) -> None:
    text = share(value)
    assert (text == "100%") == (value == 1)
    assert (text == "0%") == (value == 0)
    if text[0] not in "<>":
        assert float(text.removesuffix("%")) == pytest.approx(value * 100, abs=0.0501)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (0.5, "0.5"), (1024.0, "1,024"), (2.50, "2.5"), (0, "0"), (-0.0, "0")],
)
def test_a_tick_is_as_short_as_it_can_be(value: float, text: str) -> None:
    assert tick(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (100, 112.3, "+12.3%"),
        (100, 95, "-5.0%"),
        (100, 0, "-100.0%"),
        (3, 3.0001, "0%"),
        (0, 0, "0%"),
        (0, 5, "from 0"),
        (1, 340, "340 times"),
        (None, 1, "–"),
        (1, None, "–"),
    ],
)
def test_a_change_is_in_percent_of_the_one_before(
    before: float | None, after: float | None, text: str
) -> None:
    assert change(before, after) == text


@given(st.text(), st.integers(5, 40))
def test_a_shortened_text_is_printable_within_its_length_and_keeps_both_ends(
    text: str, most: int
) -> None:
    short = without_middle(text, most)
    assert len(short) <= most
    assert short.isprintable()
    whole = one_line(text)
    if len(whole) > most:
        head, _, tail = short.partition("…") if "…" not in whole else (short[:1], "", short[-1])
        assert whole.startswith(head)
        assert whole.endswith(tail)
    else:
        assert short == whole


def test_a_moment_that_is_none_stands_as_it_is() -> None:
    assert moment("2026-03-02T09:30:00+00:00") == "2026-03-02 09:30:00 UTC"
    assert moment("2026-03-02T11:30:00+02:00") == "2026-03-02 09:30:00 UTC"
    assert moment("yesterday\x1b[2J") == "yesterday\N{REPLACEMENT CHARACTER}[2J"


# ── one level on the terminal ──


def test_one_level_is_a_list_with_the_names_that_people_know() -> None:
    level = made.level(
        16, 800.0, failures={"ServerError": 3, "RequestTimeoutError": 1200}, throttles=17, retries=5
    )
    text = shown(made.benchmark(level))
    assert "= Rerank Benchmark Result =" in text
    rows = pairs_in(text)
    assert rows["Successful requests"] == "16,320"
    assert rows["Failed requests"] == "1,203"
    # The most frequent kind is the first.
    assert text.index("RequestTimeoutError:") < text.index("ServerError:")
    assert rows["RequestTimeoutError"] == "1,200"
    assert rows["Maximum request concurrency"] == "16"
    assert rows["Request throughput (req/s)"] == "800"
    assert rows["Document throughput (doc/s)"] == "80,000"
    assert rows["Token throughput (tok/s)"] == "14,720,000"
    assert rows["Median E2EL (ms)"] == "20.0"
    assert level.latency is not None
    assert rows["P99.9 E2EL (ms)"] == figure(level.latency.p999_ms)
    assert rows["Max E2EL (ms)"] == figure(level.latency.max_ms)
    assert rows["Throttles (429, 503, 529)"] == "17"
    assert rows["Retries"] == "5"
    assert rows["Ceiling (req/s)"] == "3,226"
    assert rows["Limited by"] == "the server"
    assert level.why in text


def test_what_the_server_did_not_report_is_said_and_not_a_zero() -> None:
    rows = pairs_in(shown(made.benchmark(made.level(tokens=None, tokens_per_s=None))))
    assert rows["Token throughput (tok/s)"] == "not reported with every answer"


def test_a_level_in_which_all_failed_says_so_and_shows_no_latency() -> None:
    text = shown(made.benchmark(made.failed_level()))
    assert pairs_in(text)["E2EL"] == "no request succeeded"
    assert "Median" not in text


def test_the_highest_percentile_of_few_requests_is_called_the_maximum() -> None:
    level = made.level(latency=made.latency(12.0, count=999))
    assert pairs_in(shown(made.benchmark(level)))["P99.9 E2EL (ms)"].endswith(" (the maximum)")
    level = made.level(latency=made.latency(12.0, count=1000))
    assert "the maximum" not in shown(made.benchmark(level))


@pytest.mark.parametrize(("is_met", "word"), [(True, "met"), (False, "missed")])
def test_a_goodput_that_was_asked_for_says_whether_it_was_reached(is_met: bool, word: str) -> None:
    good = Goodput(99.0, 100.0, 750.5, 0.9381, is_met)
    rows = pairs_in(shown(made.benchmark(made.level(goodput=good))))
    assert rows["Request goodput (req/s)"] == "750" or rows["Request goodput (req/s)"] == "751"
    assert rows["Answered within 100 ms"] == "93.8%"
    assert rows["Goal of 99%"] == word


@pytest.mark.parametrize(
    ("met", "words"),
    [
        ((True, True, False), "is met up to 2 at once."),
        ((True, False, True), "is met up to 1 at once."),
        ((False, False, True), "is missed at 1 at once already."),
    ],
)
def test_of_several_loads_the_highest_that_meets_the_goal_is_named(
    met: tuple[bool, ...], words: str
) -> None:
    levels = [
        made.level(load, goodput=Goodput(99.0, 100.0, 750.5, 0.9381, is_met))
        for load, is_met in enumerate(met, 1)
    ]
    text = " ".join(shown(made.benchmark(*levels)).split())
    assert f"The goal, 99% within 100 ms, {words}" in text


def test_an_open_loop_shows_both_latencies_and_how_late_it_sent() -> None:
    rows = pairs_in(shown(made.benchmark(made.level(200, 200.0, mode="open"))))
    assert rows["Request rate configured (req/s)"] == "200"
    assert rows["Median E2EL (ms)"] == "14.0"
    assert rows["Median service (ms)"] == "9.80"
    assert rows["P99 send lag (ms)"] == "1.90"


def test_a_run_without_a_name_is_called_by_its_model() -> None:
    assert shown(made.benchmark(made.level(), name="")).startswith("bge-reranker-v2-m3: ")


def test_what_one_should_know_stands_above_the_figures() -> None:
    text = shown(made.benchmark(made.level(limited_by="client"), notes=("The disk was full.",)))
    assert text.index("Note: The disk was full.") < text.index("Successful")
    assert "Note: This client was the limit at 16 at once" in text


# ── several levels on the terminal ──


@pytest.mark.parametrize("width", [80, 120])
def test_several_levels_are_a_table_that_fits_and_marks_the_knee(width: int) -> None:
    text = shown(made.benchmark(), width=width, terminal=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= width
    lines = plain.splitlines()
    head = next(line for line in lines if line.startswith("load"))
    for name in [
        "req/s",
        "docs/s",
        "mean",
        "p50",
        "p99",
        "p99.9",
        "failed",
        "throttled",
        "busy",
        "limit",
    ]:
        assert name in head.split()
    rows = [line.split() for line in lines[lines.index(head) + 1 :][:9]]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16", "32*", "64", "128", "256"]
    assert rows[5] == [
        "32*",
        "1,093",
        "109,268",
        "31.3",
        "29.3",
        "72.6",
        "112",
        "0",
        "0",
        "34%",
        "server",
    ]
    assert "The knee is at 32 at once. From here on" in plain
    assert "= 32 at once, the knee =" in plain
    # Nothing but colours and bold print tells a terminal from a pipe there.
    assert "\x1b[1m" in text


def test_a_table_that_is_too_wide_goes_on_below_with_the_loads_again() -> None:
    text = shown(made.open_benchmark())
    heads = [line.split() for line in text.splitlines() if line.lstrip().startswith("load ")]
    assert len(heads) == 2
    assert heads[0] == ["load", "req/s", "docs/s", "mean", "p50", "p99", "p99.9"]
    assert heads[1] == ["load", "failed", "throttled", "goodput", "busy", "limit"]
    assert len(re.findall(r"^ *1,000\* ", text, re.MULTILINE)) == 2
    assert max(len(line) for line in text.splitlines() if line.strip().startswith("1,")) <= 80


def test_a_pipe_gets_plain_lines_and_no_sentence_is_cut() -> None:
    benchmark = made.benchmark(notes=("word " * 60 + "end",))
    text = shown(benchmark)
    assert "\x1b" not in text
    assert text.isascii() or set(re.findall(r"[^\x00-\x7f]", text)) <= {"–", "µ"}
    assert f"Note: {'word ' * 60}end" in text


def test_without_a_knee_the_load_with_the_most_answers_is_shown_in_full() -> None:
    benchmark = evolve(made.benchmark(), knee=None)
    text = shown(benchmark)
    assert "No knee was found" in text
    assert "= 256 at once, the most requests/s =" in text
    assert "*" not in text


def test_a_knee_beyond_the_levels_counts_as_none() -> None:
    benchmark = made.benchmark()
    assert benchmark.knee is not None
    for place in (9, -1):
        text = shown(evolve(benchmark, knee=evolve(benchmark.knee, level=place)))
        assert "No knee was found" in text


def test_a_level_without_latency_has_dashes_in_the_table() -> None:
    benchmark = made.benchmark(*made.closed_levels((1, 8)), made.failed_level(64), knee=1)
    cells = dict(columns(benchmark))
    assert cells["p99"][2] == "–"
    assert cells["req/s"][2] == "0"
    assert cells["failed"][2] == "2,000"


def test_nothing_from_outside_reaches_the_terminal_as_a_command() -> None:
    evil = "\x1b[2J[red]x[/red]\r\n"
    level = made.level(failures={evil: 1}, why=evil)
    benchmark = made.benchmark(
        level,
        name=evil,
        target=evolve(made.TARGET, model=evil, url=evil, dialect=evil),
        notes=(evil,),
    )
    text = shown(benchmark)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "[red]x[/red]" in text


# ── the directory ──


def test_a_report_is_these_files_and_its_json_is_read_back(tmp_path: Path) -> None:
    benchmark = made.benchmark()
    written = write_report(benchmark, tmp_path / "new" / "report")
    assert {path.name for path in written} == {
        "benchmark.json",
        "benchmark.md",
        "benchmark.html",
        *(
            f"{chart}.{kind}"
            for chart in ("throughput", "latency", "distribution", "timeline")
            for kind in ("svg", "png")
        ),
    }
    # Nothing that is half written is left.
    assert sorted(written) == sorted((tmp_path / "new" / "report").iterdir())
    assert read_benchmark(written[0]) == benchmark


def test_one_level_has_no_charts_over_the_load(tmp_path: Path) -> None:
    names = {path.name for path in write_report(made.benchmark(made.level()), tmp_path)}
    assert "distribution.svg" in names
    assert "timeline.png" in names
    assert not any(name.startswith(("throughput", "latency")) for name in names)


def test_a_second_report_takes_the_place_of_the_first_and_leaves_other_files(
    tmp_path: Path,
) -> None:
    write_report(made.benchmark(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    written = write_report(made.benchmark(made.level()), tmp_path)
    assert set(tmp_path.iterdir()) == {*written, tmp_path / "notes.txt"}


def test_pictures_of_others_stay_where_no_report_was(tmp_path: Path) -> None:
    (tmp_path / "latency.png").write_bytes(b"mine")
    write_report(made.benchmark(made.level()), tmp_path)
    assert (tmp_path / "latency.png").read_bytes() == b"mine"


def test_the_files_of_one_benchmark_do_not_differ_between_two_runs(tmp_path: Path) -> None:
    one = write_report(made.open_benchmark(), tmp_path / "one")
    # Another process: other hashes, other addresses.
    code = (
        "from pathlib import Path; from tests.bench import made;"
        "from rerank_async.bench._report import write_report;"
        f"write_report(made.open_benchmark(), Path({str(tmp_path / 'two')!r}))"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
    for path in one:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequestError, match=re.escape(str(tmp_path / "file" / "report"))):
        write_report(made.benchmark(), tmp_path / "file" / "report")
    with pytest.raises(InvalidRequestError, match="file"):
        write_report(made.benchmark(), tmp_path / "file")


def test_a_file_that_cannot_be_written_is_named_and_nothing_half_done_is_left(
    tmp_path: Path,
) -> None:
    (tmp_path / "benchmark.md").mkdir()
    (tmp_path / "benchmark.md" / "x").write_text("")
    with pytest.raises(InvalidRequestError, match=r"benchmark\.md"):
        write_report(made.benchmark(made.level()), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.json", "benchmark.md"}


def test_without_matplotlib_the_json_is_kept_and_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    benchmark = made.benchmark()
    with pytest.raises(RuntimeError, match=r'pip install "rerank-async\[bench\]"') as caught:
        write_report(benchmark, tmp_path)
    assert "\n" not in str(caught.value)
    assert read_benchmark(tmp_path / "benchmark.json") == benchmark
    assert "Successful requests" in shown(benchmark)


def test_what_is_shown_does_not_import_matplotlib() -> None:
    code = (
        "import sys, rerank_async.bench._report, rerank_async.bench._compare;"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
