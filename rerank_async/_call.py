"""One call of `rerank`: its chunks, their retries and attempts, and the ranking they make.

The order of the policies is the order of the functions, from the outside in: `Call.run` chooses
between one request and many, `_run_chunks` keeps the many, `_exchange` holds the retries,
`_attempt` the slot and the attempt's own time; innermost is the wire.
A line belongs here when it connects rooms for the sake of one call; what can be decided without
waiting has a room of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from functools import partial
from itertools import chain
from random import Random
from typing import cast

from msgspec import Struct

from rerank_async._chunking import Chunk, Chunker, ChunkLimits, check_unicode, split, stream
from rerank_async._deadline import Scope
from rerank_async._endpoint import Endpoint
from rerank_async._errors import (
    AuthenticationError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RerankError,
    ResponseError,
    SessionClosedError,
    TransportError,
    error_for_status,
)
from rerank_async._http import HttpRequest, HttpResponse, Transport
from rerank_async._limiter import Limiter
from rerank_async._merging import Merger, ranking_of
from rerank_async._models import Documents, RerankResponse
from rerank_async._policy import RetryPolicy, is_retryable, is_throttle, retry_after
from rerank_async._streams import closing_iterator, iterate
from rerank_async.dialects import Answer, Dialect, error_message

__all__ = ["Call", "Shared"]

# These say that the whole call is wrong, not that some documents could not be scored now: every
# further chunk would hear the same.
_CONDEMNING = (
    InvalidRequestError,
    SessionClosedError,
    AuthenticationError,
    PermissionDeniedError,
    NotFoundError,
)


class Shared(Struct, frozen=True):
    """What all calls of one session have in common.

    Attributes:
        loop: the session's event loop.
        transport: carries the exchanges.
        limiter: gives out the slots and keeps the counts.
        endpoint: where to send, and with which headers.
        url: of every request.
        dialect: how requests and answers are spelled.
        limits: what one request may carry.
        policy: how often and after how long a failed attempt is made again.
        dice: where the jitter is drawn from.
        partial: whether a call returns what it has when some chunks fail.
    """

    loop: asyncio.AbstractEventLoop
    transport: Transport
    limiter: Limiter
    endpoint: Endpoint
    url: str
    dialect: Dialect
    limits: ChunkLimits
    policy: RetryPolicy
    dice: Random
    partial: bool


class Call:
    """One call, from its documents to its ranking; used once.

    Args:
        shared: what it has in common with the session's other calls.
        model: the model id.
        query: the text to compare documents against.
        top_n: how many results to return; None returns all.
        keep_documents: whether the results carry the documents' text.
        deadline: on the loop's clock; None means none. It decides whether a wait for a retry is
            begun; ending the call is its scope's.

    Attributes:
        last_error: how the last attempt that failed did so, or None.
    """

    __slots__ = (
        "_deadline",
        "_failure",
        "_keep_documents",
        "_merger",
        "_model",
        "_pending",
        "_query",
        "_read",
        "_shared",
        "_top_n",
        "_total",
        "last_error",
    )

    def __init__(
        self,
        shared: Shared,
        model: str,
        query: str,
        top_n: int | None,
        keep_documents: bool,
        deadline: float | None,
    ) -> None:
        self._shared = shared
        self._model = model
        self._query = query
        self._top_n = top_n
        self._keep_documents = keep_documents
        self._deadline = deadline
        # None for a stream.
        self._total: int | None = None
        # The documents before this one have been cut into chunks; the chunks in `_pending` have
        # neither an answer nor an error yet.
        self._read = 0
        self._pending: dict[int, Chunk] = {}
        self._merger: Merger | None = None
        self._failure: BaseException | None = None
        self.last_error: RerankError | None = None

    async def run(self, documents: Documents) -> RerankResponse:
        """Send the documents, in as many requests as they need, and merge the answers."""
        shared = self._shared
        limits, dialect = shared.limits, shared.dialect
        envelope = 0
        if limits.max_bytes is not None:
            # No request asks for more than it holds; more digits than these no encoder writes.
            top_n = None if self._top_n is None else min(self._top_n, 2**53)
            envelope = len(dialect.encode_request(self._model, self._query, (), top_n))
        if isinstance(documents, (list, tuple)):
            self._total = len(documents)
            pieces = split(documents, limits, self._query, envelope, dialect.document_bytes)
            first = next(pieces, None)
            if first is not None and first.stop == self._total and not shared.partial:
                # The short cut that most calls take: no task, no merge.
                answer = await self._exchange(first)
                return ranking_of(first, answer, self._top_n, self._keep_documents, self._model)
            chunks = iterate(() if first is None else chain((first,), pieces))
        else:
            chunker = Chunker(limits, self._query, envelope, dialect.document_bytes)
            if isinstance(documents, AsyncIterable):
                chunks = _cut(documents, chunker)
            else:
                chunks = iterate(stream(documents, chunker))
        return await self._run_chunks(chunks)

    def best_so_far(self, error: DeadlineExceededError) -> RerankResponse:
        """What a partial call has when its deadline passes: every index read, scored or named."""
        merger = self._merger or Merger(self._top_n)
        for chunk in self._pending.values():
            merger.fail(chunk.start, chunk.stop, error)
        if self._total is not None and self._read < self._total:
            merger.fail(self._read, self._total, error)
        return merger.finish(self._model, complete=False)

    async def _run_chunks(self, chunks: AsyncGenerator[Chunk, None]) -> RerankResponse:
        merger = self._merger = Merger(self._top_n, keep_documents=self._keep_documents)
        # As many chunks in work as there are slots: a chunk that waits to be retried counts, so
        # that a stream is read no faster than the server answers.
        room = asyncio.Semaphore(self._shared.limiter.limit)
        scope = Scope(self._shared.loop, None)

        async def work(chunk: Chunk) -> None:
            # No error leaves here: a task group would wrap it, and before Python 3.13 would leave
            # the caller's task marked as cancelled.
            answer: Answer | None = None
            try:
                answer = await self._exchange(chunk)
                merger.add(chunk, answer)
            except Exception as error:
                # With an answer at hand it is the merge that failed: the answers do not fit
                # together, and which of them came first must not decide who is missing.
                if answer is not None or self._ends_with(error):
                    self._failure = self._failure or error
                    scope.end("failed")
                    return
                merger.fail(chunk.start, chunk.stop, cast(RerankError, error))
            finally:
                room.release()
            del self._pending[chunk.number]

        try:
            with scope:
                async with aclosing(chunks), asyncio.TaskGroup() as group:
                    async for chunk in chunks:
                        self._pending[chunk.number] = chunk
                        self._read = chunk.stop
                        await room.acquire()
                        group.create_task(work(chunk))
                        # Documents that are at hand at once must not keep the loop from sending.
                        await asyncio.sleep(0)
        except BaseExceptionGroup as wrapped:
            # What the caller's own documents raised, and only that; it may be a group itself.
            self._failure = self._failure or wrapped.exceptions[0]
        if self._failure is not None:
            raise self._failure
        if self._pending:
            # A chunk that ended without an answer and without an error: its exchange was cancelled
            # by somebody who is not this call.
            raise TransportError("an exchange was cancelled from outside the call")
        return merger.finish(self._model)

    def _ends_with(self, error: Exception) -> bool:
        """Whether a chunk that failed so ends the call, or is only missing from it."""
        return (
            not self._shared.partial
            or not isinstance(error, RerankError)
            or isinstance(error, _CONDEMNING)
        )

    async def _exchange(self, chunk: Chunk) -> Answer:
        """One chunk's answer, retries included."""
        shared = self._shared
        top_n = None if self._top_n is None else min(self._top_n, len(chunk.documents))
        try:
            body = shared.dialect.encode_request(self._model, self._query, chunk.documents, top_n)
        except TypeError:
            check_unicode(chunk.documents, chunk.start)
            raise
        request = HttpRequest("POST", shared.url, shared.endpoint.headers, body)
        answer: Answer | None = None
        first: list[RerankError] = []
        try:
            answer = await self._attempt(chunk, top_n, request, 1)
        except RerankError as error:
            if not is_retryable(error):
                raise
            # Its traceback holds this frame, and the frame the body: without it nothing has to wait
            # for the garbage collector.
            first.append(error.with_traceback(None))
        if answer is None:
            # Not at the head of the file: tenacity takes 8 ms to import, and most processes that
            # import this package never see a failure.
            from rerank_async._retry import retry

            answer = await retry(
                partial(self._attempt, chunk, top_n, request),
                first.pop(),
                policy=shared.policy,
                dice=shared.dice,
                left=self._left,
                sleep=asyncio.sleep,
            )
            self.last_error = None
        shared.limiter.documents += len(chunk.documents)
        shared.limiter.tokens += answer.total_tokens or 0
        return answer

    async def _attempt(
        self, chunk: Chunk, top_n: int | None, request: HttpRequest, number: int
    ) -> Answer:
        """One attempt: a slot, the wire under the attempt's own time, and the checks."""
        shared, sent = self._shared, len(chunk.documents)
        limiter = shared.limiter
        try:
            if not limiter.take():
                await limiter.wait()
            try:
                limiter.retries += number > 1
                response = await shared.transport.exchange(
                    request,
                    # A result takes 80 bytes; a server that echoes the documents escapes them.
                    body_limit=2**20 + 256 * sent + 2 * len(request.body),
                    timeout=shared.policy.attempt_timeout,
                )
            finally:
                limiter.give()
            return self._checked(response, sent, top_n)
        except RerankError as error:
            error.context = (
                f"documents {chunk.start} to {chunk.stop - 1} ({len(request.body):,} bytes) to "
                f"{shared.url}, attempt {number} of {shared.policy.attempts}"
            )
            self.last_error = error
            raise

    def _checked(self, response: HttpResponse, sent: int, top_n: int | None) -> Answer:
        shared = self._shared
        # The body has no name here: a traceback that shows the values of names would show a key
        # that the server quotes.
        if response.status == 200:
            try:
                answer = shared.dialect.decode_response(response.body, sent, top_n)
            except ResponseError:
                if not shared.endpoint.is_quoted(response.body):
                    raise
            else:
                if answer.model is None or not shared.endpoint.is_quoted(answer.model.encode()):
                    return answer
                del answer
            words = error_message(shared.endpoint.redact(response.body))
            raise ResponseError(f"the answer quotes the API key or cannot be read: {words}")
        error = error_for_status(
            response.status,
            error_message(shared.endpoint.redact(response.body)),
            shared.endpoint.redact_headers(response.headers),
            retry_after(response.headers, time.time()),
        )
        shared.limiter.throttled += is_throttle(error)
        raise error

    def _left(self) -> float | None:
        return None if self._deadline is None else self._deadline - self._shared.loop.time()


async def _cut(documents: AsyncIterable[str], chunker: Chunker) -> AsyncGenerator[Chunk, None]:
    async with closing_iterator(documents) as source:
        async for document in source:
            if (chunk := chunker.feed(document)) is not None:
                yield chunk
    if (chunk := chunker.flush()) is not None:
        yield chunk
