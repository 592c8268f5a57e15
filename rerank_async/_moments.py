"""When two moments are the same one.

A line belongs here when it says how far apart two readings of a clock may be and mean one moment.
"""

from __future__ import annotations

__all__ = ["GRAIN"]

# Seconds. A clock's reading is a float that began to count long ago, at the machine's start say:
# whether 0.3 s after a beginning is before, at or after 0.05 s and 0.25 s after it is decided by
# rounding, and so by the uptime. Moments that are no further apart than this are the same one, so
# that no rounding decides what is due or what counts. Of a clock that has counted for 30 years the
# rounding is 0.1 µs, of one for 300 years 2 µs; a timer is a hundred times as coarse as this.
GRAIN = 1e-5
