"""What the limit on requests costs and gains: real sessions against simulated servers.

The real session, with its retries, budgets and limiter, talks to servers in memory on a virtual
clock (`simulated`): a minute of traffic takes a second or so, and the same seed gives the same run.
For each server the best fixed limit is found by trying many; that is the oracle, which nobody has
outside of a simulation, and what each client reaches is told as a share of it.

    python -m benchmarks.flow [--quick] [--only SERVER] [--seeds 8] [--json FILE] [--chart FILE]
                              [--markdown]

The clients: this library with `Concurrency.adaptive()` as it comes, the same with 16 at once at
first and at most, and fixed at 16; a semaphore of
64 with a hand-written loop around it, as most clients have it; and the same session with Netflix's
rules in place of our search (`controllers`).
A line belongs here when it says what is run, and what is made of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, TypeAlias

import orjson
from attrs import asdict, define, evolve, field, frozen

from benchmarks.controllers import Aimd, Controlled, Gradient2
from benchmarks.machine import heading
from benchmarks.simulated import (
    BatchServer,
    BucketServer,
    Burst,
    Faults,
    Figures,
    Outage,
    SimulatedServer,
    SlotServer,
    Times,
    percentile,
    run,
)
from rerank_async import (
    Concurrency,
    Failed,
    HedgePolicy,
    RerankError,
    RerankRequest,
    RerankSession,
    ResponseError,
    TransportError,
)
from rerank_async.events import AttemptStarted, CallFinished, CallStarted, Event
from rerank_async.testing import HttpRequest

URL = "https://simulated.test/v1"
# What is measured begins after this share of a run.
WARM_UP = 0.25
# A client that hammers is stopped after so many times the requests that the server could answer:
# its shares are known by then.
MOST_REQUESTS = 1.25
# Limits that are tried for the oracle, and over how many seeds the best one's figures are a mean.
SWEEP = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 34, 36, 40, 48, 64, 96, 128, 132, 136, 144, 192)
ORACLE_SEEDS = 3
# Seconds between two looks at the limit.
TICK = 0.25


# ── what is run ──


@frozen
class Scenario:
    """One server, and how long it is watched.

    Attributes:
        title: what it is, in a few words.
        make: the server from its dice.
        seconds: of virtual time.
        capacity: requests per second that it can answer, about.
        between: the least and the most of `SWEEP` that can matter.
        throttled: the share of throttled answers to stay below.
        steady: whether it stays as it is, so that half the time tells which fixed limit is best.
        answer: seconds that it works on one request.
        trouble: when it begins and ends to refuse requests whatever the load is; None: it does not.
        clients: those that are of interest there; empty for all.
    """

    title: str
    make: Callable[[Random], SimulatedServer]
    seconds: float
    capacity: float
    between: tuple[int, int]
    throttled: float = 0.01
    steady: bool = True
    answer: float = 0.2
    trouble: tuple[float, float] | None = None
    clients: tuple[str, ...] = ()

    @property
    def compared(self) -> list[str]:
        """The clients that are sent there, in the order of `CLIENTS`."""
        return [client for client in CLIENTS if client in (self.clients or CLIENTS)]

    @property
    def back_within(self) -> float:
        """Seconds after the trouble in which goodput is to be back."""
        return max(2.0, 20.0 * self.answer)

    @property
    def sweep(self) -> list[int]:
        """The fixed limits to try."""
        return [limit for limit in SWEEP if self.between[0] <= limit <= self.between[1]]


SCENARIOS: dict[str, Scenario] = {
    "32/64": Scenario(
        "32 slots, queue 64", lambda dice: SlotServer(dice, 32, 64), 32.0, 160.0, (32, 48)
    ),
    "4/8": Scenario("4 slots, queue 8", lambda dice: SlotServer(dice, 4, 8), 200.0, 20.0, (4, 8)),
    "128/16": Scenario(
        "128 slots, queue 16", lambda dice: SlotServer(dice, 128, 16), 15.0, 640.0, (96, 144)
    ),
    "unbounded": Scenario(
        "32 slots, unbounded queue", lambda dice: SlotServer(dice, 32, None), 32.0, 160.0, (32, 48)
    ),
    "batcher": Scenario(
        "GPU batcher, 64 at 20 ms + 2 ms each", BatchServer, 24.0, 432.0, (64, 192)
    ),
    "bucket": Scenario(
        "token bucket, 50/s, Retry-After", BucketServer, 100.0, 50.0, (4, 8), throttled=0.05
    ),
    "halved": Scenario(
        "32 slots, halved and restored",
        lambda dice: SlotServer(dice, 32, 64, changes=((18.0, 16, 32), (36.0, 32, 64))),
        54.0,
        133.0,
        (24, 48),
        steady=False,
    ),
    "failing": Scenario(
        "32 slots, 2 % 500s, 1 % resets",
        lambda dice: SlotServer(dice, 32, 64, faults=Faults(errors=0.02, resets=0.01)),
        32.0,
        160.0,
        (32, 48),
    ),
    "slow tail": Scenario(
        "32 slots, 5 % take 20 times as long",
        lambda dice: SlotServer(dice, 32, 64, times=Times(0.1, slow=0.05)),
        40.0,
        164.0,
        (32, 48),
    ),
}


# What refuses whatever the load is tells our clients apart, and not other people's rules.
OURS = ("adaptive", "adaptive 16", "fixed 16", "naive 64")


def random_throttles(share: float, answer: float, seconds: float) -> Scenario:
    """32 slots that refuse a share of all requests, whatever the load is."""

    def make(dice: Random) -> SimulatedServer:
        return SlotServer(dice, 32, 64, times=Times(answer), faults=Faults(throttles=share))

    title = f"32 slots, {answer:g} s, {share:.0%} refused at random".replace("%", " %")
    # Those that are refused are not what is unnecessary.
    allowed = 2.0 * share
    return Scenario(title, make, seconds, 32 / answer, (32, 48), throttled=allowed, answer=answer)


def with_bursts(what: str, answer: float, seconds: float, *bursts: Burst) -> Scenario:
    """32 slots that refuse requests for a time, whatever the load is."""

    def make(dice: Random) -> SimulatedServer:
        return SlotServer(dice, 32, 64, times=Times(answer), bursts=bursts)

    return Scenario(
        f"32 slots, {answer:g} s, {what}",
        make,
        seconds,
        32 / answer,
        (32, 36),
        throttled=1.0,
        steady=False,
        answer=answer,
        trouble=(bursts[0].begin, bursts[-1].end),
        clients=OURS,
    )


def bursts_of(answer: float, begin: float) -> tuple[Burst, ...]:
    """Eight short ones, in which nearly everything is refused."""
    starts = [begin + 3 * number * answer for number in range(8)]
    return tuple(Burst(start, start + answer / 4, 0.9) for start in starts)


# How long an answer takes, and for how long such a server is watched.
_WATCHED = {0.02: 8.0, 0.2: 48.0, 1.0: 200.0}
for _answer, _seconds in _WATCHED.items():
    for _share in (0.01, 0.05):
        SCENARIOS[f"random {_share:.0%} {_answer:g}"] = random_throttles(_share, _answer, _seconds)
    _half = 0.5 * _seconds
    SCENARIOS[f"bursts {_answer:g}"] = with_bursts(
        "bursts of 429", _answer, _seconds, *bursts_of(_answer, _half)
    )
    SCENARIOS[f"restart {_answer:g}"] = with_bursts(
        "503 for 3 s", _answer, _seconds + 4.0, Burst(_half, _half + 3.0, status=503)
    )


@frozen
class Job:
    """One run: which client against which server.

    Attributes:
        scenario: a name of `SCENARIOS`.
        client: a name of `CLIENTS`, or "fixed N".
        seed: of the server's dice and the client's.
        share: of the scenario's time.
    """

    scenario: str
    client: str
    seed: int
    share: float = 1.0


@frozen
class Result:
    """What became of one run.

    Attributes:
        job: which.
        figures: measured after the warm-up.
        failed: the share of calls that came to nothing.
        stopped: whether it was stopped early, because of `MOST_REQUESTS`.
        limits: the limit in the course of the run, one for each `TICK`.
        recovery: seconds from the last refusal that had nothing to do with load until goodput was
            back at nine tenths; None where there was no such trouble, infinity where it was not.
    """

    job: Job
    figures: Figures
    failed: float
    stopped: bool
    limits: list[int]
    recovery: float | None


@define
class Notes:
    """What a client notes while it is driven.

    Attributes:
        calls: that ended.
        failed: those that came to nothing.
        limits: the limit, one for each `TICK`.
    """

    calls: int = 0
    failed: int = 0
    limits: list[int] = field(factory=list)


Drive: TypeAlias = Callable[
    [SimulatedServer, Iterator[str], int, Notes], Coroutine[None, None, None]
]


def texts(count: int) -> list[str]:
    """Short documents: their length costs the client and not the simulated server."""
    return [f"document {number}" for number in range(count)]


def session_over(
    server: SimulatedServer, concurrency: int | Concurrency, seed: int, **options: Any
) -> RerankSession:
    """A session as it comes, but for its limit."""
    return RerankSession(
        URL,
        api_key="sk-none",
        model="simulated",
        http=server,
        concurrency=concurrency,
        seed=seed,
        **options,
    )


async def drive_session(
    concurrency: int | Concurrency,
    server: SimulatedServer,
    queries: Iterator[str],
    seed: int,
    notes: Notes,
) -> None:
    """All queries through `rerank_many`, and the limit noted now and then."""
    documents = texts(server.documents)

    async def note(session: RerankSession) -> None:
        while True:
            notes.limits.append(session.statistics().limit)
            await asyncio.sleep(TICK)

    async with session_over(server, concurrency, seed) as session:
        noting = asyncio.create_task(note(session))
        requests = (RerankRequest(query, documents) for query in queries)
        try:
            async with aclosing(session.rerank_many(requests)) as outcomes:
                async for outcome in outcomes:
                    notes.calls += 1
                    if isinstance(outcome, Failed):
                        notes.failed += 1
                        # The simulated answers are good: something here does not fit together.
                        assert not isinstance(outcome.error, ResponseError), outcome.error
        finally:
            noting.cancel()


async def drive_naively(
    slots: int,
    server: SimulatedServer,
    queries: Iterator[str],
    seed: int,
    notes: Notes,
) -> None:
    """A loop as many write it: a semaphore, five attempts, and 1, 2, 4 and 8 s between them.

    As with `rerank_many`, twice as many queries as slots are in work.
    """
    semaphore = asyncio.Semaphore(slots)
    documents = texts(server.documents)
    notes.limits.append(slots)

    async def call(query: str) -> bool:
        body = orjson.dumps({"model": "simulated", "query": query, "documents": documents})
        request = HttpRequest("POST", URL + "/rerank", {}, body)
        for attempt in range(5):
            if attempt:
                await asyncio.sleep(2.0 ** (attempt - 1))
            async with semaphore:
                try:
                    response = await server.exchange(request, body_limit=2**20, timeout=30.0)
                except TransportError:
                    continue
            if response.status == 200:
                orjson.loads(response.body)
                return True
        return False

    async def work() -> None:
        for query in queries:
            notes.failed += not await call(query)
            notes.calls += 1

    await asyncio.gather(*(work() for _ in range(2 * slots)))


CLIENTS: dict[str, Drive] = {
    "adaptive": partial(drive_session, Concurrency.adaptive()),
    "adaptive 16": partial(drive_session, Concurrency.adaptive(16, max=16)),
    "fixed 16": partial(drive_session, 16),
    "naive 64": partial(drive_naively, 64),
    "AIMD": partial(drive_session, Controlled(make=Aimd)),
    "Gradient2": partial(drive_session, Controlled(make=Gradient2)),
}


def do(job: Job) -> Result:
    """One run, from an empty server to its end."""
    scenario = SCENARIOS[job.scenario]
    drive = CLIENTS.get(job.client)
    if drive is None:
        drive = partial(drive_session, int(job.client.removeprefix("fixed ")))
    server = scenario.make(Random(f"{job.scenario} {job.seed}"))
    notes = Notes()
    planned = end = job.share * scenario.seconds
    # In a restart whoever asks again is refused at once, which costs nobody anything.
    most = inf
    if scenario.trouble is None:
        most = MOST_REQUESTS * scenario.capacity * planned

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def queries() -> Iterator[str]:
            nonlocal end
            number = 0
            while (now := loop.time()) < end:
                if len(server.seen.arrivals) >= most:
                    end = now
                    return
                yield f"{number:07}"
                number += 1

        await drive(server, queries(), job.seed, notes)

    run(main())
    recovery = None
    if scenario.trouble is not None and job.share == 1.0:
        window = max(0.5, 5.0 * scenario.answer)
        recovery = server.recovery(WARM_UP * planned, *scenario.trouble, window)
    return Result(
        job,
        server.figures(WARM_UP * end, end),
        notes.failed / max(1, notes.calls),
        end < planned,
        notes.limits[: int(end / TICK) + 1],
        recovery,
    )


# ── the separate questions: outage, failures, hedges ──


@frozen
class Burden:
    """What calls cost while their server fails.

    Attributes:
        calls: that were counted.
        attempts: requests per call.
        succeeded: the share of calls that got their ranking.
    """

    calls: int
    attempts: float
    succeeded: float


class _Counter:
    """A listener: the attempts of calls that began when the retry budget was used up, or of all."""

    def __init__(self, *, only_when_empty: bool) -> None:
        self._counts = not only_when_empty
        self._counted: set[int] = set()
        self.attempts = self.failed = 0

    @property
    def calls(self) -> int:
        return len(self._counted)

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallStarted) and self._counts:
            self._counted.add(event.call)
        elif isinstance(event, AttemptStarted):
            self.attempts += event.call in self._counted
        elif isinstance(event, CallFinished) and event.error is not None:
            self.failed += event.call in self._counted
            if isinstance(event.error, RerankError) and event.error.budget_exhausted:
                self._counts = True

    def burden(self) -> Burden:
        calls = max(1, self.calls)
        return Burden(self.calls, self.attempts / calls, 1.0 - self.failed / calls)


async def _call_all(session: RerankSession, workers: int, more: Callable[[], bool]) -> None:
    """Interactive calls from so many workers, one after the other, whatever becomes of them."""
    documents = texts(4)
    number = 0

    async def work() -> None:
        nonlocal number
        while more():
            number += 1
            with suppress(RerankError):
                await session.rerank(f"{number:07}", documents)

    await asyncio.gather(*(work() for _ in range(workers)))


def do_outage(seed: int, refuses: bool) -> Burden:
    """The server goes down for good: attempts per call, of calls after the budget was used up."""
    server = Outage(Random(seed), 5.0, refuses=refuses)
    counter = _Counter(only_when_empty=True)

    async def main() -> None:
        concurrency = Concurrency.adaptive()
        async with session_over(server, concurrency, seed, on_event=counter) as session:
            await _call_all(session, 16, lambda: counter.calls < 1000)

    run(main())
    return counter.burden()


def do_failures(seed: int) -> Burden:
    """A tenth of the answers are 500s, a tenth of the connections break: which calls succeed."""
    faults = Faults(errors=0.1, resets=0.1 / 0.9)
    server = SlotServer(Random(seed), 32, 64, faults=faults)
    counter = _Counter(only_when_empty=False)

    async def main() -> None:
        concurrency = Concurrency.adaptive()
        async with session_over(server, concurrency, seed, on_event=counter) as session:
            await _call_all(session, 32, lambda: counter.calls < 5000)

    run(main())
    return counter.burden()


def do_resets(seed: int, answer: float) -> int:
    """Of 150 calls at once to a server that resets above 3 connections, how many are lost."""
    server = SlotServer(Random(seed), 3, None, times=Times(answer), connections=3)

    async def main() -> int:
        documents = texts(4)
        async with session_over(server, 16, seed) as session:
            calls = (session.rerank(f"{number:07}", documents) for number in range(150))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        return sum(isinstance(outcome, RerankError) for outcome in outcomes)

    return run(main())


@frozen
class Waits:
    """How long calls took, with backups or without.

    Attributes:
        calls: that were made.
        requests: that the server saw.
        p50: seconds of a call.
        p99: likewise.
    """

    calls: int
    requests: int
    p50: float
    p99: float


def do_hedge(seed: int, hedged: bool) -> Waits:
    """Calls that come by themselves, at half of what the server with the slow tail can answer."""
    dice = Random(seed)
    server = SlotServer(Random(seed), 32, 64, times=Times(0.1, slow=0.05))
    took: list[float] = []
    calls, warm_up, rate = 4000, 1000, 82.0

    async def main() -> None:
        loop = asyncio.get_running_loop()
        documents = texts(4)
        hedge = HedgePolicy() if hedged else None

        async def call(session: RerankSession, number: int) -> None:
            began = loop.time()
            await session.rerank(f"{number:07}", documents)
            if number >= warm_up:
                took.append(loop.time() - began)

        async with (
            session_over(server, Concurrency.adaptive(), seed, hedge=hedge) as session,
            asyncio.TaskGroup() as group,
        ):
            for number in range(calls):
                await asyncio.sleep(dice.expovariate(rate))
                group.create_task(call(session, number))

    run(main())
    return Waits(calls, len(server.seen.arrivals), percentile(took, 0.5), percentile(took, 0.99))


# ── what is made of it ──


@frozen
class Oracle:
    """The best fixed limit of one server: the smallest whose goodput is within 1 % of the best.

    Attributes:
        limit: that number.
        goodput: documents per second with it.
        p50: seconds.
        p99: seconds.
    """

    limit: int
    goodput: float
    p50: float
    p99: float


@frozen
class Row:
    """One client on one server, against the oracle; means over the seeds.

    Attributes:
        scenario: a name of `SCENARIOS`.
        client: a name of `CLIENTS`.
        goodput: as a share of the oracle's.
        least: the same, of the worst run.
        throttled: the share of answers that were throttles.
        failed: the share of calls that came to nothing.
        p50: as a multiple of the oracle's.
        p99: likewise.
        slowest: the same, of the worst run.
        wasted: the share of requests that brought nothing.
        limit: the mean limit after the warm-up.
        stopped: whether a run was stopped early, because of `MOST_REQUESTS`.
        recovery: of the runs' seconds until goodput was back, the most; None without trouble.
    """

    scenario: str
    client: str
    goodput: float
    least: float
    throttled: float
    failed: float
    p50: float
    p99: float
    slowest: float
    wasted: float
    limit: float
    stopped: bool
    recovery: float | None


def best_fixed(results: Iterable[Result]) -> Job:
    """Of one server's runs with fixed limits, the one that makes the oracle."""
    whole = [result for result in results if not result.stopped]
    best = max(result.figures.goodput for result in whole)
    good = [result.job for result in whole if result.figures.goodput >= 0.99 * best]
    return min(good, key=_limit_of)


