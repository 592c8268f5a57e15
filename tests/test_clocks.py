"""What counts by time counts the same on a machine at any uptime: no rounding decides.

A clock's reading is a float that began to count when the machine was started. The larger it is, the
coarser: sums that mean the same moment differ by a hair, this way on one machine and that way on
another. So everything here is asked on clocks that have counted for nothing up to 300 years, and
has to say the same on each, at the very edges.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated import SlotServer, run
from rerank_async import (
    Concurrency,
    DeadlineExceededError,
    FlowControl,
    HedgePolicy,
    RateLimit,
    RerankError,
    RetryPolicy,
    ServerError,
)
from rerank_async._deadline import Scope, Watch
from rerank_async._flow import Controller, Ending
from rerank_async._flow.admission import Admission
from rerank_async._flow.buckets import Bucket
from rerank_async._flow.budget import RetryBudget
from rerank_async._flow.climbing import Climber
from rerank_async._flow.fuse import Fuse
from rerank_async._flow.gate import Gate
from rerank_async._flow.latency import Latencies
from rerank_async._flow.load import Load
from rerank_async._flow.outage import Outage
from rerank_async._flow.sizes import LearnedSizes
from rerank_async._moments import rounding
from rerank_async._policy import retry_delay
from rerank_async.bench import Level
from rerank_async.bench._sweep import first_rate
from rerank_async.events import Event, Hedged, LimitChanged
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport
from tests.bench.simulated import Slots, measure
from tests.support import memory, refusal, session_over

# Seconds that a clock has counted for. From the sixth on a float does not hold nanoseconds.
STARTS = [0.0, 1.0, 4096.3, 86_400.7, 1e7, 2**53 / 1e9 + 0.7, 1e9, 1e10]
ANY_START = st.one_of(st.sampled_from(STARTS), st.floats(0.0, 1e9))

on_every_clock = pytest.mark.parametrize("start", STARTS)


@pytest.fixture(autouse=True)
def _thousands_of_calls_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="rerank_async")


def level(start: float, server: Slots | None = None, **options: Any) -> Level:
    """What a benchmark measures on a clock that has counted for `start` seconds."""

    async def main() -> Level:
        [level] = (await measure(server or Slots(4, 0.1), **options)).levels
        return level

    return run(main(), start)


class TestBench:
    @on_every_clock
    @pytest.mark.parametrize(
        ("rate", "warm_up", "duration", "count"),
        [
            # As the command line's own test has it: the thirteenth is due just at the end.
            (40, 0.1, 0.3, 12),
            # 0.1 + 0.2 is more than 0.3.
            (10, 0.1, 0.2, 2),
            (10, 0.0, 0.3, 3),
            (7, 1.0, 3.0, 21),
            (3, 0.0, 1.0, 3),
            (60, 0.7, 0.1, 6),
            (100, 0.29, 0.57, 57),
        ],
    )
    def test_counts_what_is_intended_from_the_first_moment_to_before_the_last(
        self, start: float, rate: float, warm_up: float, duration: float, count: int
    ) -> None:
        server = Slots(100, 0.1)
        options = {"rate": rate, "arrivals": "constant", "warm_up": warm_up, "duration": duration}
        found = level(start, server, **options)
        assert (found.requests, found.succeeded) == (count, count)
        # One to try, those of the warm-up, and these.
        assert len(server.sent_at) == 1 + round(rate * warm_up) + count
        assert found.requests_per_s == pytest.approx(rate)
        assert found.duration_s == pytest.approx(duration)

    @given(start=ANY_START, rate=st.integers(1, 97), eighths=st.integers(0, 9))
    @settings(max_examples=60, deadline=None)
    def test_counts_the_same_of_an_open_loop_at_any_start(
        self, start: float, rate: int, eighths: int
    ) -> None:
        options = {"rate": rate, "arrivals": "constant", "warm_up": eighths / 10, "duration": 1}
        found = level(start, Slots(100, 0.1), **options)
        assert (found.requests, found.attempts) == (rate, rate)

    @on_every_clock
    @pytest.mark.parametrize("concurrency", [1, 4])
    @pytest.mark.parametrize(("warm_up", "duration"), [(0.0, 1.0), (0.3, 0.7), (0.5, 3.0)])
    def test_counts_what_a_closed_loop_sends_before_the_end(
        self, start: float, concurrency: int, warm_up: float, duration: float
    ) -> None:
        server = Slots(4, 0.1)
        found = level(start, server, concurrency=concurrency, warm_up=warm_up, duration=duration)
        assert found.requests == concurrency * round(duration / 0.1)
        assert len(server.sent_at) == 1 + concurrency * round((warm_up + duration) / 0.1)
        assert found.requests_per_s == pytest.approx(concurrency * 10, rel=1e-4)

    @on_every_clock
    @pytest.mark.parametrize("count", [5, 18, 20])
    def test_counts_as_many_as_it_was_told_to_also_where_several_go_at_once(
        self, start: float, count: int
    ) -> None:
        found = level(start, concurrency=4, count=count, warm_up=0.2)
        assert (found.requests, found.attempts) == (count, count)

    @on_every_clock
    def test_calls_a_request_that_takes_just_as_long_as_it_may_good(self, start: float) -> None:
        found = level(
            start, rate=10, arrivals="constant", warm_up=0.0, duration=2, goodput="p99:100ms"
        )
        assert found.goodput is not None
        assert (found.goodput.share, found.goodput.is_met) == (1.0, True)

    @on_every_clock
    def test_has_the_same_seconds_with_the_same_answers_in_them(self, start: float) -> None:
        found = level(start, rate=10, arrivals="constant", warm_up=0.4, duration=3)
        assert [(i.at_s, i.succeeded) for i in found.timeline] == [(0, 10), (1, 10), (2, 10)]
        assert [i.seconds for i in found.timeline] == pytest.approx([1, 1, 1])

    @on_every_clock
    def test_has_120_seconds_of_two_minutes_whatever_their_sum(self, start: float) -> None:
        found = level(start, rate=1, arrivals="constant", warm_up=1.4, duration=120)
        assert len(found.timeline) == 120

    @given(start=ANY_START, first=st.floats(0.0, 0.125))
    def test_begins_a_search_at_the_same_rate(self, start: float, first: float) -> None:
        took = start + first + (0.125 - first) - start
        assert first_rate(took) == 8.0


# ── what is told the time ──


class TestGate:
    @on_every_clock
    def test_is_open_at_the_moment_for_which_it_was_closed(self, start: float) -> None:
        gate = Gate()
        assert gate.close(start + 0.1, 0.2, 0.0)
        assert gate.wait(start + 0.2) == pytest.approx(0.1, abs=1e-5)
        assert gate.wait(start + 0.3) == 0.0
        assert Admission(1).enter(start, Load(1, 1, 1)) == 0.0

    @on_every_clock
    def test_lets_go_at_that_moment(self, start: float) -> None:
        admission = Admission(9)
        admission.gate.close(start + 0.1, 0.2, 0.0)
        assert admission.enter(start + 0.2, Load(1)) > 0.0
        assert admission.enter(start + 0.3, Load(1)) == 0.0

    @on_every_clock
    def test_is_not_changed_by_a_hint_for_the_same_moment(self, start: float) -> None:
        gate = Gate()
        gate.close(start, 0.3, 0.0)
        assert not gate.close(start + 0.1, 0.2, 0.0)
        assert not gate.close(start + 0.2, 0.1, 0.0)
        assert gate.close(start + 0.2, 0.2, 0.0)


class TestRate:
    @on_every_clock
    @pytest.mark.parametrize(("per_minute", "gap"), [(600, 0.1), (60, 1.0), (420, 1 / 7)])
    def test_lets_as_many_through_as_are_due(
        self, start: float, per_minute: float, gap: float
    ) -> None:
        bucket = Bucket(per_minute, 1.0)
        for number in range(1000):
            now = start + number * gap
            assert bucket.wait(now, 1.0) == 0.0
            bucket.take(now, 1.0)
            assert bucket.wait(now, 1.0) == pytest.approx(gap, abs=1e-5)

    @given(start=ANY_START, tenths=st.lists(st.integers(0, 9), min_size=1, max_size=30))
    def test_lets_the_same_ones_through_at_any_start(self, start: float, tenths: list[int]) -> None:
        def gone(start: float) -> list[bool]:
            bucket, passed, let = Bucket(300, 1.0), 0, []
            for step in tenths:
                passed += step
                now = start + passed / 10
                let.append(bucket.wait(now, 1.0) == 0.0)
                if let[-1]:
                    bucket.take(now, 1.0)
            return let

        assert gone(start) == gone(0.0)

    @on_every_clock
    def test_no_wait_is_so_short_that_the_clock_does_not_show_it(self, start: float) -> None:
        bucket = Bucket(600, 1.0)
        bucket.take(start, 1.0)
        wait = bucket.wait(start + 0.1 - 2e-9, 1.0)
        assert wait == 0.0 or start + 0.1 - 2e-9 + wait > start + 0.1 - 2e-9


class TestOutage:
    @on_every_clock
    def test_is_over_when_its_patience_is(self, start: float) -> None:
        outage = Outage(start + 0.1, 0.2, 3)
        assert not outage.gives_up(start + 0.2)
        assert outage.gives_up(start + 0.3)


class TestBudget:
    @on_every_clock
    def test_has_one_more_after_each_of_its_times(self, start: float) -> None:
        budget = RetryBudget(500)
        assert budget.take(start + 0.1, 100)
        # 500 in 600 s.
        for gained in range(1, 50):
            assert budget.left(start + 0.1 + 1.2 * gained) == 400 + gained


class TestSizes:
    @on_every_clock
    def test_a_refusal_is_believed_for_ten_minutes(self, start: float) -> None:
        sizes = LearnedSizes()
        sizes.refused(start + 0.1, "documents", 100, 1000)
        assert sizes.pieces(start + 0.2 + 599.9, 100, 1000, 10) == 2
        assert sizes.pieces(start + 600.2, 100, 1000, 10) == 1


class TestLatencies:
    @given(start=ANY_START, tenths=st.lists(st.integers(0, 40), min_size=1, max_size=30))
    def test_the_same_ones_are_remembered_at_any_start(
        self, start: float, tenths: list[int]
    ) -> None:
        def known(start: float) -> list[int]:
            latencies, passed, counts = Latencies(), 0, []
            for step in tenths:
                passed += step
                latencies.record(start + passed, 1, 0.1)
                counts.append(
                    max(
                        least
                        for least in range(1, 40)
                        if latencies.percentile(start + passed + 0.1, 1, 0.5, least) is not None
                    )
                )
            return counts

        assert known(start) == known(0.0)


class TestPolicy:
    @on_every_clock
    def test_no_retry_is_begun_at_the_very_deadline(self, start: float) -> None:
        error = ServerError("no", status=503, retry_after=0.2)
        deadline = start + 0.3
        left = deadline - (start + 0.1)
        assert retry_delay(RetryPolicy(), error, 1, 0.0, left) is None


@given(start=ANY_START, tenths=st.lists(st.integers(0, 100), min_size=1, max_size=4))
def test_what_counts_as_rounding_covers_a_few_sums_and_is_far_below_a_timer(
    start: float, tenths: list[int]
) -> None:
    total = start
    for step in tenths:
        total += step / 10
    meant = start + sum(tenths) / 10
    assert abs(total - meant) <= max(rounding(total), 1e-14)
    assert rounding(1e9) < 1e-6


def limits(controller: Controller, start: float, kinds: Sequence[Ending]) -> list[int]:
    """The limit after each tenth of a second, in which as many attempts begin and end as may.

    Each second attempt takes two tenths; the n-th tenth's first attempt ends as `kinds` says.
    """
    seen, under_way = [], [0] * controller.limit
    for tenth, kind in enumerate(kinds, 1):
        now, ending = start + tenth / 10, kind
        over = [began for number, began in enumerate(under_way) if number % 2 or tenth - began > 1]
        left = [began for began in under_way if began not in over]
        for began in over:
            in_flight = len(over) + len(left)
            controller.finished(now, start + began / 10, 4, ending, in_flight)
            ending = "answered"
        under_way = left + [tenth] * max(0, controller.limit - len(left))
        seen.append(controller.limit)
    return seen


class TestLimit:
    @given(
        start=ANY_START,
        kinds=st.lists(
            st.sampled_from(["answered"] * 8 + ["throttled", "paused", "reset", "timeout"]),
            min_size=20,
            max_size=120,
        ),
    )
    @pytest.mark.parametrize("make", [lambda: Climber(8, 1, 64), lambda: Fuse(16)])
    def test_takes_the_same_way_at_any_start(
        self, make: Callable[[], Controller], start: float, kinds: list[Ending]
    ) -> None:
        assert limits(make(), start, kinds) == limits(make(), 0.0, kinds)


# ── what waits, on an event loop whose clock began there ──


class TestDeadline:
    @on_every_clock
    def test_ends_all_that_are_due_at_that_moment(self, start: float) -> None:
        async def main() -> list[float]:
            loop = asyncio.get_running_loop()
            watch, ended = Watch(loop), []

            async def wait(deadline: float) -> None:
                with Scope(loop, deadline, watch) as scope:
                    await asyncio.sleep(100)
                assert scope.ended_by == "deadline"
                ended.append(loop.time() - start)

            # The same moment, as three sums.
            deadlines = [start + 0.3, start + 0.1 + 0.2, start + 0.2 + 0.1]
            await asyncio.gather(*map(wait, sorted(deadlines)))
            return ended

        assert run(main(), start) == pytest.approx([0.3] * 3, abs=1e-5)

    @on_every_clock
    @pytest.mark.parametrize("timeout", [0.3, 1.1, 30.0])
    def test_of_a_call_comes_before_that_of_an_attempt_that_has_as_long(
        self, start: float, timeout: float
    ) -> None:
        transport = Noting(memory()._handler, delay=1e3)

        async def main() -> None:
            policy = RetryPolicy(attempt_timeout=timeout)
            async with session_over(transport, timeout=timeout, retry=policy) as session:
                await session.rerank("q", ["document 1"])

        with pytest.raises(DeadlineExceededError):
            run(main(), start)
        assert transport.timeouts == [None]

    @on_every_clock
    def test_counts_as_the_servers_timeout(self, start: float) -> None:
        """Three calls, one after another, and the same seconds on each clock."""

        async def main() -> list[float]:
            loop, ends = asyncio.get_running_loop(), []
            async with session_over(memory(delay=1e3), timeout=0.7) as session:
                for _ in range(3):
                    with pytest.raises(DeadlineExceededError):
                        await session.rerank("q", ["document 1"])
                    ends.append(loop.time() - start)
            return ends

        assert run(main(), start) == pytest.approx([0.7, 1.4, 2.1], abs=1e-4)


class Noting(MemoryTransport):
    """Notes when a request comes, and how long it may take."""

    def __init__(self, answer: Any, **options: Any) -> None:
        super().__init__(answer, **options)
        self.came: list[float] = []
        self.timeouts: list[float | None] = []

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        self.came.append(asyncio.get_running_loop().time())
        self.timeouts.append(timeout)
        return await super().exchange(request, body_limit=body_limit, timeout=timeout)


async def sent_at(start: float, calls: int, script: list[Any], **options: Any) -> list[float]:
    """When the requests of so many calls at once came, in seconds since `start`."""
    transport = Noting(memory(delay=0.0)._handler, script=script, delay=0.1)
    options = {"timeout": 60.0, **options}
    async with session_over(transport, **options) as session:
        answers = [session.rerank("q", ["document 1"]) for _ in range(calls)]
        for outcome in await asyncio.gather(*answers, return_exceptions=True):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, RerankError)
    return [moment - start for moment in transport.came]


class TestSession:
    @on_every_clock
    def test_keeps_a_rate(self, start: float) -> None:
        options = {"flow": FlowControl(16, rate=RateLimit(requests_per_minute=600))}
        came = run(sent_at(start, 40, [], **options), start)
        # Ten at once, and then ten a second.
        expected = [0.0] * 10 + [(number + 1) / 10 for number in range(30)]
        assert came == pytest.approx(expected, abs=1e-4)

    @on_every_clock
    def test_keeps_to_its_slots(self, start: float) -> None:
        came = run(sent_at(start, 12, [], concurrency=4), start)
        assert came == pytest.approx([0.0] * 4 + [0.1] * 4 + [0.2] * 4, abs=1e-4)

    @on_every_clock
    def test_waits_for_a_gate_and_an_outage_alike(self, start: float) -> None:
        reference = run(outage_of(0.0), 0.0)
        assert run(outage_of(start), start) == pytest.approx(reference, abs=1e-3)
        assert len(reference) > 20

    @on_every_clock
    def test_hedges_the_same_requests(self, start: float) -> None:
        assert run(hedged(start), start) == run(hedged(0.0), 0.0)

    @on_every_clock
    def test_a_limit_that_finds_itself_takes_the_same_way(self, start: float) -> None:
        ways = [run(limits_of(), begin) for begin in (0.0, start)]
        assert ways[0] == ways[1]
        assert len(ways[0]) > 5


async def outage_of(start: float) -> list[float]:
    """A server that throttles, is gone for a while and comes back; its callers wait it out."""
    script = [None] * 3 + [refusal(429, retry_after="2")] * 2 + [refusal(503)] * 30
    policy = RetryPolicy(max_outage=60.0, attempts=2)
    return await sent_at(start, 12, script, concurrency=4, retry=policy, timeout=None)


async def hedged(start: float) -> list[int]:
    """How many requests there had been at each backup: every tenth is slow."""
    backed_up: list[int] = []

    class Slow(Noting):
        async def exchange(
            self, request: HttpRequest, *, body_limit: int, timeout: float | None
        ) -> HttpResponse:
            if len(self.came) % 10 == 9:
                await asyncio.sleep(1.0)
            return await super().exchange(request, body_limit=body_limit, timeout=timeout)

    def hear(event: Event) -> None:
        if isinstance(event, Hedged):
            backed_up.append(len(transport.came))

    policy = HedgePolicy(percentile=0.9, min_samples=20, max_extra=0.2, min_delay=0.1)
    transport = Slow(memory()._handler, delay=0.1)
    async with session_over(transport, hedge=policy, on_event=hear) as session:
        for _ in range(100):
            await session.rerank("q", ["document 1"])
    return backed_up


async def limits_of() -> list[tuple[int, int, str]]:
    """The limit's changes before a server of six slots that refuses more than twenty at once."""
    changes: list[tuple[int, int, str]] = []
    server = SlotServer(Random(7), slots=6, queue=14)

    def hear(event: Event) -> None:
        if isinstance(event, LimitChanged):
            changes.append((event.old, event.new, event.reason))

    options: dict[str, Any] = {
        "concurrency": Concurrency.adaptive(),
        "retry": RetryPolicy(attempts=1),
    }
    async with session_over(server, on_event=hear, **options) as session:

        async def call() -> None:
            for _ in range(12):
                with contextlib.suppress(RerankError):
                    await session.rerank("q", ["document 1"] * 4)

        await asyncio.gather(*[call() for _ in range(60)])
    return changes
