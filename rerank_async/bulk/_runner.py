"""A job from its input to its output: read, send, note, write.

The session sends, waits and retries; here is only what a job adds to that: which rows are still to
be done, what each is noted as, and when to stop.
A line belongs here when it is about one run of a job as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack, aclosing, closing, suppress
from math import inf
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from rerank_async._errors import InvalidRequestError, RerankError, StoppedError
from rerank_async._models import Failed, RerankRequest, RerankResponse
from rerank_async._policy import is_outage, is_retryable
from rerank_async._session import RerankSession
from rerank_async.bulk._cache import ScoreCache
from rerank_async.bulk._entries import Entry, failed_line, packed, ranking_line, view
from rerank_async.bulk._errors import HaltedError, JobChangedError
from rerank_async.bulk._job import Job
from rerank_async.bulk._manifest import Manifest
from rerank_async.bulk._meter import Meter
from rerank_async.bulk._options import BulkOptions
from rerank_async.bulk._outputs import Written, fitting, write
from rerank_async.bulk._progress import BulkProgress, BulkSummary, Stop
from rerank_async.bulk._reader import Reader
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sources import Source
from rerank_async.bulk._survey import (
    check_all_met,
    check_same,
    entries_of,
    in_thread,
    survey,
    words_of,
)
from rerank_async.bulk._work import Work, plan

__all__ = ["Run"]

_log = logging.getLogger("rerank_async.bulk")


# Seconds that the output has to be finished in when the run is asked to stop while it is written;
# most are. One that is not is written by the next run.
_WRITE_ON = 1.0


@frozen(kw_only=True)
class _Request(RerankRequest):
    """A request that knows what it was made from.

    Attributes:
        work: what of which row it sends.
        digest: the row's.
        estimate: the tokens set aside for it; 0 where they are not counted.
        began: when it was handed to the session, on the loop's clock.
    """

    work: Work
    digest: bytes
    estimate: int
    began: float


class Run:
    """One run of a job; used once.

    Args:
        session: sends; its own time for calls does not count here.
        source: the rows.
        output: the file to end in.
        path: the job's directory.
        options: how.
        stop: set it to end the run in good order; None when nobody will.
        on_progress: is called every so often.
        interval: seconds between two calls of it.
    """

    def __init__(
        self,
        session: RerankSession,
        source: Source,
        output: Path,
        path: Path,
        options: BulkOptions,
        *,
        stop: asyncio.Event | None = None,
        on_progress: Callable[[BulkProgress], None] | None = None,
        interval: float = 0.5,
    ) -> None:
        self._session = session
        self._source = source
        self._output = output
        self._options = options
        self._words = words_of(session, source, options)
        self._fits = fitting(output, options.tag, is_one_query=source.is_one_query)
        self._path = path
        self._stop = stop
        self._on_progress = on_progress
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._meter = Meter(session, self._loop.time)
        self._stopped: Stop | None = None
        self._error: Exception | None = None
        # An error of ours or of the input: what is under way is finished, and then it is raised.
        self._failure: Exception | None = None
        self._reader: Reader | None = None
        self._cache: ScoreCache | None = None
        self._timeout: asyncio.Timeout | None = None
        # What is on the wire, by the estimate; how the estimate compares with what servers say.
        self._reserved = 0
        self._under_way = 0
        self._estimated = self._said = 0
        self._news = asyncio.Event()
        # Set when nobody waits for the rows any more: what is not on the wire is not sent.
        self._ending = asyncio.Event()
        # When it was asked to stop.
        self._asked_at: float | None = None
        self._answered_at = -inf
        self._failures_in_a_row = 0
        # The model that answers for one query's corpus.
        self._served: str | None = None

    async def go(self) -> BulkSummary:
        """Do what is left of the job, and write its output once nothing is.

        Raises:
            InputError: the input does not hold what its format says.
            JobChangedError: the directory is of another job, or the input has changed since.
            JobLockedError, JobDamagedError, JobFullError, JobError: see there.
            OSError: a file cannot be read.
        """
        with ExitStack() as stack:
            job = self._job = stack.enter_context(Job(self._path))
            if not job.check(self._words) and self._output.exists() and not self._options.overwrite:
                raise InvalidRequestError(
                    f"{self._output} exists, and no job in {self._path} wrote it: name another "
                    "output, or pass overwrite=True (--overwrite)"
                )
            folder = self._output.parent
            # Found while it costs nothing. The job's directory may have brought this one along.
            if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                raise InvalidRequestError(
                    f"the output's directory {folder} "
                    + ("may not be written to" if folder.is_dir() else "is not there: make it")
                )
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
            return self._meter.summary(job, self._output, written, stopped, self._error)

    # ── before ──

    async def _take_up(self) -> None:
        """Check the input and read the journal, in a thread: both may take minutes."""
        options, job, meter = self._options, self._job, self._meter

        def read(rows: int) -> None:
            meter.rows_read = rows

        def recall(entry: Entry) -> None:
            if self._stopped is not None:
                raise HaltedError
            meter.recall(entry)
            if self._source.is_one_query and self._served is None:
                self._served = view(entry.line).model

        def work(halted: Callable[[], bool]) -> None:
            def is_over() -> bool:
                return halted() or self._stopped is not None

            self._source.prepare(is_over)
            if self._source.is_rereadable and options.check_first:
                meter.contents = survey(self._source, job.index, self._fits, is_over, read)
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
        session, options = self._session, self._options
        if options.cache is not None:
            self._cache = stack.enter_context(
                ScoreCache(
                    options.cache,
                    endpoint=session.base_url,
                    dialect=session.dialect,
                    model=session.model or "",
                )
            )
        self._meter.begin_sending()
        self._tell()
        self._reader = Reader(self._source.rows(), can_block=not self._source.is_rereadable)
        stack.callback(self._reader.close)
        if self._stopped is not None:
            self._reader.stop()
        try:
            async with asyncio.timeout(None) as self._timeout:
                outcomes = session.rerank_many(self._requests(), stop=self._ending)
                async with aclosing(outcomes):
                    async for outcome in outcomes:
                        request = outcome.request
                        assert isinstance(request, _Request)
                        self._reserved -= request.estimate
                        self._under_way -= 1
                        self._news.set()
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
        try:
            async for work, digest in self._works():
                estimate = 0
                if self._options.max_tokens is not None:
                    estimate = self._session.chunks.tokens(work.row.query, work.documents)
                    if not await self._can_afford(estimate):
                        return
                request = _Request(
                    query=work.row.query,
                    documents=work.documents,
                    top_n=work.top_n,
                    work=work,
                    digest=digest,
                    estimate=estimate,
                    began=self._loop.time(),
                )
                self._reserved += estimate
                self._under_way += 1
                yield request
        except Exception as error:
            # What is under way is paid for: it is finished before this is raised.
            self._failure = self._failure or error

    async def _works(self) -> AsyncGenerator[tuple[Work, bytes], None]:
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
            work = self._planned(row)
            self._meter.spare(work)
            if work.documents:
                yield work, digest
            else:
                await self._note(work, digest, None, 0)

        contents = self._meter.contents
        if contents is not None and self._stopped is None and ordinal != contents.rows:
            raise self._changed_meanwhile()

    def _changed_meanwhile(self) -> JobChangedError:
        return JobChangedError(
            f"{self._source.name} was changed after it was checked: what was sent meanwhile is "
            "kept; give the changed input another directory (--job)"
        )

    def _planned(self, row: Row) -> Work:
        options, cache = self._options, self._cache
        if cache is None:
            return plan(row, identical_once=options.identical_once)
        known = cache.lookup(row.query, row.documents)
        return plan(
            row,
            identical_once=options.identical_once,
            known=known,
            known_model=cache.answered_model,
        )

    async def _can_afford(self, estimate: int) -> bool:
        """Whether there is enough left for one more row; waits while what is under way may tell."""
        budget = self._options.max_tokens
        assert budget is not None
        while True:
            ratio = self._said / self._estimated if self._estimated else 1.0
            if self._meter.tokens + (self._reserved + estimate) * ratio <= budget:
                return True
            if not self._under_way:
                self._halt("max_tokens")
                return False
            self._news.clear()
            await self._news.wait()
            if self._stopped is not None:
                return False

    async def _reranked(self, request: _Request, response: RerankResponse) -> None:
        work = request.work
        if response.missing and not response.results:
            await self._failed(request, next(iter(response.missing.values())))
            return
        if work.mixes(response.model):
            # Scores of two models do not belong in one ranking: this row is sent as if none were
            # known. It happens once, when the model behind a name has changed.
            again = plan(
                work.row,
                identical_once=self._options.identical_once,
                known=[None] * len(work.row.documents),
            )
            request = evolve(request, documents=again.documents, top_n=None, work=again)
            async with aclosing(
                self._session.rerank_many((request,), stop=self._ending)
            ) as outcomes:
                outcome = await anext(outcomes)
            if isinstance(outcome, Failed):
                await self._failed(request, outcome.error)
                return
            response, work = outcome.response, again
        tokens, estimate = response.usage.total_tokens, request.estimate
        if tokens is not None and estimate:
            self._said += tokens
            self._estimated += estimate
        self._answered_at = self._loop.time()
        self._failures_in_a_row = 0
        if tokens is None:
            tokens = self._session.chunks.tokens(work.row.query, work.documents)
        await self._note(work, request.digest, response, tokens)
        # Last: a cache that cannot be written must not cost an answer that is paid for.
        if self._cache is not None and not response.missing:
            results = response.results
            self._cache.store(
                work.row.query,
                [work.documents[index] for index in results.indices],
                results.scores,
                response.model,
            )

    async def _failed(self, request: _Request, error: Exception) -> bool:
        """Note a row that failed, or find that the job has to stop: then True."""
        if not isinstance(error, RerankError):
            raise error
        if error.condemns in ("model", "session"):
            # A job has one model: every row would hear the same, and none is sent any more. What is
            # on the wire is paid for, and is waited for.
            self._halt("refused", error)
            return False
        if self._ending.is_set() and (isinstance(error, StoppedError) or is_retryable(error)):
            # It was not asked, or not as often as it would have been: the next run does it.
            return False
        if is_outage(error) and (error.retry_after or 0.0) > self._session.retry.longest_hint:
            # The server's own word that nobody need come back soon: it is not about this row.
            return self._halt("outage", error)
        is_quiet = self._answered_at < request.began
        # 500 is most often about what was sent; everything else of the kind is about the server.
        if is_quiet and is_outage(error) and getattr(error, "status", None) != 500:
            return self._halt("outage", error)
        if isinstance(error, TimeoutError) and is_quiet:
            return self._halt("outage", error)
        await self._note_failure(request, error)
        self._failures_in_a_row += 1
        if self._failures_in_a_row == self._options.max_failures:
            return self._halt("failures", error)
        return False

    def _halt(self, reason: Stop, error: Exception | None = None) -> bool:
        """Read and send nothing more."""
        if self._stopped is None:
            self._stopped, self._error = reason, error
        if self._reader is not None:
            self._reader.stop()
        self._news.set()
        if self._timeout is not None and self._timeout.when() is None:
            self._timeout.reschedule(self._loop.time() + self._options.drain)
        return True

    # ── noting ──

    async def _note(
        self, work: Work, digest: bytes, response: RerankResponse | None, tokens: int
    ) -> None:
        row, ranking = work.row, work.ranking(response)
        if self._source.is_one_query:
            self._check_model(ranking.model)
        line = ranking_line(
            row.query_id,
            ranking.indices,
            ranking.scores,
            row.doc_ids,
            ranking.model or self._session.model,
            ranking.tokens,
            ranking.missing,
        )
        is_estimate = ranking.tokens is None
        await self._keep(row, digest, line, tokens, is_estimate, failed=bool(ranking.missing))

    def _check_model(self, model: str | None) -> None:
        """All parts of a corpus end in one ranking, for which one model must have answered."""
        self._served = self._served or model
        if model != self._served:
            raise JobChangedError(
                f"the model {model!r} answered, and {self._served!r} scored other parts of the "
                "corpus: their scores cannot be compared; run the same command again when "
                f"{self._served!r} is back, or begin anew in another directory (--job)"
            )

    async def _note_failure(self, request: _Request, error: Exception) -> None:
        row = request.work.row
        offset = self._job.index.offset(row.key(request.digest))
        if offset is not None and view(self._job.entry(offset).line).results:
            # Done again in vain: the scores of an earlier run, not all of them, are kept.
            self._meter.end(len(row.documents), 0, is_estimate=False, failed=True)
            return
        line = failed_line(row.query_id, error)
        await self._keep(row, request.digest, line, 0, False, failed=True)

    async def _keep(
        self, row: Row, digest: bytes, line: bytes, tokens: int, is_estimate: bool, *, failed: bool
    ) -> None:
        key, documents = row.key(digest), len(row.documents)
        payload = packed(
            key, digest, documents, tokens, line, is_estimate=is_estimate, failed=failed
        )
        offset = await self._job.journal.add(payload)
        self._job.index.ended(key, offset, failed)
        self._meter.end(documents, tokens, is_estimate=is_estimate, failed=failed)

    # ── after ──

    async def _write(self) -> Written | None:
        """Write the output; None when the run was asked to stop meanwhile, and there is none."""
        self._meter.phase = "writing"
        self._tell()
        job, source, options = self._job, self._source, self._options

        def work(halted: Callable[[], bool]) -> Written | None:
            def is_over() -> bool:
                asked = self._asked_at
                return halted() or (asked is not None and self._loop.time() - asked > _WRITE_ON)

            try:
                with closing(entries_of(job, source, is_over)) as entries:
                    return write(self._output, entries, tag=options.tag)
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
