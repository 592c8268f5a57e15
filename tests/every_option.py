"""A value for each argument of a session: tests follow them to where sessions are made."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from rerank_async import (
    ChunkLimits,
    Concurrency,
    HedgePolicy,
    RateLimit,
    RerankSession,
    RetryPolicy,
    SessionOptions,
)
from rerank_async.testing import HttpRequest, HttpResponse
from tests.support import KEY


@attrs.frozen
class Carrier:
    """A `Transport` that can be pickled, and carries nothing."""

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        raise NotImplementedError

    async def close(self) -> None:
        """There is nothing to close."""


def listen(event: object) -> None:
    """A listener that can be pickled."""


# None of them is the default. A new argument needs a value here, and is then looked for wherever
# options are passed on.
EVERY: dict[str, Any] = {
    "base_url": "http://rerank.test/v1",
    "api_key": KEY,
    "model": "other-model",
    "dialect": "v1",
    "chunks": ChunkLimits(7),
    "concurrency": Concurrency(5),
    "rate": RateLimit(requests_per_minute=60),
    "retry": RetryPolicy(attempts=2),
    "hedge": HedgePolicy(),
    "timeout": 7.5,
    "on_failure": "partial",
    "http": Carrier(),
    "allow_insecure_http": True,
    "allow_unguarded_http": True,
    "on_event": (listen,),
    "seed": 7,
}
NAMES = [field.name for field in attrs.fields(SessionOptions)]


def every(**changes: Any) -> SessionOptions:
    """Options in which nothing but the dialect is as it is by default."""
    return SessionOptions(**EVERY | changes)


def arguments_of_sessions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of all sessions that are made from now on."""
    seen: list[dict[str, Any]] = []
    made = RerankSession.__init__

    def spy(session: RerankSession, base_url: str | None = None, **arguments: Any) -> None:
        seen.append({"base_url": base_url, **arguments})
        made(session, base_url, **arguments)

    monkeypatch.setattr(RerankSession, "__init__", spy)
    return seen
