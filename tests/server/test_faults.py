"""Scripted faults: how many, where and of which kind."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.server import Faults


def places(rate: float, answers: int) -> list[int]:
    faults = Faults(rate)
    return [place for place in range(1, answers + 1) if faults.next() is not None]


@pytest.mark.parametrize(
    ("rate", "answers", "expected"),
    [(0.1, 1000, 100), (0.1, 9, 0), (0.1, 10, 1), (0.25, 10, 2), (0.5, 7, 3), (0.9, 10, 9)],
)
def test_the_share_is_exact(rate: float, answers: int, expected: int) -> None:
    assert len(places(rate, answers)) == expected


@pytest.mark.parametrize("percent", range(1, 100))
def test_every_whole_percentage_is_exact_over_a_hundred_answers(percent: int) -> None:
    assert len(places(percent / 100, 100)) == percent


def test_one_in_ten_is_every_tenth() -> None:
    assert places(0.1, 50) == [10, 20, 30, 40, 50]


@given(st.floats(min_value=0.001, max_value=0.999), st.integers(min_value=1, max_value=2000))
def test_faults_are_spread_evenly(rate: float, answers: int) -> None:
    found = places(rate, answers)
    assert abs(len(found) - rate * answers) <= 1
    gaps = {after - before for before, after in pairwise(found)}
    assert gaps <= {math.floor(1 / rate), math.ceil(1 / rate)}


def test_no_share_means_no_faults() -> None:
    assert places(0.0, 1000) == []


def test_the_kinds_come_in_turn() -> None:
    faults = Faults(0.5)
    kinds = [kind for kind in (faults.next() for _ in range(14)) if kind is not None]
    assert kinds == ["429", "503", "reset", "429", "503", "reset", "429"]


def test_two_runs_are_alike() -> None:
    one, other = Faults(0.3), Faults(0.3)
    assert [one.next() for _ in range(100)] == [other.next() for _ in range(100)]


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.inf, math.nan])
def test_a_share_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Faults(rate)
