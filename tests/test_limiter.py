"""`_limiter`: slots in the order of asking, and counts that come back to zero."""

import asyncio

import pytest

from rerank_async import Concurrency, InvalidRequestError
from rerank_async._limiter import Limiter


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "8", None])
def test_a_limit_that_is_no_positive_whole_number_is_refused_by_name(limit: object) -> None:
    with pytest.raises(InvalidRequestError, match="concurrency"):
        Concurrency(limit)  # type: ignore[arg-type]  # that is the point


async def test_no_more_than_the_limit_are_inside_and_the_rest_wait() -> None:
    limiter = Limiter(Concurrency(3))
    leave = asyncio.Event()

    async def work() -> None:
        async with limiter:
            await leave.wait()

    tasks = [asyncio.create_task(work()) for _ in range(10)]
    while limiter.statistics().in_flight + limiter.statistics().waiting < 10:
        await asyncio.sleep(0)
    assert limiter.statistics().in_flight == 3
    assert limiter.statistics().waiting == 7
    leave.set()
    await asyncio.gather(*tasks)
    done = limiter.statistics()
    assert (done.in_flight, done.waiting, done.requests, done.limit) == (0, 0, 10, 3)


async def test_slots_are_given_in_the_order_of_asking() -> None:
    limiter = Limiter(Concurrency(1))
    served: list[int] = []

    async def work(number: int) -> None:
        async with limiter:
            served.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(number) for number in range(50)))
    assert served == list(range(50))


@pytest.mark.parametrize("cancelled", [range(0, 20, 2), range(10), range(10, 20), range(1, 20)])
async def test_waiters_that_are_cancelled_leave_the_others_served_in_order(
    cancelled: range,
) -> None:
    limiter = Limiter(Concurrency(2))
    leave = asyncio.Event()
    served: list[int] = []

    async def work(number: int) -> None:
        async with limiter:
            served.append(number)
            await leave.wait()

    tasks = [asyncio.create_task(work(number)) for number in range(20)]
    while len(served) < 2:
        await asyncio.sleep(0)
    for number in cancelled:
        tasks[number].cancel()
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    kept = [number for number in range(20) if number not in cancelled]
    assert [number for number in served if number in kept] == kept
    assert (limiter.statistics().in_flight, limiter.statistics().waiting) == (0, 0)


async def test_a_failure_inside_gives_the_slot_back() -> None:
    limiter = Limiter(Concurrency(1))
    for _ in range(3):
        with pytest.raises(ValueError, match="inside"):
            async with limiter:
                raise ValueError("inside")
    assert limiter.statistics().in_flight == 0
    assert limiter.statistics().requests == 3
