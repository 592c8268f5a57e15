"""The errors this package raises, and which of them an HTTP status means.

Each class says whose move it is.
A line belongs here when it names a way to fail; *whether* a failure is worth another attempt is
decided in `_policy`, and foreign exceptions are translated where they arise, in `_transport`.

    RerankError
    ├─ InvalidRequestError (ValueError)      we refused to send it: fix the call
    ├─ TransportError                        no usable response arrived: wait or check the network
    │  ├─ ConnectError
    │  │  └─ CertificateError                the server could not prove who it is: never retried
    │  └─ RequestTimeoutError (TimeoutError)
    ├─ StatusError  .status .message .headers .request_id
    │  ├─ BadRequestError
    │  │  ├─ AuthenticationError (401) · PermissionDeniedError (403) · NotFoundError (404)
    │  │  └─ PayloadTooLargeError (413) · UnprocessableError (422)
    │  ├─ RateLimitError (429)  .retry_after
    │  └─ ServerError (5xx)     .retry_after
    ├─ ResponseError                         it answered, but the answer cannot be trusted
    ├─ DeadlineExceededError (TimeoutError)  the call's own deadline passed
    └─ SessionClosedError
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlsplit

__all__ = [
    "AuthenticationError",
    "BadRequestError",
    "CertificateError",
    "ConnectError",
    "DeadlineExceededError",
    "InvalidRequestError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestTimeoutError",
    "RerankError",
    "ResponseError",
    "ServerError",
    "SessionClosedError",
    "StatusError",
    "TransportError",
    "UnprocessableError",
]


class RerankError(Exception):
    """Every error this package raises on purpose.

    `context` says what was sent where (a URL, a range of indices, a number of bytes and of
    attempts; never the key, never a document), or is None when nothing was sent.
    `budget_exhausted` says that there was no further attempt because the retry budget was used up:
    many requests fail, not this one alone.
    """

    context: str | None = None
    budget_exhausted: bool = False

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.context is None else f"{message} [{self.context}]"


class InvalidRequestError(RerankError, ValueError):
    """The call cannot be sent as it is; the message names the argument and what to do."""


class TransportError(RerankError):
    """No usable response arrived: the connection broke, or what came was not HTTP."""


class ConnectError(TransportError):
    """No connection could be opened: refused, unreachable, or the name did not resolve."""


class CertificateError(ConnectError):
    """The server's TLS certificate was not accepted. Another attempt would not help."""


class RequestTimeoutError(TransportError, TimeoutError):
    """One attempt took longer than `RetryPolicy.attempt_timeout`, or connecting took too long."""


class StatusError(RerankError):
    """The server answered with a status other than 200.

    Attributes:
        status: the HTTP status code.
        message: the server's own words, shortened and without control characters.
        headers: the response's headers; look them up in lower case.
        request_id: the `x-request-id` header, or None when the server sent none.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        # A plain dict, so that an error outlives its response and can be pickled.
        self.headers: Mapping[str, str] = {k.lower(): v for k, v in (headers or {}).items()}

    # What the caller can do, where the class alone says it.
    _move: ClassVar[str] = ""

    def _redirect(self) -> str:
        """Where the server points: the origin alone, the rest may hold a secret."""
        try:
            parts = urlsplit(self.headers.get("location", ""))
            where = f" to {parts.scheme}://{parts.hostname}" if parts.hostname else ""
        except ValueError:
            where = ""
        return f"it redirects{where}, which is not followed: correct base_url"

    @property
    def request_id(self) -> str | None:
        """The id to quote to whoever runs the server, or None."""
        return self.headers.get("x-request-id")

    def __str__(self) -> str:
        shown = f"the server answered {self.status}: {self.message or 'no message'}"
        move = self._redirect() if 300 <= self.status < 400 else self._move
        if move:
            shown += f"; {move}"
        if self.request_id is not None:
            shown += f" (request id {self.request_id})"
        wait = getattr(self, "retry_after", None)
        if wait is not None:
            shown += f" (it asks to wait {wait:g} s)"
        return shown if self.context is None else f"{shown} [{self.context}]"


class BadRequestError(StatusError):
    """A 4xx: the server refuses this request, and would refuse it again."""


class AuthenticationError(BadRequestError):
    """401: the API key is missing or wrong."""

    _move = "check the API key"


class PermissionDeniedError(BadRequestError):
    """403: the key is good, but not for this."""

    _move = "check what the API key may do"


class NotFoundError(BadRequestError):
    """404: no such path or model; check `base_url` and `model`."""

    _move = "check base_url and model"


class PayloadTooLargeError(BadRequestError):
    """413: too many documents or bytes in one request, or one document that is too long.

    Requests of several documents are sent again in smaller ones, unless
    `ChunkLimits(split_refused=False)`; so it is most often a document alone that was too long.
    """

    _move = "shorten the document, or lower ChunkLimits"


class UnprocessableError(BadRequestError):
    """422: the server understood the request and cannot do it."""


class _HintedError(StatusError):
    """A status that may come with a time to wait for; not public, it only shares `retry_after`."""

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 0,
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status=status, headers=headers)
        self.retry_after = retry_after


class RateLimitError(_HintedError):
    """429: too much at once. `retry_after` is the server's hint in seconds, or None."""


class ServerError(_HintedError):
    """5xx: the server failed. `retry_after` is the server's hint in seconds, or None."""


class ResponseError(RerankError):
    """The server answered 200, but the answer cannot be trusted.

    A score missing, doubled, out of range or not a finite number; not JSON; another model than
    the rest of the call.
    Such an answer is asked for again, then raised; it is never handed on.
    `final` marks one that asking again would not better.
    """

    final: bool = False


class DeadlineExceededError(RerankError, TimeoutError):
    """The call's own `timeout` passed, queueing and retries included, or was sure to pass.

    It comes at once where the server asked everybody to wait for longer than the call may take.
    """


class SessionClosedError(RerankError):
    """The session was closed before or during the call."""


_BY_STATUS: dict[int, type[StatusError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    413: PayloadTooLargeError,
    422: UnprocessableError,
    429: RateLimitError,
}


def error_for_status(
    status: int,
    message: str,
    headers: Mapping[str, str],
    retry_after: float | None,
) -> StatusError:
    """The error that a status other than 200 means.

    Args:
        status: the HTTP status code.
        message: the server's words, already made safe to show.
        headers: the response's headers.
        retry_after: seconds to wait by the server's own word, or None.
    """
    kind = _BY_STATUS.get(status)
    if kind is None:
        if 400 <= status < 500:
            kind = BadRequestError
        elif 500 <= status < 600:
            kind = ServerError
        else:
            kind = StatusError
    if issubclass(kind, _HintedError):
        return kind(message, status=status, headers=headers, retry_after=retry_after)
    return kind(message, status=status, headers=headers)
