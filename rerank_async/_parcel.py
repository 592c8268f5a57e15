"""One parcel: a chunk as it goes on the wire, and its way to an answer.

The order of the policies is the order of the methods, from the outside in: `answer` holds the
retries, `_attempt` the slot and the backup; innermost, in `_send`, is the wire.
So a wait for a retry holds no slot, and each attempt is counted and timed by itself.
A line belongs here when it connects rooms for the sake of one request; what becomes of a call's
other chunks is in `_call`, and what can be decided without waiting has a room of its own.
"""

from __future__ import annotations

import asyncio
import copy
import io
import time
from functools import partial
from random import Random
from types import TracebackType
from typing import Protocol

from msgspec import Struct

from rerank_async._answers import Answer, check_answer
from rerank_async._chunking import Chunk, ChunkLimits, check_unicode
from rerank_async._endpoint import Endpoint
from rerank_async._errors import (
    DeadlineExceededError,
    InvalidRequestError,
    RerankError,
    ResponseError,
    StatusError,
    TransportError,
    error_for_status,
)
from rerank_async._flow import Ending
from rerank_async._flow.budget import HEDGE_COST, RETRY_COST, THROTTLE_COST
from rerank_async._flow.control import Origin
from rerank_async._flow.hints import exhausted_for, retry_after
from rerank_async._flow.limiter import Limiter
from rerank_async._flow.outage import NEVER_REACHED, Outage
from rerank_async._flow.sizes import LearnedSizes
from rerank_async._http import HttpRequest, HttpResponse, Transport
from rerank_async._listeners import Emitter
from rerank_async._moments import GRAIN
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
from rerank_async._private import Private, excerpt, hide_frames
from rerank_async._verdicts import Verdicts
from rerank_async.dialects import Dialect, error_message
from rerank_async.events import (
    AttemptFinished,
    AttemptRetried,
    AttemptStarted,
    Hedged,
    Throttled,
    Waiting,
)

__all__ = ["Caller", "Parcel", "Shared", "cancelled_from_outside", "dropped", "pack"]

# Bodies of more characters or texts than these are written in pieces.
_LARGE_TEXT = 2**20
_MANY_TEXTS = 2**14
# An attempt is expected to take at least so many seconds where nothing is known.
_SHORTEST_ATTEMPT = 0.05


