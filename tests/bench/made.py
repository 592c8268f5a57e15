"""Benchmarks made up by hand, with figures as a server might give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import evolve

from rerank_async.bench._result import (
    Benchmark,
    ClientCost,
    Goodput,
    Interval,
    Knee,
    Latency,
    Level,
    Machine,
    Target,
    Workload,
)

STEP = 10 ** (1 / 20)


def latency(middle: float = 12.0, *, count: int = 20_000, spread: float = 0.25) -> Latency:
    """Nearly log-normal around `middle` ms, with a tail to the right."""

    def at(z: float) -> float:
        return middle * math.exp(spread * z + 0.06 * max(0.0, z) ** 2)

    def at_most(value: float) -> float:
        """The share of requests that take no longer."""
        low, high = -9.0, 9.0
        for _ in range(40):
            middle_z = (low + high) / 2
            low, high = (middle_z, high) if at(middle_z) < value else (low, middle_z)
        return (1 + math.erf(low / math.sqrt(2))) / 2

    first = math.floor(20 * math.log10(at(-3.2)))
    last = math.ceil(20 * math.log10(at(3.6)))
    buckets: list[tuple[float, int]] = []
    before = 0
    for place in range(first, last + 1):
        until = count if place == last else round(count * at_most(STEP**place))
        if until > before:
            buckets.append((STEP**place, until - before))
        before = until
    return Latency(
        count=count,
        mean_ms=middle * 1.07,
        min_ms=at(-3.2),
        p50_ms=middle,
        p90_ms=at(1.28),
        p95_ms=at(1.64),
        p99_ms=at(2.33),
        p999_ms=at(3.09),
        max_ms=at(3.6),
        buckets=tuple(buckets),
        hdr="HISTFAAAABV4nJNpmSzMwMDAxAABzFCaEUzOmNZg",
    )


def intervals(
    seconds: float, per_second: float, *, failed: int = 0, throttles: int = 0, p50: float = 12.0
) -> tuple[Interval, ...]:
    """Slices of a second, the last one shorter; the failures are in the middle ones."""
    made = []
    whole = math.ceil(seconds)
    for place in range(whole):
        long = min(1.0, seconds - place)
        swing = 1 + 0.06 * math.sin(1.7 * place)
        bad = whole // 3 <= place <= whole // 2
        some = round(per_second * long * swing)
        made.append(
            Interval(
                at_s=float(place),
                seconds=long,
                succeeded=some,
                failed=failed if bad else 0,
                documents=100 * some,
                throttles=throttles if bad else 0,
                p50_ms=p50 * swing if some else None,
                p99_ms=2.1 * p50 * swing if some else None,
            )
        )
    return tuple(made)


CLIENT = ClientCost(
    cpu_us_per_request=310.0,
    busy=0.41,
    ceiling_requests_per_s=3225.8,
    loop_lag_p99_ms=0.84,
    send_lag_p99_ms=None,
)


def level(load: float = 16, per_second: float = 1320.0, **more: Any) -> Level:
    """One level of a closed loop, unless `mode` says otherwise."""
    mode = more.pop("mode", "closed")
    middle = more.pop("middle", 1000 * load / (per_second or 1) if mode == "closed" else 14.0)
    seconds = more.pop("duration_s", 20.4)
    failures = more.pop("failures", {})
    failed = sum(failures.values())
    succeeded = round(per_second * seconds)
    found = Level(
        mode=mode,
        concurrency=int(load) if mode == "closed" else None,
        rate=float(load) if mode == "open" else None,
        duration_s=seconds,
        warm_up_s=3.0,
        requests=succeeded + failed,
        succeeded=succeeded,
        failed=failed,
        failures=failures,
        attempts=succeeded + failed,
        resent=0,
        retries=0,
        throttles=0,
        requests_per_s=per_second,
        documents_per_s=100 * per_second,
        tokens_per_s=18_400 * per_second,
        documents=100 * succeeded,
        tokens=18_400 * succeeded,
        latency=latency(middle, count=succeeded),
        service=latency(middle * 0.7, count=succeeded) if mode == "open" else None,
        goodput=None,
        client=evolve(
            CLIENT, busy=per_second / 3225.8, send_lag_p99_ms=1.9 if mode == "open" else None
        ),
        limited_by="server",
        why="All requests were always under way, and the client was busy 41% of the time.",
        timeline=intervals(seconds, per_second, p50=middle),
    )
    return evolve(found, **more)


def failed_level(load: float = 512) -> Level:
    """One in which nothing was answered."""
    return level(
        load,
        0.0,
        middle=1.0,
        failures={"ServerError": 1_990, "ConnectError": 10},
        documents_per_s=0.0,
        tokens_per_s=None,
        tokens=None,
        latency=None,
        timeline=tuple(evolve(i, failed=100, succeeded=0) for i in intervals(20.4, 0.0)),
        limited_by="unknown",
        why="No request succeeded.",
    )


def closed_levels(loads: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256)) -> tuple[Level, ...]:
    """A server that works on sixteen at once, and gets slower when asked for more."""
    return tuple(
        level(load, 1400 * load / (load + 9) * (1 if load <= 64 else 0.96)) for load in loads
    )


MACHINE = Machine(
    processor="AMD EPYC 7B13",
    cores=4,
    system="Linux 6.1.0 x86_64",
    python="3.11.7",
    packages={"aiohttp": "3.14.5", "orjson": "3.13.0", "uvloop": "0.23.0"},
)
TARGET = Target(url="http://rerank.test:8000/v1", model="bge-reranker-v2-m3", dialect="v1")
WORKLOAD = Workload(
    source="generated",
    documents="100",
    document_words="50-200",
    query_words="8",
    top_n=10,
    seed=7,
    mean_documents=100.0,
    mean_body_bytes=74_310.0,
)


def benchmark(*levels: Level, knee: int | None = None, **more: Any) -> Benchmark:
    """A run with these levels, or the usual nine with the knee at 32."""
    if not levels:
        levels, knee = closed_levels(), 5
    found = Benchmark(
        rerank_async="0.1.0",
        started="2026-03-02T09:30:00+00:00",
        name="bge on one L4",
        arrivals="poisson" if levels[0].mode == "open" else None,
        machine=MACHINE,
        target=TARGET,
        workload=WORKLOAD,
        levels=levels,
        knee=None
        if knee is None
        else Knee(
            knee, levels[knee].load, "From here on twice the load brings less than 10% more."
        ),
        notes=(),
    )
    return evolve(found, **more)


def open_benchmark() -> Benchmark:
    """Rates up to more than the server can do, with a goodput that was asked for."""
    levels = []
    for rate in (200, 400, 600, 800, 1000, 1200, 1400):
        done = min(rate, 1130 - max(0, rate - 1200) * 0.4)
        late = max(0.0, rate - done)
        middle = 9 * 1.6 ** (done / 400) * (1 + late)
        in_time = 1.0 if middle < 30 else 0.3
        levels.append(
            level(
                rate,
                done,
                mode="open",
                middle=middle,
                limited_by="load" if late == 0 else "server",
                goodput=Goodput(
                    percentile=99.0,
                    within_ms=100.0,
                    requests_per_s=done * in_time,
                    share=in_time,
                    is_met=in_time > 0.99,
                ),
                throttles=40 if late else 0,
                retries=38 if late else 0,
                timeline=intervals(
                    20.4, done, failed=3 if late else 0, throttles=9 if late else 0, p50=middle
                ),
                failures={"RateLimitError": 24} if late else {},
            )
        )
    return benchmark(*levels, knee=4)
