"""The errors this package raises, and which of them an HTTP status means.

Each class says whose move it is, and each error how much beyond itself it decides (`condemns`).
A line belongs here when it names a way to fail; *whether* a failure is worth another attempt is
decided in `_policy`, and foreign exceptions are translated where they arise, in `_transport`.

    RerankError  .condemns .retry_after .context .budget_exhausted
    ├─ InvalidRequestError (ValueError)      we refused to send it: fix the call
    ├─ TransportError                        no usable response arrived: wait or check the network
    │  ├─ ConnectError
    │  │  └─ CertificateError                the server could not prove who it is: never retried
    │  └─ RequestTimeoutError (TimeoutError)
    ├─ StatusError  .status .message .code .param .headers .request_id
    │  ├─ BadRequestError
    │  │  ├─ AuthenticationError (401) · PermissionDeniedError (403) · NotFoundError (404)
    │  │  └─ PayloadTooLargeError (413) · UnprocessableError (422)
    │  ├─ RateLimitError (429)
    │  └─ ServerError (5xx)
    ├─ ResponseError                         it answered, but the answer cannot be trusted
    ├─ DeadlineExceededError (TimeoutError)  the call's own deadline passed
    ├─ StoppedError                          rerank_many was asked to stop: ask again later
    └─ SessionClosedError
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeAlias
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from rerank_async._condemned import Condemned

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
    "StoppedError",
    "TransportError",
    "UnprocessableError",
]


# What a server's failure is about, where its dialect knows it.
Meaning: TypeAlias = Literal[
    "too_many", "too_long", "bad_request", "wrong_key", "no_model", "used_up", "busy", "passing"
]


class RerankError(Exception):
    """Every error this package raises on purpose.

    Attributes:
        condemns: the part of the work that would fail in the same way if it were sent; see below.
        retry_after: the server's hint in seconds after which to come back, or None.
        context: what was sent where (a URL, a range of indices, a number of bytes and of attempts;
            never the key, never a document), or None when nothing was sent.
        budget_exhausted: whether there was no further attempt because the retry budget was used up:
            many requests fail, not this one alone.

    An error condemns one of these:

    - None: nothing. What failed may pass by itself.
    - "request": the same request. It would fail again; another one may not.
    - "model": every request for the same model.
    - "session": every request of the session, whatever it asks for: the key, the path, the dialect
      or the quota is the reason, or the session is closed.
    """

    retry_after: float | None = None
    context: str | None = None
    budget_exhausted: bool = False
    # What the class alone says.
    _condemns: Condemned | None = None

    @property
    def condemns(self) -> Condemned | None:
        """How much would fail in the same way if it were sent; None means nothing."""
        return self._condemns

    def condemning(self, what: Condemned) -> Self:
        """Mark it as condemning `what`, which no further attempt would better; returns itself."""
        self._condemns = what
        return self

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.context is None else f"{message} [{self.context}]"


class InvalidRequestError(RerankError, ValueError):
    """The call cannot be sent as it is; the message names the argument and what to do."""

    _condemns = "request"


class TransportError(RerankError):
    """No usable response arrived: the connection broke, or what came was not HTTP.

    Attributes:
        reached: whether the attempt may have come as far as the server; False where it is known
            that no connection was opened.
    """

    reached: bool = True


class ConnectError(TransportError):
    """No connection could be opened: refused, unreachable, or the name did not resolve."""

    reached = False


class CertificateError(ConnectError):
    """The server's TLS certificate was not accepted. Another attempt would not help."""

    _condemns = "session"


class RequestTimeoutError(TransportError, TimeoutError):
    """One attempt took longer than `RetryPolicy.attempt_timeout`, or connecting took too long."""


