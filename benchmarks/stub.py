"""A stub server in a process of its own: reads requests, answers ready-made bodies.

It speaks as little HTTP as a client can do with, so that the client is what is measured.
The path says what to answer: `/N/v1/rerank` gives N results, best first; with `top_n` in the body
the first `top_n` of them.
In place of `v1` may stand `cohere/v2`, `voyage` or `tei`, each with its own shape.
Under `/corpus/N/...` the scores are those of a corpus, of which a request carries some texts in a
row: the number at the beginning of the first says which. N is for people to read.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, cast

import orjson

from benchmarks.peers.work import order_of, score_of

_PATH = re.compile(rb"POST /(corpus/)?(\d+)/(v1|cohere/v2|voyage|tei)/rerank ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOP_N = re.compile(rb'"top_n":(\d+)}$')
_NUMBER = re.compile(rb'\["(\d+) ')

# Index and score, best first.
_Ranking = Sequence[tuple[int, float]]


def answer(results: int) -> bytes:
    """A v1 answer of that many results as a whole HTTP response; scores like a server's."""
    return _response(b"v1", _ranking(results))


def _ranking(results: int) -> _Ranking:
    order = order_of(results)
    return [(index, round(1.0 - place / (results + 1), 9)) for place, index in enumerate(order)]


def _corpus_ranking(start: int, count: int) -> _Ranking:
    scored = [(index, round(score_of(start + index), 9)) for index in range(count)]
    return sorted(scored, key=lambda pair: pair[1], reverse=True)


def _response(kind: bytes, ranking: _Ranking) -> bytes:
    tokens = len(ranking)
    plain: list[Any] = [{"index": index, "relevance_score": score} for index, score in ranking]
    content: Any
    if kind == b"tei":
        content = [{"index": index, "score": score} for index, score in ranking]
    elif kind == b"cohere/v2":
        units = {"billed_units": {"search_units": 1}}
        content = {"id": "stub", "results": plain, "meta": {"api_version": {"version": "2"}}}
        content["meta"] |= units
    else:
        if kind == b"v1":
            plain = [{"object": "rerank.result", **result} for result in plain]
        usage = {"total_tokens": tokens}
        content = {"object": "list", "data": plain, "model": "stub", "usage": usage}
    body = orjson.dumps(content)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


class _Stub(asyncio.Protocol):
    def __init__(self, answers: dict[tuple[bytes, int, int], bytes]) -> None:
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
            self._transport.write(self._answer())
            self._pieces.clear()
            self._wanted = 0

    def _answer(self) -> bytes:
        path = _PATH.match(self._pieces)
        assert path is not None
        is_corpus, count, kind = path[1] is not None, int(path[2]), path[3]
        start = -1
        if is_corpus:
            number = _NUMBER.search(self._pieces)
            assert number is not None
            start = int(number[1])
            # Some clients put fewer into a request than they are told to.
            count = self._pieces.count(b'","', number.start()) + 1
        else:
            top_n = _TOP_N.search(self._pieces, max(0, self._wanted - 30))
            if top_n is not None:
                count = min(count, int(top_n[1]))
        key = kind, count, start
        ready = self._answers.get(key)
        if ready is None:
            ranking = _corpus_ranking(start, count) if is_corpus else _ranking(count)
            ready = self._answers[key] = _response(kind, ranking)
        return ready


def _serve(ready: Connection, cpu: int | None) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})

    async def main() -> None:
        answers: dict[tuple[bytes, int, int], bytes] = {}
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
    with stub_process(cpu) as (origin, _):
        yield origin


@contextmanager
def stub_process(cpu: int | None = None) -> Iterator[tuple[str, int]]:
    """The same; yields the process's number too, for whoever wants to know how busy it is."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, cpu), daemon=True)
    process.start()
    # Its own copy is the only one now: if it dies before it is ready, nobody waits for it.
    there.close()
    try:
        port = here.recv()
        assert process.pid is not None
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.join()
