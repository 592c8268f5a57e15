"""From what was noted of each request to the figures of a level. Pure.

What belongs to the measured time, from W0 to W1:

- **Counted** are the requests that were *intended* in it: those that the closed loop sent, those
  that the open loop had planned. All of them are waited for, also those that end after W1, or the
  slow ones would be missing from the percentiles. Nothing more is sent from W1 on.
- **Latency** is theirs, from the intended moment. In an open loop that moment is fixed beforehand,
  so that a server that stalls does not stop the clock of those who would have come meanwhile
  (G. Tene calls that mistake coordinated omission).
- **Throughput of a closed loop**: each of its N places always has one request under way. So every
  request gives the share of its own time that lies within W0 and W1: one that lies half before W0
  gives a half. Where each takes L seconds that makes exactly N / L per second, wherever the edges
  fall; to count those that end within would be wrong by up to N.
- **Throughput of an open loop**: with a backlog, shares would count what the server has hardly
  begun. So the answers are counted that came from W0 + m to W1 + m, where m is the shortest latency
  of the counted. A server that keeps up gives back exactly what it was sent, without a dent for the
  time in which the first answers are still out; one that does not, gives what it can.
- **Intervals** of the timeline count what ended in them, as someone who looks on would.

A line belongs here when it is arithmetic over requests that are over.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil, log10
from typing import Literal

from attrs import evolve, field, frozen, mutable

from rerank_async._errors import RerankError, StatusError
from rerank_async._moments import GRAIN
from rerank_async.bench._result import (
    ClientCost,
    Goodput,
    Interval,
    Latency,
    Level,
)
from rerank_async.bench._verdict import verdict

__all__ = ["Measured", "Reading", "Records", "failure_kind", "latency_of", "level_of", "percentile"]

# Of the histogram: microseconds, up to an hour. Longer than any timeout that can be asked for.
_LOWEST, _HIGHEST, _DIGITS = 1, 3_600_000_000, 3
_BUCKETS_PER_TENFOLD = 20
_MOST_INTERVALS = 120


class Records:
    """What is noted of every request when it is over: columns, 36 bytes a request.

    Attributes:
        intended: the moment at which it was to be sent, in seconds since the level began.
        sent: the moment at which it really was sent.
        ended: the moment at which the answer was checked, or the error there; never less than the
            one before.
        documents: the number of documents that it carried.
        tokens: the number of tokens that it cost by the server's word; -1 where it did not say.
        kinds: 0 of one that succeeded; of another how it failed, a place in `names`.
        names: the names of the ways to fail.
    """

    __slots__ = ("_places", "documents", "ended", "intended", "kinds", "names", "sent", "tokens")

    def __init__(self) -> None:
        self.intended, self.sent, self.ended = array("d"), array("d"), array("d")
        self.documents, self.tokens, self.kinds = array("i"), array("i"), array("i")
        self.names = [""]
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.ended)

    def succeed(
        self, intended: float, sent: float, ended: float, documents: int, tokens: int | None
    ) -> None:
        """An answer passed the checks."""
        self.intended.append(intended)
        self.sent.append(sent)
        self.ended.append(ended)
        self.documents.append(documents)
        self.tokens.append(-1 if tokens is None else min(tokens, 2**31 - 1))
        self.kinds.append(0)

    def fail(self, intended: float, sent: float, ended: float, documents: int, kind: str) -> None:
        """It ended otherwise."""
        self.succeed(intended, sent, ended, documents, None)
        place = self._places.get(kind)
        if place is None:
            place = self._places[kind] = len(self.names)
            self.names.append(kind)
        self.kinds[-1] = place


def failure_kind(error: RerankError) -> str:
    """How a request failed, in a word: the status, a timeout, or the error's name."""
    if isinstance(error, StatusError):
        return f"HTTP {error.status}"
    if isinstance(error, TimeoutError):
        return "timeout"
    return type(error).__name__


@frozen
class Reading:
    """What clocks and counts said at one moment.

    Attributes:
        now: seconds since the level began.
        process: seconds computed by the process.
        thread: seconds computed by the loop's thread.
        attempts: HTTP requests so far, without those that were sent again.
        resent: the number of requests sent again so far, because the connection broke.
        retries: the number of retries so far.
        throttles: the number of throttles so far.
    """

    now: float
    process: float
    thread: float
    attempts: int
    resent: int
    retries: int
    throttles: int


