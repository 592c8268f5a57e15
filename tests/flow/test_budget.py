"""`_flow.budget`: what extra requests cost, and that nothing is spent that is not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rerank_async._flow.budget import (
    CAPACITY,
    HEDGE_COST,
    RETRY_COST,
    THROTTLE_COST,
    Allowance,
    RetryBudget,
)

COSTS = st.sampled_from([RETRY_COST, THROTTLE_COST, HEDGE_COST])


class Spending(RuleBasedStateMachine):
    """A budget next to a plain count of what it should hold."""

    @initialize(capacity=st.sampled_from([0, 1, 13, 14, 20, 500]))
    def open(self, capacity: int) -> None:
        self.capacity = self.tokens = capacity
        self.budget = RetryBudget(capacity)

    @rule(cost=COSTS)
    def retry(self, cost: int) -> None:
        paid = self.budget.take(0.0, cost)
        assert paid == (self.tokens >= cost)
        self.tokens -= cost if paid else 0

    @rule()
    def succeed_at_once(self) -> None:
        self.budget.add()
        self.tokens = min(self.capacity, self.tokens + 1)

    @rule(cost=COSTS | st.just(0))
    def succeed_in_the_end(self, cost: int) -> None:
        self.budget.add(cost)
        self.tokens = min(self.capacity, self.tokens + cost)

    @invariant()
    def it_holds_what_was_counted_and_never_less_than_nothing(self) -> None:
        assert self.budget.left(0.0) == self.tokens
        assert 0 <= self.tokens <= self.capacity


TestSpending = Spending.TestCase


@pytest.mark.parametrize(
    ("cost", "times"), [(RETRY_COST, 35), (HEDGE_COST, 35), (THROTTLE_COST, 100)]
)
def test_a_full_budget_pays_for_so_many_and_then_for_none(cost: int, times: int) -> None:
    budget = RetryBudget()
    assert budget.left(0.0) == CAPACITY == 500
    assert [budget.take(0.0, cost) for _ in range(times + 3)] == [True] * times + [False] * 3
    assert budget.left(0.0) == 500 - cost * times


def test_what_is_left_is_spent_to_the_last_token() -> None:
    budget = RetryBudget(RETRY_COST)
    seen = (budget.is_full, budget.take(0.0, RETRY_COST), budget.is_full)
    assert seen == (True, True, False)
    assert budget.left(0.0) == 0
    for _ in range(RETRY_COST - 1):
        budget.add()
    assert not budget.take(0.0, RETRY_COST)
    assert budget.left(0.0) == RETRY_COST - 1
    budget.add()
    assert budget.take(0.0, RETRY_COST)


def test_without_a_capacity_nothing_is_counted_and_nothing_refused() -> None:
    budget = RetryBudget(None)
    assert all(budget.take(0.0, RETRY_COST) for _ in range(1000))
    budget.add(10**6)
    assert budget.left(0.0) is None


def test_a_capacity_of_nothing_pays_for_nothing() -> None:
    budget = RetryBudget(0)
    budget.add(1000)
    assert not budget.take(0.0, THROTTLE_COST)
    assert budget.left(0.0) == 0


@pytest.mark.parametrize("start", [0.0, 1.0, 4096.3, 1e9])
def test_an_empty_budget_is_full_again_after_ten_minutes_without_a_success(start: float) -> None:
    # A budget that only success fills keeps a quiet client without retries long after the outage.
    budget = RetryBudget()
    while budget.take(start, THROTTLE_COST):
        pass
    assert budget.left(start + 0.5) == 0
    assert budget.left(start + 12.5) == 10
    assert budget.left(start + 300.0) == 250
    assert budget.take(start + 300.0, RETRY_COST)
    assert budget.left(start + 600.0) == 486
    assert budget.left(start + 1e6) == 500
    assert budget.is_full


def test_an_hour_with_a_full_budget_saves_nothing_up() -> None:
    budget = RetryBudget(20)
    assert budget.take(0.0, RETRY_COST)
    assert budget.left(3600.0) == 20
    assert budget.take(7200.0, RETRY_COST)
    assert budget.left(7200.0) == 6
    assert not budget.take(7201.0, RETRY_COST)


def test_time_pays_for_less_than_one_retry_in_a_quarter_of_a_minute() -> None:
    budget = RetryBudget()
    granted = sum(budget.take(tenth / 10.0, RETRY_COST) for tenth in range(36_000))
    assert granted == 35 + int(3600 / 600 * CAPACITY / RETRY_COST)


def test_a_clock_that_goes_back_fills_nothing() -> None:
    budget = RetryBudget()
    assert budget.take(100.0, RETRY_COST)
    assert budget.left(50.0) == 486


@pytest.mark.parametrize(
    ("failing", "least", "most"), [(0.05, 1.0, 1.0), (0.1, 0.9, 1.0), (1.0, 0.0, 0.04)]
)
def test_a_few_failures_are_all_retried_and_an_outage_is_not_fed(
    failing: float, least: float, most: float
) -> None:
    # Every n-th call fails; its retry succeeds, unless all fail.
    budget, asked, granted = RetryBudget(), 0, 0
    for call in range(1, 1001):
        if call % round(1 / failing):
            budget.add()
            continue
        asked += 1
        if budget.take(0.0, RETRY_COST):
            granted += 1
            if failing < 1.0:
                budget.add(RETRY_COST)
    assert least <= granted / asked <= most


# ── the share of requests that may be sent a second time ──


def test_nothing_is_allowed_before_it_was_earned() -> None:
    allowance = Allowance()
    assert not allowance.can_spend()
    for _ in range(19):
        allowance.earn(0.05)
        assert not allowance.can_spend()
    allowance.earn(0.05)
    assert allowance.can_spend()
    allowance.spend()
    assert not allowance.can_spend()


@pytest.mark.parametrize("requests", [2, 3, 5, 7, 10, 20, 49, 93, 100])
def test_one_is_allowed_with_the_last_of_so_many_shares_however_they_round(requests: int) -> None:
    allowance = Allowance()
    for _ in range(requests):
        assert not allowance.can_spend()
        allowance.earn(1 / requests)
    assert allowance.can_spend()


@given(st.floats(0.001, 0.999), st.integers(1, 400))
def test_no_more_is_spent_than_the_share_that_was_earned(share: float, requests: int) -> None:
    allowance, spent = Allowance(), 0
    for _ in range(requests):
        allowance.earn(share)
        if allowance.can_spend():
            allowance.spend()
            spent += 1
    assert share * requests - 1.0 <= spent + 1e-6
    assert spent <= share * requests + 1e-6


def test_a_quiet_hour_saves_up_ten_and_no_more() -> None:
    allowance, spent = Allowance(), 0
    for _ in range(10_000):
        allowance.earn(0.05)
    while allowance.can_spend():
        allowance.spend()
        spent += 1
    assert spent == 10
