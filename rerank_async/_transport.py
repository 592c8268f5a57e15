"""aiohttp: carries one exchange, and is the only place that translates aiohttp's errors.

A line belongs here when it knows about connections.
What the bytes mean, whether to try again and how many at once is decided elsewhere.

Three rules of this file, each with its reason:

- A pooled connection on which something arrived unasked is never used again: aiohttp would hand
  that late answer to the next request as its own.
- A connection that the server closed while it lay in the pool costs one immediate second try on a
  fresh connection: the request was never looked at.
- No aiohttp error leaves this file, not even as another's context: the representation of some
  holds the request's headers, and with them the API key.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import ssl
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import (
    BadStatusLine,
    ContentEncodingError,
    HttpProcessingError,
    LineTooLong,
)
from msgspec import Struct
from yarl import URL

from rerank_async._deadline import Scope, Watch
from rerank_async._errors import (
    CertificateError,
    ConnectError,
    InvalidRequestError,
    RequestTimeoutError,
    ResponseError,
    SessionClosedError,
    TransportError,
)
from rerank_async._http import HttpRequest, HttpResponse
from rerank_async._private import Private, hide_frames

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

__all__ = ["AiohttpTransport"]

# Seconds for name look-up, TCP and TLS together; the attempt's own timeout bounds the rest.
_CONNECT_TIMEOUT = 10.0
_ERROR_BODY = 2**16
# aiohttp complains of a larger body of bytes.
_LARGE_BODY = 2**20
_PIECE = 2**16


# Connecting alone is aiohttp's to time, name look-up included; there is no waiting for the pool,
# whose limit is none. The threshold keeps it from rounding up to whole seconds.
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT, ceil_threshold=1e9)


class _Try(Private, Struct, eq=False):
    """What one try on a connection wants and learns.

    `reused` is the pooled connection that it was given, if any.
    `connecting` says whether it asked for a connection of its own that was not opened.
    """

    fresh: bool = False
    reused: _Protocol | None = None
    connecting: bool = False

    def was_stale(self) -> bool:
        """Whether it was given a reused connection on which no byte arrived."""
        return self.reused is not None and not self.reused.touched


_try: ContextVar[_Try | None] = ContextVar("rerank_async_try", default=None)


class _EarlyAnswerError(Exception):
    """A 200 came while the request was still being written."""


class _StaleError(Exception):
    """A reused connection broke before the first byte of an answer."""


class _LargeBody(aiohttp.Payload):
    """A body that is written in pieces, with a turn of the loop for each.

    aiohttp's own for `BytesIO` copies all of it at once to find out how long it is.

    Attributes:
        sent: bytes that were handed to the connection so far.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._size = len(body)
        self.sent = 0

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text; for aiohttp's own use."""
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        """Write all of it."""
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: aiohttp.abc.AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write all of it; its length is known."""
        self.sent = 0
        while self.sent < len(self._value):
            piece = self._value[self.sent : self.sent + _PIECE]
            await writer.write(piece)
            self.sent += len(piece)
            await asyncio.sleep(0)


class _Protocol(ResponseHandler):
    """Notes whether anything arrives on a connection.

    aiohttp's parser swallows what is less than an answer without a trace; this shows it.

    Attributes:
        touched: whether a byte has arrived since the connection was last handed back.
        has_unread: an object that says by its truth whether bytes wait in the kernel; None where it
            cannot be asked.
    """

    touched = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.has_unread = _watch_unread(transport.get_extra_info("socket"), self._loop)
        ResponseHandler.connection_made(self, transport)

    def data_received(self, data: bytes) -> None:
        # aiohttp calls this itself, with nothing, to go on with what it has.
        if data:
            self.touched = True
        ResponseHandler.data_received(self, data)

    def is_quiet(self) -> bool:
        """Whether nothing has arrived: neither read by the event loop nor waiting in the kernel.

        Where `has_unread` is None, what waits in the kernel is not known before `stays_quiet`.
        """
        return not (
            self.touched or self.should_close or (self.has_unread is not None and self.has_unread())
        )

    async def stays_quiet(self) -> bool:
        """Whether nothing has arrived, once the event loop has read what the kernel has for it."""
        # In one turn it hears of what has arrived, in the next it reads it.
        for _ in range(2):
            await asyncio.sleep(0)
        return self.is_connected() and self.is_quiet()


def _watch_unread(sock: Any, loop: asyncio.AbstractEventLoop) -> Callable[[], object] | None:
    """What says at once, by its truth, whether the kernel has something unread; None: nobody can.

    Windows' usual loop has the kernel read ahead for it, so that a look there finds nothing.
    """
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    if sock is None or sock.fileno() < 0 or (proactor and isinstance(loop, proactor)):
        return None
    file = sock.fileno()
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(file, select.POLLIN)
        return partial(poll.poll, 0)
    try:
        select.select((file,), (), (), 0)
    except (ValueError, OSError):
        # Elsewhere than on Windows it takes no file numbered 1,024 or above.
        return None
    return lambda: select.select((file,), (), (), 0)[0]


class _GuardedConnector(aiohttp.TCPConnector):
    """A pool that hands out a connection again only if nothing arrived on it meanwhile.

    It overrides four private names of aiohttp's; tests on the real wire notice when they go.

    Attributes:
        connecting: the tasks of ours for which a connection is being opened.
    """

    connecting: set[asyncio.Task[object]]

    def __init__(self) -> None:
        # Our own limiter stands in front; aiohttp's limit of 100 would be a second, silent one, and
        # the time spent waiting for it would count as the server's.
        super().__init__(limit=0, ttl_dns_cache=30)
        self._watch_new()

    def _watch_new(self) -> None:
        self._factory = cast("partial[ResponseHandler]", partial(_Protocol, loop=self._loop))
        self.connecting = set()

    def _release(
        self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False
    ) -> None:
        if isinstance(protocol, _Protocol) and not should_close:
            protocol.touched = False
        aiohttp.TCPConnector._release(self, key, protocol, should_close=should_close)

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        task, this_try = asyncio.current_task(), _try.get()
        if task is None or this_try is None:
            return await aiohttp.TCPConnector._create_connection(self, req, traces, timeout)
        self.connecting.add(task)
        this_try.connecting = True
        try:
            opened = await aiohttp.TCPConnector._create_connection(self, req, traces, timeout)
        finally:
            self.connecting.discard(task)
        this_try.connecting = False
        return opened

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        this_try = _try.get()
        if this_try is None:
            # A request of whoever lent it to us.
            return await aiohttp.TCPConnector._get(self, key, traces)
        this_try.reused = None
        if this_try.fresh:
            return None
        while (connection := await aiohttp.TCPConnector._get(self, key, traces)) is not None:
            protocol = connection.protocol
            # A protocol of another make was not watched.
            if isinstance(protocol, _Protocol) and protocol.is_quiet():
                try:
                    if protocol.has_unread is not None or await protocol.stays_quiet():
                        this_try.reused = protocol
                        return connection
                except BaseException:
                    connection.close()
                    raise
            connection.close()
        return None


def guard(http: Any) -> bool:
    """Hold the pool of a lent session to the rules at the head of this file.

    The rules are for our own requests; for those of whoever lends it, the pool stays what it was.
    Connections that were opened before are not used by us.

    Args:
        http: what was lent, an `aiohttp.ClientSession` or not.

    Returns:
        False where that is not possible: it is no aiohttp session, or its connector is another
        than aiohttp's plain one for TCP, of which we do not know what it does.
    """
    if not isinstance(http, aiohttp.ClientSession):
        return False
    connector = http.connector
    if type(connector) is aiohttp.TCPConnector:
        # This object alone, once for all who borrow it; aiohttp's own class stays as it is.
        connector.__class__ = _GuardedConnector
        cast(_GuardedConnector, connector)._watch_new()
        return True
    # A session that is closed has none any more, and sends nothing.
    return connector is None or type(connector) is _GuardedConnector


class _NoCookies(aiohttp.DummyCookieJar):
    """Keeps no cookies, and makes no jar of none for every request."""

    _none: SimpleCookie = SimpleCookie()

    def filter_cookies(self, request_url: URL) -> SimpleCookie:
        return self._none


class AiohttpTransport:
    """Exchanges over a pooled `aiohttp.ClientSession`: its own, or one that is lent.

    It must be made and used on one running event loop.
    A lent session is never closed, and brings its own pool, which is to be held to the rules at the
    head of this file before; see `guard`.

    Args:
        borrowed: the session to use instead of an own one.
        headers: the headers that most requests carry; an own session is made with them.
    """

    def __init__(
        self,
        borrowed: aiohttp.ClientSession | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._owns = borrowed is None
        self._added = headers if borrowed is None else None
        self._http = borrowed or aiohttp.ClientSession(
            connector=_GuardedConnector(),
            cookie_jar=_NoCookies(),
            trust_env=False,
            headers=headers,
        )
        # A session sends to one URL: parsed once, then looked up.
        self._urls: dict[str, URL] = {}
        # Of exchanges that have the same time as the first one had, as most have.
        self._watch = Watch(self._loop)
        self._watched: float | None = None
        # Second tries so far, for `Statistics`.
        self.resent = 0

    def is_connecting(self, task: asyncio.Task[object]) -> bool:
        """Whether a task waits for a connection, and nothing of its request was sent."""
        return task in getattr(self._http.connector, "connecting", ())

    async def exchange(
        self, request: HttpRequest, *, body_limit: int, timeout: float | None
    ) -> HttpResponse:
        """Send `request` and return the answer, whatever its status; see `Transport`."""
        this_try = _Try()
        token = _try.set(this_try)
        deadline: float | None = None
        if timeout is not None:
            if self._watched is None:
                self._watched = timeout
            deadline = self._loop.time() + timeout
        watch = self._watch if deadline is not None and timeout == self._watched else None
        # One time for both tries, and ours: aiohttp's timer is entered anew at every wait.
        with Scope(self._loop, deadline, watch) as scope:
            try:
                return await self._exchange(request, body_limit, this_try, scope)
            except _StaleError:
                # The pooled connection was already dead. Once more, on one that cannot be.
                self.resent += 1
                this_try.fresh, this_try.reused = True, None
                return await self._exchange(request, body_limit, this_try, scope)
            finally:
                _try.reset(token)
        # Of a lent pool it is not known, as below.
        reached = not (self._owns and this_try.connecting)
        what = "answer" if reached else "connection"
        error = RequestTimeoutError(f"no {what} within the attempt_timeout of {timeout} s")
        error.reached = reached
        raise error

    async def _exchange(
        self, request: HttpRequest, body_limit: int, this_try: _Try, scope: Scope
    ) -> HttpResponse:
        url = self._urls.get(request.url)
        if url is None:
            url = self._urls[request.url] = URL(request.url)
        # The body has no name: a traceback would show it.
        size = len(request.body)
        large = None if size <= _LARGE_BODY else _LargeBody(request.body)
        response: aiohttp.ClientResponse | None = None
        payload: bytes | None
        failure: Exception
        try:
            response = await self._http.request(
                request.method,
                url,
                data=request.body if large is None else large,
                headers=None if request.headers is self._added else request.headers,
                allow_redirects=False,
                raise_for_status=False,
                timeout=_TIMEOUT,
            )
            if response.status != 200:
                payload = await _read_start(response, body_limit)
            elif large is not None and large.sent < size:
                # Not the ranking of what it has not seen: a late answer to another request.
                raise _EarlyAnswerError
            else:
                payload = await _read(response, body_limit)
            if payload is None:
                failure = _too_long(body_limit)
            elif (
                payload[:1] != b"{"
                and response.status == 200
                and (unread := _encoded(response, payload)) is not None
            ):
                failure = unread
            else:
                return HttpResponse(response.status, response.headers, payload)
        except _EarlyAnswerError:
            failure = TransportError("an answer came before the request was sent whole")
        except asyncio.CancelledError as error:
            if response is not None:
                response.close()
            if scope.is_cancelled():
                hide_frames(error)
                raise
            # Nobody cancelled this task: something that the exchange waited for was cancelled, a
            # name look-up of a lent session that is being closed, say.
            failure = TransportError("the exchange was cancelled from outside")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = _translated(error)
            if isinstance(failure, RequestTimeoutError):
                # A lent pool may have been full, with the server at work on what filled it.
                failure.reached = not self._owns
            if _broke(error) and this_try.was_stale():
                failure = _StaleError()
        except BaseException as error:
            if response is not None:
                response.close()
            if not (isinstance(error, RuntimeError) and self._http.closed):
                raise
            failure = SessionClosedError("the aiohttp session is closed: lend one that is open")
        if response is not None:
            response.close()
            # Its representation shows headers, in which a server may quote the key.
            del response
        # Raised out here so that the error does not carry aiohttp's along as its context.
        raise failure

    async def close(self) -> None:
        """Close the pool if it is ours. May be called twice."""
        self._watch.close()
        if self._owns:
            await self._http.close()


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """The body, or None where it is longer than `limit`."""
    content = response.content
    if content.is_eof() and response.connection is None:
        # It came whole, together with its head, as short answers do. What is read now was held in
        # memory before; and as the request was sent whole, the connection is in the pool again.
        body = content.read_nowait()
        return body if len(body) <= limit else None
    length = response.content_length
    if length is not None and length > limit:
        return None
    if length is not None and "Content-Encoding" not in response.headers:
        return await response.read()
    # Neither an answer of unknown length nor a compressed one can be trusted with our memory.
    pieces = bytearray()
    async for piece in response.content.iter_any():
        pieces += piece
        if len(pieces) > limit:
            return None
    return bytes(pieces)


async def _read_start(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The first 64 KiB of an error's body: enough for its words.

    The rest is read and dropped, up to `limit`, so that the connection can be used again.
    """
    start = bytearray()
    length = 0
    try:
        async for piece in response.content.iter_any():
            start += piece[: _ERROR_BODY - len(start)]
            length += len(piece)
            if length > limit:
                response.close()
                break
    except aiohttp.ClientPayloadError as error:
        # The status says enough, where the words cannot be decoded.
        if not any(isinstance(cause, ContentEncodingError) for cause in _causes(error)):
            raise
        response.close()
    return bytes(start)


