"""The narrow waist: one HTTP exchange as two frozen values of bytes, and who carries it.

Everything above decides what the bytes are, everything below carries them.
A line belongs here only when both a client and a server need it to speak of an exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen

__all__ = ["HttpRequest", "HttpResponse", "Transport"]


@frozen
class HttpRequest:
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
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@frozen
class HttpResponse:
    """What comes back.

    Attributes:
        status: the status code.
        headers: looked up in lower case; a plain dict must have lower-case names.
        body: the payload, content encodings undone.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Transport(Protocol):
    """Carries one exchange; `RerankSession` accepts any object of this shape as `http`."""

    async def exchange(self, request: HttpRequest, *, body_limit: int) -> HttpResponse:
        """Send `request` and return the answer, whatever its status.

        Args:
            request: what to send.
            body_limit: the most bytes of body, content encodings undone, to accept.

        Raises:
            TransportError: no usable response arrived.
            ResponseError: the body is longer than `body_limit`.
        """
        ...

    async def close(self) -> None:
        """Let go of whatever this transport opened. May be called twice."""
        ...
