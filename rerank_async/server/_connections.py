"""aiohttp's side of a connection: heads are judged as they arrive, and time and places are limited.

aiohttp parses, calls a handler and writes. It is overruled in three things: a body that nobody is
going to read is thrown away as it comes; a malformed request is one line in the log, without what
it said; and whoever takes too long has to go. That needs a few private names of aiohttp's
(`_messages`, `_upgraded`, `_make_error_handler`); tests on the real wire fail when an upgrade
stops using them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from itertools import islice
from typing import Any, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage

from rerank_async._http import HttpRequest, HttpResponse
from rerank_async.server._limits import Limits
from rerank_async.server._places import LineLimit, Phase, Places

__all__ = ["Connection", "Doors", "House"]

log = logging.getLogger("rerank_async.server")

# A head is parsed in pieces of this size, so that no more than this of a body comes with it.
_PIECE = 4096

_MOST_TARGET = 8 * 1024
_MOST_FIELD = 16 * 1024
_MOST_HEAD = 32 * 1024
_MOST_FIELDS = 100

# Seconds in which a refused client may stop sending before it is cut off.
_LEAVING = 5.0

# LineLimit about malformed requests in so many seconds.
_LINES, _PERIOD = 50, 10.0

SERVER = "rerank_async"


class House(Protocol):
    """What the doors ask of whoever answers."""

    def judge(self, head: HttpRequest, *, crowded: bool) -> HttpResponse | None:
        """The answer, if the head decides it; None when the body is to be read."""
        ...

    def refuse(self, status: int, message: str, code: str) -> HttpResponse:
        """The answer to what is no request."""
        ...

    async def carry(self, incoming: web.BaseRequest) -> web.StreamResponse:
        """Answer a request whose head was judged."""
        ...


class Connection(web.RequestHandler):
    """One connection.

    Attributes:
        deaf: whether what still comes is thrown away; the answer that is due is the last one.
    """

    __slots__ = ("_arriving", "_crowded", "_doors", "_head_bytes", "_judged", "_wire", "deaf")

    def __init__(self, doors: Doors, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            # Refused bodies are dealt with here.
            lingering_time=0.0,
            access_log=cast("logging.Logger", None),
            auto_decompress=False,
            max_line_size=_MOST_TARGET,
            max_field_size=_MOST_FIELD,
            max_headers=_MOST_FIELDS,
        )
        self._doors = doors
        self._judged: deque[tuple[HttpRequest, HttpResponse | None]] = deque()
        self._arriving: StreamReader | None = None
        self._head_bytes = 0
        self._crowded = False
        # aiohttp forgets its transport when it begins to close it, which may take for ever.
        self._wire: asyncio.Transport | None = None
        self.deaf = False

    # ── what asyncio calls ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)
        super().connection_made(transport)
        self._crowded = not self._doors.let_in(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        self._doors.places.leave(self)
        super().connection_lost(exc)
        self._doors.changed()

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        if data and self._doors.places.phase(self) is Phase.IDLE:
            self._doors.enter(self, Phase.HEAD)
        while len(data) > _PIECE and not self._body_is_due() and not self.deaf:
            self._parse(data[:_PIECE])
            data = data[_PIECE:]
        if not self.deaf:
            # Also with nothing: so aiohttp goes on with what it had put aside.
            self._parse(data)

    @property
    def is_connected(self) -> bool:
        """Whether asyncio has not called `connection_lost` yet."""
        return self._wire is not None

    def descriptor(self) -> int:
        """The number of its socket; -1 where it has none."""
        sock = None if self._wire is None else self._wire.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    # ── heads ──

    def _body_is_due(self) -> bool:
        return self._arriving is not None and not self._arriving.is_eof()

    def _parse(self, data: bytes) -> None:
        """Let aiohttp parse `data`, and judge the heads that were completed by it."""
        in_body = self._body_is_due()
        known = len(self._messages)
        super().data_received(data)
        new = list(islice(self._messages, known, None))
        for message, payload in new:
            if self.deaf:
                break
            self._judge(message, payload)
        if new or in_body:
            self._head_bytes = 0
        else:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD:
                self.hang_up(431, f"the head has more than {_MOST_HEAD:,} bytes", "head_too_large")
        if self._upgraded:
            # Nothing but HTTP is spoken here, so what follows is for nobody.
            self.deaf = True

    def _judge(self, message: object, payload: StreamReader) -> None:
        """Decide what becomes of a request by its head; nothing waits, so no body piles up."""
        self._head_bytes = 0
        if not isinstance(message, RawRequestMessage):
            self._refuse_malformed(getattr(message, "exc", None))
            return
        head, trouble = _head_of(message)
        verdict: HttpResponse | None
        if trouble is None:
            crowded = self._crowded and self._doors.places.full
            verdict = self._doors.house.judge(head, crowded=crowded)
        else:
            self._doors.note_malformed(self.peername, trouble)
            verdict = self._doors.house.refuse(400, trouble, "malformed_request")
        self._judged.append((head, verdict))
        self.deaf = trouble is not None or (verdict is not None and not payload.is_eof())
        if verdict is None:
            self._arriving = payload
        self._doors.enter(self, Phase.WORK)

    def _refuse_malformed(self, error: BaseException | None) -> None:
        self.deaf = True
        status, message, code = _what_is_wrong(error)
        self._doors.note_malformed(self.peername, message)
        arriving = self._arriving
        if arriving is not None and not arriving.is_eof():
            # It is the body of the request in work that is malformed; its handler answers.
            arriving.set_exception(web.RequestPayloadError(message))
            return
        refusal = self._doors.house.refuse(status, message, code)
        self._judged.append((HttpRequest("UNKNOWN", "/", {}), refusal))
        self._doors.enter(self, Phase.WORK)

    # ── what the handler calls ──

    def next_request(self) -> tuple[HttpRequest, HttpResponse | None]:
        """The head that is to be answered now, and what was decided about it."""
        self._doors.enter(self, Phase.WORK)
        return self._judged.popleft()

    def deafen(self) -> None:
        """Throw away what still comes of a body; the answer is the last one."""
        self.deaf = True
        arriving = self._arriving
        if arriving is not None and arriving.exception() is None:
            arriving.read_nowait()
        if self._wire is not None and not self._wire.is_closing():
            # Flow control may have stopped it, and nobody reads from it any more.
            self._wire.resume_reading()

    async def send(self, incoming: web.BaseRequest, response: web.StreamResponse) -> None:
        """Write an answer, and see the client off where it was the last one.

        Raises:
            ConnectionError: the client does not take it, or has gone.
        """
        # What was judged before it stopped listening is still answered.
        last = self.deaf and not self._judged
        if last or self._crowded or self._doors.closing:
            response.force_close()
        response.headers["Server"] = SERVER
        try:
            async with asyncio.timeout(self._doors.limits.write):
                await response.prepare(incoming)
                await response.write_eof()
        except TimeoutError:
            self.cut()
            raise ConnectionResetError("the client does not take its answer") from None
        if last:
            await self._see_off()
        elif not response.keep_alive:
            self._doors.enter(self, Phase.LAST)
        elif not self._judged:
            self._doors.enter(self, Phase.HEAD if self._head_bytes else Phase.IDLE)

    async def _see_off(self) -> None:
        """Wait until the client stops sending, for a while.

        If the connection were closed while it sends, the system would answer with a reset, and
        the client might not get to see what it was told.
        """
        self._say_no_more()
        # Until the end of the connection cancels it.
        await asyncio.get_running_loop().create_future()

    def _say_no_more(self) -> None:
        self.deaf = True
        wire = self._wire
        if wire is not None and not wire.is_closing():
            self._doors.enter(self, Phase.LEAVING)
            if wire.can_write_eof():
                wire.write_eof()

    def hang_up(self, status: int, message: str, code: str) -> None:
        """Answer a head that is not complete, and never will be."""
        wire = self._wire
        if wire is None or self._judged or self._request_in_progress:
            # It stands behind a request that is still to be answered.
            self.deaf = True
            return
        if status != 408:
            self._doors.note_malformed(self.peername, message)
        wire.write(_plain(self._doors.house.refuse(status, message, code)))
        self._say_no_more()

    def overdue(self, phase: Phase | None) -> None:
        """The time for `phase` is up."""
        if phase is Phase.HEAD and self._head_bytes:
            self.hang_up(408, "the head of the request did not arrive in time", "timeout")
        else:
            self.cut()

    def cut(self) -> None:
        """End the connection now, whatever is still to be written."""
        self.deaf = True
        if self._wire is not None:
            self._wire.abort()

    # ── what aiohttp calls ──

    def _make_error_handler(self, err_info: Any) -> Callable[..., Coroutine[Any, Any, Any]]:
        # What is malformed was judged like everything else.
        return cast("Callable[..., Coroutine[Any, Any, Any]]", self._doors.house.carry)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A handler failed, which is a fault of ours: no word of it goes out."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionResetError("there is nobody left to answer, or no way to")
        self.log_exception(type(exc).__name__)
        response = web_response(self._doors.house.refuse(500, "internal error", "internal_error"))
        response.force_close()
        return response

    def log_exception(self, *args: object, **kw: object) -> None:
        """One line, without the request and without a traceback, which might quote it."""
        log.error("a request failed: %.200s", args[0] if args else "unknown")


class Doors:
    """All connections: who comes in, who has to go, and what is said about it.

    Args:
        house: the object that answers.
        limits: what is put up with.
        highest: the highest descriptor that a connection may have; None is no limit.
    """

    def __init__(self, house: House, limits: Limits, highest: int | None) -> None:
        self.house = house
        self.limits = limits
        self.closing = False
        self.places: Places[Connection] = Places(
            limits.connections,
            {
                Phase.HEAD: limits.head,
                Phase.IDLE: limits.idle,
                Phase.LEAVING: _LEAVING,
                Phase.LAST: limits.write,
            },
        )
        self._highest = highest
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.TimerHandle | None = None
        self._look_at = 0.0
        self._lines = LineLimit(_LINES, _PERIOD)
        self._summary: asyncio.TimerHandle | None = None
        self._quiet = asyncio.Event()
        # Handlers end when their client hangs up: nobody waits for that answer any more.
        self.server = _Server(self, self._carry)

    async def _carry(self, incoming: web.BaseRequest) -> web.StreamResponse:
        return await self.house.carry(incoming)

    # ── places ──

    def let_in(self, newcomer: Connection) -> bool:
        """Make room for `newcomer`; False where there is none, and it may ask for little only."""
        self.enter(newcomer, Phase.HEAD)
        if self.closing:
            newcomer.cut()
        elif self.places.full or self._is_high(newcomer):
            return self.make_room(newcomer)
        return True

    def make_room(self, newcomer: Connection | None = None) -> bool:
        """Let go of whoever is missed least, for `newcomer`; False if all others are in work."""
        other = self.places.makes_room(newcomer)
        if other is None:
            return False
        self.places.leave(other)
        other.cut()
        return True

    def _is_high(self, newcomer: Connection) -> bool:
        return self._highest is not None and newcomer.descriptor() > self._highest

    def enter(self, one: Connection, phase: Phase) -> None:
        """`one` is in `phase` from now on."""
        if not one.is_connected:
            return
        now = self._loop.time()
        self.places.enter(one, phase, now)
        limit = self.places.limits.get(phase)
        if limit is not None and (self._look is None or now + limit < self._look_at):
            self._look_in(limit)
        self.changed()

    def _look_in(self, seconds: float | None) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if seconds is not None:
            self._look_at = self._loop.time() + seconds
            # A timer may fire a moment early by the clock that it is asked for.
            self._look = self._loop.call_later(seconds + 0.001, self._look_now)

    def _look_now(self) -> None:
        for one in self.places.overdue(self._loop.time()):
            phase = self.places.phase(one)
            self.places.leave(one)
            one.overdue(phase)
        self._look_in(self.places.next_look(self._loop.time()))

    # ── the end ──

    def changed(self) -> None:
        """Tell who waits for the end that something may have ended."""
        if self.closing and not self.places.among(Phase.WORK, Phase.LAST):
            self._quiet.set()

    async def close(self, drain: float) -> None:
        """Cut off those without a request; those with one have `drain` seconds."""
        self.closing = True
        for one in self.places.among(Phase.LEAVING, Phase.IDLE, Phase.HEAD):
            one.cut()
        self.changed()
        try:
            async with asyncio.timeout(drain):
                await self._quiet.wait()
        except TimeoutError:
            pass
        for one in self.places:
            one.cut()
        for timer in (self._look, self._summary):
            if timer is not None:
                timer.cancel()
        self._summarise()

    # ── the log ──

    def note_malformed(self, peer: object, what: str) -> None:
        """One line about a malformed request, without its content; few lines in a flood."""
        now = self._loop.time()
        if self._lines.allow(now):
            where = peer[0] if isinstance(peer, tuple) else "an unknown address"
            log.warning("malformed request from %.60s: %.100s", where, what)
        elif self._summary is None:
            self._summary = self._loop.call_later(_PERIOD, self._summarise)

    def _summarise(self) -> None:
        self._summary = None
        withheld = self._lines.withheld()
        if withheld:
            log.warning("%d more malformed requests", withheld)


class _Server(web.Server):
    """Makes our connections in place of aiohttp's."""

    def __init__(
        self, doors: Doors, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._doors = doors

    def __call__(self) -> web.RequestHandler:
        return Connection(self._doors, self, asyncio.get_running_loop())


# ── words ──


def _head_of(message: RawRequestMessage) -> tuple[HttpRequest, str | None]:
    """A head, names in lower case, and what makes it ambiguous, if something does."""
    headers: dict[str, str] = {}
    trouble = None
    for name, value in message.headers.items():
        name = name.lower()
        if name not in headers:
            headers[name] = value
        elif name == "authorization":
            # A proxy in front may have looked at the other one.
            trouble = "it has several Authorization headers"
        else:
            headers[name] += ", " + value
    if message.version not in (HttpVersion10, HttpVersion11):
        trouble = "it is neither HTTP/1.0 nor HTTP/1.1"
    if message.version != HttpVersion11:
        # RFC 9110, section 10.1.1.
        headers.pop("expect", None)
    return HttpRequest(message.method, message.path, headers), trouble


def _what_is_wrong(error: BaseException | None) -> tuple[int, str, str]:
    """Status, words and code for an error of the parser, whose own words quote the request."""
    limit = error.args[1] if error is not None and len(error.args) > 1 else None
    if limit == _MOST_TARGET:
        return 414, f"the target has more than {_MOST_TARGET:,} bytes", "target_too_long"
    if limit == _MOST_FIELD:
        return 431, f"a header has more than {_MOST_FIELD:,} bytes", "head_too_large"
    if error is not None and "Too many headers" in str(error):
        return 431, f"there are more than {_MOST_FIELDS} headers", "head_too_large"
    return 400, "it is not well-formed HTTP/1.1", "malformed_request"


def web_response(response: HttpResponse) -> web.Response:
    """A response in aiohttp's form."""
    return web.Response(status=response.status, headers=response.headers, body=response.body)


def _plain(response: HttpResponse) -> bytes:
    """A last response as it goes over the wire, for where there is no request to answer."""
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    lines += [f"content-length: {len(response.body)}", "connection: close", f"server: {SERVER}"]
    return "\r\n".join([*lines, "", ""]).encode() + response.body
