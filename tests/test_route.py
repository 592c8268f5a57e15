"""`_route`: the values that the requests of one call are made of."""

import pytest

from rerank_async._route import Trail
from rerank_async.testing import MemoryTransport, scoring
from tests.support import number_of, session_over


@pytest.mark.parametrize(
    ("left", "on_wire", "expected"),
    [(1, 0, False), (1, 1, True), (3, 2, False), (3, 3, True), (0, 0, True), (None, 5, False)],
)
def test_a_call_is_on_the_wire_once_all_that_is_left_of_it_is(
    left: int | None, on_wire: int, expected: bool
) -> None:
    assert Trail("m", left=left, on_wire=on_wire).is_on_the_wire() is expected


async def test_a_route_knows_the_url_of_each_model_and_keeps_a_bounded_number() -> None:
    async with session_over(MemoryTransport(scoring(number_of))) as session:
        route = session._route
        for number in range(3000):
            assert route.url(f"m{number}") == "https://memory.test/v1/rerank"
        assert len(route.urls) <= 1000