def oracle_of(results: Iterable[Result]) -> Oracle:
    """The oracle from its own runs."""
    runs = list(results)
    return Oracle(
        _limit_of(runs[0].job),
        fmean(run.figures.goodput for run in runs),
        fmean(run.figures.p50 for run in runs),
        fmean(run.figures.p99 for run in runs),
    )


def _limit_of(job: Job) -> int:
    return int(job.client.removeprefix("fixed "))


def compare(scenario: str, client: str, results: Iterable[Result], oracle: Oracle) -> Row:
    """One client's runs on one server, against its oracle."""
    runs = list(results)
    figures = [run.figures for run in runs]
    shares = [f.goodput / oracle.goodput for f in figures]
    tails = [f.p99 / oracle.p99 for f in figures]
    return Row(
        scenario,
        client,
        goodput=fmean(shares),
        least=min(shares),
        throttled=fmean(f.throttled for f in figures),
        failed=fmean(run.failed for run in runs),
        p50=fmean(f.p50 / oracle.p50 for f in figures),
        p99=fmean(tails),
        slowest=max(tails),
        wasted=fmean(f.wasted for f in figures),
        limit=fmean(fmean(run.limits[int(WARM_UP * len(run.limits)) :]) for run in runs),
        stopped=any(run.stopped for run in runs),
        recovery=max((run.recovery for run in runs if run.recovery is not None), default=None),
    )


