"""What a person sees of a benchmark that is under way: a table on a terminal, lines elsewhere.

A line belongs here when it turns the progress of `bench` into text on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from rerank_async._cli._screen import LINE_SECONDS, Screen, show
from rerank_async._cli._shared import count, duration, printable, shortened
from rerank_async.bench import BenchProgress, Level, LevelProgress

__all__ = ["BenchWatching"]

# Of a search, the levels that are over and still in the table.
_MOST_ROWS = 12

_COLUMNS = (
    *("req/s", "docs/s", "p50 ms", "p99 ms", "failed", "throttled"),
    *("in flight", "busy"),
)
# A narrower terminal shows no figure that is cut, but fewer of them.
_WIDE = 76
_LESS_WANTED = frozenset(("docs/s", "throttled", "in flight"))


class BenchWatching(Screen):
    """Shows progress; a context manager that leaves the terminal as it was.

    Args:
        quiet: show nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._done: list[BenchProgress] = []
        self._line_due = 0.0
        self._number = 0
        # Whether it was said of this level that nothing is answered.
        self._failing = False

    def __call__(self, progress: BenchProgress) -> None:
        """Show how far it is."""
        if self._quiet:
            return
        if self._live is not None:
            if progress.done is not None:
                self._done.append(progress)
            self._live.update(
                _levels_table(self._done[-_MOST_ROWS:], progress, self._console.width), refresh=True
            )
        elif progress.done is not None:
            show(f"{_load(progress)}: {_level_words(progress.done)}", sys.stderr)
        elif progress.now is not None:
            if progress.number != self._number:
                self._number = progress.number
                self._line_due = LINE_SECONDS
                self._failing = False
            if progress.now.problem and not self._failing:
                show(f"{_load(progress)}: {_failing(progress.now)}", sys.stderr)
            self._failing = bool(progress.now.problem)
            if progress.now.seconds >= self._line_due:
                self._line_due = progress.now.seconds + LINE_SECONDS
                words = _progress_words(progress.now)
                show(f"{_load(progress)}, {_phase(progress.now)}: {words}", sys.stderr)


# ── words ──


def _load(progress: BenchProgress) -> str:
    if progress.mode == "open":
        return f"{progress.load:,.6g} requests/s"
    return f"{progress.load:,.0f} at once"


def _phase(now: LevelProgress) -> str:
    if now.phase == "measuring" and now.seconds_left is not None:
        return f"{now.phase}, {duration(now.seconds_left)} left"
    return now.phase


def _progress_words(now: LevelProgress) -> str:
    return " · ".join(
        (
            f"{count(now.requests_per_s)} requests/s",
            f"p50 {_ms(now.p50_ms)} ms",
            f"p99 {_ms(now.p99_ms)} ms",
            f"failed {count(now.failed)}",
            f"throttled {count(now.throttled)}",
            f"{count(now.in_flight)} in flight",
            f"busy {now.busy:.0%}",
        )
    )


def _failing(now: LevelProgress) -> str:
    return f"nothing is answered: {shortened(printable(now.problem), 200)}"


def _level_words(level: Level) -> str:
    latency = level.latency
    return " · ".join(
        (
            f"{level.requests_per_s:,.1f} requests/s",
            f"{level.documents_per_s:,.0f} documents/s",
            f"p50 {_ms(None if latency is None else latency.p50_ms)} ms",
            f"p99 {_ms(None if latency is None else latency.p99_ms)} ms",
            f"failed {count(level.failed)}",
            f"throttled {count(level.throttles)}",
            f"busy {level.client.busy:.0%}",
        )
    )


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


# ── on a terminal ──


def _levels_table(done: Iterable[BenchProgress], progress: BenchProgress, width: int) -> Table:
    head = "rate" if progress.mode == "open" else "at once"
    columns = tuple(
        place
        for place, name in enumerate((head, *_COLUMNS))
        if width >= _WIDE or name not in _LESS_WANTED
    )
    table = Table(box=None, header_style="dim", pad_edge=False)
    for place in columns:
        table.add_column((head, *_COLUMNS)[place], justify="right", no_wrap=True)

    def add(*cells: str | Text) -> None:
        table.add_row(*(cells[place] for place in columns))

    for ended in done:
        level = ended.done
        if level is not None:
            latency = level.latency
            add(
                f"{ended.load:,.6g}",
                f"{level.requests_per_s:,.1f}",
                count(level.documents_per_s),
                _ms(None if latency is None else latency.p50_ms),
                _ms(None if latency is None else latency.p99_ms),
                _alarm(level.failed, "red"),
                _alarm(level.throttles, "yellow"),
                "",
                f"{level.client.busy:.0%}",
            )
    now = progress.now
    if now is not None:
        add(
            Text(f"{progress.load:,.6g}", style="bold"),
            f"{now.requests_per_s:,.1f}",
            count(now.documents_per_s),
            _ms(now.p50_ms),
            _ms(now.p99_ms),
            _alarm(now.failed, "red"),
            _alarm(now.throttled, "yellow"),
            count(now.in_flight),
            f"{now.busy:.0%}",
        )
        total = "" if progress.levels is None else f" of {progress.levels}"
        caption = f"level {progress.number}{total}, {_phase(now)}; Ctrl-C stops and reports"
        failing = f"\n{_failing(now)}" if now.problem else ""
        table.caption = Text(caption).append(failing, style="yellow")
        table.caption_justify = "left"
    return table


def _alarm(number: int, style: str) -> Text:
    return Text(count(number), style=style if number else "")