def _too_long(limit: int) -> ResponseError:
    error = ResponseError(f"the answer is longer than {limit:,} bytes, more than it can need")
    error.final = True
    return error


def _broke(error: Exception) -> bool:
    """Whether a connection that was open broke, as one that lay in the pool for too long does."""
    return isinstance(
        error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
    ) and not isinstance(error, aiohttp.ClientConnectorError)


# What OpenSSL says, by its version, where it is answered in something else than TLS.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO", "RECORD_LAYER_FAILURE")
# Parts of what OpenSSL says where the two sides would not agree the next time either, with what
# that means.
_DISAGREEMENTS = (
    (
        ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "VERSION_TOO_", "NO_PROTOCOLS"),
        "the server and this machine allow no version of TLS in common",
    ),
    (
        (
            *("ALERT_CERTIFICATE", "ALERT_BAD_CERTIFICATE", "ALERT_NO_CERTIFICATE"),
            *("ALERT_UNSUPPORTED_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_ACCESS_DENIED"),
        ),
        "the server asks for a client certificate that it trusts: lend an aiohttp session whose "
        "TLS context has one",
    ),
    (
        (
            *("HANDSHAKE_FAILURE", "INSUFFICIENT_SECURITY", "NO_SHARED_CIPHER", "NO_CIPHERS"),
            *("KEY_TOO_SMALL", "MD_TOO_WEAK", "LEGACY_RENEGOTIATION"),
        ),
        "the server and this machine allow no cipher in common, or the server asks for a client "
        "certificate: lend an aiohttp session with another TLS context",
    ),
    (("UNRECOGNIZED_NAME",), "the server does not know this host's name: check base_url"),
)
# The beginnings of what other protocols say first, as Python writes bytes, with what they are.
_PROTOCOLS = (
    ("\\x15\\x03", "TLS: does the server speak https:// and not http://?"),
    ("SSH-", "SSH: check the port in base_url"),
    ("220", "a mail or FTP server: check the port in base_url"),
    ("\\x00\\x00", "HTTP/2 alone: the client speaks HTTP/1.1"),
    # Some releases of aiohttp show nothing from the first zero byte on.
    ("'", "HTTP/2 alone: the client speaks HTTP/1.1"),
)
# Of the proxy's refusals to open a connection, those that may pass.
_PASSING = (408, 425, 429)


