"""Who may stay connected, and until when: tables on a clock that the test holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.server._places import LineLimit, Phase, Places

LIMITS = {Phase.HEAD: 10.0, Phase.IDLE: 75.0, Phase.LEAVING: 5.0}


def places(most: int = 3) -> Places[str]:
    return Places(most, LIMITS)


@pytest.mark.parametrize("start", [0.0, 1.0, 4096.3, 86_400.7, 1e7, 1e9])
@pytest.mark.parametrize("phase", LIMITS)
def test_whoever_takes_too_long_is_overdue_at_whatever_time_the_clock_began(
    start: float, phase: Phase
) -> None:
    one = places()
    one.enter("a", phase, start)
    one.enter("b", phase, start + 1.0)
    assert one.overdue(start) == []
    assert one.overdue(start + LIMITS[phase] - 0.01) == []
    assert one.overdue(start + LIMITS[phase] + 0.01) == ["a"]
    assert one.overdue(start + LIMITS[phase] + 1.01) == ["a", "b"]
    assert one.next_look(start) == pytest.approx(LIMITS[phase], abs=1e-6)


def test_work_has_no_time_limit_here() -> None:
    one = places()
    one.enter("a", Phase.WORK, 0.0)
    assert one.overdue(1e9) == []
    assert one.next_look(0.0) is None


def test_a_phase_begins_anew_when_it_is_entered_again() -> None:
    one = places()
    one.enter("a", Phase.HEAD, 0.0)
    one.enter("b", Phase.HEAD, 5.0)
    one.enter("a", Phase.HEAD, 8.0)
    assert one.overdue(17.0) == ["b"]
    assert len(one) == 2


def test_room_is_made_by_those_who_are_least_likely_to_be_missed() -> None:
    one = places()
    one.enter("works", Phase.WORK, 0.0)
    one.enter("last", Phase.LAST, 0.0)
    one.enter("old head", Phase.HEAD, 1.0)
    one.enter("old idle", Phase.IDLE, 2.0)
    one.enter("idle", Phase.IDLE, 3.0)
    one.enter("leaves", Phase.LEAVING, 4.0)
    one.enter("new", Phase.HEAD, 5.0)
    order = []
    while (gone := one.makes_room("new")) is not None:
        order.append(gone)
        one.leave(gone)
    assert order == ["leaves", "old idle", "idle", "old head"]
    assert set(one) == {"works", "last", "new"}


def test_it_is_full_when_there_are_more_than_may_be() -> None:
    one = places(most=2)
    for number, name in enumerate("abc"):
        one.enter(name, Phase.WORK, 0.0)
        assert one.full == (number == 2)
    one.leave("a")
    one.leave("a")
    assert not one.full
    assert one.phase("a") is None


MOVES = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from([*Phase, None]), st.floats(0, 100)),
    max_size=40,
)


@given(MOVES)
def test_everybody_is_in_one_phase_and_is_overdue_exactly_after_its_limit(
    moves: list[tuple[str, Phase | None, float]],
) -> None:
    one = places()
    model: dict[str, tuple[Phase, float]] = {}
    now = 0.0
    for name, phase, passed in moves:
        now += passed
        if phase is None:
            one.leave(name)
            model.pop(name, None)
        else:
            one.enter(name, phase, now)
            model[name] = (phase, now)
        assert set(one) == set(model)
        assert sorted(one.among(*Phase)) == sorted(model)
        late = {
            name
            for name, (phase, since) in model.items()
            if phase in LIMITS and now - since >= LIMITS[phase]
        }
        assert set(one.overdue(now)) == late


def test_a_flood_writes_few_lines_and_the_rest_is_counted() -> None:
    lines = LineLimit(3, 10.0)
    assert [lines.allow(now / 100) for now in range(100)] == [True] * 3 + [False] * 97
    assert lines.withheld() == 97
    assert lines.withheld() == 0
    assert lines.allow(10.0)
