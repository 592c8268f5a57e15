"""Reading an input: to its end before anything is sent, or as it comes.

A line belongs here when it holds the rows of an input against what the job knows of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from rerank_async.bulk._errors import JobChangedError
from rerank_async.bulk._index import Index
from rerank_async.bulk._inputs import Source
from rerank_async.bulk._job import Job
from rerank_async.bulk._manifest import Contents, Tally
from rerank_async.bulk._rows import Row

__all__ = ["check_all_met", "check_same", "survey_rows"]


def survey_rows(
    source: Source,
    index: Index,
    fits: Callable[[Row], None],
    halted: Callable[[], bool],
    on_row: Callable[[int], None] = lambda rows: None,
) -> Contents | None:
    """Read a source to its end and note its rows; None when halted before.

    Args:
        source: the rows.
        index: the index that the rows are noted in.
        fits: a function that refuses a row which the output could not hold.
        halted: a function that says whether to give up.
        on_row: a function that is called with the number of rows so far.

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