def _causes(error: BaseException) -> list[BaseException]:
    """The error, and what aiohttp says that it came from."""
    found = [error]
    while found[-1].__cause__ is not None and len(found) < 9:
        found.append(found[-1].__cause__)
    return found


def _translated(error: Exception) -> Exception:
    """The error of ours that an aiohttp error means. Its own words are used where they are safe.

    The order matters: aiohttp's timeouts are both `ClientError` and `TimeoutError`, and its
    certificate errors are `ClientOSError` too.
    """
    if isinstance(error, TimeoutError):
        return RequestTimeoutError(f"no connection within {_CONNECT_TIMEOUT:g} s")
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError)):
        reason = getattr(error, "certificate_error", error)
        return CertificateError(
            f"the server's TLS certificate was not accepted: {_words_of_error(reason)}; "
            "check base_url, or the certificate authorities that this machine trusts"
        )
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return CertificateError("the server's TLS certificate has another fingerprint")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ConnectError(f"the host's name did not resolve: {_words_of_error(error.os_error)}")
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, aiohttp.ClientError):
            return _of_tls(cause, connecting=isinstance(error, aiohttp.ClientConnectorError))
        if isinstance(cause, ContentEncodingError):
            return _undecodable(cause)
    if isinstance(error, aiohttp.ClientConnectorError):
        proxy = " to the proxy" if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        return ConnectError(f"could not connect{proxy}: {_words_of_error(error.os_error)}")
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return TransportError("the server closed the connection without an answer")
    if isinstance(error, aiohttp.ClientPayloadError):
        return TransportError("the answer broke off before its end")
    if isinstance(error, aiohttp.ClientResponseError):
        return _of_response(error)
    if isinstance(error, aiohttp.InvalidURL):
        # Ours was read when the session was made: it is one that came on the way, a proxy's say.
        return TransportError(
            f"aiohttp met a URL that is none ({type(error).__name__})"
        ).condemning("session")
    if isinstance(error, ValueError):
        # Before anything was sent: aiohttp, or the session that was lent, refuses the request.
        return InvalidRequestError(
            f"aiohttp refused to send the request ({type(error).__name__}): check what the "
            "borrowed session adds to it"
        )
    if isinstance(error, OSError):
        return TransportError(f"the connection broke: {_words_of_error(error)}")
    return TransportError(f"the exchange failed ({type(error).__name__})")


