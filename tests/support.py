"""What several test files share: the key that must never be seen, servers, and things to wait for.

A line belongs here when two test files need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import socket
import struct
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import orjson
from attrs import define, field

import rerank_async
from rerank_async import RerankSession, StatusError
from rerank_async._answers import Answer, check_answer
from rerank_async.dialects.v1 import V1
from rerank_async.testing import HttpRequest, HttpResponse, MemoryTransport, scoring

# Every session in the tests has this key, and `conftest.py` looks for it where it must not be.
KEY = "sk-canary-5d1e7b93c40f"
PACKAGE = Path(rerank_async.__file__).parent
MEMORY_URL = "https://memory.test/v1"

# ── documents and scores ──


def numbered(count: int) -> list[str]:
    """So many documents, each with a number of its own, in no order."""
    return [f"document {(place * 7919) % 10_007}" for place in range(count)]


def number_of(query: str, document: str) -> float:
    """A pointwise score: the number in the document."""
    return float(document.split()[1])


def best_first(documents: list[str]) -> list[int]:
    """The indices in the order that `number_of` gives them."""
    return sorted(range(len(documents)), key=lambda index: -number_of("", documents[index]))


def memory(*, script: Iterable[HttpResponse | Exception | None] = (), delay: float = 0.0) -> Any:
    """A server in memory that scores by `number_of`."""
    return MemoryTransport(scoring(number_of), script=script, delay=delay)


def session_over(http: Any, base_url: str = MEMORY_URL, **options: Any) -> RerankSession:
    """A session with the key and a fixed seed, over `http`."""
    options = {"api_key": KEY, "model": "m", "seed": 1, "http": http, **options}
    return RerankSession(base_url, **options)


def refusal(status: int, message: str = "no", **headers: str) -> HttpResponse:
    """An answer that is not 200; the underscores in header names stand for hyphens."""
    return HttpResponse(
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        orjson.dumps({"error": {"message": message, "type": "t", "param": None, "code": None}}),
    )


def scored(scores: Iterable[float], *, model: str = "m") -> HttpResponse:
    """An answer with these scores for index 0, 1, 2, …"""
    return HttpResponse(200, {}, answer_body(scores, model=model))


def answer_body(scores: Iterable[float], *, model: str = "m") -> bytes:
    """The body of a v1 answer with these scores for index 0, 1, 2, …"""
    data = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    return orjson.dumps({"data": data, "model": model, "usage": {"total_tokens": 7}})


def sent_documents(request: HttpRequest) -> list[str]:
    """The documents in a request's body."""
    documents: list[str] = orjson.loads(request.body)["documents"]
    return documents


# ── waiting ──

# Seconds after which what is waited for is taken not to come: so many that a busy machine gets by,
# and fewer than the tests' own time limit, which says less.
_PATIENCE = 45.0
# Most come within so many turns of the loop; then threads and other processes need the processor.
_TURNS = 1000


async def until(condition: Callable[[], bool], what: str = "it") -> None:
    """Let the loop run until `condition` holds; fail when it does not come to hold.

    The loop's own clock is left alone: on a virtual one no second passes.
    """
    given_up_at = time.monotonic() + _PATIENCE
    for turn in itertools.count():
        if condition():
            return
        if turn >= _TURNS:
            if time.monotonic() >= given_up_at:
                raise AssertionError(f"{what} did not happen within {_PATIENCE:g} s")
            # Not the loop's own: that would let time pass on a virtual clock.
            time.sleep(0.0001)  # noqa: ASYNC251
        await asyncio.sleep(0)


