"""Which figures of a benchmark are shown, in what order, and what they are called.

The names are those of vLLM's `bench serve`, where it has one, and of GenAI-Perf: E2EL is the
end-to-end latency of a request. Terminal, Markdown and HTML show the same.
A line belongs here when it chooses figures; how a number is written is in `_words`.
"""

from __future__ import annotations

from typing import TypeAlias

from rerank_async.bench._result import Benchmark, Latency, Level
from rerank_async.bench._words import (
    NOTHING,
    amount,
    figure,
    kept,
    load_words,
    mode_words,
    moment,
    one_line,
    share,
    tick,
    who_limited,
)

__all__ = [
    "KNEE",
    "Row",
    "Section",
    "circumstances",
    "columns",
    "details",
    "documents_words",
    "goal_sentence",
    "headline",
    "knee_place",
    "knee_sentence",
    "level_to_detail",
    "levels_head",
    "levels_rows",
    "percentiles",
    "remarks",
]

Row: TypeAlias = tuple[str, str]
Section: TypeAlias = tuple[str, list[Row]]

KNEE = "*"
"""What marks the knee where there is room for one character."""


def knee_place(benchmark: Benchmark) -> int | None:
    """The knee's place among the levels, if it has one: the file may be somebody else's."""
    knee = benchmark.knee
    if knee is None or not 0 <= knee.level < len(benchmark.levels):
        return None
    return knee.level


def knee_sentence(benchmark: Benchmark) -> str:
    """Where the knee is, and why there."""
    place = knee_place(benchmark)
    if place is None or benchmark.knee is None:
        return "No knee was found, or it was not looked for."
    return f"The knee is at {load_words(benchmark.levels[place])}. {one_line(benchmark.knee.why)}"


def goal_sentence(benchmark: Benchmark) -> str | None:
    """Up to which load the goal of goodput is met; None of one load, or where there is no goal."""
    goals = [level.goodput for level in benchmark.levels]
    first = goals[0] if goals else None
    if first is None or len(goals) < 2:
        return None
    met = 0
    while met < len(goals) and (goal := goals[met]) is not None and goal.is_met:
        met += 1
    what = f"The goal, {tick(first.percentile)}% within {tick(first.within_ms)} ms, is"
    if not met:
        return f"{what} missed at {load_words(benchmark.levels[0])} already."
    return f"{what} met up to {load_words(benchmark.levels[met - 1])}."


def level_to_detail(benchmark: Benchmark) -> tuple[int, str]:
    """Whose figures are shown in full, and what it is: the knee, or the most that was answered."""
    place = knee_place(benchmark)
    if place is not None:
        return place, "the knee"
    rates = [level.requests_per_s for level in benchmark.levels]
    return rates.index(max(rates)), "the most requests/s"


# ── one level ──


def percentiles(latency: Latency) -> list[tuple[str, float]]:
    """The figures of a latency by their short names, in order."""
    return [
        ("mean", latency.mean_ms),
        ("p50", latency.p50_ms),
        ("p90", latency.p90_ms),
        ("p95", latency.p95_ms),
        ("p99", latency.p99_ms),
        ("p99.9", latency.p999_ms),
        ("max", latency.max_ms),
    ]


def details(level: Level) -> list[Section]:
    """All figures of a level, in sections with a heading; the first has none."""
    sections: list[Section] = [("", _throughput(level))]
    if level.latency is None:
        sections.append(("End-to-end Latency", [("E2EL", "no request succeeded")]))
    else:
        sections.append(("End-to-end Latency", _latency("E2EL", level.latency)))
    if level.service is not None:
        # What a benchmark that waits for the server would have shown in its place.
        sections.append(("From the Real Send", _latency("service", level.service)))
    sections.append(("Client Overhead", _client(level)))
    why = one_line(level.why) or NOTHING
    sections.append(("Limit", [("Limited by", who_limited(level.limited_by)), ("Because", why)]))
    return sections


