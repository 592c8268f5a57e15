"""Other people's ways to find a limit, from their published rules, to be compared with ours.

Netflix's `concurrency-limits`: AIMD (`AIMDLimit`) and the gradient (`Gradient2Limit` behind a
`WindowedLimit`), each with its published defaults and its usual bounds of 20 and 200.
They sit under the real session where our own search would, so that only the rule differs.
A line belongs here when it restates such a rule.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from rerank_async import Concurrency
from rerank_async._flow import Controller, Ending

__all__ = ["Aimd", "Controlled", "Gradient2"]

_LEAST = 20
_MOST = 200


@frozen
class Controlled(Concurrency):
    """A limit that any controller moves: a way in for benchmarks, not for users.

    Attributes:
        make: makes the controller of one session.
    """

    make: Callable[[], Controller] = field(kw_only=True)

    def controller(self) -> Controller:
        """A new one."""
        return self.make()


def _is_drop(ending: Ending) -> bool:
    """What their gRPC client calls dropped; a cancellation or a bad request is ignored."""
    return ending in ("throttled", "paused", "reset", "timeout")


class Aimd:
    """Additive increase, multiplicative decrease.

    One more with each answer, a tenth less with each drop and each answer after more than 5 s.
    See `Controller` for the attributes.
    """

    heeds_answers = True
    unheard = 0

    def __init__(self) -> None:
        self.limit = _LEAST
        self.cuts = 0
        self.reason = ""

    def finished(
        self, now: float, started: float, documents: int, ending: Ending, in_flight: int
    ) -> None:
        """Take note of one attempt's end."""
        if ending == "other":
            return
        if _is_drop(ending) or now - started > 5.0:
            self.limit = max(_LEAST, min(self.limit - 1, int(self.limit * 0.9)))
            self.cuts += 1
            self.reason = "drop"
        elif in_flight * 2 >= self.limit:
            self.limit = min(_MOST, self.limit + 1)
            self.reason = "no drop"


class _LongMean:
    """An exponential mean over some 600 windows; a plain one over the first ten."""

    def __init__(self) -> None:
        self.value = 0.0
        self._sum = 0.0
        self._count = 0

    def add(self, sample: float) -> None:
        if self._count < 10:
            self._count += 1
            self._sum += sample
            self.value = self._sum / self._count
        else:
            share = 2.0 / (600 + 1)
            self.value += share * (sample - self.value)


class Gradient2:
    """Compares the mean time of the last second with that of the last ten minutes, once a second.

    Drops are ignored as drops; their time counts, as the published window counts it.
    See `Controller` for the attributes.
    """

    heeds_answers = True
    unheard = 0

    def __init__(self) -> None:
        self.cuts = 0
        self.reason = ""
        self._estimate = float(_LEAST)
        self._long = _LongMean()
        self._times: list[float] = []
        self._most_in_flight = 0
        self._next = 0.0

    @property
    def limit(self) -> int:
        """The estimate, rounded down."""
        return int(self._estimate)

    def finished(
        self, now: float, started: float, documents: int, ending: Ending, in_flight: int
    ) -> None:
        """Take note of one attempt's end; look at the window when it is over."""
        took = now - started
        if ending == "other" or took < 100e-6:
            return
        self._times.append(took)
        self._most_in_flight = max(self._most_in_flight, in_flight)
        if now > self._next:
            if len(self._times) >= 10:
                self._update(sum(self._times) / len(self._times), self._most_in_flight)
            self._times.clear()
            self._most_in_flight = 0
            self._next = now + 1.0

    def _update(self, short: float, in_flight: int) -> None:
        self._long.add(short)
        long = self._long.value
        if long / short > 2.0:
            self._long.value *= 0.95
        if in_flight < self._estimate / 2.0:
            return
        gradient = max(0.5, min(1.0, 1.5 * long / short))
        wanted = 0.8 * self._estimate + 0.2 * (self._estimate * gradient + 4.0)
        new = max(float(_LEAST), min(float(_MOST), wanted))
        self.reason = "grew" if new > self._estimate else "shrank"
        self._estimate = new