@frozen
class Goal:
    """A figure to reach.

    Attributes:
        text: what is asked.
        measured: what came out, in words.
        reached: whether that is enough.
    """

    text: str
    measured: str
    reached: bool


@frozen
class Report:
    """Everything that was measured.

    Attributes:
        oracles: by server.
        rows: one for each server and client.
        goals: the figures to reach.
        limits: by server, the limit in the course of each adaptive run, one for each `TICK`.
        seconds: of real time.
        processor_seconds: of all processes.
    """

    oracles: Mapping[str, Oracle]
    rows: list[Row]
    goals: list[Goal]
    limits: Mapping[str, list[list[int]]]
    seconds: float
    processor_seconds: float


def goals_of_rows(rows: list[Row]) -> list[Goal]:
    """The figures that adaptive, as it comes, is to reach on all servers."""
    ours = [row for row in rows if row.client == "adaptive"]
    least = min(ours, key=lambda row: row.least)
    throttled = max(ours, key=lambda row: row.throttled / SCENARIOS[row.scenario].throttled)
    slow = max(ours, key=lambda row: row.p99)
    mean = fmean(row.goodput for row in ours)
    back = [row for row in ours if row.recovery is not None]
    goals = []
    if back:
        latest = max(back, key=_lateness)
        goals = [
            Goal(
                "goodput back within 2 s or 20 answers after throttles without a reason",
                f"{latest.recovery:.1f} s of {SCENARIOS[latest.scenario].back_within:g} s "
                f"({latest.scenario})",
                _lateness(latest) <= 1.0,
            )
        ]
    return [
        *goals,
        Goal("goodput at least 95 % of the oracle's, on average", f"{mean:.1%}", mean >= 0.95),
        Goal(
            "goodput at least 85 % in the worst run",
            f"{least.least:.1%} ({least.scenario})",
            least.least >= 0.85,
        ),
        Goal(
            "throttled answers at most 1 %, 5 % on the token bucket",
            f"{throttled.throttled:.2%} ({throttled.scenario})",
            throttled.throttled <= SCENARIOS[throttled.scenario].throttled,
        ),
        Goal(
            "p99 at most 1.5 times the oracle's",
            f"{slow.p99:.2f} ({slow.scenario}; worst run {max(r.slowest for r in ours):.2f})",
            slow.p99 <= 1.5,
        ),
    ]


