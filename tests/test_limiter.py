"""`_limiter`: slots in the order of asking, and counts that come back to zero."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from rerank_async import Concurrency, InvalidRequestError
from rerank_async._limiter import Limiter


@asynccontextmanager
async def slot(limiter: Limiter) -> AsyncGenerator[None, None]:
    """A slot, taken and given back as a call does it."""
    if not limiter.take():
        await limiter.wait()
    try:
        yield
    finally:
        limiter.give()


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "8", None])
def test_a_limit_that_is_no_positive_whole_number_is_refused_by_name(limit: object) -> None:
    with pytest.raises(InvalidRequestError, match="concurrency"):
        Concurrency(limit)  # type: ignore[arg-type]  # that is the point


async def test_no_more_than_the_limit_are_inside_and_the_rest_wait() -> None:
    limiter = Limiter(Concurrency(3))
    leave = asyncio.Event()

    async def work() -> None:
        async with slot(limiter):
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
        async with slot(limiter):
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
        async with slot(limiter):
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
            async with slot(limiter):
                raise ValueError("inside")
    assert limiter.statistics().in_flight == 0
    assert limiter.statistics().requests == 3


async def test_a_slot_that_comes_together_with_a_cancellation_goes_to_the_next() -> None:
    limiter = Limiter(Concurrency(1))
    assert limiter.take()
    first, second = asyncio.create_task(limiter.wait()), asyncio.create_task(limiter.wait())
    while limiter.statistics().waiting < 2:
        await asyncio.sleep(0)
    limiter.give()
    # The slot is the first one's now, but its task has not run yet.
    first.cancel()
    await second
    assert first.cancelled()
    assert limiter.statistics().in_flight == 1
    limiter.give()
    assert limiter.statistics().in_flight == 0


async def test_nobody_takes_a_slot_before_those_who_wait() -> None:
    limiter = Limiter(Concurrency(1))
    assert limiter.take()
    waiter = asyncio.create_task(limiter.wait())
    while not limiter.statistics().waiting:
        await asyncio.sleep(0)
    limiter.give()
    assert not limiter.take()
    await waiter
    limiter.give()
    assert limiter.take()
