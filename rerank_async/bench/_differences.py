"""By how much two benchmarks differ, level by level, and whether that says anything.

A line belongs here when it compares figures; how that is shown is in `_compare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from attrs import frozen

from rerank_async.bench._result import Benchmark, Latency, Level
from rerank_async.bench._verdict import MOST_FAILED, failed_share
from rerank_async.bench._words import amount, change, figure, load_words, one_line, share

__all__ = ["Difference", "Matched", "caveats", "figure_differences", "matched", "unmatched"]

Verdict: TypeAlias = Literal["better", "worse", "same", ""]

# Less than this is nothing: one run differs from the next by more.
_SAME = 0.01


@frozen
class Difference:
    """A figure of both runs.

    Attributes:
        name: the name of the figure, with its unit.
        before: the figure of A; None where it could not be had.
        after: the figure of B; None likewise.
        more_is_better: whether a larger figure is the better one.
        kind: the way in which it is written.
    """

    name: str
    before: float | None
    after: float | None
    more_is_better: bool
    kind: Literal["figure", "count", "share"] = "figure"

    @property
    def verdict(self) -> Verdict:
        """What B is, against A; nothing where one of them lacks."""
        if self.before is None or self.after is None:
            return ""
        if abs(self.after - self.before) <= _SAME * abs(self.before):
            return "same"
        return "better" if (self.after > self.before) is self.more_is_better else "worse"

    @property
    def words(self) -> str:
        """The difference and what it means, such as "+12.3% better"."""
        return f"{change(self.before, self.after)} {self.verdict}".rstrip()

    def text(self, value: float | None) -> str:
        """One of the two values, for people."""
        if value is None or self.kind == "figure":
            return figure(value)
        return share(value) if self.kind == "share" else amount(round(value))


@frozen
class Matched:
    """Levels of both runs with the same load."""

    first: Level
    second: Level


def matched(first: Benchmark, second: Benchmark) -> list[Matched]:
    """The levels that both have, in A's order."""
    theirs = {_key(level): level for level in second.levels}
    return [Matched(v, theirs[_key(v)]) for v in first.levels if _key(v) in theirs]


def unmatched(first: Benchmark, second: Benchmark) -> list[str]:
    """A sentence for each run about its loads that the other lacks."""
    found = []
    for letter, run, other in (("A", first, second), ("B", second, first)):
        theirs = set(map(_key, other.levels))
        alone = [load_words(level) for level in run.levels if _key(level) not in theirs]
        if alone:
            found.append(f"only in {letter}: {', '.join(alone)}")
    return found


def _key(level: Level) -> tuple[str, float]:
    return (level.mode, level.load)


_LATENCIES: tuple[tuple[str, Callable[[Latency], float]], ...] = (
    ("mean", lambda v: v.mean_ms),
    ("p50", lambda v: v.p50_ms),
    ("p90", lambda v: v.p90_ms),
    ("p95", lambda v: v.p95_ms),
    ("p99", lambda v: v.p99_ms),
    ("p99.9", lambda v: v.p999_ms),
    ("max", lambda v: v.max_ms),
)


def figure_differences(pair: Matched) -> list[Difference]:
    """Every figure of a level that one can compare; how many failed is a share of all requests."""
    a, b = pair.first, pair.second
    found = [
        Difference("requests/s", a.requests_per_s, b.requests_per_s, True),
        Difference("documents/s", a.documents_per_s, b.documents_per_s, True),
        Difference("tokens/s", a.tokens_per_s, b.tokens_per_s, True),
        *(
            Difference(
                f"{name} (ms)",
                None if a.latency is None else of(a.latency),
                None if b.latency is None else of(b.latency),
                False,
            )
            for name, of in _LATENCIES
        ),
        Difference("failed", _failed(a), _failed(b), False, "share"),
        Difference("throttles", a.throttles, b.throttles, False, "count"),
        Difference("retries", a.retries, b.retries, False, "count"),
    ]
    if a.goodput and b.goodput and a.goodput.within_ms == b.goodput.within_ms:
        found += [
            Difference(
                "goodput (requests/s)", a.goodput.requests_per_s, b.goodput.requests_per_s, True
            ),
            Difference("in time", a.goodput.share, b.goodput.share, True, "share"),
        ]
    return [one for one in found if not (one.before is None and one.after is None)]


def _failed(level: Level) -> float | None:
    return level.failed / level.requests if level.requests else None


# ── what makes it a comparison of something else ──


def caveats(first: Benchmark, second: Benchmark) -> list[str]:
    """Why the difference may not be the servers': what else was not the same."""
    found = []
    for what, mine, theirs in _conditions(first, second):
        if mine != theirs:
            found.append(
                f"{what} differs: {_one_line_or_none(mine)} in A, {_one_line_or_none(theirs)} in B"
            )
    for what, mean, other in (
        ("documents in a request", first.workload.mean_documents, second.workload.mean_documents),
        ("bytes of a request", first.workload.mean_body_bytes, second.workload.mean_body_bytes),
    ):
        # Lists that are drawn differ a little between runs of different length.
        if not math.isclose(mean, other, rel_tol=0.03):
            found.append(
                f"the workload differs, {what} on average: {figure(mean)} in A, "
                f"{figure(other)} in B"
            )
    by_client = [
        load_words(pair.first)
        for pair in matched(first, second)
        if "client" in (pair.first.limited_by, pair.second.limited_by)
    ]
    failing = [
        load_words(pair.first)
        for pair in matched(first, second)
        if max(failed_share(pair.first), failed_share(pair.second)) > MOST_FAILED
    ]
    if failing:
        found.append(
            f"more than {MOST_FAILED:.0%} of the requests failed, in A or in B, at: "
            f"{', '.join(failing)}; what fails at once makes a server look fast"
        )
    if by_client:
        found.append(f"this client was the limit, in A or in B, at: {', '.join(by_client)}")
    return found


def _conditions(a: Benchmark, b: Benchmark) -> list[tuple[str, object, object]]:
    machine = [
        (f"the client's machine ({name})", getattr(a.machine, name), getattr(b.machine, name))
        for name in ("processor", "cores", "system", "python")
    ]
    packages = [
        (f"the client's {name}", a.machine.packages.get(name), b.machine.packages.get(name))
        for name in sorted({*a.machine.packages, *b.machine.packages})
    ]
    digests = (a.workload.digest, b.workload.digest)
    content = [] if None in digests else [("the content of the requests' file", *digests)]
    workload = [
        (f"the workload ({name})", getattr(a.workload, name), getattr(b.workload, name))
        for name in ("source", "documents", "document_words", "query_words", "top_n", "seed")
    ]
    return [
        ("the model", a.target.model, b.target.model),
        ("the dialect", a.target.dialect, b.target.dialect),
        ("the mode", _modes(a), _modes(b)),
        ("the arrivals", a.arrivals, b.arrivals),
        *workload,
        *content,
        *machine,
        ("the version of rerank_async", a.rerank_async, b.rerank_async),
        *packages,
    ]


def _modes(benchmark: Benchmark) -> str:
    return " and ".join(sorted({f"{level.mode} loop" for level in benchmark.levels}))


def _one_line_or_none(value: object) -> str:
    return "none" if value is None else one_line(str(value))
