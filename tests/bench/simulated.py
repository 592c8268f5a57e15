"""Servers of so many slots: as formulas, and in memory on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from attrs import evolve

from rerank_async.bench import Benchmark, BenchOptions, Level, run_benchmark
from rerank_async.bench._clocks import Clocks
from rerank_async.bench._measure import Measured, Reading, Records, latency_of, level_of
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring

NOTHING = Reading(0.0, 0.0, 0.0, 0, 0, 0, 0)
_TEMPLATE = evolve(
    level_of(Measured("closed", 1.0, 0.0, 10.0, 0.0, Records(), NOTHING, NOTHING, NOTHING)),
    timeline=(),
)


def level(
    load: float = 4,
    *,
    mode: Any = "closed",
    per_s: float = 10.0,
    mean: float = 0.1,
    failed: int = 0,
    requests: int = 100,
    **changes: Any,
) -> Level:
    """A level of ten seconds with these figures; `mean` in seconds."""
    succeeded, latency = requests - failed, latency_of([0.1])
    assert latency is not None
    return evolve(
        _TEMPLATE,
        mode=mode,
        concurrency=int(load) if mode == "closed" else None,
        rate=load if mode == "open" else None,
        requests=requests,
        succeeded=succeeded,
        failed=failed,
        requests_per_s=per_s,
        latency=evolve(latency, mean_ms=mean * 1000) if succeeded else None,
        **changes,
    )


def closed(load: float, slots: int, service: float) -> Level:
    """What so many requests at once make of a server of so many slots."""
    return level(load, per_s=min(load, slots) / service, mean=service * max(1.0, load / slots))


def opened(rate: float, capacity: float) -> Level:
    """What so many requests/s make of a server that can do `capacity`."""
    return level(
        rate,
        mode="open",
        requests=round(rate * 10),
        per_s=min(rate, capacity),
        mean=0.1 if rate <= capacity else 3.0,
    )


class Slots(MemoryTransport):
    """A server in memory of so many slots, each of which takes so long for a request.

    Attributes:
        refuse: asked for each request; None lets it be scored.
        stalls: from when and until when nothing is begun, on the loop's clock.
    """

    def __init__(
        self,
        slots: int,
        service: float,
        *,
        refuse: Callable[[int], HttpResponse | Exception | None] = lambda number: None,
        stalls: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(scoring(lambda query, document: float(len(document))))
        self._slots = asyncio.Semaphore(slots)
        self._service = service
        self.refuse = refuse
        self.stalls = stalls
        self.sent_at: list[float] = []

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        loop = asyncio.get_running_loop()
        number = len(self.sent_at)
        self.sent_at.append(loop.time())
        async with self._slots:
            if self.stalls[0] <= loop.time() < self.stalls[1]:
                await asyncio.sleep(self.stalls[1] - loop.time())
            await asyncio.sleep(self._service)
        step = self.refuse(number)
        if isinstance(step, Exception):
            raise step
        if step is not None:
            return step
        return await super().exchange(request, body_limit=body_limit, timeout=timeout)


async def measure(
    server: MemoryTransport,
    *,
    stop: asyncio.Event | None = None,
    on_progress: Any = None,
    busy: float = 0.1,
    **options: Any,
) -> Benchmark:
    """A benchmark in virtual time, of a client that computes a share `busy` of it."""
    now = asyncio.get_running_loop().time
    options = {"documents": "2", "document_words": "3", "query_words": "2", **options}
    return await run_benchmark(
        "https://memory.test/v1",
        api_key="sk-canary-5d1e7b93c40f",
        model="m",
        http=server,
        options=BenchOptions(**options),
        stop=stop,
        on_progress=on_progress,
        clocks=Clocks(now, lambda: busy * now(), lambda: busy * now()),
    )
