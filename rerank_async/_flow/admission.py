"""Who may go now: slots, weights, rates and the gate, in one place and without waiting.

A line belongs here when it lets a request go or holds it back; who queues is `limiter`.
"""

from __future__ import annotations

from math import inf

from rerank_async._flow.buckets import Bucket
from rerank_async._flow.gate import Gate
from rerank_async._flow.load import Load
from rerank_async._moments import rounding

__all__ = ["Admission"]


class Admission:
    """Counts what is on the wire, and says whether one more may go.

    Args:
        limit: requests on the wire at once.
        max_documents: documents on the wire at once; None means no limit.
        max_bytes: bytes of request bodies on the wire at once; None means no limit.
        requests: the rate of requests, or None.
        tokens: the rate of tokens, or None.

    Attributes:
        limit: the number of slots. It may be set at any time; nobody who is under way is called
            back.
        requests: the number of requests on the wire now.
        documents: the number of documents on the wire now.
        bytes: the number of bytes on the wire now.
        gate: the gate that is closed after a server's hint.
    """

    __slots__ = (
        "_max_bytes",
        "_max_documents",
        "bytes",
        "documents",
        "gate",
        "limit",
        "request_rate",
        "requests",
        "token_rate",
    )

    def __init__(
        self,
        limit: int,
        *,
        max_documents: int | None = None,
        max_bytes: int | None = None,
        requests: Bucket | None = None,
        tokens: Bucket | None = None,
    ) -> None:
        self.limit = limit
        self._max_documents = max_documents
        self._max_bytes = max_bytes
        self.request_rate = requests
        self.token_rate = tokens
        self.gate = Gate()
        self.requests = self.documents = self.bytes = 0

    def enter(self, now: float, load: Load) -> float:
        """Let a request go, or say when to ask again.

        What is larger than a limit on weight goes when nothing else is on the wire.

        Args:
            now: the time.
            load: the request's weight.

        Returns:
            0.0 when it goes, the seconds after which to ask again, or infinity when it has to wait
            until another one leaves.
        """
        if self.requests >= self.limit:
            return inf
        if self.requests and (
            (
                self._max_documents is not None
                and self.documents + load.documents > self._max_documents
            )
            or (self._max_bytes is not None and self.bytes + load.bytes > self._max_bytes)
        ):
            return inf
        wait = self.gate.until - now
        if self.request_rate is not None:
            wait = max(wait, self.request_rate.wait(now, 1.0))
        if self.token_rate is not None:
            wait = max(wait, self.token_rate.wait(now, load.tokens))
        if wait > 0.0 and wait > rounding(now):
            return wait
        if self.request_rate is not None:
            self.request_rate.take(now, 1.0)
        if self.token_rate is not None:
            self.token_rate.take(now, load.tokens)
        self.requests += 1
        self.documents += load.documents
        self.bytes += load.bytes
        return 0.0

    def obstacle(self, now: float, load: Load) -> str:
        """What a request that was not let go lacks: "gate", "rate", or else "slot".

        Args:
            now: the time.
            load: the request's weight.
        """
        if self.gate.wait(now) > 0.0:
            return "gate"
        for bucket, wanted in ((self.request_rate, 1.0), (self.token_rate, load.tokens)):
            if bucket is not None and bucket.wait(now, wanted) > 0.0:
                return "rate"
        return "slot"

    def leave(self, load: Load) -> None:
        """A request that was let go is over."""
        self.requests -= 1
        self.documents -= load.documents
        self.bytes -= load.bytes

    def take_back(self, now: float, load: Load) -> None:
        """A request that was let go was not sent: the rates get back what it took out."""
        self.leave(load)
        if self.request_rate is not None:
            self.request_rate.settle(now, -1.0)
        if self.token_rate is not None:
            self.token_rate.settle(now, -load.tokens)