@mutable
class Measured:
    """All that is known of a level when it is over.

    Attributes:
        mode: "closed" or "open".
        load: requests at once, or requests/s.
        begin: the beginning of the measured time, W0.
        end: the end of the measured time, W1.
        warm_up_s: seconds before it.
        records: the records of every request that ended, those of the warm-up too.
        first: the reading at W0.
        last: the reading at W1.
        over: the reading when the last of the counted requests had ended.
        throttles: answers that said to slow down, so far, after each whole second of the measured
            time.
        lags: the seconds by which the event loop woke its probe late.
        held_back: requests of an open loop that had to wait because too many were under way.
        lost: the number of counted requests that were under way when a person interrupted.
    """

    mode: Literal["closed", "open"]
    load: float
    begin: float
    end: float
    warm_up_s: float
    records: Records
    first: Reading
    last: Reading
    over: Reading
    throttles: list[int] = field(factory=list)
    lags: Sequence[float] = ()
    held_back: int = 0
    lost: int = 0


def level_of(measured: Measured, target: tuple[float, float] | None = None) -> Level:
    """The figures.

    Args:
        measured: what is known of the level.
        target: the goodput that is asked for: the percentile and the time in milliseconds; None
            where none is asked.
    """
    records, begin, end = measured.records, measured.begin, measured.end
    duration = end - begin
    is_open = measured.mode == "open"
    counted = [place for place, intended in enumerate(records.intended) if begin <= intended < end]
    good = [place for place in counted if not records.kinds[place]]
    latencies = [records.ended[place] - records.intended[place] for place in good]
    weights = _answered(records, begin, end, latencies) if is_open else _shares(records, begin, end)
    per_s = sum(weights.values()) / duration
    documents_per_s = sum(w * records.documents[p] for p, w in weights.items()) / duration
    # A sum over some answers would be too small, and look as if it were not.
    has_tokens = bool(good) and all(records.tokens[place] >= 0 for place in good)
    tokens_per_s = sum(w * max(0, records.tokens[p]) for p, w in weights.items()) / duration
    goodput = None
    if target is not None:
        within = target[1] / 1000.0 + GRAIN
        in_time = sum(latency <= within for latency in latencies)
        share = in_time / len(counted) if counted else 0.0
        rate = sum(
            weight
            for place, weight in weights.items()
            if records.ended[place] - records.intended[place] <= within
        )
        is_met = bool(counted) and in_time >= _rank(target[0], len(counted))
        goodput = Goodput(target[0], target[1], rate / duration, share, is_met)
    failures = Counter(
        records.names[records.kinds[place]] for place in counted if records.kinds[place]
    )
    resent = measured.over.resent - measured.first.resent
    level = Level(
        mode=measured.mode,
        concurrency=None if is_open else int(measured.load),
        rate=measured.load if is_open else None,
        duration_s=duration,
        warm_up_s=measured.warm_up_s,
        requests=len(counted),
        succeeded=len(good),
        failed=len(counted) - len(good),
        failures=dict(failures.most_common()),
        attempts=measured.over.attempts - measured.first.attempts + resent,
        resent=resent,
        retries=measured.over.retries - measured.first.retries,
        throttles=measured.over.throttles - measured.first.throttles,
        requests_per_s=per_s,
        documents_per_s=documents_per_s,
        tokens_per_s=tokens_per_s if has_tokens else None,
        documents=sum(records.documents[place] for place in good),
        tokens=sum(max(0, records.tokens[place]) for place in good) if has_tokens else None,
        latency=latency_of(latencies),
        service=latency_of([records.ended[place] - records.sent[place] for place in good])
        if is_open
        else None,
        goodput=goodput,
        client=_cost(measured, counted),
        limited_by="unknown",
        why="",
        timeline=tuple(_timeline(measured)),
    )
    limited_by, why = verdict(level, held_back=measured.held_back)
    return evolve(level, limited_by=limited_by, why=why)


# ── throughput ──


def _shares(records: Records, begin: float, end: float) -> dict[int, float]:
    """How much of each success lies in the measured time, by its place; of a closed loop."""
    shares = {}
    for place, ended in enumerate(records.ended):
        began = records.intended[place]
        inside = min(ended, end) - max(began, begin)
        if inside > 0 and not records.kinds[place]:
            # What took no time at all lies in it or does not.
            shares[place] = inside / (ended - began)
    return shares


def _answered(
    records: Records, begin: float, end: float, latencies: Sequence[float]
) -> dict[int, float]:
    """The successes that ended from W0 + m to W1 + m, each as 1; of an open loop."""
    shortest = min(latencies, default=0.0)
    first = bisect_left(records.ended, begin + shortest - GRAIN)
    last = bisect_left(records.ended, end + shortest - GRAIN)
    return {place: 1.0 for place in range(first, last) if not records.kinds[place]}


