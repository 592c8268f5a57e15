"""A job from its input to its output: read, send, note, write.

The session sends, waits and retries; here is only what a job adds to that: which rows are still to
be done, what each is noted as, and when to stop.
A line belongs here when it is about one run of a job as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack, aclosing, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, TypeVar

from attrs import define, evolve, field, frozen

from rerank_async._chunking import split
from rerank_async._errors import (
    AuthenticationError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RerankError,
)
from rerank_async._models import Failed, RerankRequest, RerankResponse
from rerank_async._policy import is_outage
from rerank_async._session import RerankSession
from rerank_async.bulk._cache import ScoreCache
from rerank_async.bulk._entries import Entry, failed_line, packed, ranking_line
from rerank_async.bulk._errors import JobChangedError
from rerank_async.bulk._index import Index
from rerank_async.bulk._job import Job
from rerank_async.bulk._manifest import Contents, Manifest, Tally, Words
from rerank_async.bulk._outputs import Written, fitting, one_ranking, write
from rerank_async.bulk._progress import BulkPlan, BulkProgress, BulkSummary, Stop
from rerank_async.bulk._reader import Reader
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sources import Source
from rerank_async.bulk._work import Work, plan
from rerank_async.dialects import get as get_dialect

__all__ = ["BulkOptions", "Run", "export", "in_thread", "plan_job"]

T = TypeVar("T")

_log = logging.getLogger("rerank_async.bulk")

_Phase: TypeAlias = Literal["reading", "sending", "writing"]

# What the server says of the key or of the model, every row would hear.
_REFUSALS = (AuthenticationError, PermissionDeniedError, NotFoundError)

# The rate is that of about so many seconds, looked at in so many steps.
_RATE_SECONDS = 10.0
_RATE_STEPS = 20


def _positive_or_none(instance: object, attribute: object, value: int | None) -> None:
    name = getattr(attribute, "name", "it")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidRequestError(
            f"{name} must be a whole number of at least 1, or None for no limit, not {value!r}"
        )


@frozen(kw_only=True)
class BulkOptions:
    """How a job is done; what it computes is said by the session and the input.

    Attributes:
        identical_once: send documents that are repeated within a row once, and give each the score.
            Right for pointwise models, whose scores depend on the query and one document.
        cache: a file that keeps scores for other jobs; made when it does not exist. None: no cache.
            With a cache, all documents' scores are asked for, whatever `top_n` says.
        max_tokens: stop before the job as a whole costs more tokens than that; None: no limit.
        max_failures: stop when so many rows have failed one after another; None: never.
        check_first: read the whole input before anything is sent: bad rows, doubled ids and a
            changed input are found while they cost nothing, and the total is known. Standard input
            cannot be read twice, and is checked as it comes.
        retry_failed: do rows again that failed in earlier runs.
        salvage: go on with a journal that is damaged, without what is damaged.
        overwrite: replace an output that no job of this directory wrote.
        tag: the last word of the lines of a TREC run.
        drain: seconds that requests on the wire have to finish in when the run is asked to stop.

    Raises:
        InvalidRequestError: a value out of range; the message names it.
    """

    identical_once: bool = True
    cache: str | Path | None = None
    max_tokens: int | None = field(default=None, validator=_positive_or_none)
    max_failures: int | None = field(default=100, validator=_positive_or_none)
    check_first: bool = True
    retry_failed: bool = False
    salvage: bool = False
    overwrite: bool = False
    tag: str = "rerank_async"
    drain: float = 30.0


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


@define
class _Counts:
    """What a run counts; see `BulkSummary`."""

    queries: int = 0
    documents: int = 0
    failed: int = 0
    resumed: int = 0
    identical: int = 0
    cached: int = 0
    tokens: int = 0
    estimated: bool = False


def words_of(session: RerankSession, source: Source, options: BulkOptions) -> Words:
    """What decides about a job's result besides its rows."""
    if session.model is None:
        raise InvalidRequestError(
            "model: pass model= to RerankSession (--model), or set RERANK_MODEL: a job has one"
        )
    return {
        "endpoint": session.base_url,
        "dialect": session.dialect,
        "model": session.model,
        "max_documents": session.chunks.max_documents,
        "on_failure": session.on_failure,
        "identical_once": options.identical_once,
        "top_n": source.top_n,
        **source.describe(),
    }


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
        self._began = self._loop.time()
        self._at_start = session.statistics()
        self._phase: _Phase = "reading"
        self._counts = _Counts()
        self._contents: Contents | None = None
        # How far the survey is.
        self.rows_read = 0
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
        self._answered_at = -1.0
        self._failures_in_a_row = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS)

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
            watching = [asyncio.create_task(work) for work in self._watchers()]
            try:
                await self._take_up()
                if self._stopped is None:
                    await self._send(stack)
                if self._stopped is None:
                    written = await self._write()
                else:
                    written = None
            finally:
                for task in watching:
                    task.cancel()
            self._tell()
            return self._summary(written)

    # ── before ──

    async def _take_up(self) -> None:
        """Check the input and read the journal, in a thread: both may take minutes."""
        options, job = self._options, self._job

        def work(halted: Callable[[], bool]) -> None:
            if self._source.is_rereadable and options.check_first:
                self._contents = survey(
                    self._source,
                    job.index,
                    self._fits,
                    lambda: halted() or self._stopped is not None,
                    self,
                )
                if self._contents is None:
                    return
            job.take_up(
                Manifest(self._words, self._contents), salvage=options.salvage, take=self._recall
            )
            if options.retry_failed:
                job.index.forgive()

        await in_thread(work)
        if self._stopped is not None:
            return
        over, failed, documents = job.index.over()
        counts = self._counts
        counts.resumed = counts.queries = over
        counts.failed, counts.documents = failed, documents
        if job.dropped:
            _log.warning(
                "the journal of %s ended in %d bytes that had not reached the disk whole; "
                "their rows are sent again",
                job.path,
                job.dropped,
            )

    def _recall(self, entry: Entry) -> None:
        # Every attempt was paid for, those whose rows were done again too.
        self._counts.tokens += entry.tokens
        self._counts.estimated |= entry.is_estimate

    # ── sending ──

    async def _send(self, stack: ExitStack) -> None:
        session, options = self._session, self._options
        if options.cache is not None:
            self._cache = stack.enter_context(
                ScoreCache(
                    Path(options.cache),
                    endpoint=session.base_url,
                    dialect=session.dialect,
                    model=session.model or "",
                )
            )
        self._phase = "sending"
        self._mark()
        self._tell()
        self._reader = Reader(self._source.rows(), can_block=not self._source.is_rereadable)
        stack.callback(self._reader.close)
        if self._stopped is not None:
            self._reader.stop()
        try:
            async with asyncio.timeout(None) as self._timeout:
                outcomes = session.rerank_many(self._requests())
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
        await self._job.journal.sync()
        if self._failure is not None:
            raise self._failure
        if self._stopped is None and (stranger := self._job.index.stranger()) is not None:
            kind, _, name = stranger.partition(":")
            raise JobChangedError(
                f"the job in {self._path} has a result for "
                + (f"query_id {name!r}" if kind == "id" else "a row without a query_id")
                + ", and the input no such row (any more): give the changed input another "
                "directory (--job)"
            )

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
            # An input that was checked first has one digest for all of its rows.
            is_checked = self._contents is not None
            digest = b"" if is_checked and row.query_id is not None else row.digest()
            key = row.key(digest)
            if not is_checked:
                self._fits(row)
                index.row(ordinal, key, row.start)
                ordinal += 1
            if not index.begin(key):
                if not is_checked and row.query_id is not None:
                    self._check_same(key, digest)
                continue
            work = self._planned(row)
            self._counts.identical += len(row.documents) - len(work.documents)
            if work.known is not None:
                cached = sum(score is not None for score in work.known)
                self._counts.cached += cached
                self._counts.identical -= cached
            if work.documents:
                yield work, digest
            else:
                await self._note(work, digest, None, 0)

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

    def _check_same(self, key: str, digest: bytes) -> None:
        """Of an input that is read as it comes: a row with an id must be what it was before."""
        offset = self._job.index.offset(key)
        if offset is not None and self._job.entry(offset).digest != digest.hex():
            raise JobChangedError(
                f"query_id {key.removeprefix('id:')!r} has other content than when it was "
                "reranked: give the changed input another directory (--job)"
            )

    async def _can_afford(self, estimate: int) -> bool:
        """Whether there is enough left for one more row; waits while what is under way may tell."""
        budget = self._options.max_tokens
        assert budget is not None
        while True:
            ratio = self._said / self._estimated if self._estimated else 1.0
            if self._counts.tokens + (self._reserved + estimate) * ratio <= budget:
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
            try:
                response = await self._session.rerank(again.row.query, again.documents)
            except RerankError as error:
                await self._failed(request, error)
                return
            work = again
        tokens, estimate = response.usage.total_tokens, request.estimate
        if tokens is not None and estimate:
            self._said += tokens
            self._estimated += estimate
        self._answered_at = self._loop.time()
        self._failures_in_a_row = 0
        if self._cache is not None and not response.missing:
            results = response.results
            self._cache.store(
                work.row.query,
                [work.documents[index] for index in results.indices],
                results.scores,
                response.model,
            )
        if tokens is None:
            tokens = self._session.chunks.tokens(work.row.query, work.documents)
            self._counts.estimated = True
        await self._note(work, request.digest, response, tokens)

    async def _failed(self, request: _Request, error: Exception) -> bool:
        """Note a row that failed, or find that the job has to stop: then True."""
        if not isinstance(error, RerankError):
            raise error
        if isinstance(error, _REFUSALS):
            return self._halt("refused", error)
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

    async def _note_failure(self, request: _Request, error: Exception) -> None:
        row = request.work.row
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
        counts = self._counts
        counts.queries += 1
        counts.documents += documents
        counts.failed += failed
        counts.tokens += tokens

    # ── after ──

    async def _write(self) -> Written:
        self._phase = "writing"
        self._tell()
        job, source, options = self._job, self._source, self._options
        return await in_thread(
            lambda halted: write(self._output, _entries(job, source, halted), tag=options.tag)
        )

    def _summary(self, written: Written | None) -> BulkSummary:
        counts, now = self._counts, self._session.statistics()
        then, job = self._at_start, self._job
        return BulkSummary(
            finished=written is not None,
            stopped=self._stopped,
            error=self._error,
            output=self._output,
            errors_output=None if written is None else written.errors_path,
            job=self._path,
            queries=counts.queries,
            queries_total=None if self._contents is None else self._contents.rows,
            documents=counts.documents,
            failed=counts.failed,
            resumed=counts.resumed,
            sent=now.documents - then.documents,
            identical=counts.identical,
            cached=counts.cached,
            requests=now.requests - then.requests,
            retries=now.retries - then.retries,
            throttled=now.throttled - then.throttled,
            tokens=counts.tokens,
            tokens_estimated=counts.estimated,
            seconds=self._loop.time() - self._began,
            dropped_bytes=job.dropped,
            skipped_entries=job.skipped,
        )

    # ── those who watch ──

    def _watchers(self) -> Iterator[Coroutine[Any, Any, None]]:
        if self._stop is not None:
            yield self._heed(self._stop)
        if self._on_progress is not None:
            yield self._report()

    async def _heed(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._halt("interrupted")

    async def _report(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(self._interval)

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(self.progress())
        except Exception:
            # Whoever watches must not end what is watched.
            _log.exception("on_progress raised; it is not called any more")
            self._on_progress = None

    def _mark(self) -> None:
        self._marks.append((self._loop.time(), self._counts.documents))

    def progress(self) -> BulkProgress:
        """How far the job is now."""
        counts, contents = self._counts, self._contents
        now, then = self._session.statistics(), self._at_start
        time = self._loop.time()
        rate, left = 0.0, None
        if self._marks:
            began, documents = self._marks[0]
            if time > began:
                rate = (counts.documents - documents) / (time - began)
            if time - self._marks[-1][0] >= _RATE_SECONDS / _RATE_STEPS:
                self._mark()
        if rate and contents is not None:
            left = max(0, contents.documents - counts.documents) / rate
        return BulkProgress(
            phase=self._phase,
            queries=self.rows_read if self._phase == "reading" else counts.queries,
            queries_total=None if contents is None else contents.rows,
            documents=counts.documents,
            documents_total=None if contents is None else contents.documents,
            documents_per_second=rate,
            in_flight=now.in_flight,
            limit=now.limit,
            retries=now.retries - then.retries,
            throttled=now.throttled - then.throttled,
            failed=counts.failed,
            tokens=counts.tokens,
            tokens_estimated=counts.estimated,
            gate=now.gate,
            seconds=time - self._began,
            seconds_left=left,
        )


class _InterruptedError(Exception):
    """The thread's work is not wanted any more."""


async def in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """Do work that takes long in a thread; it is asked to end when this is cancelled.

    Args:
        work: is given a function that says whether it is to end, and looks at it every so often.
    """
    halted = threading.Event()
    doing = asyncio.get_running_loop().run_in_executor(None, work, halted.is_set)
    try:
        return await asyncio.shield(doing)
    finally:
        halted.set()
        if not doing.done():
            # It has the job's files in its hands: they are closed only when it lets go.
            await asyncio.wait([doing])
            doing.exception()


def survey(
    source: Source,
    index: Index,
    fits: Callable[[Row], None],
    halted: Callable[[], bool],
    run: Run | None = None,
) -> Contents | None:
    """Read a source to its end and note its rows; None when halted before.

    Args:
        source: the rows.
        index: is told of them.
        fits: refuses a row that the output could not hold.
        halted: says whether to give up.
        run: is told how far it is.

    Raises:
        InputError: the input does not hold what its format says, or an id occurs twice.
    """
    tally = Tally()
    with closing(source.rows()) as rows:
        for row in rows:
            if halted():
                return None
            fits(row)
            digest = row.digest()
            index.row(tally.rows, row.key(digest), row.start)
            tally.add(digest, len(row.documents))
            if run is not None:
                run.rows_read = tally.rows
    return tally.contents()


def _entries(job: Job, source: Source, halted: Callable[[], bool]) -> Iterator[Entry]:
    """What the output is to hold, in the input's order."""

    def outcomes() -> Iterator[tuple[Entry, int]]:
        for outcome in job.outcomes():
            if halted():
                raise _InterruptedError
            yield outcome

    if source.is_one_query:
        yield from one_ranking(outcomes(), source.query_id, source.top_n)
    else:
        for entry, _ in outcomes():
            yield entry


def export(
    session: RerankSession, source: Source, output: Path, path: Path, options: BulkOptions
) -> Written:
    """Write what a job has done so far, in the input's order; nothing is sent.

    Raises:
        InvalidRequestError: there is no such job.
        JobError: see `Run.go`.
    """
    words = words_of(session, source, options)
    with Job(path) as job:
        if not job.check(words):
            raise InvalidRequestError(f"no job was begun in {path}")
        contents = None
        if source.is_rereadable and options.check_first:
            fits = fitting(output, options.tag, is_one_query=source.is_one_query)
            contents = survey(source, job.index, fits, lambda: False)
        job.take_up(Manifest(words, contents), salvage=options.salvage)
        return write(output, _entries(job, source, lambda: False), tag=options.tag)


def plan_job(
    session: RerankSession,
    source: Source,
    output: Path,
    path: Path,
    options: BulkOptions,
    halted: Callable[[], bool] = lambda: False,
) -> BulkPlan:
    """Count what a job would send; nothing is sent, and nothing is begun.

    Args:
        session: whose limits and model count.
        source: the rows; must be re-readable.
        output: the file that the job would end in.
        path: the job's directory; what it holds already is not counted.
        options: of the job.
        halted: says whether to give up.

    Raises:
        InvalidRequestError: the source can be read once only.
        InputError: the input does not hold what its format says.
        JobError: the directory is of another job, or damaged.
    """
    words, limits = words_of(session, source, options), session.chunks
    fits = fitting(output, options.tag, is_one_query=source.is_one_query)
    if not source.is_rereadable:
        raise InvalidRequestError(
            "standard input can be read once only, and a plan would read it: give a file"
        )
    dialect = get_dialect(session.dialect)
    model = session.model or ""
    rows = documents = done = to_send = requests = tokens = 0
    with ExitStack() as stack:
        if (path / "manifest.json").exists():
            job = stack.enter_context(Job(path))
            job.check(words)
            index = job.index
            contents = survey(source, index, fits, halted) if options.check_first else None
            job.take_up(Manifest(words, contents), salvage=options.salvage)
            if options.retry_failed:
                index.forgive()
        else:
            folder = stack.enter_context(TemporaryDirectory(prefix="rerank-async-"))
            index = Index(Path(folder) / "index.sqlite")
            stack.callback(index.close)
            survey(source, index, fits, halted)
        cache: ScoreCache | None = None
        if options.cache is not None and Path(options.cache).exists():
            cache = stack.enter_context(
                ScoreCache(
                    Path(options.cache),
                    endpoint=session.base_url,
                    dialect=session.dialect,
                    model=model,
                )
            )
        for row in stack.enter_context(closing(source.rows())):
            if halted():
                raise _InterruptedError
            rows += 1
            documents += len(row.documents)
            if not index.begin(row.key(row.digest())):
                done += 1
                continue
            known = None if cache is None else cache.lookup(row.query, row.documents)
            work = plan(row, identical_once=options.identical_once, known=known)
            if not work.documents:
                continue
            to_send += len(work.documents)
            tokens += limits.tokens(row.query, work.documents)
            envelope = 0
            if limits.max_bytes is not None:
                envelope = len(dialect.encode_request(model, row.query, (), work.top_n))
            try:
                pieces = split(work.documents, limits, row.query, envelope, dialect.document_bytes)
                requests += sum(1 for _ in pieces)
            except InvalidRequestError:
                # This row will fail, and costs nothing.
                continue
    return BulkPlan(rows, documents, done, to_send, requests, tokens)
