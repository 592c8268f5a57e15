"""Whose limit a level has met, and whether a server kept up."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from rerank_async.bench import Interval, Level
from rerank_async.bench._verdict import keeps_up, verdict
from tests.bench.simulated import level


def judged(
    *,
    busy: float = 0.1,
    loop_lag: float = 0.0,
    send_lag: float | None = None,
    p99: float = 100.0,
    held_back: int = 0,
    **figures: Any,
) -> tuple[str, str]:
    made = level(**figures)
    client = evolve(made.client, busy=busy, loop_lag_p99_ms=loop_lag, send_lag_p99_ms=send_lag)
    latency = made.latency and evolve(made.latency, p99_ms=p99)
    return verdict(evolve(made, client=client, latency=latency), held_back=held_back)


def timeline(*medians: float | None) -> tuple[Interval, ...]:
    return tuple(Interval(n, 1.0, 10, 0, 200, 0, p50, p50) for n, p50 in enumerate(medians))


def offered(rate: float = 10.0, per_s: float = 10.0, **figures: Any) -> Level:
    return level(rate, mode="open", requests=round(rate * 10), per_s=per_s, **figures)


class TestAClosedLoop:
    def test_is_limited_by_the_server(self) -> None:
        who, why = judged(load=8, busy=0.85)
        assert who == "server"
        assert why == (
            "8 requests were always under way, and the client's thread computed only 85% of the "
            "time."
        )

    def test_of_one_request_is_told_in_the_singular(self) -> None:
        assert judged(load=1)[1].startswith("One request was always under way")

    def test_is_limited_by_a_client_that_always_computes(self) -> None:
        who, why = judged(busy=0.86)
        assert who == "client"
        assert "86%" in why
        assert "requests/s of this kind" in why

    @pytest.mark.parametrize(
        ("lag", "p99", "who"),
        [
            (25.0, 100.0, "server"),
            (25.1, 100.0, "client"),
            (5.0, 1.0, "server"),
            (5.1, 1.0, "client"),
        ],
    )
    def test_is_limited_by_a_client_that_wakes_late_for_the_latency(
        self, lag: float, p99: float, who: str
    ) -> None:
        assert judged(loop_lag=lag, p99=p99)[0] == who

    def test_in_which_nothing_succeeded_tells_nothing(self) -> None:
        assert judged(failed=100) == ("unknown", "No request succeeded.")


class TestAnOpenLoop:
    def test_that_is_kept_up_with_is_limited_by_its_load(self) -> None:
        who, why = judged(load=10, mode="open", per_s=9.9)
        assert who == "load"
        assert "9.9 of the 10.0 requests/s" in why

    def test_that_is_not_kept_up_with_is_limited_by_the_server(self) -> None:
        who, why = judged(load=10, mode="open", per_s=5)
        assert who == "server"
        assert "Of 10.0 requests/s it answered 5.0" in why

    def test_of_which_many_fail_is_limited_by_the_server(self) -> None:
        who, why = judged(load=10, mode="open", per_s=9.8, failed=2)
        assert who == "server"
        assert "2.0% failed" in why

    @pytest.mark.parametrize(("lag", "who"), [(25.0, "load"), (25.1, "client")])
    def test_that_is_sent_late_is_limited_by_the_client(self, lag: float, who: str) -> None:
        assert judged(load=10, mode="open", send_lag=lag)[0] == who

    def test_that_waits_for_its_cap_is_nobodys_limit(self) -> None:
        who, why = judged(load=10, mode="open", per_s=5, send_lag=900.0, held_back=50)
        assert who == "unknown"
        assert why.startswith("50 of ")

    def test_in_which_one_request_waited_for_its_cap_is_judged_as_others(self) -> None:
        assert judged(load=10, mode="open", per_s=5, send_lag=900.0, held_back=1)[0] == "client"


class TestFailures:
    def test_of_most_requests_are_not_the_clients_limit_however_busy_it_was(self) -> None:
        who, why = judged(failed=9_000, busy=0.99)
        assert who == "unknown"
        assert "of the requests failed" in why

    def test_that_were_tried_again_after_a_pause_leave_the_limit_unknown(self) -> None:
        assert judged(retries=5)[0] == "server"
        who, why = judged(retries=6)
        assert who == "unknown"
        assert "pauses" in why


class TestKeepingUp:
    @pytest.mark.parametrize(
        ("per_s", "kept"), [(100.0, True), (95.0, True), (94.9, False), (110.0, True)]
    )
    def test_is_to_answer_95_of_100(self, per_s: float, kept: bool) -> None:
        assert keeps_up(offered(100.0, per_s)) is kept

    @pytest.mark.parametrize(("failed", "kept"), [(0, True), (10, True), (11, False)])
    def test_is_to_fail_at_most_one_in_a_hundred(self, failed: int, kept: bool) -> None:
        assert keeps_up(offered(100.0, 100.0, failed=failed)) is kept

    @pytest.mark.parametrize(("per_s", "kept"), [(0.8, True), (0.79, False)])
    def test_of_few_requests_allows_two_at_the_edges(self, per_s: float, kept: bool) -> None:
        assert keeps_up(offered(1.0, per_s)) is kept

    def test_is_not_to_answer_nothing(self) -> None:
        assert not keeps_up(level(1, mode="open", requests=1, failed=1, per_s=0.0))
        assert not keeps_up(level(1, mode="open", requests=0, per_s=0.0))

    @pytest.mark.parametrize(
        ("medians", "kept"),
        [
            ((100.0, 100.0, 160.0), True),
            ((100.0, 100.0, 160.1), False),
            ((1.0, 1.0, 11.0), True),
            ((100.0, 5000.0), True),
            ((100.0, None, 900.0, None, 2000.0), False),
            ((900.0, 100.0, 100.0, 100.0, 100.0, 100.0), True),
        ],
    )
    def test_is_to_let_no_backlog_grow(self, medians: tuple[float | None, ...], kept: bool) -> None:
        assert keeps_up(evolve(offered(), timeline=timeline(*medians))) is kept
