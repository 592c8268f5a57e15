"""`benchmarks.simulated`: the clock jumps, and each server is as slow and as strict as it says."""

import asyncio
from collections.abc import Coroutine
from math import inf
from random import Random
from typing import Any

import pytest

from benchmarks.simulated import (
    NETWORK,
    BatchServer,
    BucketServer,
    Burst,
    Faults,
    Outage,
    SimulatedServer,
    SlotServer,
    Times,
    run,
)
from rerank_async import ConnectError, RequestTimeoutError, RerankSession, TransportError
from rerank_async.dialects.v1 import V1
from rerank_async.testing import HttpRequest, HttpResponse

# So many seconds for every request.
EVEN = Times(0.2, deviation=0.0)


def request(number: int = 0) -> HttpRequest:
    body = V1().encode_request("m", f"query {number}", ["a", "b", "c", "d"], None)
    return HttpRequest("POST", "https://simulated.test/v1/rerank", {}, body)


async def ask(
    server: SimulatedServer, number: int = 0, *, after: float = 0.0, timeout: float | None = None
) -> tuple[HttpResponse, float]:
    """One answer, and the time at which it came."""
    if after:
        await asyncio.sleep(after)
    response = await server.exchange(request(number), body_limit=2**20, timeout=timeout)
    return response, asyncio.get_running_loop().time()


def ask_all(server: SimulatedServer, count: int) -> list[tuple[int, float]]:
    """So many requests at once: for each the status, and the time of the answer."""

    async def main() -> list[tuple[int, float]]:
        answers = await asyncio.gather(*(ask(server, number) for number in range(count)))
        return [(response.status, round(when, 6)) for response, when in answers]

    return run(main())


def test_an_hour_on_the_virtual_clock_takes_no_time() -> None:
    # Did it take its time, the limit of a minute that every test has would end it.
    async def main() -> float:
        await asyncio.gather(*(asyncio.sleep(seconds) for seconds in range(3601)))
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(3600.0)


def test_tasks_that_wait_for_ever_are_an_error_and_no_standstill() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing is scheduled"):
        run(main())


def test_a_slot_server_works_on_no_more_than_its_slots_first_come_first_served() -> None:
    server = SlotServer(Random(1), 2, None, times=EVEN)
    assert [when for _, when in ask_all(server, 6)] == pytest.approx(
        [wave * 0.2 + NETWORK for wave in (1, 1, 2, 2, 3, 3)]
    )
    assert (server.most_busy, server.busy) == (2, 0)


def test_a_full_queue_answers_429_at_once_and_without_a_hint() -> None:
    server = SlotServer(Random(1), 2, 3, times=EVEN)
    answers = ask_all(server, 7)
    assert [status for status, _ in answers] == [200] * 5 + [429] * 2
    assert answers[5][1] == pytest.approx(NETWORK)

    async def main() -> HttpResponse:
        return (await asyncio.gather(*(ask(server, n) for n in range(6))))[-1][0]

    server = SlotServer(Random(1), 2, 3, times=EVEN)
    assert "retry-after" not in run(main()).headers


def test_slots_that_come_back_are_used_at_once() -> None:
    server = SlotServer(Random(1), 1, None, times=EVEN, changes=((0.1, 3, None),))
    assert [when for _, when in ask_all(server, 3)] == pytest.approx(
        [0.2 + NETWORK, 0.3 + NETWORK, 0.3 + NETWORK]
    )


def test_slots_that_go_finish_what_they_have_begun() -> None:
    server = SlotServer(Random(1), 2, None, times=EVEN, changes=((0.1, 1, None),))
    assert [when for _, when in ask_all(server, 4)] == pytest.approx(
        [wave * 0.2 + NETWORK for wave in (1, 1, 2, 3)]
    )


