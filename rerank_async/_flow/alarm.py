"""The alarm: tells overload, which fails many attempts in a row, from failures that just happen.

A line belongs here when it decides whether failed attempts are too many to be an accident.
"""

from __future__ import annotations

from math import log2

__all__ = ["Alarm"]

# The weight of one attempt in the share of failures that is usual: a few dozens are remembered.
_WEIGHT = 1 / 64
# The usual share is taken to be at least and at most this: a first failure must not be a proof, and
# what fails more often than the second is never usual.
_LEAST, _MOST = 0.01, 0.15


class Alarm:
    """Weighs each failure by how unusual failures are, and rings when too many come together.

    It compares two stories by their likelihood, in bits. The first: attempts fail as often as they
    usually do. The second: half of those that usually succeed fail too, as they do where a server
    has too much. An answer takes one bit from the second story, whatever is usual. A failure gives
    it nearly six bits where one in a hundred fails, three and a half at one in twenty, and never
    less than two: where more than a third of all attempts fails, it rings again and again.
    So a server that refuses a share of all requests, at any load, does not ring it for long.

    Args:
        bits: the evidence at which it rings: the bits by which overload is the likelier story.
    """

    __slots__ = ("_bits", "_evidence", "_usual")

    def __init__(self, bits: float) -> None:
        self._bits = bits
        self._evidence = 0.0
        self._usual = _LEAST

    def answered(self, times: int = 1) -> None:
        """So many attempts were answered."""
        self._evidence = max(0.0, self._evidence - times)
        self._usual *= (1.0 - _WEIGHT) ** times

    def failed(self, weight: float = 1.0) -> bool:
        """An attempt failed; say whether that makes too many.

        Afterwards half of the evidence remains: what goes on failing rings again sooner.

        Args:
            weight: the weight of this failure; above 1 where the server itself spoke of its load.
        """
        usual = min(max(self._usual, _LEAST), _MOST)
        self._evidence += weight * log2((1.0 + usual) / (2.0 * usual))
        self._usual = usual + _WEIGHT * (1.0 - usual)
        if self._evidence < self._bits:
            return False
        self._evidence = self._bits / 2.0
        return True
