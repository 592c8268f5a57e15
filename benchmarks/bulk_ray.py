"""What a second actor brings: `rerank_parquet` on a Ray of this machine, against a slow stub.

    python -m benchmarks.bulk_ray

The stub takes 20 ms for every request, and so many at once as come; each actor has the same number
of requests in flight. Documents/s are counted by the stub, from the first request that it hears to
the last that it answers: starting Ray and its actors is not what is measured.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from benchmarks.machine import heading
from benchmarks.stub import answer

AIM = 1.8
DOCUMENTS = 20
IN_FLIGHT = 4
SECONDS = 0.02
ROUNDS = 3
QUERIES = 1500


class _Slow(asyncio.Protocol):
    """Answers every request after a while, and notes when."""

    response = answer(DOCUMENTS)
    first = last = 0.0
    answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._read = bytearray()

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._read[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._read) >= end + 4 + length:
            self._read.clear()
            _Slow.first = _Slow.first or time.monotonic()
            asyncio.get_running_loop().call_later(SECONDS, self._answer)

    def _answer(self) -> None:
        self._transport.write(self.response)
        _Slow.answered += 1
        _Slow.last = time.monotonic()


def _serve(pipe: Connection) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Slow, "127.0.0.1", 0, backlog=256)
        pipe.send(server.sockets[0].getsockname()[1])

        def told() -> None:
            pipe.recv()
            pipe.send((_Slow.answered, _Slow.last - _Slow.first))
            _Slow.answered, _Slow.first = 0, 0.0

        loop.add_reader(pipe.fileno(), told)
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def slow_stub() -> Iterator[tuple[str, Connection]]:
    """The stub in a process of its own: its URL, and a pipe that tells what was answered."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1", here
    finally:
        process.terminate()
        process.join()


def rate(url: str, pipe: Connection, source: Path, output: Path, actors: int) -> float:
    """Documents/s with so many actors."""
    from rerank_async.ray import rerank_parquet

    summary = rerank_parquet(
        source,
        output,
        base_url=url,
        model="stub",
        actors=actors,
        concurrency=actors * IN_FLIGHT,
        batch_size=50,
        num_cpus=0.5,
    )
    assert summary.finished, summary
    assert not summary.failed, summary
    pipe.send("how many")
    answered, seconds = pipe.recv()
    assert answered == QUERIES, answered
    return float(answered * DOCUMENTS / seconds)


def main() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray

    print(heading("ray", "pyarrow", "aiohttp"))
    print(
        f"{QUERIES:,} queries of {DOCUMENTS} documents, {SECONDS * 1000:.0f} ms per request, "
        f"{IN_FLIGHT} in flight per actor, {ROUNDS} rounds\n"
    )
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name, slow_stub() as (url, pipe):
        folder = Path(name)
        texts = [f"document {place}" for place in range(DOCUMENTS)]
        columns: dict[str, Any] = {
            "query_id": [f"q{place}" for place in range(QUERIES)],
            "query": [f"query {place}" for place in range(QUERIES)],
            "documents": [texts] * QUERIES,
        }
        (folder / "in").mkdir()
        pq.write_table(pa.table(columns), folder / "in" / "requests.parquet")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        try:
            for round_ in range(ROUNDS):
                for actors, found in rates.items():
                    output = folder / f"out-{actors}-{round_}"
                    found.append(rate(url, pipe, folder / "in", output, actors))
                    print(f"round {round_ + 1}, {actors} actor(s): {found[-1]:,.0f} documents/s")
        finally:
            ray.shutdown()
    ratio = statistics.median(rates[2]) / statistics.median(rates[1])
    verdict = "reached" if ratio >= AIM else "MISSED"
    print(f"\ntwo actors: {ratio:.2f} times one (aim: at least {AIM}) {verdict}")


if __name__ == "__main__":
    main()
