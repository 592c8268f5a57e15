"""One parcel: a chunk as it goes on the wire, and its way to an answer.

The order of the policies is the order of the methods, from the outside in: `answer` holds the
retries, `_attempt` the slot and the backup; innermost, in `_send`, is the wire.
So a wait for a retry holds no slot, and each attempt is counted and timed by itself.
A line belongs here when it connects rooms for the sake of one request; what becomes of a call's
other chunks is in `_call`, what can be decided without waiting has a room of its own, and so have
retries (`_retry`), backups (`_hedging`), outages (`_parking`) and what comes back (`_receiving`).
"""

from __future__ import annotations

import asyncio
import copy
import io
from functools import partial
from types import TracebackType

from msgspec import Struct

from rerank_async._answers import Answer
from rerank_async._chunking import Chunk, check_unicode
from rerank_async._errors import (
    DeadlineExceededError,
    InvalidRequestError,
    RerankError,
    StatusError,
    TransportError,
)
from rerank_async._flow import Ending
from rerank_async._flow.budget import HEDGE_COST, RETRY_COST, THROTTLE_COST
from rerank_async._flow.hints import exhausted_for
from rerank_async._flow.load import Load
from rerank_async._flow.outage import NEVER_REACHED
from rerank_async._flow.sizes import LearnedSizes
from rerank_async._hedging import hedge
from rerank_async._http import HttpRequest, HttpResponse
from rerank_async._listeners import Emitter
from rerank_async._moments import GRAIN
from rerank_async._parking import wait_out
from rerank_async._policy import (
    HedgePolicy,
    ending_of,
    is_outage,
    is_retryable,
    is_throttle,
    refusal_of,
    retry_delay,
)
from rerank_async._private import Private, hide_frames
from rerank_async._receiving import receive
from rerank_async._route import Ask, Route, Sender, Trail
from rerank_async.events import (
    AttemptFinished,
    AttemptRetried,
    AttemptStarted,
    Hedged,
    Throttled,
    Waiting,
)

__all__ = ["Parcel", "pack"]

# Bodies of more characters or texts than these are written in pieces.
_LARGE_TEXT = 2**20
_MANY_TEXTS = 2**14
# An attempt is expected to take at least so many seconds where nothing is known.
_SHORTEST_ATTEMPT = 0.05


class _Attempt(Struct):
    """One time that a parcel is put on the wire.

    Attributes:
        number: the attempt's number; 1 for the first.
        hedge: whether it is a backup.
        started: the time when it went on the wire, on the loop's clock.
        ending: the way it ended, as far as the load is concerned; "other" until it has.
        is_over: whether it was begun and has given its slot back.
    """

    number: int
    hedge: bool = False
    started: float = 0.0
    ending: Ending = "other"
    is_over: bool = False


