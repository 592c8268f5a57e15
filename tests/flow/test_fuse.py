"""`_flow.fuse`: a given limit stays as it is, but for a time after connections broke in a burst."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async._flow import Controller, Ending
from rerank_async._flow.fuse import Fuse

CLOCKS = [0.0, 1.0, 4096.3, 1e9]


def end(fuse: Fuse, now: float, ending: Ending, times: int = 1, *, started: float = 1e300) -> None:
    for _ in range(times):
        fuse.finished(now, min(now, started), 1, ending, fuse.limit)


def test_it_is_a_controller_that_needs_no_answers() -> None:
    controller: Controller = Fuse(16)
    assert (controller.limit, controller.cuts, controller.reason) == (16, 0, "")
    assert not controller.heeds_answers


@pytest.mark.parametrize("ending", ["throttled", "paused", "timeout", "other", "answered"])
def test_what_is_no_reset_leaves_the_limit_alone(ending: Ending) -> None:
    fuse = Fuse(16)
    for second in range(1000):
        end(fuse, float(second), ending, 20)
    assert (fuse.limit, fuse.cuts, fuse.reason) == (16, 0, "")


def test_a_reset_or_a_few_leave_the_limit_alone_and_five_on_end_halve_it() -> None:
    fuse = Fuse(16)
    for second in range(100):
        end(fuse, float(second), "reset", 4)
        fuse.unheard += 1000
    assert (fuse.limit, fuse.cuts) == (16, 0)
    end(fuse, 100.0, "reset", 5)
    assert (fuse.limit, fuse.cuts, fuse.reason, fuse.heeds_answers) == (8, 1, "resets", True)


@pytest.mark.parametrize("now", CLOCKS)
def test_what_was_on_the_wire_at_a_cut_counts_once(now: float) -> None:
    fuse = Fuse(16)
    end(fuse, now + 0.01, "reset", 13, started=now)
    assert (fuse.limit, fuse.cuts) == (8, 1)
    # Once it is lowered two are enough.
    end(fuse, now + 0.02, "reset", 2)
    assert (fuse.limit, fuse.cuts) == (4, 2)


@pytest.mark.parametrize("start", CLOCKS)
def test_after_a_second_it_rises_by_one_with_each_answer_and_is_as_it_was(start: float) -> None:
    fuse = Fuse(16)
    end(fuse, start, "reset", 5)
    end(fuse, start + 0.9, "answered", 100)
    assert fuse.limit == 8
    for risen in range(1, 9):
        end(fuse, start + 1.1, "answered")
        assert (fuse.limit, fuse.reason) == (8 + risen, "coming back")
    assert not fuse.heeds_answers
    end(fuse, start + 1.2, "answered", 10)
    assert fuse.limit == 16
    # It takes five on end again.
    end(fuse, start + 1.3, "reset", 4)
    assert fuse.limit == 16


def test_a_reset_on_the_way_back_takes_one_step_back_and_doubles_the_pause() -> None:
    fuse = Fuse(16)
    end(fuse, 0.0, "reset", 13, started=0.0)
    fuse.limit = fuse._low = 2
    now, pauses = 0.0, []
    for _ in range(8):
        cut = now
        while fuse.limit <= 3:
            now += 0.1
            end(fuse, now, "answered")
        pauses.append(now - cut)
        end(fuse, now, "reset")
        assert fuse.limit == 3
    assert pauses == pytest.approx([1.1, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0], abs=0.25)


@pytest.mark.parametrize("limit", [1, 2, 3, 16, 1000])
def test_one_connection_is_the_least(limit: int) -> None:
    fuse = Fuse(limit)
    for hundredth in range(10_000):
        end(fuse, hundredth / 100, "reset", 5 if fuse.limit == limit else 1)
        # One of them is answered, before the limit may rise again.
        if hundredth == 1:
            end(fuse, hundredth / 100, "answered")
    assert fuse.limit == 1
    # However long it lasted, it is back soon.
    now, answers = 100.0, 0
    while fuse.limit < limit:
        now += 0.01
        end(fuse, now, "answered")
        answers += 1
    assert now - 100.0 <= 1.0 + limit / 100.0


def test_a_connection_that_broke_after_a_second_was_not_one_too_many() -> None:
    fuse = Fuse(16)
    for second in range(100):
        end(fuse, second + 1.5, "reset", 16, started=float(second))
    assert (fuse.limit, fuse.cuts) == (16, 0)


def test_in_an_outage_fewer_do_not_help_and_the_limit_is_what_was_given() -> None:
    fuse = Fuse(16)
    seen: list[int] = []
    for second in range(100):
        end(fuse, float(second), "reset", 2)
        if not seen or seen[-1] != fuse.limit:
            seen.append(fuse.limit)
    # It tries with fewer once.
    assert seen == [16, 8, 4, 2, 1, 16]
    assert (fuse.cuts, fuse.reason, fuse.heeds_answers) == (4, "coming back", False)
    # After an answer it is as it was before.
    fuse.unheard += 1
    end(fuse, 101.0, "reset", 5)
    assert fuse.limit == 8


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 40.0),
            st.sampled_from(["answered", "reset", "throttled"]),
            st.integers(1, 20),
        ),
        max_size=60,
    )
)
def test_it_never_leaves_its_bounds_and_says_why(steps: list[tuple[float, Ending, int]]) -> None:
    fuse, now = Fuse(16), 0.0
    for seconds, ending, times in steps:
        now += seconds
        end(fuse, now, ending, times)
        assert 1 <= fuse.limit <= 16
        assert fuse.heeds_answers == (fuse.limit < 16)
        assert bool(fuse.reason) == bool(fuse.cuts)
