"""The clocks that a benchmark reads, and a probe of the event loop.

Moments have no known beginning: only their differences count.
A line belongs here when it reads a clock.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable

from attrs import frozen

from rerank_async._moments import GRAIN

__all__ = ["Clocks", "LagProbe"]

_EVERY = 0.01
# A machine that slept for an hour is late enough with a minute of it.
_MOST_MISSED = 6000


@frozen
class Clocks:
    """Seconds of several kinds.

    The loop's own clock is not among them: uvloop's goes in whole milliseconds.

    Attributes:
        now: the time on the wall clock.
        process: the time computed by this process, all its threads.
        thread: the time computed by the thread that asks, which is the event loop's.
    """

    now: Callable[[], float] = time.perf_counter
    process: Callable[[], float] = time.process_time
    thread: Callable[[], float] = time.thread_time


class LagProbe:
    """Asks to be woken every 10 ms, and notes how late it was; what is late for it is for all.

    A delay that is longer than that swallows the times that would have come meanwhile: they are
    noted too, each as late as it would have been.

    Args:
        now: the clock.

    Attributes:
        lags: seconds, one for each time it was, or should have been, woken.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.lags = array("d")
        self._now = now
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Begin."""
        self._due = self._now() + _EVERY
        self._handle = asyncio.get_running_loop().call_later(_EVERY, self._woken)

    def stop(self) -> None:
        """End; may be done twice."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _woken(self) -> None:
        late = max(0.0, self._now() - self._due)
        missed = min(int((late + GRAIN) / _EVERY), _MOST_MISSED)
        self.lags.extend(max(0.0, late - _EVERY * number) for number in range(missed + 1))
        self.start()
