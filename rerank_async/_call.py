"""One call of `rerank`: its chunks, their retries and attempts, and the ranking they make.

The order of the policies is the order of the functions, from the outside in: `Call.run` chooses
between one request and many, `_run_chunks` keeps the many, `_score` cuts what the server refuses,
`_exchange` holds the retries, `_attempt` the slot and the backup; innermost, in `_send`, is the
wire.
A line belongs here when it connects rooms for the sake of one call; what can be decided without
waiting has a room of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from itertools import chain
from random import Random
from typing import TypeVar

from msgspec import Struct

from rerank_async._chunking import Chunk, Chunker, ChunkLimits, check_unicode, split, stream
from rerank_async._control import Origin
from rerank_async._deadline import Scope
from rerank_async._endpoint import Endpoint
from rerank_async._errors import (
    AuthenticationError,
    BadRequestError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RerankError,
    ResponseError,
    SessionClosedError,
    StatusError,
    TransportError,
    error_for_status,
)
from rerank_async._events import (
    AttemptFinished,
    AttemptRetried,
    AttemptStarted,
    Hedged,
    Split,
    Throttled,
)
from rerank_async._flow import Ending
from rerank_async._flow.bisection import Bisection
from rerank_async._flow.budget import HEDGE_COST, RETRY_COST, THROTTLE_COST
from rerank_async._hints import exhausted_for, retry_after
from rerank_async._http import HttpRequest, HttpResponse, Transport
from rerank_async._limiter import Limiter
from rerank_async._listeners import Emitter
from rerank_async._merging import Merger, ranking_of
from rerank_async._models import Documents, RerankResponse
from rerank_async._policy import (
    HedgePolicy,
    RetryPolicy,
    ending_of,
    is_outage,
    is_retryable,
    is_throttle,
    refusal_of,
    retry_delay,
)
from rerank_async._streams import Room, closing_iterator, iterate
from rerank_async.dialects import Answer, Dialect, error_message

__all__ = ["Call", "Shared"]

T = TypeVar("T")

# These say that the whole call is wrong, not that some documents could not be scored now: every
# further chunk would hear the same.
_CONDEMNING = (
    InvalidRequestError,
    SessionClosedError,
    AuthenticationError,
    PermissionDeniedError,
    NotFoundError,
)

# Of a call that is one request: never written to.
_NONE_PENDING: dict[int, Chunk] = {}

# An attempt is expected to take at least so many seconds where nothing is known.
_SHORTEST_ATTEMPT = 0.05
# One who asks whether a server is back waits between two questions for at most so many seconds.
_LONGEST_PROBE_WAIT = 30.0


class Shared(Struct, frozen=True):
    """What all calls of one session have in common.

    Attributes:
        loop: the session's event loop.
        transport: carries the exchanges.
        limiter: gives out the slots.
        origin: what is known of the server, and the budgets.
        emit: tells the listeners.
        endpoint: where to send, and with which headers.
        url: of every request.
        dialect: how requests and answers are spelled.
        limits: what one request may carry.
        policy: how often and after how long a failed attempt is made again.
        hedge: when a slow request is sent a second time; None means never.
        dice: where the jitter is drawn from.
        partial: whether a call returns what it has when some chunks fail.
    """

    loop: asyncio.AbstractEventLoop
    transport: Transport
    limiter: Limiter
    origin: Origin
    emit: Emitter
    endpoint: Endpoint
    url: str
    dialect: Dialect
    limits: ChunkLimits
    policy: RetryPolicy
    hedge: HedgePolicy | None
    dice: Random
    partial: bool


class _Parcel(Struct):
    """A chunk as it goes on the wire.

    Attributes:
        chunk: the documents.
        top_n: how many results are asked for.
        tokens: that it may cost, where a rate counts them; otherwise 0.
        request: the bytes; None before they are needed, which is when there is a slot for them:
            what waits must not take up the memory twice.
        size: bytes of the request's body; 0 before it is encoded.
        weight: the size, if the limiter counts bytes; otherwise 0.
        has_slot: whether a slot was taken for its first attempt already.
        is_parked: whether it waits for a server to come back: then it does not go before others.
    """

    chunk: Chunk
    top_n: int | None
    tokens: int
    request: HttpRequest | None = None
    size: int = 0
    weight: int = 0
    has_slot: bool = False
    is_parked: bool = False


class _Attempt(Struct):
    """One time that a parcel is put on the wire.

    Attributes:
        number: 1 for the first.
        hedge: whether it is a backup.
        started: when, on the loop's clock.
        ending: how it ended; "other" until it has.
    """

    number: int
    hedge: bool = False
    started: float = 0.0
    ending: Ending = "other"


class Call:
    """One call, from its documents to its ranking; used once.

    Args:
        shared: what it has in common with the session's other calls.
        number: its events'.
        model: the model id.
        query: the text to compare documents against.
        top_n: how many results to return; None returns all.
        keep_documents: whether the results carry the documents' text.
        deadline: on the loop's clock; None means none. It decides whether a wait for a retry is
            begun; ending the call is its scope's.

    Attributes:
        last_error: how the last attempt that failed did so, or None.
        documents: how many have been read and cut into chunks; those of the chunks in `_pending`
            have neither an answer nor an error yet.
        retries: failed attempts after which another one was due.
    """

    __slots__ = (
        "_deadline",
        "_failure",
        "_group",
        "_keep_documents",
        "_merger",
        "_model",
        "_number",
        "_pending",
        "_query",
        "_scope",
        "_shared",
        "_sizes",
        "_top_n",
        "_total",
        "documents",
        "last_error",
        "retries",
    )

    def __init__(
        self,
        shared: Shared,
        number: int,
        model: str,
        query: str,
        top_n: int | None,
        keep_documents: bool,
        deadline: float | None,
    ) -> None:
        self._shared = shared
        self._number = number
        self._model = model
        self._query = query
        self._top_n = top_n
        self._keep_documents = keep_documents
        self._deadline = deadline
        # None for a stream.
        self._total: int | None = None
        self._sizes = shared.origin.sizes(model)
        self.documents = 0
        # By their first document.
        self._pending: dict[int, Chunk] = _NONE_PENDING
        self._merger: Merger | None = None
        self._group: asyncio.TaskGroup | None = None
        self._scope: Scope | None = None
        self._failure: BaseException | None = None
        self.last_error: RerankError | None = None
        self.retries = 0

    async def run(self, documents: Documents) -> RerankResponse:
        """Send the documents, in as many requests as they need, and merge the answers."""
        shared = self._shared
        limits, dialect = shared.limits, shared.dialect
        refused: BadRequestError | None = None
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
                self.documents = self._total
                parcel = self._pack(first)
                if self._pieces(parcel) == 1:
                    # A hundred thousand calls may wait: here, where each has few frames yet.
                    if (turn := self._line_up(parcel)) is not None:
                        try:
                            await turn
                        except asyncio.CancelledError:
                            self._step_out(parcel, turn)
                            raise
                    parcel.has_slot = True
                    try:
                        answer = await self._exchange(parcel)
                    except BadRequestError as error:
                        if self._total == 1 or not self._may_be_cut(error):
                            raise
                        refused = error.with_traceback(None)
                    else:
                        return ranking_of(
                            first, answer, self._top_n, self._keep_documents, self._model
                        )
                del parcel
            chunks = iterate(() if first is None else chain((first,), pieces))
        else:
            chunker = Chunker(limits, self._query, envelope, dialect.document_bytes)
            if isinstance(documents, AsyncIterable):
                chunks = _stream(documents, chunker)
            else:
                chunks = iterate(stream(documents, chunker))
        return await self._run_chunks(chunks, refused)

    def forget(self) -> None:
        """Let go of the errors, whose tracebacks hold this call."""
        self.last_error = self._failure = None

    def best_so_far(self, error: DeadlineExceededError) -> RerankResponse:
        """What a partial call has when its deadline passes: every index read, scored or named."""
        merger = self._merger or Merger(self._top_n)
        for chunk in self._pending.values():
            merger.fail(chunk.start, chunk.stop, error)
        if self._total is not None and self.documents < self._total:
            merger.fail(self.documents, self._total, error)
        return merger.finish(self._model, complete=False)

    async def _run_chunks(
        self, chunks: AsyncGenerator[Chunk, None], refused: BadRequestError | None
    ) -> RerankResponse:
        """Score every chunk, several at once.

        Args:
            chunks: of all documents.
            refused: how the server refused the first chunk, if it was sent before.
        """
        self._pending = {}
        merger = self._merger = Merger(self._top_n, keep_documents=self._keep_documents)
        limiter = self._shared.limiter
        # As many chunks in work as there are slots: a chunk that waits to be retried counts, so
        # that a stream is read no faster than the server answers.
        room = Room(lambda: limiter.limit)
        scope = self._scope = Scope(self._shared.loop, None)

        async def work(chunk: Chunk, refused: BadRequestError | None) -> None:
            # No error leaves here: a task group would wrap it, and before Python 3.13 would leave
            # the caller's task marked as cancelled.
            try:
                await self._score(chunk, Bisection(len(chunk.documents)), refused)
            except Exception as error:
                self._end(error)
            finally:
                room.leave()

        try:
            with scope:
                async with aclosing(chunks), asyncio.TaskGroup() as self._group:
                    async for chunk in chunks:
                        self._pending[chunk.start] = chunk
                        self.documents = chunk.stop
                        await room.enter()
                        self._group.create_task(work(chunk, refused))
                        refused = None
                        # Documents that are at hand at once must not keep the loop from sending.
                        await asyncio.sleep(0)
        except BaseExceptionGroup as wrapped:
            # What the caller's own documents raised, and only that; it may be a group itself.
            self._failure = self._failure or wrapped.exceptions[0]
        finally:
            # They hold this call, and it must not hold them.
            self._group = self._scope = None
        if self._failure is not None:
            raise self._failure
        if self._pending:
            # A chunk that ended without an answer and without an error: its exchange was cancelled
            # by somebody who is not this call.
            raise _cancelled_from_outside()
        return merger.finish(self._model)

    async def _score(
        self, chunk: Chunk, search: Bisection, refused: BadRequestError | None = None
    ) -> None:
        """Score one chunk, in smaller pieces where the server takes no more or refuses some.

        Args:
            chunk: the documents.
            search: what may be spent on finding out.
            refused: how the server refused the chunk, if it was sent before.
        """
        if self._failure is not None:
            return
        if refused is not None:
            suspects = [(chunk, refused)]
        else:
            parcel = self._pack(chunk)
            pieces = self._pieces(parcel)
            if pieces > 1:
                del parcel
                # Of documents of unequal length a piece may still be too large: each is looked at.
                parts = self._cut(chunk, pieces, "learned")
                await self._side_by_side(lambda part: self._score(part, search), parts)
                return
            error = await self._deliver(parcel, search)
            # What comes now may take long, and the body is not needed any more.
            del parcel
            suspects = [] if error is None else [(chunk, error)]
        while suspects:
            doubtful: list[tuple[Chunk, BadRequestError]] = []
            for suspect, error in suspects:
                reason = refusal_of(error) or "content"
                if reason == "content":
                    doubtful.append((suspect, error))
                elif len(suspect.documents) > 1 and search.may_halve():
                    # One half finds out how much the server takes, the other is cut to that.
                    for half in self._cut(suspect, 2, reason):
                        await self._score(half, search)
                else:
                    self._fail(suspect, error)
            goes_on = bool(doubtful) and search.next_round()
            halves: list[Chunk] = []
            for suspect, error in doubtful:
                if len(suspect.documents) > 1 and goes_on and search.may_halve():
                    halves += self._cut(suspect, 2, "refused")
                else:
                    # Where nothing was taken, the first refusal says it best.
                    self._fail(suspect, error if search.scored or refused is None else refused)
            refusals = await self._side_by_side(
                lambda half: self._deliver(self._pack(half), search), halves
            )
            suspects = [
                (half, refusal)
                for half, refusal in zip(halves, refusals, strict=True)
                if refusal is not None
            ]

    async def _side_by_side(
        self, work: Callable[[Chunk], Awaitable[T]], chunks: list[Chunk]
    ) -> list[T | None]:
        """Do something with several chunks at the same time; an error of one ends the call."""

        async def do(chunk: Chunk) -> T | None:
            try:
                return await work(chunk)
            except Exception as error:
                self._end(error)
                return None

        assert self._group is not None
        tasks = [self._group.create_task(do(chunk)) for chunk in chunks]
        return [await task for task in tasks]

    async def _deliver(self, parcel: _Parcel, search: Bisection) -> BadRequestError | None:
        """Merge the answer to one parcel; return how it was refused where smaller ones may do."""
        assert self._merger is not None
        chunk = parcel.chunk
        answer: Answer | None = None
        try:
            answer = await self._exchange(parcel)
            self._merger.add(chunk, answer)
        except Exception as error:
            # With an answer at hand it is the merge that failed: the answers do not fit together,
            # and which of them came first must not decide who is missing.
            if answer is not None:
                self._end(error)
                return None
            if isinstance(error, BadRequestError) and self._may_be_cut(error):
                # Its traceback holds this frame, and the frame the body.
                return error.with_traceback(None)
            self._fail(chunk, error)
            return None
        search.scored = True
        del self._pending[chunk.start]
        return None

    def _may_be_cut(self, error: BadRequestError) -> bool:
        return self._shared.limits.split_refused and refusal_of(error) is not None

    def _fail(self, chunk: Chunk, error: Exception) -> None:
        """Note that these documents have no score, or end the call where that is too much."""
        if (
            not self._shared.partial
            or not isinstance(error, RerankError)
            or isinstance(error, _CONDEMNING)
        ):
            self._end(error)
            return
        assert self._merger is not None
        self._merger.fail(chunk.start, chunk.stop, error)
        del self._pending[chunk.start]

    def _end(self, error: Exception) -> None:
        """Let the call fail with this error, unless it fails already."""
        self._failure = self._failure or error
        if self._scope is not None:
            self._scope.end("failed")

    def _cut(self, chunk: Chunk, pieces: int, reason: str) -> list[Chunk]:
        self._shared.emit(Split(self._number, chunk.start, len(chunk.documents), pieces, reason))
        parts = list(chunk.cut(pieces))
        del self._pending[chunk.start]
        self._pending.update((part.start, part) for part in parts)
        return parts

    def _pack(self, chunk: Chunk) -> _Parcel:
        shared, documents = self._shared, chunk.documents
        top_n = None if self._top_n is None else min(self._top_n, len(documents))
        tokens = 0
        if shared.limiter.counts_tokens:
            tokens = shared.limits.tokens(self._query, documents)
        return _Parcel(chunk, top_n, tokens)

    def _encode(self, parcel: _Parcel) -> HttpRequest:
        """The request, encoded once for all attempts."""
        if parcel.request is None:
            shared, documents = self._shared, parcel.chunk.documents
            try:
                body = shared.dialect.encode_request(
                    self._model, self._query, documents, parcel.top_n
                )
            except TypeError:
                check_unicode(documents, parcel.chunk.start)
                raise
            parcel.size = len(body)
            parcel.request = HttpRequest("POST", shared.url, shared.endpoint.headers, body)
        return parcel.request

    def _pieces(self, parcel: _Parcel) -> int:
        """In how many requests to send it, by what is known of the server."""
        if not (self._sizes.is_limited and self._shared.limits.split_refused):
            return 1
        self._encode(parcel)
        encode = self._shared.dialect.encode_request
        envelope = len(encode(self._model, self._query, (), parcel.top_n))
        return self._sizes.pieces(len(parcel.chunk.documents), parcel.size, envelope)

    async def _exchange(self, parcel: _Parcel) -> Answer:
        """One parcel's answer, retries included."""
        shared = self._shared
        answer: Answer | None = None
        first: list[RerankError] = []
        try:
            answer = await self._attempt(parcel, 1)
        except RerankError as error:
            if not is_retryable(error):
                raise
            # Its traceback holds this frame, and the frame the body: without it nothing has to wait
            # for the garbage collector.
            first.append(error.with_traceback(None))
        if answer is None:
            answer = await self._repeat(parcel, first.pop())
        else:
            shared.origin.budget.add()
        return answer

    async def _repeat(self, parcel: _Parcel, first_error: RerankError) -> Answer:
        """Go on after a first attempt that failed: as the policy, the budget and the time allow."""
        # Not at the head of the file: tenacity takes 8 ms to import, and most processes that import
        # this package never see a failure.
        from rerank_async._retry import retry

        shared, chunk, budget = self._shared, parcel.chunk, self._shared.origin.budget
        began = shared.loop.time()
        cost = tried = 0

        def decide(error: RerankError, number: int) -> float | None:
            nonlocal cost, tried
            tried = number
            needed = self._expected(chunk)
            draw = shared.dice.random()
            delay = retry_delay(shared.policy, error, number, draw, self._left(), needed)
            left = self._left()
            if delay is None or (left is not None and shared.limiter.gate + needed >= left):
                return None
            cost = THROTTLE_COST if is_throttle(error) else RETRY_COST
            if not budget.take(cost):
                error.budget_exhausted = True
                return None
            # Whoever keeps the event must not keep the frames, and with them the body.
            self._tell_retry(chunk, number, delay, error.with_traceback(None))
            return delay

        try:
            answer = await retry(
                partial(self._attempt, parcel), first_error, decide=decide, sleep=asyncio.sleep
            )
        except RerankError as error:
            if not self._can_wait_out(error, began):
                if error.budget_exhausted:
                    error.context = f"{error.context}; not repeated: the retry budget is used up"
                raise
            error.budget_exhausted = False
            last = error.with_traceback(None)
        else:
            budget.add(cost)
            self.last_error = None
            return answer
        answer = await self._wait_out(parcel, last, tried)
        self.last_error = None
        return answer

    def _can_wait_out(self, error: RerankError, began: float) -> bool:
        """Whether this is the server's outage and not this request's own, and may be waited out."""
        policy, origin = self._shared.policy, self._shared.origin
        hint = getattr(error, "retry_after", None)
        return (
            policy.max_outage is not None
            and is_outage(error)
            and (hint is None or hint <= policy.longest_hint)
            and (error.budget_exhausted or is_throttle(error) or origin.answered_at < began)
        )

    async def _wait_out(self, parcel: _Parcel, error: RerankError, number: int) -> Answer:
        """Stay parked until the server answers somebody: of all that are, one at a time asks.

        Args:
            parcel: what to send.
            error: how its last attempt failed.
            number: of that attempt.
        """
        policy, origin, loop = self._shared.policy, self._shared.origin, self._shared.loop
        assert policy.max_outage is not None
        # Answers after `heard` are news. A request that fails while others are answered has itself
        # to blame in the end, unless the server only asks it to come back.
        heard = loop.time()
        until = heard + policy.max_outage
        misses = throttles = 0
        parcel.is_parked = True
        while misses < policy.attempts and loop.time() < until:
            is_back = False
            number += 1
            try:
                async with origin.probing:
                    if loop.time() >= until:
                        break
                    if origin.answered_at <= heard:
                        return await self._ask(parcel, number, error, origin.probes, until)
                # Nobody has to ask alone any more.
                is_back, heard = True, loop.time()
                tries = misses + throttles + 1
                return await self._ask(parcel, number, error, tries, until)
            except RerankError as again:
                if not is_outage(again):
                    raise
                error = again.with_traceback(None)
            if is_back and is_throttle(error):
                throttles += 1
            elif is_back:
                misses += 1
            else:
                origin.probes += 1
        raise error

    async def _ask(
        self, parcel: _Parcel, number: int, error: RerankError, failures: int, until: float
    ) -> Answer:
        """Make an attempt, after a wait that grows with the failures before it, up to `until`."""
        delay = 0.0
        if failures:
            longest = min(_LONGEST_PROBE_WAIT, 2.0 ** min(failures - 1, 10))
            delay = min(
                self._shared.dice.random() * longest, max(0.0, until - self._shared.loop.time())
            )
        self._tell_retry(parcel.chunk, number - 1, delay, error)
        await asyncio.sleep(delay)
        return await self._attempt(parcel, number)

    async def _attempt(self, parcel: _Parcel, number: int) -> Answer:
        """One attempt: a slot, and the wire; perhaps a second slot, and a backup."""
        shared, documents = self._shared, len(parcel.chunk.documents)
        limiter = shared.limiter
        if parcel.has_slot:
            parcel.has_slot = False
        elif (turn := self._line_up(parcel, again=number > 1 and not parcel.is_parked)) is not None:
            try:
                await turn
            except asyncio.CancelledError:
                self._step_out(parcel, turn)
                raise
        # What it weighed when the slot was taken is what is given back.
        size = parcel.weight
        attempt = _Attempt(number)
        if shared.hedge is not None:
            return await self._hedged(parcel, size, attempt, shared.hedge)
        try:
            return await self._send(parcel, attempt)
        finally:
            limiter.give(documents, size, attempt.started, attempt.ending)

    def _line_up(self, parcel: _Parcel, *, again: bool = False) -> asyncio.Future[None] | None:
        """Take a slot, or a place in the line for one; None when it was taken."""
        limiter, documents = self._shared.limiter, len(parcel.chunk.documents)
        if limiter.counts_bytes:
            self._encode(parcel)
            parcel.weight = parcel.size
        if limiter.take(documents, parcel.weight, parcel.tokens):
            return None
        left = self._left()
        if left is not None and limiter.gate >= left:
            raise DeadlineExceededError(
                f"the server asked everybody to wait for {limiter.gate:.1f} s more, and the "
                f"call's timeout leaves {max(0.0, left):.1f} s"
            ) from self.last_error
        # Whatever cannot be sent is said now, and not after the wait.
        check_unicode(parcel.chunk.documents, parcel.chunk.start)
        if not limiter.counts_bytes:
            # Encoded to find out its size; what waits must not take up the memory twice.
            parcel.request = None
        return limiter.line_up(documents, parcel.weight, parcel.tokens, again=again)

    def _step_out(self, parcel: _Parcel, turn: asyncio.Future[None]) -> None:
        documents = len(parcel.chunk.documents)
        self._shared.limiter.step_out(turn, documents, parcel.weight, parcel.tokens)

    async def _hedged(
        self, parcel: _Parcel, size: int, attempt: _Attempt, hedge: HedgePolicy
    ) -> Answer:
        """An attempt, and a backup when it takes long; the first valid answer counts."""
        shared, chunk = self._shared, parcel.chunk
        origin, documents = shared.origin, len(chunk.documents)
        delay = origin.latencies.percentile(
            shared.loop.time(), documents, hedge.percentile, hedge.min_samples
        )
        origin.backups.earn(hedge.max_extra)
        running = {self._launch(parcel, size, attempt): attempt}
        failure: BaseException | None = None
        is_answered = False
        try:
            if delay is not None:
                done, _ = await asyncio.wait(running, timeout=max(delay, hedge.min_delay))
                if not done and self._may_back_up(parcel, size, hedge):
                    took = shared.loop.time() - attempt.started
                    shared.emit(Hedged(self._number, chunk.start, documents, took))
                    backup = _Attempt(attempt.number, hedge=True)
                    running[self._launch(parcel, size, backup)] = backup
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                # All of them are asked: asyncio complains of exceptions that nobody looked at.
                failures = {task: _failure_of(task) for task in done}
                for task, error in failures.items():
                    if error is None:
                        is_answered = True
                        return task.result()
                    failure = failure or error
                # An error holds this frame: none of these names may hold the error.
                del done, task, error, failures
        finally:
            now = shared.loop.time()
            for task, loser in running.items():
                task.cancel()
                if is_answered:
                    # It would have taken longer still: without it the slow would not be known of.
                    origin.latencies.record(now, documents, now - loser.started)
            if running:
                await asyncio.gather(*running, return_exceptions=True)
        assert failure is not None
        try:
            raise failure
        finally:
            del failure

    def _launch(self, parcel: _Parcel, size: int, attempt: _Attempt) -> asyncio.Task[Answer]:
        """Send in a task of its own; the slot is given back when that ends, begun or not."""
        shared = self._shared
        attempt.started = shared.loop.time()

        def over(_: object) -> None:
            documents = len(parcel.chunk.documents)
            shared.limiter.give(documents, size, attempt.started, attempt.ending)

        task = shared.loop.create_task(self._send(parcel, attempt))
        task.add_done_callback(over)
        return task

    def _may_back_up(self, parcel: _Parcel, size: int, hedge: HedgePolicy) -> bool:
        """Whether a backup may go now; then it is paid for, and has a slot."""
        shared, origin, left = self._shared, self._shared.origin, self._left()
        documents = len(parcel.chunk.documents)
        if (
            shared.loop.time() - origin.throttled_at < hedge.quiet
            or (left is not None and left <= self._expected(parcel.chunk))
            or not origin.backups.can_spend()
            or not origin.budget.take(HEDGE_COST)
        ):
            return False
        if not shared.limiter.take(documents, size, parcel.tokens):
            origin.budget.add(HEDGE_COST)
            return False
        origin.backups.spend()
        return True

    async def _send(self, parcel: _Parcel, attempt: _Attempt) -> Answer:
        """The wire, under the attempt's own time, and the checks; with its slot taken."""
        shared, chunk = self._shared, parcel.chunk
        start, documents = chunk.start, len(chunk.documents)
        number, hedge = attempt.number, attempt.hedge
        request = self._encode(parcel)
        loop, emit, call = shared.loop, shared.emit, self._number
        if emit.wants(AttemptStarted):
            emit.tell(AttemptStarted(call, start, documents, number, hedge))
        attempt.started = started = loop.time()
        timeout, deadline = shared.policy.attempt_timeout, self._deadline
        if timeout is not None and deadline is not None and deadline - started <= timeout:
            # The call's own deadline comes first.
            timeout = None
        try:
            response = await shared.transport.exchange(
                request,
                # A result takes 80 bytes; a server that echoes the documents escapes them.
                body_limit=2**20 + 256 * documents + 2 * parcel.size,
                timeout=timeout,
            )
            if shared.limiter.is_rated or "ratelimit" in response.headers:
                self._heed(response)
            answer = self._checked(response, documents, parcel.top_n)
        except BaseException as error:
            took = loop.time() - started
            if isinstance(error, RerankError):
                attempt.ending = ending_of(error)
                self._note(error, parcel, attempt)
            elif (
                deadline is not None
                and loop.time() >= deadline
                and took >= self._expected(parcel.chunk)
            ):
                # The call's time was over before the attempt's; to the server it is the same.
                attempt.ending = "timeout"
            emit(AttemptFinished(call, start, documents, number, hedge, took, error, None))
            raise
        attempt.ending = "answered"
        now = loop.time()
        took, tokens = now - started, answer.total_tokens
        shared.origin.answered(now, documents, took)
        self._sizes.answered(documents, parcel.size)
        if parcel.tokens and tokens is not None:
            shared.limiter.settle(parcel.tokens, tokens)
        if emit.wants_answer(documents, tokens):
            emit.tell(AttemptFinished(call, start, documents, number, hedge, took, None, tokens))
        return answer

    def _note(self, error: RerankError, parcel: _Parcel, attempt: _Attempt) -> None:
        """Say what was sent where, and remember what the server said about itself."""
        shared, chunk = self._shared, parcel.chunk
        attempts = shared.policy.attempts
        error.context = (
            f"documents {chunk.start} to {chunk.stop - 1} ({parcel.size:,} bytes) to "
            f"{shared.url}, attempt {attempt.number}"
            # One that waits out an outage is not counted.
            + (f" of {attempts}" if attempt.number <= attempts else "")
        )
        self.last_error = error
        if isinstance(error, StatusError) and is_throttle(error):
            shared.origin.throttled_at = shared.loop.time()
            hint = getattr(error, "retry_after", None)
            closes = (
                hint is not None
                and hint <= shared.policy.longest_hint
                and shared.limiter.close_gate(hint, shared.dice.random())
            )
            shared.emit(Throttled(self._number, error.status, hint, closes))
        reason = refusal_of(error)
        if reason == "documents" or reason == "bytes":
            self._sizes.refused(reason, len(chunk.documents), parcel.size)

    def _heed(self, response: HttpResponse) -> None:
        """Slow down where the response's headers say that little is left."""
        shared = self._shared
        shared.limiter.heed(response.headers)
        seconds = exhausted_for(response.headers)
        if seconds is not None and seconds <= shared.policy.longest_hint:
            shared.limiter.close_gate(seconds, shared.dice.random())

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
        raise error_for_status(
            response.status,
            error_message(shared.endpoint.redact(response.body)),
            shared.endpoint.redact_headers(response.headers),
            retry_after(response.headers, time.time()),
        )

    def _tell_retry(self, chunk: Chunk, number: int, delay: float, error: RerankError) -> None:
        self.retries += 1
        self._shared.emit(
            AttemptRetried(self._number, chunk.start, len(chunk.documents), number, delay, error)
        )

    def _left(self) -> float | None:
        """Seconds until the deadline."""
        return None if self._deadline is None else self._deadline - self._shared.loop.time()

    def _expected(self, chunk: Chunk) -> float:
        """Seconds that an attempt is likely to take."""
        median = self._shared.origin.latencies.percentile(
            self._shared.loop.time(), len(chunk.documents), 0.5
        )
        return max(_SHORTEST_ATTEMPT, median or 0.0)


def _cancelled_from_outside() -> TransportError:
    return TransportError("an exchange was cancelled from outside the call")


def _failure_of(task: asyncio.Task[Answer]) -> BaseException | None:
    if task.cancelled():
        return _cancelled_from_outside()
    return task.exception()


async def _stream(documents: AsyncIterable[str], chunker: Chunker) -> AsyncGenerator[Chunk, None]:
    async with closing_iterator(documents) as source:
        async for document in source:
            if (chunk := chunker.feed(document)) is not None:
                yield chunk
    if (chunk := chunker.flush()) is not None:
        yield chunk
