"""How figures and texts are written for people: the same in a terminal, a table and a chart.

A line belongs here when it turns a value into text; which values are shown is in `_tables`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from rerank_async.bench._result import Benchmark, Level, Limiting

__all__ = [
    "NOTHING",
    "amount",
    "change",
    "figure",
    "kept",
    "load_words",
    "mode_words",
    "moment",
    "one_line",
    "run_name",
    "share",
    "tick",
    "who_limited",
    "without_middle",
]

NOTHING = "–"
"""In the place of a figure that could not be had."""


def amount(number: int) -> str:
    """A number of things: 1,234,567."""
    return f"{number:,}"


def figure(value: float | None) -> str:
    """A measured figure with the digits that mean something: three, and all of a whole number.

    1,234,567 · 512 · 98.5 · 7.25 · 0.0312 · 0; not below 0.000001.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size < 1e-6:
        return "0"
    # How many digits come before the point is known after the rounding: 99.96 is 100, not 100.0.
    before = 1 + math.floor(math.log10(float(f"{size:.2e}")))
    return f"{value:,.{max(0, 3 - before)}f}"


def tick(value: float) -> str:
    """A number on an axis, or one that somebody chose: as short as it can be, 0.5, 1, 1,024."""
    text = f"{value:,.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def share(value: float | None) -> str:
    """A share from 0 to 1 in percent. Only all is 100%, only nothing is 0%."""
    if value is None or not math.isfinite(value):
        return NOTHING
    percent = value * 100
    if 0 < percent < 0.05:
        return "<0.1%"
    if 99.95 <= percent < 100:
        return ">99.9%"
    text = f"{percent:.1f}"
    return f"{text.removesuffix('.0')}%"


def change(before: float | None, after: float | None) -> str:
    """By how much a figure differs, in percent of the one before: +12.3%, -5.0%, or 3.4 times."""
    if before is None or after is None:
        return NOTHING
    if before == after:
        return "0%"
    if before <= 0:
        return "from 0"
    ratio = after / before
    if ratio >= 10:
        return f"{figure(ratio)} times"
    percent = f"{(ratio - 1) * 100:+,.1f}%"
    return "0%" if percent in ("+0.0%", "-0.0%") else percent


def moment(started: str) -> str:
    """A date and time in ISO 8601 as people read it; anything else as it is."""
    try:
        when = datetime.fromisoformat(started)
    except ValueError:
        return one_line(started)
    if when.tzinfo is not None:
        when = when.astimezone(UTC)
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


# ── what a run and a level are called ──


def run_name(benchmark: Benchmark) -> str:
    """What the run is called: by its name, or else by the model."""
    name = one_line(benchmark.name).strip()
    return name or one_line(benchmark.target.model).strip() or "without a name"


def load_words(level: Level) -> str:
    """The load with its unit, such as "16 at once" or "200 requests/s"."""
    if level.rate is not None:
        return f"{tick(level.rate)} requests/s"
    return f"{tick(level.load)} at once"


def mode_words(benchmark: Benchmark) -> str:
    """How the requests were sent."""
    if any(level.mode == "open" for level in benchmark.levels):
        spread = {"constant": "constant", "poisson": "Poisson", None: "unknown"}
        return f"open loop, {spread[benchmark.arrivals]} arrivals"
    return "closed loop"


def who_limited(limiting: Limiting) -> str:
    """Who kept the figures from being better, for a list; in a table the word itself will do."""
    return {
        "server": "the server",
        "client": "this client, so that the server may be better than the figures",
        "load": "the load, since no more was offered",
        "unknown": "unknown",
    }[limiting]


# ── what comes from outside ──


def one_line(text: str) -> str:
    """`text` on one line, without what a terminal, an XML file or a reader's eye would act upon."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def without_middle(text: str, most: int) -> str:
    """`text`, one_line and in `most` characters; what is left out of its middle is a "…"."""
    text = one_line(text)
    if len(text) <= most:
        return text
    # The ends are what tells long names apart: who made it, and which size it is.
    behind = (most - 1) // 2
    return f"{text[: most - 1 - behind]}…{text[len(text) - behind :]}"


def kept(texts: tuple[str, ...]) -> list[str]:
    """Those of some sentences from outside that say anything, one_line."""
    return [text for text in (one_line(text).strip() for text in texts) if text]