def test_a_batcher_takes_what_waits_and_its_time_grows_with_it() -> None:
    server = BatchServer(Random(1), deviation=0.0)
    answers = ask_all(server, 100)
    # The first finds it idle and goes alone.
    assert server.batches == [1, 64, 35]
    assert answers[0][1] == pytest.approx(0.022 + NETWORK)
    assert answers[64][1] == pytest.approx(0.022 + 0.148 + NETWORK)
    assert answers[99][1] == pytest.approx(0.022 + 0.148 + 0.090 + NETWORK)


def test_a_bucket_grants_its_burst_then_its_rate_and_says_when_to_come_back() -> None:
    server = BucketServer(Random(1), 50.0, 25.0)

    async def main() -> list[HttpResponse]:
        at_once = [ask(server, number) for number in range(30)]
        later = [ask(server, number, after=0.11) for number in range(30, 40)]
        return [response for response, _ in await asyncio.gather(*at_once, *later)]

    responses = run(main())
    statuses = [response.status for response in responses]
    assert statuses[:30] == [200] * 25 + [429] * 5
    # Whoever wakes at the same time does so in no order.
    assert sorted(statuses[30:]) == [200] * 5 + [429] * 5
    assert responses[25].headers == {"retry-after": "1"}


def test_a_request_that_takes_too_long_times_out_when_it_said() -> None:
    server = SlotServer(Random(1), 1, None, times=EVEN)

    async def main() -> tuple[float, float]:
        other = asyncio.create_task(ask(server))
        await asyncio.sleep(0)
        with pytest.raises(RequestTimeoutError, match=r"within 0\.05 s"):
            await ask(server, 1, timeout=0.05)
        gone = asyncio.get_running_loop().time()
        await other
        return gone, (await ask(server, 2))[1]

    gone, third = run(main())
    assert gone == pytest.approx(0.05)
    # The one that timed out was still in the queue, and is not worked on.
    assert third == pytest.approx(0.4 + 2 * NETWORK)


def test_a_client_that_goes_away_leaves_the_queue_but_not_the_slot() -> None:
    server = SlotServer(Random(1), 1, 1, times=EVEN)

    async def main() -> list[tuple[int, float]]:
        working = asyncio.create_task(ask(server, 0))
        queued = asyncio.create_task(ask(server, 1))
        await asyncio.sleep(0)
        for task in (working, queued):
            task.cancel()
        await asyncio.gather(working, queued, return_exceptions=True)
        assert server.busy == 1
        answers = await asyncio.gather(ask(server, 2), ask(server, 3))
        return [(response.status, when) for response, when in answers]

    (first, when), (second, _) = run(main())
    assert (first, second) == (200, 429)
    assert when == pytest.approx(0.4 + NETWORK)
    assert len(server.seen.served) == 1


def test_faults_come_as_often_as_they_should() -> None:
    server = SlotServer(Random(1), 50, None, faults=Faults(errors=0.1, resets=0.1))

    async def one(number: int) -> int:
        try:
            return (await ask(server, number))[0].status
        except TransportError:
            return 0

    async def main() -> list[int]:
        return await asyncio.gather(*(one(number) for number in range(2000)))

    statuses = run(main())
    assert statuses.count(0) / 2000 == pytest.approx(0.1, abs=0.02)
    assert statuses.count(500) / 2000 == pytest.approx(0.09, abs=0.02)


def test_times_have_the_mean_and_the_slow_tail_that_they_say() -> None:
    dice = Random(1)
    drawn = [Times(0.1, slow=0.05).draw(dice) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.1 * (0.95 + 0.05 * 20), rel=0.05)
    assert sum(seconds > 0.7 for seconds in drawn) / len(drawn) == pytest.approx(0.05, abs=0.01)


def test_an_outage_begins_when_it_should() -> None:
    server = Outage(Random(1), 1.0, refuses=True)

    async def main() -> None:
        assert (await ask(server))[0].status == 200
        with pytest.raises(ConnectError):
            await ask(server, 1, after=1.0)

    run(main())