class Parcel(Private, Struct, eq=False):
    """A chunk on its way to an answer; `pack` makes it, `answer` sends it.

    Attributes:
        sender: the session's means of sending.
        route: the server that it goes to.
        ask: the call's wishes.
        trail: the call's notes, where this parcel adds its own.
        chunk: the documents.
        top_n: the number of results that are asked for; None asks for all.
        sizes: what the model is known to take in one request.
        load: the parcel's weight: bytes and tokens are 0 where nobody counts them.
        request: the bytes; None before they are needed, which is when there is a slot for them:
            what waits must not take up the memory twice.
    """

    sender: Sender
    route: Route
    ask: Ask
    trail: Trail
    chunk: Chunk
    top_n: int | None
    sizes: LearnedSizes
    load: Load
    request: HttpRequest | None = None

    def __repr__(self) -> str:
        # Neither documents nor a query in the frames that a traceback shows.
        return f"<Parcel {self.chunk}>"

    def pieces(self) -> int:
        """In how many requests to send it, by what is known of the server."""
        if not (self.sizes.is_limited and self.sender.limits.split_refused):
            return 1
        ask = self.ask
        size = len(self.encoded().body)
        encode = self.route.dialect.encode_request
        envelope = len(encode(ask.model, ask.query, (), self.top_n))
        return self.sizes.pieces(self.sender.loop.time(), self.load.documents, size, envelope)

    async def answer(self, has_slot: bool = False) -> Answer:
        """The answer, retries included.

        Args:
            has_slot: whether a slot was taken for its first attempt already.
        """
        sender = self.sender
        has_slot = has_slot or self.takes_slot()
        try:
            if has_slot and sender.hedge is None:
                # Most go this way: `_attempt` would have nothing to add.
                answer = await self._send(_Attempt(1))
            else:
                answer = await self._attempt(1, has_slot)
        except RerankError as error:
            if not is_retryable(error):
                raise
            # Its traceback holds this frame, and the frame the body: without it nothing has to wait
            # for the garbage collector.
            retries = self._repeat(error.with_traceback(None))
        else:
            budget = self.route.origin.budget
            if not budget.is_full:
                budget.add()
            return answer
        # Not up there: what fails next would carry this failure as its context.
        return await retries

    async def _attempt(
        self, number: int, has_slot: bool = False, is_parked: bool = False
    ) -> Answer:
        """One attempt: a slot, and the wire; perhaps a second slot, and a backup.

        Args:
            number: the attempt's number; 1 for the first.
            has_slot: whether a slot was taken for it already.
            is_parked: whether it asks if the server is back: then it does not go before others.
        """
        if not has_slot and not self.takes_slot():
            with self.line_up(again=number > 1 and not is_parked) as turn:
                await turn
        policy = self.sender.hedge
        if policy is None:
            return await self._send(_Attempt(number))
        # Until the answer is here, not only in the task that has it.
        self.trail.on_wire += 1
        try:
            return await self._hedged(number, policy)
        finally:
            self.trail.on_wire -= 1

    # ── the slot ──

    def takes_slot(self) -> bool:
        """Take a slot if one is free and nobody waits; say whether it was taken."""
        return self.sender.limiter.take(self.load)

    def line_up(self, again: bool = False) -> _Place:
        """Take a place in the line for a slot; whatever cannot be sent is said now, not later.

        Args:
            again: whether it comes back for a retry: those go before newcomers.
        """
        limiter, left = self.sender.limiter, self._left()
        if left is not None and limiter.gate >= left - GRAIN:
            raise DeadlineExceededError(
                f"the server asked everybody to wait for {limiter.gate:.1f} s more, and the "
                f"call's timeout leaves {max(0.0, left):.1f} s"
            ) from self.trail.last_error
        if not self.is_large():
            check_unicode(self.chunk.documents, self.chunk.positions)
        # Encoded to find out its size; what waits must not take up the memory twice.
        if not limiter.counts_bytes:
            self.request = None
        turn = limiter.line_up(self.load, again=again)
        if self.sender.emit.is_heard and not turn.done():
            reason = limiter.waiting_for
            gate = limiter.gate if reason == "gate" else None
            self.tell_wait(reason, gate, self.trail.last_error)
        return _Place(self, turn)

    # ── the retries ──

    async def _repeat(self, first_error: RerankError) -> Answer:
        """Go on after a first attempt that failed: as the policy, the budget and the time allow."""
        # Not at the head of the file: tenacity is large (`benchmarks/importing.py`), and most
        # processes that import this package never see a failure.
        from rerank_async._retry import retry

        trail, sender, budget = self.trail, self.sender, self.route.origin.budget
        began = sender.loop.time()
        cost = tried = 0

        def decide(error: RerankError, number: int) -> float | None:
            nonlocal cost, tried
            tried = number
            needed = self._expected()
            draw = sender.dice.random()
            delay = retry_delay(sender.policy, error, number, draw, self._left(), needed)
            left = self._left()
            if trail.condemned_by is not None or self._is_out_of_reach(began):
                return None
            if delay is None or (left is not None and sender.limiter.gate + needed >= left - GRAIN):
                return None
            cost = THROTTLE_COST if is_throttle(error) else RETRY_COST
            if not budget.take(sender.loop.time(), cost):
                error.budget_exhausted = True
                return None
            # Whoever keeps the event must not keep the frames, and with them the body.
            self._tell_retry(number, delay, error.with_traceback(None))
            return delay

        # Not of this parcel: what tenacity holds on to is not gone at once.
        sleep = partial(_back_off, sender.emit)
        try:
            answer = await retry(self._attempt, first_error, decide=decide, sleep=sleep)
        except RerankError as error:
            if not self._can_wait_out(error, began):
                if error.budget_exhausted:
                    error.context = f"{error.context}; not repeated: the retry budget is used up"
                if trail.verdicts is not None:
                    # It may have been retried against its status, by the server's word.
                    trail.verdicts.hear(error, trail)
                raise
            error.budget_exhausted = False
            last = error.with_traceback(None)
        else:
            budget.add(cost)
            trail.last_error = None
            return answer
        answer = await self._wait_out(last, tried)
        trail.last_error = None
        return answer

    def _can_wait_out(self, error: RerankError, began: float) -> bool:
        """Whether this is the server's outage and not this request's own, and may be waited out."""
        policy, origin, hint = self.sender.policy, self.route.origin, error.retry_after
        return (
            policy.max_outage is not None
            and self.trail.condemned_by is None
            and is_outage(error)
            and (hint is None or hint <= policy.longest_hint)
            and (error.budget_exhausted or is_throttle(error) or origin.answered_at < began)
        )

    def _is_out_of_reach(self, began: float) -> bool:
        """Whether a patient policy has no patience left for a server that was never reached.

        Where every attempt takes 10 s to fail, the policy's attempts would take minutes.
        """
        return (
            self.sender.policy.max_outage is not None
            and not self.route.origin.was_reached
            and self.sender.loop.time() - began >= NEVER_REACHED - GRAIN
        )

    async def _wait_out(self, error: RerankError, number: int) -> Answer:
        """Stay parked until the server answers somebody, and say so meanwhile.

        Args:
            error: the error of its last attempt.
            number: the number of that attempt.
        """
        sender = self.sender
        patience = sender.policy.max_outage
        assert patience is not None
        self.tell_wait("outage", None, error)
        sender.emit.parked += 1
        try:
            return await wait_out(
                partial(self._attempt, is_parked=True),
                error,
                number,
                origin=self.route.origin,
                patience=patience,
                attempts=sender.policy.attempts,
                now=sender.loop.time,
                draw=sender.dice.random,
                is_wanted=lambda: self.trail.condemned_by is None,
                pause=self._pause,
            )
        finally:
            sender.emit.parked -= 1

    async def _pause(self, number: int, delay: float, error: RerankError) -> None:
        """Wait before the next attempt, and tell whoever listens."""
        self._tell_retry(number, delay, error)
        await asyncio.sleep(delay)

    # ── the backup ──

    async def _hedged(self, number: int, policy: HedgePolicy) -> Answer:
        """An attempt, and a backup when it takes long; the first valid answer counts."""
        loop, origin, documents = self.sender.loop, self.route.origin, self.load.documents
        delay = origin.latencies.percentile(
            loop.time(), documents, policy.percentile, policy.min_samples
        )
        origin.backups.earn(policy.max_extra)
        attempts: list[_Attempt] = []

        def launch(is_backup: bool) -> asyncio.Task[Answer]:
            attempts.append(_Attempt(number, is_backup))
            return self._launch(attempts[-1])

        def decide() -> bool:
            if not self._may_back_up(policy):
                return False
            took = loop.time() - attempts[0].started
            self.sender.emit(Hedged(self.ask.number, self.chunk.start, documents, took))
            return True

        def lost(is_backup: bool) -> None:
            # It would have taken longer still: without it the slow would not be known of.
            now = loop.time()
            origin.latencies.record(now, documents, now - attempts[is_backup].started)

        return await hedge(
            launch,
            delay=None if delay is None else max(delay, policy.min_delay),
            decide=decide,
            lost=lost,
        )

    def _launch(self, attempt: _Attempt) -> asyncio.Task[Answer]:
        """Send in a task of its own; the slot is given back when that ends, begun or not."""
        loop = self.sender.loop
        attempt.started = loop.time()

        def over(_: object) -> None:
            if not attempt.is_over:
                # Cancelled before its first step.
                self.sender.limiter.give(self.load, attempt.started, attempt.ending)

        task = loop.create_task(self._send(attempt))
        task.add_done_callback(over)
        return task

    def _may_back_up(self, policy: HedgePolicy) -> bool:
        """Whether a backup may go now; then it is paid for, and has a slot."""
        origin, left, now = self.route.origin, self._left(), self.sender.loop.time()
        if (
            self.trail.condemned_by is not None
            or now - origin.throttled_at < policy.quiet - GRAIN
            or (left is not None and left <= self._expected() + GRAIN)
            or not origin.backups.can_spend()
            or not origin.budget.take(now, HEDGE_COST)
        ):
            return False
        if not self.takes_slot():
            origin.budget.add(HEDGE_COST)
            return False
        origin.backups.spend()
        return True

    # ── the wire ──

    async def _send(self, attempt: _Attempt) -> Answer:
        """The wire, under the attempt's own time, and the checks; gives the slot back."""
        ask, trail, sender, route = self.ask, self.trail, self.sender, self.route
        call, deadline, load = ask.number, ask.deadline, self.load
        loop, emit, sizes = sender.loop, sender.emit, self.sizes
        documents = load.documents
        try:
            request = self.request
            if request is None:
                request = await self._encode_in_pieces() if self.is_large() else self.encoded()
            if trail.condemned_by is not None:
                raise copy.copy(trail.condemned_by)
            size = len(request.body)
            emit.requests += 1
            if emit.is_heard:
                start, number, is_backup = self.chunk.start, attempt.number, attempt.hedge
                emit.tell(AttemptStarted(call, start, documents, number, is_backup))
            attempt.started = started = loop.time()
            timeout = sender.policy.attempt_timeout
            if (
                timeout is not None
                and deadline is not None
                and deadline - started <= timeout + GRAIN
            ):
                # The call's own deadline comes first.
                timeout = None
            # A backup is not counted by itself, and nobody asks who belongs to no stream.
            is_counted = trail.verdicts is not None and sender.hedge is None
            if is_counted:
                trail.on_wire += 1
            try:
                response = await sender.transport.exchange(
                    request,
                    # A result takes 80 bytes; a server that echoes the documents escapes them.
                    body_limit=2**20 + 256 * documents + 2 * size,
                    timeout=timeout,
                )
                if sender.limiter.is_rated or "ratelimit" in response.headers:
                    self._heed(response)
                answer = receive(
                    response,
                    route=route,
                    model=ask.model,
                    chunk=self.chunk,
                    top_n=self.top_n,
                    partial=sender.partial,
                )
            except BaseException as error:
                # Whoever hears of it must not hear the body as well.
                hide_frames(error)
                self._note_failure(attempt, error, size)
                raise
            finally:
                if is_counted:
                    trail.on_wire -= 1
            attempt.ending = "answered"
            now = loop.time()
            took, tokens = now - started, answer.total_tokens
            origin = route.origin
            origin.answered_at, origin.probes = now, 0
            origin.latencies.record(now, documents, took)
            if documents > sizes.documents.answered or size > sizes.bytes.answered:
                sizes.answered(documents, size)
            if load.tokens and tokens is not None:
                sender.limiter.settle(load.tokens, tokens)
            emit.documents += documents
            emit.tokens += tokens or 0
            if emit.is_heard:
                start, number, is_backup = self.chunk.start, attempt.number, attempt.hedge
                emit.tell(
                    AttemptFinished(call, start, documents, number, is_backup, took, None, tokens)
                )
            return answer
        finally:
            attempt.is_over = True
            sender.limiter.give(load, attempt.started, attempt.ending)

    # ── what is noted of it ──

    def _note_failure(self, attempt: _Attempt, error: BaseException, size: int) -> None:
        loop, deadline = self.sender.loop, self.ask.deadline
        took = loop.time() - attempt.started
        if isinstance(error, RerankError):
            attempt.ending = ending_of(error)
            self._note(error, size, attempt.number)
        elif deadline is not None and loop.time() >= deadline - GRAIN and took >= self._expected():
            # The call's time was over before the attempt's; to the server it is the same.
            attempt.ending = "timeout"
        self.sender.emit(
            AttemptFinished(
                self.ask.number,
                self.chunk.start,
                self.load.documents,
                attempt.number,
                attempt.hedge,
                took,
                error,
                None,
            )
        )

    def _note(self, error: RerankError, size: int, number: int) -> None:
        """Say what was sent where, and remember what the server said about itself."""
        trail, sender, origin = self.trail, self.sender, self.route.origin
        if is_outage(error):
            reached = not isinstance(error, TransportError) or error.reached
            now = sender.loop.time()
            # Before it has a context: what was sent where is not what is wrong.
            origin.downtime.failed(now, origin.answered_at, str(error), reached=reached)
        attempts = sender.policy.attempts
        # Those that wait out an outage are not counted.
        counted = f" of {attempts}" if number <= attempts else ""
        error.context = (
            f"{self.chunk} ({size:,} bytes) to {self.route.url(self.ask.model)}, "
            f"attempt {number}{counted}"
        )
        trail.last_error = error
        if trail.verdicts is not None and not is_retryable(error):
            trail.verdicts.hear(error, trail)
        if isinstance(error, StatusError) and is_throttle(error):
            origin.throttled_at = sender.loop.time()
            hint = error.retry_after
            closes = (
                hint is not None
                and hint <= sender.policy.longest_hint
                and sender.limiter.close_gate(hint, sender.dice.random())
            )
            sender.emit(Throttled(self.ask.number, error.status, hint, closes))
        reason = refusal_of(error)
        if reason == "documents" or reason == "bytes":
            self.sizes.refused(sender.loop.time(), reason, self.load.documents, size)

    def _heed(self, response: HttpResponse) -> None:
        """Slow down where the response's headers say that little is left."""
        limiter = self.sender.limiter
        limiter.heed(response.headers)
        seconds = exhausted_for(response.headers)
        if seconds is not None and seconds <= self.sender.policy.longest_hint:
            limiter.close_gate(seconds, self.sender.dice.random())

    def tell_wait(self, reason: str, seconds: float | None, error: RerankError | None) -> None:
        """Tell whoever listens what this request waits for from now on."""
        number, start, documents = self.ask.number, self.chunk.start, self.load.documents
        self.sender.emit(Waiting(number, start, documents, reason, seconds, error))

    def _tell_retry(self, number: int, delay: float, error: RerankError) -> None:
        self.trail.retries += 1
        call, start, documents = self.ask.number, self.chunk.start, self.load.documents
        self.sender.emit(AttemptRetried(call, start, documents, number, delay, error))

    # ── the request and its time ──

    def encoded(self) -> HttpRequest:
        """The request, encoded once for all attempts."""
        if self.request is None:
            ask, route = self.ask, self.route
            encode, url, with_key = route.dialect.encode_request, route.url, route.endpoint.headers
            try:
                body = encode(ask.model, ask.query, self.chunk.documents, self.top_n)
                self.request = HttpRequest("POST", url(ask.model), with_key, body)
            except TypeError:
                pass
        if self.request is None:
            # Not where it failed: that error's frames hold the texts, and it would be the context.
            check_unicode(self.chunk.documents, self.chunk.positions)
            raise InvalidRequestError("the request's texts cannot be written as JSON")
        return self.request

    def is_large(self) -> bool:
        """Whether to write its body at once would keep the loop from everything else."""
        documents = self.chunk.documents
        length = sum(map(len, documents)) + len(self.ask.query)
        return length > _LARGE_TEXT or len(documents) > _MANY_TEXTS

    async def prepare(self) -> None:
        """Write a large body before its size is asked for, where it is: `pack` leaves it out."""
        counts_bytes = self.sender.limiter.counts_bytes
        if self.request is None and (counts_bytes or self.sizes.is_limited):
            if self.is_large():
                await self._encode_in_pieces()
            if counts_bytes:
                self.weigh()

    def weigh(self) -> None:
        """Count the bytes of its body."""
        self.load = Load(self.load.documents, len(self.encoded().body), self.load.tokens)

    async def _encode_in_pieces(self) -> HttpRequest:
        """The request; the loop goes on between the pieces of its body."""
        ask, route = self.ask, self.route
        # It hands out its buffer as it is: to join pieces would copy them all at once. It begins
        # about as large as it will be, without a byte being touched: a buffer that grows is copied,
        # which takes 70 ms when it happens at 70 MB (`benchmarks/stalls.py`).
        length = sum(map(len, self.chunk.documents)) + len(ask.query)
        body = io.BytesIO(bytes(length))
        pieces = route.dialect.encode_pieces(ask.model, ask.query, self.chunk.documents, self.top_n)
        try:
            for piece in pieces:
                body.write(piece)
                del piece
                await asyncio.sleep(0)
        except TypeError:
            # `encoded` says which text it was.
            return self.encoded()
        body.truncate()
        url, with_key = route.url(ask.model), route.endpoint.headers
        self.request = HttpRequest("POST", url, with_key, body.getvalue())
        return self.request

    def _left(self) -> float | None:
        """Seconds until the deadline."""
        deadline = self.ask.deadline
        return None if deadline is None else deadline - self.sender.loop.time()

    def _expected(self) -> float:
        """Seconds that an attempt is likely to take."""
        now, documents = self.sender.loop.time(), self.load.documents
        median = self.route.origin.latencies.percentile(now, documents, 0.5)
        return max(_SHORTEST_ATTEMPT, median or 0.0)


