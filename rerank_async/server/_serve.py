"""aiohttp.web and the scoring processes: carries HTTP to the `App` and back.

The event loop reads, writes and refuses; scoring happens in worker processes, or in one thread
when there are none, so that the loop is never kept waiting.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import Self

from aiohttp import web
from attrs import frozen

from rerank_async._http import HttpRequest, HttpResponse
from rerank_async.dialects import RefusedError
from rerank_async.server import engines
from rerank_async.server._app import App, refusal
from rerank_async.server._faults import Fault, Faults

__all__ = ["LocalServer"]

# The hint that goes with a scripted fault: long enough to be waited for, short enough to watch.
_FAULT_HINT = 0.05


@frozen
class _Settings:
    """What a scoring process needs to make its own `App`."""

    engine: str
    max_documents: int | None

    def make_app(self, api_key: str | None = None) -> App:
        return App(engines.create(self.engine), api_key=api_key, max_documents=self.max_documents)


class LocalServer:
    """Serves the v1 exchange on one address, as an async context manager.

    With scoring processes, a script that uses it must guard its own start with
    `if __name__ == "__main__":`, as for every use of multiprocessing.

    Args:
        engine: which scorer; a name of `rerank_async.server.engines.ENGINES`.
        host: the address to listen on; loopback unless told otherwise.
        port: 0 takes a free one.
        api_key: asked of every request; None asks for none.
        max_documents: the most in one request; None is no limit.
        max_bytes: the most bytes of one request body.
        workers: scoring processes; 0 scores in one thread of this process.
        queue: requests that may wait for a scorer; one more is answered 429 with `Retry-After`.
        faults: the share of answers that are to fail; 0 for none.
        drain: seconds that requests in work get to finish when the server stops.

    Raises:
        ValueError: an argument out of range, or an engine that there is not.
        RuntimeError: the engine needs a package that is not installed.
    """

    def __init__(
        self,
        engine: str = "lexical",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        max_documents: int | None = None,
        max_bytes: int = 64 * 2**20,
        workers: int = 0,
        queue: int = 64,
        faults: float = 0.0,
        drain: float = 10.0,
    ) -> None:
        if not host:
            # To asyncio it would mean every interface.
            raise ValueError("host must not be empty: 0.0.0.0 is every interface, if that is meant")
        if workers < 0:
            raise ValueError(f"workers must be at least 0, not {workers}")
        if queue < 0:
            raise ValueError(f"queue must be at least 0, not {queue}")
        if max_documents is not None and max_documents < 1:
            raise ValueError(f"max_documents must be at least 1 or None, not {max_documents}")
        if api_key is not None and not api_key:
            raise ValueError("api_key must not be empty: leave it out to ask for none")
        self._settings = _Settings(engine, max_documents)
        self._app = self._settings.make_app(api_key)
        self._host = host
        self._port = port
        self._max_bytes = max_bytes
        self._workers = workers
        self._queue = queue
        self._faults = Faults(faults)
        self._drain = drain
        self._scoring = 0
        self._arriving: set[asyncio.Future[None]] = set()
        self._executor: Executor | None = None
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The `base_url` of this server, once it has started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    async def __aenter__(self) -> Self:
        # Handlers end when their client hangs up: nobody waits for that answer any more.
        self._runner = web.AppRunner(
            self._web_app(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=self._drain,
        )
        await self._runner.setup()
        try:
            self._executor = self._make_executor()
            site = web.TCPSite(self._runner, self._host, self._port, backlog=1024)
            await site.start()
            await self._warm_up(self._executor)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take no more requests, let those in work finish, end the scorers."""
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()
            if self._arriving:
                # aiohttp reads nothing once it cleans up, not even the rest of a body.
                await asyncio.wait(self._arriving, timeout=self._drain)
            await self._runner.cleanup()
        if self._executor is not None:
            executor = self._executor
            # Joins processes: in a thread, because it blocks.
            await asyncio.to_thread(executor.shutdown, cancel_futures=True)

    def _web_app(self) -> web.Application:
        app = web.Application(client_max_size=self._max_bytes)
        app.router.add_route("*", "/{path:.*}", self._carry)
        return app

    def _make_executor(self) -> Executor:
        if not self._workers:
            return ThreadPoolExecutor(1, "scorer", _become_scorer, (self._settings, False))
        return ProcessPoolExecutor(
            self._workers,
            # A fork of a process with threads and a running loop may hang.
            get_context("spawn"),
            _become_scorer,
            (self._settings, True),
        )

    async def _warm_up(self, executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        # Processes inherit it: Ctrl-C is the server's to hear, also before they can ignore it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            ready = [loop.run_in_executor(executor, os.getpid) for _ in range(self._workers or 1)]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        await asyncio.gather(*ready)

    async def _carry(self, incoming: web.Request) -> web.StreamResponse:
        arrived = asyncio.get_running_loop().create_future()
        self._arriving.add(arrived)
        try:
            body = await incoming.read()
        except web.HTTPRequestEntityTooLarge:
            response = refusal(
                self._app.dialect,
                RefusedError(
                    413,
                    f"the body has more than {self._max_bytes:,} bytes",
                    code="body_too_large",
                ),
            )
            return _web_response(response, close=True)
        finally:
            self._arriving.remove(arrived)
            arrived.set_result(None)
        headers = {name.lower(): value for name, value in incoming.headers.items()}
        request = HttpRequest(incoming.method, incoming.path, headers, body)
        response_or_none = self._app.answer_at_once(request)
        if response_or_none is not None:
            return _web_response(response_or_none)
        fault = self._faults.next()
        if fault is not None:
            return await self._fail(incoming, fault)
        return _web_response(await self._score(request))

    async def _score(self, request: HttpRequest) -> HttpResponse:
        if self._scoring >= self._queue + (self._workers or 1):
            return self._refuse(429, "too many requests are waiting: try again later", 1.0)
        executor = self._executor
        assert executor is not None
        self._scoring += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, _score, request)
        except BrokenProcessPool:
            # Somebody ended a scoring process; its siblings ended with it.
            if self._executor is executor:
                print("a scoring process ended; starting new ones", file=sys.stderr)
                self._executor = self._make_executor()
            return self._refuse(503, "the scorer was lost: try again", 1.0)
        finally:
            self._scoring -= 1

    def _refuse(self, status: int, message: str, retry_after: float) -> HttpResponse:
        code = "rate_limit_exceeded" if status == 429 else "unavailable"
        refused = RefusedError(status, message, code=code, retry_after=retry_after)
        return refusal(self._app.dialect, refused)

    async def _fail(self, incoming: web.Request, fault: Fault) -> web.StreamResponse:
        if fault == "reset":
            # In the middle of an answer: before its first byte, a client may take the connection
            # for one that had been dead all along.
            broken = web.StreamResponse(headers={"content-length": "1000"})
            await broken.prepare(incoming)
            await broken.write(b'{"object":"list"')
            _reset(incoming)
            return broken
        return _web_response(self._refuse(int(fault), "a scripted fault", _FAULT_HINT))


def _web_response(response: HttpResponse, *, close: bool = False) -> web.Response:
    outgoing = web.Response(status=response.status, headers=response.headers, body=response.body)
    if close:
        # The rest of the body is still on its way, and will not be read.
        outgoing.force_close()
    return outgoing


def _reset(incoming: web.Request) -> None:
    """Break the connection as a crash would: with a reset, not with a polite end."""
    transport = incoming.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


# ── in the scoring process, or thread ──

_scorer = threading.local()


def _become_scorer(settings: _Settings, own_process: bool) -> None:
    if own_process:
        # Ctrl-C reaches the whole terminal; the server decides when its scorers end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()
    _scorer.app = settings.make_app()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _score(request: HttpRequest) -> HttpResponse:
    app: App = _scorer.app
    return app.score(request)
