"""`Load`: what one request weighs, for slots, weights and rates."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Load"]


# Not tracked by the garbage collector: three numbers cannot be part of a cycle.
class Load(Struct, frozen=True, gc=False):
    """What one request puts on a server.

    Attributes:
        documents: the number of its documents.
        bytes: the length of its body; may be 0 where nobody limits bytes.
        tokens: the tokens that it may cost; may be 0 where no rate counts them.
    """

    documents: int
    bytes: int = 0
    tokens: int = 0
