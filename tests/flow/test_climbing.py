"""`_flow.climbing`: to the knee and not beyond, away from overload at once, and back again."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from math import inf, log, sqrt
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rerank_async._flow import Controller, Ending
from rerank_async._flow.climbing import TRANSITIONS, Climber, Happening

SERVICE = 0.2


def of_slots(slots: int) -> Callable[[int], float]:
    """How long an attempt takes on a server with so many slots, when there are so many at once."""
    return lambda attempts: SERVICE * max(1.0, attempts / slots)


@dataclass
class Script:
    """Tells a climber, one by one, what became of attempts, with the limit made full use of."""

    climber: Climber
    took: Callable[[int], float] = field(default_factory=lambda: of_slots(32))
    now: float = 0.0

    def answer(self, times: int = 1, *, in_flight: int | None = None, documents: int = 1) -> None:
        for _ in range(times):
            attempts = self.climber.limit if in_flight is None else in_flight
            took = self.took(attempts)
            self.now += took / max(1, attempts)
            self.climber.finished(self.now, self.now - took, documents, "answered", attempts)

    def answer_until(self, true: Callable[[], bool], *, most: int = 10_000) -> None:
        for _ in range(most):
            if true():
                return
            self.answer()
        raise AssertionError(f"the limit is still {self.climber.limit}")

    def fail(self, ending: Ending, times: int = 1, *, after: float = 0.001) -> None:
        """Attempts started now that ended all together."""
        started, self.now = self.now, self.now + after
        for _ in range(times):
            self.climber.finished(self.now, started, 1, ending, self.climber.limit)


def settled(slots: int, **options: Any) -> Script:
    """A script whose climber has come to rest."""
    script = Script(Climber(**options), of_slots(slots))
    script.answer(40 * max(16, slots))
    return script


# ── the rules, one by one ──


@pytest.mark.parametrize(("slots", "start"), [(4, 8), (4, 16), (10, 12), (10, 20), (20, 23)])
def test_what_is_refused_because_the_limit_is_too_high_makes_a_lower_one_as_good(
    slots: int, start: int
) -> None:
    # A server without a queue that refuses at once what is more than its slots. So many are refused
    # at this limit that it seems usual, and only the refused see the whole limit in use.
    climber, now, owed = Climber(start), 0.0, 0.0
    for _ in range(5000):
        now += SERVICE / slots
        working = min(climber.limit, slots)
        climber.finished(now, now - SERVICE, 1, "answered", working)
        owed += max(0, climber.limit - slots) / slots
        while owed >= 1.0:
            owed -= 1.0
            climber.finished(now, now - 0.001, 1, "throttled", climber.limit)
    assert 0.7 * slots <= climber.limit <= slots + 1


def test_it_is_a_controller() -> None:
    controller: Controller = Climber()
    assert (controller.limit, controller.cuts, controller.reason) == (8, 0, "")


def test_while_goodput_grows_it_doubles() -> None:
    script = Script(Climber(), of_slots(1000))
    seen = []
    for limit in (16, 32, 64, 128, 256, 512):
        script.answer_until(lambda limit=limit: script.climber.limit == limit)  # type: ignore[misc]
        seen.append(script.climber.reason)
    assert seen == ["trying more", *["goodput grew"] * 5]
    script.answer(20_000)
    assert script.climber.limit <= 512
    assert script.climber.cuts == 0


def test_it_rises_by_one_with_each_answer() -> None:
    script = Script(Climber(), of_slots(1000))
    before = script.climber.limit
    for _ in range(2000):
        script.answer()
        assert script.climber.limit <= before + 1
        before = script.climber.limit
    assert before > 100


def test_what_does_not_pay_is_taken_back() -> None:
    script = Script(Climber(32), of_slots(32))
    script.answer_until(lambda: script.climber.limit == 64)
    assert script.climber.reason == "trying more"
    script.answer_until(lambda: script.climber.limit == 32)
    assert script.climber.reason == "no gain"
    assert script.climber.cuts == 0


def test_more_than_needed_is_given_up() -> None:
    script = Script(Climber(64), of_slots(16))
    reasons = set()
    for _ in range(3000):
        script.answer()
        reasons.add(script.climber.reason)
    assert 16 <= script.climber.limit <= 19
    assert "same goodput with less" in reasons
    assert script.climber.cuts == 0


def test_less_is_taken_back_when_goodput_falls() -> None:
    script = settled(32)
    script.answer_until(lambda: script.climber.limit < 32)
    assert script.climber.reason == "trying less"
    script.answer_until(lambda: script.climber.limit >= 32)
    assert script.climber.reason == "less goodput"


@pytest.mark.parametrize(
    ("gain", "least", "most"), [(0.05, 300, 512), (0.15, 80, 180), (0.5, 8, 30)]
)
def test_gain_says_what_more_attempts_must_bring(gain: float, least: int, most: int) -> None:
    # The share of an attempt more that goodput gains falls from 1 to 0, and is 20 / (20 + limit).
    script = Script(Climber(gain=gain), lambda attempts: 0.02 + 0.001 * attempts)
    script.answer(60_000)
    assert least <= script.climber.limit <= most


def test_it_rests_longer_and_longer_while_nothing_changes() -> None:
    script = Script(Climber(), of_slots(32))
    changed = []
    for answers in range(20_000):
        before = script.climber.limit
        script.answer()
        if script.climber.limit > before > 32:
            changed.append(answers)
    rests = [after - before for before, after in pairwise(changed)]
    assert max(rests) > 40 * 32
    assert max(rests) < 60 * 40


@pytest.mark.parametrize("in_flight", [0, 1, 3])
def test_a_limit_that_is_not_used_is_left_as_it_is(in_flight: int) -> None:
    script = Script(Climber(), of_slots(1000))
    script.answer(5000, in_flight=in_flight)
    assert script.climber.limit == 8
    assert script.climber.reason == ""


def test_no_use_in_the_middle_of_a_trial_stops_the_growth() -> None:
    script = Script(Climber(), of_slots(1000))
    script.answer_until(lambda: script.climber.limit == 12)
    script.answer(5000, in_flight=5)
    assert script.climber.limit == 12
    script.answer_until(lambda: script.climber.limit > 16)


@pytest.mark.parametrize("workers", [20, 33, 60])
def test_it_stays_near_what_the_caller_can_use(workers: int) -> None:
    climber = Climber()
    now = 0.0
    for _ in range(20_000):
        attempts = min(climber.limit, workers)
        now += SERVICE / attempts
        climber.finished(now, now - SERVICE, 1, "answered", attempts)
    # It no longer rises where fewer than half of the limit are at work.
    assert workers <= climber.limit <= 2 * workers + 1


# ── the table of its phases ──


def test_in_a_phase_one_thing_leads_to_one_phase_and_the_table_says_why() -> None:
    assert len({(phase, happened) for phase, happened, _, _ in TRANSITIONS}) == len(TRANSITIONS)
    assert all(why for *_, why in TRANSITIONS)
    # Every phase can be left, and come to.
    assert {phase for phase, *_ in TRANSITIONS} == {then for _, _, then, _ in TRANSITIONS}


def turbulent(climber: Climber, dice: Random) -> Iterator[None]:
    """Answers of a server that changes, is restarted, left alone and asked for too much."""
    now, slots, service = 0.0, 32, 0.2
    for _ in range(60):
        if dice.random() < 0.2:
            slots = dice.randint(1, 200)
            service = dice.choice((0.02, 0.2, 1.0))
        now += dice.choice((0.0, 0.0, 0.0, 1.0, 1000.0))
        refused = dice.choice((0.0, 0.0, 0.01, 0.2))
        most = dice.choice((slots, 2 * slots, 10_000))
        for _ in range(dice.randint(1, 400)):
            limit = climber.limit
            took = service * max(1.0, limit / slots) * dice.uniform(0.5, 1.5)
            now += took / limit
            if limit > most or dice.random() < refused:
                ending: Ending = dice.choice(("throttled", "paused", "reset", "timeout"))
                climber.finished(now, now - 0.001, 1, ending, limit)
            else:
                climber.finished(now, now - took, 1, "answered", limit)
            yield


def test_every_turn_that_is_taken_is_a_row_of_the_table_and_every_row_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: set[tuple[str, str, str]] = set()
    really = Climber._turn

    def turn(climber: Climber, happened: Happening) -> None:
        before = climber._phase
        really(climber, happened)
        taken.add((before, happened, climber._phase))
        phases[climber] = climber._phase

    monkeypatch.setattr(Climber, "_turn", turn)
    for seed in range(12):
        climber = Climber(8, 1, 64 if seed % 3 else 8, latency_guard=3.0 if seed % 2 else None)
        phases = {climber: climber._phase}
        assert phases[climber] == "looking"
        for _ in turbulent(climber, Random(seed)):
            # Nothing but a turn leads to another phase.
            assert climber._phase == phases[climber]
    assert taken == {row[:3] for row in TRANSITIONS}


# ── overload ──


def test_throttles_in_a_row_cut_to_seven_tenths_and_two_do_not() -> None:
    script = settled(32)
    before = script.climber.limit
    script.fail("throttled", 2)
    assert (script.climber.limit, script.climber.cuts) == (before, 0)
    script.fail("throttled")
    assert script.climber.limit == int(0.7 * before)
    assert script.climber.cuts == 1
    assert script.climber.reason == "throttled"


def test_one_throttle_with_a_time_to_come_back_is_enough() -> None:
    script = settled(32)
    before = script.climber.limit
    script.fail("paused")
    assert script.climber.limit == int(0.7 * before)
    assert script.climber.reason == "throttled"


def test_throttles_during_a_trial_cut_to_what_was_before() -> None:
    script = Script(Climber(), of_slots(1000))
    script.answer_until(lambda: script.climber.limit == 40)
    script.fail("throttled", 3)
    assert script.climber.limit == 32
    assert script.climber.cuts == 1


def test_the_attempts_that_were_on_the_wire_cut_once() -> None:
    script = settled(32)
    before = script.climber.limit
    script.fail("throttled", 20)
    assert script.climber.cuts == 1
    assert script.climber.limit == int(0.7 * before)
    script.fail("throttled", 3)
    assert script.climber.cuts == 2
    assert script.climber.limit == int(0.7 * int(0.7 * before))


def test_what_was_started_before_the_last_cut_does_not_cut() -> None:
    script = settled(32)
    script.fail("throttled", 3)
    before = script.climber.limit
    for age in (0.002, 0.5, 100.0) * 5:
        script.climber.finished(script.now, script.now - age, 1, "throttled", before)
    assert script.climber.limit == before
    assert script.climber.cuts == 1


def test_throttles_while_much_of_the_limit_is_free_cut_it_once_and_bar_nothing() -> None:
    # The requests of a quiet client are refused: the limit was not what was too much.
    script = settled(32)
    for _ in range(3):
        script.climber.finished(script.now, script.now, 1, "throttled", 1)
    assert script.climber.limit == 22
    assert script.climber._ceiling == inf


@pytest.mark.parametrize(("ending", "reason"), [("reset", "resets"), ("timeout", "timeouts")])
def test_a_lone_reset_or_timeout_does_not_cut_but_many_do(ending: Ending, reason: str) -> None:
    script = settled(32)
    before = script.climber.limit
    script.fail(ending)
    assert script.climber.cuts == 0
    script.fail(ending, 6)
    assert script.climber.cuts == 1
    assert script.climber.limit < before
    assert script.climber.reason == reason


def test_a_reset_in_a_hundred_never_cuts() -> None:
    script = settled(32)
    for _ in range(200):
        script.answer(99)
        script.fail("reset")
    assert script.climber.cuts == 0
    assert script.climber.limit >= 26


def test_other_endings_say_nothing() -> None:
    one, other = settled(32), settled(32)
    for _ in range(100):
        one.answer(10)
        other.answer(10)
        other.climber.finished(other.now, other.now - 1.0, 1, "other", other.climber.limit)
        assert one.climber.limit == other.climber.limit
    assert other.climber.cuts == 0


def test_the_level_that_was_too_much_is_avoided_ever_longer() -> None:
    script = Script(Climber(), of_slots(1000))
    cuts: list[int] = []
    for answers in range(100_000):
        script.answer()
        if script.climber.limit > 48:
            script.fail("throttled", 4)
            cuts.append(answers)
    gaps = [after - before for before, after in pairwise(cuts)]
    assert 5 <= len(cuts) <= 12
    assert gaps[-1] > 20 * gaps[0]


@pytest.mark.parametrize("service", [0.02, 0.2, 1.0])
def test_after_an_outage_it_is_back_within_twenty_times_an_answer(service: float) -> None:
    script = Script(Climber(), lambda attempts: service * max(1.0, attempts / 32))
    script.answer(40 * 32)
    before = script.climber.limit
    for _ in range(200):
        script.fail("throttled")
    assert script.climber.limit == 1
    cuts = script.climber.cuts
    begin = script.now
    script.answer_until(lambda: script.climber.limit >= before)
    assert script.climber.reason == "coming back"
    assert script.now - begin <= 20 * service
    script.answer(200)
    assert script.climber.limit >= 0.9 * before
    assert script.climber.cuts == cuts


def test_what_is_too_much_again_on_the_way_back_is_avoided_for_longer() -> None:
    script = settled(32)
    begin = script.now
    seen: list[float] = []
    while script.now - begin < 60.0:
        script.answer()
        if script.climber.limit > 20:
            script.fail("throttled", 4)
            seen.append(script.now - begin)
    # The server takes 20 now: it is asked again after 6, 12, 24 … times as long as an answer takes.
    pauses = [after - before for before, after in pairwise(seen) if after - before > 0.1]
    assert 3 <= len(pauses) <= 7
    assert all(after > 1.5 * before for before, after in pairwise(pauses))
    assert script.climber.limit >= 14


def test_at_the_least_limit_nothing_is_cut_and_no_pause_grows() -> None:
    script = settled(32)
    for _ in range(200):
        script.fail("throttled")
    pause = script.climber._pause
    for _ in range(1000):
        script.now += 10.0
        script.fail("throttled")
    assert script.climber._pause == pause
    assert script.climber.limit == 1


def test_a_few_rest_rounds_are_over_after_a_minute_too() -> None:
    # At one answer a minute the longest rest would take months.
    climber = Climber(4, 1, 8)
    now, seen = 0.0, set()
    for _ in range(60_000):
        now += 15.0
        climber.finished(now, now - 60.0, 1, "answered", climber.limit)
        seen.add((climber.limit, climber._phase))
        assert climber._phase != "resting" or climber._rest_until <= now + 60.0
    assert any(phase == "resting" for _, phase in seen)


def test_the_latency_guard_cuts_when_answers_take_too_long() -> None:
    script = settled(32, latency_guard=2.0)
    before = script.climber.limit
    assert script.climber.cuts == 0
    script.took = lambda attempts: 3 * SERVICE
    script.answer_until(lambda: script.climber.cuts == 1)
    assert script.climber.reason == "latency"
    assert script.climber.limit < before


def test_a_server_that_stays_slower_is_not_held_down_by_the_guard() -> None:
    # Answers take three times as long at any limit: fewer attempts at once do not help.
    script = settled(32, latency_guard=2.0)
    script.took = lambda attempts: 3 * of_slots(32)(attempts)
    script.answer_until(lambda: script.climber.cuts == 1)
    script.answer(20 * 32)
    assert script.climber.limit >= 26
    assert script.climber.cuts <= 2


def test_without_the_guard_latency_alone_does_not_cut() -> None:
    script = settled(32)
    script.took = lambda attempts: 3 * SERVICE
    script.answer(5000)
    assert script.climber.cuts == 0


# ── what must not matter ──


def test_a_few_stragglers_count_no_more_than_the_rest() -> None:
    climber = Climber()
    climber._round = [(1, 0.2)] * 18 + [(1, 4.0)] * 2
    measured = climber._measure()
    assert measured is not None
    count, mean, spread = measured
    usual = (18 * 0.2 + 2 * 4.0) / 20
    assert count == 20
    assert mean == pytest.approx(0.2 / usual)
    assert spread == pytest.approx(0.05**2)


def test_the_number_of_documents_does_not_matter_when_their_time_goes_with_it() -> None:
    dice = Random(1)
    climber = Climber()
    now = 0.0
    for _ in range(10_000):
        documents = dice.choice((1, 10, 1000))
        took = (0.01 + 0.001 * documents) * max(1.0, climber.limit / 32)
        now += SERVICE / climber.limit
        climber.finished(now, now - took, documents, "answered", climber.limit)
    assert 26 <= climber.limit <= 40


@pytest.mark.parametrize(
    "took",
    [0.0, -1.0, 1e-12, 1e9, 1e300],
)
def test_any_duration_will_do(took: float) -> None:
    climber = Climber()
    for step in range(3000):
        documents = 10 ** (step % 7)
        climber.finished(float(step), step - took, documents, "answered", climber.limit)
        climber.finished(float(step), step - 0.2, documents, "answered", climber.limit)
        assert 1 <= climber.limit <= 512


def test_with_one_choice_it_never_changes() -> None:
    script = Script(Climber(5, 5, 5), of_slots(2))
    for _ in range(100):
        script.answer(100)
        script.fail("throttled", 3)
        script.fail("reset", 10)
        assert script.climber.limit == 5
    assert script.climber.cuts == 0
    assert script.climber.reason == ""


@pytest.mark.parametrize(
    ("start", "minimum", "maximum", "limit"),
    [(8, 1, 512, 8), (8, 10, 20, 10), (8, 1, 4, 4), (0, 0, 0, 1)],
)
def test_the_start_lies_within_the_bounds(
    start: int, minimum: int, maximum: int, limit: int
) -> None:
    assert Climber(start, minimum, maximum).limit == limit


def test_the_bounds_hold_on_the_way_up_and_down() -> None:
    script = Script(Climber(8, 4, 50), of_slots(1000))
    script.answer(5000)
    assert 41 <= script.climber.limit <= 50
    for _ in range(20):
        script.fail("throttled")
    assert script.climber.limit == 4


class Climbing(RuleBasedStateMachine):
    """Whatever happens, in whatever order: the bounds hold, and nothing is cut twice."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.last_cut = float("-inf")
        self.climbers = [Climber(8, 2, 64, latency_guard=3.0) for _ in range(2)]

    @property
    def climber(self) -> Climber:
        return self.climbers[0]

    def finish(self, age: float, documents: int, ending: Ending, in_flight: int) -> None:
        started = self.now - age
        before, cuts = self.climber.limit, self.climber.cuts
        for climber in self.climbers:
            climber.finished(self.now, started, documents, ending, in_flight)
        assert 0 <= self.climber.cuts - cuts <= 1
        if self.climber.cuts > cuts:
            assert self.climber.limit < before
            assert ending != "other"
            if ending != "answered":
                assert started >= self.last_cut
                self.last_cut = self.now
        elif ending != "answered":
            assert self.climber.limit == before
        else:
            assert self.climber.limit <= before + 1

    @rule(seconds=st.floats(0.0, 1e6))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        age=st.floats(0.0, 1e6),
        documents=st.integers(0, 10**6),
        ending=st.sampled_from(["answered", "throttled", "paused", "reset", "timeout", "other"]),
        in_flight=st.integers(0, 100),
    )
    def anything(self, age: float, documents: int, ending: Ending, in_flight: int) -> None:
        self.finish(age, documents, ending, in_flight)

    @rule(count=st.integers(1, 300), took=st.floats(0.001, 10.0), slots=st.integers(1, 100))
    def answers(self, count: int, took: float, slots: int) -> None:
        for _ in range(count):
            limit = self.climber.limit
            age = took * max(1.0, limit / slots)
            self.now += age / limit
            self.finish(age, 1, "answered", limit)

    @precondition(lambda self: self.climber.cuts > 0)
    @rule(count=st.integers(1, 50), ending=st.sampled_from(["throttled", "reset", "timeout"]))
    def late_failures(self, count: int, ending: Ending) -> None:
        cuts = self.climber.cuts
        for _ in range(count):
            self.finish(self.now - self.last_cut + 0.001, 1, ending, self.climber.limit)
        assert self.climber.cuts == cuts

    @invariant()
    def the_limit_is_within_its_bounds(self) -> None:
        assert type(self.climber.limit) is int
        assert 2 <= self.climber.limit <= 64

    @invariant()
    def the_same_always_comes_of_the_same(self) -> None:
        one, other = self.climbers
        assert (one.limit, one.cuts, one.reason) == (other.limit, other.cuts, other.reason)

    @invariant()
    def it_says_why(self) -> None:
        if self.climber.limit != 8:
            assert self.climber.reason