class StatusError(RerankError):
    """The server answered with a status other than 200.

    Attributes:
        status: the HTTP status code.
        message: the server's own words, shortened and without control characters.
        code: the server's word for programs, such as "model_not_found", or None.
        param: the field of the request that the server names, such as "model", or None.
        headers: the response's headers; look them up in lower case.
        means: what the dialect knows the failure to be about, whatever its status; None where the
            status and the words have to say it.
        request_id: the `x-request-id` header, or None when the server sent none.
    """

    means: Meaning | None = None

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 0,
        headers: Mapping[str, str] | None = None,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
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
    def condemns(self) -> Condemned | None:
        """How much would fail in the same way: the dialect says it, or the status and the words."""
        if self.means is not None:
            return _CONDEMNED_BY[self.means]
        # Not at the head of the file: its patterns take milliseconds to import
        # (`benchmarks/importing.py`), and most processes that import this package never see a
        # refusal.
        from rerank_async._condemned import condemned

        return condemned(self.status, self.message, self.code, self.param, self.retry_after)

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
        if self.retry_after is not None:
            shown += f" (it asks to wait {self.retry_after:g} s)"
        return shown if self.context is None else f"{shown} [{self.context}]"


class BadRequestError(StatusError):
    """A 4xx: the server refuses this request, and would refuse it again."""


class AuthenticationError(BadRequestError):
    """401: the API key is missing or wrong."""

    _move = "check the API key"


class PermissionDeniedError(BadRequestError):
    """403: the key is good, but not for this: for this model, if the server names it."""

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
    """A status that may come with a time to wait for; not public, it only takes `retry_after`."""

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 0,
        headers: Mapping[str, str] | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status=status, headers=headers, code=code, param=param)
        self.retry_after = retry_after


class RateLimitError(_HintedError):
    """429: too much at once, or the quota is used up; then it condemns the session.

    `retry_after` is the server's hint in seconds, or None.
    """


class ServerError(_HintedError):
    """5xx: the server failed. `retry_after` is the server's hint in seconds, or None."""


class ResponseError(RerankError):
    """The server answered 200, but the answer cannot be trusted.

    A score missing, doubled, out of range or not a finite number; not JSON; another model than
    the rest of the call.
    Such an answer is asked for again, then raised; it is never handed on.
    One that is whole, and in the shape of another kind of server, is not asked for again.
    `final` marks one that asking again would not better; if no other request would fare better
    either, `condemns` says so.
    `omits_blanks` marks one that left out blank documents, where the others may be asked for
    without them.
    """

    final: bool = False
    omits_blanks: bool = False

    def condemning(self, what: Condemned) -> Self:
        """Mark it as final and as condemning `what`; returns itself."""
        self.final = True
        return super().condemning(what)


class DeadlineExceededError(RerankError, TimeoutError):
    """The call's own `timeout` passed, queueing and retries included, or was sure to pass.

    It comes at once where the server asked everybody to wait for longer than the call may take.
    """


class StoppedError(RerankError):
    """`rerank_many` was asked to stop before this request was on the wire."""


class SessionClosedError(RerankError):
    """The session was closed before or during the call."""

    _condemns = "session"


_CONDEMNED_BY: dict[Meaning, Condemned | None] = {
    "too_many": "request",
    "too_long": "request",
    "bad_request": "request",
    "wrong_key": "session",
    "no_model": "model",
    "used_up": "session",
    "busy": None,
    "passing": None,
}
_BY_MEANING: dict[Meaning, type[StatusError]] = {
    "too_many": PayloadTooLargeError,
    "too_long": PayloadTooLargeError,
    "bad_request": BadRequestError,
    "wrong_key": AuthenticationError,
    "no_model": NotFoundError,
    "used_up": RateLimitError,
    "busy": RateLimitError,
    "passing": ServerError,
}
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
    *,
    code: str | None = None,
    param: str | None = None,
    means: Meaning | None = None,
) -> StatusError:
    """The error that a refusal or a failure of the server means.

    Args:
        status: the HTTP status code.
        message: the server's words, already made safe to show.
        headers: the response's headers.
        retry_after: seconds to wait by the server's own word, or None.
        code: the server's word for programs, made safe to show, or None.
        param: the field of the request that the server names, made safe to show, or None.
        means: what the dialect knows it to be about; None leaves it to the status.
    """
    kind = _BY_STATUS.get(status) if means is None else _BY_MEANING[means]
    if kind is None:
        if 400 <= status < 500:
            kind = BadRequestError
        elif 500 <= status < 600:
            kind = ServerError
        else:
            kind = StatusError
    error = kind(message, status=status, headers=headers, code=code, param=param)
    if issubclass(kind, _HintedError):
        error.retry_after = retry_after
    error.means = means
    return error
