"""One level under way: who sends when, and what is noted.

A closed loop is as many tasks as there are to be requests at once, each of which sends one after
another. An open loop is one task that waits for the next intended moment and starts a task for each
request, whatever became of those before; only a cap, which is far off, makes one wait.
All moments are seconds since the level began, whatever the clock read then.
A line belongs here when it sends or waits; what the notes mean is in `_measure`.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from math import inf, nextafter
from typing import Any, Literal

from attrs import frozen

from rerank_async._errors import InvalidRequestError, RerankError
from rerank_async._moments import GRAIN
from rerank_async._session import RerankSession
from rerank_async.bench._clocks import Clocks, LagProbe
from rerank_async.bench._measure import Measured, Reading, Records, failure_kind, percentile
from rerank_async.bench._workload import RequestPool

__all__ = ["LevelLoad", "LevelProgress", "Phase", "run_level"]

Phase = Literal["warming up", "measuring", "waiting for the last"]

_TICK = 0.25
# Of what is shown while it runs: the last answers, and no more of them than are sorted at once.
_LAST_SECONDS, _LAST_REQUESTS = 3.0, 1000
# A request that is later than this has less time than the session gives to all.
_LATE = 0.05
# As many requests are started at once before those that were started get their turn.
_BATCH = 16
# Timers go in milliseconds; a shorter wait may be none, and end before its time.
_SHORTEST_WAIT = 0.001


@frozen
class LevelLoad:
    """What to hold, and for how long.

    Attributes:
        mode: "closed" or "open".
        load: requests at once, or requests/s.
        warm_up: seconds whose requests do not count.
        duration: seconds that are measured; None where `count` says how long.
        count: requests that are counted; None where `duration` says how many.
        timeout: seconds that a request may take, from the intended moment.
        max_in_flight: the requests at once from which on others wait, for an open loop.
        moments: the moments at which requests are intended, in seconds from the beginning, for an
            open loop; None for a closed one.
    """

    mode: Literal["closed", "open"]
    load: float
    warm_up: float
    duration: float | None
    count: int | None
    timeout: float
    max_in_flight: int = 10_000
    moments: Iterator[float] | None = None


@frozen
class LevelProgress:
    """How a level is getting on. Rates and latencies are of the last three seconds.

    Attributes:
        phase: what it does.
        seconds: the seconds since it began.
        seconds_left: the seconds until nothing more is sent; None where that is not known.
        requests_per_s: the rate of requests that succeeded.
        documents_per_s: the same.
        p50_ms: None where nothing succeeded.
        p99_ms: None where nothing succeeded.
        failed: the number of requests that failed since it began.
        throttled: answers that said to slow down, since it began.
        in_flight: requests under way.
        busy: share of the time in which the client's thread computed, since the last report.
        problem: the way in which the last request failed, in words, where none was answered for a
            second or longer; else empty.
    """

    phase: Phase
    seconds: float
    seconds_left: float | None
    requests_per_s: float
    documents_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    failed: int
    throttled: int
    in_flight: int
    busy: float
    problem: str = ""


async def run_level(
    session: RerankSession,
    pool: RequestPool,
    load: LevelLoad,
    *,
    clocks: Clocks,
    stop: asyncio.Event,
    on_progress: Callable[[LevelProgress], None] | None = None,
) -> Measured | None:
    """Hold one load, and note what comes of it.

    Args:
        session: a session with as many slots as there may be requests.
        pool: what to send.
        load: the load to hold.
        clocks: the clocks to read.
        stop: an event that ends it as soon as it is set.
        on_progress: a function that is told of it several times a second.

    Returns:
        The notes; None where `stop` was set before anything was measured.

    Raises:
        InvalidRequestError: a request cannot be sent at all.
    """
    level = _RunningLevel(session, pool, load, clocks, stop, on_progress)
    try:
        return await level.run()
    finally:
        await level.end()


class _RunningLevel:
    def __init__(
        self,
        session: RerankSession,
        pool: RequestPool,
        load: LevelLoad,
        clocks: Clocks,
        stop: asyncio.Event,
        on_progress: Callable[[LevelProgress], None] | None,
    ) -> None:
        self._session = session
        self._pool = pool
        self._load = load
        self._clocks = clocks
        self._stop = stop
        self._on_progress = on_progress
        self._records = Records()
        self._probe = LagProbe(clocks.now)
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        # The intended moments of requests that are over the cap.
        self._held: deque[float] = deque()
        self._held_back = 0
        # Those that were intended in the measured time, so far.
        self._counted = 0
        self._first: Reading | None = None
        self._throttles: list[int] = []
        self._origin = clocks.now()
        self._begin = load.warm_up
        self._end = inf if load.duration is None else load.warm_up + load.duration
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()
        self._thread, self._thread_read = clocks.thread(), 0.0

    # ── the course of a level ──

    async def run(self) -> Measured | None:
        load = self._load
        self._origin = self._clocks.now()
        if load.mode == "closed":
            for _ in range(int(load.load)):
                self._launch(self._send_in_turn())
        else:
            self._launch(self._send_on_time())
        await self._until(self._begin, "warming up")
        if self._stop.is_set():
            return None
        first = self._open_window()
        lags_before = self._start_probe()
        while not (self._is_past(self._end) or self._stop.is_set()) and self._tasks:
            second = self._begin + len(self._throttles) + 1
            await self._until(min(self._end, second), "measuring")
            if self._is_past(second):
                self._throttles.append(self._session.statistics().throttled)
        last = self._read()
        self._probe.stop()
        if self._end == inf or self._stop.is_set():
            self._end = min(self._end, self._now())
        lost = 0
        await self._until(inf, "waiting for the last")
        if self._tasks:
            lost = self._in_flight + len(self._held)
        if self._end <= self._begin:
            return None
        return Measured(
            mode=load.mode,
            load=load.load,
            begin=self._begin,
            end=self._end,
            warm_up_s=load.warm_up,
            records=self._records,
            first=first,
            last=last,
            over=self._read(),
            throttles=self._throttles,
            lags=self._probe.lags[lags_before:],
            held_back=self._held_back,
            lost=lost,
        )

    def _now(self) -> float:
        return self._clocks.now() - self._origin

    def _is_past(self, moment: float) -> bool:
        return self._now() >= moment - GRAIN

    async def end(self) -> None:
        """Whatever is still under way is given up."""
        self._probe.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _until(self, moment: float, phase: Phase) -> None:
        """Wait for a moment, for the end of all tasks, for a stop; report meanwhile.

        Raises what a task has raised.
        """
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            while self._tasks and not self._stop.is_set() and self._failure is None:
                left = min(moment, self._end if phase == "measuring" else inf) - self._now()
                if left <= GRAIN:
                    break
                woken = asyncio.ensure_future(self._wake.wait())
                try:
                    await asyncio.wait(
                        {stopped, woken},
                        timeout=min(_TICK, max(left, _SHORTEST_WAIT)),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    woken.cancel()
                self._wake.clear()
                self._report(phase)
        finally:
            stopped.cancel()
        if self._failure is not None:
            raise self._failure

    def _start_probe(self) -> int:
        self._probe.start()
        return len(self._probe.lags)

    def _open_window(self) -> Reading:
        """The reading at the first moment of the measured time."""
        if self._first is None:
            self._first = self._read()
        return self._first

    def _read(self) -> Reading:
        clocks, counts = self._clocks, self._session.statistics()
        return Reading(
            self._now(),
            clocks.process(),
            clocks.thread(),
            counts.requests,
            counts.resent,
            counts.retries,
            counts.throttled,
        )

    # ── tasks ──

    def _launch(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        if not self._tasks or self._failure is not None:
            self._wake.set()

    def _edge(self, moment: float) -> float:
        """The edge of the measured time that `moment` means, or `moment` itself.

        What counts is decided by it alone, here and in `_measure`: no rounding must.
        """
        for edge in (self._begin, self._end):
            if abs(moment - edge) <= GRAIN:
                return edge
        return moment

    def _is_over(self, moment: float) -> bool:
        """Whether a request that is intended at `moment` is not to be sent any more."""
        if moment >= self._begin and self._counted == self._load.count:
            # The measured time ends when one more would have been sent, and after those that were.
            self._end = min(self._end, nextafter(moment, inf))
            self._wake.set()
            return True
        return moment >= self._end

    def _note(self, moment: float) -> None:
        """A request that was intended at `moment` is sent now."""
        if moment >= self._begin:
            # The clock that wakes may be behind those who send.
            self._open_window()
            self._counted += 1

    async def _send_in_turn(self) -> None:
        """One place of a closed loop."""
        while not self._is_over(moment := self._edge(self._now())):
            self._note(moment)
            self._in_flight += 1
            try:
                await self._send(moment, self._load.timeout)
            finally:
                self._in_flight -= 1

    async def _send_on_time(self) -> None:
        """The sender of an open loop: it waits for the clock, and for nothing else."""
        assert self._load.moments is not None
        started = 0
        for moment in self._load.moments:
            intended = self._edge(moment)
            if self._is_over(intended):
                break
            while (left := intended - self._now()) > GRAIN:
                await asyncio.sleep(max(left, _SHORTEST_WAIT))
                started = 0
            self._note(intended)
            if self._in_flight >= self._load.max_in_flight:
                self._held.append(intended)
                self._held_back += 1
            else:
                self._in_flight += 1
                self._launch(self._send_and_next(intended))
            started += 1
            if started % _BATCH == 0:
                await asyncio.sleep(0)

    async def _send_and_next(self, intended: float) -> None:
        """One request of an open loop, and then those that had no room."""
        try:
            while True:
                # Those before it had no longer; if the clock has passed it all the same, it fails.
                left = intended + self._load.timeout - self._now()
                await self._send(intended, max(left, _SHORTEST_WAIT))
                if not self._held:
                    return
                intended = self._held.popleft()
        finally:
            self._in_flight -= 1

    async def _send(self, intended: float, left: float) -> None:
        query, documents, top_n = self._pool.take()
        sent = self._now()
        try:
            # The session's own timeout costs less than one of a call's own (`benchmarks/pieces.py`,
            # "a deadline").
            if left > self._load.timeout - _LATE:
                response = await self._session.rerank(query, documents, top_n=top_n)
            else:
                response = await self._session.rerank(query, documents, top_n=top_n, timeout=left)
        except InvalidRequestError:
            raise
        except RerankError as error:
            self._records.fail(intended, sent, self._now(), len(documents), failure_kind(error))
            # Some failures come without a wait: the others must have their turn.
            await asyncio.sleep(0)
            return
        tokens = response.usage.total_tokens
        self._records.succeed(intended, sent, self._now(), len(documents), tokens)

    # ── what is told ──

    def _report(self, phase: Phase) -> None:
        if self._on_progress is None:
            return
        records, now = self._records, self._now()
        first = max(
            bisect_left(records.ended, max(0.0, now - _LAST_SECONDS)),
            len(records) - _LAST_REQUESTS,
        )
        places = range(first, len(records))
        good = [place for place in places if not records.kinds[place]]
        # Of a thousand in a shorter time, that time counts.
        seconds = min(_LAST_SECONDS, now)
        if places and len(places) == _LAST_REQUESTS:
            seconds = now - records.ended[first]
        seconds = max(seconds, 1e-3)
        latencies = sorted(records.ended[place] - records.intended[place] for place in good)
        thread = self._clocks.thread()
        busy = (thread - self._thread) / max(now - self._thread_read, 1e-3)
        self._thread, self._thread_read = thread, now
        seen = self._session.statistics()
        self._on_progress(
            LevelProgress(
                phase=phase,
                seconds=now,
                seconds_left=max(0.0, self._end - now) if self._end < inf else None,
                requests_per_s=len(good) / seconds,
                documents_per_s=sum(records.documents[place] for place in good) / seconds,
                p50_ms=percentile(latencies, 50) * 1000.0 if latencies else None,
                p99_ms=percentile(latencies, 99) * 1000.0 if latencies else None,
                failed=_count_failed(records.kinds),
                throttled=seen.throttled,
                in_flight=self._in_flight,
                busy=min(1.0, busy),
                problem=seen.problem if seen.unanswered >= 1.0 else "",
            )
        )


def _count_failed(kinds: array[int]) -> int:
    return len(kinds) - kinds.count(0)