TestClimbing = Climbing.TestCase
TestClimbing.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# ── small servers, with more work than they can do ──


@dataclass
class Server:
    """So many slots and so much queue; refuses what is more. It may change in mid-run."""

    slots: int
    queue: float = float("inf")
    spread: float = 0.3
    changes: tuple[tuple[float, int], ...] = ()
    service: float = SERVICE
    # The share of all requests that is refused at random, by the time.
    refuses: Callable[[float], float] = lambda now: 0.0


def draws(service: float, spread: float, dice: Random) -> Iterator[float]:
    sigma = sqrt(log(1 + spread * spread))
    while True:
        yield service * dice.lognormvariate(-sigma * sigma / 2, sigma)


@dataclass
class Run:
    """What became of a run: `(time, limit)` for each answer, and how many were refused."""

    answers: list[tuple[float, int]]
    refused: int

    def limits(self, begin: float, end: float) -> list[int]:
        """The limits from one time to another, in order of size."""
        return sorted(limit for now, limit in self.answers if begin <= now < end)

    def typical(self, begin: float, end: float) -> int:
        limits = self.limits(begin, end)
        return limits[len(limits) // 2]

    def goodput(self, begin: float, end: float) -> float:
        return len(self.limits(begin, end)) / (end - begin)


def simulate(server: Server, seconds: float, seed: int) -> Run:
    """As many attempts at a time as the climber allows, all through."""
    dice = Random(seed)
    took = draws(server.service, server.spread, dice)
    climber = Climber()
    events: list[tuple[float, int, str, float]] = []
    waiting: deque[float] = deque()
    serial = busy = in_flight = 0
    changes = list(server.changes)
    run = Run([], 0)
    now = 0.0
    while now < seconds:
        while changes and now >= changes[0][0]:
            server.slots = changes.pop(0)[1]
        while in_flight < climber.limit:
            in_flight += 1
            if busy + len(waiting) >= server.slots + server.queue or dice.random() < server.refuses(
                now
            ):
                serial += 1
                heappush(events, (now + 0.004, serial, "throttled", now))
            else:
                waiting.append(now)
        while waiting and busy < server.slots:
            busy += 1
            serial += 1
            heappush(events, (now + next(took), serial, "answered", waiting.popleft()))
        now, _, ending, started = heappop(events)
        if ending == "answered":
            busy -= 1
            run.answers.append((now, climber.limit))
            climber.finished(now, started, 1, "answered", in_flight)
        else:
            run.refused += 1
            climber.finished(now, started, 1, "throttled", in_flight)
        in_flight -= 1
    return run


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("server", "seconds"),
    [
        (Server(4, 8), 200.0),
        (Server(32, 64), 40.0),
        (Server(32), 40.0),
        (Server(32, 64, spread=0.1), 40.0),
        (Server(32, 64, spread=0.8), 40.0),
        (Server(128, 16), 20.0),
    ],
    ids=lambda value: f"{value.slots}-{value.queue}" if isinstance(value, Server) else "",
)
def test_it_finds_the_number_of_slots(server: Server, seconds: float, seed: int) -> None:
    run = simulate(server, seconds, seed)
    begin = seconds / 4
    assert 0.9 * server.slots <= run.typical(begin, seconds) <= 1.4 * server.slots
    assert run.goodput(begin, seconds) >= 0.9 * server.slots / SERVICE
    assert run.refused <= 0.01 * len(run.answers)


