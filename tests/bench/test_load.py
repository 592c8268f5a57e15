"""Loads against simulated servers, on a clock that jumps: every figure is known beforehand."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise
from typing import Any

import pytest

from rerank_async import AuthenticationError, ConnectError, InvalidRequestError, NotFoundError
from rerank_async.bench import BenchProgress, Level
from rerank_async.testing import HttpResponse, MemoryTransport
from tests.bench.simulated import Slots, measure
from tests.support import refusal

pytestmark = pytest.mark.looptime


@pytest.fixture(autouse=True)
def _thousands_of_calls_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="rerank_async")


# The edges of the measured time fall on no request's.
EDGES: dict[str, Any] = {"warm_up": 0.95, "duration": 3.33}


async def one(server: MemoryTransport, **options: Any) -> Level:
    [level] = (await measure(server, **options)).levels
    return level


class TestClosedLoop:
    @pytest.mark.parametrize(
        ("concurrency", "per_s", "ms"), [(1, 10, 100), (4, 40, 100), (8, 40, 200), (6, 40, 150)]
    )
    async def test_measures_what_a_server_of_four_slots_does(
        self, concurrency: int, per_s: float, ms: float
    ) -> None:
        level = await one(Slots(4, 0.1), concurrency=concurrency, **EDGES)
        assert level.requests_per_s == pytest.approx(per_s, rel=0.01)
        assert level.documents_per_s == pytest.approx(2 * per_s, rel=0.01)
        assert level.latency is not None
        assert level.latency.mean_ms == pytest.approx(ms, rel=0.02)
        assert level.duration_s == pytest.approx(3.33)
        assert (level.mode, level.concurrency, level.rate) == ("closed", concurrency, None)
        assert level.limited_by == "server"

    async def test_has_as_many_under_way_as_asked_for_and_sends_each_once(self) -> None:
        server = Slots(100, 0.1)
        level = await one(server, concurrency=7, documents="3000", document_words="1", **EDGES)
        assert server.most_in_flight <= 7
        assert level.attempts == level.requests
        assert level.documents == 3000 * level.succeeded
        # Seven at once from the beginning on, after the first one alone.
        assert server.sent_at[1:8] == [server.sent_at[1]] * 7

    async def test_waits_for_what_was_sent_in_the_measured_time(self) -> None:
        server = Slots(1, 4.0)
        level = await one(server, concurrency=1, warm_up=0, duration=1)
        assert (level.requests, level.succeeded) == (1, 1)
        assert level.requests_per_s == pytest.approx(0.25)
        assert len(server.sent_at) == 2

    async def test_measures_so_many_requests_and_sends_no_more(self) -> None:
        server = Slots(4, 0.1)
        level = await one(server, concurrency=4, count=20, warm_up=0)
        assert (level.requests, level.attempts) == (20, 20)
        assert len(server.sent_at) == 21
        assert level.duration_s == pytest.approx(0.5)
        assert level.requests_per_s == pytest.approx(40)

    async def test_does_not_count_the_warm_up(self) -> None:
        server = Slots(4, 0.1)
        level = await one(server, concurrency=4, count=20, warm_up=0.55)
        assert level.requests == 20
        assert len(server.sent_at) > 40

    async def test_measures_no_fewer_than_there_are_at_once(self) -> None:
        benchmark = await measure(Slots(4, 0.1), concurrency=4, count=2, warm_up=0)
        assert benchmark.levels[0].requests == 4
        assert "4 requests were measured, not 2" in benchmark.notes[0]

    async def test_hides_a_stall_from_the_percentiles(self) -> None:
        server = Slots(1, 0.01, stalls=(5.0, 6.0))
        level = await one(server, concurrency=1, warm_up=1, duration=10)
        assert level.latency is not None
        assert level.latency.p99_ms == pytest.approx(10, rel=0.01)
        assert level.latency.max_ms == pytest.approx(1010, rel=0.02)

    async def test_knows_what_the_client_took(self) -> None:
        level = await one(Slots(4, 0.1), concurrency=4, busy=0.25, **EDGES)
        assert level.client.busy == pytest.approx(0.25)
        assert level.client.cpu_us_per_request == pytest.approx(0.25 / 40 * 1e6, rel=0.05)
        assert level.client.ceiling_requests_per_s == pytest.approx(160, rel=0.05)
        assert level.client.loop_lag_p99_ms == pytest.approx(0.0, abs=1e-6)

    async def test_is_the_clients_limit_where_that_always_computes(self) -> None:
        level = await one(Slots(4, 0.1), concurrency=4, busy=0.9, **EDGES)
        assert level.limited_by == "client"


class TestOpenLoop:
    async def test_sends_at_the_rate_whatever_the_server_does(self) -> None:
        server = Slots(4, 0.1)
        level = await one(server, rate=20, arrivals="constant", warm_up=1, duration=5)
        gaps = [b - a for a, b in pairwise(server.sent_at[1:])]
        assert gaps == pytest.approx([0.05] * len(gaps))
        assert (level.mode, level.rate, level.concurrency) == ("open", 20.0, None)
        assert level.requests == pytest.approx(100, abs=1)
        assert level.requests_per_s == pytest.approx(20, rel=0.011)
        assert level.latency is not None
        assert level.latency.max_ms == pytest.approx(100, rel=0.01)
        assert level.limited_by == "load"
        assert level.client.send_lag_p99_ms == pytest.approx(0.0, abs=1e-6)

    async def test_goes_on_sending_to_a_server_that_cannot_keep_up_and_waits_for_all(self) -> None:
        server = Slots(4, 0.1)
        level = await one(server, rate=60, arrivals="constant", warm_up=0, duration=5, timeout=300)
        assert level.requests == pytest.approx(300, abs=1)
        assert level.succeeded == level.requests
        assert level.requests_per_s == pytest.approx(40, rel=0.02)
        # The last has waited for what came before it: 300 / 40 s - 300 / 60 s.
        assert level.latency is not None
        assert level.latency.max_ms == pytest.approx(2600, rel=0.03)
        assert level.limited_by == "server"
        assert server.sent_at[-1] - server.sent_at[1] == pytest.approx(5, abs=0.02)

    async def test_shows_a_stall_that_a_client_that_waits_would_hide(self) -> None:
        server = Slots(1, 0.01, stalls=(5.0, 6.0))
        level = await one(
            server, rate=20, arrivals="constant", warm_up=1, duration=10, max_in_flight=1
        )
        assert level.latency is not None
        assert level.service is not None
        # A tenth of the requests were to be sent in the stall; one of them really was.
        assert level.latency.p50_ms == pytest.approx(10, rel=0.01)
        assert level.latency.p95_ms == pytest.approx(600, rel=0.1)
        assert level.service.p99_ms == pytest.approx(10, rel=0.01)
        assert level.service.max_ms == pytest.approx(1000, rel=0.05)

    async def test_lets_what_is_over_the_cap_wait_and_says_so(self) -> None:
        server = Slots(100, 1.0)
        benchmark = await measure(
            server, rate=10, arrivals="constant", warm_up=0, duration=4, max_in_flight=5
        )
        assert server.most_in_flight <= 5
        [level] = benchmark.levels
        assert level.succeeded == level.requests == 40
        assert level.requests_per_s == pytest.approx(5, rel=0.11)
        assert "had to wait in the client, because 5 were under way" in benchmark.notes[0]

    async def test_gives_up_what_has_waited_for_longer_than_its_timeout(self) -> None:
        server = Slots(100, 1.0)
        level = await one(
            server,
            rate=10,
            arrivals="constant",
            warm_up=0,
            duration=4,
            max_in_flight=1,
            timeout=2.5,
        )
        assert level.requests == 40
        assert level.failures == {"timeout": level.failed}
        assert level.failed > 30
        assert asyncio.get_running_loop().time() < 8

    async def test_measures_so_many_requests(self) -> None:
        server = Slots(100, 0.1)
        level = await one(server, rate=20, arrivals="constant", count=30, warm_up=0.475)
        assert (level.requests, level.attempts) == (30, 30)
        assert level.duration_s == pytest.approx(1.525)

    async def test_of_poisson_sends_at_moments_of_its_seed(self) -> None:
        async def gaps(seed: int) -> list[float]:
            server = Slots(100, 0.1)
            await one(server, rate=20, warm_up=0, duration=3, seed=seed)
            return [round(b - a, 6) for a, b in pairwise(server.sent_at[1:])]

        first = await gaps(1)
        assert first == await gaps(1)
        assert first != await gaps(2)
        assert len(set(first)) > 20


class TestFailures:
    async def test_of_a_server_that_hangs_are_timeouts_and_end(self) -> None:
        level = await one(Slots(1, 1e6), concurrency=4, warm_up=0, duration=5, timeout=2)
        assert level.failures == {"timeout": 12}
        assert (level.succeeded, level.latency, level.limited_by) == (0, None, "unknown")
        assert asyncio.get_running_loop().time() == pytest.approx(2 + 6)

    async def test_are_not_tried_again_and_no_hint_holds_back_the_load(self) -> None:
        server = Slots(4, 0.1, refuse=lambda n: refusal(429, retry_after="5") if n % 2 else None)
        level = await one(server, concurrency=4, **EDGES)
        assert level.failed == pytest.approx(level.requests / 2, abs=4)
        assert set(level.failures) == {"HTTP 429"}
        assert level.attempts == level.requests
        assert level.throttles == pytest.approx(level.failed, abs=4)
        assert level.retries == 0
        assert sum(interval.throttles for interval in level.timeline) == pytest.approx(
            level.throttles, abs=4
        )

    async def test_of_what_is_too_large_are_not_sent_in_pieces(self) -> None:
        server = Slots(4, 0.1, refuse=lambda n: refusal(413, "too many documents") if n else None)
        level = await one(server, concurrency=2, warm_up=0, duration=1)
        assert set(level.failures) == {"HTTP 413"}
        assert level.attempts == level.requests

    async def test_are_tried_again_where_that_is_asked_for(self) -> None:
        server = Slots(4, 0.1, refuse=lambda n: refusal(503) if n % 10 == 5 else None)
        level = await one(server, concurrency=4, attempts=4, **EDGES)
        assert level.failed == 0
        assert level.retries > 5
        assert level.attempts >= level.requests + level.retries - 4

    @pytest.mark.parametrize(
        ("status", "error"), [(401, AuthenticationError), (404, NotFoundError)]
    )
    async def test_that_every_request_would_meet_end_it_at_the_first(
        self, status: int, error: type[Exception]
    ) -> None:
        server = Slots(4, 0.1, refuse=lambda n: refusal(status))
        with pytest.raises(error):
            await measure(server, concurrency=4)
        assert len(server.sent_at) == 1

    async def test_where_nobody_listens_end_it_at_the_first(self) -> None:
        server = Slots(4, 0.1, refuse=lambda n: ConnectError("refused"))
        with pytest.raises(ConnectError):
            await measure(server, concurrency=4)
        assert len(server.sent_at) == 1

    async def test_of_the_first_request_that_may_pass_do_not_end_it(self) -> None:
        server = Slots(4, 0.1, refuse=lambda n: None if n else refusal(503))
        assert (await one(server, concurrency=4, **EDGES)).failed == 0

    async def test_of_a_broken_transport_are_raised_and_leave_no_task(self) -> None:
        def broken(number: int) -> HttpResponse | None:
            if number > 3:
                raise ZeroDivisionError
            return None

        with pytest.raises(ZeroDivisionError):
            await measure(Slots(4, 0.1, refuse=broken), concurrency=4)

    async def test_of_options_are_wrong_use(self) -> None:
        with pytest.raises(InvalidRequestError, match="concurrency"):
            await measure(Slots(1, 1.0), concurrency=0)


class TestSweep:
    async def test_finds_the_slots_of_the_server(self) -> None:
        benchmark = await measure(Slots(6, 0.1), concurrency="auto", warm_up=1, duration=3)
        assert [level.load for level in benchmark.levels] == [1, 2, 4, 6, 8, 12, 16, 32]
        assert benchmark.knee is not None
        assert benchmark.knee.load == 6
        assert benchmark.levels[benchmark.knee.level].load == 6
        assert benchmark.arrivals is None

    async def test_finds_the_highest_rate_that_is_kept_up_with(self) -> None:
        benchmark = await measure(
            Slots(4, 0.1), rate="auto", arrivals="constant", warm_up=1, duration=5, timeout=60
        )
        # One request after another makes ten a second.
        assert benchmark.levels[0].load == 8
        assert benchmark.knee is not None
        assert 35 <= benchmark.knee.load <= 41
        assert benchmark.arrivals == "constant"

    async def test_holds_the_loads_that_are_named(self) -> None:
        benchmark = await measure(Slots(6, 0.1), concurrency="3,1", warm_up=0, duration=1)
        assert [level.load for level in benchmark.levels] == [1, 3]
        assert benchmark.knee is None
        assert "look beyond" in benchmark.notes[0]


class TestInterruption:
    async def test_keeps_what_was_measured_so_far(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(6.05, stop.set)
        server = Slots(4, 0.1)
        benchmark = await measure(server, stop=stop, concurrency="2,4", warm_up=1, duration=3)
        first, second = benchmark.levels
        assert first.duration_s == pytest.approx(3)
        assert 0.5 < second.duration_s < 1.5
        assert second.requests_per_s == pytest.approx(40, rel=0.1)
        assert "interrupted" in " ".join(benchmark.notes)
        assert server.in_flight == 0

    async def test_in_a_warm_up_leaves_that_level_out(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, stop.set)
        assert (await measure(Slots(4, 0.1), stop=stop, concurrency=4)).levels == ()

    async def test_does_not_wait_for_the_first_answer(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, stop.set)
        await measure(Slots(4, 1e6), stop=stop, concurrency=4)
        assert asyncio.get_running_loop().time() == pytest.approx(0.5)

    async def test_does_not_wait_for_what_is_under_way(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(3.0, stop.set)
        server = Slots(1, 1.0)
        benchmark = await measure(
            server, stop=stop, concurrency=4, warm_up=0, duration=60, timeout=50
        )
        assert asyncio.get_running_loop().time() == pytest.approx(3.0)
        assert "4 requests were under way when it was interrupted" in " ".join(benchmark.notes)


class TestProgress:
    async def test_is_told_several_times_a_second_and_at_each_end(self) -> None:
        told: list[BenchProgress] = []
        await measure(
            Slots(4, 0.1), on_progress=told.append, concurrency="4,8", warm_up=1, duration=3
        )
        assert [p.number for p in told if p.done is not None] == [1, 2]
        assert {p.levels for p in told} == {2}
        phases = [p.now.phase for p in told if p.now is not None and p.number == 1]
        assert phases[0] == "warming up"
        assert "measuring" in phases
        assert 12 <= len(phases) <= 30
        last = [p.now for p in told if p.now is not None and p.now.phase == "measuring"][-1]
        assert last.requests_per_s == pytest.approx(40, rel=0.05)
        assert last.p50_ms == pytest.approx(200, rel=0.01)
        assert last.in_flight == 8
        assert last.busy == pytest.approx(0.1, rel=0.01)
        assert last.seconds_left is not None
        assert last.seconds_left < 0.3


async def test_a_benchmark_says_what_it_asked_and_of_whom() -> None:
    benchmark = await measure(
        Slots(4, 0.1), concurrency=4, warm_up=0, duration=1, name="n", goodput="p99:150ms"
    )
    assert benchmark.target.url == "https://memory.test/v1/rerank"
    assert (benchmark.target.model, benchmark.target.dialect) == ("m", "v1")
    assert benchmark.name == "n"
    assert benchmark.workload.mean_documents == 2
    assert benchmark.machine.cores >= 1
    assert {"aiohttp", "orjson", "msgspec", "hdrhistogram"} <= set(benchmark.machine.packages)
    [level] = benchmark.levels
    assert level.goodput is not None
    assert level.goodput.is_met
