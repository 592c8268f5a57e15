"""`_retry`: an attempt after the other as the decision says, and the last error as it was."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from rerank_async import (
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    RerankError,
    ResponseError,
    RetryPolicy,
    ServerError,
    TransportError,
)
from rerank_async._policy import retry_delay
from rerank_async._retry import retry


class Scripted:
    """Attempts that go as written: an error is raised, anything else is the answer."""

    def __init__(self, *steps: Exception | str) -> None:
        self.steps = list(steps)
        self.numbers: list[int] = []

    async def __call__(self, number: int) -> str:
        self.numbers.append(number)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


class Sleeps:
    """Notes how long it was to wait, and lets others go on."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waited.append(seconds)
        await asyncio.sleep(0)


async def go_on(
    attempt: Callable[[int], Awaitable[str]],
    first_error: RerankError,
    sleep: Callable[[float], Awaitable[None]],
    *,
    policy: RetryPolicy | None = None,
    seed: int = 7,
    left: Callable[[], float | None] = lambda: None,
) -> str:
    """Retry as the policy says, with a die and a clock of the test's own."""
    dice = Random(seed)

    def decide(error: RerankError, number: int) -> float | None:
        return retry_delay(policy or RetryPolicy(), error, number, dice.random(), left())

    return await retry(attempt, first_error, decide=decide, sleep=sleep)


BROKEN = TransportError("broke")


async def test_the_second_attempt_is_the_first_it_makes() -> None:
    attempt, sleep = Scripted("answer"), Sleeps()
    assert await go_on(attempt, BROKEN, sleep) == "answer"
    assert attempt.numbers == [2]
    assert len(sleep.waited) == 1


async def test_each_wait_is_the_policys_with_the_next_draw() -> None:
    errors = [
        BROKEN,
        RateLimitError("slow", status=429, retry_after=3.0),
        ServerError("busy", status=503),
        ResponseError("nonsense"),
    ]
    policy = RetryPolicy(attempts=5)
    attempt, sleep = Scripted(*errors[1:], "answer"), Sleeps()
    assert await go_on(attempt, errors[0], sleep, policy=policy, seed=11) == "answer"
    dice = Random(11)
    assert sleep.waited == [
        retry_delay(policy, error, number, dice.random(), None)
        for number, error in enumerate(errors, 1)
    ]
    assert attempt.numbers == [2, 3, 4, 5]


async def test_the_decision_is_asked_once_for_each_attempt_that_failed() -> None:
    asked: list[tuple[RerankError, int]] = []

    def decide(error: RerankError, number: int) -> float | None:
        asked.append((error, number))
        return None if number == 4 else number / 4

    errors = [TransportError(f"broke {number}") for number in range(2, 5)]
    attempt, sleep = Scripted(*errors, "never reached"), Sleeps()
    with pytest.raises(TransportError) as raised:
        await retry(attempt, BROKEN, decide=decide, sleep=sleep)
    assert raised.value is errors[-1]
    assert asked == list(zip([BROKEN, *errors], range(1, 5), strict=True))
    assert sleep.waited == [0.25, 0.5, 0.75]
    assert attempt.numbers == [2, 3, 4]


async def test_what_is_not_retried_is_not_asked_about() -> None:
    def decide(error: RerankError, number: int) -> float | None:
        assert error is BROKEN
        return 0.0

    final = NotFoundError("no such model", status=404)
    with pytest.raises(NotFoundError) as raised:
        await retry(Scripted(final), BROKEN, decide=decide, sleep=Sleeps())
    assert raised.value is final


async def test_a_decision_against_the_first_retry_raises_the_first_error() -> None:
    attempt, sleep = Scripted(), Sleeps()
    with pytest.raises(TransportError) as raised:
        await retry(attempt, BROKEN, decide=lambda error, number: None, sleep=sleep)
    assert raised.value is BROKEN
    assert (attempt.numbers, sleep.waited) == ([], [])


async def test_an_error_of_the_decision_itself_is_raised_as_it_is() -> None:
    def decide(error: RerankError, number: int) -> float | None:
        raise ZeroDivisionError("a bug")

    attempt = Scripted("never reached")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await retry(attempt, BROKEN, decide=decide, sleep=Sleeps())
    assert attempt.numbers == []