@pytest.mark.parametrize("seed", range(3))
def test_it_follows_a_server_that_loses_half_its_slots_and_gets_them_back(seed: int) -> None:
    server = Server(32, 64, changes=((20.0, 16), (40.0, 32)))
    run = simulate(server, 70.0, seed)
    assert run.typical(10.0, 20.0) >= 28
    assert 14 <= run.typical(30.0, 40.0) <= 24
    assert run.typical(55.0, 70.0) >= 28


def simulate_batches(seconds: float, seed: int) -> list[tuple[float, int]]:
    """A batcher that takes up to 64 waiting requests; 20 ms, and 2 ms for each of them."""
    dice = Random(seed)
    climber = Climber()
    waiting: deque[float] = deque()
    limits = []
    now = 0.0
    in_flight = 0
    while now < seconds:
        while in_flight < climber.limit:
            in_flight += 1
            waiting.append(now)
        batch = [waiting.popleft() for _ in range(min(64, len(waiting)))]
        now += (0.02 + 0.002 * len(batch)) * dice.uniform(0.97, 1.03)
        for started in batch:
            climber.finished(now, started, 1, "answered", in_flight)
            in_flight -= 1
        limits.append((now, climber.limit))
    return limits


@pytest.mark.parametrize("seed", range(3))
def test_it_fills_the_batches_of_a_server_that_batches(seed: int) -> None:
    limits = [limit for now, limit in simulate_batches(60.0, seed) if now >= 15.0]
    assert 48 <= sorted(limits)[len(limits) // 2] <= 90


# ── throttles that have nothing to do with load ──


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize(("service", "seconds"), [(0.02, 8.0), (0.2, 60.0), (1.0, 300.0)])
def test_throttles_at_random_cost_hardly_any_goodput(
    service: float, seconds: float, share: float, seed: int
) -> None:
    run = simulate(Server(32, 64, service=service, refuses=lambda now: share), seconds, seed)
    assert run.goodput(seconds / 4, seconds) >= 0.85 * 32 / service


BURSTS: dict[str, Callable[[float, float], float]] = {
    # From the seconds since the first throttle, and how long an answer takes: the share refused.
    "everything for five seconds": lambda since, service: float(0.0 <= since < 5.0),
    "half for ten answers": lambda since, service: 0.5 * (0.0 <= since < 10 * service),
    "a fifth for twenty answers": lambda since, service: 0.2 * (0.0 <= since < 20 * service),
    "eight short ones": lambda since, service: (
        0.9 * (0.0 <= since < 24 * service and since % (3 * service) < service / 4)
    ),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("burst", BURSTS)
@pytest.mark.parametrize("service", [0.02, 0.2, 1.0])
def test_after_a_burst_of_throttles_goodput_is_back_in_time(
    service: float, burst: str, seed: int
) -> None:
    begin = 150 * service + 5.0
    share = BURSTS[burst]
    server = Server(32, 64, service=service, refuses=lambda now: share(now - begin, service))
    allowed = max(2.0, 20 * service)
    end = begin + max(5.0, 24 * service)
    run = simulate(server, end + 3 * allowed, seed)
    before = run.goodput(begin / 2, begin)
    assert run.goodput(end + allowed, end + 2 * allowed) >= 0.9 * before
