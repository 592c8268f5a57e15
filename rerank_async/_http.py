"""The narrow waist: one HTTP exchange as two frozen values of bytes, and who carries it.

Everything above decides what the bytes are, everything below carries them.
The values are plain classes: of a struct, or a class of attrs, any serialiser finds the fields.
A line belongs here only when both a client and a server need it to speak of an exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, Self

__all__ = ["HttpRequest", "HttpResponse", "Transport"]


class _Frozen:
    """A value whose attributes are set once, and shown nowhere.

    Its slots are filled while it is of a class that allows it, and then it becomes what it is: to
    fill them past a `__setattr__` that refuses takes twice as long.
    """

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be deleted")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} may hold an API key, and is not pickled")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


_new: Callable[..., Any] = object.__new__


class _OpenRequest:
    __slots__ = ("body", "headers", "method", "url")

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


class _OpenResponse:
    __slots__ = ("body", "headers", "status")

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpRequest(_Frozen, _OpenRequest):
    """What goes out.

    Attributes:
        method: the method, in capitals.
        url: absolute for a client; for a server the path alone is read.
        headers: the headers as they are to be written; a server's side looks them up in lower case.
        body: the payload, exactly as on the wire.

    Headers and body stay out of the representation: they hold a key and other people's documents.
    """

    __slots__ = ()

    def __new__(cls, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Self:
        self: Self = _new(_OpenRequest)
        self.method, self.url, self.headers, self.body = method, url, headers, body
        self.__class__ = cls
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HttpRequest):
            return NotImplemented
        return (self.method, self.url, self.headers, self.body) == (
            other.method,
            other.url,
            other.headers,
            other.body,
        )

    def __hash__(self) -> int:
        return hash((self.method, self.url, self.body))

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method} {self.url}, {len(self.body):,} bytes>"


class HttpResponse(_Frozen, _OpenResponse):
    """What comes back.

    Attributes:
        status: the status code.
        headers: the headers, looked up in lower case; a plain dict must have lower-case names.
        body: the payload, content encodings undone.
    """

    __slots__ = ()

    def __new__(cls, status: int, headers: Mapping[str, str], body: bytes) -> Self:
        self: Self = _new(_OpenResponse)
        self.status, self.headers, self.body = status, headers, body
        self.__class__ = cls
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HttpResponse):
            return NotImplemented
        return (self.status, self.headers, self.body) == (other.status, other.headers, other.body)

    def __hash__(self) -> int:
        return hash((self.status, self.body))

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
