"""One call of `rerank`: its documents, the chunks they are cut into, and the ranking they make.

`Call.run` chooses between one request and many; `_Chunks` keeps the many side by side, cuts what
the server refuses and merges the answers.
How one request comes to its answer is in `_parcel`.
A line belongs here when it connects rooms for the sake of one call; what can be decided without
waiting has a room of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from contextlib import aclosing
from itertools import chain
from typing import Any, TypeVar

from msgspec import Struct

from rerank_async._answers import Answer
from rerank_async._chunking import (
    Chunk,
    Chunker,
    check_types,
    check_unicode,
    split,
    stream,
    whole,
)
from rerank_async._deadline import Scope
from rerank_async._errors import (
    BadRequestError,
    DeadlineExceededError,
    RerankError,
    ResponseError,
    StatusError,
)
from rerank_async._flow.bisection import Bisection
from rerank_async._hedging import cancelled_from_outside
from rerank_async._merging import Merger, ranking_of
from rerank_async._models import Documents, RerankResponse
from rerank_async._parcel import Parcel, pack
from rerank_async._policy import refusal_of
from rerank_async._private import Private, hide_frames
from rerank_async._receiving import dropped
from rerank_async._route import Ask, Route, Sender, Trail
from rerank_async._streams import Room, closing_iterator
from rerank_async.events import Split

__all__ = ["Call"]

T = TypeVar("T")

# How many documents are checked at once: it takes a few milliseconds, measured by
# `benchmarks/stalls.py`.
_MANY = 2**15
# What asyncio lets out of its loop at once: there is no going on from these.
_ENDS_THE_LOOP = (KeyboardInterrupt, SystemExit)
# What is said to a coroutine from outside, and is no failure of what it does.
_ORDERS = (*_ENDS_THE_LOOP, asyncio.CancelledError, GeneratorExit)


class Call(Private, Struct, eq=False):
    """One call, from its documents to its ranking; used once.

    A struct, as parcels are: a hundred thousand may wait, and structs are small.

    Attributes:
        sender: the session's means of sending.
        route: the server that it goes to.
        ask: the caller's wishes.
        trail: the notes that its parcels make.
        keep_documents: whether the results carry the documents' text.
        documents: the number of documents that have been read and cut into chunks.
        chunks: the chunks of a call that takes no short cut; None of one that does.
    """

    sender: Sender
    route: Route
    ask: Ask
    trail: Trail
    keep_documents: bool
    documents: int = 0
    chunks: _Chunks | None = None

    def __repr__(self) -> str:
        return f"<Call {self.ask.number}>"

    def run(
        self, documents: Documents, are_checked: bool = False
    ) -> Coroutine[Any, Any, RerankResponse]:
        """Send the documents, in as many requests as they need, and merge the answers.

        It only chooses the way, and what it returns is to be awaited: whoever waits holds nothing
        of the choice.

        Args:
            documents: the documents, as `RerankSession.rerank` takes them.
            are_checked: whether a long list is known to hold text that can be written.
        """
        limits = self.sender.limits
        if not isinstance(documents, (list, tuple)):
            measure = self.route.dialect.document_bytes
            chunker = Chunker(limits, self.ask.query, self._envelope(), measure)
            if isinstance(documents, AsyncIterable):
                return self._run_many(_stream(documents, chunker))
            return self._run_many(stream(documents, chunker))
        total = len(documents)
        if total > _MANY and not are_checked:
            return self._run_checked(tuple(documents))
        rest: Iterable[Chunk] = ()
        first = whole(documents, limits)
        if first is None:
            query, envelope = self.ask.query, self._envelope()
            measure = self.route.dialect.document_bytes
            rest = pieces = split(
                documents, limits, query, envelope, measure, are_checked=are_checked
            )
            first = next(pieces, None)
            if first is None:
                return self._run_many(iter(()), total)
        if len(first.documents) == total and not self.sender.partial:
            self.documents = total
            parcel = pack(self.sender, self.route, self.ask, self.trail, first)
            asks_size = parcel.sizes.is_limited or self.sender.limiter.counts_bytes
            if asks_size and parcel.is_large():
                # Its body is written in pieces first, which takes turns of the loop.
                return self._run_many(iter((first,)), total)
            if not parcel.sizes.is_limited or parcel.pieces() == 1:
                return self._run_one(parcel)
        return self._run_many(chain((first,), rest), total)

    def pack(self, chunk: Chunk) -> Parcel:
        """A chunk of this call, ready to be sent."""
        return pack(self.sender, self.route, self.ask, self.trail, chunk)

    async def _run_checked(self, documents: tuple[str, ...]) -> RerankResponse:
        """Check a long list part by part, with a turn of the loop between, and then send it.

        The list is the call's own copy: whatever becomes of the caller's meanwhile, what was
        checked is what is sent.
        """
        # A partial call that ends here names all of them as missing.
        self._begin(len(documents))
        for start in range(0, len(documents), _MANY):
            positions = range(start, min(start + _MANY, len(documents)))
            part = documents[start : positions.stop]
            check_types(part, positions)
            check_unicode(part, positions)
            await asyncio.sleep(0)
        self.chunks, self.trail.left = None, 1
        return await self.run(documents, are_checked=True)

    def _envelope(self) -> int:
        """The bytes of a request without documents; 0 where nobody counts bytes."""
        if self.sender.limits.max_bytes is None:
            return 0
        ask = self.ask
        # No request asks for more than it holds; more digits than these no encoder writes.
        top_n = None if ask.top_n is None else min(ask.top_n, 2**53)
        return len(self.route.dialect.encode_request(ask.model, ask.query, (), top_n))

    async def _run_one(self, parcel: Parcel) -> RerankResponse:
        """The short cut that most calls take: no task, no merge."""
        try:
            # A hundred thousand calls may wait: here, where each has few and small frames.
            if not parcel.sender.limiter.take(parcel.load):
                with parcel.line_up() as turn:
                    await turn
            answer = await parcel.answer(has_slot=True)
            ask = self.ask
            return ranking_of(parcel.chunk, answer, ask.top_n, self.keep_documents, ask.model)
        except BadRequestError as error:
            if parcel.load.documents == 1 or not _may_be_cut(error, self.sender):
                raise
            rest = self._run_pieces(parcel.chunk, error)
        # What comes now may take long, and the body is not needed any more.
        del parcel
        return await rest

    def _run_pieces(
        self, chunk: Chunk, refused: BadRequestError
    ) -> Coroutine[Any, Any, RerankResponse]:
        # Its traceback holds the frames, and they the body.
        return self._run_many(iter((chunk,)), chunk.stop, refused.with_traceback(None))

    def _run_many(
        self,
        chunks: Iterator[Chunk] | AsyncGenerator[Chunk, None],
        total: int | None = None,
        refused: BadRequestError | None = None,
    ) -> Coroutine[Any, Any, RerankResponse]:
        return self._begin(total).run(chunks, refused)

    def _begin(self, total: int | None) -> _Chunks:
        merger = Merger(self.ask.top_n, keep_documents=self.keep_documents)
        scope, group = Scope(self.sender.loop, None), asyncio.TaskGroup()
        self.chunks = _Chunks(self, total, merger, set(), scope, group)
        self.trail.left = None
        return self.chunks

    def best_so_far(self, error: DeadlineExceededError) -> RerankResponse:
        """What a partial call has when its deadline passes: every index read, scored or named."""
        # A partial call takes no short cut.
        assert self.chunks is not None
        return self.chunks.best_so_far(error)

    def forget(self) -> None:
        """Let go of what holds this call: its chunks, and the errors by their tracebacks."""
        self.trail.forget()
        if self.chunks is not None:
            self.chunks.failure = None
            self.chunks = None


class _Chunks(Private, Struct, eq=False):
    """The chunks of one call, several at once, and what becomes of each.

    Attributes:
        call: the call that they belong to.
        total: the number of documents; None for a stream.
        merger: the answers, and what failed.
        pending: the chunks that have neither an answer nor an error yet.
        scope: the end of all of it when one fails; there is none once `run` is over.
        group: the owner of the tasks; there is none once `run` is over.
        failure: the error that the call fails with, or None.
        is_read: whether the documents have come to their end.
        workers: the number of tasks that score one chunk after another.
        is_starting: whether a worker is being started at this moment.
    """

    call: Call
    total: int | None
    merger: Merger
    pending: set[Chunk]
    scope: Scope
    group: asyncio.TaskGroup
    failure: BaseException | None = None
    is_read: bool = False
    workers: int = 0
    is_starting: bool = False

    def __repr__(self) -> str:
        return f"<_Chunks of {self.call!r}>"

    async def run(
        self,
        chunks: Iterator[Chunk] | AsyncGenerator[Chunk, None],
        refused: BadRequestError | None,
    ) -> RerankResponse:
        """Score every chunk, several at once.

        As many chunks are in work as there are slots, and one that waits to be retried counts, so
        that a stream is read no faster than the server answers.

        Args:
            chunks: the chunks of all documents.
            refused: the refusal of the first chunk, if it was sent before; otherwise None.
        """
        try:
            if isinstance(chunks, AsyncGenerator):
                # Closed out of the scope's reach: the end of the call must not interrupt it.
                async with aclosing(chunks):
                    with self.scope:
                        async with self.group:
                            await self._hand_out(chunks)
            else:
                with self.scope:
                    async with self.group:
                        self._start_worker(chunks, refused)
        finally:
            # They hold the task, and with it this call, which must not hold them.
            del self.group, self.scope
        if self.failure is not None:
            raise self.failure
        if self.pending or not self.is_read:
            # A chunk that ended without an answer and without an error: its exchange was cancelled
            # by somebody who is not this call.
            raise cancelled_from_outside()
        for _ in self.merger.steps():
            await asyncio.sleep(0)
        return self.merger.finish(self.call.ask.model)

    def best_so_far(self, error: DeadlineExceededError) -> RerankResponse:
        """The answers that there are; every other index is missing for `error`."""
        for chunk in self.pending:
            self.merger.fail(chunk.positions, error)
        read = self.call.documents
        if self.total is not None and read < self.total:
            self.merger.fail(range(read, self.total), error)
        return self.merger.finish(self.call.ask.model, complete=False)

    async def _hand_out(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        """Read an async source in the caller's own task, and have each chunk scored in another.

        It may hold what belongs to a task, such as a timeout.
        """
        limiter = self.call.sender.limiter
        room = Room(lambda: limiter.limit)

        async def work(chunk: Chunk) -> None:
            try:
                await self._try_to_score(chunk, None)
            finally:
                room.leave()

        try:
            async for chunk in chunks:
                self._take(chunk)
                await room.enter()
                self.group.create_task(work(chunk))
                # Documents that are at hand at once must not keep the loop from sending.
                await asyncio.sleep(0)
        except _ORDERS:
            raise
        except BaseException as error:
            self._end(error)
        else:
            self.is_read = True
            self._count()

    def _start_worker(
        self, chunks: Iterator[Chunk], refused: BadRequestError | None = None
    ) -> None:
        self.workers += 1
        self.is_starting = True
        self.group.create_task(self._work(chunks, refused))
        self.is_starting = False

    async def _work(self, chunks: Iterator[Chunk], refused: BadRequestError | None) -> None:
        """Score one chunk after another, until there are no more or there are too many workers.

        A task for each chunk, and one that makes them, would cost more than to go on in one.
        """
        limiter = self.call.sender.limiter
        if self.is_starting:
            # This loop begins tasks at once. Whoever started this one sends first, or each worker
            # would start the next, as deep as there are slots, before anything is sent.
            await asyncio.sleep(0)
        try:
            while self.workers <= limiter.limit and self.failure is None:
                try:
                    chunk = next(chunks, None)
                except _ENDS_THE_LOOP:
                    raise
                except BaseException as error:
                    # Nothing is awaited here: a cancellation is the source's own, and must not
                    # pass for the end of the documents.
                    self._end(error)
                    return
                if chunk is None:
                    self.is_read = True
                    self._count()
                    return
                self._take(chunk)
                if self.workers < limiter.limit:
                    self._start_worker(chunks)
                await self._try_to_score(chunk, refused)
                refused = None
                # Answers that are at hand at once must not keep the loop from anything else.
                await asyncio.sleep(0)
        finally:
            self.workers -= 1

    def _take(self, chunk: Chunk) -> None:
        self.pending.add(chunk)
        self._count()
        self.call.documents = chunk.stop

    def _count(self) -> None:
        """Note how many requests are left, once that is known."""
        if self.is_read:
            self.call.trail.left = len(self.pending)

    def _is_over(self, chunk: Chunk) -> None:
        """A chunk has an answer or an error."""
        self.pending.discard(chunk)
        self._count()

    async def _try_to_score(self, chunk: Chunk, refused: BadRequestError | None) -> None:
        try:
            await self._score(chunk, Bisection(len(chunk.documents)), refused)
        except _ORDERS:
            raise
        except BaseException as error:
            self._end(error)

    async def _score(
        self, chunk: Chunk, search: Bisection, refused: BadRequestError | None = None
    ) -> None:
        """Score one chunk, in smaller pieces where the server takes no more or refuses some.

        Args:
            chunk: the documents.
            search: what may be spent on finding out.
            refused: the refusal of the chunk, if it was sent before; otherwise None.
        """
        if self.failure is not None:
            return
        if refused is not None:
            suspects = [(chunk, refused)]
        else:
            parcel = self.call.pack(chunk)
            await parcel.prepare()
            if parcel.sizes.is_limited and (pieces := parcel.pieces()) > 1:
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
                lambda half: self._deliver(self.call.pack(half), search), halves
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
            except _ORDERS:
                raise
            except BaseException as error:
                self._end(error)
                return None

        tasks = [self.group.create_task(do(chunk)) for chunk in chunks]
        return [await task for task in tasks]

    async def _deliver(self, parcel: Parcel, search: Bisection) -> BadRequestError | None:
        """Merge the answer to one parcel; return how it was refused where smaller ones may do."""
        chunk = scored = parcel.chunk
        answer: Answer | None = None
        try:
            await parcel.prepare()
            try:
                answer = await parcel.answer()
            except ResponseError as error:
                if not error.omits_blanks:
                    raise
            if answer is None:
                # Once more, as if there were no blank documents.
                scored = self._without_blanks(chunk)
                rest = self.call.pack(scored)
                await rest.prepare()
                answer = await rest.answer()
            self.merger.add(scored, answer)
            if parcel.top_n is None and len(answer.indices) < len(chunk.documents):
                answered = set(scored.positions_of(answer.indices))
                for place in chunk.blanks():
                    position = chunk.positions[place]
                    if position not in answered:
                        self.merger.fail((position,), dropped(chunk, place))
        except Exception as error:
            # With an answer at hand it is the merge that failed: the answers do not fit together,
            # and which of them came first must not decide who is missing.
            if answer is not None:
                self._end(error)
                return None
            if isinstance(error, BadRequestError) and _may_be_cut(error, self.call.sender):
                # Its traceback holds this frame, and the frame the body.
                return error.with_traceback(None)
            self._fail(chunk, error)
            return None
        search.scored = True
        self._is_over(chunk)
        return None

    def _without_blanks(self, chunk: Chunk) -> Chunk:
        """The chunk without its blank documents, which its server leaves out."""
        blanks = set(chunk.blanks())
        places = [place for place in range(len(chunk.documents)) if place not in blanks]
        if not places:
            raise dropped(chunk, 0)
        return chunk.only(places)

    def _fail(self, chunk: Chunk, error: Exception) -> None:
        """Note that these documents have no score, or end the call where that is too much."""
        if (
            not self.call.sender.partial
            or not isinstance(error, RerankError)
            or _condemns_call(error)
        ):
            self._end(error)
            return
        # It goes to the caller as a value, without passing through the frames of the call.
        hide_frames(error)
        self.merger.fail(chunk.positions, error)
        self._is_over(chunk)

    def _end(self, error: BaseException) -> None:
        """Let the call fail with this error, unless it fails already.

        No error reaches the task group: it would wrap it, and would cancel the caller's task in its
        own way, of which something may be left when the call is over.
        """
        self.failure = self.failure or error
        self.scope.end("failed")

    def _cut(self, chunk: Chunk, pieces: int, reason: str) -> list[Chunk]:
        number, documents = self.call.ask.number, len(chunk.documents)
        self.call.sender.emit(Split(number, chunk.start, documents, pieces, reason))
        parts = list(chunk.cut(pieces))
        self.pending.discard(chunk)
        self.pending.update(parts)
        self._count()
        return parts


def _condemns_call(error: RerankError) -> bool:
    """Whether every further chunk would hear the same."""
    # What the server refused is one request on the wire: the documents that it carried.
    is_chunks_own = error.condemns == "request" and isinstance(error, StatusError)
    return error.condemns is not None and not is_chunks_own


def _may_be_cut(error: BadRequestError, sender: Sender) -> bool:
    """Whether what was refused may be sent in smaller pieces."""
    return sender.limits.split_refused and refusal_of(error) is not None


async def _stream(documents: AsyncIterable[str], chunker: Chunker) -> AsyncGenerator[Chunk, None]:
    async with closing_iterator(documents) as source:
        async for document in source:
            if (chunk := chunker.feed(document)) is not None:
                yield chunk
    if (chunk := chunker.flush()) is not None:
        yield chunk
