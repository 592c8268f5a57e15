"""When two moments are the same one.

A clock's reading is a float that began to count long ago, at the machine's start say, and it is the
coarser the larger it is: whether 0.3 s after a beginning is before, at or after 0.05 s and 0.25 s
after it is decided by rounding, and so by the machine's uptime. Moments are therefore compared as
what is said here, so that no rounding decides what is due or what counts.
A line belongs here when it says how far apart two readings of a clock may be and mean one moment.
"""

from __future__ import annotations

from math import ulp

__all__ = ["GRAIN", "rounding"]

GRAIN = 1e-5
"""Seconds: what is noted, shown or waited for is no finer than this.

The rounding of a clock that has counted for 30 years is 0.1 µs, for 300 years 2 µs; a timer is a
hundred times as coarse as this."""


def rounding(now: float) -> float:
    """Seconds by which a sum may be off that means a moment near `now`: a few roundings.

    For what must be no earlier than it may be, however little: a quota, a server's hint.

    Args:
        now: a reading of the clock.
    """
    return 4.0 * ulp(now)
