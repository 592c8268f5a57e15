"""The local server: carries HTTP to the `App` and back.

The event loop reads, writes and refuses; scoring happens in worker processes, or in one thread
when there are none, so that the loop is never kept waiting.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import struct
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection as Pipe
from types import TracebackType
from typing import Self, TypeVar, cast

from aiohttp import web

from rerank_async._http import HttpRequest, HttpResponse
from rerank_async._private import Sealed, Secret
from rerank_async.dialects import RefusedError
from rerank_async.server import _listening, _scorers
from rerank_async.server._app import is_open, refusal
from rerank_async.server._bodies import Body, Budget
from rerank_async.server._connections import Connection, Doors, log, web_response
from rerank_async.server._faults import Fault, Faults
from rerank_async.server._limits import Limits

__all__ = ["LocalServer"]

T = TypeVar("T")

# The hint that goes with a scripted fault: long enough to be waited for, short enough to watch.
_FAULT_HINT = 0.05

# Seconds after the drain in which what is still done may end by itself.
_GRACE = 1.0


class LocalServer:
    """Serves the v1 exchange on one host, as an async context manager.

    With scoring processes, a script that uses it must guard its own start with
    `if __name__ == "__main__":`, as for every use of multiprocessing.

    Args:
        engine: the name of the scorer in `rerank_async.server.engines.ENGINES`.
        host: the address or name to listen on; loopback unless told otherwise.
        port: 0 takes a free one.
        api_key: the key that is asked of every request but those for `/` and `/health`; None asks
            for none.
        allow_no_key: whether others than this machine may ask without a key.
        max_documents: the most in one request; None is no limit.
        max_bytes: the most bytes of one request body, its content encoding undone.
        workers: scoring processes; 0 scores in one thread of this process.
        queue: requests that may wait for a scorer; one more is answered 429 with `Retry-After`.
        faults: the share of answers that are to fail; 0 for none.
        drain: seconds that requests in work get to finish when the server stops.
        limits: what it puts up with from those who connect; None means `Limits()`.

    Raises:
        ValueError: an argument out of range, an engine that there is not, or a host that others
            can reach without `api_key` or `allow_no_key`; for a name it is raised at the start.
        RuntimeError: the engine needs a package that is not installed.
        OSError: at the start, `host` and `port` cannot be listened on.
    """

    def __init__(
        self,
        engine: str = "lexical",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        allow_no_key: bool = False,
        max_documents: int | None = None,
        max_bytes: int = 64 * 2**20,
        workers: int = 0,
        queue: int = 64,
        faults: float = 0.0,
        drain: float = 10.0,
        limits: Limits | None = None,
    ) -> None:
        # Masked, and without the name that a traceback would show with its value.
        self._sealed = None if api_key is None else Sealed(Secret(api_key))
        del api_key
        if not host:
            # To asyncio it would mean every interface.
            raise ValueError("host must not be empty: 0.0.0.0 is every interface, if that is meant")
        if workers < 0:
            raise ValueError(f"workers must be at least 0, not {workers}")
        if queue < 0:
            raise ValueError(f"queue must be at least 0, not {queue}")
        if max_documents is not None and max_documents < 1:
            raise ValueError(f"max_documents must be at least 1 or None, not {max_documents}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        self._settings = _scorers.Settings(engine, max_documents)
        self._app = self._settings.make_app(self._key, max_bytes)
        self._allow_no_key = allow_no_key
        self._host = host
        if _listening.is_numeric(host):
            # What needs no look-up is refused before anything is started.
            self._check_reach([host])
        self._port = port
        self._workers = workers
        self._queue = queue
        self._faults = Faults(faults)
        self._drain = drain
        self._limits = limits or Limits()
        self._bodies = Budget(self._limits.body_bytes)
        self._scoring = 0
        self._jobs: set[Future[tuple[int, dict[str, str], bytes]]] = set()
        self._executor: Executor | None = None
        self._stop: Pipe | None = None
        self._doors: Doors | None = None
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        """The `base_url` of this server, once it has started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    async def __aenter__(self) -> Self:
        addresses = await _listening.resolve(self._host)
        self._check_reach([address for _, address in addresses])
        self._doors = Doors(self, self._limits, _listening.highest_descriptor())
        self._runner = web.ServerRunner(self._doors.server, shutdown_timeout=_GRACE)
        await self._runner.setup()
        sockets: list[socket.socket] = []
        try:
            sockets = _listening.bind(addresses, self._port)
            self._port = sockets[0].getsockname()[1]
            self._executor = self._make_executor()
            await _Site(self._runner, sockets, self._doors).start()
            await self._warm_up(self._executor)
        except BaseException:
            await self.__aexit__(None, None, None)
            for sock in sockets:
                sock.close()
            raise
        return self

    @property
    def _key(self) -> str | None:
        return None if self._sealed is None else self._sealed.open()

    def _check_reach(self, addresses: list[str]) -> None:
        if self._key is not None or self._allow_no_key:
            return
        for address in addresses:
            if not _listening.is_loopback(address):
                where = self._host if address == self._host else f"{self._host} ({address})"
                raise ValueError(
                    f"{where} can be reached by others than this machine, and no key is asked "
                    "for: pass api_key=, or allow_no_key=True if everybody may ask"
                )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take no more requests, let those in work finish, end the scorers."""
        if self._runner is not None and self._doors is not None:
            for site in list(self._runner.sites):
                await site.stop()
            # aiohttp reads nothing once it cleans up, not even the rest of a body.
            await self._doors.close(self._drain)
            await self._runner.cleanup()
        if self._executor is not None:
            await self._end_scorers(self._executor)

    # ── scorers ──

    def _make_executor(self) -> Executor:
        self._end_processes()
        told = None
        if self._workers:
            told, self._stop = multiprocessing.Pipe(duplex=False)
        return _scorers.make_executor(self._settings, self._workers, told, self._key)

    async def _warm_up(self, executor: Executor) -> None:
        ready = [self._submit(executor, os.getpid) for _ in range(self._workers or 1)]
        await asyncio.gather(*(asyncio.wrap_future(one) for one in ready))

    def _submit(self, executor: Executor, work: Callable[..., T], *arguments: object) -> Future[T]:
        return _scorers.submit(executor, self._key, work, *arguments)

    async def _end_scorers(self, executor: Executor) -> None:
        if self._jobs:
            # In a thread, because it blocks.
            await asyncio.to_thread(wait, list(self._jobs), _GRACE)
        if self._jobs and self._stop is None:
            # Nothing ends a thread; it ends itself when it has done what it is at.
            executor.shutdown(wait=False, cancel_futures=True)
            return
        if self._jobs:
            self._end_processes()
        await asyncio.to_thread(executor.shutdown, cancel_futures=True)
        self._end_processes()

    def _end_processes(self) -> None:
        if self._stop is not None:
            self._stop.close()
            self._stop = None

    # ── requests ──

    def judge(self, head: HttpRequest, *, crowded: bool) -> HttpResponse | None:
        """The answer, if the head decides it; None when the body is to be read."""
        answer = self._app.answer_at_once(head)
        if crowded and not is_open(head) and (answer is None or answer.status < 400):
            return self._busy("too many clients are connected: try again later")
        return answer

    def refuse(self, status: int, message: str, code: str) -> HttpResponse:
        """The answer to what is no request."""
        return refusal(self._app.dialect, RefusedError(status, message, code=code))

    def _busy(self, message: str) -> HttpResponse:
        refused = RefusedError(503, message, code="unavailable", retry_after=1.0)
        return refusal(self._app.dialect, refused)

    async def carry(self, incoming: web.BaseRequest) -> web.StreamResponse:
        """Answer a request whose head was judged."""
        connection = incoming.protocol
        assert isinstance(connection, Connection)
        head, verdict = connection.next_request()
        if verdict is not None:
            outgoing: web.StreamResponse = web_response(verdict)
            await connection.send(incoming, outgoing)
            return outgoing
        held = _HeldBytes(self._bodies)
        try:
            outgoing = await self._answer(incoming, connection, head, held)
            await connection.send(incoming, outgoing)
        finally:
            held.release()
        return outgoing

    async def _answer(
        self, incoming: web.BaseRequest, connection: Connection, head: HttpRequest, held: _HeldBytes
    ) -> web.StreamResponse:
        try:
            body = await self._receive(incoming, head, held)
        except RefusedError as refused:
            held.release()
            connection.deafen()
            return web_response(refusal(self._app.dialect, refused))
        fault = self._faults.next()
        if fault is not None:
            return await self._fail(incoming, fault)
        return web_response(await self._score(body))

    async def _receive(
        self, incoming: web.BaseRequest, head: HttpRequest, held: _HeldBytes
    ) -> bytes:
        """The whole body, its content encoding undone.

        Raises:
            RefusedError: it is too large, too slow, or not what it says that it is.
        """
        body = self._app.body(head)
        if not body.packed:
            held.grow_to(int(head.headers.get("content-length", "0")))
        if "expect" in head.headers and incoming.transport is not None:
            incoming.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(self._limits.body):
                while piece := await incoming.content.readany():
                    behind = True
                    while behind:
                        behind = await _unpack(body, piece)
                        held.grow_to(body.size)
                        piece = b""
        except TimeoutError:
            raise RefusedError(
                408, f"the body did not arrive within {self._limits.body:g} s", code="timeout"
            ) from None
        except web.RequestPayloadError:
            raise RefusedError(
                400, "the body is not well-formed HTTP/1.1", code="malformed_request"
            ) from None
        return body.end()

    async def _score(self, body: bytes) -> HttpResponse:
        if self._scoring >= self._queue + (self._workers or 1):
            refused = RefusedError(
                429,
                "too many requests are waiting: try again later",
                code="rate_limit_exceeded",
                retry_after=1.0,
            )
            return refusal(self._app.dialect, refused)
        executor = self._executor
        assert executor is not None
        self._scoring += 1
        try:
            job = self._submit(executor, _scorers.score, body)
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)
            return HttpResponse(*await asyncio.wrap_future(job))
        except BrokenProcessPool:
            # Somebody ended a scoring process; its siblings ended with it.
            if self._executor is executor:
                print("a scoring process ended; starting new ones", file=sys.stderr)
                self._executor = self._make_executor()
            return self._busy("the scorer was lost: try again")
        except Exception as error:
            # An engine's own words may quote the documents.
            log.error("scoring failed: %s", type(error).__name__)
            log.debug("scoring failed", exc_info=error)
            return self.refuse(500, "internal error", "internal_error")
        finally:
            self._scoring -= 1

    async def _fail(self, incoming: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        if fault == "reset":
            # In the middle of an answer: before its first byte, a client may take the connection
            # for one that had been dead all along.
            broken = web.StreamResponse(headers={"content-length": "1000"})
            await broken.prepare(incoming)
            await broken.write(b'{"object":"list"')
            _reset(incoming)
            raise ConnectionResetError("a scripted fault")
        code = "rate_limit_exceeded" if fault == "429" else "unavailable"
        refused = RefusedError(int(fault), "a scripted fault", code=code, retry_after=_FAULT_HINT)
        return web_response(refusal(self._app.dialect, refused))


class _Site(web.BaseSite):
    """Tells aiohttp's runner where connections come from."""

    def __init__(
        self, runner: web.ServerRunner, sockets: list[socket.socket], doors: Doors
    ) -> None:
        super().__init__(runner)
        self._sockets = sockets
        self._doors = doors

    @property
    def name(self) -> str:
        return str(self._sockets[0].getsockname())

    async def start(self) -> None:
        await super().start()
        doors = self._doors
        listener = _listening.Listener(self._sockets, doors.server, doors.make_room)
        # All that aiohttp asks of a server is where it listens, and that it stops.
        self._server = cast("asyncio.Server", listener)


class _HeldBytes:
    """What one request has taken of the bytes that all bodies may hold."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._amount = 0

    def grow_to(self, amount: int) -> None:
        """Hold `amount` at least.

        Raises:
            RefusedError: 503, there is not as much left.
        """
        more = amount - self._amount
        if more <= 0:
            return
        if not self._budget.take(more):
            raise RefusedError(
                503,
                "the bodies of other requests take up the memory for them: try again later",
                code="unavailable",
                retry_after=1.0,
            )
        self._amount = amount

    def release(self) -> None:
        self._budget.give_back(self._amount)
        self._amount = 0


async def _unpack(body: Body, piece: bytes) -> bool:
    # Unpacking a mebibyte takes a millisecond or more (`benchmarks/pieces.py`).
    return await asyncio.to_thread(body.feed, piece) if body.packed else body.feed(piece)


def _reset(incoming: web.BaseRequest) -> None:
    """Break the connection as a crash would: with a reset, not with a polite end."""
    transport = incoming.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