def _throughput(level: Level) -> list[Row]:
    rows = [
        ("Successful requests", amount(level.succeeded)),
        ("Failed requests", amount(level.failed)),
        *(
            (f"  {one_line(kind)}", amount(number))
            for kind, number in sorted(level.failures.items(), key=lambda item: (-item[1], item[0]))
        ),
        ("Maximum request concurrency", tick(level.load))
        if level.rate is None
        else ("Request rate configured (req/s)", tick(level.rate)),
        ("Benchmark duration (s)", figure(level.duration_s)),
        ("Request throughput (req/s)", figure(level.requests_per_s)),
        ("Document throughput (doc/s)", figure(level.documents_per_s)),
        (
            "Token throughput (tok/s)",
            "not reported with every answer"
            if level.tokens_per_s is None
            else figure(level.tokens_per_s),
        ),
    ]
    if level.goodput is not None:
        good = level.goodput
        rows += [
            ("Request goodput (req/s)", figure(good.requests_per_s)),
            (f"Answered within {tick(good.within_ms)} ms", share(good.share)),
            (f"Goal of {tick(good.percentile)}%", "met" if good.is_met else "missed"),
        ]
    return [
        *rows,
        ("HTTP attempts", amount(level.attempts)),
        ("Sent again (connection broke)", amount(level.resent)),
        ("Retries", amount(level.retries)),
        ("Throttles (429, 503, 529)", amount(level.throttles)),
    ]


def _latency(name: str, latency: Latency) -> list[Row]:
    rows = [
        (f"{'Median' if short == 'p50' else short.capitalize()} {name} (ms)", figure(value))
        for short, value in percentiles(latency)
    ]
    if latency.count < 1000:
        # Fewer than a thousand have no thousandth.
        label, value = rows[5]
        rows[5] = (label, f"{value} (the maximum)")
    return rows


def _client(level: Level) -> list[Row]:
    client = level.client
    rows = [
        ("CPU per request (µs)", figure(client.cpu_us_per_request)),
        ("Busy", f"{share(client.busy)} of one core"),
        ("Ceiling (req/s)", figure(client.ceiling_requests_per_s)),
        ("P99 event loop lag (ms)", figure(client.loop_lag_p99_ms)),
    ]
    if client.send_lag_p99_ms is not None:
        rows.append(("P99 send lag (ms)", figure(client.send_lag_p99_ms)))
    return rows


# ── several levels ──


def columns(benchmark: Benchmark) -> list[tuple[str, list[str]]]:
    """Each column of the table of levels: its name, and a cell for each level."""
    levels = benchmark.levels
    place = knee_place(benchmark)
    latencies = [dict(percentiles(level.latency)) if level.latency else {} for level in levels]
    # A blank where the mark would be, so that digits stand below digits.
    other = "" if place is None else " "
    marks = [KNEE if i == place else other for i in range(len(levels))]
    found = [
        ("load" + other, [tick(v.load) + mark for v, mark in zip(levels, marks, strict=True)]),
        ("req/s", [figure(level.requests_per_s) for level in levels]),
        ("docs/s", [figure(level.documents_per_s) for level in levels]),
        *(
            (name, [figure(latency.get(name)) for latency in latencies])
            for name in ("mean", "p50", "p99", "p99.9")
        ),
        ("failed", [amount(level.failed) for level in levels]),
        ("throttled", [amount(level.throttles) for level in levels]),
    ]
    if any(level.goodput for level in levels):
        goods = [level.goodput for level in levels]
        found.append(("goodput", [share(good.share) if good else NOTHING for good in goods]))
    return [
        *found,
        ("busy", [share(round(level.client.busy, 2)) for level in levels]),
        ("limit", [level.limited_by for level in levels]),
    ]


