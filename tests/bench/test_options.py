"""What a benchmark can be told, and what it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from rerank_async import InvalidRequestError
from rerank_async.bench import BenchOptions
from rerank_async.bench._options import parse_duration, parse_goodput


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1.5s", 1.5), ("2", 2.0), (2.5, 2.5), ("2 min", 120.0), ("1m", 60.0)],
)
def test_a_time_may_have_a_unit(text: str | float, seconds: float) -> None:
    assert parse_duration("x", text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 day", "nan", "1e3"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^x must be a time"):
        parse_duration("x", text)


@pytest.mark.parametrize(
    ("text", "target"),
    [("p99:500ms", (99.0, 500.0)), ("P99.9:1.5s", (99.9, 1500.0)), ("50:2s", (50.0, 2000.0))],
)
def test_goodput_is_a_percentile_and_a_time(text: str, target: tuple[float, float]) -> None:
    assert parse_goodput(text) == target


@pytest.mark.parametrize("text", ["", "p99", "p100:1s", "p0:1s", "p99:0ms", "500ms:p99", "p99:x"])
def test_what_is_no_goodput_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^goodput"):
        parse_goodput(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 4, "rate": 5}, "concurrency and rate exclude"),
        ({"duration": 4, "count": 5}, "duration and count exclude"),
        ({"arrivals": "bursts"}, "^arrivals"),
        ({"duration": "1ms"}, "^duration must be from 0.1"),
        ({"timeout": "2h"}, "^timeout must be from 0.001 to 3,600"),
        ({"warm_up": "soon"}, "^warm_up"),
        ({"count": 0}, "^count"),
        ({"attempts": 0}, "^attempts"),
        ({"max_in_flight": True}, "^max_in_flight"),
        ({"top_n": 0}, "^top_n"),
        ({"seed": -1}, "^seed"),
        ({"documents": "some"}, "^documents"),
        ({"document_words": "0"}, "^document_words"),
        ({"query_words": "x"}, "^query_words"),
        ({"goodput": "fast"}, "^goodput"),
        ({"concurrency": "0"}, "^concurrency"),
        ({"rate": "0"}, "^rate"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_its_name(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        BenchOptions(**options)


def test_without_any_it_is_a_closed_loop_of_sixteen() -> None:
    loads = BenchOptions().loads()
    assert (loads.mode, loads.values, loads.is_search) == ("closed", (16.0,), False)