# ── latency ──


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest rank: the smallest value that so many of a hundred do not exceed.

    Args:
        ordered: the values, smallest first; at least one.
        percent: a number above 0 and at most 100.
    """
    return ordered[_rank(percent, len(ordered)) - 1]


def _rank(percent: float, count: int) -> int:
    # 99.9 / 100 * 1000 is a hair above 999.
    return max(1, ceil(percent * count / 100 - 1e-9))


def latency_of(seconds: Sequence[float]) -> Latency | None:
    """What there is to know of durations; None where there are none."""
    if not seconds:
        return None
    # An extra, and slow to import (`benchmarks/importing.py`).
    from hdrh.histogram import HdrHistogram

    micros = Counter(min(_HIGHEST, max(_LOWEST, round(value * 1_000_000))) for value in seconds)
    histogram = HdrHistogram(_LOWEST, _HIGHEST, _DIGITS)
    # Not asked for percentiles: it would count its thirty thousand places for each.
    ordered: list[int] = []
    ends: list[int] = []
    total = 0
    for value in sorted(micros):
        histogram.record_value(value, micros[value])
        total += micros[value]
        ordered.append(value)
        ends.append(total)
    shortest, longest = ordered[0], ordered[-1]

    def at(percent: float) -> float:
        return ordered[bisect_left(ends, _rank(percent, total))] / 1000.0

    return Latency(
        count=len(seconds),
        mean_ms=sum(value * times for value, times in micros.items()) / len(seconds) / 1000.0,
        min_ms=shortest / 1000.0,
        p50_ms=at(50),
        p90_ms=at(90),
        p95_ms=at(95),
        p99_ms=at(99),
        p999_ms=at(99.9),
        max_ms=longest / 1000.0,
        buckets=tuple(_buckets(micros)),
        hdr=histogram.encode().decode("ascii"),
    )


def _buckets(micros: Counter[int]) -> Iterable[tuple[float, int]]:
    counts: Counter[int] = Counter()
    for value, times in micros.items():
        number = ceil(_BUCKETS_PER_TENFOLD * log10(value / 1000.0))
        # Bounds are rounded, and so are logarithms.
        if value / 1000.0 <= _bound(number - 1):
            number -= 1
        elif value / 1000.0 > _bound(number):
            number += 1
        counts[number] += times
    return [(_bound(number), counts[number]) for number in sorted(counts)]


def _bound(number: int) -> float:
    return float(f"{10 ** (number / _BUCKETS_PER_TENFOLD):.6g}")


# ── what the client took, and when what happened ──


def _cost(measured: Measured, counted: Sequence[int]) -> ClientCost:
    records, first, last = measured.records, measured.first, measured.last
    seconds = max(last.now - first.now, 1e-9)
    thread = max(last.thread - first.thread, 1e-9)
    ended = bisect_left(records.ended, last.now - GRAIN)
    ended -= bisect_left(records.ended, first.now - GRAIN)
    # Where nothing ended, what there was to do was done for those that were sent.
    handled = ended or max(1, last.attempts - first.attempts)
    send_lag = None
    if measured.mode == "open":
        late = sorted(records.sent[place] - records.intended[place] for place in counted)
        send_lag = percentile(late, 99) * 1000.0 if late else 0.0
    lags = sorted(measured.lags)
    return ClientCost(
        cpu_us_per_request=max(0.0, last.process - first.process) / handled * 1e6,
        busy=min(1.0, thread / seconds),
        ceiling_requests_per_s=handled / thread,
        loop_lag_p99_ms=percentile(lags, 99) * 1000.0 if lags else 0.0,
        send_lag_p99_ms=send_lag,
    )


def _timeline(measured: Measured) -> Iterable[Interval]:
    records, duration = measured.records, measured.end - measured.begin
    # Whole seconds: it is at those that throttles are counted.
    step = max(1, ceil((duration - GRAIN) / _MOST_INTERVALS))
    throttles = [measured.first.throttles, *measured.throttles]
    # A rest that is a rounding error is no interval.
    for number in range(max(1, ceil((duration - GRAIN) / step))):
        at = float(number * step)
        until = min(duration, at + step)
        first = bisect_left(records.ended, measured.begin + at - GRAIN)
        last = bisect_left(records.ended, measured.begin + until - GRAIN)
        good = [place for place in range(first, last) if not records.kinds[place]]
        latencies = sorted(records.ended[place] - records.intended[place] for place in good)
        yield Interval(
            at_s=at,
            seconds=until - at,
            succeeded=len(good),
            failed=last - first - len(good),
            documents=sum(records.documents[place] for place in good),
            throttles=max(
                0,
                _at(throttles, (number + 1) * step, measured.last.throttles)
                - _at(throttles, number * step, measured.last.throttles),
            ),
            p50_ms=percentile(latencies, 50) * 1000.0 if latencies else None,
            p99_ms=percentile(latencies, 99) * 1000.0 if latencies else None,
        )


def _at(counts: Sequence[int], second: int, otherwise: int) -> int:
    return counts[second] if second < len(counts) else otherwise
