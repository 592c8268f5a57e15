"""One client in a process of its own: does what it is told, line by line, and tells what it took.

    python -m benchmarks.peers.worker CLIENT ORIGIN PROCESSOR

Commands come as lines of JSON on standard input, answers go as lines of JSON to standard output.
A line belongs here when it measures; what a client does is in `clients`.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

from benchmarks.peers.clients import (
    CLIENTS,
    CORPUS,
    Ask,
    Client,
    corpus_order,
    corpus_score,
)
from benchmarks.peers.work import WORKERS, best_first, documents, order_of, score_of


def peak_mib() -> float:
    """The largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Worker:
    """Keeps a client open for each size between the rounds.

    Args:
        name: of the client.
        origin: of the stub.
        runner: whose loop everything runs on.
    """

    def __init__(self, name: str, origin: str, runner: asyncio.Runner) -> None:
        self._name = name
        self._origin = origin
        self._runner = runner
        self._clients: dict[int, Client] = {}
        self._texts: dict[int, list[str]] = {}
        self._corpus: list[str] = []
        self._order: list[int] = []
        self._go: Ask | None = None
        self._stack = AsyncExitStack()

    def hello(self) -> dict[str, Any]:
        """The versions that it runs on; fails where something is not installed."""
        packages = CLIENTS[self._name].packages
        return {"versions": {package: version(package) for package in packages}}

    def calls(self, size: int, calls: int) -> dict[str, float]:
        """CPU and wall seconds for each of `calls` requests of `size` documents."""
        client = self._clients.get(size)
        if client is None:
            client = self._clients[size] = CLIENTS[self._name](self._origin)
            self._texts[size] = documents(size)
            self._runner.run(self._open(client, size))
        return self._runner.run(self._drive(client, self._texts[size], calls))

    async def _open(self, client: Client, size: int) -> None:
        await client.open(size)
        answer = await client.rank(self._texts[size])
        found = client.order(answer)
        if found != order_of(size):
            raise RuntimeError(f"{self._name} gave another order of {size} documents: {found[:9]}")

    async def _drive(self, client: Client, texts: list[str], calls: int) -> dict[str, float]:
        left = iter(range(calls))

        async def work() -> None:
            for _ in left:
                await client.rank(texts)

        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(WORKERS)))
        return {
            "cpu": (time.process_time() - cpu) / calls,
            "wall": (time.perf_counter() - wall) / calls,
        }

    def many(self, size: int, calls: int) -> dict[str, float]:
        """The same through `rerank_many`."""
        self.calls(size, WORKERS)
        return self._runner.run(self._many(self._clients[size], self._texts[size], calls))

    async def _many(self, client: Any, texts: list[str], calls: int) -> dict[str, float]:
        from rerank_async import Reranked, RerankRequest

        def requests() -> Iterator[RerankRequest]:
            for _ in range(calls):
                yield RerankRequest("a question", texts)

        done = 0
        cpu, wall = time.process_time(), time.perf_counter()
        async for outcome in client.session.rerank_many(requests()):
            done += isinstance(outcome, Reranked)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if done != calls:
            raise RuntimeError(f"only {done} of {calls} requests were answered")
        return {"cpu": cpu / calls, "wall": wall / calls}

    def corpus(self, count: int, batch: int) -> dict[str, Any]:
        """One query over a corpus: seconds, memory, and whether the merged order is right.

        The order is looked at once, in the first round, which is not measured.
        """
        is_first = self._go is None
        if is_first:
            self._corpus = documents(count)
            self._order = best_first(count)
            asking = CORPUS[self._name](self._origin, self._corpus, batch)
            self._go = self._runner.run(self._stack.enter_async_context(asking))
        assert self._go is not None
        before = peak_mib()
        cpu, wall = time.process_time(), time.perf_counter()
        answer = self._runner.run(_awaited(self._go))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        after = peak_mib()
        told: dict[str, Any] = {"cpu": cpu, "wall": wall, "before": before, "peak": after}
        if is_first:
            order = corpus_order(self._name, answer)
            scores = corpus_score(self._name, answer)
            told |= {
                "results": len(order),
                "is_ordered": order == self._order,
                "are_scores_right": all(
                    abs(scores.get(number, -1.0) - score_of(number)) < 1e-6
                    for number in range(count)
                ),
            }
        return told


async def _awaited(go: Ask) -> Any:
    return await go()


def main() -> None:
    """Answer until standard input ends."""
    name, origin, processor = sys.argv[1:4]
    if processor != "-":
        os.sched_setaffinity(0, {int(processor)})
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if CLIENTS[name].is_on_uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        worker = Worker(name, origin, runner)
        for line in sys.stdin:
            command = json.loads(line)
            what = command.pop("do")
            try:
                told = getattr(worker, what)(**command)
            except Exception as error:
                told = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
