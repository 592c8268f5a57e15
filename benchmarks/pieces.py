"""What the parts of one call cost by themselves, in microseconds, without a wire.

    python -m benchmarks.pieces

What a whole call costs, in instructions, is counted by `python -m benchmarks.instructions`.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import orjson
from attrs import define, frozen

from benchmarks.machine import heading
from benchmarks.peers.work import documents
from benchmarks.stub import answer
from rerank_async import ChunkLimits, Concurrency, RerankSession
from rerank_async._answers import Answer, check_answer
from rerank_async._chunking import whole
from rerank_async._deadline import Scope, Watch
from rerank_async._flow.latency import Latencies
from rerank_async._flow.limiter import Limiter
from rerank_async._flow.load import Load
from rerank_async._http import HttpRequest, HttpResponse
from rerank_async._ordering import best_first
from rerank_async.dialects.v1 import V1

REPEATS = 15


@frozen
class FrozenAttrs:
    """A value of four fields, to be compared with a struct of four."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


class FrozenStruct(msgspec.Struct, frozen=True):
    """The same as a struct."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


@define
class AttrsResult:
    """A result as an attrs class, to be decoded into."""

    index: int
    relevance_score: float


class StructResult(msgspec.Struct, gc=False):
    """A result as a struct, to be decoded into."""

    index: int
    relevance_score: float


class StructBody(msgspec.Struct):
    """An answer as a struct, to be decoded into."""

    data: list[StructResult]


@define
class AttrsBody:
    """An answer as an attrs class, to be decoded into."""

    data: list[AttrsResult]


def believed(dialect: V1, body: bytes, sent: int) -> Answer:
    """An answer, read and checked."""
    return check_answer(dialect.decode_response(body), sent=sent, top_n=None)


def fetched(scores: list[float], order: list[int]) -> list[float]:
    """The scores at these places."""
    return list(map(scores.__getitem__, order))


class ReadyTransport:
    """Answers at once with a body that was made before."""

    def __init__(self, results: int) -> None:
        self._response = HttpResponse(200, {}, answer(results).partition(b"\r\n\r\n")[2])

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        return self._response

    async def close(self) -> None:
        pass


async def least(work: Callable[[], Any], times: int) -> float:
    """The least microseconds that one piece of work took, over REPEATS rounds of `times`."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        if asyncio.iscoroutinefunction(work) or asyncio.iscoroutinefunction(
            getattr(work, "func", None)
        ):
            for _ in range(times):
                await work()
        else:
            for _ in range(times):
                work()
        best = min(best, (time.process_time() - began) / times)
    return best * 1e6


async def measure() -> None:
    loop = asyncio.get_running_loop()
    limiter = Limiter(Concurrency())
    limits = ChunkLimits()

    def cut(texts: list[str]) -> None:
        whole(texts, limits)

    async def asyncio_timeout() -> None:
        async with asyncio.timeout_at(loop.time() + 60):  # noqa: ASYNC100  # only its cost is asked
            pass

    def scope() -> None:
        with Scope(loop, loop.time() + 60):
            pass

    watch = Watch(loop)

    def watched_scope() -> None:
        with Scope(loop, loop.time() + 60, watch):
            pass

    noted, binned = Latencies(), Latencies()

    def note_latency() -> None:
        noted.record(1.0, 100, 0.2)

    def bin_latency() -> None:
        binned.record(1.0, 100, 0.2)
        binned._sort()

    def slot() -> None:
        load = Load(100)
        if limiter.take(load):
            limiter.give(load, 0.0, "answered")

    semaphore = asyncio.Semaphore(16)

    async def semaphore_slot() -> None:
        async with semaphore:
            pass

    rows: list[tuple[str, Callable[[], Any]]] = [
        ("a deadline: our scope", scope),
        ("a deadline: one timer for all", watched_scope),
        ("a deadline: asyncio.timeout_at", asyncio_timeout),
        ("a free slot: ours", slot),
        ("a free slot: asyncio.Semaphore", semaphore_slot),
        ("a frozen value: plain class", lambda: HttpRequest("POST", "u", {}, b"")),
        ("a frozen value: msgspec struct", lambda: FrozenStruct("POST", "u", {}, b"")),
        ("a frozen value: attrs class", lambda: FrozenAttrs("POST", "u", {}, b"")),
        ("a latency: binned with 255 others", note_latency),
        ("a latency: binned by itself", bin_latency),
    ]
    long = "a long text " * 2**18
    rows += [
        ("a text of 3 MB, counted", partial(V1().document_bytes, long)),
        ("a text of 3 MB, written to count it", lambda: len(orjson.dumps(long))),
    ]
    for name, work in rows:
        print(f"{name:34} {await least(work, 3000):8.2f}")
    print(f"{'documents':34} " + " ".join(f"{size:8}" for size in (1, 20, 100, 1000)))
    columns: dict[str, list[float]] = {}
    dialect = V1()
    into_structs = msgspec.json.Decoder(StructBody)
    into_attrs = msgspec.json.Decoder(AttrsBody)
    for size in (1, 20, 100, 1000):
        texts = documents(size)
        body = answer(size).partition(b"\r\n\r\n")[2]
        compressed = gzip.compress(body)
        scores = [(place * 7919) % 10_007 / 10_007 for place in range(size)]
        order = best_first(scores)
        times = max(50, 3000 // size)
        async with RerankSession(
            "https://ready.test/v1", api_key="key", model="stub", http=ReadyTransport(size)
        ) as session:
            works: dict[str, Callable[[], Any]] = {
                "cut": partial(cut, texts),
                "encode": partial(dialect.encode_request, "m", "q", texts, None),
                "decode and check": partial(believed, dialect, body, size),
                "decode alone, into structs": partial(into_structs.decode, body),
                "decode alone, into attrs classes": partial(into_attrs.decode, body),
                "scores, sorted again": partial(sorted, scores, reverse=True),
                "scores, fetched in order": partial(fetched, scores, order),
                "an answer's bytes, one counted": partial(body.count, b"x"),
                "an answer's bytes, a word counted": partial(body.count, b'"index"'),
                "an answer's bytes, one looked for": partial(body.find, b"\\"),
                "an answer's bytes, two looked for": partial(body.find, b"\\u"),
                "unpack the answer from gzip": partial(gzip.decompress, compressed),
                "a whole call without a wire": partial(session.rerank, "a question", texts),
            }
            for name, work in works.items():
                columns.setdefault(name, []).append(await least(work, times))
    for name, figures in columns.items():
        print(f"{name:34} " + " ".join(f"{figure:8.2f}" for figure in figures))


def main() -> None:
    print("The parts of a call, least CPU microseconds of several rounds")
    print(heading("attrs", "msgspec", "orjson", "uvloop"))
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ModuleNotFoundError:
        pass
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(measure())


if __name__ == "__main__":
    main()
