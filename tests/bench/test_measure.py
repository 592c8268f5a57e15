"""From what was noted of requests to the figures of a level."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_async import (
    ConnectError,
    DeadlineExceededError,
    RateLimitError,
    RerankError,
    ResponseError,
)
from rerank_async.bench import Level
from rerank_async.bench._measure import (
    Measured,
    Reading,
    Records,
    failure_kind,
    latency_of,
    level_of,
    percentile,
)


def reading(
    now: float = 0.0, *, cpu: float = 0.0, attempts: int = 0, throttles: int = 0
) -> Reading:
    return Reading(now, cpu, cpu, attempts, 0, 0, throttles)


def figures(
    records: Records,
    begin: float = 10.0,
    end: float = 20.0,
    *,
    mode: Any = "closed",
    target: tuple[float, float] | None = None,
    **changes: Any,
) -> Level:
    given = {"first": reading(begin), "last": reading(end), "over": reading(end), **changes}
    return level_of(Measured(mode, 4.0, begin, end, begin, records, **given), target)


def filled(*requests: tuple[float, float], documents: int = 20, tokens: int | None = 5) -> Records:
    records = Records()
    for intended, ended in sorted(requests, key=lambda request: request[1]):
        records.succeed(intended, intended, ended, documents, tokens)
    return records


class TestClosedLoop:
    @pytest.mark.parametrize("phase", [0.0, 0.3, 0.77, 1.4])
    @pytest.mark.parametrize("took", [0.9, 1.0, 2.0, 3.7])
    def test_throughput_is_exact_wherever_the_edges_fall(self, phase: float, took: float) -> None:
        requests = [(phase + n * took, phase + (n + 1) * took) for n in range(40)]
        level = figures(filled(*requests))
        assert level.requests_per_s == pytest.approx(1 / took)
        assert level.documents_per_s == pytest.approx(20 / took)
        assert level.tokens_per_s == pytest.approx(5 / took)

    def test_counts_what_was_sent_in_the_measured_time_however_late_it_ends(self) -> None:
        level = figures(filled((9.9, 11.0), (10.0, 12.0), (19.9, 50.0), (20.0, 21.0)))
        assert (level.requests, level.succeeded, level.documents, level.tokens) == (2, 2, 40, 10)
        assert level.latency is not None
        assert level.latency.count == 2
        assert level.latency.max_ms == pytest.approx(30_100, rel=1e-3)
        assert level.service is None

    def test_a_request_around_all_of_it_gives_its_share(self) -> None:
        assert figures(filled((5.0, 25.0))).requests_per_s == pytest.approx(0.5 / 10)

    def test_what_takes_no_time_is_no_reason_to_fail(self) -> None:
        level = figures(filled((12.0, 12.0)))
        assert level.requests == 1
        assert level.requests_per_s == 0.0


class TestOpenLoop:
    def test_a_server_that_keeps_up_gives_back_the_rate(self) -> None:
        requests = [(n / 10, n / 10 + 0.7 + n % 3 / 100) for n in range(200)]
        level = figures(filled(*requests), mode="open")
        assert level.requests == 100
        assert level.requests_per_s == pytest.approx(10.0, abs=0.2)

    def test_one_without_a_warm_up_does_too(self) -> None:
        requests = [(n / 10, n / 10 + 0.7) for n in range(100)]
        level = figures(filled(*requests), 0.0, 10.0, mode="open")
        assert level.requests_per_s == pytest.approx(10.0)

    def test_a_server_with_a_backlog_gives_what_it_can(self) -> None:
        # One slot of 0.2 s, asked ten times a second.
        requests = [(n / 10, (n + 1) / 5) for n in range(200)]
        level = figures(filled(*requests), mode="open")
        assert level.requests == 100
        assert level.requests_per_s == pytest.approx(5.0, abs=0.11)
        assert level.latency is not None
        assert level.latency.max_ms == pytest.approx(20_100, rel=2e-3)

    def test_latency_counts_from_the_intended_moment_and_service_from_the_real_one(self) -> None:
        records = Records()
        records.succeed(11.0, 13.0, 13.5, 1, None)
        level = figures(records, mode="open")
        assert level.latency is not None
        assert level.service is not None
        assert level.latency.p50_ms == pytest.approx(2500, rel=1e-3)
        assert level.service.p50_ms == pytest.approx(500, rel=1e-3)
        assert level.client.send_lag_p99_ms == pytest.approx(2000)


class TestFailures:
    def test_are_counted_by_their_kind_and_have_no_latency(self) -> None:
        records = Records()
        for kind in ("HTTP 503", "timeout", "HTTP 503"):
            records.fail(11.0, 11.0, 11.1, 20, kind)
        records.succeed(11.0, 11.0, 12.0, 20, None)
        level = figures(records)
        assert (level.requests, level.succeeded, level.failed) == (4, 1, 3)
        assert level.failures == {"HTTP 503": 2, "timeout": 1}
        assert list(level.failures) == ["HTTP 503", "timeout"]
        assert level.latency is not None
        assert level.latency.min_ms == pytest.approx(1000, rel=1e-3)
        assert level.requests_per_s == pytest.approx(0.1)
        assert (level.tokens, level.tokens_per_s) == (None, None)

    def test_alone_leave_no_latency_and_no_verdict(self) -> None:
        records = Records()
        records.fail(11.0, 11.0, 11.1, 20, "timeout")
        level = figures(records, mode="open", target=(99.0, 1.0))
        assert (level.latency, level.service) == (None, None)
        assert level.limited_by == "unknown"
        assert level.goodput is not None
        assert (level.goodput.share, level.goodput.is_met) == (0.0, False)

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (RateLimitError("no", status=429), "HTTP 429"),
            (DeadlineExceededError("late"), "timeout"),
            (ConnectError("none"), "ConnectError"),
            (ResponseError("odd"), "ResponseError"),
        ],
    )
    def test_are_named_in_a_word(self, error: RerankError, kind: str) -> None:
        assert failure_kind(error) == kind


class TestGoodput:
    def test_is_what_was_answered_in_time_of_all_that_was_counted(self) -> None:
        records = filled(*[(10 + n / 10, 10 + n / 10 + 0.1) for n in range(90)])
        for n in range(9):
            records.succeed(19 + n / 10, 19 + n / 10, 20 + n / 10, 20, None)
        records.fail(19.9, 19.9, 21.0, 20, "timeout")
        goodput = figures(records, target=(90.0, 100.1)).goodput
        assert goodput is not None
        assert goodput.share == pytest.approx(0.9)
        assert goodput.is_met
        assert goodput.requests_per_s == pytest.approx(9.0)
        missed = figures(records, target=(90.1, 100.1)).goodput
        assert missed is not None
        assert not missed.is_met
        assert figures(records).goodput is None

    def test_is_met_by_what_takes_just_as_long(self) -> None:
        goodput = figures(filled((10.0, 10.5), (11.0, 11.75)), target=(50.0, 500.0)).goodput
        assert goodput is not None
        assert (goodput.share, goodput.is_met) == (0.5, True)
        assert goodput.requests_per_s == pytest.approx(0.1)


class TestLatency:
    @given(st.lists(st.floats(1e-6, 3600.0), min_size=1, max_size=300))
    @settings(max_examples=60, deadline=None)
    def test_agrees_with_exact_percentiles_to_three_digits(self, seconds: list[float]) -> None:
        latency = latency_of(seconds)
        assert latency is not None
        ordered = sorted(seconds)
        for percent, found in (
            (50, latency.p50_ms),
            (90, latency.p90_ms),
            (95, latency.p95_ms),
            (99, latency.p99_ms),
            (99.9, latency.p999_ms),
        ):
            exact = percentile(ordered, percent) * 1000
            assert found == pytest.approx(exact, rel=1.1e-3, abs=1.1e-3)
        assert latency.count == len(seconds)
        assert latency.max_ms == pytest.approx(ordered[-1] * 1000, rel=1e-6, abs=1e-3)
        assert latency.min_ms == pytest.approx(ordered[0] * 1000, rel=1e-6, abs=1e-3)
        assert latency.mean_ms == pytest.approx(
            sum(seconds) / len(seconds) * 1000, rel=1e-6, abs=1e-3
        )
        assert latency.min_ms <= latency.p50_ms <= latency.p999_ms <= latency.max_ms

    @given(st.lists(st.floats(1e-6, 3600.0), min_size=1, max_size=200))
    @settings(max_examples=60, deadline=None)
    def test_has_buckets_that_hold_every_request_once(self, seconds: list[float]) -> None:
        latency = latency_of(seconds)
        assert latency is not None
        bounds = [bound for bound, _ in latency.buckets]
        assert bounds == sorted(set(bounds))
        micros = [max(1, round(value * 1e6)) / 1000 for value in seconds]
        before = 0.0
        for bound, count in latency.buckets:
            lower = bound / 10 ** (1 / 20) * (1 + 1e-4)
            inside = [value for value in micros if before < value <= bound]
            assert len(inside) == count > 0
            # No bucket is wider than a twentieth of a tenfold.
            assert min(inside) > lower * (1 - 2e-4)
            before = bound
        assert sum(count for _, count in latency.buckets) == len(seconds)

    @pytest.mark.parametrize(
        ("ms", "bound"), [(1.0, 1.0), (112.202, 112.202), (1584.892, 1778.28), (1584.89, 1584.89)]
    )
    def test_has_buckets_that_end_at_their_bounds(self, ms: float, bound: float) -> None:
        latency = latency_of([ms / 1000])
        assert latency is not None
        assert latency.buckets == ((bound, 1),)

    def test_keeps_the_whole_histogram(self) -> None:
        dice = random.Random(1)
        seconds = [dice.lognormvariate(-3, 1) for _ in range(5000)]
        latency = latency_of(seconds)
        assert latency is not None
        histogram = HdrHistogram.decode(latency.hdr)
        assert histogram.get_total_count() == 5000
        assert histogram.get_value_at_percentile(99) / 1000 == pytest.approx(
            latency.p99_ms, rel=1e-3
        )
        assert histogram.get_value_at_percentile(50) / 1000 == pytest.approx(
            latency.p50_ms, rel=1e-3
        )

    def test_beyond_its_ends_is_at_its_ends(self) -> None:
        latency = latency_of([0.0, 10_000.0])
        assert latency is not None
        assert (latency.min_ms, latency.max_ms) == (0.001, 3_600_000.0)

    def test_of_nothing_is_none(self) -> None:
        assert latency_of([]) is None

    def test_percentiles_are_nearest_ranks(self) -> None:
        ordered = [float(value) for value in range(1, 1001)]
        assert percentile(ordered, 50) == 500
        assert percentile(ordered, 99.9) == 999
        assert percentile(ordered, 100) == 1000
        # 99.9 * 41,000 / 100 is a hair above 40,959.
        assert percentile(range(1, 41_001), 99.9) == 40_959
        assert percentile([7.0], 1) == 7
        assert percentile([1.0, 2.0], 50) == 1
        assert percentile([1.0, 2.0], 50.1) == 2


class TestClient:
    def test_cost_is_that_of_the_measured_time(self) -> None:
        records = filled(*[(9.5 + n / 10, 10 + n / 10 + 0.05) for n in range(100)])
        level = figures(
            records,
            first=Reading(10.0, 3.0, 1.0, 7, 1, 0, 0),
            last=Reading(20.0, 6.0, 3.0, 107, 1, 0, 0),
            over=Reading(21.0, 9.0, 9.0, 109, 6, 4, 2),
            lags=[0.001] * 98 + [0.5, 0.004],
        )
        assert level.client.busy == pytest.approx(0.2)
        assert level.client.cpu_us_per_request == pytest.approx(30_000)
        assert level.client.ceiling_requests_per_s == pytest.approx(50)
        assert level.client.loop_lag_p99_ms == pytest.approx(4.0)
        assert level.client.send_lag_p99_ms is None
        assert (level.attempts, level.resent) == (102 + 5, 5)
        assert (level.retries, level.throttles) == (4, 2)

    def test_cost_where_nothing_ended_is_that_of_what_was_sent(self) -> None:
        level = figures(Records(), last=Reading(20.0, 2.0, 1.0, 10, 0, 0, 0))
        assert level.client.cpu_us_per_request == pytest.approx(200_000)
        assert level.client.ceiling_requests_per_s == pytest.approx(10)


class TestTimeline:
    def test_has_seconds_and_a_shorter_last_one(self) -> None:
        records = filled(*[(9.9 + n / 10, 10.05 + n / 10) for n in range(30)])
        level = figures(records, 10.0, 12.5, throttles=[1, 4], last=reading(12.5, throttles=5))
        assert [(i.at_s, i.seconds) for i in level.timeline] == [(0, 1), (1, 1), (2, 0.5)]
        assert [i.succeeded for i in level.timeline] == [10, 10, 5]
        assert [i.documents for i in level.timeline] == [200, 200, 100]
        assert [i.throttles for i in level.timeline] == [1, 3, 1]
        assert level.timeline[0].p50_ms == pytest.approx(150)

    def test_has_no_interval_for_a_rounding_error(self) -> None:
        begin = 1.4
        assert begin + 3 - begin > 3
        assert len(figures(Records(), begin, begin + 3).timeline) == 3

    def test_counts_failures_and_has_no_latency_where_nothing_succeeded(self) -> None:
        records = Records()
        records.fail(10.0, 10.0, 11.5, 1, "timeout")
        level = figures(records, 10.0, 12.0)
        assert [(i.succeeded, i.failed, i.p99_ms) for i in level.timeline] == [
            (0, 0, None),
            (0, 1, None),
        ]

    @pytest.mark.parametrize(
        ("seconds", "count", "step"),
        [(120.0, 120, 1), (121.0, 61, 2), (3600.0, 120, 30), (0.5, 1, 0.5)],
    )
    def test_has_at_most_120_intervals(self, seconds: float, count: int, step: float) -> None:
        level = figures(Records(), 10.0, 10.0 + seconds)
        assert len(level.timeline) == count
        assert level.timeline[0].seconds == step
        assert sum(interval.seconds for interval in level.timeline) == pytest.approx(seconds)
