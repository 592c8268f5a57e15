"""What of a job needs no server: reading its input, planning it, writing what it has.

Everything here may take minutes and is done in a thread; nothing here waits for a network.
A line belongs here when it holds for a job that is not running.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, cast

from rerank_async._chunking import split
from rerank_async._errors import InvalidRequestError
from rerank_async._session import RerankSession
from rerank_async.bulk._cache import ScoreCache
from rerank_async.bulk._entries import Entry
from rerank_async.bulk._errors import HaltedError, JobChangedError
from rerank_async.bulk._index import Index
from rerank_async.bulk._job import Job
from rerank_async.bulk._manifest import Contents, Manifest, Tally, Words, limit_words
from rerank_async.bulk._options import BulkOptions
from rerank_async.bulk._outputs import Written, fitting, one_ranking, write
from rerank_async.bulk._progress import BulkPlan
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sources import Source
from rerank_async.bulk._work import plan

__all__ = [
    "check_all_met",
    "check_same",
    "entries_of",
    "export",
    "in_thread",
    "plan_job",
    "survey",
    "words_of",
]

T = TypeVar("T")

# Seconds in which a thread that is not wanted any more has let go of its files, if it ever does.
_LET_GO = 1.0


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
        **limit_words(session.chunks),
        "on_failure": session.on_failure,
        "identical_once": options.identical_once,
        "top_n": source.top_n,
        **source.describe(),
    }


async def in_thread(work: Callable[[Callable[[], bool]], T], *, can_block: bool = False) -> T:
    """Do work that takes long in a thread; it is asked to end when this is cancelled.

    Args:
        work: is given a function that says whether it is to end, and looks at it every so often.
        can_block: whether it may wait for ever, as reading a pipe may: then it is left alone if it
            does not end soon, and ends with the process.
    """
    halted = threading.Event()
    loop = asyncio.get_running_loop()
    doing: asyncio.Future[T] = loop.create_future()

    def told(result: T | None, error: BaseException | None) -> None:
        if error is not None:
            doing.set_exception(error)
        else:
            doing.set_result(cast("T", result))

    def do() -> None:
        result, failure = None, None
        try:
            result = work(halted.is_set)
        except BaseException as error:
            failure = error
        # Where the loop is closed, nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(told, result, failure)

    # Daemon: a process may end although a pipe has not.
    threading.Thread(target=do, name="rerank-files", daemon=True).start()
    try:
        return await asyncio.shield(doing)
    finally:
        halted.set()
        if not doing.done():
            # It has the job's files in its hands: they are closed only when it lets go.
            await asyncio.wait([doing], timeout=_LET_GO if can_block else None)
        if doing.done() and not doing.cancelled():
            doing.exception()


def survey(
    source: Source,
    index: Index,
    fits: Callable[[Row], None],
    halted: Callable[[], bool],
    on_row: Callable[[int], None] = lambda rows: None,
) -> Contents | None:
    """Read a source to its end and note its rows; None when halted before.

    Args:
        source: the rows.
        index: is told of them.
        fits: refuses a row that the output could not hold.
        halted: says whether to give up.
        on_row: is called with the number of rows so far.

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
            index.row(tally.rows, row.key(digest), row.start, digest)
            tally.add(digest, len(row.documents))
            on_row(tally.rows)
    return tally.contents()


def check_same(job: Job, key: str, digest: bytes) -> None:
    """Of an input that is read as it comes: a row with an id must be what it was before.

    Raises:
        JobChangedError: it is not.
    """
    offset = job.index.offset(key)
    if offset is not None and job.entry(offset).digest != digest.hex():
        raise JobChangedError(
            f"query_id {key.removeprefix('id:')!r} has other content than when it was "
            "reranked: give the changed input another directory (--job)"
        )


def check_all_met(job: Job) -> None:
    """Of an input that was read as it came: every row that the journal knows must be there.

    Raises:
        JobChangedError: one is not.
    """
    if (stranger := job.index.stranger()) is not None:
        kind, _, name = stranger.partition(":")
        raise JobChangedError(
            f"the job in {job.path} has a result for "
            + (f"query_id {name!r}" if kind == "id" else "a row without a query_id")
            + ", and the input no such row (any more): give the changed input another "
            "directory (--job)"
        )


def entries_of(
    job: Job, source: Source, halted: Callable[[], bool]
) -> Generator[Entry, None, None]:
    """What the output is to hold, in the input's order."""

    def outcomes() -> Iterator[tuple[Entry, int]]:
        for outcome in job.outcomes():
            if halted():
                raise HaltedError
            yield outcome

    if source.is_one_query:
        yield from one_ranking(outcomes(), source.query_id, source.top_n)
    else:
        for entry, _ in outcomes():
            yield entry


def export(
    session: RerankSession,
    source: Source,
    output: Path,
    path: Path,
    options: BulkOptions,
    halted: Callable[[], bool] = lambda: False,
) -> Written:
    """Write what a job has done so far, in the input's order; nothing is sent.

    The input is read, that of standard input too: the journal does not know its order.

    Raises:
        InvalidRequestError: there is no such job.
        JobError: see `Run.go`.
    """
    words = words_of(session, source, options)
    fits = fitting(output, options.tag, is_one_query=source.is_one_query)
    with Job(path) as job:
        if not job.check(words):
            raise InvalidRequestError(f"no job was begun in {path}")
        source.prepare(halted)
        if source.is_rereadable and options.check_first:
            contents = survey(source, job.index, fits, halted)
            if contents is None:
                raise HaltedError
            job.take_up(Manifest(words, contents), salvage=options.salvage)
        else:
            job.take_up(Manifest(words, None), salvage=options.salvage)
            _meet(source, job, fits, halted)
        with closing(entries_of(job, source, halted)) as entries:
            return write(output, entries, tag=options.tag)


def _meet(
    source: Source, job: Job, fits: Callable[[Row], None], halted: Callable[[], bool]
) -> None:
    """Note the rows of an input that the job has read as it came."""
    index = job.index
    with closing(source.rows()) as rows:
        for ordinal, row in enumerate(rows):
            if halted():
                raise HaltedError
            fits(row)
            digest = row.digest()
            key = row.key(digest)
            index.row(ordinal, key, row.start)
            if not index.begin(key) and row.query_id is not None:
                check_same(job, key, digest)
    check_all_met(job)


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
    dialect = session.spoken
    source.prepare(halted)
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
        if options.cache is not None and options.cache.exists():
            cache = stack.enter_context(
                ScoreCache(
                    options.cache,
                    endpoint=session.base_url,
                    dialect=session.dialect,
                    model=model,
                )
            )
        for row in stack.enter_context(closing(source.rows())):
            if halted():
                raise HaltedError
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
