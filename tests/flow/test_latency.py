"""`_flow.latency`: what is expected from what was measured lately, for requests of similar size."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._flow.latency import Latencies

# A percentile is the upper edge of its bin: too high by an eighth of a doubling, and by what is
# added so that no time at all is recorded too.
WIDTH = 2.0 ** (1 / 8)
LEAST = 1e-6


@given(
    st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=100),
    st.sampled_from([0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0]),
)
def test_a_percentile_is_the_true_one_or_a_little_more(seconds: list[float], share: float) -> None:
    latencies = Latencies()
    for taken in seconds:
        latencies.record(5.0, 100, taken)
    rank = max(1, math.ceil(share * len(seconds)))
    true = sorted(seconds)[rank - 1]
    found = latencies.percentile(5.0, 100, share)
    assert found is not None
    assert true * (1 - 1e-9) <= found <= (true + LEAST) * WIDTH * (1 + 1e-9)


def test_nothing_is_known_at_first() -> None:
    assert Latencies().percentile(0.0, 1, 0.5) is None
    assert Latencies().percentile(0.0, 1, 0.5, 0) is None


@pytest.mark.parametrize(
    ("known", "at_least", "enough"), [(4, 5, False), (5, 5, True), (1, 1, True)]
)
def test_too_few_are_no_ground_to_expect_anything(known: int, at_least: int, enough: bool) -> None:
    latencies = Latencies()
    for _ in range(known):
        latencies.record(0.0, 10, 1.0)
    assert (latencies.percentile(0.0, 10, 0.5, at_least) is not None) == enough


@pytest.mark.parametrize(
    ("recorded", "asked", "alike"),
    [
        (1, 1, True),
        (1, 2, False),
        (2, 3, True),
        (3, 4, False),
        (4, 7, True),
        (7, 8, False),
        (8, 15, True),
        (512, 1000, True),
        (1000, 1024, False),
    ],
)
def test_requests_of_similar_size_share_their_figures(
    recorded: int, asked: int, alike: bool
) -> None:
    latencies = Latencies()
    latencies.record(0.0, recorded, 1.0)
    assert (latencies.percentile(0.0, asked, 0.5) is not None) == alike


def test_sizes_do_not_mix() -> None:
    latencies = Latencies()
    for _ in range(100):
        latencies.record(0.0, 1, 0.01)
        latencies.record(0.0, 1000, 1.0)
    for documents, seconds in [(1, 0.01), (1000, 1.0)]:
        found = latencies.percentile(0.0, documents, 0.99)
        assert found == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize("start", [0.0, 3.0, 9.99, 12345.6, -7.0])
def test_what_was_recorded_is_known_for_20_seconds_and_forgotten_after_30(start: float) -> None:
    latencies = Latencies()
    latencies.record(start, 10, 1.0)
    assert latencies.percentile(start + 20.0, 10, 0.5) is not None
    assert latencies.percentile(start + 30.0, 10, 0.5) is None


def test_the_slow_that_have_gone_do_not_raise_what_is_expected_now() -> None:
    latencies = Latencies()
    for second in range(100):
        latencies.record(float(second), 10, 5.0 if second < 50 else 0.1)
    assert latencies.percentile(99.0, 10, 0.99) == pytest.approx(0.1, rel=0.1)


def test_however_long_it_runs_no_more_than_the_newest_are_kept() -> None:
    latencies = Latencies()
    for second in range(0, 10_000, 5):
        latencies.record(float(second), 10, 1.0)
    # The last slices hold six of those.
    assert latencies.percentile(9_995.0, 10, 0.5, at_least=6) is not None
    assert latencies.percentile(9_995.0, 10, 0.5, at_least=7) is None
    assert [len(slices) for slices in latencies._classes.values()] == [3]


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-6])
def test_what_took_no_time_at_all_is_recorded_too(seconds: float) -> None:
    latencies = Latencies()
    latencies.record(0.0, 1, seconds)
    found = latencies.percentile(0.0, 1, 1.0)
    assert found is not None
    assert 0.0 < found < 3e-6
