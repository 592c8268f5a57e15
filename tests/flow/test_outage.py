"""`_flow.outage`: how often a parked request asks, and when it gives up."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._flow.outage import NEVER_REACHED, Downtime, Outage

TIMES = st.floats(0.0, 1e6)
DRAWS = st.floats(0.0, 1.0, exclude_max=True)


@pytest.mark.parametrize(
    ("now", "gives_up"), [(100.0, False), (159.9, False), (160.0, True), (1e9, True)]
)
def test_as_long_as_nobody_is_answered_the_patience_alone_counts(
    now: float, gives_up: bool
) -> None:
    assert Outage(100.0, 60.0, 2).gives_up(now) is gives_up


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_while_others_are_answered_it_gives_up_after_its_attempts(attempts: int) -> None:
    outage = Outage(0.0, 600.0, attempts)
    for _ in range(attempts):
        assert not outage.gives_up(1.0)
        outage.failed(throttled=False)
    assert outage.gives_up(1.0)


def test_a_server_that_only_asks_it_to_come_back_is_no_reason_to_give_up() -> None:
    outage = Outage(0.0, 600.0, 1)
    for number in range(100):
        assert outage.failures == number
        outage.failed(throttled=True)
    assert not outage.gives_up(599.0)
    outage.failed(throttled=False)
    assert outage.gives_up(599.0)
    assert outage.failures == 101


def test_what_was_answered_before_it_was_parked_is_no_news() -> None:
    outage = Outage(100.0, 600.0, 2)
    assert not outage.is_news(-inf)
    assert not outage.is_news(99.0)
    assert not outage.is_news(100.0)
    assert outage.is_news(100.1)


def test_news_are_news_once() -> None:
    outage = Outage(100.0, 600.0, 2)
    outage.hear(110.0)
    assert not outage.is_news(105.0)
    assert not outage.is_news(110.0)
    assert outage.is_news(111.0)


@pytest.mark.parametrize(
    ("failures", "draw", "wait"),
    [
        (0, 0.999, 0.0),
        (1, 0.5, 0.5),
        (2, 0.5, 1.0),
        (3, 0.5, 2.0),
        (5, 0.5, 8.0),
        (6, 0.5, 15.0),
        (7, 0.5, 15.0),
        (10_000, 0.5, 15.0),
        (6, 0.0, 0.0),
    ],
)
def test_the_wait_doubles_with_each_failure_up_to_half_a_minute(
    failures: int, draw: float, wait: float
) -> None:
    assert Outage(0.0, 600.0, 2).wait(10.0, failures, draw) == wait


@pytest.mark.parametrize(
    ("now", "wait"), [(580.0, 15.0), (590.0, 10.0), (600.0, 0.0), (700.0, 0.0)]
)
def test_the_last_wait_ends_with_the_patience(now: float, wait: float) -> None:
    assert Outage(0.0, 600.0, 2).wait(now, 100, 0.5) == wait


@given(TIMES, st.floats(1e-3, 1e6), TIMES, st.integers(0, 10**6), DRAWS)
def test_no_wait_is_longer_than_half_a_minute_or_than_what_is_left(
    began: float, patience: float, later: float, failures: int, draw: float
) -> None:
    outage = Outage(began, patience, 4)
    now = began + later
    wait = outage.wait(now, failures, draw)
    assert 0.0 <= wait <= 30.0
    assert wait <= max(0.0, began + patience - now)


@given(st.integers(1, 50), DRAWS)
def test_another_failure_never_makes_the_wait_shorter(failures: int, draw: float) -> None:
    outage = Outage(0.0, 1e6, 4)
    assert outage.wait(0.0, failures, draw) <= outage.wait(0.0, failures + 1, draw)


@pytest.mark.parametrize(
    ("patience", "reached", "until"),
    [(600.0, True, 600.0), (600.0, False, NEVER_REACHED), (3.0, True, 3.0), (3.0, False, 3.0)],
)
def test_a_server_that_was_never_reached_gets_seconds(
    patience: float, reached: bool, until: float
) -> None:
    outage = Outage(100.0, patience, 2)
    assert not outage.gives_up(99.9 + until, reached=reached)
    assert outage.gives_up(100.0 + until, reached=reached)
    assert outage.wait(100.0, 100, 0.999, reached=reached) <= until
    assert outage.wait(100.0 + until, 100, 0.999, reached=reached) == 0.0


def test_who_is_parked_later_has_what_is_left_of_the_patience() -> None:
    outage = Outage(150.0, 60.0, 2, since=100.0)
    assert not outage.gives_up(159.9)
    assert outage.gives_up(160.0)
    # What others heard before it was parked is no news.
    assert not outage.is_news(149.0)
    assert outage.is_news(151.0)
    assert Outage(170.0, 60.0, 2, since=100.0).gives_up(170.0)


def test_an_outage_lasts_from_its_first_failure_until_an_answer() -> None:
    down, never = Downtime(), float("-inf")
    assert down.lasts(5.0, never) == 0.0
    down.failed(10.0, never, "one", reached=False)
    down.failed(20.0, never, "two", reached=False)
    assert (down.lasts(25.0, never), down.problem, down.reached) == (15.0, "two", False)
    assert (down.parked(30.0), down.parked(40.0)) == (30.0, 30.0)
    assert down.lasts(51.0, 50.0) == 0.0
    # What fails after an answer is another outage; that it was reached is never forgotten.
    down.failed(60.0, 50.0, "three", reached=True)
    down.failed(61.0, 50.0, "four", reached=False)
    assert (down.lasts(65.0, 50.0), down.problem, down.reached) == (5.0, "four", True)
    assert (down.parked(70.0), down.parked(80.0)) == (70.0, 70.0)


def test_failures_that_are_far_apart_are_of_two_outages() -> None:
    down, never = Downtime(), float("-inf")
    down.failed(0.0, never, "x", reached=True)
    assert down.parked(1.0) == 1.0
    for now in range(100, 1000, 100):
        down.failed(now, never, "x", reached=True)
        assert down.parked(now) == 1.0
    down.failed(1100.0, never, "x", reached=True)
    assert (down.lasts(1100.0, never), down.parked(1101.0)) == (0.0, 1101.0)
