"""`_spending`: a job's tokens stay below its limit, whatever is on the wire."""

from __future__ import annotations

import asyncio

from rerank_async.bulk._spending import Spending


async def test_without_a_limit_everything_can_be_afforded() -> None:
    spending = Spending(None, lambda: 10**9)
    assert not spending.is_limited
    assert await spending.can_afford(10**9)


async def test_what_is_set_aside_counts_as_spent() -> None:
    spending = Spending(100, lambda: 30)
    assert await spending.can_afford(70)
    spending.set_aside(40)
    assert await spending.can_afford(30)
    spending.settle(40)
    assert not await spending.can_afford(71)


async def test_a_row_waits_while_answers_may_still_tell() -> None:
    spent = 0
    spending = Spending(100, lambda: spent)
    spending.set_aside(80)
    waiting = asyncio.ensure_future(spending.can_afford(60))
    await asyncio.sleep(0)
    assert not waiting.done()
    # It cost half as much as was thought, and so will the next.
    spending.compare(80, 40)
    spent = 40
    spending.settle(80)
    assert await waiting


async def test_nothing_is_learned_where_the_server_does_not_say() -> None:
    spending = Spending(100, lambda: 0)
    spending.compare(10, None)
    spending.compare(0, 10)
    assert await spending.can_afford(100)
    spending.compare(10, 20)
    assert not await spending.can_afford(51)
    assert await spending.can_afford(50)


async def test_whoever_waits_is_told_when_the_job_stops() -> None:
    spending = Spending(100, lambda: 0)
    spending.set_aside(100)
    waiting = asyncio.ensure_future(spending.can_afford(1))
    await asyncio.sleep(0)
    spending.end()
    assert not await waiting