def _of_tls(error: ssl.SSLError, *, connecting: bool) -> TransportError:
    """What a failure of TLS means; alerts about certificates come after connecting, too."""
    reason = error.reason or ""
    said = f"could not connect: {_words_of_error(error)}"
    if connecting and any(part in reason for part in _NOT_TLS):
        hint = "does the server speak http:// and not https://?"
        return ConnectError(f"{said}; {hint}").condemning("session")
    for parts, meaning in _DISAGREEMENTS:
        if any(part in reason for part in parts):
            return ConnectError(f"{said}; {meaning}").condemning("session")
    return (
        ConnectError(said) if connecting else TransportError(f"TLS broke: {_words_of_error(error)}")
    )


def _of_response(error: aiohttp.ClientResponseError) -> TransportError:
    """What an answer means that aiohttp did not hand over.

    Only its kind is shown: `message` quotes what the server sent, `repr` our headers.
    """
    if isinstance(error, aiohttp.ClientHttpProxyError):
        refused = ConnectError(
            f"the proxy answered {error.status} when it was asked to connect to the server"
            + ("; it wants other credentials" if error.status == 407 else "")
        )
        final = error.status < 500 and error.status not in _PASSING
        return refused.condemning("session") if final else refused
    cause = _causes(error)[-1]
    if isinstance(cause, LineTooLong) or "Too many headers" in str(cause):
        return TransportError(
            "the head of the answer is longer than aiohttp reads: a line, or the number of its "
            "fields"
        ).condemning("request")
    if isinstance(cause, BadStatusLine):
        begins = re.search(r"b?['\"](.*)", str(cause))
        for first, what in _PROTOCOLS:
            if begins is not None and begins[1].startswith(first):
                return TransportError(
                    f"what came back is not HTTP, it looks like {what}"
                ).condemning("session")
        return TransportError("what came back is not HTTP: it begins with no status line")
    if isinstance(cause, HttpProcessingError):
        return TransportError(f"what came back is not valid HTTP ({type(cause).__name__})")
    raised = TransportError(
        f"the borrowed session raised {type(error).__name__} for an answer of status {error.status}"
    )
    final = error.status < 500 and error.status not in _PASSING
    return raised.condemning("request") if final else raised