def _lateness(row: Row) -> float:
    assert row.recovery is not None
    return row.recovery / SCENARIOS[row.scenario].back_within


def goals_of_burdens(
    outages: list[Burden],
    failures: list[Burden],
    waits: list[tuple[Waits, Waits]],
    lost: list[int],
) -> list[Goal]:
    """The figures to reach while servers fail, and with backups."""
    attempts = max(burden.attempts for burden in outages)
    succeeded = min(burden.succeeded for burden in failures)
    repeated = max(burden.attempts for burden in failures)
    lower = fmean(1.0 - hedged.p99 / plain.p99 for plain, hedged in waits)
    extra = fmean(hedged.requests / hedged.calls - 1.0 for _, hedged in waits)
    return [
        Goal(
            "outage, retry budget empty: at most 1.05 attempts per call",
            f"{attempts:.3f}",
            attempts <= 1.05,
        ),
        Goal(
            "fixed 16, resets above 3 connections: at most 2 calls of 150 lost",
            f"{max(lost)} in the worst of {len(lost)} runs",
            max(lost) <= 2,
        ),
        Goal(
            "20 % random failures: at least 99 % of calls succeed",
            f"{succeeded:.2%} ({repeated:.2f} attempts per call)",
            succeeded >= 0.99,
        ),
        Goal(
            "hedged, slow tail: p99 lower by at least half",
            f"by {lower:.0%} ({fmean(p.p99 for p, _ in waits):.2f} s to "
            f"{fmean(h.p99 for _, h in waits):.2f} s)",
            lower >= 0.5,
        ),
        Goal("hedged, slow tail: at most 5 % more requests", f"{extra:.1%}", extra <= 0.05),
    ]


