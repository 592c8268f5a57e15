"""Benchmarks of rerank servers: the load, the figures, and what people look at.

    async with LocalServer() as server:
        benchmark = await run_benchmark(server.url, model="lexical")
    print(benchmark.levels[0].requests_per_s)

`rerank-async bench` is made of this; the names here are for programs that run or read benchmarks.
Needs the extra `bench`.
"""

from __future__ import annotations

from rerank_async.bench._load import LevelProgress
from rerank_async.bench._machine import this_machine
from rerank_async.bench._options import BenchOptions
from rerank_async.bench._result import (
    SCHEMA,
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
    read_benchmark,
    to_json,
)
from rerank_async.bench._run import BenchProgress, run_benchmark

__all__ = [
    "SCHEMA",
    "BenchOptions",
    "BenchProgress",
    "Benchmark",
    "ClientCost",
    "Goodput",
    "Interval",
    "Knee",
    "Latency",
    "Level",
    "LevelProgress",
    "Machine",
    "Target",
    "Workload",
    "read_benchmark",
    "run_benchmark",
    "this_machine",
    "to_json",
]
