"""`limiter`: slots in the order of asking, by weight and at a rate, and counts back to zero."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import field, frozen

from rerank_async import Concurrency, InvalidRequestError, RateLimit
from rerank_async._flow import Controller, Ending
from rerank_async._flow.limiter import Limiter
from rerank_async._flow.load import Load
from tests.support import steps, until


def now() -> float:
    return asyncio.get_running_loop().time()


async def wait(
    limiter: Limiter, documents: int, size: int, tokens: int = 0, *, again: bool = False
) -> None:
    """Stand in line as a call does it."""
    turn = limiter.line_up(Load(documents, size, tokens), again=again)
    try:
        await turn
    except asyncio.CancelledError:
        limiter.step_out(turn, Load(documents, size, tokens))
        raise


@asynccontextmanager
async def slot(
    limiter: Limiter,
    documents: int = 1,
    size: int = 10,
    tokens: int = 0,
    *,
    again: bool = False,
    ending: Ending = "answered",
) -> AsyncGenerator[None, None]:
    """A slot, taken and given back as a call does it."""
    if not limiter.take(Load(documents, size, tokens)):
        await wait(limiter, documents, size, tokens, again=again)
    started = now()
    try:
        yield
    finally:
        limiter.give(Load(documents, size), started, ending)


def assert_empty(limiter: Limiter) -> None:
    """Nobody inside, nobody waiting, and no weight left behind."""
    admission = limiter._admission
    assert (limiter.in_flight, limiter.waiting) == (0, 0)
    assert (admission.requests, admission.documents, admission.bytes) == (0, 0, 0)
    assert not limiter._retries
    assert not limiter._newcomers


class Crowd:
    """Tasks that take a slot in the order in which they are made, and stay until they are let go.

    Attributes:
        served: the names of those who had a slot, in order.
        at: when each had it, on the loop's clock.
    """

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.served: list[str] = []
        self.at: dict[str, float] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._gone: dict[str, asyncio.Event] = {}

    async def come(
        self,
        name: str,
        documents: int = 1,
        size: int = 10,
        tokens: int = 0,
        *,
        again: bool = False,
        stays: bool = True,
        ending: Ending = "answered",
    ) -> None:
        """One more; when this returns it has a slot or waits for one."""
        gone = self._gone[name] = asyncio.Event()

        async def work() -> None:
            async with slot(self.limiter, documents, size, tokens, again=again, ending=ending):
                self.served.append(name)
                self.at[name] = now()
                if stays:
                    await gone.wait()

        self.tasks[name] = asyncio.create_task(work())
        await steps(3)

    async def go(self, *names: str) -> None:
        """These leave, one after the other."""
        for name in names:
            self._gone[name].set()
            await steps(5)

    async def end(self) -> None:
        """Everybody leaves, those who wait after they were served."""
        for gone in self._gone.values():
            gone.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


# ── what may be asked for ──


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "8", None])
def test_a_limit_that_is_no_positive_whole_number_is_refused_by_name(limit: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"^concurrency must be"):
        Concurrency(limit)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("name", ["max_documents", "max_bytes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
@pytest.mark.parametrize("make", [Concurrency, Concurrency.adaptive])
def test_a_weight_that_is_no_positive_whole_number_is_refused_by_name(
    make: Callable[..., Concurrency], name: str, value: object
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["start", "min", "max"], [0, -1, 1.5, True, "8"]),
        # Not told where to start, it chooses.
        ("min", None),
        ("max", None),
    ],
)
def test_a_bound_of_the_search_that_is_no_positive_whole_number_is_refused_by_name(
    name: str, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be a whole number"):
        Concurrency.adaptive(**{name: value})


def test_a_search_that_is_not_told_where_to_start_starts_within_its_bounds() -> None:
    assert Concurrency.adaptive().limit == 8
    assert Concurrency.adaptive(max=4).limit == 4
    assert Concurrency.adaptive(min=16).limit == 16
    with pytest.raises(InvalidRequestError, match="min must not be above max"):
        Concurrency.adaptive(min=9, max=7)


@pytest.mark.parametrize(
    ("bounds", "shown"),
    [
        ({"start": 8, "min": 9}, "8 is not between 9 and 512"),
        ({"start": 8, "max": 7}, "8 is not between 1 and 7"),
        ({"start": 513}, "513 is not between 1 and 512"),
    ],
)
def test_a_search_starts_between_its_bounds(bounds: dict[str, Any], shown: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^start must lie .*{shown}"):
        Concurrency.adaptive(**bounds)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gain", value) for value in (-0.1, 1.1, 2, True, "0.5", None, float("nan"))]
    + [("latency_guard", value) for value in (0, 1, 0.5, -2.0, True, "2", float("nan"))]
    + [("latency_guard", float("inf"))],
)
def test_a_setting_of_the_search_that_is_out_of_range_is_refused_by_name(
    name: str, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        Concurrency.adaptive(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"start": 1, "min": 1, "max": 1},
        {"start": 512},
        {"start": 4, "min": 4, "max": 4, "gain": 1, "latency_guard": 1.01},
        {"gain": 0},
        {"gain": 0.001, "max_documents": 512, "max_bytes": 2**20},
    ],
)
def test_a_search_that_makes_sense_starts_where_it_was_told(settings: dict[str, Any]) -> None:
    concurrency = Concurrency.adaptive(**settings)
    assert concurrency.limit == settings.get("start", 8)
    assert concurrency.max_documents == settings.get("max_documents")
    assert concurrency.max_bytes == settings.get("max_bytes")
    controller = concurrency.controller()
    assert (controller.limit, controller.cuts, controller.reason) == (concurrency.limit, 0, "")
    assert Limiter(concurrency).limit == concurrency.limit


def test_each_limiter_has_a_search_of_its_own_and_a_fixed_number_stays() -> None:
    adaptive = Concurrency.adaptive()
    assert adaptive.controller() is not adaptive.controller()
    fixed = Limiter(Concurrency(16))
    assert (fixed.limit, fixed.cuts, fixed.reason) == (16, 0, "")


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("value", [0, -1, -0.5, True, "60", float("nan"), float("inf"), 1e12])
def test_a_rate_that_is_no_number_above_0_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        RateLimit(**{name: value})


def test_a_rate_of_nothing_is_refused_with_the_names_of_both() -> None:
    with pytest.raises(InvalidRequestError, match="requests_per_minute or tokens_per_minute"):
        RateLimit()


def test_tokens_are_counted_only_where_there_is_a_rate_of_them() -> None:
    assert not Limiter(Concurrency(1)).counts_tokens
    assert not Limiter(Concurrency(1)).is_rated
    requests = Limiter(Concurrency(1), RateLimit(60))
    assert (requests.is_rated, requests.counts_tokens) == (True, False)
    tokens = Limiter(Concurrency(1), RateLimit(tokens_per_minute=60))
    assert (tokens.is_rated, tokens.counts_tokens) == (True, True)


# ── slots ──


async def test_no_more_than_the_limit_are_inside_and_the_rest_wait() -> None:
    limiter = Limiter(Concurrency(3))
    leave = asyncio.Event()
    served = 0

    async def work() -> None:
        nonlocal served
        async with slot(limiter):
            served += 1
            await leave.wait()

    tasks = [asyncio.create_task(work()) for _ in range(10)]
    await until(lambda: limiter.in_flight + limiter.waiting == 10)
    assert limiter.in_flight == 3
    assert limiter.waiting == 7
    leave.set()
    await asyncio.gather(*tasks)
    assert (served, limiter.limit) == (10, 3)
    assert_empty(limiter)


async def test_slots_are_given_in_the_order_of_asking() -> None:
    limiter = Limiter(Concurrency(1))
    served: list[int] = []

    async def work(number: int) -> None:
        async with slot(limiter):
            served.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(number) for number in range(50)))
    assert served == list(range(50))


async def test_a_failure_inside_gives_the_slot_back() -> None:
    limiter = Limiter(Concurrency(1))
    for _ in range(3):
        with pytest.raises(ValueError, match="inside"):
            async with slot(limiter):
                raise ValueError("inside")
    assert_empty(limiter)


async def test_nobody_takes_a_slot_before_those_who_wait() -> None:
    limiter = Limiter(Concurrency(1))
    assert limiter.take(Load(1, 10))
    waiter = asyncio.create_task(wait(limiter, 1, 10))
    await until(lambda: limiter.waiting == 1)
    limiter.give(Load(1, 10), now(), "answered")
    assert not limiter.take(Load(1, 10))
    await waiter
    limiter.give(Load(1, 10), now(), "answered")
    assert limiter.take(Load(1, 10))


async def test_those_who_come_again_go_before_the_newcomers_in_their_own_order() -> None:
    crowd = Crowd(Limiter(Concurrency(1)))
    await crowd.come("first")
    for name in ("a", "b", "c"):
        await crowd.come(f"new {name}")
    for name in ("a", "b"):
        await crowd.come(f"again {name}", again=True)
    await crowd.go("first")
    # One of them has the slot already; a further retry goes before the newcomers all the same.
    await crowd.come("again c", again=True)
    await crowd.end()
    assert crowd.served == [
        "first",
        *(f"again {name}" for name in "abc"),
        *(f"new {name}" for name in "abc"),
    ]
    assert_empty(crowd.limiter)


# ── weights ──


@pytest.mark.parametrize(
    ("weights", "inside"),
    [
        # Documents and bytes of each; how many of them are inside at once.
        ([(30, 1), (30, 1), (40, 1), (1, 1)], 3),
        ([(30, 1), (30, 1), (41, 1), (1, 1)], 2),
        ([(1, 500), (1, 500), (1, 1)], 2),
        ([(1, 500), (1, 501)], 1),
        ([(100, 1000)] * 3, 1),
        ([(1, 1)] * 12, 10),
        # Larger than the limit: alone.
        ([(101, 1), (1, 1)], 1),
        ([(1, 1001), (1, 1)], 1),
        ([(1, 1), (101, 1)], 1),
        ([(10**6, 10**9), (10**6, 10**9)], 1),
    ],
)
async def test_the_weight_on_the_wire_is_limited_and_the_order_kept(
    weights: Sequence[tuple[int, int]], inside: int
) -> None:
    limiter = Limiter(Concurrency(10, max_documents=100, max_bytes=1000))
    crowd = Crowd(limiter)
    names = [str(number) for number in range(len(weights))]
    for name, weight in zip(names, weights, strict=True):
        await crowd.come(name, *weight)
    assert crowd.served == names[:inside]
    assert (limiter.in_flight, limiter.waiting) == (inside, len(weights) - inside)
    await crowd.end()
    assert crowd.served == names
    assert_empty(limiter)


async def test_small_ones_do_not_starve_a_large_one_at_the_head() -> None:
    crowd = Crowd(Limiter(Concurrency(10, max_documents=10)))
    for number in range(5):
        await crowd.come(f"early {number}", 2)
    await crowd.come("large", 10)
    for number in range(5):
        await crowd.come(f"late {number}", 1)
    # There would be room for the late ones all along.
    for number in range(4):
        await crowd.go(f"early {number}")
        assert len(crowd.served) == 5
    await crowd.go("early 4")
    assert crowd.served[5:] == ["large"]
    await crowd.go("large")
    assert crowd.served[6:] == [f"late {number}" for number in range(5)]
    await crowd.end()


async def test_one_that_leaves_lets_in_as_many_as_its_weight_makes_room_for() -> None:
    crowd = Crowd(Limiter(Concurrency(10, max_bytes=100)))
    await crowd.come("large", 1, 90)
    for number in range(6):
        await crowd.come(f"small {number}", 1, 20)
    assert crowd.served == ["large"]
    await crowd.go("large")
    assert crowd.served[1:] == [f"small {number}" for number in range(5)]
    await crowd.end()


# ── cancellation ──


@pytest.mark.parametrize("cancelled", [range(0, 20, 2), range(10), range(10, 20), range(1, 20)])
@pytest.mark.parametrize("again", [False, True], ids=["newcomers", "retries"])
async def test_waiters_that_are_cancelled_leave_the_others_served_in_order(
    cancelled: range, again: bool
) -> None:
    limiter = Limiter(Concurrency(2, max_documents=7, max_bytes=100))
    leave = asyncio.Event()
    served: list[int] = []

    async def work(number: int) -> None:
        async with slot(limiter, 1 + number % 3, 10, again=again):
            served.append(number)
            await leave.wait()

    tasks = [asyncio.create_task(work(number)) for number in range(20)]
    await until(lambda: len(served) == 2)
    for number in cancelled:
        tasks[number].cancel()
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    kept = [number for number in range(20) if number not in cancelled]
    assert [number for number in served if number in kept] == kept
    assert_empty(limiter)


@pytest.mark.parametrize("pause", [0, 1, 2, 3], ids="after {} steps".format)
async def test_whoever_is_cancelled_whenever_nothing_is_left_behind(pause: int) -> None:
    limiter = Limiter(Concurrency(2, max_documents=6, max_bytes=50))
    served: list[int] = []

    async def work(number: int) -> None:
        async with slot(limiter, 1 + number % 7, 5 * (number % 11), again=number % 3 == 0):
            served.append(number)
            await steps(number % 3)

    tasks = [asyncio.create_task(work(number)) for number in range(60)]
    for number in range(0, 60, 2):
        await steps(pause)
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert set(range(1, 60, 2)) <= set(served)
    assert_empty(limiter)


async def test_all_cancelled_at_once_leave_nothing_behind() -> None:
    crowd = Crowd(Limiter(Concurrency(2, max_documents=3)))
    for number in range(20):
        await crowd.come(f"{number}", 1 + number % 5, again=number % 2 == 0)
    for task in crowd.tasks.values():
        task.cancel()
    await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)
    assert_empty(crowd.limiter)
    assert crowd.limiter.take(Load(3, 10))


async def test_a_slot_that_comes_together_with_a_cancellation_goes_to_the_next() -> None:
    limiter = Limiter(Concurrency(1))
    assert limiter.take(Load(1, 10))
    first = asyncio.create_task(wait(limiter, 1, 10))
    second = asyncio.create_task(wait(limiter, 1, 10))
    await until(lambda: limiter.waiting == 2)
    limiter.give(Load(1, 10), now(), "answered")
    # The slot is the first one's now, but its task has not run yet.
    assert limiter.waiting == 1
    first.cancel()
    await second
    assert first.cancelled()
    assert (limiter.in_flight, limiter.waiting) == (1, 0)
    limiter.give(Load(1, 10), now(), "answered")
    assert_empty(limiter)


async def test_a_large_head_that_is_cancelled_lets_the_next_go_at_once() -> None:
    crowd = Crowd(Limiter(Concurrency(10, max_documents=10)))
    await crowd.come("inside", 5)
    await crowd.come("large", 9)
    await crowd.come("small", 5)
    await crowd.come("next", 1)
    assert crowd.served == ["inside"]
    crowd.tasks["large"].cancel()
    await steps(3)
    assert crowd.served == ["inside", "small"]
    await crowd.end()
    assert_empty(crowd.limiter)


async def test_a_turn_that_was_lined_up_for_is_given_up_before_and_after_it_came() -> None:
    limiter = Limiter(Concurrency(1, max_documents=5))
    assert limiter.take(Load(1, 10))
    turns = [limiter.line_up(Load(documents, 10)) for documents in (2, 3, 4)]
    assert (limiter.in_flight, limiter.waiting) == (1, 3)
    turns[0].cancel()
    limiter.step_out(turns[0], Load(2, 10))
    assert (limiter.in_flight, limiter.waiting) == (1, 2)
    limiter.give(Load(1, 10), now(), "answered")
    assert turns[1].done()
    limiter.step_out(turns[1], Load(3, 10))
    assert turns[2].done()
    limiter.give(Load(4, 10), now(), "answered")
    assert_empty(limiter)


@pytest.mark.looptime
async def test_the_rates_get_back_what_a_slot_took_that_came_with_a_cancellation() -> None:
    limiter = Limiter(Concurrency(1), RateLimit(60, 600))
    assert limiter.take(Load(1, 10, 0))
    await asyncio.sleep(1)
    first = asyncio.create_task(wait(limiter, 1, 10, 10))
    second = asyncio.create_task(wait(limiter, 1, 10, 10))
    await steps(3)
    limiter.give(Load(1, 10), 0.0, "answered")
    assert limiter.waiting == 1
    first.cancel()
    await second
    # Otherwise the second would have had to wait for a second.
    assert now() == 1.0
    assert not limiter.take(Load(1, 10, 10))
    limiter.give(Load(1, 10), 1.0, "answered")
    assert_empty(limiter)


# ── the gate ──


@pytest.mark.looptime
async def test_the_gate_holds_everybody_and_then_they_go_in_order() -> None:
    crowd = Crowd(Limiter(Concurrency(3)))
    limiter = crowd.limiter
    assert limiter.gate == 0.0
    assert limiter.close_gate(10.0, 0.5)
    assert limiter.gate == pytest.approx(10.5)
    for number in range(6):
        await crowd.come(f"{number}", stays=False)
    assert crowd.served == []
    assert (limiter.in_flight, limiter.waiting) == (0, 6)
    await asyncio.sleep(10.0)
    assert crowd.served == []
    await asyncio.sleep(1.0)
    assert crowd.served == [f"{number}" for number in range(6)]
    assert list(crowd.at.values()) == pytest.approx([10.5] * 6, abs=1e-3)
    assert limiter.gate == 0.0
    await crowd.end()
    assert_empty(limiter)


@pytest.mark.looptime
async def test_a_gate_that_closes_while_others_wait_holds_them_too() -> None:
    crowd = Crowd(Limiter(Concurrency(1)))
    await crowd.come("inside")
    await crowd.come("waiting")
    crowd.limiter.close_gate(5.0, 0.0)
    await crowd.go("inside")
    assert crowd.served == ["inside"]
    await crowd.come("again", again=True)
    await asyncio.sleep(4.9)
    assert crowd.served == ["inside"]
    await asyncio.sleep(0.2)
    assert crowd.served == ["inside", "again"]
    await crowd.end()


@pytest.mark.looptime
async def test_a_gate_that_is_closed_for_longer_opens_at_the_later_time() -> None:
    crowd = Crowd(Limiter(Concurrency(5)))
    crowd.limiter.close_gate(5.0, 0.0)
    await crowd.come("waiting", stays=False)
    await asyncio.sleep(3.0)
    assert crowd.limiter.close_gate(10.0, 0.0)
    assert not crowd.limiter.close_gate(1.0, 0.0)
    await asyncio.sleep(9.0)
    assert crowd.served == []
    await crowd.end()
    assert crowd.at == {"waiting": pytest.approx(13.0, abs=1e-3)}


@pytest.mark.looptime
async def test_nobody_has_to_wait_behind_a_gate_who_came_after_it_opened() -> None:
    limiter = Limiter(Concurrency(1))
    limiter.close_gate(5.0, 0.0)
    assert not limiter.take(Load(1, 10))
    await asyncio.sleep(5.0)
    assert limiter.take(Load(1, 10))


@pytest.mark.looptime
async def test_one_who_is_cancelled_behind_the_gate_does_not_keep_the_others() -> None:
    crowd = Crowd(Limiter(Concurrency(1)))
    crowd.limiter.close_gate(5.0, 0.0)
    for name in ("a", "b"):
        await crowd.come(name, stays=False)
    crowd.tasks["a"].cancel()
    await crowd.end()
    assert crowd.at == {"b": pytest.approx(5.0, abs=1e-3)}
    assert_empty(crowd.limiter)


# ── rates ──


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("per_minute", "requests", "seconds"),
    [(60, 10, 9.0), (60, 1, 0.0), (600, 100, 9.0), (6, 3, 20.0), (90, 4, 5 / 3), (6000, 150, 0.5)],
)
async def test_requests_take_the_time_that_their_rate_gives_them(
    per_minute: float, requests: int, seconds: float
) -> None:
    crowd = Crowd(Limiter(Concurrency(1000), RateLimit(per_minute)))
    for number in range(requests):
        await crowd.come(f"{number}", stays=False)
    await crowd.end()
    assert now() == pytest.approx(seconds, abs=1e-3)
    assert crowd.served == [f"{number}" for number in range(requests)]
    assert_empty(crowd.limiter)


@pytest.mark.looptime
async def test_requests_are_spread_over_the_minute() -> None:
    crowd = Crowd(Limiter(Concurrency(1000), RateLimit(120)))
    for number in range(6):
        await crowd.come(f"{number}", stays=False)
    await crowd.end()
    assert list(crowd.at.values()) == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0], abs=1e-3)


@pytest.mark.looptime
async def test_a_large_amount_is_not_starved_and_the_average_rate_is_kept() -> None:
    # 100 tokens a second; the large one holds ten seconds' worth.
    crowd = Crowd(Limiter(Concurrency(1000), RateLimit(tokens_per_minute=6000)))
    await crowd.come("first", tokens=100, stays=False)
    await crowd.come("large", tokens=1000, stays=False)
    for number in range(10):
        await crowd.come(f"small {number}", tokens=10, stays=False)
    await crowd.end()
    assert crowd.served[:2] == ["first", "large"]
    assert crowd.at["large"] == pytest.approx(1.0, abs=1e-3)
    # What it took too much is paid off before the next.
    assert crowd.at["small 0"] == pytest.approx(10.1, abs=1e-3)
    assert crowd.at["small 9"] == pytest.approx(11.0, abs=1e-3)


@pytest.mark.looptime
async def test_the_slower_of_two_rates_is_kept() -> None:
    crowd = Crowd(Limiter(Concurrency(1000), RateLimit(60, 600)))
    for number in range(5):
        await crowd.come(f"{number}", tokens=20, stays=False)
    await crowd.end()
    # 10 tokens a second: the first leaves a debt of 10, and each after waits for a full bucket.
    assert list(crowd.at.values()) == pytest.approx([0, 2, 4, 6, 8], abs=1e-3)


@pytest.mark.looptime
async def test_slots_and_rates_hold_together() -> None:
    limiter = Limiter(Concurrency(1), RateLimit(60))
    served: list[float] = []

    async def work(seconds: float) -> None:
        async with slot(limiter):
            served.append(now())
            await asyncio.sleep(seconds)

    await asyncio.gather(*(work(seconds) for seconds in (5.0, 0.1, 0.1, 3.0, 0.1)))
    assert served == pytest.approx([0, 5, 6, 7, 10], abs=1e-3)
    assert_empty(limiter)


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("expected", "cost", "wait"), [(10, 10, 1.0), (10, 30, 3.0), (10, 5, 0.5), (30, 1, 0.1)]
)
async def test_the_tokens_of_the_answer_replace_those_that_were_expected(
    expected: int, cost: int, wait: float
) -> None:
    limiter = Limiter(Concurrency(10), RateLimit(tokens_per_minute=600))
    async with slot(limiter, tokens=expected):
        limiter.settle(expected, cost)
    async with slot(limiter, tokens=10):
        assert now() == pytest.approx(wait, abs=1e-3)


@pytest.mark.looptime
async def test_tokens_given_back_let_those_who_wait_go_with_the_slot() -> None:
    crowd = Crowd(Limiter(Concurrency(10), RateLimit(tokens_per_minute=60)))
    await crowd.come("first", tokens=1000)
    await crowd.come("second", tokens=1, stays=False)
    await asyncio.sleep(1.0)
    crowd.limiter.settle(1000, 1)
    await crowd.go("first")
    assert crowd.at["second"] == 1.0
    await crowd.end()


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, 0.0),
        ({"x-ratelimit-remaining-requests": "0"}, 0.1),
        ({"x-ratelimit-remaining-requests": "5"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0.5"}, 0.05),
        ({"x-ratelimit-remaining-tokens": "0"}, 0.5),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "2"}, 0.3),
        (
            {"x-ratelimit-remaining-requests": "1000000", "x-ratelimit-remaining-tokens": "many"},
            0.0,
        ),
        ({"x-ratelimit-remaining-requests": "-5"}, 0.0),
    ],
)
async def test_what_the_server_says_is_left_corrects_the_rates(
    headers: dict[str, str], wait: float
) -> None:
    limiter = Limiter(Concurrency(10), RateLimit(600, 600))
    limiter.heed(headers)
    async with slot(limiter, tokens=5):
        assert now() == pytest.approx(wait, abs=1e-3)


async def test_without_a_rate_nothing_is_corrected_or_settled() -> None:
    limiter = Limiter(Concurrency(1))
    limiter.heed({"x-ratelimit-remaining-requests": "0"})
    limiter.settle(1, 10**9)
    assert limiter.take(Load(1, 10, 10**9))
    requests = Limiter(Concurrency(1), RateLimit(60))
    requests.heed({"x-ratelimit-remaining-tokens": "0"})
    requests.settle(1, 10**9)
    assert requests.take(Load(1, 10, 10**9))


@pytest.mark.looptime
async def test_waiters_that_are_cancelled_take_nothing_from_the_rate() -> None:
    crowd = Crowd(Limiter(Concurrency(10), RateLimit(60)))
    for number in range(10):
        await crowd.come(f"{number}", stays=False)
    for number in range(1, 9):
        crowd.tasks[f"{number}"].cancel()
    await crowd.end()
    assert crowd.at == {"0": 0.0, "9": pytest.approx(1.0, abs=1e-3)}
    assert_empty(crowd.limiter)


# ── a limit that moves ──


class Script:
    """A controller that sets the limit as written, one line for each attempt that ends."""

    def __init__(self, start: int, lines: Sequence[tuple[int, str]]) -> None:
        self.limit = start
        self.cuts = 0
        self.reason = ""
        self.lines = list(lines)
        self.heeds_answers = True
        self.unheard = 0
        self.told: list[tuple[float, float, int, Ending, int]] = []

    def finished(
        self, now: float, started: float, documents: int, ending: Ending, in_flight: int
    ) -> None:
        self.told.append((now, started, documents, ending, in_flight))
        if self.lines:
            limit, reason = self.lines.pop(0)
            self.cuts += limit < self.limit
            self.limit, self.reason = limit, reason


@frozen
class Scripted(Concurrency):
    """As many at once as a script says."""

    script: Script = field(kw_only=True)

    def controller(self) -> Controller:
        return self.script


def scripted(start: int, *lines: tuple[int, str], max_documents: int | None = None) -> Crowd:
    script = Script(start, lines)
    return Crowd(Limiter(Scripted(99, script=script, max_documents=max_documents)))


async def test_a_limit_that_grows_wakes_as_many_as_there_are_new_slots() -> None:
    crowd = scripted(1, (4, "climbed"), (4, "climbed"), (6, "climbed"))
    assert crowd.limiter.limit == 1
    for number in range(10):
        await crowd.come(f"{number}")
    assert crowd.served == ["0"]
    await crowd.go("0")
    assert len(crowd.served) == 5
    await crowd.go("1")
    assert len(crowd.served) == 6
    await crowd.go("2")
    assert len(crowd.served) == 9
    assert (crowd.limiter.limit, crowd.limiter.in_flight) == (6, 6)
    await crowd.end()
    assert crowd.served == [f"{number}" for number in range(10)]
    assert_empty(crowd.limiter)


async def test_a_limit_that_is_cut_lets_nobody_in_until_enough_have_left() -> None:
    crowd = scripted(4, (2, "throttled"))
    for number in range(8):
        await crowd.come(f"{number}")
    await crowd.go("0")
    assert (crowd.limiter.limit, crowd.limiter.cuts) == (2, 1)
    assert crowd.limiter.reason == "throttled"
    await crowd.go("1")
    assert (len(crowd.served), crowd.limiter.in_flight) == (4, 2)
    await crowd.go("2")
    assert (len(crowd.served), crowd.limiter.in_flight) == (5, 2)
    await crowd.end()
    assert_empty(crowd.limiter)


async def test_a_limit_that_grows_does_not_lift_the_weights() -> None:
    crowd = scripted(1, (9, "climbed"), max_documents=3)
    for number in range(6):
        await crowd.come(f"{number}")
    await crowd.go("0")
    assert crowd.limiter.in_flight == 3
    await crowd.end()


@pytest.mark.looptime
async def test_the_controller_is_told_how_each_attempt_went() -> None:
    crowd = scripted(2)
    await crowd.come("a", 7, ending="timeout")
    await asyncio.sleep(1.0)
    await crowd.come("b", 8, ending="throttled")
    await crowd.come("waiting", 9, ending="other")
    await asyncio.sleep(1.0)
    await crowd.go("a")
    await asyncio.sleep(1.0)
    await crowd.go("b", "waiting")
    script = crowd.limiter._controller
    assert isinstance(script, Script)
    assert script.told == [
        (2.0, 0.0, 7, "timeout", 2),
        (3.0, 1.0, 8, "throttled", 2),
        (3.0, 2.0, 9, "other", 1),
    ]


async def test_listeners_are_told_of_each_change_with_its_reason_and_of_nothing_else() -> None:
    crowd = scripted(1, (1, "same"), (4, "climbed"), (4, "same"), (2, "throttled"))
    heard: list[tuple[int, int, str]] = []
    also: list[int] = []

    def once() -> Callable[[int, int, str], None]:
        def listener(old: int, new: int, reason: str) -> None:
            also.append(new)
            # In the middle of telling the others.
            crowd.limiter.listeners.discard(listener)

        return listener

    crowd.limiter.listeners.add(lambda old, new, reason: heard.append((old, new, reason)))
    crowd.limiter.listeners |= {once(), once(), once()}
    for number in range(6):
        await crowd.come(f"{number}", stays=False)
    await crowd.end()
    assert heard == [(1, 4, "climbed"), (4, 2, "throttled")]
    assert also == [4, 4, 4]


async def test_whoever_was_given_a_slot_and_cancelled_says_nothing_to_the_controller() -> None:
    crowd = scripted(1)
    await crowd.come("inside")
    await crowd.come("cancelled")
    await crowd.come("next")
    crowd._gone["inside"].set()
    # The slot comes to the one who is cancelled before its task has run.
    await until(lambda: crowd.limiter.waiting == 1)
    crowd.tasks["cancelled"].cancel()
    await crowd.end()
    assert crowd.served == ["inside", "next"]
    script = crowd.limiter._controller
    assert isinstance(script, Script)
    assert len(script.told) == 2
    assert_empty(crowd.limiter)


async def test_who_steps_out_without_having_been_cancelled_waits_no_longer() -> None:
    limiter = Limiter(Concurrency(1))
    assert limiter.take(Load(1, 10))
    turn = limiter.line_up(Load(1, 10))
    limiter.step_out(turn, Load(1, 10))
    assert (limiter.in_flight, limiter.waiting) == (1, 0)
    limiter.give(Load(1, 10), now(), "answered")
    assert_empty(limiter)


@pytest.mark.looptime
async def test_when_the_last_one_steps_out_no_timer_is_left() -> None:
    limiter = Limiter(Concurrency(1))
    limiter.close_gate(60.0, 0.0)
    turn = limiter.line_up(Load(1, 10))
    timer = limiter._timer
    assert timer is not None
    limiter.step_out(turn, Load(1, 10))
    assert timer.cancelled()
    assert_empty(limiter)
