"""How long to look for the document that a server refuses.

A line belongs here when it decides whether refused documents are sent again in halves.
"""

from __future__ import annotations

__all__ = ["Bisection"]

# So many documents are found in one chunk, about; whoever sends more that are refused hears of
# spans instead of indices.
_SOUGHT = 4
# Halves and then quarters: of four quarters, three bad documents leave one to be taken.
_ROUNDS_IN_VAIN = 2


class Bisection:
    """The search within one chunk.

    The chunk is sent in two halves, and each half that is refused again in two.
    One refused document among n is found with 2 · log2(n) requests, rounded up.
    If not even one of the quarters is taken, it is not a document that the server refuses, and the
    search is over.

    Args:
        documents: the number of documents in the chunk.

    Attributes:
        scored: whether any part of the chunk has its scores.
    """

    __slots__ = ("_requests", "_rounds", "scored")

    def __init__(self, documents: int) -> None:
        self._requests = _SOUGHT * (2 * (documents - 1).bit_length() + 2)
        self._rounds = 0
        self.scored = False

    def next_round(self) -> bool:
        """Begin another round of halving; False when the search is over."""
        if self._rounds >= _ROUNDS_IN_VAIN and not self.scored:
            return False
        self._rounds += 1
        return True

    def may_halve(self) -> bool:
        """Whether one more refused part may be sent in halves, within this round."""
        if self._requests < 2:
            return False
        self._requests -= 2
        return True
