"""Loads as they are written, and the moments of an open loop."""

from __future__ import annotations

from itertools import islice, pairwise
from statistics import mean, stdev

import pytest

from rerank_async import InvalidRequestError
from rerank_async.bench._arrivals import Loads, arrivals, parse_concurrency, parse_rate


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("16", Loads("closed", (16.0,))),
        (16, Loads("closed", (16.0,))),
        ("8, 1,2,2", Loads("closed", (1.0, 2.0, 8.0))),
        ("2-64", Loads("closed", (2.0, 64.0), is_search=True)),
        ("auto", Loads("closed", (1.0, 1024.0), is_search=True)),
    ],
)
def test_concurrency_is_one_number_or_several_or_a_search(text: str | int, loads: Loads) -> None:
    assert parse_concurrency(text) == loads


def test_a_rate_may_have_a_fraction_and_a_search_without_a_beginning() -> None:
    assert parse_rate("0.5,20") == Loads("open", (0.5, 20.0))
    assert parse_rate(7.25) == Loads("open", (7.25,))
    assert parse_rate("10-40") == Loads("open", (10.0, 40.0), is_search=True)
    assert parse_rate("AUTO") == Loads("open", (0.0, 100_000.0), is_search=True)


@pytest.mark.parametrize("text", ["", "0", "1.5", "-3", "4-2", "4-4", "0-8", "1,,2", "many", "1e3"])
def test_a_concurrency_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^concurrency"):
        parse_concurrency(text)


@pytest.mark.parametrize("text", ["", "0", "0,5", "-3", "4-2", "0-8", "9000000", "nan"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^rate"):
        parse_rate(text)


def test_constant_arrivals_are_at_equal_distances_for_ever() -> None:
    moments = list(islice(arrivals(3.0, "constant", 1), 100_001))
    assert moments[:3] == [0.0, 1 / 3, 2 / 3]
    # The hundred thousandth is where it belongs: no error adds up.
    assert moments[100_000] == 100_000 / 3


def test_poisson_arrivals_have_the_rate_and_distances_as_uneven_as_their_mean() -> None:
    moments = list(islice(arrivals(50.0, "poisson", 1), 20_000))
    gaps = [after - before for before, after in pairwise(moments)]
    assert mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert stdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert min(gaps) > 0
    assert moments == list(islice(arrivals(50.0, "poisson", 1), 20_000))
    assert moments != list(islice(arrivals(50.0, "poisson", 2), 20_000))
