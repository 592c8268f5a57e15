"""`_flow.buckets`: a rate is kept whatever is asked for, and whatever is asked for goes in time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rerank_async._flow.buckets import Bucket


class Filling(RuleBasedStateMachine):
    """Requests that go whenever the bucket lets them, one after the other."""

    @initialize(
        per_minute=st.sampled_from([1.0, 30.0, 60.0, 600.0, 1e6]),
        burst=st.none() | st.sampled_from([1.0, 5.0, 100.0]),
    )
    def open(self, per_minute: float, burst: float | None) -> None:
        self.bucket = Bucket(per_minute, burst)
        self.rate = per_minute / 60.0
        self.burst = max(1.0, self.rate) if burst is None else burst
        self.now = 1000.0
        self.opened = self.now
        # When each was let through, and how much.
        self.gone: list[tuple[float, float]] = []

    @rule(seconds=st.floats(0.0, 100.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(share=st.floats(0.0, 5.0))
    def ask(self, share: float) -> None:
        amount = share * self.burst
        wait = self.bucket.wait(self.now, amount)
        assert wait >= 0.0
        if wait == 0.0:
            self.go(amount)

    @rule(share=st.floats(0.0, 5.0))
    def ask_and_wait(self, share: float) -> None:
        amount = share * self.burst
        wait = self.bucket.wait(self.now, amount)
        if wait * self.rate > 1e-6 * self.burst:
            # Not a moment earlier, and then it goes.
            assert self.bucket.wait(self.now + 0.99 * wait, amount) > 0.0
        self.now += wait
        assert self.bucket.wait(self.now, amount) <= 1e-6
        self.go(amount)

    def go(self, amount: float) -> None:
        self.bucket.take(self.now, amount)
        self.gone.append((self.now, amount))

    @invariant()
    def no_stretch_of_time_lets_more_through_than_its_rate_a_burst_and_a_large_one(self) -> None:
        total, largest = 0.0, 0.0
        for then, amount in reversed(self.gone):
            total += amount
            largest = max(largest, amount - self.burst)
            allowed = self.rate * (self.now - then) + self.burst + largest
            assert total <= allowed * (1 + 1e-6) + 1e-6

    @invariant()
    def it_never_holds_more_than_a_burst(self) -> None:
        assert self.bucket.level(self.now) <= self.burst


TestFilling = Filling.TestCase


@pytest.mark.parametrize(
    ("per_minute", "burst", "full"),
    [(60.0, None, 1.0), (6.0, None, 1.0), (600.0, None, 10.0), (600.0, 3.0, 3.0), (6.0, 0.5, 0.5)],
)
def test_it_is_full_at_first_with_a_seconds_worth_and_one_at_least(
    per_minute: float, burst: float | None, full: float
) -> None:
    bucket = Bucket(per_minute, burst)
    assert bucket.level(0.0) == full
    assert bucket.level(1e9) == full


@pytest.mark.parametrize(
    ("taken", "after", "amount", "wait"),
    [
        # 10 a second, 10 at most.
        (0.0, 0.0, 10.0, 0.0),
        (0.0, 0.0, 25.0, 0.0),
        (10.0, 0.0, 1.0, 0.1),
        (10.0, 0.0, 10.0, 1.0),
        (10.0, 0.0, 25.0, 1.0),
        (10.0, 0.25, 5.0, 0.25),
        (10.0, 0.5, 5.0, 0.0),
        (7.0, 0.0, 3.0, 0.0),
        (7.0, 0.0, 4.0, 0.1),
        # A debt of 15 is paid off first.
        (25.0, 0.0, 1.0, 1.6),
        (25.0, 1.5, 0.0, 0.0),
        (25.0, 1.0, 0.0, 0.5),
        (25.0, 2.5, 25.0, 0.0),
        (25.0, 2.0, 25.0, 0.5),
    ],
)
def test_the_time_to_wait_follows_the_table(
    taken: float, after: float, amount: float, wait: float
) -> None:
    bucket = Bucket(600.0)
    bucket.take(5.0, taken)
    assert bucket.wait(5.0 + after, amount) == pytest.approx(wait)


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket = Bucket(600.0)
    bucket.take(100.0, 10.0)
    assert bucket.level(50.0) == 0.0
    assert bucket.level(100.5) == pytest.approx(5.0)


def test_the_rounding_of_many_additions_is_no_reason_to_wait() -> None:
    bucket = Bucket(60.0 * 10, 1.0)
    now = 0.0
    bucket.take(now, 1.0)
    for _ in range(1000):
        for _ in range(10):
            now += 0.01
            bucket.level(now)
        assert bucket.wait(now, 1.0) == 0.0
        bucket.take(now, 1.0)


@given(st.lists(st.floats(0.1, 400.0), min_size=1, max_size=50))
def test_large_and_small_together_keep_the_rate_on_average(amounts: list[float]) -> None:
    bucket, now = Bucket(600.0), 0.0
    for amount in amounts:
        now += bucket.wait(now, amount)
        bucket.take(now, amount)
    # What has gone is paid for, but for the burst at the beginning and what is owed for the last.
    assert now >= (sum(amounts[:-1]) - 10.0) / 10.0 - 1e-6
    assert now <= sum(amounts) / 10.0 + 1e-6


@pytest.mark.parametrize(
    ("difference", "level"), [(3.0, -1.0), (-3.0, 5.0), (0.0, 2.0), (-100.0, 10.0), (50.0, -48.0)]
)
def test_an_estimate_that_was_wrong_is_settled_up_to_the_burst(
    difference: float, level: float
) -> None:
    bucket = Bucket(600.0)
    bucket.take(0.0, 8.0)
    bucket.settle(0.0, difference)
    assert bucket.level(0.0) == pytest.approx(level)


@pytest.mark.parametrize(
    ("remaining", "level"), [(0.0, 0.0), (1.5, 1.5), (2.0, 2.0), (7.0, 2.0), (math.inf, 2.0)]
)
def test_the_servers_count_corrects_ours_downwards_only(remaining: float, level: float) -> None:
    bucket = Bucket(600.0)
    bucket.take(0.0, 8.0)
    bucket.correct(0.0, remaining)
    assert bucket.level(0.0) == level


def test_the_servers_count_does_not_forgive_a_debt() -> None:
    bucket = Bucket(600.0)
    bucket.take(0.0, 30.0)
    bucket.correct(0.0, 0.0)
    assert bucket.level(0.0) == -20.0


@pytest.mark.parametrize("difference", [5.0, 0.0, 1000.0])
def test_a_wrong_estimate_forgives_no_debt_that_stands(difference: float) -> None:
    # 10 a second: 1200 are a debt of two minutes, which is more than an estimate may make.
    bucket = Bucket(600.0)
    bucket.take(0.0, 1210.0)
    bucket.settle(0.0, difference)
    assert bucket.level(0.0) == -1200.0


def test_a_wrong_estimate_makes_a_debt_of_one_minute_at_most() -> None:
    bucket = Bucket(600.0)
    bucket.settle(0.0, 5000.0)
    assert bucket.level(0.0) == -600.0


def test_a_wait_too_short_for_the_clock_is_none() -> None:
    # 1e9 seconds after its beginning a clock cannot show a hundred-millionth of one.
    bucket = Bucket(60.0 * 1e8, 10.0)
    bucket.take(1e9, 10.0)
    assert bucket.wait(1e9, 1.0) == 0.0
