"""What a server takes in one request, learned from what it answered and what it refused.

A line belongs here when it says how large a request may be by the server's own behaviour; what the
caller allows is `ChunkLimits`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from rerank_async._moments import GRAIN

__all__ = ["LearnedSizes", "Measure"]

# A refusal is believed for so many seconds. Then the size is tried again: the server may have been
# given more room, and smaller requests would be sent for ever.
_BELIEVED = 600.0

Measure: TypeAlias = Literal["documents", "bytes"]


class Ceiling:
    """One measure's bounds.

    Attributes:
        answered: the largest size that was.
        refused: the smallest size that was; None where none is known.
        refused_at: the moment of the last refusal that taught something.
    """

    __slots__ = ("answered", "refused", "refused_at")

    def __init__(self) -> None:
        self.answered = 0
        self.refused: int | None = None
        self.refused_at = 0.0

    def answer(self, size: int) -> None:
        self.answered = size
        if self.refused is not None and size >= self.refused:
            # It was not the size that was refused.
            self.refused = None

    def refuse(self, now: float, size: int) -> None:
        self.refused_at = now
        if size <= self.answered:
            # As much was answered before: either it is not the size, or the server has changed.
            # Both are found out anew.
            self.answered, self.refused = 0, None
        elif self.refused is None or size < self.refused:
            self.refused = size

    def forget(self, now: float) -> None:
        if self.refused is not None and now - self.refused_at > _BELIEVED + GRAIN:
            self.refused = None


class LearnedSizes:
    """The sizes of request that one model on one server takes.

    A size that was refused is not sent again: about half of it is tried, or the largest size that
    was answered where that is more.
    A refusal of a size that was answered before, an answer to one that was refused, or a refusal of
    one document alone takes the lesson back: then it was a document and not the size.
    After ten minutes without another refusal the lesson is over, and the size is tried again.

    Attributes:
        documents: bounds of the number of documents.
        bytes: bounds of the body's length.
        is_limited: whether anything is known that may make more than one piece.
    """

    __slots__ = ("bytes", "documents", "is_limited")

    def __init__(self) -> None:
        self.documents = Ceiling()
        self.bytes = Ceiling()
        self.is_limited = False

    def _look(self) -> None:
        self.is_limited = self.documents.refused is not None or self.bytes.refused is not None

    def answered(self, documents: int, size: int) -> None:
        """A request of so many documents and bytes was answered.

        It is no news, and need not be said, where neither is above what was answered before.
        """
        if documents > self.documents.answered:
            self.documents.answer(documents)
        if size > self.bytes.answered:
            self.bytes.answer(size)
        self._look()

    def refused(self, now: float, measure: Measure, documents: int, size: int) -> None:
        """It was refused, and for this measure."""
        if documents == 1:
            # It is this document that is too long, and perhaps it was before.
            self.documents.refused = self.bytes.refused = None
        elif measure == "documents":
            self.documents.refuse(now, documents)
        else:
            self.bytes.refuse(now, size)
        self._look()

    def pieces(self, now: float, documents: int, size: int, envelope: int) -> int:
        """In how many pieces to send a request.

        Args:
            now: the time.
            documents: the number of documents that it would have.
            size: bytes of its body.
            envelope: bytes of a body without documents; they are part of every piece.
        """
        self.documents.forget(now)
        self.bytes.forget(now)
        self._look()
        pieces = 1
        refused = self.documents.refused
        if refused is not None:
            limit = max(self.documents.answered, (refused + 1) // 2)
            pieces = -(-documents // limit)
        refused = self.bytes.refused
        # Where the query alone is too long, smaller pieces would be refused as well.
        if refused is not None and envelope < refused:
            # Two thirds: the halves of what was refused are seldom quite equal.
            limit = max(self.bytes.answered, envelope + (refused - envelope) * 2 // 3)
            if size > limit:
                pieces = max(pieces, 2, -(-(size - envelope) // max(1, limit - envelope)))
        return min(pieces, documents)
