"""`_streams`: bounded, in order of completion, and closed at the end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from rerank_async._streams import as_completed, iterate


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
    plain = [result async for result in as_completed(range(size), double, limit=limit)]
    from_async = [result async for result in as_completed(count(size), double, limit=limit)]
    assert sorted(plain) == sorted(from_async) == [2 * item for item in range(size)]


async def test_results_come_in_the_order_of_completion() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def work(number: int, item: int) -> int:
        await gates[number].wait()
        return item

    results = as_completed(range(3), work, limit=3)
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

    results = as_completed(items(), double, limit=limit)
    async with aclosing(results):
        for taken in range(1, 20):
            await anext(results)
            for _ in range(50):
                await asyncio.sleep(0)
            # One more is read, and waits for room.
            assert read <= taken + limit + 1


async def test_an_error_of_the_work_ends_it_all_and_closes_the_source() -> None:
    closed: list[bool] = []

    async def work(number: int, item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        async for _ in as_completed(count(1000, closed), work, limit=2):
            pass
    assert closed == [True]


async def test_an_error_of_the_items_is_raised_as_it_is() -> None:
    async def items() -> AsyncIterator[int]:
        yield 0
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        async for _ in as_completed(items(), double, limit=2):
            pass


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

    async with aclosing(as_completed(count(1000, closed), work, limit=4)) as results:
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


@pytest.mark.timeout(10)
async def test_what_is_no_exception_is_raised_too_and_nobody_waits_for_ever() -> None:
    async def work(number: int, item: int) -> int:
        raise Strange

    with pytest.raises(Strange):
        async for _ in as_completed(range(3), work, limit=2):
            pass

    async def items() -> AsyncIterator[int]:
        yield 0
        raise Strange

    with pytest.raises(Strange):
        async for _ in as_completed(items(), double, limit=2):
            pass