def levels_head(benchmark: Benchmark) -> tuple[str, ...]:
    """The names of the columns with their units, for where there is room."""
    units = {
        "load": "requests/s offered" if _is_open(benchmark) else "concurrency",
        **{name: f"{name} (ms)" for name in ("mean", "p50", "p99", "p99.9")},
        "goodput": "in time",
        "limit": "limited by",
    }
    names = [name.strip() for name, _ in columns(benchmark)]
    return tuple(units.get(name, name) for name in names)


def levels_rows(benchmark: Benchmark) -> tuple[tuple[str, ...], ...]:
    """The cells of the table of levels, row by row, the knee marked in words."""
    place = knee_place(benchmark)
    first, *others = (cells for _, cells in columns(benchmark))
    loads = [cell.rstrip(f"{KNEE} ") for cell in first]
    if place is not None:
        loads[place] += " (knee)"
    return tuple(zip(loads, *others, strict=True))


def _is_open(benchmark: Benchmark) -> bool:
    return any(level.mode == "open" for level in benchmark.levels)


# ── the whole ──


def headline(level: Level) -> list[Row]:
    """The few figures that one looks for first."""
    latency = level.latency
    return [
        ("requests/s", figure(level.requests_per_s)),
        ("documents/s", figure(level.documents_per_s)),
        ("median latency (ms)", figure(None if latency is None else latency.p50_ms)),
        ("p99 latency (ms)", figure(None if latency is None else latency.p99_ms)),
        ("failed requests", amount(level.failed)),
        *(
            [(f"within {tick(level.goodput.within_ms)} ms", share(level.goodput.share))]
            if level.goodput
            else []
        ),
    ]


def circumstances(benchmark: Benchmark) -> list[Row]:
    """Who was asked what, by whom: without it the figures mean nothing."""
    target, work, machine = benchmark.target, benchmark.workload, benchmark.machine
    rows = [
        ("Model", one_line(target.model)),
        ("URL", one_line(target.url)),
        ("Dialect", one_line(target.dialect)),
        ("Sent as", mode_words(benchmark)),
        ("Requests from", one_line(work.source)),
        ("Documents per request", documents_words(benchmark)),
        ("Words per document", _size_words(work.document_words, None)),
        ("Words per query", _size_words(work.query_words, None)),
        ("top_n", "all" if work.top_n is None else amount(work.top_n)),
        ("Bytes per request", f"{figure(work.mean_body_bytes)} on average"),
        ("Seed", str(work.seed)),
        ("Started", moment(benchmark.started)),
        ("Client's processor", f"{one_line(machine.processor)}, cores to use: {machine.cores}"),
        ("Client's system", one_line(machine.system)),
        ("Python", one_line(machine.python)),
        ("rerank_async", one_line(benchmark.rerank_async)),
        *((one_line(name), one_line(version)) for name, version in machine.packages.items()),
    ]
    return [(label, value) for label, value in rows if value]


def documents_words(benchmark: Benchmark) -> str:
    """How many documents a request had."""
    return _size_words(benchmark.workload.documents, benchmark.workload.mean_documents)


def _size_words(words: str | None, mean: float | None) -> str:
    """A size as it was asked for, and what it came to where that says more."""
    words = one_line(words or "")
    if mean is None or words.replace(",", "") == tick(mean).replace(",", ""):
        return words
    on_average = f"{figure(mean)} on average"
    return f"{words}; {on_average}" if words else on_average


def remarks(benchmark: Benchmark) -> tuple[str, ...]:
    """What one should know before one believes the figures; the notes, and what they may lack."""
    found = kept(benchmark.notes)
    by_client = [load_words(v) for v in benchmark.levels if v.limited_by == "client"]
    if by_client:
        found.append(
            f"This client was the limit at {_listed(by_client)}: the server may do more there."
        )
    return tuple(found)


def _listed(words: list[str]) -> str:
    if len(words) > 4:
        words = [*words[:3], f"{len(words) - 3} other loads"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