@pytest.mark.parametrize("attempts", [1, 2, 3, 6])
async def test_no_more_attempts_are_made_than_the_policy_allows(attempts: int) -> None:
    errors = [TransportError(f"broke {number}") for number in range(2, attempts + 1)]
    attempt, sleep = Scripted(*errors), Sleeps()
    with pytest.raises(TransportError) as raised:
        await go_on(attempt, BROKEN, sleep, policy=RetryPolicy(attempts=attempts))
    assert attempt.numbers == list(range(2, attempts + 1))
    assert len(sleep.waited) == attempts - 1
    assert raised.value is ([BROKEN, *errors][-1])


async def test_the_last_error_raises_itself_not_a_wrapper() -> None:
    last = ServerError("still busy", status=503)
    attempt = Scripted(BROKEN, last)
    with pytest.raises(ServerError) as raised:
        await go_on(attempt, BROKEN, Sleeps(), policy=RetryPolicy(attempts=3))
    assert raised.value is last
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    "final",
    [
        NotFoundError("no such model", status=404),
        InvalidRequestError("no"),
        ServerError("no", status=500, headers={"x-should-retry": "false"}),
        RateLimitError("tomorrow", status=429, retry_after=86400.0),
        ZeroDivisionError("a bug"),
    ],
)
async def test_an_error_that_is_not_retried_ends_it(final: Exception) -> None:
    attempt, sleep = Scripted(final, "never reached"), Sleeps()
    with pytest.raises(type(final)) as raised:
        await go_on(attempt, BROKEN, sleep)
    assert raised.value is final
    assert attempt.numbers == [2]
    assert len(sleep.waited) == 1


async def test_a_first_error_that_is_not_retried_is_raised_without_an_attempt() -> None:
    first = NotFoundError("no such model", status=404)
    attempt, sleep = Scripted(), Sleeps()
    with pytest.raises(NotFoundError) as raised:
        await go_on(attempt, first, sleep)
    assert raised.value is first
    assert sleep.waited == []


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    left = iter([10.0, 0.001])
    first = RateLimitError("slow", status=429, retry_after=5.0)
    second = RateLimitError("slow still", status=429, retry_after=5.0)
    attempt, sleep = Scripted(second, "never reached"), Sleeps()
    with pytest.raises(RateLimitError) as raised:
        await go_on(attempt, first, sleep, left=lambda: next(left))
    assert raised.value is second
    assert len(sleep.waited) == 1


class Interrupted(BaseException):
    """Like KeyboardInterrupt, which would end the loop under the tests as well."""


@pytest.mark.parametrize("kind", [asyncio.CancelledError, Interrupted])
async def test_an_attempt_that_is_interrupted_is_never_made_again(
    kind: type[BaseException],
) -> None:
    numbers: list[int] = []

    async def attempt(number: int) -> str:
        numbers.append(number)
        raise kind

    with pytest.raises(kind):
        await go_on(attempt, BROKEN, Sleeps())
    assert numbers == [2]


async def test_cancelling_during_a_wait_ends_it_there() -> None:
    asleep = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    attempt = Scripted("never reached")
    task = asyncio.create_task(go_on(attempt, BROKEN, sleep))
    await asleep.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempt.numbers == []


async def test_two_calls_at_once_share_no_state() -> None:
    policy = RetryPolicy(attempts=5)
    failing = Scripted(*[TransportError(f"{n}") for n in range(2, 6)])
    lucky = Scripted(BROKEN, "answer")
    sleeps = Sleeps(), Sleeps()
    outcomes = await asyncio.gather(
        go_on(failing, BROKEN, sleeps[0], policy=policy, seed=1),
        go_on(lucky, BROKEN, sleeps[1], policy=policy, seed=2),
        return_exceptions=True,
    )
    assert str(outcomes[0]) == "5"
    assert outcomes[1] == "answer"
    assert (failing.numbers, lucky.numbers) == ([2, 3, 4, 5], [2, 3])
    for sleep, seed in zip(sleeps, (1, 2), strict=True):
        dice = Random(seed)
        assert sleep.waited == [
            retry_delay(policy, BROKEN, number, dice.random(), None)
            for number in range(1, len(sleep.waited) + 1)
        ]


async def test_the_same_seed_waits_the_same_times() -> None:
    errors = [TransportError("a"), TransportError("b")]
    first, second, other = Sleeps(), Sleeps(), Sleeps()
    await go_on(Scripted(*errors, "answer"), BROKEN, first, seed=5)
    await go_on(Scripted(*errors, "answer"), BROKEN, second, seed=5)
    await go_on(Scripted(*errors, "answer"), BROKEN, other, seed=6)
    assert first.waited == second.waited != other.waited