class _Place(Private, Struct, eq=False):
    """A parcel's place in the line: whoever is cancelled within it steps out.

    It is no coroutine: a hundred thousand may wait, and each would have a frame more.
    """

    parcel: Parcel
    turn: asyncio.Future[None]

    def __enter__(self) -> asyncio.Future[None]:
        """What to await; then the slot is taken."""
        return self.turn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            # No slot is taken then.
            self.parcel.sender.limiter.step_out(self.turn, self.parcel.load)


def pack(sender: Sender, route: Route, ask: Ask, trail: Trail, chunk: Chunk) -> Parcel:
    """A chunk, ready to be sent."""
    documents = chunk.documents
    # Only an answer to all of them shows whether the server leaves out blank documents.
    is_whole = ask.top_n is None or chunk.has_blanks()
    top_n = None if is_whole else min(ask.top_n or 0, len(documents))
    limiter = sender.limiter
    tokens = sender.limits.tokens(ask.query, documents) if limiter.counts_tokens else 0
    load, sizes = Load(len(documents), 0, tokens), route.origin.sizes[ask.model]
    parcel = Parcel(sender, route, ask, trail, chunk, top_n, sizes, load)
    if limiter.counts_bytes and not parcel.is_large():
        parcel.weigh()
    return parcel


async def _back_off(emit: Emitter, delay: float) -> None:
    """Wait before the next attempt; whoever asks for the statistics sees that somebody does."""
    emit.backing_off += 1
    try:
        await asyncio.sleep(delay)
    finally:
        emit.backing_off -= 1