class Shared(Private, Struct, frozen=True):
    """What all calls of one session have in common.

    Attributes:
        loop: the session's event loop.
        transport: carries the exchanges.
        limiter: gives out the slots.
        origin: what is known of the server, and the budgets.
        emit: tells the listeners.
        endpoint: where to send, and with which headers.
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
    dialect: Dialect
    limits: ChunkLimits
    policy: RetryPolicy
    hedge: HedgePolicy | None
    dice: Random
    partial: bool

    def url(self, model: str) -> str:
        """Where requests for a model go."""
        return self.dialect.url(self.endpoint.base_url, model)


class Caller(Protocol):
    """What a parcel knows of the call that it belongs to, and what it notes there.

    Attributes:
        shared: what the call has in common with the session's other calls.
        number: its events'.
        model: the model id.
        query: the text to compare documents against.
        top_n: how many results the call returns; None returns all.
        deadline: on the loop's clock; None means none. It decides whether a wait for a retry is
            begun; ending the call is its scope's.
        last_error: how the last attempt that failed did so, or None.
        retries: failed attempts after which another one was due.
        on_wire: how many of its parcels are on the wire; one with a backup counts once.
        verdicts: of the stream of requests that it belongs to; None when it belongs to none.
        condemned_by: why nothing more of it is sent; None as long as it may be.
    """

    shared: Shared
    number: int
    model: str
    query: str
    top_n: int | None
    deadline: float | None
    last_error: RerankError | None
    retries: int
    on_wire: int
    verdicts: Verdicts | None
    condemned_by: RerankError | None

    def is_on_the_wire(self) -> bool:
        """Whether all that is left of it has been sent: it may be answered, or has been."""
        ...


class _Attempt(Struct):
    """One time that a parcel is put on the wire.

    Attributes:
        number: 1 for the first.
        hedge: whether it is a backup.
        started: when, on the loop's clock.
        ending: how it ended; "other" until it has.
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
        call: that it belongs to.
        chunk: the documents.
        top_n: how many results are asked for.
        sizes: what the model is known to take in one request.
        tokens: that it may cost, where a rate counts them; otherwise 0.
        weight: bytes of its body, where they are limited; otherwise 0.
        drops_blanks: whether the server answered as if there were no blank documents in it, and it
            is not certain which scores are whose.
        request: the bytes; None before they are needed, which is when there is a slot for them:
            what waits must not take up the memory twice.
    """

    call: Caller
    chunk: Chunk
    top_n: int | None
    sizes: LearnedSizes
    tokens: int = 0
    weight: int = 0
    drops_blanks: bool = False
    request: HttpRequest | None = None

    def __repr__(self) -> str:
        # Neither documents nor a query in the frames that a traceback shows.
        return f"<Parcel documents {self.chunk.start} to {self.chunk.stop - 1}>"

    def pieces(self) -> int:
        """In how many requests to send it, by what is known of the server."""
        call, shared = self.call, self.call.shared
        if not (self.sizes.is_limited and shared.limits.split_refused):
            return 1
        size = len(self.encoded().body)
        envelope = len(shared.dialect.encode_request(call.model, call.query, (), self.top_n))
        documents = len(self.chunk.documents)
        return self.sizes.pieces(shared.loop.time(), documents, size, envelope)

    async def answer(self, has_slot: bool = False) -> Answer:
        """The answer, retries included.

        Args:
            has_slot: whether a slot was taken for its first attempt already.
        """
        shared = self.call.shared
        has_slot = has_slot or self.takes_slot()
        try:
            if has_slot and shared.hedge is None:
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
            budget = shared.origin.budget
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
            number: 1 for the first.
            has_slot: whether a slot was taken for it already.
            is_parked: whether it asks if the server is back: then it does not go before others.
        """
        if not has_slot and not self.takes_slot():
            with self.line_up(again=number > 1 and not is_parked) as turn:
                await turn
        attempt, hedge = _Attempt(number), self.call.shared.hedge
        if hedge is None:
            return await self._send(attempt)
        # Until the answer is here, not only in the task that has it.
        self.call.on_wire += 1
        try:
            return await self._hedged(attempt, hedge)
        finally:
            self.call.on_wire -= 1

    # ── the slot ──

    def takes_slot(self) -> bool:
        """Take a slot if one is free and nobody waits; say whether it was taken."""
        documents = len(self.chunk.documents)
        return self.call.shared.limiter.take(documents, self.weight, self.tokens)

    def line_up(self, again: bool = False) -> _Place:
        """Take a place in the line for a slot; whatever cannot be sent is said now, not later.

        Args:
            again: whether it comes back for a retry: those go before newcomers.
        """
        limiter, left = self.call.shared.limiter, self._left()
        if left is not None and limiter.gate >= left - GRAIN:
            raise DeadlineExceededError(
                f"the server asked everybody to wait for {limiter.gate:.1f} s more, and the "
                f"call's timeout leaves {max(0.0, left):.1f} s"
            ) from self.call.last_error
        documents = self.chunk.documents
        if not self.is_large():
            check_unicode(documents, self.chunk.start)
        # Encoded to find out its size; what waits must not take up the memory twice.
        if not limiter.counts_bytes:
            self.request = None
        turn = limiter.line_up(len(documents), self.weight, self.tokens, again=again)
        if self.call.shared.emit.is_heard and not turn.done():
            reason = limiter.waiting_for
            gate = limiter.gate if reason == "gate" else None
            self.tell_wait(reason, gate, self.call.last_error)
        return _Place(self, turn)

    def step_out(self, turn: asyncio.Future[None]) -> None:
        """Give up the place in the line: no slot is taken then."""
        limiter, documents = self.call.shared.limiter, len(self.chunk.documents)
        limiter.step_out(turn, documents, self.weight, self.tokens)

    # ── the retries ──

    async def _repeat(self, first_error: RerankError) -> Answer:
        """Go on after a first attempt that failed: as the policy, the budget and the time allow."""
        # Not at the head of the file: tenacity takes 8 ms to import, and most processes that import
        # this package never see a failure.
        from rerank_async._retry import retry

        call, shared = self.call, self.call.shared
        budget = shared.origin.budget
        began = shared.loop.time()
        cost = tried = 0

        def decide(error: RerankError, number: int) -> float | None:
            nonlocal cost, tried
            tried = number
            needed = self._expected()
            draw = shared.dice.random()
            delay = retry_delay(shared.policy, error, number, draw, self._left(), needed)
            left = self._left()
            if call.condemned_by is not None or self._is_out_of_reach(began):
                return None
            if delay is None or (left is not None and shared.limiter.gate + needed >= left - GRAIN):
                return None
            cost = THROTTLE_COST if is_throttle(error) else RETRY_COST
            if not budget.take(shared.loop.time(), cost):
                error.budget_exhausted = True
                return None
            # Whoever keeps the event must not keep the frames, and with them the body.
            self._tell_retry(number, delay, error.with_traceback(None))
            return delay

        # Not of this parcel: what tenacity holds on to is not gone at once.
        sleep = partial(_back_off, shared.emit)
        try:
            answer = await retry(self._attempt, first_error, decide=decide, sleep=sleep)
        except RerankError as error:
            if not self._can_wait_out(error, began):
                if error.budget_exhausted:
                    error.context = f"{error.context}; not repeated: the retry budget is used up"
                if call.verdicts is not None:
                    # It may have been retried against its status, by the server's word.
                    call.verdicts.hear(error, call)
                raise
            error.budget_exhausted = False
            last = error.with_traceback(None)
        else:
            budget.add(cost)
            call.last_error = None
            return answer
        answer = await self._wait_out(last, tried)
        call.last_error = None
        return answer

    def _can_wait_out(self, error: RerankError, began: float) -> bool:
        """Whether this is the server's outage and not this request's own, and may be waited out."""
        policy, origin = self.call.shared.policy, self.call.shared.origin
        hint = error.retry_after
        return (
            policy.max_outage is not None
            and self.call.condemned_by is None
            and is_outage(error)
            and (hint is None or hint <= policy.longest_hint)
            and (error.budget_exhausted or is_throttle(error) or origin.answered_at < began)
        )

    def _is_out_of_reach(self, began: float) -> bool:
        """Whether a patient policy has no patience left for a server that was never reached.

        Where every attempt takes 10 s to fail, the policy's attempts would take minutes.
        """
        shared = self.call.shared
        return (
            shared.policy.max_outage is not None
            and not shared.origin.was_reached
            and shared.loop.time() - began >= NEVER_REACHED - GRAIN
        )

    async def _wait_out(self, error: RerankError, number: int) -> Answer:
        """Stay parked until the server answers somebody, and say so meanwhile.

        Args:
            error: how its last attempt failed.
            number: of that attempt.
        """
        emit = self.call.shared.emit
        self.tell_wait("outage", None, error)
        emit.parked += 1
        try:
            return await self._parked(error, number)
        finally:
            emit.parked -= 1

    async def _parked(self, error: RerankError, number: int) -> Answer:
        """Ask whether the server is back: of all that are parked, one at a time does."""
        shared = self.call.shared
        policy, origin, loop = shared.policy, shared.origin, shared.loop
        assert policy.max_outage is not None
        began = loop.time()
        since = origin.downtime.parked(began)
        if not origin.was_reached:
            # Attempts that fail slowly are part of the wait.
            since = min(since, origin.downtime.since)
        outage = Outage(began, policy.max_outage, policy.attempts, since=since)
        while self.call.condemned_by is None and not outage.gives_up(
            loop.time(), reached=origin.was_reached
        ):
            is_back = False
            number += 1
            try:
                async with origin.probing:
                    if outage.gives_up(loop.time(), reached=origin.was_reached):
                        break
                    if not outage.is_news(origin.answered_at):
                        return await self._ask_again(number, error, outage, origin.probes)
                # Nobody has to ask alone any more.
                is_back = True
                outage.hear(loop.time())
                return await self._ask_again(number, error, outage, outage.failures + 1)
            except RerankError as again:
                if not is_outage(again):
                    raise
                error = again.with_traceback(None)
            if is_back:
                outage.failed(throttled=is_throttle(error))
            else:
                origin.probes += 1
        if not origin.was_reached:
            error.context = (
                f"{error.context}; given up: in {loop.time() - since:.0f} s this server was not "
                "reached once"
            )
        raise error

    async def _ask_again(
        self, number: int, error: RerankError, outage: Outage, failures: int
    ) -> Answer:
        """Make an attempt, after a wait that grows with the failures before it."""
        shared, delay = self.call.shared, 0.0
        if failures:
            reached, draw = shared.origin.was_reached, shared.dice.random()
            delay = outage.wait(shared.loop.time(), failures, draw, reached=reached)
        self._tell_retry(number - 1, delay, error)
        await asyncio.sleep(delay)
        return await self._attempt(number, is_parked=True)

    # ── the backup ──

    async def _hedged(self, attempt: _Attempt, hedge: HedgePolicy) -> Answer:
        """An attempt, and a backup when it takes long; the first valid answer counts."""
        call, shared, chunk = self.call, self.call.shared, self.chunk
        origin, documents = shared.origin, len(chunk.documents)
        delay = origin.latencies.percentile(
            shared.loop.time(), documents, hedge.percentile, hedge.min_samples
        )
        origin.backups.earn(hedge.max_extra)
        running = {self._launch(attempt): attempt}
        failure: BaseException | None = None
        is_answered = False
        try:
            if delay is not None:
                done, _ = await asyncio.wait(running, timeout=max(delay, hedge.min_delay))
                if not done and self._may_back_up(hedge):
                    took = shared.loop.time() - attempt.started
                    shared.emit(Hedged(call.number, chunk.start, documents, took))
                    backup = _Attempt(attempt.number, hedge=True)
                    running[self._launch(backup)] = backup
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

    def _launch(self, attempt: _Attempt) -> asyncio.Task[Answer]:
        """Send in a task of its own; the slot is given back when that ends, begun or not."""
        shared = self.call.shared
        attempt.started = shared.loop.time()

        def over(_: object) -> None:
            if not attempt.is_over:
                # Cancelled before its first step.
                documents = len(self.chunk.documents)
                shared.limiter.give(documents, self.weight, attempt.started, attempt.ending)

        task = shared.loop.create_task(self._send(attempt))
        task.add_done_callback(over)
        return task

    def _may_back_up(self, hedge: HedgePolicy) -> bool:
        """Whether a backup may go now; then it is paid for, and has a slot."""
        shared, origin, left = self.call.shared, self.call.shared.origin, self._left()
        if (
            self.call.condemned_by is not None
            or (now := shared.loop.time()) - origin.throttled_at < hedge.quiet - GRAIN
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
        caller, chunk = self.call, self.chunk
        shared, deadline, call = caller.shared, caller.deadline, caller.number
        start, documents = chunk.start, len(chunk.documents)
        number, hedge = attempt.number, attempt.hedge
        loop, emit, origin, sizes = shared.loop, shared.emit, shared.origin, self.sizes
        try:
            request = self.request
            if request is None:
                request = await self._encode_in_pieces() if self.is_large() else self.encoded()
            if caller.condemned_by is not None:
                raise copy.copy(caller.condemned_by)
            size = len(request.body)
            emit.requests += 1
            if emit.is_heard:
                emit.tell(AttemptStarted(call, start, documents, number, hedge))
            attempt.started = started = loop.time()
            timeout = shared.policy.attempt_timeout
            if (
                timeout is not None
                and deadline is not None
                and deadline - started <= timeout + GRAIN
            ):
                # The call's own deadline comes first.
                timeout = None
            is_alone = shared.hedge is None
            caller.on_wire += is_alone
            try:
                response = await shared.transport.exchange(
                    request,
                    # A result takes 80 bytes; a server that echoes the documents escapes them.
                    body_limit=2**20 + 256 * documents + 2 * size,
                    timeout=timeout,
                )
                if shared.limiter.is_rated or "ratelimit" in response.headers:
                    self._heed(response)
                answer = self._checked(response)
            except BaseException as error:
                # Whoever hears of it must not hear the body as well.
                hide_frames(error)
                self._note_failure(attempt, error, size)
                raise
            finally:
                caller.on_wire -= is_alone
            attempt.ending = "answered"
            now = loop.time()
            took, tokens = now - started, answer.total_tokens
            origin.answered_at, origin.probes = now, 0
            origin.latencies.record(now, documents, took)
            if documents > sizes.documents.answered or size > sizes.bytes.answered:
                sizes.answered(documents, size)
            if self.tokens and tokens is not None:
                shared.limiter.settle(self.tokens, tokens)
            emit.documents += documents
            emit.tokens += tokens or 0
            if emit.is_heard:
                emit.tell(
                    AttemptFinished(call, start, documents, number, hedge, took, None, tokens)
                )
            return answer
        finally:
            attempt.is_over = True
            shared.limiter.give(documents, self.weight, attempt.started, attempt.ending)

    def _checked(self, response: HttpResponse) -> Answer:
        shared = self.call.shared
        # The body has no name here: a traceback that shows the values of names would show a key
        # that the server quotes.
        if response.status == 200:
            try:
                answer = self._decoded(response.body, self.top_n)
            except RerankError:
                if not shared.endpoint.is_quoted(response.body) and not self.chunk.has_blanks():
                    raise
            else:
                # Most servers name the model that they were asked for. It has no name here either.
                if (
                    answer.model is None
                    or answer.model == self.call.model
                    or not shared.endpoint.is_quoted(answer.model.encode())
                ):
                    return answer
                del answer
            if (rest := self._without_blanks(response)) is not None:
                return rest
            # Once more without the key, so that what is wrong with it can be said as always.
            self._decoded(shared.endpoint.redact(response.body), self.top_n)
            words = error_message(shared.endpoint.redact(response.body))
            raise ResponseError(f"the answer quotes the API key: {words}")
        failure = shared.dialect.classify(response.status, shared.endpoint.redact(response.body))
        raise error_for_status(
            response.status,
            failure.message,
            shared.endpoint.redact_headers(response.headers),
            retry_after(response.headers, time.time()),
            code=failure.code,
            param=failure.param,
            means=failure.means,
        )

    def _decoded(self, body: bytes, top_n: int | None) -> Answer:
        """What an answer says, believed after its check: a dialect may be anybody's code."""
        dialect = self.call.shared.dialect
        try:
            read = dialect.decode_response(body)
            return check_answer(read, sent=len(self.chunk.documents), top_n=top_n)
        except RerankError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {excerpt(str(error).encode(errors='replace'))}"
        # Not up there: the error's frames hold the body.
        raise ResponseError(f"the dialect {dialect.name} could not read the answer: {what}")

    def _without_blanks(self, response: HttpResponse) -> Answer | None:
        """The answer to all but the blank documents, where it is certain that it is that.

        Some servers leave out blank documents, and some of those count the others anew: then an
        index is the place of another document. It is certain that they were not counted anew when
        the blank documents alone are absent, and a document after one of them is present.

        Returns:
            The answer under `on_failure="partial"`, or None where the answer is wrong in some other
            way.

        Raises:
            ResponseError: blank documents were left out; `drops_blanks` says that the others may
                be asked for without them.
        """
        shared, sent = self.call.shared, len(self.chunk.documents)
        blanks = self.chunk.blanks()
        if not blanks or self.top_n is not None:
            return None
        try:
            # As many as if the others were the best of all.
            answer = self._decoded(response.body, sent - len(blanks))
        except RerankError:
            return None
        if answer.model is not None and shared.endpoint.is_quoted(answer.model.encode()):
            del answer
            return None
        if shared.partial:
            absent = set(range(sent)).difference(answer.indices)
            if absent == set(blanks) and max(answer.indices, default=-1) > blanks[0]:
                return answer
            self.drops_blanks = True
        raise dropped(self.chunk, blanks[0])

    # ── what is noted of it ──

    def _note_failure(self, attempt: _Attempt, error: BaseException, size: int) -> None:
        call, chunk, loop = self.call, self.chunk, self.call.shared.loop
        took = loop.time() - attempt.started
        if isinstance(error, RerankError):
            attempt.ending = ending_of(error)
            self._note(error, size, attempt.number)
        elif (
            call.deadline is not None
            and loop.time() >= call.deadline - GRAIN
            and took >= self._expected()
        ):
            # The call's time was over before the attempt's; to the server it is the same.
            attempt.ending = "timeout"
        call.shared.emit(
            AttemptFinished(
                call.number,
                chunk.start,
                len(chunk.documents),
                attempt.number,
                attempt.hedge,
                took,
                error,
                None,
            )
        )

    def _note(self, error: RerankError, size: int, number: int) -> None:
        """Say what was sent where, and remember what the server said about itself."""
        call, shared, chunk = self.call, self.call.shared, self.chunk
        if is_outage(error):
            reached = not isinstance(error, TransportError) or error.reached
            origin, now = shared.origin, shared.loop.time()
            # Before it has a context: what was sent where is not what is wrong.
            origin.downtime.failed(now, origin.answered_at, str(error), reached=reached)
        attempts = shared.policy.attempts
        # Those that wait out an outage are not counted.
        counted = f" of {attempts}" if number <= attempts else ""
        error.context = (
            f"documents {chunk.start} to {chunk.stop - 1} ({size:,} bytes) to "
            f"{shared.url(call.model)}, attempt {number}{counted}"
        )
        call.last_error = error
        if call.verdicts is not None and not is_retryable(error):
            call.verdicts.hear(error, call)
        if isinstance(error, StatusError) and is_throttle(error):
            shared.origin.throttled_at = shared.loop.time()
            hint = error.retry_after
            closes = (
                hint is not None
                and hint <= shared.policy.longest_hint
                and shared.limiter.close_gate(hint, shared.dice.random())
            )
            shared.emit(Throttled(call.number, error.status, hint, closes))
        reason = refusal_of(error)
        if reason == "documents" or reason == "bytes":
            self.sizes.refused(shared.loop.time(), reason, len(chunk.documents), size)

    def _heed(self, response: HttpResponse) -> None:
        """Slow down where the response's headers say that little is left."""
        shared = self.call.shared
        shared.limiter.heed(response.headers)
        seconds = exhausted_for(response.headers)
        if seconds is not None and seconds <= shared.policy.longest_hint:
            shared.limiter.close_gate(seconds, shared.dice.random())

    def tell_wait(self, reason: str, seconds: float | None, error: RerankError | None) -> None:
        """Tell whoever listens what this request waits for from now on."""
        call, chunk = self.call, self.chunk
        documents = len(chunk.documents)
        call.shared.emit(Waiting(call.number, chunk.start, documents, reason, seconds, error))

    def _tell_retry(self, number: int, delay: float, error: RerankError) -> None:
        call, chunk = self.call, self.chunk
        call.retries += 1
        documents = len(chunk.documents)
        call.shared.emit(AttemptRetried(call.number, chunk.start, documents, number, delay, error))

    # ── the request and its time ──

    def encoded(self) -> HttpRequest:
        """The request, encoded once for all attempts."""
        if self.request is None:
            call, shared = self.call, self.call.shared
            encode = shared.dialect.encode_request
            with_key = shared.endpoint.headers
            try:
                body = encode(call.model, call.query, self.chunk.documents, self.top_n)
                self.request = HttpRequest("POST", shared.url(call.model), with_key, body)
            except TypeError:
                pass
        if self.request is None:
            # Not where it failed: that error's frames hold the texts, and it would be the context.
            check_unicode(self.chunk.documents, self.chunk.start)
            raise InvalidRequestError("the request's texts cannot be written as JSON")
        return self.request

    def is_large(self) -> bool:
        """Whether to write its body at once would keep the loop from everything else."""
        documents = self.chunk.documents
        length = sum(map(len, documents)) + len(self.call.query)
        return length > _LARGE_TEXT or len(documents) > _MANY_TEXTS

    async def prepare(self) -> None:
        """Write a large body before its size is asked for, where it is: `pack` leaves it out."""
        limiter = self.call.shared.limiter
        if self.request is None and (limiter.counts_bytes or self.sizes.is_limited):
            if self.is_large():
                await self._encode_in_pieces()
            if limiter.counts_bytes:
                self.weight = len(self.encoded().body)

    async def _encode_in_pieces(self) -> HttpRequest:
        """The request; the loop goes on between the pieces of its body."""
        call, shared = self.call, self.call.shared
        # It hands out its buffer as it is: to join pieces would copy them all at once. It begins
        # about as large as it will be, without a byte being touched: a buffer that grows is copied,
        # which takes 70 ms when it happens at 70 MB.
        length = sum(map(len, self.chunk.documents)) + len(call.query)
        body = io.BytesIO(bytes(length))
        pieces = shared.dialect.encode_pieces(
            call.model, call.query, self.chunk.documents, self.top_n
        )
        try:
            for piece in pieces:
                body.write(piece)
                del piece
                await asyncio.sleep(0)
        except TypeError:
            # `encoded` says which text it was.
            return self.encoded()
        body.truncate()
        url, headers = shared.url(call.model), shared.endpoint.headers
        self.request = HttpRequest("POST", url, headers, body.getvalue())
        return self.request

    def _left(self) -> float | None:
        """Seconds until the deadline."""
        deadline = self.call.deadline
        return None if deadline is None else deadline - self.call.shared.loop.time()

    def _expected(self) -> float:
        """Seconds that an attempt is likely to take."""
        shared = self.call.shared
        median = shared.origin.latencies.percentile(
            shared.loop.time(), len(self.chunk.documents), 0.5
        )
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
            self.parcel.step_out(self.turn)


def pack(call: Caller, chunk: Chunk) -> Parcel:
    """A chunk, ready to be sent."""
    shared, documents = call.shared, chunk.documents
    # Only an answer to all of them shows whether the server leaves out blank documents.
    is_whole = call.top_n is None or chunk.has_blanks()
    top_n = None if is_whole else min(call.top_n or 0, len(documents))
    parcel = Parcel(call, chunk, top_n, shared.origin.sizes[call.model])
    if shared.limiter.counts_tokens:
        parcel.tokens = shared.limits.tokens(call.query, documents)
    if shared.limiter.counts_bytes and not parcel.is_large():
        parcel.weight = len(parcel.encoded().body)
    return parcel


async def _back_off(emit: Emitter, delay: float) -> None:
    """Wait before the next attempt; whoever asks for the statistics sees that somebody does."""
    emit.backing_off += 1
    try:
        await asyncio.sleep(delay)
    finally:
        emit.backing_off -= 1


def dropped(chunk: Chunk, place: int) -> ResponseError:
    """The error of a document that the server gave no score because it is blank."""
    error = ResponseError(
        f"the server gave no score to documents[{chunk.start + place}], which is blank: it leaves "
        'out blank documents; do so too, or pass on_failure="partial", which names them in missing'
    )
    error.final = True
    return error


def cancelled_from_outside() -> TransportError:
    """What an exchange ended with that somebody who is not its call cancelled."""
    return TransportError("an exchange was cancelled from outside the call")


def _failure_of(task: asyncio.Task[Answer]) -> BaseException | None:
    if task.cancelled():
        return cancelled_from_outside()
    return task.exception()
