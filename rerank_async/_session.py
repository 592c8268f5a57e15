"""`RerankSession`: what outlives a call, and each call's deadline.

A line belongs here when it is about a session's life (made, opened on a loop, closed) or about the
arguments of its methods; what it may be made from is in `_options`, and what happens within one
call in `_call`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sized
from contextlib import aclosing
from itertools import count
from random import Random
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeAlias, cast

from attrs import asdict, evolve

from rerank_async._call import Call
from rerank_async._chunking import ChunkLimits
from rerank_async._deadline import Scope, Watch
from rerank_async._endpoint import default_model, resolve_endpoint
from rerank_async._errors import (
    DeadlineExceededError,
    InvalidRequestError,
    SessionClosedError,
    StoppedError,
)
from rerank_async._flow.control import FlowControl
from rerank_async._flow.limiter import Concurrency, RateLimit
from rerank_async._http import Transport
from rerank_async._listeners import Emitter, Listener, Statistics
from rerank_async._models import (
    Documents,
    Failed,
    Reranked,
    RerankRequest,
    RerankResponse,
    as_documents,
    as_text,
    as_top_n,
)
from rerank_async._options import SessionOptions, as_timeout
from rerank_async._policy import HedgePolicy, RetryPolicy
from rerank_async._private import hide_frames, shown
from rerank_async._route import Ask, Route, Sender, Trail
from rerank_async._streams import as_completed
from rerank_async._transport import AiohttpTransport, guard
from rerank_async._verdicts import Verdicts
from rerank_async._version import __version__
from rerank_async.dialects import Dialect
from rerank_async.dialects import get as get_dialect
from rerank_async.events import (
    AttemptRetried,
    CallFinished,
    CallStarted,
    Hedged,
    LimitChanged,
    Split,
    Throttled,
)

if TYPE_CHECKING:
    import aiohttp

__all__ = ["RerankSession"]

# Of calls; over all sessions, so that a listener of several can tell them apart.
_NUMBERS = count(1)

Outcome: TypeAlias = Reranked | Failed


class RerankSession:
    """Sends rerank calls, many at once, over one pool of connections and one set of slots.

    A session belongs to the event loop that first used it.
    Use it as `async with RerankSession(...) as session`, or call `close()` yourself.
    To make sessions elsewhere, in a worker process, say, pass `SessionOptions` there.

    Args:
        base_url: URL up to and with the version, as in `https://host/v1`; None means
            `$RERANK_BASE_URL`, then the 3xCoder endpoint.
        api_key: key, sent as `Authorization: Bearer KEY`; None means `$RERANK_API_KEY`, then no
            key. For the 3xCoder endpoint `$OPENAI_API_KEY` is read too.
        model: model id for calls that name none; None means `$RERANK_MODEL`.
        dialect: name of one of `rerank_async.dialects.DIALECTS`, or an object of your own class on
            `rerank_async.dialects.Dialect`: it says how the server is spoken to.
        chunks: limits of what one request may carry; None means the dialect's `limits`.
        concurrency: number of requests on the wire at once, over all calls, or a `Concurrency`,
            which may find the number by itself; None means 16.
        rate: limit of what is sent per minute; None means no limit.
        flow: slots, rates, gate and budgets to share with other sessions, in place of
            `concurrency` and `rate`; None makes them for this session alone.
        retry: policy that says how often and after how long a failed request is made again; None
            means `RetryPolicy()`.
        hedge: policy that says when a slow request is sent a second time; None means never.
        timeout: seconds for a whole call, with queueing, attempts and waits; None means no end.
        on_failure: word for what a failed request does to its call. "raise": the first error ends
            the call. "partial": what was scored comes back, and `response.missing` names the rest.
            An error that condemns the whole call, by its `condemns`, is raised either way.
        http: `aiohttp.ClientSession` to use instead of an own one, never closed here; or any
            `Transport`. The pool of a session over aiohttp's plain `TCPConnector` is guarded as an
            own one is: no request of ours gets an answer that was meant for another.
        allow_insecure_http: permission for the API key to cross a network over `http://`; loopback
            always may.
        allow_unguarded_http: permission for an `http` whose pool cannot be guarded: one over
            another connector, or an object that only looks like an `aiohttp.ClientSession`.
        on_event: function, or several, called with each `Event`, in the event loop and at once:
            it must not wait, and what it raises is logged and dropped.
        seed: number for the jitter of retries; None draws one.

    Raises:
        InvalidRequestError: an argument that cannot work; the message names it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        dialect: str | Dialect = "v1",
        chunks: ChunkLimits | None = None,
        concurrency: int | Concurrency | None = None,
        rate: RateLimit | None = None,
        flow: FlowControl | None = None,
        retry: RetryPolicy | None = None,
        hedge: HedgePolicy | None = None,
        timeout: float | None = 60.0,
        on_failure: Literal["raise", "partial"] = "raise",
        http: aiohttp.ClientSession | Transport | None = None,
        allow_insecure_http: bool = False,
        allow_unguarded_http: bool = False,
        on_event: Listener | Iterable[Listener] | None = None,
        seed: int | None = None,
    ) -> None:
        try:
            options = SessionOptions(
                base_url,
                api_key=api_key,
                model=model,
                dialect=dialect,
                chunks=chunks,
                concurrency=concurrency,
                rate=rate,
                retry=retry,
                hedge=hedge,
                timeout=timeout,
                on_failure=on_failure,
                http=http,
                allow_insecure_http=allow_insecure_http,
                allow_unguarded_http=allow_unguarded_http,
                on_event=on_event,
                seed=seed,
            )
            self._dialect = get_dialect(options.dialect)
            self._endpoint = resolve_endpoint(
                options.base_url,
                None if options.api_key is None else options.api_key.open(),
                dialect=self._dialect,
                user_agent=f"rerank-async/{__version__}",
                allow_insecure_http=options.allow_insecure_http,
            )
        except InvalidRequestError as error:
            hide_frames(error)
            raise
        finally:
            # A traceback shows this frame with its locals; a wrong URL may be a key.
            del api_key, base_url
        self._model = default_model() if options.model is None else options.model
        self._policy = RetryPolicy() if options.retry is None else options.retry
        self._hedge = options.hedge
        self._flow = _flow_of(flow, options.concurrency, options.rate)
        limits = self._dialect.limits if options.chunks is None else options.chunks
        self._limits = _within(limits, self._flow.concurrency.max_documents)
        origin = self._flow.origin(self._endpoint.base_url)
        self._route = Route(self._endpoint, self._dialect, origin)
        self._emit = Emitter(options.on_event)
        self._timeout = options.timeout
        self._partial = options.on_failure == "partial"
        self._http = _guarded(options.http, options.allow_unguarded_http)
        self._dice = Random(options.seed)
        self._sender: Sender | None = None
        self._watch: Watch | None = None
        self._closed = False
        self._scopes: set[Scope] = set()
        # The tasks of `rerank_many`, and what their streams have heard.
        self._judged: dict[asyncio.Task[Any], Verdicts] = {}
        self._idle = asyncio.Event()

    @classmethod
    def of(cls, options: SessionOptions, *, flow: FlowControl | None = None) -> Self:
        """A session made from options; each call makes another one.

        Args:
            options: arguments of the session.
            flow: slots, rates, gate and budgets to share with other sessions, in place of the
                options' `concurrency` and `rate`; None makes them for this session alone.

        Raises:
            InvalidRequestError: an argument that cannot work, or one that is missing here, because
                the environment has no key, say; the message names it.
        """
        if not isinstance(options, SessionOptions):
            raise InvalidRequestError(f"options must be SessionOptions, not {shown(options)}")
        if flow is not None:
            options = evolve(options, concurrency=None, rate=None)
        return cls(flow=flow, **asdict(options, recurse=False))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RerankSession is not pickled: pickle its SessionOptions, and make one where it is "
            "used"
        )

    def __repr__(self) -> str:
        if not hasattr(self, "_idle"):
            # A traceback may show a session that was refused half-way through its making.
            return "<RerankSession not made>"
        state = "closed" if self._closed else f"{self._flow.limiter.in_flight} in flight"
        return f"<RerankSession {self._endpoint.base_url} model={self._model!r} {state}>"

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every call in flight with `SessionClosedError` and close the pool. Idempotent.

        A borrowed `aiohttp.ClientSession` stays open.
        """
        if self._sender is not None:
            self._check_loop(self._sender)
        self._closed = True
        for scope in self._scopes:
            scope.end("closed")
        # Every step may be done twice: a close that was cancelled can be made again.
        if self._scopes:
            await self._idle.wait()
        self._flow.limiter.listeners.discard(self._tell_limit)
        if self._watch is not None:
            self._watch.close()
        if self._sender is not None:
            await self._sender.transport.close()

    @property
    def base_url(self) -> str:
        """Where it asks, up to the version, without what the URL said of users."""
        return self._endpoint.base_url

    @property
    def model(self) -> str | None:
        """The model of calls that name none; None when they must."""
        return self._model

    @property
    def dialect(self) -> str:
        """How the server is spoken to, by the dialect's name."""
        return self._dialect.name

    @property
    def spoken(self) -> Dialect:
        """How the server is spoken to, as the dialect itself."""
        return self._dialect

    @property
    def chunks(self) -> ChunkLimits:
        """What one request may carry."""
        return self._limits

    @property
    def on_failure(self) -> Literal["raise", "partial"]:
        """What a call does when some of its chunks fail."""
        return "partial" if self._partial else "raise"

    @property
    def flow(self) -> FlowControl:
        """Its slots, rates, gate and budgets, with what it shares of them."""
        return self._flow

    @property
    def retry(self) -> RetryPolicy:
        """How often and after how long a failed request is made again."""
        return self._policy

    def statistics(self) -> Statistics:
        """The session's counts as they are now."""
        counts, limiter = self._emit.counts, self._flow.limiter
        unanswered, problem = self._flow.trouble(self._route.origin)
        return Statistics(
            calls=self._emit.calls,
            requests=self._emit.requests,
            resent=0 if self._sender is None else getattr(self._sender.transport, "resent", 0),
            retries=counts[AttemptRetried],
            throttled=counts[Throttled],
            hedges=counts[Hedged],
            splits=counts[Split],
            documents=self._emit.documents,
            tokens=self._emit.tokens,
            in_flight=limiter.in_flight,
            waiting=limiter.waiting,
            limit=limiter.limit,
            cuts=limiter.cuts,
            limit_reason=limiter.reason,
            gate=limiter.gate,
            retry_budget=self._flow.budget_left(self._route.origin),
            listener_errors=self._emit.errors,
            waiting_for=limiter.waiting_for,
            backing_off=self._emit.backing_off,
            parked=self._emit.parked,
            unanswered=unanswered,
            problem=problem,
        )

    async def rerank(
        self,
        query: str,
        documents: Documents,
        *,
        top_n: int | None = None,
        model: str | None = None,
        timeout: float | EllipsisType | None = ...,
        return_documents: bool = False,
    ) -> RerankResponse:
        """Rank `documents` for `query`.

        A list or tuple is checked whole before anything is sent, and may change once the call has
        begun to wait.
        Any other iterable, or async iterable, is read only as fast as the server answers; with
        `top_n`, memory stays flat whatever its length.
        An async generator is closed when the call ends.

        Args:
            query: the text to compare documents against; not empty.
            documents: strings, possibly empty ones; no documents at all give an empty ranking
                without a request.
            top_n: the number of results to return; None returns all.
            model: the model id; None means the session's.
            timeout: seconds for the whole call; `...` means the session's, None means none.
            return_documents: whether each result carries its document's text: yours, no echo.

        Returns:
            The ranking over all documents, best first; each index is a position in `documents`.

        Raises:
            InvalidRequestError: an argument that could not be sent; the message names it.
            StatusError: the server refused, and went on refusing where that is retried.
            TransportError: no usable response arrived, in as many attempts as the policy allows.
            ResponseError: the answers could not be trusted.
            DeadlineExceededError: `timeout` passed, or is sure to: the server asked to wait longer.
            SessionClosedError: the session was closed before or during the call.
        """
        try:
            sender = self._sender
            if sender is None or self._closed or asyncio.get_running_loop() is not sender.loop:
                sender = self._open()
            seconds = self._timeout if timeout is ... else as_timeout(timeout)
            call, documents, began = self._begun(
                sender, query, documents, top_n, model, seconds, return_documents
            )
        except Exception as error:
            del query, documents  # A traceback shows this frame with its locals.
            hide_frames(error)
            raise
        response: RerankResponse | None = None
        failure: BaseException | None = None
        try:
            # Calls with the session's own time are over in the order in which they began.
            watch = self._watch if timeout is ... and seconds is not None else None
            with Scope(sender.loop, call.ask.deadline, watch) as scope:
                self._scopes.add(scope)
                if call.trail.verdicts is not None:
                    call.trail.verdicts.calls[call.trail] = scope
                try:
                    response = await call.run(documents)
                finally:
                    self._scopes.discard(scope)
                    if self._closed or call.trail.verdicts is not None:
                        self._leave(call.trail)
            if response is None:
                response = self._ended(scope, call, seconds)
            return response
        except BaseException as error:
            failure = error
            del query, documents
            hide_frames(error)
            raise
        finally:
            if sender.emit.is_heard:
                self._tell_end(call, sender.loop.time() - began, response, failure)
            if failure is not None or call.chunks is not None:
                # An error's traceback holds this frame: the two would hold each other.
                call.forget()
            del failure

    def _begun(
        self,
        sender: Sender,
        query: str,
        documents: Documents,
        top_n: int | None,
        model: str | None,
        seconds: float | None,
        keep_documents: bool,
    ) -> tuple[Call, Documents, float]:
        """A call whose arguments have been checked, and since when it is under way."""
        began = sender.loop.time()
        # Most arguments are plainly right, and a check that is not called costs nothing.
        if model is not None or (model := self._model) is None:
            model = _checked_model(model)
        if type(query) is not str or not query or not query.isascii():
            query = as_text("query", query)
        if top_n is not None:
            top_n = as_top_n(top_n)
        if type(documents) is not list:
            documents = as_documents(documents)
        deadline = None if seconds is None else began + seconds
        ask, trail = Ask(next(_NUMBERS), model, query, top_n, deadline), Trail(model)
        if self._judged and (task := asyncio.current_task(sender.loop)) is not None:
            trail.verdicts = self._judged.get(task)
        if sender.emit.begin_call():
            known = len(documents) if isinstance(documents, (list, tuple)) else None
            url = self._route.url(model)
            sender.emit.tell(CallStarted(ask.number, model, query, known, top_n, url))
        return Call(sender, self._route, ask, trail, keep_documents), documents, began

    def _leave(self, trail: Trail) -> None:
        """A call is over: nobody ends it any more, and whoever closes the session waits no more."""
        if trail.verdicts is not None:
            del trail.verdicts.calls[trail]
        if self._closed and not self._scopes:
            self._idle.set()

    def _tell_end(
        self,
        call: Call,
        seconds: float,
        response: RerankResponse | None,
        failure: BaseException | None,
    ) -> None:
        missing, model, tokens = 0, None, None
        if response is not None:
            model, tokens = response.model, response.usage.total_tokens
            missing = 0 if response.complete else len(response.missing)
        self._emit.tell(
            CallFinished(
                call.ask.number,
                seconds,
                failure,
                model,
                call.documents,
                missing,
                tokens,
                call.trail.retries,
            )
        )

    def _ended(self, scope: Scope, call: Call, seconds: float | None) -> RerankResponse:
        """What a call has whose scope was ended from outside."""
        if scope.ended_by == "closed":
            raise SessionClosedError("the session was closed while this call was in flight")
        if scope.ended_by == "condemned":
            assert call.trail.condemned_by is not None
            raise call.trail.condemned_by
        expired = DeadlineExceededError(f"the call took longer than its timeout of {seconds:g} s")
        if self._partial:
            return call.best_so_far(expired)
        raise expired from call.trail.last_error

    async def rerank_many(
        self,
        requests: Iterable[RerankRequest] | AsyncIterable[RerankRequest],
        *,
        stop: asyncio.Event | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Rank many requests, and yield each one's outcome as it completes.

        Failures are values: `Failed(request, error)`.
        An error that condemns every request for a model, or every request of the session (see
        `RerankError.condemns`), is the error of all that are not on the wire yet, and nothing more
        is sent to hear it again. What is on the wire is waited for.
        If it condemns the session, the rest of a sequence (whatever has a length) comes out as
        `Failed`; of any other iterable nothing more is read, and the stream ends with what was
        read.
        At most twice as many requests as there are slots are in work or waiting to be taken, so
        that a slow consumer slows the reading of `requests`, and memory stays bounded.
        Close it when you stop early: `async with aclosing(session.rerank_many(...)) as outcomes`.

        Args:
            requests: any iterable or async iterable.
            stop: set it to end the stream in good order, when the process is to end, say. What is
                on the wire is waited for, and not sent again. All else that was read, and the
                rest of a sequence, comes out at once as `Failed` with a `StoppedError`, whatever it
                waited for. None when nobody will.

        Yields:
            `Reranked(request, response)` or `Failed(request, error)`, in order of completion.

        Raises:
            InvalidRequestError: an item is not a `RerankRequest`.
            SessionClosedError: the session was closed meanwhile.
        """
        self._open()
        if not isinstance(requests, (Iterable, AsyncIterable)):
            raise InvalidRequestError(
                "requests must be an iterable or an async iterable of RerankRequest, not "
                f"{type(requests).__name__}"
            )
        verdicts = Verdicts()
        is_sized = isinstance(requests, Sized) and not isinstance(requests, AsyncIterable)

        async def outcome_of(number: int, request: RerankRequest) -> Outcome:
            return await self._outcome(number, request, verdicts)

        outcomes = as_completed(
            requests,
            outcome_of,
            limit=self._in_work,
            is_over=lambda: not is_sized and verdicts.is_over,
            stop=stop,
            on_stop=lambda: verdicts.stop(
                StoppedError("not sent: it was asked to stop"), self._is_connecting
            ),
        )
        # Tracebacks show what has a name here.
        del requests
        try:
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    yield outcome
                    del outcome
        except BaseException as error:
            hide_frames(error)
            raise

    def _is_connecting(self, scope: Scope) -> bool:
        transport = None if self._sender is None else self._sender.transport
        return isinstance(transport, AiohttpTransport) and transport.is_connecting(scope.task)

    def _in_work(self) -> int:
        """How many requests of `rerank_many` may be begun and not yet taken."""
        # Those that wait for a retry are among them: when the limit was cut, they must not keep all
        # others from being sent, or it would not be found out that the server is back.
        return 2 * max(self._flow.limiter.limit, self._flow.concurrency.limit)

    async def _outcome(self, number: int, request: RerankRequest, verdicts: Verdicts) -> Outcome:
        if not isinstance(request, RerankRequest):
            raise InvalidRequestError(
                f"requests[{number}] must be a RerankRequest, not {type(request).__name__}"
            )
        condemned_by = verdicts.of(request.model or self._model or "")
        if condemned_by is not None:
            return Failed(request, condemned_by)
        task = asyncio.current_task()
        assert task is not None
        self._judged[task] = verdicts
        try:
            response = await self.rerank(
                request.query, request.documents, top_n=request.top_n, model=request.model
            )
        except SessionClosedError:
            raise
        except Exception as error:
            hide_frames(error)
            return Failed(request, error)
        finally:
            del self._judged[task]
        return Reranked(request, response)

    def _open(self) -> Sender:
        """The means of sending; made at the first use, when there is a loop to belong to."""
        if self._closed:
            raise SessionClosedError("this session is closed: make a new one")
        if self._sender is None:
            loop = asyncio.get_running_loop()
            self._flow.bind(loop)
            self._watch = Watch(loop)
            self._flow.limiter.listeners.add(self._tell_limit)
            self._sender = Sender(
                loop=loop,
                transport=_transport_over(self._http, self._endpoint.headers),
                limiter=self._flow.limiter,
                emit=self._emit,
                limits=self._limits,
                policy=self._policy,
                hedge=self._hedge,
                dice=self._dice,
                partial=self._partial,
            )
        else:
            self._check_loop(self._sender)
        return self._sender

    def _tell_limit(self, old: int, new: int, reason: str) -> None:
        self._emit(LimitChanged(0, old, new, reason))

    def _check_loop(self, sender: Sender) -> None:
        if asyncio.get_running_loop() is not sender.loop:
            raise InvalidRequestError(
                "this RerankSession belongs to another event loop: make one session for each "
                "loop, inside it (each asyncio.run has a loop of its own)"
            )


def _flow_of(
    flow: FlowControl | None, concurrency: int | Concurrency | None, rate: RateLimit | None
) -> FlowControl:
    if flow is None:
        return FlowControl(16 if concurrency is None else concurrency, rate=rate)
    if concurrency is not None or rate is not None:
        raise InvalidRequestError(
            "flow brings its own concurrency and rate: pass them to FlowControl, not to the session"
        )
    if not isinstance(flow, FlowControl):
        raise InvalidRequestError(f"flow must be a FlowControl, not {shown(flow)}")
    return flow


def _within(limits: ChunkLimits, max_documents: int | None) -> ChunkLimits:
    """The limits, with chunks no larger than what may be on the wire at once."""
    if max_documents is None or (
        limits.max_documents is not None and limits.max_documents <= max_documents
    ):
        return limits
    return evolve(limits, max_documents=max_documents)


def _transport_over(
    http: aiohttp.ClientSession | Transport | None, headers: Mapping[str, str]
) -> Transport:
    if http is None or not hasattr(http, "exchange"):
        return AiohttpTransport(http, headers)
    return cast(Transport, http)


def _guarded(
    http: aiohttp.ClientSession | Transport | None, unguarded: bool
) -> aiohttp.ClientSession | Transport | None:
    if http is None or hasattr(http, "exchange"):
        return http
    if not guard(http) and not unguarded:
        connector = getattr(http, "connector", None)
        what = type(http if connector is None else connector).__name__
        raise InvalidRequestError(
            "http must be an aiohttp.ClientSession over aiohttp's own TCPConnector: an answer that "
            f"comes late or twice cannot be kept from the next request over {what}; pass "
            "allow_unguarded_http=True if no server or proxy there ever sends one"
        )
    return http


def _checked_model(model: str | None) -> str:
    if model is None:
        raise InvalidRequestError(
            "model: pass model= to the call or to RerankSession, or set RERANK_MODEL"
        )
    return as_text("model", model)