def test_a_session_takes_the_answers_for_real_ones_and_the_record_says_so() -> None:
    async def main() -> SlotServer:
        server = SlotServer(Random(1), 1, 0, times=EVEN)
        async with RerankSession(
            "https://simulated.test/v1", api_key="k", model="m", http=server, concurrency=2, seed=1
        ) as session:
            texts = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
            await asyncio.gather(*(session.rerank(f"query {t[0]}", t) for t in texts))
        return server

    server = run(main())
    figures = server.figures(0.0, 10.0)
    # The second came while the slot was taken, was refused, and came again.
    throttled = len(server.seen.arrivals) - 2
    assert throttled >= 1
    assert figures.throttled == pytest.approx(throttled / (throttled + 2))
    assert figures.wasted == pytest.approx(throttled / (throttled + 2))
    assert figures.goodput == pytest.approx(0.8)
    # From the first time that the query came.
    assert figures.p99 == pytest.approx(server.seen.served[1][1])


def test_the_same_seed_gives_the_same_run() -> None:
    def once() -> list[tuple[int, float]]:
        return ask_all(SlotServer(Random(7), 3, 10, faults=Faults(errors=0.3)), 20)

    assert once() == once()


def test_a_virtual_run_hands_on_what_its_main_raises() -> None:
    async def main() -> None:
        await asyncio.sleep(5)
        raise LookupError("that is the point")

    coroutine: Coroutine[Any, Any, None] = main()
    with pytest.raises(LookupError):
        run(coroutine)


def test_a_burst_refuses_its_share_while_it_lasts_and_nobody_else() -> None:
    bursts = (Burst(1.0, 2.0), Burst(3.0, 4.0, 0.5, status=503))
    server = SlotServer(Random(1), 1000, None, times=EVEN, bursts=bursts)

    async def main() -> list[int]:
        asked = (ask(server, n, after=n / 100) for n in range(500))
        return [response.status for response, _ in await asyncio.gather(*asked)]

    statuses = run(main())
    assert set(statuses[101:199]) == {429}
    assert set(statuses[301:399]) == {200, 503}
    assert statuses[301:399].count(503) / 98 == pytest.approx(0.5, abs=0.15)
    assert set(statuses[:99] + statuses[201:299] + statuses[401:]) == {200}


def test_throttles_at_random_come_as_often_as_they_should_whatever_the_load_is() -> None:
    for slots in (50, 5000):
        server = SlotServer(Random(1), slots, None, times=EVEN, faults=Faults(throttles=0.05))
        statuses = [status for status, _ in ask_all(server, 2000)]
        assert statuses.count(429) / 2000 == pytest.approx(0.05, abs=0.02)


def test_one_connection_too_many_is_reset() -> None:
    server = SlotServer(Random(1), 3, None, times=EVEN, connections=3)

    async def main() -> list[object]:
        asked = (ask(server, number) for number in range(5))
        return await asyncio.gather(*asked, return_exceptions=True)

    broken = [isinstance(answer, TransportError) for answer in run(main())]
    assert broken == [False] * 3 + [True] * 2


@pytest.mark.parametrize("slow_for", [0.0, 2.0])
def test_recovery_counts_from_the_last_refusal_to_nine_tenths_of_the_goodput(
    slow_for: float,
) -> None:
    # A request every tenth of a second, and none for a time after the burst.
    server = SlotServer(Random(1), 10, None, times=EVEN, bursts=(Burst(10.0, 11.0),))

    async def main() -> None:
        times = [n / 10 for n in range(300) if not 11.0 <= n / 10 < 11.0 + slow_for]
        await asyncio.gather(*(ask(server, n, after=when) for n, when in enumerate(times)))

    run(main())
    # The last refusal came at 10.9 s, and 0.2 s of work lie before the next answer.
    took = server.recovery(2.0, 10.0, 11.0, 1.0)
    assert took == pytest.approx(slow_for + 0.2, abs=0.2)
    assert server.recovery(2.0, 10.0, 40.0, 100.0) == inf
