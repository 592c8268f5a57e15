"""Flow control: what may be sent now, and who waits for it.

Most files are one small machine each, which is told the time and what happened, and answers with
numbers; two are their shell: `limiter` has a loop and a queue, `control` says who shares what.
A line belongs here when it is about load; who asks is `_parcel`.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

__all__ = ["Controller", "Ending"]

# How an attempt ended, as far as the load is concerned. "throttled": 429, 503 or 529; "paused": one
# of them with a time to come back, which speaks of the server and not of one request; "reset": no
# connection, or one that broke; "timeout": no answer within the attempt's time; "other": a 4xx, an
# answer that failed its checks, a cancellation: it says nothing about load.
Ending: TypeAlias = Literal["answered", "throttled", "paused", "reset", "timeout", "other"]


class Controller(Protocol):
    """Sets the number of slots from what becomes of the attempts.

    Attributes:
        limit: the number of attempts that may be on the wire now; at least 1.
        cuts: the number of times that overload cut the limit.
        reason: the reason for the limit's last change, in a word or two; empty before the first
            one.
        heeds_answers: whether it has to be told of each answer; otherwise they are only counted.
        unheard: answers that it was not told of; whoever gives a slot back counts them here.
    """

    unheard: int

    @property
    def limit(self) -> int: ...

    @property
    def cuts(self) -> int: ...

    @property
    def reason(self) -> str: ...

    @property
    def heeds_answers(self) -> bool: ...

    def finished(
        self, now: float, started: float, documents: int, ending: Ending, in_flight: int
    ) -> None:
        """Take note of one attempt's end, and perhaps change `limit`.

        Args:
            now: seconds on a clock that never goes back.
            started: the moment at which the attempt was put on the wire, on the same clock.
            documents: the number of documents that it carried.
            ending: the way in which it ended.
            in_flight: attempts on the wire, this one included.
        """
        ...
