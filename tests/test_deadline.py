"""`_deadline`: a scope interrupts what is its own to interrupt, and nothing else."""

import asyncio
from typing import Any

import pytest

from rerank_async._deadline import Scope, Watch


def scope(seconds: float | None = None) -> Scope:
    loop = asyncio.get_running_loop()
    return Scope(loop, None if seconds is None else loop.time() + seconds)


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


@pytest.mark.looptime
async def test_a_deadline_interrupts_and_says_so() -> None:
    with scope(3.0) as inside:
        await asyncio.sleep(10)
    assert inside.ended_by == "deadline"
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)
    assert cancelling() == 0


@pytest.mark.looptime
async def test_what_is_over_before_the_deadline_is_not_interrupted_later() -> None:
    with scope(3.0) as inside:
        await asyncio.sleep(1)
    await asyncio.sleep(10)
    assert inside.ended_by is None


async def test_a_deadline_that_has_passed_interrupts_at_the_first_wait() -> None:
    with scope(-1.0) as inside:
        await asyncio.Event().wait()
    assert inside.ended_by == "deadline"


async def test_the_first_reason_counts() -> None:
    with scope() as inside:
        inside.end("closed")
        inside.end("deadline")
        await asyncio.Event().wait()
    assert inside.ended_by == "closed"
    assert cancelling() == 0


async def test_an_error_inside_goes_through_also_when_the_scope_was_ended() -> None:
    with pytest.raises(ValueError, match="mine"), scope() as inside:
        inside.end("closed")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("mine") from None
    assert cancelling() == 0


async def test_a_cancellation_from_outside_goes_through() -> None:
    entered = asyncio.Event()

    async def work() -> None:
        with scope(60.0):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_outside_wins_over_one_of_its_own_at_the_same_time() -> None:
    scopes: list[Scope] = []

    async def work() -> None:
        with scope() as inside:
            scopes.append(inside)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    while not scopes:
        await asyncio.sleep(0)
    scopes[0].end("closed")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_two_scopes_that_end_at_once_the_outer_one_ends_last() -> None:
    with scope() as outer:
        with scope() as inner:
            inner.end("failed")
            outer.end("deadline")
            await asyncio.Event().wait()
        raise AssertionError("the outer scope was ended too")  # pragma: no cover
    assert (inner.ended_by, outer.ended_by) == ("failed", "deadline")
    assert cancelling() == 0


async def test_an_inner_scope_that_ends_leaves_the_outer_one_be() -> None:
    with scope() as outer:
        with scope() as inner:
            inner.end("failed")
            await asyncio.Event().wait()
        await asyncio.sleep(0)
    assert (inner.ended_by, outer.ended_by) == ("failed", None)


async def test_a_timeout_of_the_callers_own_still_works_around_a_scope() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            with scope(60.0):
                await asyncio.Event().wait()
    assert cancelling() == 0


# ── one timer for many scopes ──


@pytest.mark.looptime
async def test_a_watch_ends_each_scope_at_its_own_time() -> None:
    loop = asyncio.get_running_loop()
    watch = Watch(loop)
    ended: list[float] = []

    async def work() -> None:
        with Scope(loop, loop.time() + 5.0, watch) as inside:
            await asyncio.sleep(100)
        assert inside.ended_by == "deadline"
        ended.append(loop.time())

    tasks = []
    for _ in range(4):
        tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(1.0)
    await asyncio.gather(*tasks)
    assert ended == pytest.approx([5.0, 6.0, 7.0, 8.0])


@pytest.mark.looptime
async def test_a_watch_passes_over_scopes_that_are_over() -> None:
    loop = asyncio.get_running_loop()
    watch = Watch(loop)
    with Scope(loop, loop.time() + 5.0, watch) as first:
        await asyncio.sleep(1.0)
    with Scope(loop, loop.time() + 5.0, watch) as second:
        # The timer that was set for the first one fires meanwhile.
        await asyncio.sleep(4.5)
    with Scope(loop, loop.time() + 5.0, watch) as third:
        await asyncio.sleep(100)
    assert (first.ended_by, second.ended_by, third.ended_by) == (None, None, "deadline")
    assert loop.time() == pytest.approx(10.5)
    assert cancelling() == 0


@pytest.mark.looptime
async def test_a_watch_has_one_timer_whatever_the_number_of_scopes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    watch = Watch(loop)
    timers: list[float] = []
    call_at = loop.call_at

    def counting(when: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *arguments, **options)

    monkeypatch.setattr(loop, "call_at", counting)
    for _ in range(1000):
        with Scope(loop, loop.time() + 5.0, watch):
            pass
    assert len(timers) == 1


@pytest.mark.looptime
async def test_a_watch_that_was_closed_ends_nothing() -> None:
    loop = asyncio.get_running_loop()
    watch = Watch(loop)
    with Scope(loop, loop.time() + 5.0, watch) as inside:
        watch.close()
        await asyncio.sleep(10.0)
    assert inside.ended_by is None


# ── ended from within its own task, as a task that starts eagerly does it ──


async def test_a_scope_that_is_left_before_its_interruption_comes_has_none() -> None:
    with scope() as inside:
        inside.end("failed")
    assert cancelling() == 0
    # It would come here.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inside.ended_by == "failed"


async def test_an_interruption_comes_at_the_first_wait_after_the_step() -> None:
    waited = False
    with scope() as inside:
        inside.end("failed")
        waited = True
        await asyncio.Event().wait()
        raise AssertionError  # pragma: no cover
    assert waited
    assert cancelling() == 0
    await asyncio.sleep(0)


async def test_a_task_that_waits_is_interrupted_at_once() -> None:
    scopes: list[Scope] = []

    async def work() -> None:
        with scope() as inside:
            scopes.append(inside)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    scopes[0].end("closed")
    # No turn of the loop lies between: what is sent meanwhile would be sent for nothing.
    assert task.cancelling() == 1
    await task
    assert task.cancelling() == 0
