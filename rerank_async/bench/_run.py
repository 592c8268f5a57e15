"""A benchmark from its beginning to its end: the requests, the probe, one level after another.

A line belongs here when it says what happens in which order.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from typing import Any

from attrs import asdict, evolve, frozen

from rerank_async._chunking import ChunkLimits
from rerank_async._errors import (
    ConnectError,
    RateLimitError,
    ServerError,
    TransportError,
)
from rerank_async._flow.control import FlowControl
from rerank_async._http import Transport
from rerank_async._options import SessionOptions, as_sealed
from rerank_async._policy import RetryPolicy
from rerank_async._private import FramesHidden
from rerank_async._session import RerankSession
from rerank_async._version import __version__
from rerank_async.bench._arrivals import Loads, arrivals
from rerank_async.bench._clocks import Clocks
from rerank_async.bench._knee import knee_of
from rerank_async.bench._load import LevelLoad, LevelProgress, run_level
from rerank_async.bench._machine import this_machine
from rerank_async.bench._measure import level_of
from rerank_async.bench._options import BenchOptions
from rerank_async.bench._result import Benchmark, Level, Target, Workload
from rerank_async.bench._sweep import first_rate, next_load
from rerank_async.bench._words import load_words
from rerank_async.bench._workload import RequestPool, file_pool, made_pool
from rerank_async.dialects import Dialect

__all__ = ["BenchProgress", "run_benchmark"]

_DEFAULT_DURATION = 10.0


@frozen
class BenchProgress:
    """How a benchmark is getting on.

    Attributes:
        number: number of the level, from 1.
        levels: number of levels that there will be; None where a search decides.
        mode: word "closed" or "open".
        load: requests at once, or requests/s.
        now: progress of the level that is under way; None when it has just ended.
        done: level that has just ended; None as long as it is under way.
    """

    number: int
    levels: int | None
    mode: str
    load: float
    now: LevelProgress | None
    done: Level | None


async def run_benchmark(
    base_url: str | None = None,
    *,
    api_key: str | None = None,
    model: str | None = None,
    dialect: str | Dialect = "v1",
    allow_insecure_http: bool = False,
    http: Transport | None = None,
    options: BenchOptions | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[BenchProgress], None] | None = None,
    clocks: Clocks | None = None,
    make_session: Callable[..., RerankSession] = RerankSession,
) -> Benchmark:
    """Hold one load or several against a server, and say what it did.

    One request is sent before, and ends the benchmark if it is refused for good. It should have
    the event loop to itself: what else runs there looks like a slow server.

    Args:
        base_url: argument of `RerankSession`, as the four that follow.
        api_key: argument of `RerankSession`.
        model: argument of `RerankSession`.
        dialect: argument of `RerankSession`.
        allow_insecure_http: argument of `RerankSession`.
        http: `Transport` that carries the requests in place of aiohttp; None means aiohttp.
        options: choice of what to ask, how hard and for how long; None means `BenchOptions()`.
        stop: event that ends the benchmark, which then says what it measured so far; None when
            nobody will set it.
        on_progress: function that is called some times a second, and after each level; what it
            takes, the client takes. None when nobody looks.
        clocks: clocks to read; None means the system's.
        make_session: function that is called with the arguments of `RerankSession`, by their names,
            to get one. A key comes to it sealed.

    Returns:
        What was found; without levels where it was stopped before anything was.

    Raises:
        InvalidRequestError: an argument that cannot work, or a file of requests that is none.
        RerankError: the server refused the first request for good, cannot be reached, or does not
            speak the dialect.
        RuntimeError: the extra `bench` is not installed.
    """
    key = as_sealed(api_key)
    # A traceback shows this frame with its locals.
    del api_key
    if find_spec("hdrh") is None:
        raise RuntimeError('benchmarks need: pip install "rerank-async[bench]"')
    options = BenchOptions() if options is None else options

    def session_of(told: SessionOptions, flow: FlowControl) -> RerankSession:
        return make_session(flow=flow, **asdict(told, recurse=False))

    with FramesHidden():
        run = _Run(
            options=options,
            target=SessionOptions(
                base_url,
                api_key=key,
                model=model,
                dialect=dialect,
                allow_insecure_http=allow_insecure_http,
                http=http,
            ),
            stop=asyncio.Event() if stop is None else stop,
            on_progress=on_progress,
            clocks=Clocks() if clocks is None else clocks,
            session_of=session_of,
        )
        return await run.run()


@frozen
class _Run:
    options: BenchOptions
    target: SessionOptions
    stop: asyncio.Event
    on_progress: Callable[[BenchProgress], None] | None
    clocks: Clocks
    session_of: Callable[[SessionOptions, FlowControl], RerankSession]

    async def run(self) -> Benchmark:
        options, started = self.options, datetime.now(UTC)
        first = self._session(1)
        async with first:
            model = first.model or ""
            pool = await self._pool(model, first.dialect)
            notes = [] if pool is None else list(pool.notes)
            seconds = 0.0 if pool is None else await self._probe(first, pool)
            target = Target(first.spoken.url(first.base_url, model), model, first.dialect)
        loads = _with_beginning(options.loads(), seconds)
        levels: list[Level] = []
        is_gone = False
        # Nothing is asked for where it was stopped while the file of requests was read.
        while pool is not None and not self.stop.is_set():
            load = next_load(loads, levels)
            if load is None:
                break
            level = await self._level(loads, load, len(levels) + 1, pool, notes)
            if level is None:
                break
            levels.append(level)
            if loads.is_search and _is_gone(level):
                is_gone = True
                notes.append(
                    f"at {load_words(level)} the server could not be reached any more: the search "
                    "ended there"
                )
                break
        if self.stop.is_set():
            notes.append("it was interrupted: there would have been more to measure")
        levels.sort(key=lambda level: level.load)
        # A server that went away says nothing about loads.
        knee, reason = (None, None) if is_gone else knee_of(levels, is_search=loads.is_search)
        if reason is not None:
            notes.append(reason)
        if pool is not None and (repeats := pool.repeats()) is not None:
            notes.append(repeats)
        return Benchmark(
            rerank_async=__version__,
            started=started.isoformat(timespec="seconds"),
            name=options.name,
            arrivals=options.arrivals if loads.mode == "open" else None,
            machine=this_machine(),
            target=target,
            workload=_unread(options) if pool is None else pool.workload,
            levels=tuple(levels),
            knee=knee,
            notes=tuple(notes),
        )

    def _session(self, slots: int) -> RerankSession:
        options = self.options
        timeout = options.timeout
        told = evolve(
            self.target,
            # What is called a request here is one on the wire.
            chunks=ChunkLimits(max_documents=None, split_refused=False),
            retry=RetryPolicy(
                attempts=options.attempts,
                attempt_timeout=None,
                # Without retries no hint may hold back the load, and with them none that is longer
                # than a request may take.
                max_retry_after=1e-9 if options.attempts == 1 else timeout / 2,
            ),
            timeout=timeout,
            seed=options.seed,
        )
        # Of a session of its own, so that no level pays for the failures of another.
        return self.session_of(told, FlowControl(slots, retry_budget=None))

    async def _pool(self, model: str, dialect: str) -> RequestPool | None:
        """The requests; None where it was stopped while they were read, from a silent pipe, say."""
        if self.options.requests is None:
            return _pool(self.options, model, dialect)
        loop = asyncio.get_running_loop()
        reading: asyncio.Future[RequestPool] = loop.create_future()

        def read() -> None:
            try:
                pool = _pool(self.options, model, dialect)
            except Exception as error:
                tell = partial(reading.set_exception, error)
            else:
                tell = partial(reading.set_result, pool)
            # Where the loop is closed, nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(tell)

        # Daemon: a process may end although a pipe has not.
        threading.Thread(target=read, name="bench-requests", daemon=True).start()
        stopped = asyncio.ensure_future(self.stop.wait())
        awaited: set[asyncio.Future[Any]] = {reading, stopped}
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        return reading.result() if reading.done() else None

    async def _probe(self, session: RerankSession, pool: RequestPool) -> float:
        """Send one request; the seconds that it took.

        Raises:
            RerankError: the next ones would fare no better.
        """
        request, began = pool.take(), self.clocks.now()
        answer = asyncio.ensure_future(
            session.rerank(request.query, request.documents, top_n=request.top_n)
        )
        stopped = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({answer, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        except ConnectError:
            raise
        except (RateLimitError, ServerError, TransportError, TimeoutError):
            # It may be the server's load already; that is what is measured.
            pass
        finally:
            for task in (answer, stopped):
                task.cancel()
            await asyncio.gather(answer, stopped, return_exceptions=True)
        pool.given = 0
        return self.clocks.now() - began

    async def _level(
        self, loads: Loads, load: float, number: int, pool: RequestPool, notes: list[str]
    ) -> Level | None:
        options, is_open = self.options, loads.mode == "open"
        count, duration = options.count, options.duration
        if count is None and duration is None:
            duration = _DEFAULT_DURATION
        if count is not None and not is_open and count < load:
            notes.append(
                f"at {load:,g} at once {load:,g} requests were measured, not {count:,}: with fewer "
                "there would never be so many at once"
            )
            count = int(load)
        total = None if loads.is_search else len(loads.values)

        def told(progress: LevelProgress) -> None:
            if self.on_progress is not None:
                self.on_progress(BenchProgress(number, total, loads.mode, load, progress, None))

        level_load = LevelLoad(
            mode=loads.mode,
            load=load,
            warm_up=options.warm_up,
            duration=duration,
            count=count,
            timeout=options.timeout,
            max_in_flight=options.max_in_flight,
            # Each level draws anew, and the same as in another run.
            moments=arrivals(load, options.arrivals, options.seed + number),
        )
        async with self._session(options.max_in_flight if is_open else int(load)) as session:
            measured = await run_level(
                session,
                pool,
                level_load,
                clocks=self.clocks,
                stop=self.stop,
                on_progress=None if self.on_progress is None else told,
            )
        if measured is None:
            return None
        where = f"{load:,g} requests/s" if is_open else f"{load:,g} at once"
        if measured.lost:
            notes.append(
                f"at {where} {measured.lost:,} requests were under way when it was interrupted; "
                "they are not counted, and the slowest may be among them"
            )
        if measured.held_back:
            notes.append(
                f"at {where} {measured.held_back:,} requests had to wait in the client, because "
                f"{options.max_in_flight:,} were under way; their latency counts from when they "
                "were to be sent"
            )
        level = level_of(measured, options.target())
        if self.on_progress is not None:
            self.on_progress(BenchProgress(number, total, loads.mode, load, None, level))
        return level


def _is_gone(level: Level) -> bool:
    """Whether nobody was there any more; what was under way when it went failed otherwise."""
    most = max(level.failures, key=level.failures.__getitem__, default="")
    return not level.succeeded and most == ConnectError.__name__


def _pool(options: BenchOptions, model: str, dialect: str) -> RequestPool:
    if options.requests is not None:
        return file_pool(
            options.requests,
            top_n=options.top_n,
            seed=options.seed,
            model=model,
            dialect=dialect,
        )
    return made_pool(
        documents=options.documents,
        document_words=options.document_words,
        query_words=options.query_words,
        top_n=options.top_n,
        seed=options.seed,
        model=model,
        dialect=dialect,
    )


def _unread(options: BenchOptions) -> Workload:
    return Workload(
        source=str(options.requests),
        documents=None,
        document_words=None,
        query_words=None,
        top_n=options.top_n,
        seed=options.seed,
        mean_documents=0.0,
        mean_body_bytes=0.0,
    )


def _with_beginning(loads: Loads, seconds: float) -> Loads:
    """A search for a rate that is told no beginning begins by what the first request took."""
    if loads.is_search and not loads.values[0]:
        return evolve(loads, values=(first_rate(seconds), loads.values[1]))
    return loads
