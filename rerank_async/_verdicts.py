"""What one stream of requests has heard that ends its further requests as well.

A line belongs here when it decides what is not sent any more because of how another request failed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

from rerank_async._deadline import Scope
from rerank_async._errors import RerankError

__all__ = ["Judged", "Verdicts"]


class Judged(Protocol):
    """What is known of a call that may be condemned.

    Attributes:
        model: the model id.
        condemned_by: the error because of which nothing more of it is sent; None as long as it may
            be.
    """

    model: str
    condemned_by: RerankError | None

    def is_on_the_wire(self) -> bool:
        """Whether all that is left of it has been sent: it may be answered, or has been."""
        ...


class Verdicts:
    """The errors that condemn a model, or everything, and the calls that they are for.

    Attributes:
        calls: the calls in work, with what ends each; whoever makes a call puts it in and takes it
            out.
    """

    __slots__ = ("_models", "_session", "calls")

    def __init__(self) -> None:
        self._session: RerankError | None = None
        self._models: dict[str, RerankError] = {}
        self.calls: dict[Judged, Scope] = {}

    @property
    def is_over(self) -> bool:
        """Whether no request at all is worth sending."""
        return self._session is not None

    def of(self, model: str) -> RerankError | None:
        """Why a request for that model is not sent; None where nothing speaks against it.

        An object of its own each time: whoever raises it adds to the traceback of no other.
        """
        error = self._session or self._models.get(model)
        return None if error is None else copy.copy(error)

    def stop(self, error: RerankError, is_connecting: Callable[[Scope], bool]) -> None:
        """End all that is not on the wire, because nobody waits for it any more.

        Args:
            error: what ends it.
            is_connecting: whether what runs in a scope waits for a connection: then it counts as on
                the wire, and nothing of it is.
        """
        self._session = self._session or error
        self._apply(None)
        for other, scope in self.calls.items():
            if other.is_on_the_wire() and is_connecting(scope):
                scope.end("condemned")

    def hear(self, error: RerankError, call: Judged) -> None:
        """Take to heart a final error, and end what it condemns and has not been sent.

        What is on the wire may be answered, and is paid for: it stays, and is not sent again.

        Args:
            error: the error of a request of `call`.
            call: the call that fails by itself.
        """
        what = error.condemns
        if what == "session":
            self._session = self._session or _unsent(error)
        elif what == "model":
            self._models.setdefault(call.model, _unsent(error))
        else:
            return
        self._apply(call)

    def _apply(self, call: Judged | None) -> None:
        """End what is condemned, but for one call that fails by itself."""
        for other, scope in self.calls.items():
            if other.condemned_by is not None:
                continue
            other.condemned_by = self.of(other.model)
            if other.condemned_by is not None and other is not call and not other.is_on_the_wire():
                scope.end("condemned")


def _unsent(error: RerankError) -> RerankError:
    """The error of requests that were not sent: without the frames and the request of the first."""
    unsent = copy.copy(error)
    unsent.context = "not sent: another request was refused in this way"
    return unsent