def measure(names: list[str], seeds: int, others: int, workers: int) -> Report:
    """Run everything, on so many processors."""
    began = time.perf_counter()
    jobs = [
        Job(name, client, seed)
        for name in names
        for client in SCENARIOS[name].compared
        for seed in range(seeds if client.startswith("adaptive") else others)
    ]
    sweep = [
        Job(name, f"fixed {limit}", 0, 0.5 if SCENARIOS[name].steady else 1.0)
        for name in names
        for limit in SCENARIOS[name].sweep
    ]
    # The long ones first, so that no processor is left with one at the end.
    jobs.sort(key=_weight, reverse=True)
    separate = len(names) == len(SCENARIOS)
    with ProcessPoolExecutor(workers) as pool:
        outages = [
            pool.submit(do_outage, seed, refuses)
            for seed in range(min(2, seeds) if separate else 0)
            for refuses in (False, True)
        ]
        failures = [
            pool.submit(do_failures, seed) for seed in range(min(2, seeds) if separate else 0)
        ]
        waits = [
            (pool.submit(do_hedge, seed, False), pool.submit(do_hedge, seed, True))
            for seed in range(min(4, seeds) if separate else 0)
        ]
        lost = [
            pool.submit(do_resets, seed, answer)
            for seed in range(min(4, seeds) if separate else 0)
            for answer in (0.02, 0.2, 1.0)
        ]
        swept = pool.map(do, sweep)
        later = pool.map(do, jobs)
        tried = list(swept)
        best = [best_fixed(result for result in tried if result.job.scenario == n) for n in names]
        at_best = list(
            pool.map(
                do,
                [evolve(job, seed=seed, share=1.0) for job in best for seed in range(ORACLE_SEEDS)],
            )
        )
        results = list(later)
        goals: list[Goal] = []
        if separate:
            goals = goals_of_burdens(
                [burden.result() for burden in outages],
                [burden.result() for burden in failures],
                [(plain.result(), hedged.result()) for plain, hedged in waits],
                [count.result() for count in lost],
            )
    oracles: dict[str, Oracle] = {}
    rows: list[Row] = []
    for name in names:
        oracles[name] = oracle_of(result for result in at_best if result.job.scenario == name)
        for client in SCENARIOS[name].compared:
            runs = [r for r in results if r.job.scenario == name and r.job.client == client]
            rows.append(compare(name, client, runs, oracles[name]))
    limits = {
        name: [r.limits for r in results if r.job.scenario == name and r.job.client == "adaptive"]
        for name in names
    }
    return Report(
        oracles,
        rows,
        goals_of_rows(rows) + goals,
        limits,
        time.perf_counter() - began,
        os.times().children_user + os.times().children_system,
    )


