"""`_streams`: bounded, in order of completion, and closed at the end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from rerank_async._streams import Room, as_completed, iterate
from tests.support import steps


async def count(to: int, closed: list[bool] | None = None) -> AsyncGenerator[int, None]:
    try:
        for number in range(to):
            yield number
    finally:
        if closed is not None:
            closed.append(True)


async def double(number: int, item: int) -> int:
    assert number == item
    return 2 * item


@pytest.mark.parametrize("size", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_every_item_has_one_result(size: int, limit: int) -> None:
    plain = [result async for result in as_completed(range(size), double, limit=lambda: limit)]
    from_async = [result async for result in as_completed(count(size), double, limit=lambda: limit)]
    assert sorted(plain) == sorted(from_async) == [2 * item for item in range(size)]


async def test_results_come_in_the_order_of_completion() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def work(number: int, item: int) -> int:
        await gates[number].wait()
        return item

    results = as_completed(range(3), work, limit=lambda: 3)
    async with aclosing(results):
        for number in (2, 0, 1):
            gates[number].set()
            assert await anext(results) == number


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_no_more_than_the_limit_are_read_and_not_taken(limit: int) -> None:
    read = 0

    def items() -> AsyncIterator[int]:
        async def generate() -> AsyncIterator[int]:
            nonlocal read
            for number in range(100):
                read += 1
                yield number

        return generate()

    results = as_completed(items(), double, limit=lambda: limit)
    async with aclosing(results):
        for taken in range(1, 20):
            await anext(results)
            for _ in range(50):
                await asyncio.sleep(0)
            # One more is read, and waits for room.
            assert read <= taken + limit + 1


async def test_the_limit_may_change_under_way() -> None:
    limit, most, working = 1, 0, 0
    gates = [asyncio.Event() for _ in range(30)]

    async def work(number: int, item: int) -> int:
        nonlocal most, working
        working += 1
        most = max(most, working)
        await gates[number].wait()
        working -= 1
        return item

    results = as_completed(range(30), work, limit=lambda: limit)
    async with aclosing(results):
        # The limit, who ends first, and how many are then let in up to.
        for number, (now, most_then) in enumerate([(1, 1), (4, 4), (4, 4), (2, 3), (2, 2), (9, 9)]):
            limit, most = now, 0
            await steps(10)
            gates[number].set()
            assert await anext(results) == number
            await steps(10)
            assert working <= most_then


async def test_an_error_of_the_work_ends_it_all_and_closes_the_source() -> None:
    closed: list[bool] = []

    async def work(number: int, item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        async for _ in as_completed(count(1000, closed), work, limit=lambda: 2):
            pass
    assert closed == [True]


async def test_an_error_of_the_items_is_raised_as_it_is() -> None:
    async def items() -> AsyncIterator[int]:
        yield 0
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        async for _ in as_completed(items(), double, limit=lambda: 2):
            pass


async def test_an_error_of_the_items_reaches_a_consumer_who_comes_late() -> None:
    gone_on = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 0
        yield 1
        # By then both are done and lie in the queue, with nobody who takes them.
        await gone_on.wait()
        raise LookupError("no more")

    taken: list[int] = []
    with pytest.raises(LookupError, match="no more"):
        async for result in as_completed(items(), double, limit=lambda: 8):
            taken.append(result)
            gone_on.set()
            # The reader comes to its end while the consumer is busy.
            for _ in range(20):
                await asyncio.sleep(0)
    assert taken == [0, 2]


async def test_stopping_early_cancels_what_is_in_work_and_closes_the_source() -> None:
    closed: list[bool] = []
    cancelled = 0

    async def work(number: int, item: int) -> int:
        nonlocal cancelled
        if item == 0:
            return item
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return item  # pragma: no cover

    async with aclosing(as_completed(count(1000, closed), work, limit=lambda: 4)) as results:
        assert await anext(results) == 0
        for _ in range(20):
            await asyncio.sleep(0)
    assert closed == [True]
    assert cancelled == 4
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_iterate_closes_the_iterator_that_a_class_makes() -> None:
    closed: list[bool] = []

    class Items:
        def __aiter__(self) -> AsyncIterator[int]:
            return count(10, closed)

    async with aclosing(iterate(Items())) as items:
        assert await anext(items) == 0
    assert closed == [True]


class Strange(BaseException):  # no error: what some libraries use to stop a program
    """Neither an Exception nor a cancellation."""


async def test_what_is_no_exception_is_raised_too_and_nobody_waits_for_ever() -> None:
    async def work(number: int, item: int) -> int:
        raise Strange

    with pytest.raises(Strange):
        async for _ in as_completed(range(3), work, limit=lambda: 2):
            pass

    async def items() -> AsyncIterator[int]:
        yield 0
        raise Strange

    with pytest.raises(Strange):
        async for _ in as_completed(items(), double, limit=lambda: 2):
            pass


# ── a room ──


class Guests:
    """One task that enters a room again and again, and whoever leaves it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entered = 0
        self.room = Room(lambda: self.limit)

    async def come(self, number: int) -> None:
        for _ in range(number):
            await self.room.enter()
            self.entered += 1


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_a_room_takes_so_many_and_one_more_for_each_that_leaves(limit: int) -> None:
    guests = Guests(limit)
    coming = asyncio.create_task(guests.come(20))
    await steps(5)
    assert guests.entered == limit
    for gone in range(1, 21 - limit):
        guests.room.leave()
        await steps(5)
        assert guests.entered == limit + gone
    await coming


async def test_several_that_leave_at_once_make_room_for_as_many() -> None:
    guests = Guests(5)
    coming = asyncio.create_task(guests.come(8))
    await steps(5)
    for _ in range(3):
        guests.room.leave()
    await coming
    assert guests.entered == 8


async def test_a_room_that_was_made_smaller_waits_until_enough_have_left() -> None:
    guests = Guests(4)
    coming = asyncio.create_task(guests.come(5))
    await steps(5)
    guests.limit = 2
    for _ in range(2):
        guests.room.leave()
        await steps(5)
        assert guests.entered == 4
    guests.room.leave()
    await coming
    assert guests.entered == 5


async def test_a_room_that_was_made_larger_takes_more_with_the_next_look() -> None:
    guests = Guests(1)
    coming = asyncio.create_task(guests.come(5))
    await steps(5)
    guests.limit = 4
    guests.room.leave()
    await steps(5)
    assert guests.entered == 5
    await coming


@pytest.mark.parametrize("freed", [False, True], ids=["in vain", "as room is made"])
async def test_one_who_is_cancelled_before_the_door_takes_no_room(freed: bool) -> None:
    guests = Guests(1)
    await guests.room.enter()
    waiting = asyncio.create_task(guests.come(1))
    await steps(5)
    if freed:
        guests.room.leave()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    if not freed:
        guests.room.leave()
    await guests.come(1)
    assert guests.entered == 1


async def test_leaving_a_room_before_which_nobody_waits_is_remembered() -> None:
    guests = Guests(2)
    await guests.come(2)
    guests.room.leave()
    guests.room.leave()
    await guests.come(2)
    assert guests.entered == 4


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_an_error_of_the_items_is_raised_however_late_the_results_are_taken(
    read: int,
) -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(read):
            yield number
            # Its work is over before the error comes.
            await steps(5)
        raise LookupError("no more")

    taken = 0
    with pytest.raises(LookupError, match="no more"):
        async for _ in as_completed(items(), double, limit=lambda: 10):
            taken += 1
            # The reader is over long before the next result is taken.
            await steps(20)
    assert taken == read
