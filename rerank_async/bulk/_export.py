"""Writing what a job has done, whether it is over or not.

What is done here may take minutes and is done in a thread; nothing here waits for a network.
A line belongs here when it is about the way from a journal to an output.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from rerank_async._errors import InvalidRequestError
from rerank_async.bulk._entries import Entry
from rerank_async.bulk._errors import HaltedError
from rerank_async.bulk._inputs import Source
from rerank_async.bulk._job import Job
from rerank_async.bulk._manifest import Manifest
from rerank_async.bulk._one_query import one_ranking
from rerank_async.bulk._outputs import Written, write
from rerank_async.bulk._rows import Row
from rerank_async.bulk._settings import Assignment
from rerank_async.bulk._survey import check_all_met, check_same, survey_rows

__all__ = ["entries_of", "export"]


def entries_of(
    job: Job, source: Source, halted: Callable[[], bool]
) -> Generator[Entry, None, None]:
    """The entries that the output is to hold, in the input's order.

    Raises:
        HaltedError: `halted` said that they are not wanted any more.
    """

    def found() -> Iterator[tuple[Entry, int]]:
        for one in job.entries():
            if halted():
                raise HaltedError
            yield one

    if source.is_one_query:
        yield from one_ranking(found(), source.query_id, source.top_n)
    else:
        for entry, _ in found():
            yield entry


def export(assignment: Assignment, halted: Callable[[], bool] = lambda: False) -> Written:
    """Write what a job has done so far, in the input's order; nothing is sent.

    The input is read, that of standard input too: the journal does not know its order.

    Raises:
        InvalidRequestError: there is no such job.
        JobError: see `Run.go`.
    """
    source, options = assignment.source, assignment.options
    words, fits = assignment.words(), assignment.check()
    with Job(assignment.directory) as job:
        if not job.check(words):
            raise InvalidRequestError(f"no job was begun in {assignment.directory}")
        source.prepare(halted)
        if source.is_rereadable and options.check_first:
            contents = survey_rows(source, job.index, fits, halted)
            if contents is None:
                raise HaltedError
            job.take_up(Manifest(words, contents), salvage=options.salvage)
        else:
            job.take_up(Manifest(words, None), salvage=options.salvage)
            _meet(source, job, fits, halted)
        with closing(entries_of(job, source, halted)) as entries:
            return write(assignment.output, entries, tag=options.tag)


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