def _weight(job: Job) -> float:
    """About how many requests it takes."""
    scenario = SCENARIOS[job.scenario]
    return scenario.seconds * scenario.capacity


# ── how it is shown ──

HEAD = ("goodput", "worst", "throttled", "failed", "p50", "p99", "worst", "wasted", "limit", "back")


def cells(row: Row) -> list[str]:
    """A row's figures as text."""
    return [
        f"{row.goodput:.1%}",
        f"{row.least:.1%}",
        f"{row.throttled:.2%}",
        f"{row.failed:.1%}",
        f"{row.p50:.2f}",
        f"{row.p99:.2f}",
        f"{row.slowest:.2f}",
        f"{row.wasted:.2%}",
        f"{row.limit:.0f}" + ("*" if row.stopped else ""),
        "" if row.recovery is None else f"{row.recovery:.1f} s",
    ]


def as_text(report: Report) -> Iterator[str]:
    """The table, for a terminal."""
    yield f"{'':14}" + "".join(f"{name:>10}" for name in HEAD)
    for name, oracle in report.oracles.items():
        yield ""
        yield (
            f"{SCENARIOS[name].title}: oracle {oracle.limit} at once, {oracle.goodput:.0f} "
            f"documents/s, p50 {oracle.p50 * 1e3:.0f} ms, p99 {oracle.p99 * 1e3:.0f} ms"
        )
        for row in report.rows:
            if row.scenario == name:
                yield f"  {row.client:12}" + "".join(f"{cell:>10}" for cell in cells(row))


