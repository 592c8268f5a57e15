"""How long a large call keeps the event loop from everything else.

A task asks to be woken every millisecond while one call is made over loopback; the longest time
between two of its wake-ups is the stall. The server is a process of its own.

    python -m benchmarks.stalls [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

from benchmarks.machine import heading
from benchmarks.stub import stub_server
from rerank_async import ChunkLimits, RerankSession

# Milliseconds that no call may keep the loop for.
TARGET = 50.0
MEGABYTE = 10**6
WHOLE = ChunkLimits(max_documents=None)

# The documents, what a request may carry, and how many results the server gives.
CASES: dict[str, tuple[Callable[[], list[str]], ChunkLimits, int]] = {
    "one document of 100 MB": (lambda: ["a" * 100 * MEGABYTE], WHOLE, 1),
    "one document of 100 MB, not ASCII": (lambda: ["é" * 50 * MEGABYTE], WHOLE, 1),
    "one document of 100 MB, all escapes": (lambda: ['"' * 50 * MEGABYTE], WHOLE, 1),
    "60 MB in 1,000 documents": (lambda: ["b" * 60_000] * 1000, WHOLE, 1000),
    "60 MB in chunks of 6 MB": (
        lambda: ["c" * 60_000] * 1000,
        ChunkLimits(max_documents=100),
        100,
    ),
    "500,000 tiny documents in chunks of 1,000": (
        lambda: [f"document {number}" for number in range(500_000)],
        ChunkLimits(max_documents=1000),
        1000,
    ),
}


async def ticks(gaps: list[float]) -> None:
    """Note the seconds between wake-ups, for as long as it may."""
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now


async def stall(origin: str, texts: list[str], limits: ChunkLimits, results: int) -> float:
    """The longest gap in milliseconds while one call is made."""
    gaps: list[float] = []
    ticker = asyncio.create_task(ticks(gaps))
    async with RerankSession(
        f"{origin}/{results}/v1", model="m", chunks=limits, timeout=None
    ) as session:
        await session.rerank("query", ["warm up"] * results)
        gc.collect()
        await asyncio.sleep(0.01)
        gaps.clear()
        response: Any = await session.rerank("query", texts)
        assert len(response.results) == len(texts)
    ticker.cancel()
    return 1000 * max(gaps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print("The longest stall of the event loop during one call, least of the rounds")
    print(heading("aiohttp", "orjson"))
    with stub_server() as origin:
        for name, (make, limits, results) in CASES.items():
            texts = make()
            least = min(asyncio.run(stall(origin, texts, limits, results)) for _ in range(rounds))
            verdict = "" if least < TARGET else f"  above {TARGET:.0f}"
            print(f"{name:<45}{least:8.1f} ms{verdict}", flush=True)


if __name__ == "__main__":
    main()
