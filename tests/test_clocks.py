"""What counts by time counts the same on a machine at any uptime: no rounding decides.

A clock's reading is a float that began to count when the machine was started. The larger it is, the
coarser: sums that mean the same moment differ by a hair, this way on one machine and that way on
another. So everything here is asked on clocks that have counted for nothing up to 300 years, and
has to say the same on each, at the very edges.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated import run
from rerank_async.bench import Level
from rerank_async.bench._sweep import first_rate
from tests.bench.simulated import Slots, measure

# Seconds that a clock has counted for. From the sixth on a float does not hold nanoseconds.
STARTS = [0.0, 1.0, 4096.3, 86_400.7, 1e7, 2**53 / 1e9 + 0.7, 1e9, 1e10]
ANY_START = st.one_of(st.sampled_from(STARTS), st.floats(0.0, 1e9))

on_every_clock = pytest.mark.parametrize("start", STARTS)


@pytest.fixture(autouse=True)
def _thousands_of_calls_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="rerank_async")


def level(start: float, server: Slots | None = None, **options: Any) -> Level:
    """What a benchmark measures on a clock that has counted for `start` seconds."""

    async def main() -> Level:
        [level] = (await measure(server or Slots(4, 0.1), **options)).levels
        return level

    return run(main(), start)


class TestBench:
    @on_every_clock
    @pytest.mark.parametrize(
        ("rate", "warm_up", "duration", "count"),
        [
            # As the command line's own test has it: the thirteenth is due just at the end.
            (40, 0.1, 0.3, 12),
            # 0.1 + 0.2 is more than 0.3.
            (10, 0.1, 0.2, 2),
            (10, 0.0, 0.3, 3),
            (7, 1.0, 3.0, 21),
            (3, 0.0, 1.0, 3),
            (60, 0.7, 0.1, 6),
            (100, 0.29, 0.57, 57),
        ],
    )
    def test_counts_what_is_intended_from_the_first_moment_to_before_the_last(
        self, start: float, rate: float, warm_up: float, duration: float, count: int
    ) -> None:
        server = Slots(100, 0.1)
        options = {"rate": rate, "arrivals": "constant", "warm_up": warm_up, "duration": duration}
        found = level(start, server, **options)
        assert (found.requests, found.succeeded) == (count, count)
        # One to try, those of the warm-up, and these.
        assert len(server.sent_at) == 1 + round(rate * warm_up) + count
        assert found.requests_per_s == pytest.approx(rate)
        assert found.duration_s == pytest.approx(duration)

    @given(start=ANY_START, rate=st.integers(1, 97), eighths=st.integers(0, 9))
    @settings(max_examples=60, deadline=None)
    def test_counts_the_same_of_an_open_loop_at_any_start(
        self, start: float, rate: int, eighths: int
    ) -> None:
        options = {"rate": rate, "arrivals": "constant", "warm_up": eighths / 10, "duration": 1}
        found = level(start, Slots(100, 0.1), **options)
        assert (found.requests, found.attempts) == (rate, rate)

    @on_every_clock
    @pytest.mark.parametrize("concurrency", [1, 4])
    @pytest.mark.parametrize(("warm_up", "duration"), [(0.0, 1.0), (0.3, 0.7), (0.5, 3.0)])
    def test_counts_what_a_closed_loop_sends_before_the_end(
        self, start: float, concurrency: int, warm_up: float, duration: float
    ) -> None:
        server = Slots(4, 0.1)
        found = level(start, server, concurrency=concurrency, warm_up=warm_up, duration=duration)
        assert found.requests == concurrency * round(duration / 0.1)
        assert len(server.sent_at) == 1 + concurrency * round((warm_up + duration) / 0.1)
        assert found.requests_per_s == pytest.approx(concurrency * 10, rel=1e-4)

    @on_every_clock
    @pytest.mark.parametrize("count", [5, 18, 20])
    def test_counts_as_many_as_it_was_told_to_also_where_several_go_at_once(
        self, start: float, count: int
    ) -> None:
        found = level(start, concurrency=4, count=count, warm_up=0.2)
        assert (found.requests, found.attempts) == (count, count)

    @on_every_clock
    def test_calls_a_request_that_takes_just_as_long_as_it_may_good(self, start: float) -> None:
        found = level(
            start, rate=10, arrivals="constant", warm_up=0.0, duration=2, goodput="p99:100ms"
        )
        assert found.goodput is not None
        assert (found.goodput.share, found.goodput.is_met) == (1.0, True)

    @on_every_clock
    def test_has_the_same_seconds_with_the_same_answers_in_them(self, start: float) -> None:
        found = level(start, rate=10, arrivals="constant", warm_up=0.4, duration=3)
        assert [(i.at_s, i.succeeded) for i in found.timeline] == [(0, 10), (1, 10), (2, 10)]
        assert [i.seconds for i in found.timeline] == pytest.approx([1, 1, 1])

    @on_every_clock
    def test_has_120_seconds_of_two_minutes_whatever_their_sum(self, start: float) -> None:
        found = level(start, rate=1, arrivals="constant", warm_up=1.4, duration=120)
        assert len(found.timeline) == 120

    @given(start=ANY_START, first=st.floats(0.0, 0.125))
    def test_begins_a_search_at_the_same_rate(self, start: float, first: float) -> None:
        took = start + first + (0.125 - first) - start
        assert first_rate(took) == 8.0