def as_markdown(report: Report) -> Iterator[str]:
    """The table, for the documentation."""
    yield "| server (its best fixed limit) | client | " + " | ".join(HEAD) + " |"
    yield "|---|---|" + "--:|" * len(HEAD)
    for name, oracle in report.oracles.items():
        title = f"{SCENARIOS[name].title} ({oracle.limit})"
        for row in report.rows:
            if row.scenario == name:
                yield f"| {title} | {row.client} | " + " | ".join(cells(row)) + " |"
                title = ""


def as_default(report: Report) -> Iterator[str]:
    """What a session that is given nothing would have of a limit that finds itself, up to 16.

    Against the best fixed number that is not above 16, and the p99 of 16.
    """
    yield f"{'':42}{'best to 16':>12}{'adaptive 16':>12}{'p99 of 16':>12}{'':>4}"
    for name, oracle in report.oracles.items():
        rows = {row.client: row for row in report.rows if row.scenario == name}
        ours, fixed = rows["adaptive 16"], rows["fixed 16"]
        best = 1.0 if oracle.limit <= 16 else fixed.goodput
        share, tail = ours.goodput / best, ours.p99 / fixed.p99
        verdict = "" if share >= 0.95 and tail <= 1.2 else "NO"
        yield (
            f"{SCENARIOS[name].title:42}{min(oracle.limit, 16):>12}{share:>12.1%}{tail:>12.2f}"
            f"{verdict:>4}"
        )


def show(report: Report, seeds: int, others: int, markdown: bool) -> None:
    """Print the table and the summary."""
    print("Flow control in virtual time: shares and multiples of the best fixed limit's")
    print(heading("msgspec", "orjson"))
    print(
        f"adaptive over {seeds} seeds, the others over {others}: means, and the worst of these runs"
    )
    for line in as_markdown(report) if markdown else as_text(report):
        print(line)
    print()
    print("As the default: goodput of 95 % or more, and a p99 of at most 1.2 times that of 16?")
    for line in as_default(report):
        print(line)
    if any(row.stopped for row in report.rows):
        print()
        print(f"* stopped when it had sent {MOST_REQUESTS:g} times what the server can answer")
    print()
    for goal in report.goals:
        print(f"{'reached' if goal.reached else 'MISSED':8}{goal.text}: {goal.measured}")
    print(f"{report.seconds:.0f} s of real time, {report.processor_seconds:.0f} s of processors")


