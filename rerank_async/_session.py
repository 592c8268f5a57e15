"""`RerankSession`: where chunks, slots, retries, the wire and the merge meet.

The order of the policies is the order of the functions, from the outside in: `rerank` holds the
deadline, `_rerank_chunks` the many requests of one call, `_exchange` the retries, `_attempt` the
slot and the attempt's own time; innermost is the wire.
A line belongs here when it connects two rooms; what can be decided without waiting has its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from itertools import chain
from math import inf
from random import Random
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypeVar, cast

from msgspec import Struct, field

from rerank_async._chunking import Chunk, Chunker, ChunkLimits, check_unicode, split, stream
from rerank_async._deadline import Scope
from rerank_async._endpoint import Secret, default_model, resolve_endpoint
from rerank_async._errors import (
    AuthenticationError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RerankError,
    ResponseError,
    SessionClosedError,
    error_for_status,
)
from rerank_async._http import HttpRequest, HttpResponse, Transport
from rerank_async._limiter import Concurrency, Limiter, Statistics
from rerank_async._merging import Merger, ranking_of
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
from rerank_async._policy import RetryPolicy, is_retryable, is_throttle, retry_after
from rerank_async._transport import AiohttpTransport
from rerank_async._version import __version__
from rerank_async.dialects import Answer, error_message
from rerank_async.dialects import get as get_dialect

if TYPE_CHECKING:
    import aiohttp

__all__ = ["RerankSession"]

T = TypeVar("T")
Outcome: TypeAlias = Reranked | Failed

# These say that the whole call is wrong, not that some documents could not be scored now: every
# further chunk would hear the same.
_CONDEMNING = (
    InvalidRequestError,
    SessionClosedError,
    AuthenticationError,
    PermissionDeniedError,
    NotFoundError,
)


class _Call(Struct):
    """What one call of `rerank` carries through its requests.

    `total` is None for a stream; the documents before `read` have been cut into chunks, and those
    in `pending` have neither an answer nor an error yet.
    """

    model: str
    query: str
    top_n: int | None
    keep_documents: bool
    deadline: float | None
    total: int | None = None
    read: int = 0
    merger: Merger | None = None
    pending: dict[int, Chunk] = field(default_factory=dict)
    failure: BaseException | None = None
    last_error: RerankError | None = None


class RerankSession:
    """Sends rerank calls, many at once, over one pool of connections and one set of slots.

    A session belongs to the event loop that first used it.
    Use it as `async with RerankSession(...) as session`, or call `close()` yourself.

    Args:
        base_url: up to and with the version, as in `https://host/v1`; None means
            `$RERANK_BASE_URL`, then the 3xCoder endpoint.
        api_key: sent as `Authorization: Bearer KEY`; None means `$RERANK_API_KEY`, then no key.
            For the 3xCoder endpoint `$OPENAI_API_KEY` is read too.
        model: the model id for calls that name none; None means `$RERANK_MODEL`.
        dialect: how the server spells the exchange; a name of `rerank_async.dialects.DIALECTS`.
        chunks: what one request may carry.
        concurrency: requests on the wire at once, over all calls: a number or a `Concurrency`.
        retry: how often and after how long a failed request is made again.
        timeout: one deadline in seconds for a whole call, queueing, attempts and waits included;
            None means none.
        on_failure: "raise": the first error ends the call. "partial": what was scored comes back,
            and `response.missing` names the rest. An error that condemns the whole call (401, 403,
            404, an invalid request, a closed session) is raised either way.
        http: an `aiohttp.ClientSession` to use instead of an own one, never closed here; or any
            `Transport`.
        allow_insecure_http: let the API key cross a network over `http://`; loopback always may.
        seed: for the jitter of retries; None draws one.

    Raises:
        InvalidRequestError: an argument that cannot work; the message names it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        dialect: str = "v1",
        chunks: ChunkLimits | None = None,
        concurrency: int | Concurrency = 16,
        retry: RetryPolicy | None = None,
        timeout: float | None = 60.0,
        on_failure: Literal["raise", "partial"] = "raise",
        http: aiohttp.ClientSession | Transport | None = None,
        allow_insecure_http: bool = False,
        seed: int | None = None,
    ) -> None:
        # Masked from here on: a traceback that shows the values of names would show it.
        api_key = Secret(api_key) if isinstance(api_key, str) else api_key
        self._endpoint = resolve_endpoint(
            base_url,
            api_key,
            user_agent=f"rerank-async/{__version__}",
            allow_insecure_http=allow_insecure_http,
        )
        self._model = model or default_model()
        self._dialect = get_dialect(dialect)
        self._url = self._endpoint.base_url + self._dialect.path
        self._chunks = _of_kind("chunks", ChunkLimits() if chunks is None else chunks, ChunkLimits)
        self._policy = _of_kind("retry", RetryPolicy() if retry is None else retry, RetryPolicy)
        if not isinstance(concurrency, Concurrency):
            concurrency = Concurrency(concurrency)
        self._limiter = Limiter(concurrency)
        self._timeout = _checked_timeout(timeout)
        if on_failure not in ("raise", "partial"):
            raise InvalidRequestError(
                f'on_failure must be "raise" or "partial", not {on_failure!r}'
            )
        self._partial = on_failure == "partial"
        if http is not None and not hasattr(http, "exchange") and not hasattr(http, "request"):
            raise InvalidRequestError(
                "http must be an aiohttp.ClientSession or have the methods of Transport, not "
                f"{type(http).__name__}"
            )
        self._http = http
        self._dice = Random(seed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Transport | None = None
        self._closed = False
        self._scopes: set[Scope] = set()
        self._idle = asyncio.Event()

    def __repr__(self) -> str:
        if not hasattr(self, "_idle"):
            # A traceback may show a session that was refused half-way through its making.
            return "<RerankSession not made>"
        state = "closed" if self._closed else f"{self._limiter.statistics().in_flight} in flight"
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
        if self._loop is not None:
            self._check_loop()
        self._closed = True
        for scope in self._scopes:
            scope.end("closed")
        # Every step may be done twice: a close that was cancelled can be made again.
        if self._scopes:
            await self._idle.wait()
        if self._transport is not None:
            await self._transport.close()

    def statistics(self) -> Statistics:
        """The session's counts as they are now."""
        return self._limiter.statistics()

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
            top_n: how many results to return; None returns all.
            model: the model id; None means the session's.
            timeout: seconds for the whole call; `...` means the session's, None means none.
            return_documents: let each result carry its document's text. The text is yours, not an
                echo of the server's.

        Returns:
            The ranking over all documents, best first; each index is a position in `documents`.

        Raises:
            InvalidRequestError: an argument that could not be sent; the message names it.
            StatusError: the server refused, and went on refusing where that is retried.
            TransportError: no usable response arrived, in as many attempts as the policy allows.
            ResponseError: the answers could not be trusted.
            DeadlineExceededError: `timeout` passed.
            SessionClosedError: the session was closed before or during the call.
        """
        loop = self._open()
        seconds = self._timeout if timeout is ... else _checked_timeout(timeout)
        call = _Call(
            _checked_model(self._model if model is None else model),
            as_text("query", query),
            as_top_n(top_n),
            return_documents,
            None if seconds is None else loop.time() + seconds,
        )
        documents = as_documents(documents)
        self._limiter.calls += 1
        with Scope(loop, call.deadline) as scope:
            self._scopes.add(scope)
            try:
                return await self._rerank(call, documents)
            finally:
                self._scopes.discard(scope)
                if self._closed and not self._scopes:
                    self._idle.set()
        # Still here: the scope was ended from outside.
        if scope.ended_by == "closed":
            raise SessionClosedError("the session was closed while this call was in flight")
        expired = DeadlineExceededError(f"the call took longer than its timeout of {seconds:g} s")
        if self._partial:
            return _best_so_far(call, expired)
        raise expired from call.last_error

    async def rerank_many(
        self, requests: Iterable[RerankRequest] | AsyncIterable[RerankRequest]
    ) -> AsyncGenerator[Outcome, None]:
        """Rank many requests, and yield each one's outcome as it completes.

        Failures are values: `Failed(request, error)`.
        At most twice as many requests as there are slots are in work or waiting to be taken, so
        that a slow consumer slows the reading of `requests`, and memory stays bounded.
        Close it when you stop early: `async with aclosing(session.rerank_many(...)) as outcomes`.

        Args:
            requests: any iterable or async iterable.

        Yields:
            `Reranked(request, response)` or `Failed(request, error)`, in order of completion.

        Raises:
            InvalidRequestError: an item is not a `RerankRequest`.
            SessionClosedError: the session was closed meanwhile.
        """
        self._open()
        room = asyncio.Semaphore(2 * self._limiter.limit)
        finished: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()
        working: set[asyncio.Task[None]] = set()
        begun = 0

        async def work(request: RerankRequest) -> None:
            try:
                finished.put_nowait(await self._outcome(request))
            except (SessionClosedError, asyncio.CancelledError) as error:
                # The latter from the request's own documents; our own cancelling has no reader.
                finished.put_nowait(error)

        async def begin(request: RerankRequest) -> None:
            nonlocal begun
            if not isinstance(request, RerankRequest):
                raise InvalidRequestError(
                    f"requests[{begun}] must be a RerankRequest, not {type(request).__name__}"
                )
            await room.acquire()
            begun += 1
            task = asyncio.create_task(work(request))
            working.add(task)
            task.add_done_callback(working.discard)

        async def read() -> None:
            try:
                if isinstance(requests, AsyncIterable):
                    async with _closing(requests) as source:
                        async for request in source:
                            await begin(request)
                else:
                    for request in requests:
                        await begin(request)
                finished.put_nowait(None)
            except (Exception, asyncio.CancelledError) as error:
                finished.put_nowait(error)

        reader = asyncio.create_task(read())
        taken = 0
        try:
            while taken < begun or not reader.done():
                outcome = await finished.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is not None:
                    taken += 1
                    room.release()
                    yield outcome
        finally:
            for task in (reader, *working):
                task.cancel()
            await asyncio.gather(reader, *working, return_exceptions=True)

    # ── from the outside in ──

    async def _outcome(self, request: RerankRequest) -> Outcome:
        try:
            response = await self.rerank(
                request.query, request.documents, top_n=request.top_n, model=request.model
            )
        except SessionClosedError:
            raise
        except Exception as error:
            return Failed(request, error)
        return Reranked(request, response)

    async def _rerank(self, call: _Call, documents: Documents) -> RerankResponse:
        limits, measure = self._chunks, self._dialect.document_bytes
        envelope = 0
        if limits.max_bytes is not None:
            envelope = len(self._dialect.encode_request(call.model, call.query, (), call.top_n))
        chunks: AsyncGenerator[Chunk, None]
        if isinstance(documents, (list, tuple)):
            call.total = len(documents)
            pieces = split(documents, limits, call.query, envelope, measure)
            first = next(pieces, None)
            if first is not None and first.stop == call.total and not self._partial:
                return await self._rerank_one(call, first)
            chunks = _as_they_are(() if first is None else chain((first,), pieces))
        else:
            chunker = Chunker(limits, call.query, envelope, measure)
            if isinstance(documents, AsyncIterable):
                chunks = _as_they_come(documents, chunker)
            else:
                chunks = _as_they_are(stream(documents, chunker))
        return await self._rerank_chunks(call, chunks)

    async def _rerank_one(self, call: _Call, chunk: Chunk) -> RerankResponse:
        answer = await self._exchange(call, chunk)
        return ranking_of(chunk, answer, call.top_n, call.keep_documents, call.model)

    async def _rerank_chunks(
        self, call: _Call, chunks: AsyncGenerator[Chunk, None]
    ) -> RerankResponse:
        merger = call.merger = Merger(call.top_n, keep_documents=call.keep_documents)
        # As many chunks in work as there are slots: a chunk that waits to be retried counts, so
        # that a stream is read no faster than the server answers.
        room = asyncio.Semaphore(self._limiter.limit)

        scope = Scope(cast(asyncio.AbstractEventLoop, self._loop), None)

        async def work(chunk: Chunk) -> None:
            # No error leaves here: a task group would wrap it, and before Python 3.13 would leave
            # the caller's task marked as cancelled.
            try:
                merger.add(chunk, await self._exchange(call, chunk))
            except Exception as error:
                if (
                    not self._partial
                    or not isinstance(error, RerankError)
                    or isinstance(error, _CONDEMNING)
                ):
                    call.failure = call.failure or error
                    scope.end("failed")
                    return
                merger.fail(chunk.start, chunk.stop, error)
            del call.pending[chunk.number]
            room.release()

        try:
            with scope:
                async with aclosing(chunks), asyncio.TaskGroup() as group:
                    async for chunk in chunks:
                        call.pending[chunk.number] = chunk
                        call.read = chunk.stop
                        await room.acquire()
                        group.create_task(work(chunk))
        except BaseExceptionGroup as wrapped:
            # What the caller's own documents raised, and only that; it may be a group itself.
            call.failure = wrapped.exceptions[0]
        if call.failure is not None:
            raise call.failure
        return merger.finish(call.model)

    async def _exchange(self, call: _Call, chunk: Chunk) -> Answer:
        """One chunk's answer, retries included."""
        top_n = None if call.top_n is None else min(call.top_n, len(chunk.documents))
        try:
            body = self._dialect.encode_request(call.model, call.query, chunk.documents, top_n)
        except TypeError:
            check_unicode(chunk.documents, chunk.start)
            raise
        request = HttpRequest("POST", self._url, self._endpoint.headers, body)
        answer: Answer | None = None
        try:
            answer = await self._attempt(call, chunk, top_n, request, 1)
        except RerankError as error:
            if not is_retryable(error):
                raise
            first_error = error
        if answer is None:
            # Not at the head of the file: tenacity takes 8 ms to import, and most processes that
            # import this package never see a failure.
            from rerank_async._retry import retry

            answer = await retry(
                partial(self._attempt, call, chunk, top_n, request),
                first_error,
                policy=self._policy,
                dice=self._dice,
                left=partial(self._left, call),
                sleep=asyncio.sleep,
            )
        self._limiter.documents += len(chunk.documents)
        self._limiter.tokens += answer.total_tokens or 0
        return answer

    async def _attempt(
        self, call: _Call, chunk: Chunk, top_n: int | None, request: HttpRequest, number: int
    ) -> Answer:
        """One attempt: a slot, the wire under the attempt's own time, and the checks."""
        transport, sent = cast(Transport, self._transport), len(chunk.documents)
        try:
            async with self._limiter:
                self._limiter.retries += number > 1
                response = await transport.exchange(
                    request,
                    # A result takes 80 bytes; a server that echoes the documents escapes them.
                    body_limit=2**20 + 256 * sent + 2 * len(request.body),
                    timeout=self._policy.attempt_timeout,
                )
            return self._read(response, sent, top_n)
        except RerankError as error:
            error.context = (
                f"documents {chunk.start} to {chunk.stop - 1} ({len(request.body):,} bytes) to "
                f"{self._url}, attempt {number} of {self._policy.attempts}"
            )
            call.last_error = error
            raise

    def _read(self, response: HttpResponse, sent: int, top_n: int | None) -> Answer:
        # The body has no name here: a traceback that shows the values of names would show a key
        # that the server quotes.
        if response.status == 200:
            try:
                return self._dialect.decode_response(response.body, sent, top_n)
            except ResponseError:
                redacted = self._endpoint.redact(response.body)
                if redacted == response.body:
                    raise
            return self._dialect.decode_response(redacted, sent, top_n)
        error = error_for_status(
            response.status,
            error_message(self._endpoint.redact(response.body)),
            self._endpoint.redact_headers(response.headers),
            retry_after(response.headers, time.time()),
        )
        self._limiter.throttled += is_throttle(error)
        raise error

    # ── small things ──

    def _open(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise SessionClosedError("this session is closed: make a new one")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._transport = _transport_over(self._http, self._endpoint.headers)
        else:
            self._check_loop()
        return self._loop

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise InvalidRequestError(
                "this RerankSession belongs to another event loop: make one session for each "
                "loop, inside it (each asyncio.run has a loop of its own)"
            )

    def _left(self, call: _Call) -> float | None:
        if call.deadline is None:
            return None
        return call.deadline - cast(asyncio.AbstractEventLoop, self._loop).time()


def _best_so_far(call: _Call, error: DeadlineExceededError) -> RerankResponse:
    """What a partial call has when its deadline passes: every index read, scored or named."""
    merger = cast(Merger, call.merger)
    for chunk in call.pending.values():
        merger.fail(chunk.start, chunk.stop, error)
    if call.total is not None and call.read < call.total:
        merger.fail(call.read, call.total, error)
    return merger.finish(call.model, complete=False)


async def _as_they_are(chunks: Iterable[Chunk]) -> AsyncGenerator[Chunk, None]:
    for chunk in chunks:
        yield chunk


async def _as_they_come(
    documents: AsyncIterable[str], chunker: Chunker
) -> AsyncGenerator[Chunk, None]:
    async with _closing(documents) as source:
        async for document in source:
            if (chunk := chunker.feed(document)) is not None:
                yield chunk
    if (chunk := chunker.flush()) is not None:
        yield chunk


@asynccontextmanager
async def _closing(iterable: AsyncIterable[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """The iterator of an async iterable, closed at the end where it can be."""
    iterator = aiter(iterable)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


def _of_kind(name: str, value: T, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise InvalidRequestError(
            f"{name} must be a {kind.__name__}, not {type(value).__name__} {value!r}"
        )
    return value


def _transport_over(
    http: aiohttp.ClientSession | Transport | None, headers: Mapping[str, str]
) -> Transport:
    if http is None or not hasattr(http, "exchange"):
        return AiohttpTransport(http, headers)
    return cast(Transport, http)


def _checked_model(model: str | None) -> str:
    if model is None:
        raise InvalidRequestError(
            "model: pass model= to the call or to RerankSession, or set RERANK_MODEL"
        )
    return as_text("model", model)


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < inf:
        raise InvalidRequestError(
            f"timeout must be a number of seconds above 0, or None for none, not {timeout!r}"
        )
    return float(timeout)
