"""A job from its input to its output: read, send, note, write.

The session sends, waits and retries; here is only what a job adds to that: which rows are still to
be done, and when to stop.
A line belongs here when it is about one run of a job as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack, aclosing, closing, suppress
from math import inf
from typing import Any

from attrs import evolve, frozen

from rerank_async._errors import InvalidRequestError, RerankError, StoppedError
from rerank_async._models import Failed, RerankRequest, RerankResponse
from rerank_async._policy import is_retryable
from rerank_async.bulk._blame import reason_to_stop
from rerank_async.bulk._cache import ScoreCache
from rerank_async.bulk._entries import Entry
from rerank_async.bulk._errors import HaltedError, JobChangedError
from rerank_async.bulk._export import entries_of
from rerank_async.bulk._job import Job
from rerank_async.bulk._ledger import Ledger
from rerank_async.bulk._manifest import Manifest
from rerank_async.bulk._meter import Meter
from rerank_async.bulk._outputs import Written, write
from rerank_async.bulk._progress import BulkProgress, BulkSummary, StopReason
from rerank_async.bulk._reader import Reader
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sending import Sending, sending_of
from rerank_async.bulk._settings import Assignment
from rerank_async.bulk._spending import Spending
from rerank_async.bulk._survey import check_all_met, check_same, survey_rows
from rerank_async.bulk._thread import in_thread

__all__ = ["Run"]

_log = logging.getLogger("rerank_async.bulk")


# Seconds that the output has to be finished in when the run is asked to stop while it is written;
# most are. One that is not is written by the next run.
_WRITE_ON = 1.0


@frozen(kw_only=True)
class _Request(RerankRequest):
    """A request that knows what it was made from.

    Attributes:
        sending: the row, and what of it is sent.
        digest: the row's digest; empty where the whole input has one.
        estimate: the tokens set aside for it; 0 where they are not counted.
        began: the moment when it was handed to the session, on the loop's clock.
    """

    sending: Sending
    digest: bytes
    estimate: int
    began: float


class Run:
    """One run of a job; used once.

    Args:
        assignment: the job.
        stop: an event that ends the run in good order; None when nobody will set one.
        on_progress: a function that is called with how far the job is.
        interval: the seconds between two calls of it.
    """

    def __init__(
        self,
        assignment: Assignment,
        *,
        stop: asyncio.Event | None = None,
        on_progress: Callable[[BulkProgress], None] | None = None,
        interval: float = 0.5,
    ) -> None:
        self._assignment = assignment
        self._session = assignment.session
        self._source = assignment.source
        self._options = assignment.options
        self._words = assignment.words()
        self._fits = assignment.check()
        self._stop = stop
        self._on_progress = on_progress
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._meter = Meter(self._session, self._loop.time)
        self._spending = Spending(self._options.max_tokens, lambda: self._meter.tokens)
        self._stopped: StopReason | None = None
        self._error: Exception | None = None
        # An error of ours or of the input: what is under way is finished, and then it is raised.
        self._failure: Exception | None = None
        self._reader: Reader | None = None
        self._cache: ScoreCache | None = None
        self._timeout: asyncio.Timeout | None = None
        # Set when nobody waits for the rows any more: what is not on the wire is not sent.
        self._ending = asyncio.Event()
        # When it was asked to stop.
        self._asked_at: float | None = None
        self._answered_at = -inf
        self._failures_in_a_row = 0

    async def go(self) -> BulkSummary:
        """Do what is left of the job, and write its output once nothing is.

        Raises:
            InputError: the input does not hold what its format says.
            JobChangedError: the directory is of another job, or the input has changed since.
            JobLockedError, JobDamagedError, JobFullError, JobError: see there.
            OSError: a file cannot be read.
        """
        output = self._assignment.output
        with ExitStack() as stack:
            job = self._job = stack.enter_context(Job(self._assignment.directory))
            self._ledger = Ledger(
                job, self._meter, self._session.model, is_one_query=self._source.is_one_query
            )
            self._check_output(has_begun=job.check(self._words))
            watching = [asyncio.create_task(work) for work in self._watchers()]
            try:
                await self._take_up()
                if self._stopped is None:
                    await self._send(stack)
                written = await self._write() if self._stopped is None else None
            finally:
                for task in watching:
                    task.cancel()
            self._tell()
            # Who asks to stop when the output has been written, is too late.
            stopped = self._stopped if written is None else None
            return self._meter.summary(job, output, written, stopped, self._error)

    # ── before ──

    def _check_output(self, *, has_begun: bool) -> None:
        """Refuse an output that cannot be written, while that costs nothing."""
        output, folder = self._assignment.output, self._assignment.output.parent
        if not has_begun and output.exists() and not self._options.overwrite:
            raise InvalidRequestError(
                f"{output} exists, and no job in {self._assignment.directory} wrote it: name "
                "another output, or pass overwrite=True (--overwrite)"
            )
        # The job's directory, which was made just now, may have brought this one along.
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise InvalidRequestError(
                f"the output's directory {folder} "
                + ("may not be written to" if folder.is_dir() else "is not there: make it")
            )

    async def _take_up(self) -> None:
        """Check the input and read the journal, in a thread: both may take minutes."""
        options, job, meter = self._options, self._job, self._meter

        def read(rows: int) -> None:
            meter.rows_read = rows

        def recall(entry: Entry) -> None:
            if self._stopped is not None:
                raise HaltedError
            self._ledger.recall(entry)

        def work(halted: Callable[[], bool]) -> None:
            def is_over() -> bool:
                return halted() or self._stopped is not None

            self._source.prepare(is_over)
            if self._source.is_rereadable and options.check_first:
                meter.contents = survey_rows(self._source, job.index, self._fits, is_over, read)
                if meter.contents is None:
                    return
            job.take_up(Manifest(self._words, meter.contents), salvage=options.salvage, take=recall)
            if options.retry_failed:
                job.index.forgive()

        with suppress(HaltedError):
            await in_thread(work)
        if self._stopped is not None:
            return
        meter.resume(job.index.over())
        if job.dropped:
            _log.warning(
                "the journal of %s ended in %d bytes that had not reached the disk whole; "
                "their rows are sent again",
                job.path,
                job.dropped,
            )

    # ── sending ──

    async def _send(self, stack: ExitStack) -> None:
        if self._options.cache is not None:
            self._cache = stack.enter_context(self._assignment.open_cache())
        self._meter.begin_sending()
        self._tell()
        self._reader = Reader(self._source.rows(), can_block=not self._source.is_rereadable)
        stack.callback(self._reader.close)
        if self._stopped is not None:
            self._reader.stop()
        try:
            async with asyncio.timeout(None) as self._timeout:
                outcomes = self._session.rerank_many(self._requests(), stop=self._ending)
                async with aclosing(outcomes):
                    async for outcome in outcomes:
                        request = outcome.request
                        assert isinstance(request, _Request)
                        self._spending.settle(request.estimate)
                        if isinstance(outcome, Failed):
                            if await self._failed(request, outcome.error):
                                break
                        else:
                            await self._reranked(request, outcome.response)
        except TimeoutError:
            # Asked to stop, and the wire did not get empty in time.
            if self._stopped is None:
                raise
        finally:
            # One that is over must not be set any more.
            self._timeout = None
        await self._job.journal.sync()
        if self._failure is not None:
            raise self._failure
        if self._stopped is None:
            check_all_met(self._job)

    async def _requests(self) -> AsyncGenerator[_Request, None]:
        """What is still to be sent, as it is asked for."""
        chunks, spending = self._session.chunks, self._spending
        try:
            async for sending, digest in self._sendings():
                query, documents = sending.row.query, sending.documents
                estimate = chunks.tokens(query, documents) if spending.is_limited else 0
                if not await spending.can_afford(estimate):
                    self._halt("max_tokens")
                    return
                request = _Request(
                    query=query,
                    documents=documents,
                    top_n=sending.top_n,
                    sending=sending,
                    digest=digest,
                    estimate=estimate,
                    began=self._loop.time(),
                )
                spending.set_aside(estimate)
                yield request
        except Exception as error:
            # What is under way is paid for: it is finished before this is raised.
            self._failure = self._failure or error

    async def _sendings(self) -> AsyncGenerator[tuple[Sending, bytes], None]:
        """The rows that are still to be done, with their digests; what costs nothing is done."""
        reader, index = self._reader, self._job.index
        assert reader is not None
        ordinal = 0
        async for row in reader:
            is_checked, content = self._meter.contents is not None, row.digest()
            # An input that was checked first has one digest for all of its rows.
            digest = b"" if is_checked and row.query_id is not None else content
            key = row.key(digest)
            if not is_checked:
                self._fits(row)
                index.row(ordinal, key, row.start)
            elif not index.is_at(ordinal, key, content):
                raise self._changed_meanwhile()
            ordinal += 1
            if not index.begin(key):
                if not is_checked and row.query_id is not None:
                    check_same(self._job, key, digest)
                continue
            sending = self._planned(row)
            self._meter.spare(sending)
            if sending.documents:
                yield sending, digest
            else:
                await self._ledger.note_ranking(sending, digest, None, 0)

        contents = self._meter.contents
        if contents is not None and self._stopped is None and ordinal != contents.rows:
            raise self._changed_meanwhile()

    def _changed_meanwhile(self) -> JobChangedError:
        return JobChangedError(
            f"{self._source.name} was changed after it was checked: what was sent meanwhile is "
            "kept; give the changed input another directory (--job)"
        )

    def _planned(self, row: Row) -> Sending:
        options, cache = self._options, self._cache
        if cache is None:
            return sending_of(row, identical_once=options.identical_once)
        known = cache.lookup(row.query, row.documents)
        return sending_of(
            row,
            identical_once=options.identical_once,
            known=known,
            known_model=cache.answered_model,
        )

    async def _reranked(self, request: _Request, response: RerankResponse) -> None:
        sending = request.sending
        if response.missing and not response.results:
            await self._failed(request, next(iter(response.missing.values())))
            return
        if sending.mixes(response.model):
            # Scores of two models do not belong in one ranking: this row is sent as if none were
            # known. It happens once, when the model behind a name has changed.
            again = sending_of(
                sending.row,
                identical_once=self._options.identical_once,
                known=[None] * len(sending.row.documents),
            )
            request = evolve(request, documents=again.documents, top_n=None, sending=again)
            async with aclosing(
                self._session.rerank_many((request,), stop=self._ending)
            ) as outcomes:
                outcome = await anext(outcomes)
            if isinstance(outcome, Failed):
                await self._failed(request, outcome.error)
                return
            response, sending = outcome.response, again
        tokens = response.usage.total_tokens
        self._spending.compare(request.estimate, tokens)
        self._answered_at = self._loop.time()
        self._failures_in_a_row = 0
        if tokens is None:
            tokens = self._session.chunks.tokens(sending.row.query, sending.documents)
        await self._ledger.note_ranking(sending, request.digest, response, tokens)
        # Last: a cache that cannot be written must not cost an answer that is paid for.
        if self._cache is not None and not response.missing:
            results = response.results
            self._cache.store(
                sending.row.query,
                [sending.documents[index] for index in results.indices],
                results.scores,
                response.model,
            )

    async def _failed(self, request: _Request, error: Exception) -> bool:
        """Note a row that failed, or find that the job has to stop: then True."""
        if not isinstance(error, RerankError):
            raise error
        reason = reason_to_stop(
            error,
            is_quiet=self._answered_at < request.began,
            longest_hint=self._session.retry.longest_hint,
        )
        if reason == "refused":
            # No row is sent any more. What is on the wire is paid for, and is waited for.
            self._halt(reason, error)
            return False
        if self._ending.is_set() and (isinstance(error, StoppedError) or is_retryable(error)):
            # It was not asked, or not as often as it would have been: the next run does it.
            return False
        if reason is not None:
            return self._halt(reason, error)
        await self._ledger.note_failure(request.sending.row, request.digest, error)
        self._failures_in_a_row += 1
        if self._failures_in_a_row == self._options.max_failures:
            return self._halt("failures", error)
        return False

    def _halt(self, reason: StopReason, error: Exception | None = None) -> bool:
        """Read and send nothing more; the first reason counts."""
        if self._stopped is None:
            self._stopped, self._error = reason, error
        if self._reader is not None:
            self._reader.stop()
        self._spending.end()
        if self._timeout is not None and self._timeout.when() is None:
            self._timeout.reschedule(self._loop.time() + self._options.drain)
        return True

    # ── after ──

    async def _write(self) -> Written | None:
        """Write the output; None when the run was asked to stop meanwhile, and there is none."""
        self._meter.phase = "writing"
        self._tell()
        job, assignment = self._job, self._assignment

        def work(halted: Callable[[], bool]) -> Written | None:
            def is_over() -> bool:
                asked = self._asked_at
                return halted() or (asked is not None and self._loop.time() - asked > _WRITE_ON)

            try:
                with closing(entries_of(job, assignment.source, is_over)) as entries:
                    return write(assignment.output, entries, tag=assignment.options.tag)
            except HaltedError:
                return None

        return await in_thread(work)

    # ── those who watch ──

    def _watchers(self) -> Iterator[Coroutine[Any, Any, None]]:
        if self._stop is not None:
            yield self._heed(self._stop)
        if self._on_progress is not None:
            yield self._report()

    async def _heed(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._asked_at = self._loop.time()
        self._ending.set()
        self._halt("interrupted")

    async def _report(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(self._interval)

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(self._meter.progress())
        except Exception:
            # Whoever watches must not end what is watched.
            _log.exception("on_progress raised; it is not called any more")
            self._on_progress = None
