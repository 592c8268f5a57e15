"""What `RerankSession.rerank` costs against a hand-written aiohttp + orjson loop.

Both send the same requests to the same stub server in another process, in turns within one run,
from the same number of workers.
The floor is what a careful engineer would write by hand in ten lines: it encodes, posts, reads,
decodes and sorts; it checks nothing, retries nothing, and knows no deadline of its own.

    python -m benchmarks.overhead [--rounds 31]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from operator import itemgetter
from statistics import median
from typing import Any

import aiohttp
import orjson

from benchmarks.machine import heading, pinned_pair
from benchmarks.peers.work import WORKERS, documents
from benchmarks.stub import stub_server
from rerank_async import ChunkLimits, RerankSession

# Documents per request, and how many requests make a round of about a tenth of a second: short
# rounds in quick turns, so that both sides see the same moods of the machine.
SIZES = {1: 480, 20: 480, 100: 320, 1000: 80}
TARGETS = {20: 1.15, 100: 1.10, 1000: 1.10}

Figure = tuple[float, float]
Call = Callable[[list[str]], Awaitable[Any]]


async def drive(call: Call, texts: list[str], calls: int) -> tuple[float, float]:
    """CPU and wall seconds per call, over `calls` calls from WORKERS workers."""
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await call(texts)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return (time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls


async def compare(origin: str, size: int, rounds: int) -> tuple[list[Figure], list[Figure]]:
    """(cpu, wall) per call of each round: by hand, and by the session."""
    texts = documents(size)
    url = f"{origin}/{size}/v1"
    headers = {"Content-Type": "application/json", "Authorization": "Bearer key"}

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        RerankSession(
            url, api_key="key", model="stub", concurrency=WORKERS, chunks=ChunkLimits(1000)
        ) as session,
    ):

        async def by_hand(texts: list[str]) -> Any:
            body = orjson.dumps({"model": "stub", "query": "a question", "documents": texts})
            async with http.post(f"{url}/rerank", data=body, headers=headers) as response:
                response.raise_for_status()
                data = orjson.loads(await response.read())["data"]
            data.sort(key=itemgetter("relevance_score"), reverse=True)
            return data

        async def by_session(texts: list[str]) -> Any:
            return await session.rerank("a question", texts)

        one, other = await by_hand(texts), await by_session(texts)
        assert [entry["index"] for entry in one] == list(other.results.indices)
        calls = SIZES[size]
        hand: list[Figure] = []
        ours: list[Figure] = []
        for number in range(rounds + 1):
            # Whoever goes first in a round goes second in the next.
            pair = [(by_hand, hand), (by_session, ours)]
            for call, figures in pair if number % 2 else reversed(pair):
                figure = await drive(call, texts, calls)
                if number:  # the first round warms up
                    figures.append(figure)
    return hand, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    _, server_cpu = pinned_pair()
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop] | None] = {"asyncio": None}
    try:
        import uvloop

        loops["uvloop"] = uvloop.new_event_loop
    except ModuleNotFoundError:
        print("uvloop is not installed: asyncio's own loop only")
    print("Client overhead per call, session against a hand-written aiohttp + orjson loop")
    print(heading("aiohttp", "orjson", "msgspec", "uvloop"))
    print(f"medians of {rounds} interleaved rounds, {WORKERS} workers, microseconds per call")
    print(
        f"{'loop':8} {'docs':>5} {'hand cpu':>9} {'ours cpu':>9} {'ratio':>6} {'target':>6}"
        f" {'hand wall':>10} {'ours wall':>10} {'ratio':>6}"
    )
    with stub_server(server_cpu) as origin:
        for name, factory in loops.items():
            for size in SIZES:
                with asyncio.Runner(loop_factory=factory) as runner:
                    hand, ours = runner.run(compare(origin, size, rounds))
                cpu = median(o[0] / h[0] for h, o in zip(hand, ours, strict=True))
                wall = median(o[1] / h[1] for h, o in zip(hand, ours, strict=True))
                target = TARGETS.get(size) if name == "uvloop" else None
                print(
                    f"{name:8} {size:5} {median(h[0] for h in hand) * 1e6:9.1f}"
                    f" {median(o[0] for o in ours) * 1e6:9.1f} {cpu:6.2f}"
                    f" {'' if target is None else f'{target:.2f}':>6}"
                    f" {median(h[1] for h in hand) * 1e6:10.1f}"
                    f" {median(o[1] for o in ours) * 1e6:10.1f} {wall:6.2f}"
                )


if __name__ == "__main__":
    main()