# ── encodings ──

# Names that are safe to show: any other word may be the key, quoted.
_ENCODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress", "aws-chunked")
_PACKAGES = {"br": "Brotli", "zstd": "backports.zstd"}


def _undecodable(error: ContentEncodingError) -> ResponseError:
    said = str(error)
    for name, package in _PACKAGES.items():
        if f"({name})" in said:
            return ResponseError(
                f"the answer is compressed as {name}, which aiohttp undoes only with the package "
                f"{package}: install it, or have the server send what it was asked for"
            ).condemning("session")
    name = next((name for name in _ENCODINGS if name in said.split()), "its Content-Encoding says")
    return ResponseError(
        f"the answer is not compressed as {name}, which its head says, or it was damaged"
    ).condemning("request")


def _encoded(response: aiohttp.ClientResponse, body: bytes) -> ResponseError | None:
    """Why a body cannot be read that does not look like JSON, where its encoding is the reason."""
    names = response.headers.get("Content-Encoding", "").lower().replace(" ", "").split(",")
    known = names[0] if names[0] in _ENCODINGS else "something unknown here"
    if len(names) == 1 and names[0] in ("gzip", "deflate", "br", "zstd"):
        # aiohttp has undone it, unless a lent session tells it not to.
        if body[:2] != b"\x1f\x8b":
            return None
    elif names in ([""], ["identity"]) or body.lstrip()[:1] in (b"{", b"["):
        return None
    elif len(names) > 1:
        known = "more than one thing"
    return ResponseError(
        f"the answer is compressed as {known}, which was not undone: have the server send it "
        "as gzip or as it is"
    ).condemning("session")


def _words_of_error(error: Any) -> str:
    if isinstance(error, ssl.SSLError):
        # Its number is not the system's: 1 would be "Operation not permitted".
        said = getattr(error, "verify_message", None)
        return str(said or (error.reason or "").replace("_", " ").lower() or type(error).__name__)
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        # The system's own words: asyncio's repeat the address instead.
        return os.strerror(number)
    return getattr(error, "strerror", None) or type(error).__name__
