"""The fuse of a fixed limit: broken connections, many at once, lower it for a time.

A line belongs here when it lowers a number that the caller gave, or brings it back.
"""

from __future__ import annotations

from math import inf

from rerank_async._flow import Ending
from rerank_async._flow.alarm import Alarm
from rerank_async._moments import GRAIN

__all__ = ["Fuse"]

# About five broken connections in a row ring the alarm; a few, as when a server restarts, do not.
# While the limit is lowered two are enough.
_BITS = 19.0
_LOWERED_BITS = 8.0
# One connection too many is reset at once. Where it took longer, in seconds, it was something else.
_AT_ONCE = 1.0
# Seconds for which the limit stays low: at first, and at most. They double when the limit rises
# and a connection breaks again.
_PAUSE = 1.0
_LONGEST_PAUSE = 30.0


class Fuse:
    """Leaves the limit as it was given, unless connections break in bursts.

    A server, or a proxy before it, that takes fewer connections than the limit resets the others:
    each reset costs an attempt, and the call when all its attempts are reset.
    A burst halves the limit. After a pause it rises by one with each answer, back to what was
    given; a reset on the way takes one step back, and makes the next pause longer.
    Where not even one connection is answered it is an outage, which fewer attempts do not help:
    the limit is what was given, until there was an answer.
    What else fails does not matter here: throttles and timeouts leave a given number alone.

    Args:
        limit: the limit that the caller gave; at least 1.

    Attributes:
        limit: the number of attempts that may be on the wire now.
        cuts: the number of times that resets lowered the limit.
        reason: the reason for the limit's last change.
        heeds_answers: whether it is lowered, and has to be told of answers one by one.
        unheard: answers that were given meanwhile; whoever gives back a slot counts them here.
    """

    def __init__(self, limit: int) -> None:
        self._given = limit
        self._alarm = Alarm(_BITS)
        # The limit that is kept during the pause.
        self._low = limit
        self._last_cut = -inf
        self._pause = _PAUSE
        # Whether there was an answer since the limit was lowered first, or else since an outage.
        self._is_answered = True
        self.limit = limit
        self.cuts = 0
        self.reason = ""
        self.heeds_answers = False
        self.unheard = 0

    def finished(
        self, now: float, started: float, documents: int, ending: Ending, in_flight: int
    ) -> None:
        """Take note of one attempt's end, and perhaps change `limit`. See `Controller`."""
        if ending == "answered":
            self._alarm.answered()
            self._is_answered = True
            if self.limit < self._given and now - self._last_cut >= self._pause - GRAIN:
                self._rise(self.limit + 1)
        elif ending == "reset" and started >= self._last_cut:
            if now - started > _AT_ONCE + GRAIN:
                return
            if self.unheard and not self._is_answered:
                # The outage is over, and with it what it was like.
                self._is_answered, self._alarm = True, Alarm(_BITS)
            self._alarm.answered(self.unheard)
            self.unheard = 0
            rings = self._alarm.failed()
            if self._low < self.limit < self._given:
                self._pause = min(2.0 * self._pause, _LONGEST_PAUSE)
                self._lower(now, self.limit - 1)
            elif rings and self.limit == 1 < self._given:
                if not self._is_answered:
                    self._rise(self._given)
            elif rings and self.limit > 1 and (self.heeds_answers or self._is_answered):
                if now - self._last_cut > 2.0 * self._pause + _LONGEST_PAUSE + GRAIN:
                    self._pause = _PAUSE
                elif now - self._last_cut >= self._pause - GRAIN:
                    self._pause = min(2.0 * self._pause, _LONGEST_PAUSE)
                self._lower(now, self.limit // 2)

    def _rise(self, limit: int) -> None:
        self.limit = limit
        self.reason = "coming back"
        if self.limit == self._given:
            self._low = self._given
            self._alarm = Alarm(_BITS)
            self.heeds_answers = False

    def _lower(self, now: float, limit: int) -> None:
        if not self.heeds_answers:
            self._is_answered = False
        self._last_cut = now
        self._low = self.limit = limit
        self._alarm = Alarm(_LOWERED_BITS)
        self.cuts += 1
        self.reason = "resets"
        self.heeds_answers = True
