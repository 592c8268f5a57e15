"""How much memory one query over a million streamed documents takes.

The documents come from a generator and only the best ten are kept, so that what grows is what the
session holds back: it must not grow with the number of documents.

    python -m benchmarks.memory [--documents 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from collections.abc import Iterator

from benchmarks.machine import heading, pinned_pair
from benchmarks.stub import stub_server
from rerank_async import RerankSession

TARGET_MIB = 64


def peak_mib() -> float:
    """The largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def stream(count: int, peaks: list[float]) -> Iterator[str]:
    """So many documents of about 200 bytes; notes the peak after each tenth."""
    text = "a document that is long enough to be worth asking about " * 3
    for number in range(count):
        if number % (count // 10) == 0:
            peaks.append(peak_mib())
        yield f"{number:09d} {text}"


async def measure(origin: str, count: int) -> None:
    async with RerankSession(f"{origin}/1000/v1", model="stub", timeout=None) as session:
        # What is only loaded by a first call is not the stream's.
        await session.rerank("a question", stream(20_000, []), top_n=10)
        before = peak_mib()
        peaks: list[float] = []
        began = time.perf_counter()
        response = await session.rerank("a question", stream(count, peaks), top_n=10)
        seconds = time.perf_counter() - began
        after = peak_mib()
        assert len(response.results) == 10
        assert response.complete
        print(
            f"{count:,} documents streamed in {session.statistics().requests:,} requests, "
            f"{count / seconds:,.0f} documents/s"
        )
        print("peak MiB at each tenth: " + " ".join(f"{peak:.1f}" for peak in [*peaks, after]))
        print(f"growth {after - before:.1f} MiB (target: under {TARGET_MIB})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    arguments = parser.parse_args()
    _, server_cpu = pinned_pair()
    print("Memory of one query over a stream")
    print(heading("aiohttp", "msgspec"))
    with stub_server(server_cpu) as origin:
        asyncio.run(measure(origin, arguments.documents))


if __name__ == "__main__":
    main()
