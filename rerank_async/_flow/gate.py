"""The gate: after a server's "come back in n seconds", nobody goes before then.

A line belongs here when it says until when everybody waits.
"""

from __future__ import annotations

from math import inf

from rerank_async._moments import rounding

__all__ = ["Gate"]


class Gate:
    """Closed until a time that only ever moves further away.

    Attributes:
        until: the moment at which it opens; in the past when it is open.
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = -inf

    def close(self, now: float, seconds: float, draw: float) -> bool:
        """Close it for `seconds` and up to a tenth more, and say whether that changes anything.

        Args:
            now: the time.
            seconds: the server's hint.
            draw: a number drawn evenly from [0, 1), so that many clients do not come back in step.
        """
        until = now + seconds * (1.0 + draw / 10.0)
        if until <= max(self.until, now) + rounding(now):
            return False
        self.until = until
        return True

    def wait(self, now: float) -> float:
        """Seconds until it opens; 0.0 when it is open."""
        left = self.until - now
        return left if left > 0.0 and left > rounding(now) else 0.0
