"""A stub server in a process of its own: reads requests, answers ready-made bodies.

It speaks as little HTTP as a client can do with, so that the client is what is measured.
The path says what to answer: `/N/v1/rerank` gives N results, best first; with `top_n` in the body
the first `top_n` of them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast

import orjson

_PATH = re.compile(rb"POST /(\d+)/v1/rerank ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOP_N = re.compile(rb'"top_n":(\d+)}$')


def answer(results: int) -> bytes:
    """A v1 answer of that many results as a whole HTTP response; scores like a server's."""
    data = [
        {
            "object": "rerank.result",
            "index": (place * 7919) % results if results % 7919 else place,
            "relevance_score": round(1.0 - place / (results + 1), 9),
        }
        for place in range(results)
    ]
    body = orjson.dumps(
        {"object": "list", "data": data, "model": "stub", "usage": {"total_tokens": results}}
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


class _Stub(asyncio.Protocol):
    def __init__(self, answers: dict[int, bytes]) -> None:
        self._answers = answers
        self._pieces = bytearray()
        self._wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._pieces += data
        if not self._wanted:
            end = self._pieces.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._pieces, 0, end)
            assert length is not None
            self._wanted = end + 4 + int(length[1])
        if len(self._pieces) >= self._wanted:
            path = _PATH.match(self._pieces)
            assert path is not None
            results = int(path[1])
            top_n = _TOP_N.search(self._pieces, max(0, self._wanted - 30))
            if top_n is not None:
                results = min(results, int(top_n[1]))
            if results not in self._answers:
                self._answers[results] = answer(results)
            self._transport.write(self._answers[results])
            self._pieces.clear()
            self._wanted = 0


def _serve(ready: Connection, cpu: int | None) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})

    async def main() -> None:
        answers: dict[int, bytes] = {}
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Stub(answers), "127.0.0.1", 0, backlog=2048)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    try:
        import uvloop

        uvloop.run(main())
    except ModuleNotFoundError:
        asyncio.run(main())


@contextmanager
def stub_server(cpu: int | None = None) -> Iterator[str]:
    """Run the stub on a processor of its own; yields its origin, `http://127.0.0.1:PORT`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, cpu), daemon=True)
    process.start()
    # Its own copy is the only one now: if it dies before it is ready, nobody waits for it.
    there.close()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()
