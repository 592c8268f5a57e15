"""The knee of levels, and which load is held next: tables, and servers of s slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_async.bench import Level
from rerank_async.bench._arrivals import Loads
from rerank_async.bench._knee import best_of, knee_of, power
from rerank_async.bench._sweep import first_rate, next_load
from tests.bench.simulated import closed, level, opened


def swept(loads: Loads, held: Callable[[float], Level]) -> list[Level]:
    done: list[Level] = []
    while (load := next_load(loads, done)) is not None:
        assert len(done) < 60
        done.append(held(load))
    return done


def in_order(levels: list[Level]) -> list[Level]:
    return sorted(levels, key=lambda level: level.load)


SEARCH = Loads("closed", (1.0, 1024.0), is_search=True)
RATES = Loads("open", (1.0, 100_000.0), is_search=True)


class TestKneeOfAClosedLoop:
    @given(st.integers(2, 40), st.floats(0.001, 2.0))
    @settings(max_examples=40, deadline=None)
    def test_is_the_number_of_slots_where_that_is_among_the_levels(
        self, slots: int, service: float
    ) -> None:
        levels = [closed(load, slots, service) for load in range(1, 2 * slots + 2)]
        knee, note = knee_of(levels)
        assert note is None
        assert knee is not None
        # Its neighbours may be as good within 2 %; of those it is the smallest.
        assert power(levels[knee.level]) >= 0.98 * power(levels[slots - 1])
        assert knee.load == levels[knee.level].load <= slots
        if slots < 40:
            assert knee.load == slots

    def test_is_the_smaller_load_where_two_are_as_good(self) -> None:
        levels = [
            level(1, per_s=10, mean=0.1),
            level(2, per_s=20, mean=0.1),
            level(4, per_s=40.1, mean=0.2),
            level(8, per_s=41, mean=0.4),
        ]
        assert best_of(levels) == 1
        assert best_of(list(reversed(levels))) == 2
        assert best_of([*levels[:2], level(4, per_s=41.0, mean=0.2), levels[3]]) == 2

    def test_is_no_level_of_which_more_than_one_in_a_hundred_failed(self) -> None:
        levels = [
            level(1, per_s=10, mean=0.1),
            level(2, per_s=15, mean=0.1),
            level(4, per_s=90, mean=0.1, failed=2),
            level(8, per_s=20, mean=0.4),
        ]
        knee, _ = knee_of(levels)
        assert knee is not None
        assert (knee.level, knee.load) == (1, 2)
        levels[2] = level(4, per_s=90, mean=0.1, failed=1)
        knee, _ = knee_of(levels)
        assert knee is not None
        assert knee.load == 4

    @pytest.mark.parametrize(
        ("slots", "loads", "words"),
        [
            (100, (1, 2, 4), "at the highest concurrency, 4, more still paid"),
            (1, (4, 8, 16), "at the lowest concurrency, 4, more did not pay"),
        ],
    )
    def test_is_not_found_at_an_end(self, slots: int, loads: tuple[int, ...], words: str) -> None:
        knee, note = knee_of([closed(load, slots, 0.1) for load in loads])
        assert knee is None
        assert words in str(note)

    def test_of_one_slot_is_1(self) -> None:
        knee, _ = knee_of([closed(load, 1, 0.1) for load in (1, 2, 4)])
        assert knee is not None
        assert knee.load == 1

    def test_is_not_found_where_everything_failed(self) -> None:
        knee, note = knee_of([level(load, failed=100) for load in (1, 2)])
        assert knee is None
        assert "failed" in str(note)

    def test_is_not_looked_for_in_one_level(self) -> None:
        assert knee_of([closed(4, 4, 0.1)]) == (None, None)
        assert knee_of([]) == (None, None)

    def test_is_missed_where_a_search_ended_at_once(self) -> None:
        found, why = knee_of([level(1, failed=100)], is_search=True)
        assert found is None
        assert why is not None
        assert "failed" in why

    def test_says_what_came_after_and_that_the_client_was_the_limit(self) -> None:
        levels = [closed(load, 4, 0.1) for load in (2, 4, 8)]
        knee, _ = knee_of(levels)
        assert knee is not None
        assert "40.0 requests/s at 100.0 ms; at 8 it is 40.0 requests/s at 200.0 ms." in knee.why
        knee, _ = knee_of([*levels[:2], evolve(levels[2], limited_by="client")])
        assert knee is not None
        assert "the client was the limit" in knee.why


class TestKneeOfAnOpenLoop:
    def test_is_the_highest_rate_that_was_kept_up_with(self) -> None:
        knee, note = knee_of([opened(rate, 45.0) for rate in (10, 20, 40, 80)])
        assert note is None
        assert knee is not None
        assert (knee.level, knee.load) == (2, 40)
        assert "of 80 requests/s it answered 45.0" in knee.why

    def test_is_not_found_where_all_or_none_were_kept_up_with(self) -> None:
        knee, note = knee_of([opened(rate, 500.0) for rate in (10, 20)])
        assert knee is None
        assert "the highest rate, 20 requests/s" in str(note)
        knee, note = knee_of([opened(rate, 5.0) for rate in (10, 20)])
        assert knee is None
        assert "the lowest rate, 10 requests/s" in str(note)


class TestSearch:
    def test_of_loads_that_are_named_is_those_in_their_order(self) -> None:
        done = swept(Loads("closed", (1.0, 5.0, 9.0)), lambda load: closed(load, 2, 0.1))
        assert [level.load for level in done] == [1, 5, 9]

    def test_doubles_until_two_levels_do_not_grow_then_looks_between_once(self) -> None:
        done = swept(SEARCH, lambda load: closed(load, 6, 0.1))
        assert [level.load for level in done] == [1, 2, 4, 8, 16, 32, 6, 12]

    @given(st.integers(1, 700), st.floats(0.001, 5.0))
    @settings(max_examples=100, deadline=None)
    def test_finds_the_slots_of_a_server_within_a_quarter_in_few_levels(
        self, slots: int, service: float
    ) -> None:
        done = swept(SEARCH, lambda load: closed(load, slots, service))
        assert len(done) <= 13
        assert len({level.load for level in done}) == len(done)
        knee, _ = knee_of(in_order(done))
        assert knee is not None
        assert slots / 1.25 <= knee.load <= slots * 1.25
        if slots <= 4:
            assert knee.load == slots

    def test_ends_where_more_than_a_tenth_fails(self) -> None:
        def held(load: float) -> Level:
            if load > 8:
                return level(load, per_s=100 * load, failed=11)
            return closed(load, 100, 0.1)

        done = swept(SEARCH, held)
        assert [level.load for level in done] == [1, 2, 4, 8, 16, 6, 12]

    def test_goes_on_where_a_tenth_fails(self) -> None:
        done = swept(
            Loads("closed", (1.0, 4.0), True), lambda load: level(load, per_s=load, failed=10)
        )
        assert [level.load for level in done] == [1, 2, 4]

    def test_goes_on_after_one_level_that_did_not_grow(self) -> None:
        figures = {1.0: 10.0, 2.0: 10.0, 4.0: 20.0, 8.0: 40.0, 16.0: 41.0, 32.0: 43.0}
        done = swept(
            SEARCH, lambda load: level(load, per_s=figures.get(load, 42.0), mean=load / 40)
        )
        assert [level.load for level in done][:6] == [1, 2, 4, 8, 16, 32]
        assert 64 not in [level.load for level in done]

    def test_ends_at_its_end(self) -> None:
        done = swept(Loads("closed", (3.0, 20.0), True), lambda load: closed(load, 500, 0.1))
        assert [level.load for level in done] == [3, 6, 12, 20, 16]

    def test_of_rates_halves_what_lies_between(self) -> None:
        done = swept(RATES, lambda rate: opened(rate, 100.0))
        assert [level.load for level in done] == [1, 2, 4, 8, 16, 32, 64, 128, 96, 112, 104]
        knee, _ = knee_of(in_order(done))
        assert knee is not None
        assert knee.load == 104

    @given(st.floats(2.0, 50_000.0))
    @settings(max_examples=100, deadline=None)
    def test_of_rates_finds_what_a_server_can_do_within_a_fifth(self, capacity: float) -> None:
        done = swept(RATES, lambda rate: opened(rate, capacity))
        knee, _ = knee_of(in_order(done))
        assert knee is not None
        assert capacity / 1.2 <= knee.load <= capacity * 1.25

    def test_of_rates_ends_where_none_or_all_are_kept_up_with(self) -> None:
        assert len(swept(RATES, lambda rate: opened(rate, 1e9))) == 18
        assert len(swept(Loads("open", (64.0, 1e5), True), lambda rate: opened(rate, 3.0))) == 1

    @pytest.mark.parametrize(
        ("seconds", "rate"), [(0.1, 8.0), (0.125, 8.0), (3.0, 1.0), (0.0, 1024.0), (0.0001, 1024.0)]
    )
    def test_of_rates_begins_with_what_one_request_after_another_makes(
        self, seconds: float, rate: float
    ) -> None:
        assert first_rate(seconds) == rate