# Colours that the colour-blind tell apart (Okabe and Ito), and a shape for each besides.
LOOKS = {
    "adaptive": ("#0072B2", "o"),
    "adaptive 16": ("#56B4E9", "D"),
    "fixed 16": ("#009E73", "s"),
    "naive 64": ("#D55E00", "X"),
    "AIMD": ("#CC79A7", "^"),
    "Gradient2": ("#E69F00", "v"),
}
# Whose limit is drawn in the course of time.
TRACED = ("32/64", "128/16", "batcher", "halved")


def draw(report: Report, path: Path) -> None:
    """Goodput and p99 of every client on every server, and the adaptive limit in time."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit(
            'the chart needs matplotlib: python -m pip install "rerank-async[bench]"'
        ) from None
    matplotlib.use("agg")
    # The same figures make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "flow"
    from matplotlib import pyplot

    names = list(report.oracles)
    traced = [name for name in TRACED if name in report.limits] or names
    figure = pyplot.figure(figsize=(13, 9.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.1, 1.0))[0]
    axes = left.subplots(1, 2, sharey=True)
    for place, (client, (colour, marker)) in enumerate(LOOKS.items()):
        rows = {row.scenario: row for row in report.rows if row.client == client}
        # A little apart, so that equal figures do not hide one another.
        heights = [names.index(name) + (place - 2.5) * 0.12 for name in rows]
        for axis, values in zip(
            axes,
            (
                [100.0 * row.goodput for row in rows.values()],
                [row.p99 for row in rows.values()],
            ),
            strict=True,
        ):
            axis.scatter(
                values,
                heights,
                s=70 if client == "adaptive" else 38,
                color=colour,
                marker=marker,
                label=client,
                zorder=3,
                linewidths=0,
            )
    for axis in axes:
        axis.axvline(100.0 if axis is axes[0] else 1.0, color="#444444", linewidth=1, zorder=2)
        axis.grid(axis="x", color="#dddddd", linewidth=0.7)
        for index in range(0, len(names), 2):
            axis.axhspan(index - 0.5, index + 0.5, color="#f5f5f5", zorder=0)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), [SCENARIOS[name].title for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_xlim(0, 110)
    axes[0].set_xlabel("goodput, % of the best fixed limit's")
    axes[1].set_xscale("log")
    axes[1].set_xticks([0.25, 0.5, 1, 2, 5, 10, 20, 50], minor=False)
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].xaxis.set_minor_formatter("")
    axes[1].set_xlabel("p99, multiple of the best fixed limit's")
    left.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    panels = right.subplots(len(traced), 1, squeeze=False)[:, 0]
    for panel, name in zip(panels, traced, strict=True):
        colour = LOOKS["adaptive"][0]
        for run_number, limits in enumerate(report.limits[name][:3]):
            times = [TICK * index for index in range(len(limits))]
            panel.step(
                times,
                limits,
                where="post",
                color=colour,
                alpha=1.0 if run_number == 0 else 0.35,
                linewidth=1.4 if run_number == 0 else 0.9,
            )
        oracle = report.oracles[name].limit
        panel.axhline(oracle, color="#444444", linewidth=1, linestyle="--")
        most = max(oracle, *(max(limits) for limits in report.limits[name][:3]))
        panel.set_ylim(0, 1.25 * most)
        panel.set_xlim(0, SCENARIOS[name].seconds)
        panel.set_title(SCENARIOS[name].title, fontsize=9, loc="left", pad=3)
        panel.grid(color="#eeeeee", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("seconds")
    right.suptitle("adaptive limit, three runs; dashed: best fixed limit", fontsize=10)
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=8, help="of the adaptive client")
    parser.add_argument("--quick", action="store_true", help="two seeds, one for the others")
    parser.add_argument("--only", choices=list(SCENARIOS), help="one server alone")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--chart", type=Path, help="draw them into this file, .svg or .png")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    seeds, others = (2, 1) if options.quick else (options.seeds, min(2, options.seeds))
    names = [options.only] if options.only else list(SCENARIOS)
    report = measure(names, seeds, others, options.workers)
    show(report, seeds, others, options.markdown)
    if options.json:
        options.json.write_text(json.dumps(asdict(report)) + "\n")
    if options.chart:
        draw(report, options.chart)


if __name__ == "__main__":
    main()
