"""The narrow waist: one HTTP exchange as two frozen values of bytes, and who carries it.

Everything above decides what the bytes are, everything below carries them.
The values are msgspec structs: as frozen as attrs makes them, and made in a sixth of the time.
A line belongs here only when both a client and a server need it to speak of an exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

__all__ = ["HttpRequest", "HttpResponse", "Transport"]


class HttpRequest(Struct, frozen=True):
    """What goes out.

    Attributes:
        method: in capitals.
        url: absolute for a client; for a server the path alone is read.
        headers: as they are to be written; a server's side looks them up in lower case.
        body: the payload, exactly as on the wire.

    Headers and body stay out of the representation: they hold a key and other people's documents.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method} {self.url}, {len(self.body):,} bytes>"


class HttpResponse(Struct, frozen=True):
    """What comes back.

    Attributes:
        status: the status code.
        headers: looked up in lower case; a plain dict must have lower-case names.
        body: the payload, content encodings undone.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"<HttpResponse {self.status}, {len(self.body):,} bytes>"


class Transport(Protocol):
    """Carries one exchange; `RerankSession` accepts any object of this shape as `http`."""

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        """Send `request` and return the answer, whatever its status.

        Args:
            request: what to send.
            body_limit: the most bytes of body, content encodings undone, to accept.
            timeout: seconds for the whole exchange, connecting included; None means no limit.

        Raises:
            RequestTimeoutError: `timeout` passed.
            TransportError: no usable response arrived.
            ResponseError: the body is longer than `body_limit`.
        """
        ...

    async def close(self) -> None:
        """Let go of whatever this transport opened. May be called twice."""
        ...