async def steps(count: int) -> None:
    """Let the loop run so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def stream_of(items: Iterable[Any]) -> AsyncGenerator[Any, None]:
    """The items, one by one, with a turn of the loop before each."""
    for item in items:
        await asyncio.sleep(0)
        yield item


def is_closed(generator: Any) -> bool:
    """Whether an async generator has come to its end or was closed."""
    return generator.ag_frame is None


# ── the key ──


def assert_no_key(error: BaseException, key: str = KEY) -> None:
    """Fail if `key` is in what `error` shows: text, pickle, chain, the locals of our frames."""
    for link in _chain(error):
        assert key not in str(link), f"str of {type(link).__name__}"
        assert key not in repr(link), f"repr of {type(link).__name__}"
        assert key not in repr(vars(link)), f"attributes of {type(link).__name__}"
        if isinstance(link, StatusError):
            assert key not in str(dict(link.headers)), "headers of the error"
        # What cannot be pickled cannot leak that way.
        with contextlib.suppress(TypeError, AttributeError, pickle.PicklingError):
            assert key.encode() not in pickle.dumps(link), f"pickle of {type(link).__name__}"
        shown = traceback.TracebackException.from_exception(link, capture_locals=True)
        for frame in shown.stack:
            if PACKAGE in Path(frame.filename).parents:
                for name, value in (frame.locals or {}).items():
                    assert key not in value, f"local {name} in {frame.name}, line {frame.lineno}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        link = waiting.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting += [e for e in (link.__cause__, link.__context__) if e is not None]
        if isinstance(link, BaseExceptionGroup):
            waiting += link.exceptions


# ── a server that does as it is told, byte by byte ──


class ClientGoneError(Exception):
    """The client closed the connection; a script ends with it."""


@define(eq=False)
class Peer:
    """One accepted connection: what came, and the means to answer or to break it."""

    sock: socket.socket
    requests: list[bytes] = field(factory=list)
    gone: asyncio.Event = field(factory=asyncio.Event)
    _unread: bytes = b""

    async def request(self) -> bytes:
        """The next whole request, head and body."""
        while b"\r\n\r\n" not in self._unread:
            await self._more()
        head, _, rest = self._unread.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        while len(rest) < length:
            await self._more()
            rest = self._unread[len(head) + 4 :]
        self._unread = rest[length:]
        raw = head + b"\r\n\r\n" + rest[:length]
        self.requests.append(raw)
        return raw

    async def _more(self) -> None:
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 2**16)
        except OSError:
            data = b""
        if not data:
            self.gone.set()
            raise ClientGoneError
        self._unread += data

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        try:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)
        except OSError:
            self.gone.set()
            raise ClientGoneError from None

    def send_now(self, data: bytes) -> None:
        """Put it into the client's socket without giving its loop the time to read it."""
        assert self.sock.send(data) == len(data)

    async def drip(self, data: bytes) -> None:
        """Send it one byte at a time, each as a packet of its own."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(data)):
            await self.send(data[place : place + 1])
            await asyncio.sleep(0)

    async def until_gone(self) -> None:
        """Wait until the client closes; what it sends meanwhile is kept as a request."""
        while True:
            await self._more()

    def close(self) -> None:
        """Close in the orderly way."""
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script: TypeAlias = Callable[[Peer], Awaitable[None]]


class ScriptedServer:
    """Listens on loopback; the n-th connection is handled by the n-th script, the last repeats.

    Attributes:
        peers: every connection that was accepted, in order.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = itertools.chain(scripts, itertools.repeat(scripts[-1]))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.peers: list[Peer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._errors: list[BaseException] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> list[bytes]:
        """Every request of every connection."""
        return [request for peer in self.peers for request in peer.requests]

    async def __aenter__(self) -> Self:
        self._tasks.append(asyncio.create_task(self._accept()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        for peer in self.peers:
            peer.sock.close()
        if error is None and self._errors:
            raise self._errors[0]

    def refuse(self) -> None:
        """Accept no connection any more."""
        self._tasks[0].cancel()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setblocking(False)
            peer = Peer(sock)
            self.peers.append(peer)
            self._tasks.append(asyncio.create_task(self._run(next(self._scripts), peer)))

    async def _run(self, script: Script, peer: Peer) -> None:
        try:
            await script(peer)
        except ClientGoneError:
            peer.sock.close()
        except Exception as error:
            self._errors.append(error)
            peer.sock.close()


def http(
    body: bytes = b"", status: str = "200 OK", *headers: str, length: int | None = None
) -> bytes:
    """The bytes of a response; `length` lies about the body's."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(body: bytes, *, piece: int = 20) -> bytes:
    """The bytes of a response with chunked transfer encoding."""
    pieces = [body[place : place + piece] for place in range(0, len(body), piece)]
    frames = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + frames + b"0\r\n\r\n"


def body_of(raw: bytes) -> bytes:
    """The body of a recorded request."""
    return raw.partition(b"\r\n\r\n")[2]


def headers_of(raw: bytes) -> dict[str, str]:
    """The headers of a recorded request, names in lower case."""
    lines = raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    pairs = (line.split(": ", 1) for line in lines)
    return {name.lower(): value for name, value in pairs}


_handle = scoring(number_of)


def true_answer(raw: bytes) -> bytes:
    """The body that answers a recorded request by `number_of`."""
    return _handle(HttpRequest("POST", "/v1/rerank", {}, body_of(raw))).body


async def score(peer: Peer) -> None:
    """A script: answer every request as it should be."""
    while True:
        await peer.send(http(true_answer(await peer.request())))


def replying(*replies: bytes) -> Script:
    """A script: these bytes, one for each request, then wait for the client to go."""

    async def script(peer: Peer) -> None:
        for reply in replies:
            await peer.request()
            await peer.send(reply)
        await peer.until_gone()

    return script


class GatedTransport(MemoryTransport):
    """A server in memory that answers nobody before `gate` is set.

    Attributes:
        gate: set it to let the answers go.
        arrived: how many requests have come to the gate.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(scoring(number_of), **options)
        self.gate = asyncio.Event()
        self.arrived = 0

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        self.arrived += 1
        await self.gate.wait()
        return await super().exchange(request, body_limit=body_limit, timeout=timeout)


def believed(body: bytes, sent: int, top_n: int | None = None) -> Answer:
    """A v1 answer, read and checked as the session does it."""
    return check_answer(V1().decode_response(body), sent=sent, top_n=top_n)
