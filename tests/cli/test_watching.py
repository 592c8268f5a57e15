"""What is told of a job or a benchmark that is under way: why somebody waits, at once."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from rerank_async._cli._bench_watching import BenchWatching
from rerank_async._cli._watching import Waits, Watching
from rerank_async._errors import ConnectError, RerankError, error_for_status
from rerank_async._session import RerankSession
from rerank_async.bench import BenchProgress, LevelProgress
from rerank_async.bulk import BulkProgress
from rerank_async.events import AttemptRetried

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


def test_nothing_is_said_of_waiting_once_the_job_stops(capsys: pytest.CaptureFixture[str]) -> None:
    with Watching() as watching:
        watching(SENDING)
        watching.say_stopping("stopping: …")
        watching(evolve(SENDING, gate=18.0, seconds=1.0))
        watching(evolve(SENDING, waiting=3, problem=REFUSED, unanswered=9.0, seconds=2.0))
        watching(evolve(SENDING, gate=8.0, waiting=3, problem=REFUSED, seconds=12.0))
    first, last = capsys.readouterr().err.splitlines()
    assert first == "stopping: …"
    assert last.endswith("tokens 0 · 12 s")


def test_a_servers_words_are_shortened_and_move_no_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [line] = lines(capsys, {}, {"waiting": 1, "problem": "\x1b[2J" + "x" * 5000})
    assert "\x1b" not in line
    assert len(line) < 250


def retried(error: RerankError, delay: float) -> AttemptRetried:
    error.context = "documents 0 to 1 to https://example.com"
    return AttemptRetried(1, 0, 2, 1, delay, error)


def busy(retry_after: float | None = None, status: int = 429, words: str = "busy") -> RerankError:
    return error_for_status(status, words, {}, retry_after)


def told(
    capsys: pytest.CaptureFixture[str], *seen: tuple[float, AttemptRetried, dict[str, Any]]
) -> list[str]:
    """What is said of a call's waits, of: the time, what happened, what the statistics are."""
    now = 0.0
    waits = Waits(lambda: now)
    quiet = RerankSession("http://127.0.0.1:1/v1", model="m").statistics()
    for now, event, changes in seen:  # noqa: B007
        waits(event, evolve(quiet, **changes))
    return capsys.readouterr().err.splitlines()


GATED = {"waiting": 3, "waiting_for": "gate", "gate": 60.4}


def test_a_call_says_once_that_the_server_asks_to_wait(capsys: pytest.CaptureFixture[str]) -> None:
    # By the one that was answered so, by another one, and by those that have not been sent.
    assert told(
        capsys,
        (0.0, retried(busy(60.0), 60.4), {}),
        (0.1, retried(busy(60.0), 61.0), {}),
        (0.2, retried(busy(60.0), 0.2), GATED),
        (60.4, retried(busy(20.0), 20.0), {}),
    ) == ["waiting: the server asks to wait 1 min 00 s", "waiting: the server asks to wait 20 s"]


def test_a_call_that_no_attempt_of_failed_waits_for_the_gate_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert told(capsys, (0.0, retried(busy(), 0.1), GATED)) == [
        "waiting: the server asks to wait 1 min 00 s"
    ]


def test_a_call_says_each_reason_once_and_for_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(
        capsys,
        (0.0, retried(busy(status=503, words="request 1"), 1.0), {}),
        (0.1, retried(busy(status=503, words="request 2"), 1.6), {}),
        (0.2, retried(ConnectError(REFUSED), 2.0), {"problem": REFUSED}),
        (3.2, retried(ConnectError(REFUSED), 4.0), {"problem": REFUSED, "unanswered": 3.0}),
    ) == [
        "waiting: the server answered 503: request 1 (again in 1 s)",
        f"waiting: {REFUSED} (again in 2 s)",
    ]


def test_a_call_says_nothing_of_waits_under_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        told(
            capsys,
            (0.0, retried(busy(), 0.9), {}),
            (0.1, retried(busy(0.9), 0.9), {**GATED, "gate": 0.9}),
            (0.2, retried(ConnectError(REFUSED), 0.9), {"problem": REFUSED, "unanswered": 4.9}),
        )
        == []
    )


def test_a_call_says_what_fails_slowly_though_it_is_tried_again_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = "no connection within 10 s"
    event = retried(ConnectError(slow), 0.3)
    assert told(capsys, (20.0, event, {"problem": slow, "unanswered": 10.0})) == [
        f"waiting: {slow} (again in 0 s)"
    ]


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
