"""What a request is made of: who sends it, where it goes, what it asks for, what becomes of it.

Values only; a line belongs here when several rooms of one call have to know of it.
"""

from __future__ import annotations

import asyncio
from random import Random

from msgspec import Struct

from rerank_async._chunking import ChunkLimits
from rerank_async._endpoint import Endpoint
from rerank_async._errors import RerankError
from rerank_async._flow.control import Origin
from rerank_async._flow.limiter import Limiter
from rerank_async._http import Transport
from rerank_async._listeners import Emitter
from rerank_async._policy import HedgePolicy, RetryPolicy
from rerank_async._private import Private
from rerank_async._verdicts import Verdicts
from rerank_async.dialects import Dialect

__all__ = ["Ask", "Route", "Sender", "Trail"]

# The URLs of so many models are kept; whoever asks for more has them made anew.
_MOST_URLS = 1000


class Route(Private, Struct, frozen=True):
    """One server, and how it is spoken to.

    Attributes:
        endpoint: the base URL, and the headers of every request.
        dialect: the words in which the server is spoken to.
        origin: what is known of the server, and the budgets for it.
        urls: the URLs for the models that were asked for lately.
    """

    endpoint: Endpoint
    dialect: Dialect
    origin: Origin
    urls: dict[str, str] = {}

    def url(self, model: str) -> str:
        """Where requests for a model go."""
        url = self.urls.get(model)
        if url is None:
            if len(self.urls) >= _MOST_URLS:
                self.urls.clear()
            url = self.urls[model] = self.dialect.url(self.endpoint.base_url, model)
        return url


# Not tracked by the garbage collector: texts and numbers cannot be part of a cycle.
class Ask(Private, Struct, frozen=True, gc=False):
    """What one call asks for.

    Attributes:
        number: the call's number, as its events carry it.
        model: the model id.
        query: the text to compare documents against.
        top_n: the number of results that the call returns; None returns all.
        deadline: the end of the call's time, on the loop's clock; None means none. It decides
            whether a wait for a retry is begun; the call itself is ended by its scope.
    """

    number: int
    model: str
    query: str
    top_n: int | None
    deadline: float | None


class Trail(Private, Struct, eq=False):
    """What is noted of one call while its requests are under way.

    Attributes:
        model: the model id; a verdict may be about one model alone.
        last_error: the error of the last attempt that failed, or None.
        retries: the number of failed attempts after which another one was due.
        on_wire: the number of its requests on the wire; one with a backup counts once.
        left: the number of its requests without an answer or an error; None while documents are
            still read.
        verdicts: the verdicts of the stream of requests that it belongs to, or None.
        condemned_by: the error because of which nothing more of it is sent, or None.
    """

    model: str
    last_error: RerankError | None = None
    retries: int = 0
    on_wire: int = 0
    left: int | None = 1
    verdicts: Verdicts | None = None
    condemned_by: RerankError | None = None

    def is_on_the_wire(self) -> bool:
        """Whether all that is left of it has been sent: it may be answered, or has been."""
        return self.left is not None and self.left <= self.on_wire

    def forget(self) -> None:
        """Let go of the errors: their tracebacks hold what holds this."""
        if self.last_error is not None:
            self.last_error = None
        if self.condemned_by is not None:
            self.condemned_by = None


class Sender(Private, Struct, frozen=True):
    """A session's means of sending: the same for all its calls and routes.

    Attributes:
        loop: the session's event loop.
        transport: the carrier of the exchanges.
        limiter: the slots.
        emit: the door to the listeners.
        limits: what one request may carry.
        policy: the rules for retries.
        hedge: the rules for backups; None means that there are none.
        dice: the source of the jitter.
        partial: whether a call returns what it has when some chunks fail.
    """

    loop: asyncio.AbstractEventLoop
    transport: Transport
    limiter: Limiter
    emit: Emitter
    limits: ChunkLimits
    policy: RetryPolicy
    hedge: HedgePolicy | None
    dice: Random
    partial: bool
