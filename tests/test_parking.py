"""`_parking`: an outage is waited out by one request at a time, and not for ever.

How outages look to calls is in `flow/test_control`; how long each wait is, in `flow/test_outage`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rerank_async import ConnectError, InvalidRequestError, RerankError, ServerError
from rerank_async._flow.control import Origin
from rerank_async._parking import wait_out


class Parked:
    """Requests that are parked at one server, on a clock of their own."""

    def __init__(self, origin: Origin, attempt: Callable[[int], Any]) -> None:
        self.origin = origin
        self.attempt = attempt
        self.time = 100.0
        self.asked: list[int] = []
        self.pauses: list[tuple[int, float, RerankError]] = []
        self.is_wanted = True

    async def _attempt(self, number: int) -> Any:
        self.asked.append(number)
        found = self.attempt(number)
        if isinstance(found, Exception):
            raise found
        return found

    async def _pause(self, number: int, delay: float, error: RerankError) -> None:
        self.pauses.append((number, delay, error))
        self.time += delay + 0.01
        await asyncio.sleep(0)

    async def wait(self, patience: float = 60.0) -> Any:
        error = ServerError("down", status=503)
        error.context = "sent"
        return await wait_out(
            self._attempt,
            error,
            4,
            origin=self.origin,
            patience=patience,
            attempts=3,
            now=lambda: self.time,
            draw=lambda: 0.5,
            is_wanted=lambda: self.is_wanted,
            pause=self._pause,
        )


def reached() -> Origin:
    origin = Origin(None)
    origin.downtime.failed(100.0, -1.0, "down", reached=True)
    return origin


async def test_it_asks_until_the_server_answers_and_waits_longer_each_time() -> None:
    parked = Parked(reached(), lambda n: "answer" if n == 8 else ServerError("down", status=503))
    assert await parked.wait() == "answer"
    assert parked.asked == [5, 6, 7, 8]
    assert [(number, delay) for number, delay, _ in parked.pauses] == [
        (4, 0.0),
        (5, 0.5),
        (6, 1.0),
        (7, 2.0),
    ]
    assert not parked.origin.probing.locked()


async def test_it_gives_up_when_its_patience_is_over_with_the_last_error() -> None:
    parked = Parked(reached(), lambda n: ServerError(f"attempt {n}", status=503))
    with pytest.raises(ServerError, match=f"attempt {4 + 4}") as caught:
        await parked.wait(patience=3.0)
    assert parked.asked == [5, 6, 7, 8]
    assert "not reached once" not in str(caught.value)


async def test_a_server_that_was_never_reached_is_given_up_soon_and_said_to_be() -> None:
    origin = Origin(None)
    origin.downtime.failed(100.0, -1.0, "no such host", reached=False)
    parked = Parked(origin, lambda n: ConnectError("no such host"))
    with pytest.raises(ConnectError, match="this server was not reached once"):
        await parked.wait(patience=600.0)
    assert parked.time < 112.0


async def test_another_failure_than_an_outage_is_raised_at_once() -> None:
    parked = Parked(reached(), lambda n: InvalidRequestError("no"))
    with pytest.raises(InvalidRequestError):
        await parked.wait()
    assert parked.asked == [5]


async def test_nobody_asks_for_what_is_not_wanted_any_more() -> None:
    parked = Parked(reached(), lambda n: "answer")
    parked.is_wanted = False
    with pytest.raises(ServerError, match="down"):
        await parked.wait()
    assert parked.asked == []


async def test_one_at_a_time_asks_and_the_others_go_on_when_it_is_answered() -> None:
    origin = reached()
    under_way = 0
    most = 0

    def attempt(number: int) -> Any:
        return "answer" if origin.probes >= 2 else ServerError("down", status=503)

    class Counting(Parked):
        async def _attempt(self, number: int) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            try:
                answer = await super()._attempt(number)
                origin.answered_at, origin.probes = self.time, 2
                return answer
            finally:
                under_way -= 1

    several = [Counting(origin, attempt) for _ in range(5)]
    assert await asyncio.gather(*(one.wait() for one in several)) == ["answer"] * 5
    assert sum(len(one.asked) for one in several) <= 2 + 5
