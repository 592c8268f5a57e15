"""`_flow.alarm`: overload rings it at once, and what fails at random hardly ever."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._flow.alarm import Alarm


def rings_after(alarm: Alarm, most: int = 1000) -> int:
    """How many failures on end ring it."""
    return next(number for number in range(1, most) if alarm.failed())


@pytest.mark.parametrize(("bits", "failures"), [(5.0, 1), (8.0, 2), (12.0, 3), (19.0, 5)])
def test_so_many_failures_on_end_ring_it(bits: float, failures: int) -> None:
    assert rings_after(Alarm(bits)) == failures


def test_after_it_rang_half_as_much_rings_it_again() -> None:
    alarm = Alarm(12.0)
    assert [alarm.failed() for _ in range(5)] == [False, False, True, False, True]


def test_each_answer_takes_one_bit_back_and_no_more_than_there_is() -> None:
    alarm = Alarm(12.0)
    alarm.failed()
    alarm.failed()
    alarm.answered(3)
    assert not alarm.failed()
    alarm.answered(1000)
    assert rings_after(alarm) == 3


@given(st.integers(0, 50), st.integers(0, 3))
def test_answers_count_the_same_one_by_one_and_together(answers: int, failures: int) -> None:
    one, other = Alarm(20.0), Alarm(20.0)
    for alarm in (one, other):
        for _ in range(failures):
            alarm.failed()
    one.answered(answers)
    for _ in range(answers):
        other.answered()
    assert one._evidence == pytest.approx(other._evidence)
    assert one._usual == pytest.approx(other._usual)


def test_a_failure_with_more_weight_rings_it_alone_but_not_where_failures_are_usual() -> None:
    assert Alarm(12.0).failed(2.5)
    alarm = Alarm(12.0)
    dice = Random(1)
    for _ in range(1000):
        if dice.random() < 0.05:
            alarm.failed()
        else:
            alarm.answered()
    alarm.answered(3)
    assert not alarm.failed(2.5)


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.01, 2), (0.05, 4), (0.2, 60)])
def test_failures_at_random_hardly_ever_ring_it(share: float, most: int) -> None:
    alarm, dice, rang = Alarm(12.0), Random(3), 0
    for _ in range(20_000):
        if dice.random() < share:
            rang += alarm.failed()
        else:
            alarm.answered()
    assert rang <= most


def test_where_every_second_attempt_fails_it_goes_on_ringing() -> None:
    alarm = Alarm(12.0)
    rang = 0
    for _ in range(1000):
        rang += alarm.failed()
        alarm.answered()
    assert rang > 50


def test_where_everything_fails_it_goes_on_ringing() -> None:
    alarm = Alarm(12.0)
    assert sum(alarm.failed() for _ in range(1000)) > 50
