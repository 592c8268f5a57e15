"""What is told of a job or a benchmark that is under way: why somebody waits, at once."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from rerank_async._cli._bench_watching import BenchWatching
from rerank_async._cli._watching import Watching
from rerank_async.bench import BenchProgress, LevelProgress
from rerank_async.bulk import BulkProgress

SENDING = BulkProgress(
    phase="sending",
    queries=0,
    queries_total=2,
    documents=0,
    documents_total=4,
    documents_per_second=0.0,
    in_flight=0,
    limit=8,
    retries=0,
    throttled=0,
    failed=0,
    tokens=0,
    tokens_estimated=False,
    gate=0.0,
    seconds=0.0,
    seconds_left=None,
)
REFUSED = "could not connect: Connection refused"


def lines(capsys: pytest.CaptureFixture[str], *seen: dict[str, Any]) -> list[str]:
    """What a pipe is told, apart from the first line and those that come every ten seconds."""
    with Watching() as watching:
        for place, changes in enumerate(seen):
            watching(evolve(SENDING, **{"seconds": 0.5 * (place + 1), **changes}))
    return [line for line in capsys.readouterr().err.splitlines() if "in flight" not in line]


def test_the_reason_of_a_wait_is_told_once_and_as_soon_as_there_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert lines(
        capsys,
        {},
        {"waiting": 3, "problem": REFUSED, "unanswered": 0.4},
        {"waiting": 3, "problem": REFUSED, "unanswered": 0.9},
        {"waiting": 1, "problem": REFUSED, "unanswered": 1.4},
    ) == [f"waiting: {REFUSED} (3 requests, 0 s)"]


def test_another_reason_is_told_but_not_many_in_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wait(problem: str, seconds: float) -> dict[str, Any]:
        return {"waiting": 1, "problem": problem, "unanswered": seconds, "seconds": seconds}

    assert lines(
        capsys,
        {},
        wait("a", 1.0),
        *(wait(f"request {number}", 2.0 + number / 10) for number in range(50)),
        wait("b", 12.0),
    ) == ["waiting: a (1 request, 1 s)", "waiting: b (1 request, 12 s)"]


def test_what_is_answered_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    # One waits for its next attempt while others are answered; and one failed that nobody repeats.
    assert lines(capsys, {}, {"waiting": 1}, {"problem": "x", "unanswered": 3.0}) == []


def test_what_fails_slowly_is_told_although_all_are_on_the_wire_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trouble = {"problem": "no connection within 10 s", "in_flight": 8}
    assert lines(capsys, {}, {**trouble, "unanswered": 4.5}, {**trouble, "unanswered": 5.0}) == [
        "waiting: no connection within 10 s (5 s)"
    ]


def test_a_gate_is_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, {}, {"gate": 30.0}, {"gate": 29.5}) == [
        "waiting: the server asks to wait 30 s"
    ]


def test_a_servers_words_are_shortened_and_move_no_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [line] = lines(capsys, {}, {"waiting": 1, "problem": "\x1b[2J" + "x" * 5000})
    assert "\x1b" not in line
    assert len(line) < 250


LEVEL = LevelProgress("measuring", 1.0, 9.0, 0.0, 0.0, None, None, 0, 0, 8, 0.1)


def test_a_benchmark_that_nobody_answers_says_so_once_for_each_level(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with BenchWatching() as watching:
        for number in (1, 2):
            for problem in ("", REFUSED, REFUSED):
                now = evolve(LEVEL, problem=problem)
                watching(BenchProgress(number, 2, "closed", 8 * number, now, None))
    assert [line for line in capsys.readouterr().err.splitlines() if "busy" not in line] == [
        f"8 at once: nothing is answered: {REFUSED}",
        f"16 at once: nothing is answered: {REFUSED}",
    ]
