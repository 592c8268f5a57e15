"""`_flow.gate`: closed for as long as the longest hint says, and a little."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._flow.gate import Gate

SECONDS = st.floats(0.0, 1e6)
DRAWS = st.floats(0.0, 1.0, exclude_max=True)


def test_it_is_open_at_first() -> None:
    assert Gate().wait(0.0) == 0.0
    assert Gate().wait(-1e9) == 0.0


@pytest.mark.parametrize(
    ("seconds", "draw", "opens"),
    [(10.0, 0.0, 110.0), (10.0, 0.5, 110.5), (10.0, 0.99, 110.99), (0.5, 0.5, 100.525)],
)
def test_it_opens_after_the_hint_and_up_to_a_tenth_more(
    seconds: float, draw: float, opens: float
) -> None:
    gate = Gate()
    assert gate.close(100.0, seconds, draw)
    assert gate.until == pytest.approx(opens)
    assert gate.wait(100.0) == pytest.approx(opens - 100.0)
    assert gate.wait(opens - 0.01) == pytest.approx(0.01)
    assert gate.wait(opens) == pytest.approx(0.0, abs=1e-9)
    assert gate.wait(opens + 1.0) == 0.0


def test_a_shorter_hint_does_not_open_it_sooner() -> None:
    gate = Gate()
    gate.close(0.0, 60.0, 0.0)
    assert not gate.close(10.0, 5.0, 0.5)
    assert gate.wait(10.0) == 50.0
    assert not gate.close(10.0, 50.0, 0.0)
    assert gate.close(10.0, 51.0, 0.0)
    assert gate.wait(10.0) == 51.0


def test_a_hint_to_come_back_at_once_changes_nothing() -> None:
    gate = Gate()
    assert not gate.close(5.0, 0.0, 0.9)
    assert gate.wait(5.0) == 0.0
    gate.close(5.0, 1.0, 0.0)
    assert not gate.close(100.0, 0.0, 0.9)
    assert gate.wait(100.0) == 0.0


@given(st.lists(st.tuples(SECONDS, SECONDS, DRAWS), max_size=20))
def test_it_only_ever_moves_further_away_and_says_when_it_does(
    hints: list[tuple[float, float, float]],
) -> None:
    gate, now = Gate(), 0.0
    for passed, seconds, draw in hints:
        now += passed
        before, waited = gate.until, gate.wait(now)
        changed = gate.close(now, seconds, draw)
        assert gate.until >= before
        assert changed == (gate.until > before)
        assert changed == (gate.wait(now) > waited)
        assert gate.wait(now) >= seconds * (1.0 - 1e-9) - 1e-9
        assert gate.wait(now) <= max(waited, 1.1 * seconds + 1e-9)
