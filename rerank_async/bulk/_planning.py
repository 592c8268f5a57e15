"""What a job would send, before any of it is sent.

A line belongs here when it counts what has not been paid for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_async._chunking import split
from rerank_async._errors import InvalidRequestError
from rerank_async._session import RerankSession
from rerank_async.bulk._errors import HaltedError
from rerank_async.bulk._index import Index
from rerank_async.bulk._job import Job
from rerank_async.bulk._manifest import Manifest, Words
from rerank_async.bulk._progress import BulkPlan
from rerank_async.bulk._rows import Row
from rerank_async.bulk._sending import Sending, sending_of
from rerank_async.bulk._settings import Assignment
from rerank_async.bulk._survey import survey_rows

__all__ = ["plan_job"]


def plan_job(assignment: Assignment, halted: Callable[[], bool] = lambda: False) -> BulkPlan:
    """Count what a job would send; nothing is sent, and nothing is begun.

    Args:
        assignment: the job; its source must be re-readable. What its directory holds already is
            not counted.
        halted: a function that says whether to give up.

    Raises:
        InvalidRequestError: the source can be read once only.
        InputError: the input does not hold what its format says.
        JobError: the directory is of another job, or damaged.
    """
    session, source, options = assignment.session, assignment.source, assignment.options
    words, fits = assignment.words(), assignment.check()
    if not source.is_rereadable:
        raise InvalidRequestError(
            "standard input can be read once only, and a plan would read it: give a file"
        )
    source.prepare(halted)
    rows = documents = done = to_send = requests = tokens = 0
    with ExitStack() as stack:
        index = _index_of(assignment, words, fits, halted, stack)
        cache = None
        if options.cache is not None and options.cache.exists():
            cache = stack.enter_context(assignment.open_cache())
        for row in stack.enter_context(closing(source.rows())):
            if halted():
                raise HaltedError
            rows += 1
            documents += len(row.documents)
            if not index.begin(row.key(row.digest())):
                done += 1
                continue
            known = None if cache is None else cache.lookup(row.query, row.documents)
            sending = sending_of(row, identical_once=options.identical_once, known=known)
            if sending.documents:
                to_send += len(sending.documents)
                tokens += session.chunks.tokens(row.query, sending.documents)
                requests += _requests_for(sending, session)
    return BulkPlan(rows, documents, done, to_send, requests, tokens)


def _index_of(
    assignment: Assignment,
    words: Words,
    fits: Callable[[Row], None],
    halted: Callable[[], bool],
    stack: ExitStack,
) -> Index:
    """The input's rows and what became of them, from the job's directory or for this time only.

    Args:
        assignment: the job.
        words: the job's words for a manifest.
        fits: a function that refuses a row which the output could not hold.
        halted: a function that says whether to give up.
        stack: the stack that closes what is opened here.
    """
    source, options, directory = assignment.source, assignment.options, assignment.directory
    if (directory / "manifest.json").exists():
        job = stack.enter_context(Job(directory))
        job.check(words)
        contents = survey_rows(source, job.index, fits, halted) if options.check_first else None
        job.take_up(Manifest(words, contents), salvage=options.salvage)
        if options.retry_failed:
            job.index.forgive()
        return job.index
    folder = stack.enter_context(TemporaryDirectory(prefix="rerank-async-"))
    index = Index(Path(folder) / "index.sqlite")
    stack.callback(index.close)
    survey_rows(source, index, fits, halted)
    return index


def _requests_for(sending: Sending, session: RerankSession) -> int:
    """The number of requests that a row's documents are sent in."""
    limits, dialect, query = session.chunks, session.spoken, sending.row.query
    envelope = 0
    if limits.max_bytes is not None:
        envelope = len(dialect.encode_request(session.model or "", query, (), sending.top_n))
    try:
        pieces = split(sending.documents, limits, query, envelope, dialect.document_bytes)
        return sum(1 for _ in pieces)
    except InvalidRequestError:
        # This row will fail, and costs nothing.
        return 0
